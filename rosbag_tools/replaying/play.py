"""`depth_bag play`: a recording published on ROS topics in real time, for nodes that run already.

What `replay.launch.py` plays with, so that a bag can be watched where rosbag2 is not installed.
Images go out decoded on /camera/image_raw with their camera_info and odometry, all of which can be
remapped; stamps are the recording's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rosgraph_msgs.msg import Clock

from depth_prior_ros.recordings import Recording, read_frames
from rosbag_tools.console import show, show_skipped
from rosbag_tools.replaying.node_process import ReplayError
from rosbag_tools.replaying.sending import (
    CAMERA_FRAME,
    IMAGE_TOPIC,
    Sender,
    publish,
    time_of,
    use_large_images,
)

_POLL_SECONDS = 0.05
# The last frames may still be on their way when the publishers go.
_DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class PlayOptions:
    """How to play.

    Attributes:
        rate: in multiples of real time.
        loop: begin again after the last frame, with the first stamps, until interrupted.
        clock: publish the stamps on /clock, for nodes with ``use_sim_time``.
        wait: seconds given to somebody to subscribe to images and calibration; 0 starts at once.
        frame_id: optical frame of the camera.
    """

    rate: float = 1.0
    loop: bool = False
    clock: bool = False
    wait: float = 0.0
    frame_id: str = CAMERA_FRAME


def play(recording: Recording, options: PlayOptions, ros_arguments: Sequence[str] = ()) -> int:
    """Publish a recording; returns the number of frames sent. An interrupt is a way to end it.

    Args:
        ros_arguments: from ``--ros-args`` on: remappings, the node's name.

    Raises:
        ReplayError: nobody listens in time, or not one frame can be read.
    """
    use_large_images()
    rclpy.init(args=list(ros_arguments) or None)
    try:
        with _Playing(options) as playing, contextlib.suppress(KeyboardInterrupt):
            playing.wait_for_listener()
            playing.run(recording)
        show(f"{playing.sent} frames played")
        show_skipped(list(recording.skipped))
        return playing.sent
    finally:
        rclpy.try_shutdown()


class _Playing:
    """The node that plays."""

    def __init__(self, options: PlayOptions) -> None:
        self.sent = 0
        self._options = options
        self._node = rclpy.create_node("depth_bag_play")
        self._sender = Sender(self._node, options.frame_id)
        self._clock = self._node.create_publisher(Clock, "/clock", 10) if options.clock else None
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> _Playing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        rclpy.try_shutdown()
        self._thread.join(10)
        self._node.destroy_node()

    def wait_for_listener(self) -> None:
        """Until somebody subscribes to the images and to their calibration."""
        if not self._options.wait:
            return
        deadline = time.monotonic() + self._options.wait
        while rclpy.ok() and not all(self._sender.listeners()[:2]):
            if time.monotonic() > deadline:
                topic = self._node.resolve_topic_name(IMAGE_TOPIC)
                raise ReplayError(f"nobody listens to {topic} after {self._options.wait:g} s")
            time.sleep(_POLL_SECONDS)

    def run(self, recording: Recording) -> None:
        """Publish every frame when it is due, over and over where a loop is asked for."""
        while rclpy.ok():
            before = self.sent
            self._once(recording)
            if self.sent == before and rclpy.ok():
                reasons = "; ".join(str(entry) for entry in recording.skipped[:3])
                raise ReplayError(f"{recording.name}: not one frame could be read ({reasons})")
            if not self._options.loop:
                self._pause(_DRAIN_SECONDS)
                return

    def _once(self, recording: Recording) -> None:
        start = time.monotonic()
        for position, image in read_frames(recording):
            frame = recording.frames[position]
            due = (frame.stamp_ns - recording.frames[0].stamp_ns) / 1e9 / self._options.rate
            if not self._pause(start + due - time.monotonic()):
                return
            if self._clock is not None:
                publish(self._clock, Clock(clock=time_of(frame.stamp_ns)))
            self._sender.publish(self._sender.prepare(frame, image))
            self.sent += 1

    def _pause(self, seconds: float) -> bool:
        """Sleep in short pieces; False when ROS was shut down meanwhile."""
        return _until(time.monotonic() + seconds, lambda: not rclpy.ok())

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return


def _until(deadline: float, ended: Callable[[], bool]) -> bool:
    while not ended():
        left = deadline - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _POLL_SECONDS))
    return False
