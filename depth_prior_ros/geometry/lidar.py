"""LiDAR points as sparse depth of a camera's image. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera

NEAREST = 0.1
"""Metres along the camera's axis below which a point is on the vehicle itself, or behind."""


def project_points(
    points: NDArray[np.float64], camera_from_points: NDArray[np.float64], camera: Camera
) -> NDArray[np.float32]:
    """Sparse depth (H, W) float32 in metres along the camera's axis, 0 = none.

    Each point counts for the pixel it falls into; of several the nearest, as it hides the others.

    Args:
        points: (N, 3) in metres of their own frame; ones that are not finite are left out.
        camera_from_points: (4, 4) from that frame to the camera's optical frame.
        camera: a rectified pinhole camera.
    """
    seen = points @ camera_from_points[:3, :3].T + camera_from_points[:3, 3]
    seen = seen[np.isfinite(seen).all(axis=1)]
    seen = seen[seen[:, 2] >= NEAREST]
    # Pixel centres lie at whole numbers.
    u = np.rint(camera.fx * seen[:, 0] / seen[:, 2] + camera.cx)
    v = np.rint(camera.fy * seen[:, 1] / seen[:, 2] + camera.cy)
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    place = v[inside].astype(np.int64) * camera.width + u[inside].astype(np.int64)
    depth = np.full(camera.height * camera.width, np.inf)
    np.minimum.at(depth, place, seen[inside, 2])
    depth[np.isinf(depth)] = 0.0
    return depth.reshape(camera.height, camera.width).astype(np.float32)
