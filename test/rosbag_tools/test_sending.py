"""What goes out on ROS topics for a frame of a recording, without a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from nav_msgs.msg import Odometry
from test_bag import make_recording

from depth_prior_ros.motion.odometry import Trajectory, read_odometry
from depth_prior_ros.recordings.bag_messages import camera_pose
from rosbag_tools.replaying.play import Sender, publish


class Publisher:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def publish(self, message: Any) -> None:
        self.sent.append(message)


class Node:
    """Makes publishers that publish nowhere."""

    def __init__(self) -> None:
        self.publishers: dict[type, Publisher] = {}

    def create_publisher(self, kind: type, *_: Any) -> Publisher:
        return self.publishers.setdefault(kind, Publisher())


def odometry_of(**changes: Any) -> list[Odometry]:
    """The odometry messages that go out before a recording's second frame, with changes."""
    frame = replace(make_recording(2).frames[1], **changes)
    node = Node()
    Sender(node).prepare(frame, np.zeros((4, 6, 3), np.uint8))
    return node.publishers[Odometry].sent


def test_a_pose_goes_out_as_it_is() -> None:
    pose = np.eye(4)
    pose[:3, 3] = (1.0, 2.0, 3.0)
    (message,) = odometry_of(pose=pose, speed=4.0)
    reading, trajectory = read_odometry(message), Trajectory()
    assert trajectory.add(0, reading.position, reading.quaternion)
    np.testing.assert_allclose(camera_pose(trajectory.pose(0), optical=False), pose, atol=1e-12)
    assert message.twist.twist.linear.x == 4.0


def test_a_pose_that_is_not_known_is_not_that_of_the_origin() -> None:
    """A new message has a valid pose; nodes would see a vehicle that never moves."""
    (message,) = odometry_of(pose=None, speed=4.0)
    assert read_odometry(message).position is None
    assert message.twist.twist.linear.x == 4.0


def test_without_a_speed_there_is_no_odometry() -> None:
    assert odometry_of(speed=None) == []


def test_what_the_middleware_refuses_is_sent_again_and_in_the_end_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Busy(Publisher):
        def __init__(self, refusals: int) -> None:
            super().__init__()
            self.refusals = refusals

        def publish(self, message: Any) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise RuntimeError("cannot publish data")
            super().publish(message)

    patient = Busy(9)
    publish(patient, "message")
    assert patient.sent == ["message"]
    monkeypatch.setattr("rosbag_tools.replaying.play._PATIENCE_SECONDS", 0.1)
    never = Busy(1_000_000)
    with pytest.raises(RuntimeError, match="cannot publish"):
        publish(never, "message")
    assert never.sent == [] and never.refusals < 1_000_000 - 1
