"""Messages of a bag as plain values: images, depth, points, poses. No rclpy, duck-typed messages.

ROS has the vehicle's x axis forward, y left, z up (REP-103); this package's poses are those of the
camera's optical frame (x right, y down, z forward). `odometry_from_pose` and `camera_pose` turn
both the world and the vehicle, the camera sitting at the vehicle's origin and looking ahead.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL
from depth_prior_ros.images.encodings import MessageError, bayer_of_format, image_to_rgb
from depth_prior_ros.recordings.base import CorruptFrameError
from depth_prior_ros.recordings.image_files import DEPTH_SCALE, decode_depth, positive

# ROS has depth of 16 bits in millimetres (REP-118), KITTI and this project's own bags x 256.
_DEPTH_TYPES = {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}
MILLIMETRE, METRE, KITTI_UNIT = 0.001, 1.0, 1 / DEPTH_SCALE
"""Metres that one step of a stored depth is."""

KITTI_WORDS = "metres x 256"
"""What the format of this project's own depth says."""

# compressed_depth_image_transport: an enumeration and the two numbers of its quantisation
_DEPTH_HEADER = struct.Struct("<iff")


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


def is_plain_format(text: str) -> bool:
    """Whether a CompressedImage of that format shows the same as a file with its bytes.

    A raw Bayer pattern and swapped colours are told by the format alone.
    """
    return bayer_of_format(text) is None and "compressed rgb" not in text


def depth_of(message: Any, what: str, unit: float | None = None) -> NDArray[np.float32]:
    """The depth of a message, (H, W) float32 metres, 0 = none; raises CorruptFrameError.

    As ROS has it (REP-118): 16 bits are millimetres, 32FC1 is metres, `compressedDepth` what its
    header says. unit: metres of one step of 16 bits, where the bag says otherwise; a format that
    names KITTI's is believed in any case.
    """
    unit = MILLIMETRE if unit is None else unit
    if not hasattr(message, "format"):
        if message.encoding not in _DEPTH_TYPES:
            raise CorruptFrameError(
                f"{what}: depth encoding {message.encoding!r}; readable are "
                f"{', '.join(_DEPTH_TYPES)}"
            )
        dtype = np.dtype(_DEPTH_TYPES[message.encoding])
        depth = _pixels(message, dtype, 1, what)[..., 0].astype(np.float32)
        return positive(depth * (METRE if dtype == np.float32 else unit))
    data = np.asarray(message.data, np.uint8).tobytes()
    if KITTI_WORDS in message.format:
        unit = KITTI_UNIT
    if "compressedDepth" not in message.format:
        return positive(decode_depth(data, what, unit))
    if "rvl" in message.format.lower():
        raise CorruptFrameError(f"{what}: compressedDepth of the kind RVL; readable is PNG")
    if len(data) <= _DEPTH_HEADER.size:
        raise CorruptFrameError(f"{what}: {len(data)} bytes are no compressedDepth")
    _, a, b = _DEPTH_HEADER.unpack_from(data)
    if message.format.startswith("16UC1"):
        return positive(decode_depth(data[_DEPTH_HEADER.size :], what, unit))
    steps = decode_depth(data[_DEPTH_HEADER.size :], what, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # compressed_depth_image_transport stores inverse depth: step = a / depth + b
        return positive(np.where(steps > 0, a / (steps - b), 0).astype(np.float32))


def points_of(message: Any, what: str) -> NDArray[np.float64]:
    """Finite points (N, 3) of a PointCloud2, metres in its frame; raises CorruptFrameError."""
    fields = {field.name: field for field in message.fields}
    missing = [name for name in "xyz" if name not in fields]
    if missing:
        raise CorruptFrameError(f"{what}: points without {', '.join(missing)}")
    order = ">" if message.is_bigendian else "<"
    kinds = {7: f"{order}f4", 8: f"{order}f8"}
    if any(fields[name].datatype not in kinds for name in "xyz"):
        raise CorruptFrameError(f"{what}: coordinates that are no floating-point numbers")
    layout = np.dtype(
        {
            "names": list("xyz"),
            "formats": [kinds[fields[name].datatype] for name in "xyz"],
            "offsets": [int(fields[name].offset) for name in "xyz"],
            "itemsize": int(message.point_step),
        }
    )
    height, width, step = int(message.height), int(message.width), int(message.row_step)
    data = np.asarray(message.data, np.uint8)
    row = width * layout.itemsize
    if step < row or data.size < height * step:
        raise CorruptFrameError(f"{what}: {data.size} bytes instead of {height * max(step, row)}")
    rows = np.ascontiguousarray(data[: height * step].reshape(height, step)[:, :row])
    points = rows.reshape(-1).view(layout)
    xyz = np.stack([points[name].astype(np.float64) for name in "xyz"], axis=-1)
    return xyz[np.isfinite(xyz).all(axis=-1)]


def mask_of(message: Any, what: str) -> NDArray[np.bool_]:
    """A mask (H, W), True where a one-channel 8-bit image is not 0; raises CorruptFrameError."""
    return np.asarray(image_of(message, what)[..., 0] > 0)


def camera_pose(pose: NDArray[np.float64], optical: bool) -> NDArray[np.float64]:
    """world_from_camera (4, 4) of fixed_from_vehicle, whose camera looks ahead from its origin.

    optical: the poses are of an optical frame already (`Trajectory.is_optical`).
    """
    return pose if optical else BODY_FROM_OPTICAL.T @ pose @ BODY_FROM_OPTICAL


def optical_world(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """world_from_camera (4, 4) of fixed_from_camera, in a world whose axes are optical ones."""
    return BODY_FROM_OPTICAL.T @ pose


def odometry_from_pose(
    world_from_camera: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position (3,) and quaternion (x, y, z, w) of the vehicle, for an Odometry message."""
    pose = BODY_FROM_OPTICAL @ world_from_camera @ BODY_FROM_OPTICAL.T
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
