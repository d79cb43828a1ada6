"""What stands on the road, of one depth image in metres: as points, and as ranges by bearing.

A point is an obstacle by its height above the fitted road (`scale/road.py`). The plane is that of
the camera's own lane; roads fall away to the side for the rain, by about 2.5 %, and go up and down.
So the height that is asked for grows with the distance from where the plane was fitted: kerbs,
pavements and the next rise are no obstacles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import rays
from depth_prior_ros.scale.road import NoRoadError, Road, RoadSettings, fit_road

_Floats = NDArray[np.float32]

_RIGHT_WITHIN = math.log(1.25)  # what confidence is the probability of
_SURE = np.linspace(0.02, 0.98, 193)  # a confidence of 0 or 1 would mean no end of metres, or none
_SIGMAS = np.array([_RIGHT_WITHIN / NormalDist().inv_cdf((1 + c) / 2) for c in _SURE])


@dataclass(frozen=True)
class ObstacleSettings:
    """What counts as an obstacle. Metres.

    min_height, max_height: above the road. max_range: along the road. voxel: edge of the cubes that
    have one point at most. slope, camber: by which the height asked for grows with every metre
    ahead beyond `level_range`, and to the side beyond `level_width`.

    Raises ValueError for values that make no sense.
    """

    min_height: float = 0.2
    max_height: float = 2.5
    max_range: float = 20.0
    voxel: float = 0.1
    level_range: float = 10.0
    slope: float = 0.01
    level_width: float = 2.0
    camber: float = 0.025

    def __post_init__(self) -> None:
        if not 0 < self.min_height < self.max_height < math.inf:
            raise ValueError(
                f"obstacles from {self.min_height} to {self.max_height} m above the road: the "
                "lower bound must be positive and below the upper one"
            )
        if not all(math.isfinite(v) and v > 0 for v in (self.max_range, self.voxel)):
            raise ValueError(f"max_range, voxel must be positive: {self.max_range}, {self.voxel}")
        grows = (self.level_range, self.slope, self.level_width, self.camber)
        if not all(math.isfinite(v) and v >= 0 for v in grows):
            raise ValueError(f"level_range, slope, level_width and camber: got {grows}")


def road_of_depth(depth: NDArray[Any], camera: Camera, settings: RoadSettings) -> Road:
    """The road below a depth image (h, w) in metres: NaN unknown, +inf beyond the range.

    Raises NoRoadError.
    """
    inverse = np.zeros(depth.shape, np.float32)
    np.divide(np.float32(1), depth, out=inverse, where=np.isfinite(depth) & (depth > 0))
    return fit_road(inverse, camera, settings)


@dataclass(frozen=True)
class Obstacles:
    """The obstacles of a depth image.

    mask: (h, w), which pixels show one. x, y, z: (h, w) metres in the camera's optical frame;
    without a meaning where the depth is not finite. voxel: edge of the cubes that points are
    thinned by. max_range: metres along the road up to which was looked.
    """

    mask: NDArray[np.bool_]
    x: _Floats
    y: _Floats
    z: _Floats
    camera: Camera
    voxel: float
    max_range: float

    def points(self, sigma: NDArray[Any] | None = None) -> _Floats:
        """(n, 3), or (n, 4) with `sigma` (h, w): the mean of what lies in each cube."""
        chosen = np.flatnonzero(self.mask)
        columns = [self.x, self.y, self.z, *([] if sigma is None else [sigma])]
        values = np.stack([c.ravel()[chosen] for c in columns], axis=1).astype(np.float32)
        return thinned(values, self.voxel)

    def ranges(self) -> _Floats:
        """Of each bearing of `bearings`, the nearest obstacle's distance in metres.

        The distance is that in the plane of the camera's own x and z axes, as
        depthimage_to_laserscan measures it. +inf: no obstacle up to `max_range`; NaN: nothing
        known in this direction.
        """
        distance = np.hypot(self.x, self.z)
        nearest = np.where(self.mask, distance, np.float32(math.inf)).min(axis=0)
        nearest[nearest > self.max_range] = math.inf
        nearest[np.isnan(self.z).all(axis=0)] = math.nan
        own, gaps, through = _bins(self.camera)
        ranges = np.full(len(nearest), math.nan, np.float32)
        np.fmin.at(ranges, own, nearest)
        ranges[gaps] = nearest[through]
        return ranges


def find_obstacles(
    depth: NDArray[np.float32], camera: Camera, road: Road, settings: ObstacleSettings
) -> Obstacles:
    """The pixels of a depth image (h, w) in metres that show something standing on the road.

    road: in metres. Raises ValueError where depth is not of the camera's size.
    """
    if camera.size != depth.shape[::-1]:
        raise ValueError(f"depth {depth.shape[::-1]} is not of the camera's size {camera.size}")
    ray_x, ray_y = rays(camera)
    normal = road.normal.astype(np.float32)
    with np.errstate(invalid="ignore"):  # the ray through the middle times infinity
        x, y = depth * ray_x, depth * ray_y
        below = x * normal[0] + y * normal[1] + depth * normal[2]
        height = np.float32(road.height) - below
        along = np.sqrt(np.maximum(x * x + y * y + depth * depth - below * below, 0))
        asked = settings.min_height + settings.slope * np.maximum(along - settings.level_range, 0)
        asked += settings.camber * np.maximum(np.abs(x) - settings.level_width, 0)
        mask = (height >= asked) & (height <= settings.max_height) & (along <= settings.max_range)
    mask &= np.isfinite(depth) & (depth > 0)
    return Obstacles(mask, x, y, depth, camera, settings.voxel, settings.max_range)


def thinned(values: _Floats, edge: float) -> _Floats:
    """One row for each cube of this edge in which rows (n, 3 or more) lie: their mean."""
    if not len(values):
        return values
    cubes = np.floor(values[:, :3] / np.float32(edge)).astype(np.int64)
    cubes -= cubes.min(axis=0)
    sides = cubes.max(axis=0) + 1
    numbers = (cubes[:, 0] * sides[1] + cubes[:, 1]) * sides[2] + cubes[:, 2]
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    place = place.ravel()
    sums = [np.bincount(place, weights=column) / count for column in values.T]
    return np.stack(sums, axis=1).astype(np.float32)


def depth_sigma(
    depth: NDArray[np.float32], confidence: NDArray[np.float32], spread: float = 0.0
) -> _Floats:
    """Standard deviation of depth (h, w) in metres.

    Confidence (h, w) estimates how probably the depth is right within a factor of 1.25 up to a
    common one: with errors of log depth that are normal, that is their standard deviation.
    spread: of the common factor, relative.
    """
    relative = np.interp(confidence, _SURE, _SIGMAS)
    return (depth * np.hypot(relative, spread)).astype(np.float32)


def bearings(camera: Camera) -> tuple[float, float, float]:
    """First and last bearing and the step between them, radians; to the left is positive.

    As many as the image has columns, evenly spaced: the first one looks through the last column.
    """
    first = -math.atan2(camera.width - 1 - camera.cx, camera.fx)
    last = math.atan2(camera.cx, camera.fx)
    return first, last, (last - first) / max(camera.width - 1, 1)


@lru_cache(maxsize=8)
def _bins(camera: Camera) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Each column's bearing (w,), the bearings that no column has, and what they look through.

    A column belongs to the bearing at or before its own, as depthimage_to_laserscan has it. In the
    middle of the picture columns are further apart than bearings: the nearest one serves those
    between.
    """
    first, _, step = bearings(camera)
    columns = np.arange(camera.width)
    angles = -np.arctan2(columns - camera.cx, camera.fx)
    own = np.clip(np.floor((angles - first) / step + 1e-9), 0, camera.width - 1).astype(np.int64)
    gaps = np.setdiff1d(columns, own)
    through = np.rint(camera.cx - camera.fx * np.tan(first + step * gaps)).astype(np.int64)
    return own, gaps, np.clip(through, 0, camera.width - 1)


__all__ = [
    "NoRoadError",
    "ObstacleSettings",
    "Obstacles",
    "bearings",
    "depth_sigma",
    "find_obstacles",
    "road_of_depth",
    "thinned",
]
