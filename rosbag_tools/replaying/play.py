"""`depth_bag play`: a recording published on ROS topics in real time, for nodes that run already.

What `replay.launch.py` plays with, so that a bag can be watched where rosbag2 is not installed.
Images go out decoded on /camera/image_raw with their camera_info and odometry, all of which can be
remapped; stamps are the recording's. `replay` sends its frames by the same `Sender`.
"""

from __future__ import annotations

import array
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from depth_prior_ros.motion.odometry import UNKNOWN
from depth_prior_ros.recordings import Frame, Recording, read_frames
from depth_prior_ros.recordings.bag_messages import odometry_from_pose
from depth_prior_ros.ros.messages import camera_info_of
from rosbag_tools.console import show, show_skipped
from rosbag_tools.replaying.node_process import ReplayError, use_large_images
from rosbag_tools.work import nothing_read

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 5.0
IMAGE_TOPIC, INFO_TOPIC, ODOMETRY_TOPIC = "/camera/image_raw", "/camera/camera_info", "/odom"
CAMERA_FRAME = "camera_optical_frame"


def time_of(stamp_ns: int) -> Time:
    """Nanoseconds as a ROS time."""
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


class Sender:
    """Publishes frames: decoded images (rgb8), their calibration, and odometry where it is known.

    Reliable, so that every subscription fits. Topics can be remapped as those of any node.

    Args:
        node: an rclpy node; the publishers are its own.
        frame_id: optical frame of the camera, written into every header.
    """

    def __init__(self, node: Any, frame_id: str = CAMERA_FRAME) -> None:
        reliable = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
        self._image = node.create_publisher(Image, IMAGE_TOPIC, reliable)
        self._info = node.create_publisher(CameraInfo, INFO_TOPIC, reliable)
        self._odometry = node.create_publisher(Odometry, ODOMETRY_TOPIC, reliable)
        self._frame_id = frame_id

    def listeners(self) -> tuple[int, int, int]:
        """How many subscriptions there are to images, calibration and odometry."""
        image, info, odometry = (
            publisher.get_subscription_count()
            for publisher in (self._image, self._info, self._odometry)
        )
        return image, info, odometry

    def all_acknowledged(self) -> bool:
        """Whether every reliable subscription has all that was published."""
        return all(map(_acknowledged, (self._image, self._info, self._odometry)))

    def prepare(self, frame: Frame, image: NDArray[np.uint8]) -> Image:
        """Publish what goes before an image, and return the image's message.

        Odometry and calibration first: the node looks for them when the image is there.
        """
        stamp = time_of(frame.stamp_ns)
        if frame.speed is not None:
            publish(self._odometry, _odometry(frame, stamp))
        header = Header(stamp=stamp, frame_id=self._frame_id)
        publish(self._info, camera_info_of(frame.camera, header))
        return _image(image, header)

    def publish(self, message: Image) -> None:
        """Publish an image message of :meth:`prepare`."""
        publish(self._image, message)


def publish(publisher: Any, message: Any) -> None:
    """Publish, again where the middleware did not take the message.

    On a machine under load a writer's lock may not be free in time (RCLError, a RuntimeError, after
    Fast DDS's `max_blocking_time` of 100 ms). What is refused for five seconds is raised.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            publisher.publish(message)
            return
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)


def _acknowledged(publisher: Any) -> bool:
    try:
        return bool(publisher.wait_for_all_acked(Duration(seconds=0)))
    except RuntimeError:  # RCLError, where ROS is shut down meanwhile
        return False


def _image(pixels: NDArray[np.uint8], header: Header) -> Image:
    height, width = pixels.shape[:2]
    message = Image(header=header, width=width, height=height, encoding="rgb8", step=3 * width)
    # anything but an array is converted byte by byte, which takes longer than the network
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    message.data = data
    return message


def _odometry(frame: Frame, stamp: Time) -> Odometry:
    message = Odometry(header=Header(stamp=stamp, frame_id="odom"), child_frame_id="base_link")
    message.twist.twist.linear.x = float(frame.speed or 0.0)
    if frame.pose is None:
        # A new message holds a pose that is as good as any: one that never leaves the origin.
        message.pose.covariance[0] = UNKNOWN
    else:
        position, quaternion = odometry_from_pose(frame.pose)
        pose = message.pose.pose
        pose.position.x, pose.position.y, pose.position.z = map(float, position)
        pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = map(
            float, quaternion
        )
    return message


# What is on its way when the publishers go is lost. Best-effort subscriptions acknowledge nothing:
# the first of these is for them. A reliable one that missed a message hears of it by the writer's
# next heartbeat (every 3 s in Fast DDS); one that died without a word is not waited for any longer.
_DRAIN_SECONDS = 1.0
_ACKNOWLEDGE_SECONDS = 15.0


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
                raise ReplayError(nothing_read(recording))
            if not self._options.loop:
                self._drain()
                return

    def _drain(self) -> None:
        """Until what was published has arrived, as far as anybody can tell."""
        self._pause(_DRAIN_SECONDS)
        if not _until(time.monotonic() + _ACKNOWLEDGE_SECONDS, self._arrived_or_ended):
            return
        show("the last messages have not arrived at every subscriber: one is hanging or was killed")

    def _arrived_or_ended(self) -> bool:
        return not rclpy.ok() or (
            self._sender.all_acknowledged() and (self._clock is None or _acknowledged(self._clock))
        )

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
    """Sleep in short pieces until the deadline; False as soon as ``ended`` says so."""
    while not ended():
        left = deadline - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _POLL_SECONDS))
    return False
