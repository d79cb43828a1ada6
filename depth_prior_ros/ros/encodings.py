"""Images of the node: what this package reads, and through cv_bridge what it does not know."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from depth_prior_ros import encodings
from depth_prior_ros.encodings import (
    ImageArray,
    check_layout,
    check_size,
    image_size,
    supported_encodings,
)
from depth_prior_ros.message_error import MessageError

__all__ = [
    "ImageArray",
    "check_image",
    "check_layout",
    "cv_bridge_installed",
    "image_size",
    "image_to_rgb",
    "supported_encodings",
]

CV_BRIDGE = "cv_bridge"


def image_to_rgb(message: Image | CompressedImage) -> ImageArray:
    """As :func:`depth_prior_ros.encodings.image_to_rgb`, and through cv_bridge where installed.

    Raises:
        MessageError: as there.
    """
    if not _is_foreign(message):
        return encodings.image_to_rgb(message)
    check_image(message)
    return _through_cv_bridge(message)


def check_image(message: Image | CompressedImage) -> None:
    """As :func:`depth_prior_ros.encodings.check_image`.

    Raises:
        MessageError: as there; what only cv_bridge finds out is found when it is asked.
    """
    if not _is_foreign(message):
        encodings.check_image(message)
        return
    width, height = int(message.width), int(message.height)
    check_size(width, height)
    if not cv_bridge_installed():
        raise _unknown(message.encoding, f"or install {CV_BRIDGE}, which may know it")
    check_layout(message.encoding, width, height, int(message.step), 1, len(message.data))


def _is_foreign(message: Image | CompressedImage) -> bool:
    return isinstance(message, Image) and message.encoding not in supported_encodings()


@lru_cache(maxsize=1)
def _cv_bridge() -> Any:
    """A ``CvBridge``; None where it is not installed or broken (numpy 2 breaks old ones)."""
    try:
        from cv_bridge import CvBridge

        return CvBridge()
    except Exception:
        return None


def cv_bridge_installed() -> bool:
    """Whether encodings outside the table have somewhere to go."""
    return _cv_bridge() is not None


def _through_cv_bridge(message: Image) -> ImageArray:
    try:
        rgb = np.asarray(_cv_bridge().imgmsg_to_cv2(message, "rgb8"))
    except Exception as error:  # it raises whatever C++ and OpenCV raise
        raise _unknown(message.encoding, f"and {CV_BRIDGE} says: {error}") from error
    if rgb.dtype != np.uint8 or rgb.shape != (message.height, message.width, 3):
        raise _unknown(message.encoding, f"and {CV_BRIDGE} made {rgb.dtype} {rgb.shape} of it")
    return rgb


def _unknown(name: str, further: str) -> MessageError:
    known = ", ".join(supported_encodings())
    return MessageError("unknown_encoding", f"encoding {name!r} is not one of {known}; {further}")
