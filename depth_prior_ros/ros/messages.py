"""Camera messages in, depth messages out: what the node needs of ``sensor_msgs``, in one place.

Pixels are read in :mod:`.encodings` and :mod:`.compressed_images`, calibration in
:mod:`.camera_infos`; here depth becomes a message. Every refusal is a :class:`MessageError`: a
cause, a stable identifier that diagnostics count by, and a text that tells an operator which value
of the message is wrong. Nothing here knows a node.
"""

from __future__ import annotations

import array
import sys

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from depth_prior_ros.message_error import MessageError
from depth_prior_ros.ros.camera_infos import (
    CameraModels,
    camera_from_info,
    camera_info_of,
    scaled_camera_info,
)
from depth_prior_ros.ros.encodings import (
    check_image,
    check_layout,
    image_size,
    image_to_rgb,
    supported_encodings,
)

__all__ = [
    "DEPTH_ENCODING",
    "CameraModels",
    "MessageError",
    "camera_from_info",
    "camera_info_of",
    "check_image",
    "depth_to_image",
    "image_size",
    "image_to_depth",
    "image_to_rgb",
    "scaled_camera_info",
    "supported_encodings",
]

DepthArray = npt.NDArray[np.float32]

DEPTH_ENCODING = "32FC1"  # REP-118: float metres along the camera's z axis


def depth_to_image(depth: DepthArray, header: Header) -> Image:
    """A ``32FC1`` message of a depth image (REP-118: metres, NaN unknown, +Inf beyond range).

    Args:
        depth: HxW float32 metres.
        header: taken over as it is: the stamp and the optical frame of the camera.
    """
    pixels = np.ascontiguousarray(depth, dtype=np.float32)
    height, width = pixels.shape
    # Every other type than array('B') is checked element by element in some distribution, which
    # costs up to 100 ms an image.
    data = array.array("B")
    data.frombytes(pixels.data.cast("B"))
    message = Image()
    message.header = header
    message.height = height
    message.width = width
    message.encoding = DEPTH_ENCODING
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = width * 4
    message.data = data
    return message


def image_to_depth(message: Image) -> DepthArray:
    """The reverse of :func:`depth_to_image`, for tools and tests: HxW float32 metres.

    Raises:
        MessageError: for another encoding or a layout that does not fit.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    if message.encoding != DEPTH_ENCODING:
        raise MessageError("unknown_encoding", f"{message.encoding!r} is not {DEPTH_ENCODING}")
    if width < 1 or height < 1:
        raise MessageError("zero_size", f"the depth image is {width}x{height} pixels")
    check_layout(message.encoding, width, height, step, width * 4, len(message.data))
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(height, step)[:, : width * 4]
    order = ">f4" if message.is_bigendian else "<f4"
    return np.ascontiguousarray(rows).view(order).astype(np.float32)
