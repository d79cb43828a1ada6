"""`depth_bag play` in a process of its own, and what arrives in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from nav_msgs.msg import Odometry
from ros_helpers import RELIABLE, SpunNode, nanoseconds_of, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from test_bag import make_recording, write

from depth_prior_ros.recordings import open_recording

ROOT = Path(__file__).resolve().parents[2]
SIZE = (96, 32)


class Listener(SpunNode):
    """Somebody who subscribes to what is played, below a namespace of its own."""

    def __init__(self) -> None:
        self.namespace = f"/played_{uuid.uuid4().hex[:12]}"
        self.heard: dict[str, list] = {"odom": [], "clock": [], "image": [], "info": []}
        super().__init__("listener")
        # A player waits for the listeners of images and calibration: those come last.
        topics = {"odom": Odometry, "clock": Clock, "image": Image, "info": CameraInfo}
        for name, kind in topics.items():
            topic = f"{self.namespace}/{name}"
            self.node.create_subscription(kind, topic, self.heard[name].append, RELIABLE)
        self.start()

    def remappings(self) -> list[str]:
        topics = {
            "image": "/camera/image_raw",
            "info": "/camera/camera_info",
            "odom": "/odom",
            "clock": "/clock",
        }
        rules = [f"{topic}:={self.namespace}/{name}" for name, topic in topics.items()]
        return ["--ros-args", *(word for rule in rules for word in ("-r", rule))]


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def playing(
    bag: Path, listener: Listener, *options: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rosbag_tools.cli", "play", str(bag), *options]
    return started(*command, *listener.remappings())


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_every_frame_arrives_as_it_was_recorded(tmp_path: Path, listener: Listener) -> None:
    bag = write(tmp_path, make_recording(5, size=SIZE))
    with playing(bag, listener, "--wait", "60", "--clock", "--frame-id", "front") as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert "5 frames played" in output

    frames = open_recording(bag).frames
    stamps = [frame.stamp_ns for frame in frames]
    heard = listener.heard
    for name in ("image", "info", "odom"):
        wait_until(lambda n=name: len(heard[n]) == 5, name)
        assert [nanoseconds_of(m.header.stamp) for m in heard[name]] == stamps
    wait_until(lambda: len(heard["clock"]) == 5, "clock")
    assert [nanoseconds_of(m.clock) for m in heard["clock"]] == stamps
    for frame, message, info in zip(frames, heard["image"], heard["info"], strict=True):
        assert (message.encoding, message.header.frame_id) == ("rgb8", "front")
        pixels = np.frombuffer(message.data, np.uint8).reshape(32, 96, 3)
        np.testing.assert_array_equal(pixels, frame.image())
        assert (info.width, info.height) == SIZE
        assert info.p[0] == pytest.approx(frame.camera.fx)
    assert [m.twist.twist.linear.x for m in heard["odom"]] == [3.5] * 5


SUBSCRIBER = """
import sys
import rclpy
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

def heard(name):
    print(name, flush=True)

rclpy.init()
node = rclpy.create_node("subscriber")
for kind, name in ((Odometry, "odom"), (Image, "image"), (CameraInfo, "info")):
    topic = f"{sys.argv[1]}/{name}"
    node.create_subscription(kind, topic, lambda _, n=name: heard(n), QoSProfile(depth=10))
rclpy.spin(node)
"""


@pytest.mark.slow
def test_a_subscriber_that_is_late_gets_everything(tmp_path: Path, listener: Listener) -> None:
    """One that cannot receive while the last frames are played: the player waits for it."""
    bag = write(tmp_path, make_recording(5, size=SIZE))
    late = f"{listener.namespace}_late"
    listener.close()
    listener.namespace = late
    with (
        started(sys.executable, "-c", SUBSCRIBER, late) as subscriber,
        playing(bag, listener, "--wait", "60", "--rate", "0.5") as player,
    ):
        assert subscriber.stdout
        heard = [subscriber.stdout.readline().strip()]
        subscriber.send_signal(signal.SIGSTOP)
        try:
            # 0.8 s of frames, and three times what a player waits where all has arrived
            with pytest.raises(subprocess.TimeoutExpired):
                player.communicate(timeout=4)
        finally:
            subscriber.send_signal(signal.SIGCONT)
        heard += [subscriber.stdout.readline().strip() for _ in range(14)]
        output, _ = player.communicate(timeout=60)
    assert player.returncode == 0, output
    assert "have not arrived" not in output
    assert {name: heard.count(name) for name in heard} == {"odom": 5, "image": 5, "info": 5}


@pytest.mark.slow
def test_a_loop_begins_again_until_it_is_interrupted(tmp_path: Path, listener: Listener) -> None:
    recording = make_recording(3, size=SIZE)
    first = recording.frames[0].stamp_ns
    bag = write(tmp_path, recording)
    with playing(bag, listener, "--wait", "60", "--loop", "--rate", "5") as process:
        wait_until(lambda: len(listener.heard["image"]) >= 7, "the third round", 60.0)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    stamps = [nanoseconds_of(m.header.stamp) - first for m in listener.heard["image"][:7]]
    step = 10**8
    assert stamps == [0, step, 2 * step, 0, step, 2 * step, 0]
    assert listener.heard["clock"] == []


def test_nobody_who_listens_is_an_error(tmp_path: Path, listener: Listener) -> None:
    bag = write(tmp_path, make_recording(2, size=SIZE))
    silent = Listener()  # has other names
    try:
        silent.namespace = "/nobody"
        with playing(bag, silent, "--wait", "0.5") as process:
            output, _ = process.communicate(timeout=60)
    finally:
        silent.close()
    assert process.returncode == 1
    assert "nobody listens to /nobody/image after 0.5 s" in output
