"""Where the camera sits, from tf: subscribed to, looked up for every image, said and counted.

`tf2_msgs` comes with every ROS 2 installation, but not as a wheel; it is imported only where
`tf.base_frame` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode

from depth_prior_ros.motion.odometry import CameraMount
from depth_prior_ros.motion.transforms import TransformBuffer, TransformError
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.qos import qos
from depth_prior_ros.scale import RoadSettings
from depth_prior_ros.scale.road import MountedCamera

CAUSE = "tf"
"""Under which an image without a known mount is counted."""

MISSING = (
    "tf.base_frame needs the messages of tf2 and of shapes (packages tf2_msgs and shape_msgs of "
    "the ROS 2 distribution): install them, or leave tf.base_frame empty"
)


def tf_message() -> Any:
    """The class tf2_msgs/TFMessage.

    Raises:
        ImportError: tf2_msgs or shape_msgs is not installed; the text says what to do.
    """
    try:
        import shape_msgs.msg
        from tf2_msgs.msg import TFMessage
    except ImportError as error:
        raise ImportError(MISSING) from error
    assert shape_msgs.msg.Plane
    return TFMessage


@dataclass(frozen=True)
class MountSight:
    """A camera's place at a stamp: base_from_optical (4, 4), and what it means for the road."""

    base_from_optical: NDArray[np.float64]
    camera: MountedCamera


class Mounting:
    """Where the camera of an image sits on the vehicle.

    Args:
        settings: with tf.base_frame; what else they say of height, pitch and mount goes before tf.
        refuse: called with cause and text for an image whose place is not known.

    Attributes:
        buffer: of all frames.
        newest: of the last image whose place was known.
        text: of the last image, in words.
    """

    def __init__(self, settings: Settings, refuse: Callable[[str, str], None]) -> None:
        self.settings = settings
        self.buffer = TransformBuffer()
        self.newest: MountSight | None = None
        self.text = "no image yet"
        self._refuse = refuse

    def heard(self, message: Any, static: bool) -> None:
        """Take a TFMessage up; of a transform that makes no sense the diagnostics tell."""
        self.buffer.add_message(message, static)

    def at(self, frame: str, stamp_ns: int) -> MountSight | None:
        """The place of an image's frame at its stamp; None where it is not known, counted."""
        base = self.settings.tf_base_frame
        try:
            matrix = self.buffer.lookup(base, frame, stamp_ns)
            camera = MountedCamera.of(matrix, self.settings.tf_base_height)
        except (TransformError, ValueError) as error:
            self.text = f"unknown: {error}"
            self._refuse(CAUSE, f"where the camera sits is not known: {error}")
            return None
        self.newest = MountSight(matrix, self._as_told(camera))
        self.text = "; ".join([f"{self.newest.camera}", *self.buffer.doubts])
        return self.newest

    def mounts_of_way(
        self, frame: str, before_ns: int, sight: MountSight | None
    ) -> tuple[CameraMount, CameraMount] | None:
        """The mounts of an image and of the frame before, for the camera's way between the two.

        sight: of the image. None where tf is to tell and does not: what odometry says of the
        vehicle is then no motion of the camera.
        """
        if (told := told_mount(self.settings)) is not None:
            return told, told
        if sight is None:
            return None
        try:
            earlier = self.buffer.lookup(self.settings.tf_base_frame, frame, before_ns)
        except TransformError:
            return None
        return CameraMount.of(sight.base_from_optical), CameraMount.of(earlier)

    def _as_told(self, camera: MountedCamera) -> MountedCamera:
        s = self.settings
        pitch = s.road.pitch if s.scale_camera_pitch_deg else camera.pitch
        return MountedCamera(s.scale_camera_height or camera.height, pitch, camera.roll)


class TfSubscriptions:
    """Subscriptions to /tf and /tf_static that fill a mounting's buffer.

    Raises:
        ImportError: as `tf_message`.
    """

    def __init__(self, node: LifecycleNode, mounting: Mounting) -> None:
        kind = tf_message()
        self._node = node
        self._all = [
            node.create_subscription(
                kind, "/tf_static", lambda m: mounting.heard(m, True), qos(100, True, latched=True)
            ),
            node.create_subscription(
                kind, "/tf", lambda m: mounting.heard(m, False), qos(100, True)
            ),
        ]

    def destroy(self) -> None:
        """End both."""
        for subscription in self._all:
            self._node.destroy_subscription(subscription)
        self._all = []


def told_mount(settings: Settings) -> CameraMount | None:
    """The mount that parameters tell; None where they tell none."""
    s = settings
    told = (s.mount_x, s.mount_y, s.mount_z, s.mount_roll, s.mount_pitch, s.mount_yaw)
    return CameraMount(*told) if any(told) else None


def mount_of(settings: Settings, sight: MountSight | None) -> CameraMount:
    """The mount that turns odometry into the camera's motion: parameters go before tf."""
    told = told_mount(settings)
    if told is not None or sight is None:
        return told or CameraMount()
    return CameraMount.of(sight.base_from_optical)


def road_of(settings: Settings, sight: MountSight | None) -> tuple[RoadSettings, float]:
    """Where the road is looked for, and the camera's height over it (0: not known)."""
    if sight is None:
        return settings.road, settings.scale_camera_height
    return sight.camera.road(settings.road), sight.camera.height


def plane_message(coefficients: tuple[float, float, float, float]) -> Any:
    """A shape_msgs/Plane."""
    from shape_msgs.msg import Plane

    return Plane(coef=[float(c) for c in coefficients])
