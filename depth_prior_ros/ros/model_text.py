"""``depth_model_text``: the active model as a marker, for RViz cannot show a string.

Started with RViz by ``depth.launch.py``; the depth node does not need it. Listens to
``active_model`` and ``depth/camera_info``, publishes ``depth/model_text``, all relative.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import ColorRGBA, String
from visualization_msgs.msg import Marker

from depth_prior_ros.ros.qos import qos

TOPIC = "depth/model_text"

# Metres in the optical frame (x right, y down, z forward): above the middle of what is seen.
_POSITION = (0.0, -3.0, 12.0)
_HEIGHT = 0.8
_COLOURS = {
    "multi_frame": ColorRGBA(r=0.4, g=0.9, b=0.5, a=1.0),
    "single_frame": ColorRGBA(r=1.0, g=0.75, b=0.3, a=1.0),
}


def marker(active_model: str, frame_id: str) -> Marker:
    """A text in the camera's optical frame that says which model answers, and why.

    Args:
        active_model: as published on ``~/active_model``: model, blank, reason.
        frame_id: of the depth images.
    """
    model, _, reason = active_model.partition(" ")
    text = Marker(ns="active_model", type=Marker.TEXT_VIEW_FACING, action=Marker.ADD)
    # No stamp: the newest transform will do.
    text.header.frame_id = frame_id
    text.frame_locked = True
    text.pose.position.x, text.pose.position.y, text.pose.position.z = _POSITION
    text.pose.orientation.w = 1.0
    text.scale.z = _HEIGHT
    text.color = _COLOURS.get(model, ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0))
    text.text = f"{model}: {reason}"
    return text


class ModelText(Node):
    """Publishes a new marker, latched, whenever model or frame change."""

    def __init__(self, **options: Any) -> None:
        super().__init__("depth_model_text", **options)
        self._active_model = self._frame_id = ""
        self._publisher = self.create_publisher(Marker, TOPIC, qos(1, reliable=True, latched=True))
        latched = qos(1, reliable=True, latched=True)
        self.create_subscription(String, "active_model", self._on_model, latched)
        self.create_subscription(CameraInfo, "depth/camera_info", self._on_info, qos(1, False))

    def _on_model(self, message: String) -> None:
        self._active_model = message.data
        self._tell()

    def _on_info(self, message: CameraInfo) -> None:
        if message.header.frame_id != self._frame_id:
            self._frame_id = message.header.frame_id
            self._tell()

    def _tell(self) -> None:
        if self._active_model and self._frame_id:
            self._publisher.publish(marker(self._active_model, self._frame_id))


def main(args: list[str] | None = None) -> int:
    """Run until interrupted; returns the exit code 0."""
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.init(args=args)
        rclpy.spin(ModelText())
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
