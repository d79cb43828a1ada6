"""Rigid motions as matrices (4, 4) in numpy; `warping.Pose` is their twin in PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rigid_inverse(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a rotation and translation (4, 4)."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse
