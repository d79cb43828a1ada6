"""Rigid motions as matrices (4, 4) in numpy; `warping.Pose` is their twin in PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rigid_inverse(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of rotations and translations (..., 4, 4)."""
    inverse = np.broadcast_to(np.eye(4), pose.shape).copy()
    turned = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3:] = -turned @ pose[..., :3, 3:]
    return inverse
