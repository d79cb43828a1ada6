"""The layout for Foxglove: its topics are the node's, its panels all stand somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from depth_prior_ros.ros.outputs.publishers import TOPICS

LAYOUT = json.loads(
    (Path(__file__).resolve().parents[2] / "config" / "foxglove.json").read_text(encoding="utf-8")
)


def shown(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
        return
    yield from shown(part["first"])
    yield from shown(part["second"])


def test_every_panel_is_shown_once() -> None:
    assert sorted(shown(LAYOUT["layout"])) == sorted(LAYOUT["configById"])


def test_every_topic_is_one_of_the_node_or_the_camera() -> None:
    named = set(re.findall(r'"(/[a-z_/]+)"', json.dumps(LAYOUT)))
    ours = {f"/{t.name}".replace("/~/", "/depth_node/") for t in TOPICS.values()}
    assert named - ours == {"/camera/image_raw", "/diagnostics"}
