"""Messages of depth as a bag holds them, made without ROS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.bag_topics import CAMERA_INFO, IMAGE, STRING

if TYPE_CHECKING:
    from depth_prior_ros.images.calibration import Calibration
    from depth_prior_ros.scale import ScaleStatus

CAMERA_FRAME = "camera_optical_frame"
_STATUS = "diagnostic_msgs/msg/DiagnosticStatus"

Entry = tuple[str, str, Any]
"""Topic, type, serialised message."""


class Messages:
    """Makes messages and serialises them (CDR)."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.store = get_typestore(Stores.ROS2_HUMBLE)

    def make(self, kind: str, **values: Any) -> Any:
        """A message of a type, such as `std_msgs/msg/String`."""
        return self.store.types[kind](**values)

    def header(self, stamp_ns: int, frame_id: str = CAMERA_FRAME) -> Any:
        """A header with a stamp in nanoseconds."""
        second, nano = divmod(stamp_ns, 1_000_000_000)
        stamp = self.make("builtin_interfaces/msg/Time", sec=second, nanosec=nano)
        return self.make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def entry(self, topic: str, kind: str, **values: Any) -> Entry:
        """A serialised message with where it goes."""
        return topic, kind, self.store.serialize_cdr(self.make(kind, **values), kind)

    def camera_info(self, calibration: Calibration) -> dict[str, Any]:
        """The fields of a CameraInfo, its header apart."""
        roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        return {
            "height": calibration.height,
            "width": calibration.width,
            "distortion_model": calibration.model,
            "d": np.array(calibration.D),
            "k": np.array(calibration.K),
            "r": np.array(calibration.R),
            "p": np.array(calibration.P),
            "binning_x": 0,
            "binning_y": 0,
            "roi": self.make("sensor_msgs/msg/RegionOfInterest", **roi),
        }

    def info(self, topic: str, stamp_ns: int, calibration: Calibration) -> Entry:
        """A CameraInfo."""
        values = self.camera_info(calibration)
        return self.entry(topic, CAMERA_INFO, header=self.header(stamp_ns), **values)

    def depth_image(self, topic: str, stamp_ns: int, depth: NDArray[np.float32]) -> Entry:
        """An Image of floats (h, w): 32FC1, metres as REP-118 has it."""
        height, width = depth.shape
        pixels = np.ascontiguousarray(depth, "<f4")
        return self.entry(
            topic,
            IMAGE,
            header=self.header(stamp_ns),
            height=height,
            width=width,
            encoding="32FC1",
            is_bigendian=0,
            step=4 * width,
            data=pixels.view(np.uint8).reshape(-1),
        )

    def text(self, topic: str, words: str) -> Entry:
        """A String."""
        return self.entry(topic, STRING, data=words)

    def scale(self, topic: str, status: ScaleStatus) -> Entry:
        """A DiagnosticStatus of where the metres come from, as the node publishes it."""
        pairs = [
            self.make("diagnostic_msgs/msg/KeyValue", key=key, value=value)
            for key, value in status.values().items()
        ]
        return self.entry(
            topic,
            _STATUS,
            level=1 if status.unsure else 0,
            name="depth_node: scale",
            message=status.text,
            hardware_id="",
            values=pairs,
        )
