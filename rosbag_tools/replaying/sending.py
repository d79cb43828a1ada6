"""The rest of the robot on ROS topics: a recording's images, calibration and odometry, sent.

The middleware's environment: Fast DDS with shared memory that holds a whole image.

With its default of 512 KB a full-size image overwrites whatever was sent just before it: odometry
and calibration are lost where they travel best effort. Other middleware ignores all this.
"""

from __future__ import annotations

import array
import os
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from depth_prior_ros.motion.odometry import UNKNOWN
from depth_prior_ros.recordings import Frame
from depth_prior_ros.recordings.bag_messages import odometry_from_pose
from depth_prior_ros.ros.messages import camera_info_of
from depth_prior_ros.share import large_images_environment

_TRIES = 10
_NEW, _OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"


def replay_environment() -> dict[str, str]:
    """What a replay and its node need in their environment, beyond what the user has set.

    The profile for large messages, unless there is one; and discovery on this machine only, so
    that no robot on the same network takes the replayed drive for its own (from Iron on).
    """
    environment = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        environment |= large_images_environment()
    return environment | {name: os.environ[name] for name in environment if name in os.environ}


def use_replay_environment() -> None:
    """Set it for this process; before its first participant is made, or it is too late."""
    os.environ.update(replay_environment())


def use_large_images() -> None:
    """Set the profile for large messages for this process, unless the user has set one."""
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        os.environ.update(large_images_environment())


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
    Fast DDS's `max_blocking_time` of 100 ms). What is refused ten times is raised.
    """
    for _ in range(_TRIES - 1):
        try:
            publisher.publish(message)
            return
        except RuntimeError:
            continue
    publisher.publish(message)


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
