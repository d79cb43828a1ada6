"""Messages of a bag as plain values: images, intrinsics, odometry. No rclpy, duck-typed messages.

ROS has the vehicle's x axis forward, y left, z up (REP-103); this package's poses are those of the
camera's optical frame (x right, y down, z forward). `odometry_from_pose` and `pose_from_odometry`
turn both the world and the vehicle, the camera sitting at the vehicle's origin and looking ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.encodings import MessageError, image_to_rgb
from depth_prior_ros.images.rectification import NEGLIGIBLE, DistortedCamera, distortion_model
from depth_prior_ros.recordings.base import CorruptFrameError
from depth_prior_ros.recordings.image_files import DEPTH_SCALE, decode_depth

COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
TWIST = "geometry_msgs/msg/TwistStamped"
STRING = "std_msgs/msg/String"

UNKNOWN = -1.0  # in the first place of a covariance: this half of the odometry is not known

# encoding -> (type, factor to metres)
_DEPTH = {"16UC1": (np.uint16, 1 / DEPTH_SCALE), "32FC1": (np.float32, 1.0)}

_VEHICLE_FROM_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)


def stamp_of(message: Any) -> int:
    """The header's stamp in nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def image_of(message: Any, what: str) -> NDArray[np.uint8]:
    """The image of an Image or CompressedImage, (H, W, 3) uint8 RGB; raises CorruptFrameError.

    All encodings of `encodings.image_to_rgb`: what the node reads of a camera, a bag is read with.
    """
    try:
        pixels = image_to_rgb(message)
    except MessageError as error:
        raise CorruptFrameError(f"{what}: {error.text}") from error
    return pixels if pixels.flags.writeable else pixels.copy()


def depth_of(message: Any, what: str) -> NDArray[np.float32]:
    """The depth of a message, (H, W) float32 metres, 0 = none; raises CorruptFrameError.

    A 16-bit PNG or a raw 16UC1 image is metres x 256 (this package's bags), 32FC1 is metres.
    """
    if hasattr(message, "format"):
        return decode_depth(np.asarray(message.data, np.uint8).tobytes(), what)
    if message.encoding not in _DEPTH:
        raise CorruptFrameError(
            f"{what}: depth encoding {message.encoding!r}; readable are {', '.join(_DEPTH)}"
        )
    dtype, factor = _DEPTH[message.encoding]
    depth = _pixels(message, np.dtype(dtype), 1, what)[..., 0].astype(np.float32) * factor
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def mask_of(message: Any, what: str) -> NDArray[np.bool_]:
    """A mask (H, W), True where a one-channel 8-bit image is not 0; raises CorruptFrameError."""
    return np.asarray(image_of(message, what)[..., 0] > 0)


def camera_of(message: Any) -> Camera:
    """The rectified camera of a CameraInfo: P where it is filled in, K otherwise.

    Raises InvalidCameraError.
    """
    # ROS 1 names these in capitals
    P = np.asarray(getattr(message, "p", None) if hasattr(message, "p") else message.P)
    K = np.asarray(getattr(message, "k", None) if hasattr(message, "k") else message.K)
    matrix = P.reshape(3, 4) if P[0] > 0 else K.reshape(3, 3)
    return Camera.from_matrix(matrix, int(message.width), int(message.height))


def lens_of(message: Any) -> DistortedCamera | None:
    """The lens of a CameraInfo; None without distortion. Raises InvalidCameraError."""

    def values(name: str) -> NDArray[np.float64]:
        # ROS 1 names these in capitals
        found = getattr(message, name) if hasattr(message, name) else getattr(message, name.upper())
        return np.asarray(found, np.float64).reshape(-1)

    coefficients = tuple(float(value) for value in values("d"))
    if all(abs(value) <= NEGLIGIBLE for value in coefficients):
        return None
    rotation = values("r") if values("r").any() else np.eye(3).reshape(-1)
    size = int(message.width), int(message.height)
    return DistortedCamera(
        raw=Camera.from_matrix(values("k").reshape(3, 3), *size),
        model=distortion_model(message.distortion_model, coefficients),
        coefficients=coefficients,
        camera=camera_of(message),
        rotation=tuple(float(value) for value in rotation),
    )


def speed_of(message: Any) -> float | None:
    """Forward speed in m/s of an Odometry or TwistStamped, negative when reversing."""
    twist = message.twist
    if hasattr(twist, "covariance"):
        if twist.covariance[0] == UNKNOWN:
            return None
        twist = twist.twist
    x, y = float(twist.linear.x), float(twist.linear.y)
    speed = float(np.copysign(np.hypot(x, y), x))
    return speed if np.isfinite(speed) else None


def pose_from_odometry(message: Any) -> NDArray[np.float64] | None:
    """world_from_camera (4, 4) of an Odometry; None for a twist or an unknown or broken pose."""
    if not hasattr(message, "pose") or message.pose.covariance[0] == UNKNOWN:
        return None
    position, q = message.pose.pose.position, message.pose.pose.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w], np.float64)
    translation = np.array([position.x, position.y, position.z], np.float64)
    norm = np.linalg.norm(quaternion)
    if not (np.isfinite(norm) and norm > 0 and np.isfinite(translation).all()):
        return None
    pose = np.eye(4)
    pose[:3, :3] = _rotation(quaternion / norm)
    pose[:3, 3] = translation
    return _VEHICLE_FROM_OPTICAL.T @ pose @ _VEHICLE_FROM_OPTICAL


def odometry_from_pose(
    world_from_camera: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position (3,) and quaternion (x, y, z, w) of the vehicle, for an Odometry message."""
    pose = _VEHICLE_FROM_OPTICAL @ world_from_camera @ _VEHICLE_FROM_OPTICAL.T
    return pose[:3, 3], _quaternion(pose[:3, :3])


def _pixels(message: Any, dtype: np.dtype, channels: int, what: str) -> NDArray:
    """(H, W, channels) of a raw image, its row padding dropped."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * channels * dtype.itemsize
    data = np.asarray(message.data, np.uint8)
    if height < 1 or width < 1:
        raise CorruptFrameError(f"{what}: empty image of {width}x{height}")
    if step < row:
        raise CorruptFrameError(f"{what}: step {step} is shorter than a row of {row} bytes")
    if data.size < height * step:
        raise CorruptFrameError(f"{what}: {data.size} bytes instead of {height * step}")
    rows = np.ascontiguousarray(data[: height * step].reshape(height, step)[:, :row])
    pixels = rows.view(dtype.newbyteorder(">" if message.is_bigendian else "<"))
    return pixels.reshape(height, width, channels).astype(dtype, copy=False)


def _rotation(q: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _quaternion(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x, y, z, w) as the eigenvector of Bar-Itzhack's matrix: no branch, sound for every turn."""
    m = R
    matrix = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0, 0],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], 0],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m.trace()],
        ]
    )
    q = np.linalg.eigh(matrix, UPLO="L")[1][:, -1]
    return q if q[3] >= 0 else -q
