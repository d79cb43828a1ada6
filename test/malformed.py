"""Messages that no driver should send, each with the cause that a node must count it under."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import TwistStamped, TwistWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

WIDTH, HEIGHT = 96, 32
# Big enough for a header, broken everywhere else.
_BROKEN_JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256))


@dataclass(frozen=True)
class Kind:
    """One way of being wrong.

    topic, message: where it is sent, and the type.
    cause: under which the node counts it.
    spoil: makes a good message bad.
    """

    topic: str
    message: type
    cause: str
    spoil: Callable[[Any], None]

    def build(self, header: Any, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Any:
        """A new message with that header; `size` is that of the good images."""
        message = _GOOD[self.message](*size)
        message.header = header
        self.spoil(message)
        return message


def good_image(width: int = WIDTH, height: int = HEIGHT) -> Image:
    """A black rgb8 image."""
    message = Image(width=width, height=height, encoding="rgb8", step=3 * width)
    message.data.frombytes(bytes(3 * width * height))
    return message


def good_info(width: int = WIDTH, height: int = HEIGHT) -> CameraInfo:
    """A calibration with 0.58 image widths of focal length, without distortion."""
    f, cx, cy = 0.58 * width, width / 2, height / 2
    return CameraInfo(
        width=width,
        height=height,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


def _good_compressed(width: int, height: int) -> CompressedImage:
    return CompressedImage(format="rgb8; jpeg compressed bgr8")


_GOOD: dict[type, Callable[..., Any]] = {
    Image: good_image,
    CameraInfo: good_info,
    CompressedImage: _good_compressed,
    Odometry: lambda *_: Odometry(),
    TwistStamped: lambda *_: TwistStamped(),
    TwistWithCovarianceStamped: lambda *_: TwistWithCovarianceStamped(),
}


def _change(**values: Any) -> Callable[[Any], None]:
    def spoil(message: Any) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return spoil


def _data(change: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda message: change(message.data)


def _frombytes(value: bytes) -> Callable[[Any], None]:
    def spoil(message: Any) -> None:
        del message.data[:]
        message.data.frombytes(value)

    return spoil


def _short_step(message: Image) -> None:
    message.step = 3 * message.width - 1


def _speed(path: str, value: float) -> Callable[[Any], None]:
    def spoil(message: Any) -> None:
        for name in path.split("."):
            message = getattr(message, name)
        message.linear.x = value

    return spoil


def _position(value: float) -> Callable[[Any], None]:
    def spoil(message: Odometry) -> None:
        message.pose.pose.position.x = value

    return spoil


def _matrices(value: float) -> Callable[[Any], None]:
    return _change(k=[value] * 9, p=[value] * 12)


_UINT32 = 2**32 - 1

IMAGE = {
    "zero_width": Kind("image", Image, "zero_size", _change(width=0)),
    "zero_height": Kind("image", Image, "zero_size", _change(height=0)),
    "enormous": Kind("image", Image, "wrong_step", _change(width=_UINT32, height=_UINT32)),
    "enormous_step": Kind("image", Image, "truncated", _change(step=_UINT32)),
    "short_step": Kind("image", Image, "wrong_step", _short_step),
    "no_data": Kind("image", Image, "truncated", _frombytes(b"")),
    "truncated": Kind("image", Image, "truncated", _data(lambda data: data.pop())),
    "too_much_data": Kind("image", Image, "wrong_step", _data(lambda data: data.append(0))),
    "unknown_encoding": Kind("image", Image, "unknown_encoding", _change(encoding="yuv9")),
    "no_encoding": Kind("image", Image, "unknown_encoding", _change(encoding="")),
}
"""Images whose header tells that they cannot be read."""

INFO = {
    "nan": Kind("camera_info", CameraInfo, "bad_intrinsics", _matrices(math.nan)),
    "infinite": Kind("camera_info", CameraInfo, "bad_intrinsics", _matrices(math.inf)),
    "zeros": Kind("camera_info", CameraInfo, "bad_intrinsics", _matrices(0.0)),
    "negative": Kind("camera_info", CameraInfo, "bad_intrinsics", _matrices(-5.0)),
    "no_size": Kind("camera_info", CameraInfo, "camera_info_size", _change(width=0, height=0)),
    "other_size": Kind(
        "camera_info", CameraInfo, "camera_info_size", _change(width=640, height=480)
    ),
}
"""Calibrations that cannot belong to the image."""

MOTION = {
    "odometry_nan": Kind("odom", Odometry, "bad_odometry", _speed("twist.twist", math.nan)),
    "odometry_infinite": Kind("odom", Odometry, "bad_odometry", _speed("twist.twist", math.inf)),
    "pose_nan": Kind("odom", Odometry, "bad_odometry", _position(math.nan)),
    "twist_nan": Kind("twist", TwistStamped, "bad_odometry", _speed("twist", math.nan)),
    "twist_with_covariance_nan": Kind(
        "twist_with_covariance",
        TwistWithCovarianceStamped,
        "bad_odometry",
        _speed("twist.twist", math.nan),
    ),
}
"""Speeds and poses that are not numbers."""

COMPRESSED = {
    "nothing": Kind("image/compressed", CompressedImage, "compressed_broken", _frombytes(b"")),
    "noise": Kind(
        "image/compressed", CompressedImage, "unknown_encoding", _frombytes(bytes(range(200)))
    ),
    "broken_jpeg": Kind(
        "image/compressed", CompressedImage, "compressed_broken", _frombytes(_BROKEN_JPEG)
    ),
}

KINDS: dict[str, Kind] = {**IMAGE, **INFO, **MOTION, **COMPRESSED}
