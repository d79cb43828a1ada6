"""Rigid motions as matrices (4, 4) in numpy; `warping.Pose` is their twin in PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: (4, 4): a camera's optical axes (right, down, forward) in a frame with x forward, y left, z up.
BODY_FROM_OPTICAL = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)


def rigid_inverse(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of rotations and translations (..., 4, 4)."""
    inverse = np.broadcast_to(np.eye(4), pose.shape).copy()
    turned = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3:] = -turned @ pose[..., :3, 3:]
    return inverse


def rotation_of(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation (3, 3) of a unit quaternion x, y, z, w."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
