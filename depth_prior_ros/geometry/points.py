"""From a depth image to points, and from LiDAR points to sparse depth; points as a file.

Numpy only.
"""

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


def encode_ply(
    depth: NDArray[np.floating[Any]],
    camera: Camera,
    rgb: NDArray[np.uint8] | None = None,
    *,
    frame: str = "",
) -> bytes:
    """The points of `to_points` as a binary PLY file, row by row, with their colours.

    rgb: (h, w, 3) of the depth image's size; None: the points have no colours. frame: name of the
    camera's optical frame, for the file's comment.

    Raises ValueError where camera and depth image differ in size.
    """
    seen = to_points(depth, camera, organised=True)
    known = np.isfinite(seen[..., 2])
    colours = [] if rgb is None else ["red", "green", "blue"]
    fields: list[Any] = [("xyz", "<f4", 3), *((name, "u1") for name in colours)]
    points = np.empty(int(known.sum()), fields)
    points["xyz"] = seen[known]
    for channel, name in enumerate(colours):
        assert rgb is not None
        points[name] = rgb[known][:, channel]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment metres, x right, y down, z forward: camera optical frame {frame}".rstrip(),
        f"element vertex {points.size}",
        *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in colours),
        "end_header\n",
    ]
    return "\n".join(lines).encode("ascii", "replace") + points.tobytes()


NEAREST = 0.1
"""Metres along the camera's axis below which a point is on the vehicle itself, or behind."""


def project_points(
    points: NDArray[np.float64],
    camera_from_points: NDArray[np.float64],
    camera: Camera,
    nearest: float = NEAREST,
) -> NDArray[np.float32]:
    """Sparse depth (H, W) float32 in metres along the camera's axis, 0 = none.

    Each point counts for the pixel it falls into; of several the nearest, as it hides the others.

    Args:
        points: (N, 3) in metres of their own frame; ones that are not finite are left out.
        camera_from_points: (4, 4) from that frame to the camera's optical frame.
        camera: a rectified pinhole camera.
        nearest: metres along its axis below which points are left out.
    """
    seen = points @ camera_from_points[:3, :3].T + camera_from_points[:3, 3]
    seen = seen[np.isfinite(seen).all(axis=1)]
    seen = seen[seen[:, 2] >= nearest]
    # Pixel centres lie at whole numbers.
    u = np.rint(camera.fx * seen[:, 0] / seen[:, 2] + camera.cx)
    v = np.rint(camera.fy * seen[:, 1] / seen[:, 2] + camera.cy)
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    place = v[inside].astype(np.int64) * camera.width + u[inside].astype(np.int64)
    depth = np.full(camera.height * camera.width, np.inf)
    np.minimum.at(depth, place, seen[inside, 2])
    depth[np.isinf(depth)] = 0.0
    return depth.reshape(camera.height, camera.width).astype(np.float32)
