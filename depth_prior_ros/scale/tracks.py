"""Inverse depth in metres of points that are followed from one picture to a later one.

Corners are followed by optical flow; their flow tells rotation and direction of the camera's step
(five points and RANSAC), odometry its length. Rotation is not taken from odometry: half a degree
of a nod, which wheels do not know, moves a far point by more than a metre of driving.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale.measured import (
    FilterSettings,
    MeasuredScale,
    NothingMeasuredError,
    Sample,
    check_swing,
    known_way,
    seen_depth,
)
from depth_prior_ros.scale.state import FixedScale, ScaleMode, ScaleSight

_Floats = NDArray[np.float64]

BASELINE = 0.8  # metres between two pictures
MIN_POINTS = 25
_CORNERS = 800
_BACK = 0.3  # pixels by which a point that is followed back may miss where it came from
_FLOW_SIGMA = 0.15  # pixels
_EDGE = 0.05  # relative: how far inverse depth around a point is from a plane
_LONGEST_GAP = 2.0  # seconds between two pictures that are compared
_INTERVAL = 0.09  # seconds: following points takes a part of a fast camera's time
_SPACING = 0.2  # of the way between two that are compared


@dataclass(frozen=True)
class Points:
    """Points of a picture: place (n, 2) in pixels, inverse depth (n,) in 1/m with its standard
    deviation (n,); far ones may lie beyond infinity by their noise."""

    place: NDArray[np.float32]
    inverse: _Floats
    sigma: _Floats

    def near(self) -> Points:
        """Those near enough to measure. Raises NothingMeasuredError where they are too few."""
        sure = self.inverse > 4 * self.sigma
        if sure.sum() < MIN_POINTS:
            raise NothingMeasuredError("too few points are near enough to measure")
        return Points(self.place[sure], self.inverse[sure], self.sigma[sure])


@dataclass
class _Earlier:
    """A picture, and the way since then."""

    grey: NDArray[np.uint8]
    camera: Camera
    metres: float = 0.0
    turned: float = 0.0
    seconds: float = 0.0

    def serves(self, camera: Camera) -> bool:
        return self.camera == camera and self.seconds <= _LONGEST_GAP


class PointTracker:
    """Keeps pictures until the camera is far enough from them to compare.

    Every frame is compared with the newest that is, however slowly the vehicle drives; the pictures
    between are kept a part of that way from each other.
    """

    def __init__(self) -> None:
        self._earlier: deque[_Earlier] = deque()
        self._pause = 0.0  # seconds since the last points

    def see(self, sight: ScaleSight, *, wanted: bool = True) -> Points | None:
        """Points of this frame; None a moment after the last ones, or where they are not wanted.

        Raises NothingMeasuredError where there are none.
        """
        if sight.picture is None:
            raise NothingMeasuredError("no picture of this frame")
        grey = cv2.cvtColor(sight.picture, cv2.COLOR_RGB2GRAY)
        try:
            way = known_way(sight)
        except NothingMeasuredError:
            self._earlier = deque([_Earlier(grey, sight.camera)])
            raise
        self._pause += sight.seconds or math.inf
        earlier = self._earlier
        for picture in earlier:
            picture.metres += way
            picture.turned += abs(sight.radians_turned or 0.0)
            picture.seconds += sight.seconds or math.inf
        while earlier and not earlier[0].serves(sight.camera):
            earlier.popleft()
        while len(earlier) > 1 and earlier[1].metres >= BASELINE:
            earlier.popleft()
        best = earlier[0] if earlier else None
        if best is None or earlier[-1].metres >= _SPACING * BASELINE:
            earlier.append(_Earlier(grey, sight.camera))
        if best is None:
            raise NothingMeasuredError("no earlier picture to compare with")
        if best.metres < BASELINE:
            raise NothingMeasuredError("the way since the last picture is too short")
        check_swing(best.metres, best.turned)
        if self._pause < _INTERVAL or not wanted:
            return None
        self._pause = 0.0
        return triangulate(best.grey, grey, sight.camera, best.metres)


def triangulate(
    earlier: NDArray[np.uint8], now: NDArray[np.uint8], camera: Camera, metres: float
) -> Points:
    """Points of a grey picture (h, w), seen in an earlier one `metres` away.

    Raises NothingMeasuredError where too few can be followed, or they agree on no motion.
    """
    before, after = _follow(earlier, now)
    if len(before) < MIN_POINTS:
        raise NothingMeasuredError("too few points could be followed")
    first, second = _rays(before, camera), _rays(after, camera)
    pixel = 1 / math.sqrt(camera.fx * camera.fy)
    essential, inside = cv2.findEssentialMat(
        second[:, :2], first[:, :2], np.eye(3), cv2.RANSAC, 0.999, 0.5 * pixel
    )
    if essential is None or essential.shape != (3, 3):
        raise NothingMeasuredError("the points agree on no motion")
    found, rotation, direction, ahead = cv2.recoverPose(
        essential, second[:, :2], first[:, :2], np.eye(3), 1e9, mask=inside
    )
    if found < MIN_POINTS:
        raise NothingMeasuredError("too few points agree on a motion")
    kept = ahead.ravel() > 0
    first, second, after = first[kept], second[kept], after[kept]
    # earlier = R now + t; along the ray of now: R r + d t is parallel to the earlier ray.
    turned = np.cross(first, second @ rotation.T)
    moved = np.cross(first, direction.ravel() * metres)
    lever = np.einsum("ij,ij->i", moved, moved)
    inverse = -np.einsum("ij,ij->i", turned, moved) / np.maximum(lever, 1e-12)
    sigma = _FLOW_SIGMA * pixel / np.sqrt(np.maximum(lever, 1e-12))
    return Points(after, inverse, sigma)


def _follow(
    earlier: NDArray[np.uint8], now: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Places (n, 2) of the same points in both pictures, where following back finds them again."""
    corners = cv2.goodFeaturesToTrack(earlier, _CORNERS, 0.005, 4)
    if corners is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    there, ok, _ = cv2.calcOpticalFlowPyrLK(earlier, now, corners, None, winSize=(15, 15))
    back, again, _ = cv2.calcOpticalFlowPyrLK(now, earlier, there, None, winSize=(15, 15))
    missed = np.linalg.norm((back - corners)[:, 0], axis=1)
    there = there[:, 0]
    height, width = now.shape
    inside = (there >= 0).all(axis=1) & (there[:, 0] < width) & (there[:, 1] < height)
    good = (ok[:, 0] > 0) & (again[:, 0] > 0) & (missed < _BACK) & inside
    return corners[good, 0], there[good]


def _rays(places: NDArray[np.float32], camera: Camera) -> _Floats:
    x = (places[:, 0].astype(np.float64) - camera.cx) / camera.fx
    y = (places[:, 1].astype(np.float64) - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=1)


def known_points(points: Points, sight: ScaleSight) -> tuple[_Floats, _Floats, _Floats]:
    """Inverse depth of points by the network (1/units) and in 1/m with its deviation, (n,) each.

    Raises NothingMeasuredError where too few have depth.
    """
    depth = np.asarray(seen_depth(sight), np.float32)
    columns, rows = np.floor(points.place + 0.5).astype(int).T
    columns, rows = np.minimum(columns, depth.shape[1] - 1), np.minimum(rows, depth.shape[0] - 1)
    values = np.asarray(depth[rows, columns], np.float64)
    around = np.ones((5, 5), np.uint8)
    # At an edge of depth nobody knows to which side a corner belongs; a plane has none.
    relief = np.abs(cv2.dilate(depth, around) + cv2.erode(depth, around) - 2 * depth)
    known = np.isfinite(values) & (values > 0) & (relief[rows, columns] < _EDGE * values)
    if known.sum() < MIN_POINTS:
        raise NothingMeasuredError("too few points have depth")
    return values[known], points.inverse[known], points.sigma[known]


class TrackedScale(MeasuredScale):
    """Odometry for networks that see no motion: depth of followed points, over the network's."""

    mode: ClassVar[ScaleMode] = "odometry"
    needs_depth: ClassVar[bool] = True

    def __init__(self, start: FixedScale, settings: FilterSettings | None = None) -> None:
        """`start`: the factor to begin with and its source."""
        self._tracker = PointTracker()
        super().__init__(start, settings)

    def _measure(self, sight: ScaleSight) -> Sample | None:
        points = self._tracker.see(sight)
        if points is None:
            return None
        units, metres, _ = known_points(points.near(), sight)
        return Sample(float(np.median(units / metres)))
