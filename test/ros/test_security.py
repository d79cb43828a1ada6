"""config/sros2: the policy grants what the real node has in the graph, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import make_tiny_bundle
from ros_graph import graph_of
from ros_helpers import NodeProcess

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "config" / "sros2" / "depth_node.policy.xml"
DEPTH, RELATIVE = "/depth/image_rect", "/depth/relative"
# Which of the services every node has is a question of the distribution.
NOT_EVERYWHERE = {("reply", "/depth_node/get_type_description")}


def granted() -> set[tuple[str, str]]:
    """What the policy allows: kind (publish, subscribe, reply, request) and full name."""
    (enclave,) = ET.parse(POLICY).getroot().findall("enclaves/enclave")
    assert enclave.get("path") == "/depth_node"
    (profile,) = enclave.findall("profiles/profile")
    own = (profile.get("ns"), profile.get("node"))
    assert own == ("/", "depth_node")
    found: list[tuple[str, str]] = []
    for rule in profile:
        assert rule.tag in ("topics", "services")
        ((kind, answer),) = rule.items()
        assert answer == "ALLOW"
        found += [(kind, _full(name.text or "")) for name in rule]
    assert len(found) == len(set(found)), "granted twice"
    return set(found)


def _full(name: str) -> str:
    if name.startswith("~"):
        return f"/depth_node{name[1:]}"
    return name if name.startswith("/") else f"/{name}"


def used(graph: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
    """What a node does, in the policy's words."""
    words = {
        "publishers": "publish",
        "subscribers": "subscribe",
        "services": "reply",
        "clients": "request",
    }
    return {(word, name) for kind, word in words.items() for name in graph[kind]}


def launch_remappings() -> list[str]:
    """Where depth.launch.py sends the inputs, with its defaults."""
    from depth_prior_ros.ros.launch_arguments import depth_arguments

    defaults = {name: default for name, default, _ in depth_arguments()}
    camera = defaults["camera"]
    topics = {"image": f"{camera}/image_raw", "camera_info": f"{camera}/camera_info"}
    topics |= {name: defaults[name] for name in ("odom", "twist", "twist_with_covariance")}
    return [word for name, topic in topics.items() for word in ("-r", f"{name}:={topic}")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_policy_grants_exactly_what_the_node_uses(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "tiny")
    common = {"bundle": str(tmp_path / "tiny"), "backend": "torch"}
    with NodeProcess(*launch_remappings(), **common):
        metres = used(graph_of("/depth_node", DEPTH))
    settings = {"image_transport": "compressed", "scale.mode": "none", "use_sim_time": True}
    with NodeProcess(*launch_remappings(), **common, **settings):
        relative = used(graph_of("/depth_node", RELATIVE))
    assert ("publish", DEPTH) not in relative, "depth that is not metres is called so"
    uses = metres | relative
    assert uses - granted() == set(), "used, not granted"
    assert granted() - uses - NOT_EVERYWHERE == set(), "granted, not used"


def test_the_policy_speaks_of_what_the_code_has() -> None:
    """The same without starting anything: outputs and services by their declarations."""
    from depth_prior_ros.ros.outputs.publishers import TOPICS, topic_name

    outputs = {topic_name(output, metres) for output in TOPICS for metres in (True, False)}
    assert {("publish", _full(name)) for name in outputs} <= granted()
