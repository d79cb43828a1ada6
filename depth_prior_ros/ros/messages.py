"""Camera messages in, depth messages out: what the node needs of ``sensor_msgs``, in one place.

Pixels are read in :mod:`~depth_prior_ros.images.encodings`, and through cv_bridge what that does
not know; what a calibration means stands in :mod:`~depth_prior_ros.images.calibration`. Here depth
becomes a message, and what is computed of a calibration, constant while a camera runs, is kept
(:class:`CameraModels`). Every refusal is a :class:`MessageError`: a cause, a stable identifier that
diagnostics count by, and a text that tells an operator which value of the message is wrong. Nothing
here knows a node.
"""

from __future__ import annotations

import array
import sys
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images import encodings
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.images.encodings import (
    ImageArray,
    MessageError,
    check_layout,
    check_size,
    image_size,
    supported_encodings,
)
from depth_prior_ros.images.rectification import Rectifier

__all__ = [
    "DEPTH_ENCODING",
    "CameraModels",
    "ImageArray",
    "MessageError",
    "camera_info",
    "camera_info_of",
    "check_image",
    "check_layout",
    "cv_bridge_installed",
    "depth_to_image",
    "image_size",
    "image_to_depth",
    "image_to_rgb",
    "supported_encodings",
]

CV_BRIDGE = "cv_bridge"


def image_to_rgb(message: Image | CompressedImage) -> ImageArray:
    """As `depth_prior_ros.images.encodings.image_to_rgb`, and through cv_bridge where it is.

    Raises:
        MessageError: as there.
    """
    if not _is_foreign(message):
        return encodings.image_to_rgb(message)
    check_image(message)
    return _through_cv_bridge(message)


def check_image(message: Image | CompressedImage) -> None:
    """As :func:`depth_prior_ros.images.encodings.check_image`.

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


DepthArray = npt.NDArray[np.float32]

DEPTH_ENCODING = "32FC1"  # REP-118: float metres along the camera's z axis


def depth_to_image(depth: DepthArray, header: Header) -> Image:
    """A ``32FC1`` message of a depth image (REP-118: metres, NaN unknown, +Inf beyond range).

    Args:
        depth: HxW float32 metres.
        header: taken over as it is: the stamp and the optical frame of the camera.
    """
    return image_message(np.ascontiguousarray(depth, np.float32), DEPTH_ENCODING, header)


def image_message(pixels: npt.NDArray[Any], encoding: str, header: Header) -> Image:
    """A message of pixels (h, w) or (h, w, channels) that lie side by side in memory."""
    message = Image()
    message.header = header
    message.height, message.width = pixels.shape[:2]
    message.encoding = encoding
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = pixels.strides[0]
    message.data = byte_array(pixels.data.cast("B"))
    return message


def byte_array(*parts: bytes | memoryview) -> array.array[int]:
    """Bytes one after the other, for the data of a message.

    Every other type than array('B') is checked element by element in some distribution, which
    costs up to 100 ms an image.
    """
    data = array.array("B")
    for part in parts:
        data.frombytes(part)
    return data


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


class CameraModels:
    """Cameras and rectifiers by calibration and size of the image.

    Building a map takes tens of milliseconds, looking one up a few microseconds. One thread at a
    time.

    Args:
        kept: models kept, so that a camera that switches between sizes does not pay each time.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept = kept
        self._models: OrderedDict[
            tuple[Calibration, int, int, bool], tuple[Camera, Rectifier | None]
        ] = OrderedDict()

    def of(
        self, calibration: Calibration, width: int, height: int, rectify: bool = True
    ) -> tuple[Camera, Rectifier | None]:
        """The rectified camera of an image, and what rectifies it (None: nothing to do).

        Args:
            calibration: of the camera.
            width: of the image in pixels.
            height: of the image in pixels.
            rectify: False for images that are rectified already.

        Raises:
            MessageError: as `Calibration.camera` and `Calibration.lens`, and ``bad_intrinsics``
                where nothing would be left of the rectified image.
        """
        key = (calibration, width, height, rectify)
        model = self._models.get(key)
        if model is None:
            lens = calibration.lens(width, height) if rectify else None
            try:
                rectifier = None if lens is None else Rectifier.for_camera(lens)
            except InvalidCameraError as error:
                raise MessageError("bad_intrinsics", f"camera_info: {error}") from error
            camera = rectifier.camera if rectifier else calibration.camera(width, height)
            model = self._models[key] = (camera, rectifier)
            while len(self._models) > self._kept:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return model


def camera_info(calibration: Calibration, header: Header) -> CameraInfo:
    """A calibration as a message."""
    info = CameraInfo(header=header, width=calibration.width, height=calibration.height)
    info.distortion_model = calibration.model
    info.d = list(calibration.D)
    info.k, info.r, info.p = (
        list(values) for values in (calibration.K, calibration.R, calibration.P)
    )
    return info


def camera_info_of(camera: Camera, header: Header) -> CameraInfo:
    """A ``camera_info`` without distortion for a rectified camera."""
    return camera_info(Calibration.from_camera(camera), header)
