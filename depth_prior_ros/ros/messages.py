"""Camera messages in, depth messages out: numpy views of ``sensor_msgs`` and back.

Every refusal carries a cause, a stable identifier that diagnostics count by, and a text that tells
an operator which value of the message is wrong. Nothing here knows a node.
"""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from depth_prior_ros.camera import Camera, InvalidCameraError

ImageArray = npt.NDArray[np.uint8]
DepthArray = npt.NDArray[np.float32]

# Camera information of another size than the image is scaled up to this relative difference of
# the aspect ratios; one row more or less, as drivers round, stays inside.
ASPECT_TOLERANCE = 0.01

DEPTH_ENCODING = "32FC1"  # REP-118: float metres along the camera's z axis


class MessageError(ValueError):
    """A message that cannot be used.

    Attributes:
        cause: stable identifier: ``zero_size``, ``wrong_step``, ``truncated``,
            ``unknown_encoding``, ``bad_intrinsics`` or ``camera_info_size``.
        text: what is wrong with this message, for a person.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text


@dataclass(frozen=True)
class Encoding:
    """How one encoding lies in memory, and how it becomes HxWx3 RGB."""

    channels: int
    to_rgb: Callable[[ImageArray], ImageArray]


def _as_is(pixels: ImageArray) -> ImageArray:
    return pixels


def _swapped(pixels: ImageArray) -> ImageArray:
    # A copy: neither OpenCV nor PyTorch takes the negative stride of a reversed view.
    return np.ascontiguousarray(pixels[..., ::-1])


def _replicated(pixels: ImageArray) -> ImageArray:
    return np.repeat(pixels, 3, axis=2)


_ENCODINGS = {
    "rgb8": Encoding(3, _as_is),
    "bgr8": Encoding(3, _swapped),
    "mono8": Encoding(1, _replicated),
}


def supported_encodings() -> tuple[str, ...]:
    """The encodings of ``sensor_msgs/Image`` that :func:`image_to_rgb` understands."""
    return tuple(_ENCODINGS)


def image_to_rgb(message: Image) -> ImageArray:
    """The pixels of an image message as HxWx3 uint8 RGB.

    ``rgb8`` is a read-only view of the message's own memory (rows may be padded), ``bgr8`` and
    ``mono8`` are copies.

    Raises:
        MessageError: ``zero_size``, ``unknown_encoding``, ``wrong_step`` or ``truncated``, checked
            in this order.
    """
    encoding = check_image(message)
    width, height, step = int(message.width), int(message.height), int(message.step)
    row = width * encoding.channels
    flat = np.frombuffer(message.data, dtype=np.uint8)
    pixels = flat.reshape(height, step)[:, :row].reshape(height, width, encoding.channels)
    pixels.flags.writeable = False
    return encoding.to_rgb(pixels)


def check_image(message: Image) -> Encoding:
    """Refuse an image that cannot be read, without touching its pixels.

    Cheap enough for a subscription callback, where it keeps a malformed image from replacing a
    good one that waits.

    Raises:
        MessageError: as :func:`image_to_rgb`.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    if width < 1 or height < 1:
        raise MessageError("zero_size", f"the image is {width}x{height} pixels")
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(supported_encodings())
        raise MessageError(
            "unknown_encoding", f"encoding {message.encoding!r} is not one of {known}"
        )
    row = width * encoding.channels
    _check_layout(message.encoding, width, height, step, row, len(message.data))
    return encoding


def _check_layout(encoding: str, width: int, height: int, step: int, row: int, size: int) -> None:
    """Refuse a step or a length that does not fit the image.

    Raises:
        MessageError: ``wrong_step`` or ``truncated``.
    """
    if step < row:
        raise MessageError(
            "wrong_step",
            f"step {step} is shorter than a row of {width} {encoding} pixels ({row} bytes)",
        )
    if size < step * height:
        raise MessageError(
            "truncated",
            f"{size} bytes of data where {height} rows of {step} bytes need {step * height}",
        )
    if size > step * height:
        raise MessageError(
            "wrong_step",
            f"{size} bytes of data do not divide into {height} rows of step {step}",
        )


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
    _check_layout(message.encoding, width, height, step, width * 4, len(message.data))
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(height, step)[:, : width * 4]
    order = ">f4" if message.is_bigendian else "<f4"
    return np.ascontiguousarray(rows).view(order).astype(np.float32)


def camera_from_info(info: CameraInfo, width: int, height: int) -> Camera:
    """The rectified pinhole camera of an image of ``width`` x ``height`` pixels.

    Taken from the projection matrix P where it is filled, otherwise from K. Binning and a region
    of interest are accounted for. Where the size differs all the same, the camera is scaled if the
    aspect ratios agree within one percent.

    Raises:
        MessageError: ``bad_intrinsics`` for numbers that cannot belong to a camera,
            ``camera_info_size`` for a size that does not fit the image.
    """
    return _camera(_fitted(info, width, height), width, height)


def scaled_camera_info(
    info: CameraInfo,
    image_size: tuple[int, int],
    depth_size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> CameraInfo:
    """The ``camera_info`` of a depth image that shows the camera's image, or a window of it.

    K, P and the region of interest are scaled as ``image_proc`` does; header, distortion and
    rectification are kept.

    Args:
        info: what the camera sent.
        image_size: (width, height) of the camera's image in pixels.
        depth_size: (width, height) of the depth image in pixels.
        window: (x, y, width, height) in pixels of the camera's image; None for all of it.

    Raises:
        MessageError: as :func:`camera_from_info`.
    """
    fitted = _fitted(info, *image_size)
    _camera(fitted, *image_size)
    if window is not None and window != (0, 0, *image_size):
        fitted = _cut(fitted, *window)
    return _scaled(fitted, *depth_size)


def camera_info_of(camera: Camera, header: Header) -> CameraInfo:
    """A ``camera_info`` without distortion for a rectified camera."""
    info = CameraInfo()
    info.header = header
    info.width, info.height = camera.width, camera.height
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [camera.fx, 0.0, camera.cx, 0.0, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _camera(info: CameraInfo, width: int, height: int) -> Camera:
    p, k = [float(v) for v in info.p], [float(v) for v in info.k]
    if p[0] != 0 or p[5] != 0:
        name, values = "P", (p[0], p[5], p[2], p[6])
    else:
        name, values = "K", (k[0], k[4], k[2], k[5])
    if all(v == 0 for v in values):
        raise MessageError("bad_intrinsics", "K and P are all zeros: the camera is not calibrated")
    try:
        return Camera(*values, width, height)
    except InvalidCameraError as error:
        raise MessageError("bad_intrinsics", f"{name} of camera_info: {error}") from error


def _fitted(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """A copy of ``info`` that describes exactly an image of ``width`` x ``height`` pixels.

    Raises:
        MessageError: ``camera_info_size``.
    """
    if info.width == width and info.height == height:
        return _scaled(info, width, height)
    if info.width < 1 or info.height < 1:
        raise MessageError(
            "camera_info_size",
            f"camera_info says {info.width}x{info.height} pixels, the image has {width}x{height}",
        )
    windowed = _windowed(info, width, height)
    mismatch = abs(windowed.width * height / (windowed.height * width) - 1)
    if not math.isfinite(mismatch) or mismatch > ASPECT_TOLERANCE:
        raise MessageError(
            "camera_info_size",
            f"camera_info is for {info.width}x{info.height} pixels, the image has "
            f"{width}x{height}: another aspect ratio, so it cannot be scaled to fit",
        )
    return _scaled(windowed, width, height)


def _windowed(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """``info`` cut to its region of interest where the image is that region, possibly binned."""
    roi = info.roi
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    if (roi.width // bin_x, roi.height // bin_y) != (width, height):
        return info
    return _cut(info, roi.x_offset, roi.y_offset, roi.width, roi.height)


def _cut(info: CameraInfo, x: int, y: int, width: int, height: int) -> CameraInfo:
    """The ``camera_info`` of a window of the image; it has no region of interest of its own."""
    window = _scaled(info, info.width, info.height)
    window.roi = RegionOfInterest(do_rectify=info.roi.do_rectify)
    for matrix, stride in ((window.k, 3), (window.p, 4)):
        matrix[2] -= x
        matrix[stride + 2] -= y
    window.width, window.height = width, height
    return window


def _scaled(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """A copy of ``info`` scaled to ``width`` x ``height``; binning is part of the scale."""
    sx, sy = width / info.width, height / info.height
    scaled = CameraInfo()
    scaled.header = info.header
    scaled.width, scaled.height = width, height
    scaled.distortion_model = info.distortion_model
    scaled.d = info.d
    scaled.r = info.r
    scaled.k = _scaled_rows(info.k, 3, sx, sy)
    scaled.p = _scaled_rows(info.p, 4, sx, sy)
    scaled.roi = RegionOfInterest(
        x_offset=round(info.roi.x_offset * sx),
        y_offset=round(info.roi.y_offset * sy),
        width=round(info.roi.width * sx),
        height=round(info.roi.height * sy),
        do_rectify=info.roi.do_rectify,
    )
    return scaled


def _scaled_rows(
    matrix: npt.ArrayLike, columns: int, sx: float, sy: float
) -> npt.NDArray[np.float64]:
    """The row-major 3x``columns`` matrix with its first row times ``sx``, its second ``sy``."""
    rows = np.array(matrix, dtype=np.float64).reshape(3, columns)
    rows[0] *= sx
    rows[1] *= sy
    return rows.reshape(-1)
