"""How high above the road a depth map puts the camera, and how the camera is mounted over it.

The inverse depth of a plane is linear in the pixel: for a plane n . X = h and a pixel's ray r with
z = 1, 1/z = (n / h) . r. So the road is a linear fit to the inverse depth of the lower image, and
the camera's height over it is 1 / |n / h|. Whatever stands on the road lies nearer than the plane
and is left out: the best plane through random triplets of pixels is taken, where outliers cost the
same however far off they are (MSAC: Torr and Zisserman, 2000), then least squares on what agrees.
How the camera is mounted is a prior on the plane's normal throughout.

Lines are fitted in the same way, to pairs of points. Least squares hold x for exact. Where it is
not, the slope comes out too small (Fuller, Measurement Error Models, 1987, section 1.1): which of
the two is the exact one has to be said, or that neither is (`fit_both`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera

_Floats = NDArray[np.float64]

_PAIRS = 80
_REFITS = 5


@dataclass(frozen=True)
class Line:
    """y = gain x + offset; share of the points (by count) that lie on it."""

    gain: float
    offset: float
    share: float


def fit_line(x: _Floats, y: _Floats, tolerance: Callable[[_Floats, _Floats], _Floats]) -> Line:
    """The line through points (n,) with a positive gain.

    tolerance: of gain (k, 1) and offset (k, 1), how far off points (k, n) may lie in y.

    Raises ValueError where there is none.
    """
    generator = np.random.default_rng(0)  # the same for every frame: nothing flickers
    first, second = generator.integers(len(x), size=(2, _PAIRS))
    run = x[second] - x[first]
    usable = np.abs(run) > 0.05 * (np.quantile(x, 0.9) - np.quantile(x, 0.1))
    gain = (y[second] - y[first])[usable] / run[usable]
    offset = y[first][usable] - gain * x[first][usable]
    rising = gain > 0
    gain, offset = gain[rising, None], offset[rising, None]
    if len(gain) == 0:
        raise ValueError("no line through these points rises")
    error = np.abs(y - gain * x - offset) / tolerance(gain, offset)
    best = int(np.argmin((np.minimum(error, 1) ** 2).sum(axis=1)))
    a, b = float(gain[best, 0]), float(offset[best, 0])
    for _ in range(_REFITS):
        allowed = tolerance(np.array([[a]]), np.array([[b]]))[0]
        error = np.abs(y - a * x - b) / allowed
        weights = np.where(error < 1, (1 - error**2) / allowed, 0.0)
        if np.count_nonzero(weights) < 3:
            break
        left = np.stack([x, np.ones_like(x)], axis=1) * weights[:, None]
        solved = np.linalg.lstsq(left, y * weights, rcond=None)[0]
        if not solved[0] > 0:
            break
        a, b = float(solved[0]), float(solved[1])
    allowed = tolerance(np.array([[a]]), np.array([[b]]))[0]
    return Line(a, b, float((np.abs(y - a * x - b) < allowed).mean()))


def fit_both(x: _Floats, y: _Floats, tolerance: Callable[[_Floats], _Floats]) -> Line:
    """The line through points (n,) of which x is as inexact as y: the same from either side.

    Its gain is the geometric mean of those of y by x and of x by y (reduced major axis).
    tolerance: of values (k, n), how far off they may lie.

    Raises ValueError where there is none.
    """
    ahead = fit_line(x, y, lambda gain, offset: tolerance(gain * x + offset))
    back = fit_line(y, x, lambda gain, offset: tolerance(gain * y + offset))
    gain = math.sqrt(ahead.gain / back.gain)
    slack = 1 - ahead.gain * back.gain
    if abs(slack) < 1e-6:
        return ahead
    middle = (back.gain * ahead.offset + back.offset) / slack  # where the two lines meet
    offset = ahead.gain * middle + ahead.offset - gain * middle
    return Line(gain, offset, min(ahead.share, back.share))


@dataclass(frozen=True)
class RoadSettings:
    """Where the road is looked for and what passes for one. Lengths in camera heights.

    pitch: radians by which the camera looks down, as it is mounted; tilt: radians (one standard
        deviation) by which that changes as the vehicle nods, rolls and the road bends.
    roll: radians by which the road's normal is turned about the optical axis, as it is mounted.
    half_width, reach: the road is looked for this far to either side and ahead.
    ignore_bottom: share of the image height that shows the vehicle itself.
    tolerance: relative difference in height up to which a pixel belongs to the road.
    min_share: of the pixels looked at that must belong to it.
    max_tilt: radians from `pitch` beyond which a plane is not the road.

    Raises ValueError for values that make no sense.
    """

    pitch: float = 0.0
    tilt: float = math.radians(0.5)
    half_width: float = 1.3
    reach: float = 9.0
    ignore_bottom: float = 0.0
    tolerance: float = 0.08
    min_share: float = 0.4
    max_tilt: float = math.radians(5.0)
    roll: float = 0.0

    def __post_init__(self) -> None:
        positive = (self.tilt, self.half_width, self.reach, self.tolerance, self.max_tilt)
        if not all(math.isfinite(v) and v > 0 for v in positive):
            raise ValueError(f"tilt, half_width, reach, tolerance, max_tilt: got {positive}")
        if not abs(self.pitch) < math.pi / 4:
            raise ValueError(f"pitch must be within 45 degrees, got {self.pitch} radians")
        if not abs(self.roll) < math.pi / 4:
            raise ValueError(f"roll must be within 45 degrees, got {self.roll} radians")
        if not (0 <= self.ignore_bottom < 0.5 and 0 < self.min_share <= 1):
            raise ValueError(
                "ignore_bottom must be in [0, 0.5) and min_share in (0, 1], got "
                f"{self.ignore_bottom} and {self.min_share}"
            )


@dataclass(frozen=True)
class Road:
    """A road plane: height of the camera above it (units), unit normal (3,) that points down in
    the camera's optical frame, share of the pixels looked at that belong to it."""

    height: float
    normal: _Floats
    share: float


class NoRoadError(Exception):
    """No road in sight; the message says why."""


_GRID = 900  # pixels looked at, at most
_TRIPLETS = 48
_UPRIGHT = math.cos(math.radians(25.0))
_SURPRISE = 36.0
_MIN_PIXELS = 60
_BENT = 0.25  # relative difference up to which a pixel belongs to a road whose shift is unknown
_TRUSTED = 30.0  # pixels' errors go together: a fit rests on about this many independent ones


def fit_road(inverse: NDArray[Any], camera: Camera, settings: RoadSettings) -> Road:
    """Find the road in an inverse depth map (h, w), 1/units, of `camera`.

    Raises NoRoadError.
    """
    rows, columns, rays = _region(camera, settings)
    if len(rows) < _MIN_PIXELS:
        raise NoRoadError("the camera does not show the road in front of it")
    values = np.asarray(inverse[rows, columns], np.float64)
    known = np.isfinite(values) & (values > 0)
    values, seen = values[known], rays[known]
    if len(values) < max(_MIN_PIXELS, settings.min_share * len(rows)):
        raise NoRoadError("too little depth on the road")
    plane = _consensus(values, seen, settings)
    for _ in range(_REFITS):
        belongs = _agrees(values, seen @ plane, settings.tolerance)
        if belongs.sum() < _MIN_PIXELS:
            break
        plane = _least_squares(values[belongs], seen[belongs], plane, settings)
    share = float(_agrees(values, seen @ plane, settings.tolerance).sum() / len(rows))
    if share < settings.min_share:
        raise NoRoadError(f"no flat road in sight: {share:.0%} of the pixels agree on a plane")
    return _checked(plane, share, settings)


def fit_affine_road(inverse: NDArray[Any], camera: Camera, settings: RoadSettings) -> Line:
    """Find the road where inverse depth (h, w) is known up to a factor and a shift.

    A shift adds to what is constant over the picture, as the pitch does: so the pitch has to be
    that of the mounting, and the shift is what makes it so. Returns what 1 / depth in camera
    heights is of the inverse depth. Raises NoRoadError.
    """
    rows, columns, rays = _region(camera, settings)
    if len(rows) < _MIN_PIXELS:
        raise NoRoadError("the camera does not show the road in front of it")
    values = np.asarray(inverse[rows, columns], np.float64)
    known = np.isfinite(values)
    if known.sum() < max(_MIN_PIXELS, settings.min_share * len(rows)):
        raise NoRoadError("too little depth on the road")
    nearness = rays[known] @ _down(settings)
    farthest = float(nearness.min())

    def tolerance(gain: _Floats, offset: _Floats) -> _Floats:
        return _BENT * np.maximum(gain * values[known] + offset, farthest)

    try:  # What predicts metres best: further on it is nearer to the truth than the other line.
        line = fit_line(values[known], nearness, tolerance)
    except ValueError as error:
        raise NoRoadError("no flat road in sight: nothing gets nearer downwards") from error
    share = line.share * float(known.mean())
    if share < settings.min_share:
        raise NoRoadError(f"no flat road in sight: {share:.0%} of the pixels agree on a plane")
    return Line(line.gain, line.offset, share)


def _checked(plane: _Floats, share: float, settings: RoadSettings) -> Road:
    length = float(np.linalg.norm(plane))
    normal = plane / length
    tilt = math.acos(min(1.0, float(normal @ _down(settings))))
    if tilt > settings.max_tilt:
        raise NoRoadError(f"the plane in sight is tilted by {math.degrees(tilt):.1f} degrees")
    return Road(1.0 / length, normal, share)


def mounted_road(height: float, settings: RoadSettings) -> Road:
    """The road as the camera is mounted over it, `height` units up, where none can be fitted."""
    return Road(height, _down(settings), 0.0)


def _down(settings: RoadSettings) -> _Floats:
    """The road's normal in the optical frame of the camera as it is mounted."""
    cos, pitch = math.cos(settings.pitch), settings.pitch
    return np.array([math.sin(settings.roll) * cos, math.cos(settings.roll) * cos, math.sin(pitch)])


def _region(camera: Camera, settings: RoadSettings) -> tuple[NDArray[Any], NDArray[Any], _Floats]:
    """Rows (n,), columns (n,) and rays (n, 3) of the pixels in which the road is looked for."""
    # What does not decide the region is left out of the key; a mount that moves is rounded.
    pitch, roll = round(settings.pitch, 2), round(settings.roll, 2)
    key = replace(settings, tilt=1.0, tolerance=1.0, max_tilt=1.0, pitch=pitch, roll=roll)
    return _cached_region(camera, key)


@lru_cache(maxsize=8)
def _cached_region(
    camera: Camera, settings: RoadSettings
) -> tuple[NDArray[Any], NDArray[Any], _Floats]:
    bottom = round(camera.height * (1 - settings.ignore_bottom))
    rows, columns = np.mgrid[:bottom, : camera.width]
    x, y = (columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy
    down = _down(settings)
    depth_of_road = x * down[0] + y * down[1] + down[2]  # camera heights over depth
    ahead = np.cos(settings.pitch) - y * np.sin(settings.pitch)  # horizontal part of the ray
    inside = (depth_of_road * settings.reach > ahead) & (
        np.abs(x) < settings.half_width * depth_of_road
    )
    found = np.flatnonzero(inside)
    step = max(1, len(found) // _GRID)
    chosen = found[::step]
    rows, columns = rows.ravel()[chosen], columns.ravel()[chosen]
    rays = np.stack([x.ravel()[chosen], y.ravel()[chosen], np.ones(len(chosen))], axis=1)
    return rows, columns, rays


def _agrees(values: _Floats, plane_values: _Floats, tolerance: float) -> NDArray[np.bool_]:
    """Which pixels lie on the plane: the relative difference is that of the heights."""
    return (plane_values > 0) & (np.abs(values - plane_values) <= tolerance * plane_values)


def _consensus(values: _Floats, rays: _Floats, settings: RoadSettings) -> _Floats:
    """The plane, n / h (3,), of a random triplet or as mounted, that explains the pixels best."""
    generator = np.random.default_rng(0)  # the same for every frame: nothing flickers
    chosen = generator.integers(len(values), size=(_TRIPLETS, 3))
    matrices, sides = rays[chosen], values[chosen]
    solvable = np.abs(np.linalg.det(matrices)) > 1e-6
    planes = np.linalg.solve(matrices[solvable], sides[solvable][..., None])[..., 0]
    down = _down(settings)
    level = down * np.quantile(values / (rays @ down), (0.3, 0.5, 0.7))[:, None]
    planes = np.concatenate([planes, level])
    planes = planes[planes @ down > _UPRIGHT * np.linalg.norm(planes, axis=1)]
    return planes[int(np.argmin(_cost(planes, values, rays, settings)))]


def _cost(planes: _Floats, values: _Floats, rays: _Floats, settings: RoadSettings) -> _Floats:
    """How badly planes (k, 3) explain the pixels and the mounting (k,); outliers cost the same."""
    at = np.maximum(planes @ rays.T, 1e-9)
    error = np.minimum(np.abs(values - at) / (at * settings.tolerance), 1.0)
    # The tolerance is about two standard deviations of what belongs to the road.
    pixels = 4.0 * min(_TRUSTED, len(values)) * np.mean(error**2, axis=1)
    normals = planes / np.linalg.norm(planes, axis=1, keepdims=True)
    off = np.linalg.norm(normals - _down(settings), axis=1)
    # Capped, so that a road that is really tilted is found, and refused, not half of it taken.
    return pixels + np.minimum((off / settings.tilt) ** 2, _SURPRISE)


def _least_squares(
    values: _Floats, rays: _Floats, plane: _Floats, settings: RoadSettings
) -> _Floats:
    """Fit n / h to relative errors, with the mounting's tilt as a prior on the normal."""
    weights = 1.0 / (rays @ plane)
    residual = float(np.std(values * weights - 1))
    per_pixel = math.sqrt(min(1.0, _TRUSTED / len(values))) / max(residual, 1e-3)
    # Two rows: the mounted roll and pitch, both up to the tilt.
    length, pitch, roll = float(np.linalg.norm(plane)), settings.pitch, settings.roll
    side, along = (math.cos(roll), -math.sin(roll)), (math.sin(roll), math.cos(roll))
    prior = np.array([[*side, 0.0], [*(-math.sin(pitch) * v for v in along), math.cos(pitch)]])
    prior /= length * settings.tilt
    left = np.concatenate([rays * (weights * per_pixel)[:, None], prior])
    right = np.concatenate([values * weights * per_pixel, [0.0, 0.0]])
    return np.linalg.lstsq(left, right, rcond=None)[0]


@dataclass(frozen=True)
class MountedCamera:
    """A camera over the road.

    height: metres from the road to the camera. pitch, roll: radians by which it looks down and by
    which the road's normal is turned about its optical axis.
    """

    height: float
    pitch: float
    roll: float

    @classmethod
    def of(cls, base_from_optical: _Floats, base_height: float = 0.0) -> MountedCamera:
        """From its place (4, 4) in a frame with z up whose origin is `base_height` above the road.

        Raises ValueError for a camera at or below the road, or one that looks up or down, or is
        turned about its axis, by 45 degrees or more: it does not see the road in front of it.
        """
        height = float(base_from_optical[2, 3]) + base_height
        down = -base_from_optical[2, :3]  # in the optical frame
        pitch, roll = math.asin(np.clip(down[2], -1, 1)), math.atan2(down[0], down[1])
        if not height > 0:
            raise ValueError(f"the camera lies {height:.2f} m above the road")
        if max(abs(pitch), abs(roll)) >= math.pi / 4:
            raise ValueError(
                f"the camera looks down by {math.degrees(pitch):.0f} degrees and is turned by "
                f"{math.degrees(roll):.0f} about its axis: it does not see the road ahead"
            )
        return cls(height, pitch, roll)

    def road(self, settings: RoadSettings) -> RoadSettings:
        """Where such a camera looks for the road."""
        return replace(settings, pitch=self.pitch, roll=self.roll)

    def __str__(self) -> str:
        """Height, pitch and roll in words."""
        pitch, roll = math.degrees(self.pitch), math.degrees(self.roll)
        return f"{self.height:.2f} m above the road, pitch {pitch:.1f}, roll {roll:.1f} degrees"


def plane_in_base(road: Road, base_from_optical: _Floats) -> tuple[float, float, float, float]:
    """The road (metres) as a x + b y + c z + d = 0 in the base frame, its unit normal upwards."""
    down = base_from_optical[:3, :3] @ road.normal
    d = road.height + float(down @ base_from_optical[:3, 3])
    a, b, c = (-float(v) for v in down)
    return a, b, c, d
