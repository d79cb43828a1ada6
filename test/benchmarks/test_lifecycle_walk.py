"""A short walk of benchmarks/lifecycle_walk.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import lifecycle_walk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_every_call_is_answered_and_every_refusal_has_words() -> None:
    walk, status = lifecycle_walk.run(40, seed=5)
    assert not walk.unanswered
    assert max(walk.seconds) < lifecycle_walk.SECONDS
    assert walk.refused["change_state"]
    assert walk.refused["set_parameters"]
    assert not sum(walk.wordless.values())
    assert walk.watched
    assert int(status["inferred"]) >= walk.watched
    assert walk.heard["depth/image_rect"] >= walk.watched
    assert all(walk.heard[f"depth/{topic}"] for topic in ("points", "colour", "confidence"))
    assert "refused.internal" not in status
