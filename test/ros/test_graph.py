"""The running node, seen from a third process: names, types and QoS as docs/node.md has them."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import make_tiny_bundle
from ros_graph import graph_of
from ros_helpers import STEP, NodeProcess, Peer, image_message, view, wait_until
from std_msgs.msg import Header

pytestmark = pytest.mark.timeout(600)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "node.md"
# Of every lifecycle node; the page is about ours.
COMMON_TOPICS = {"/rosout", "/parameter_events", "~/transition_event"}
COMMON_SERVICES = {
    *("~/change_state", "~/get_available_states", "~/get_available_transitions", "~/get_state"),
    *("~/get_transition_graph", "~/describe_parameters", "~/get_parameter_types"),
    *("~/get_parameters", "~/get_type_description", "~/list_parameters", "~/set_parameters"),
    "~/set_parameters_atomically",
}


def rows(heading: str, columns: int) -> list[list[str]]:
    """Cells of the first table below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)
    lines = [line for line in section[0].splitlines() if line.startswith("| `")]
    found = [re.split(r" ?\| ?", line)[1:-1] for line in lines]
    assert found
    assert all(len(cells) == columns for cells in found)
    return found


def documented_topics(heading: str) -> dict[str, dict[str, Any]]:
    return {
        name.strip("`"): {
            "types": [kind.replace("/", "/msg/")],
            "reliability": qos.split(",")[0].replace(" ", "_"),
            "durability": "transient_local" if "latched" in qos else "volatile",
        }
        for name, kind, qos, _ in rows(heading, 4)
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The graph of a real node with a camera beside it, names relative to namespace and node."""
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(bundle)
    namespace = f"/seen_{uuid.uuid4().hex[:12]}"
    process = NodeProcess(namespace=namespace, bundle=str(bundle), backend="torch", sync_wait=5.0)
    with process, Peer(namespace) as peer:
        graph = graph_of(f"{namespace}/depth_node", f"{namespace}/depth/image_rect")
        peer.wait_for_node(process, 240.0)
        peer.send(view(), STEP)
        peer.answer(STEP)
        broken = image_message(view(), Header(), "no_such_encoding")
        peer.image_publisher.publish(broken)
        wait_until(lambda: "refused.unknown_encoding" in peer.status(), "the refusal")
        said = peer.status()
    found = {
        kind: {_relative(name, namespace): what for name, what in ends.items()}
        for kind, ends in graph.items()
    }
    return {**found, "diagnostics": said}


def _relative(name: str, namespace: str) -> str:
    own = f"{namespace}/depth_node/"
    if name.startswith(own):
        return f"~/{name.removeprefix(own)}"
    return name.removeprefix(f"{namespace}/")


def test_what_it_publishes_is_documented(seen: dict[str, dict[str, Any]]) -> None:
    own = {name: end for name, end in seen["publishers"].items() if name not in COMMON_TOPICS}
    assert own == documented_topics("### Out")


def test_what_it_listens_to_is_documented(seen: dict[str, dict[str, Any]]) -> None:
    documented = documented_topics("### In")
    # The alternative to `image`.
    assert documented.pop("image/compressed")["types"] == ["sensor_msgs/msg/CompressedImage"]
    own = {name: end for name, end in seen["subscribers"].items() if name not in COMMON_TOPICS}
    assert own == documented


def test_its_services_are_documented(seen: dict[str, dict[str, Any]]) -> None:
    documented = {
        name.strip("`"): [kind.replace("/", "/srv/")] for name, kind, _ in rows("## Services", 3)
    }
    own = {n: kinds for n, kinds in seen["services"].items() if n not in COMMON_SERVICES}
    assert own == documented
    assert seen["clients"] == {}


def test_its_diagnostics_are_documented(seen: dict[str, dict[str, Any]]) -> None:
    """Every key the node sends, and every key the page names."""
    text = PAGE.read_text(encoding="utf-8").split("| key | |\n", 1)[1].split("\n\n", 1)[0]
    keys = [
        name for line in text.splitlines() for name in re.findall("`([^`]+)`", line.split("|")[1])
    ]
    patterns = [re.sub("[A-Z]+", r"\\w+", re.escape(key)) for key in keys]
    own = set(seen["diagnostics"]) - {"level", "message"}  # of the message, not of its values
    assert {key for key in own if not any(re.fullmatch(p, key) for p in patterns)} == set()
    unused = [p for p in patterns if not any(re.fullmatch(p, key) for key in own)]
    assert unused == []
