"""What the documents promise: links lead somewhere, commands are understood, names are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [path.name for path in DOCUMENTS]


def commands(document: Path, program: str) -> list[list[str]]:
    """The arguments of every call of a program in a document's code blocks."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^    {program} (.+)$", text, re.MULTILINE)
    # In tables and sentences a command may be abbreviated; in a code block it is complete.
    # What begins with --ros-args is for ROS.
    return [shlex.split(line.split(" --ros-args")[0], comments=True) for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_are_understood(document: Path) -> None:
    from rosbag_tools.cli import build_parser as bag_parser
    from training.commands.cli import build_parser as train_parser

    for program, parser in (("depth_train", train_parser()), ("depth_bag", bag_parser())):
        for arguments in commands(document, program):
            try:
                parser.parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{document.name}: {program} {shlex.join(arguments)}")


def test_there_are_commands_to_check() -> None:
    found = [c for d in DOCUMENTS for p in ("depth_train", "depth_bag") for c in commands(d, p)]
    assert len(found) > 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_targets_of_make_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", document.read_text("utf-8"), re.MULTILINE))
    assert named <= targets


def test_every_reason_is_explained() -> None:
    from typing import get_args

    from depth_prior_ros.pipeline import Reason

    for document in (ROOT / "README.md", ROOT / "docs" / "node.md"):
        explained = set(re.findall(r"`(\w+)`", document.read_text(encoding="utf-8")))
        assert set(get_args(Reason)) <= explained


def rows(document: str, heading: str) -> set[str]:
    """The names in backticks that begin the rows of the table below a heading."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    table = text.split("\n\n")[0].split("---|\n", 1)[1]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_tables_have_what_is_registered() -> None:
    from depth_prior_ros.backends import BACKENDS
    from training.stages.base import STAGES

    assert rows("choice.md", "Backends") == set(BACKENDS)
    assert rows("training.md", "Stages") == set(STAGES)


def launch_arguments() -> dict[str, set[str]]:
    """The arguments of every launch file."""
    from depth_prior_ros.ros.launch_arguments import (
        PLAYER,
        USB,
        depth_arguments,
        replay_arguments,
        several_cameras_arguments,
        usb_camera_arguments,
    )

    return {
        "depth.launch.py": {name for name, _, _ in depth_arguments()},
        "replay.launch.py": {name for name, _, _ in [*PLAYER, *replay_arguments()]},
        "several_cameras.launch.py": {name for name, _, _ in several_cameras_arguments()},
        "usb_camera.launch.py": {name for name, _, _ in [*USB, *usb_camera_arguments()]},
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_launch_files_have_the_arguments_that_documents_use(document: Path) -> None:
    known = launch_arguments()
    for words in commands(document, "ros2 launch"):
        package, file, *arguments = words
        assert package == "depth_prior_ros"
        names = {word.split(":=")[0] for word in arguments if not word.startswith("--")}
        if file != "FILE":
            assert names <= known[file], f"{document.name}: {' '.join(words)}"


def test_there_are_launches_to_check() -> None:
    assert sum(len(commands(document, "ros2 launch")) for document in DOCUMENTS) > 6
    assert set(launch_arguments()) == {path.name for path in (ROOT / "launch").glob("*.py")}


def parameter_names() -> set[str]:
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_parameters_that_documents_name_exist(document: Path) -> None:
    known = parameter_names()
    assert "force_model" in known
    for words in commands(document, "ros2 param set"):
        assert words[0] == "/depth_node"
        assert words[1] in known
    groups = {name.split(".")[0] for name in known if "." in name}
    text = document.read_text(encoding="utf-8")
    text = text.split("| key | |")[0]  # keys of the diagnostics look alike
    for group, name in re.findall(r"`(\w+)\.(\w+|\*)(?=[`: ])", text):
        if group in groups:
            named = {full for full in known if name in ("*", full.removeprefix(f"{group}."))}
            assert any(full.startswith(f"{group}.") for full in named), f"{group}.{name}"


def test_what_a_frame_may_fail_of_beside_its_message_is_explained() -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: the worker takes ROS messages")
    from depth_prior_ros.ros.worker import INTERNAL, MEMORY

    page = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
    for cause in (INTERNAL, MEMORY):
        assert f"| `{cause}` |" in page


def test_every_message_of_the_diagnostics_is_in_the_page_about_nothing_to_see() -> None:
    pytest.importorskip("rclpy", reason="needs rclpy: the diagnostics are ROS messages")
    from depth_prior_ros.ros.diagnostics import STUCK, Statistics

    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    active = {"state": "active", "publishers.image": "1"}
    messages = [
        statistics.report({"state": "inactive"}, ["runs on a CPU"]).message,
        statistics.report({**active, "publishers.image": "0", "image_topic": "/front"}).message,
        statistics.report(active).message,
    ]
    statistics.camera_info(1242, 375)
    messages.append(statistics.report(active).message)
    statistics.message_lost(3)
    messages.append(statistics.report(active).message)
    statistics.refused("zero_size", "the image is 0x0 pixels")
    messages.append(statistics.report(active).message)
    for _ in range(2):
        statistics.received(4)
        statistics.inferred({})
    messages.append(statistics.report(active).message)
    statistics.received(4)
    now[0] += 2 * STUCK
    messages.append(statistics.report(active).message)

    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \|", page.split("| message |")[1].split("\n\n")[0], re.MULTILINE
    )
    words = {r"\.\.\.": ".*", "CAUSE": r"\w+", "TOPIC": r"/\w+"}
    patterns = [re.escape(row) for row in rows]
    for word, pattern in words.items():
        patterns = [p.replace(word, pattern) for p in patterns]
    patterns = [pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".* ") for pattern in patterns]
    explained = [[p for p in patterns if re.fullmatch(p, m)] for m in messages]
    assert all(len(found) == 1 for found in explained), list(zip(messages, explained, strict=True))
    assert {found[0] for found in explained} == set(patterns)


def test_every_refusal_is_explained() -> None:
    core = ROOT / "depth_prior_ros"
    sources = [core / "images" / "encodings.py", *(core / "ros").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    causes = set(re.findall(r"(?:MessageError|refuse[d]?)\(\s*\"(\w+)\"", text))
    assert {"zero_size", "unknown_encoding", "bad_odometry"} <= causes
    explained = re.findall(r"`(\w+)`", (ROOT / "docs" / "node.md").read_text(encoding="utf-8"))
    assert causes - set(explained) == set()
