"""From a depth image to points: pixels times their rays. Numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera


def rays(camera: Camera, stride: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x (1, w) and y (h, 1) at depth 1 of every `stride`-th column and row, optical frame."""
    columns = np.arange(0, camera.width, stride, dtype=np.float64)
    rows = np.arange(0, camera.height, stride, dtype=np.float64)
    x = ((columns - camera.cx) / camera.fx).astype(np.float32)
    y = ((rows - camera.cy) / camera.fy).astype(np.float32)
    return x[np.newaxis], y[:, np.newaxis]


def check_size(depth: NDArray[Any], camera: Camera) -> None:
    """Raises ValueError where depth (h, w) has not the camera's size."""
    if camera.size != depth.shape[::-1]:
        raise ValueError(
            f"the camera is for {camera.width}x{camera.height}, the depth image has "
            f"{depth.shape[1]}x{depth.shape[0]}"
        )


def to_points(
    depth: NDArray[np.floating[Any]], camera: Camera, *, organised: bool = False
) -> NDArray[np.float32]:
    """Points in the camera's optical frame (x right, y down, z forward), in the depth's unit.

    depth: (h, w) along the optical axis; NaN, infinite and non-positive pixels have no point.
    camera: of the depth image. organised: (h, w, 3), NaN where there is no point; else (n, 3), row
    by row.

    Raises ValueError where camera and depth image differ in size.
    """
    check_size(depth, camera)
    x, y = rays(camera)
    known = np.isfinite(depth) & (depth > 0)
    z = np.where(known, depth, np.nan).astype(np.float32)
    points = np.stack([z * x, z * y, z], axis=-1)
    return points if organised else points[known]
