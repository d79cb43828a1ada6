"""The course of a road: s metres along it, d metres to the left of its middle, h above it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEP = 1.0


class Course:
    """A plane curve with elevation; maps road coordinates to the world."""

    def __init__(self, start: float, end: float, bend: np.ndarray, slope: np.ndarray) -> None:
        """Bend (1/m) and slope (rise over run) are sampled evenly from `start` to `end` metres."""
        self.start, self.end = start, end
        self._s = np.arange(start, end + _STEP, _STEP)
        knots = np.linspace(start, end, len(bend))
        curvature = np.interp(self._s, knots, bend)
        rise = np.interp(self._s, np.linspace(start, end, len(slope)), slope)
        # Smooth the corners of the interpolation; the mean slope is left as it is.
        kernel = np.ones(15) / 15
        rise = np.convolve(np.pad(rise, 7, mode="edge"), kernel, mode="valid")
        self._heading = np.cumsum(curvature) * _STEP
        self._heading -= np.interp(0.0, self._s, self._heading)
        self._x = np.cumsum(np.cos(self._heading)) * _STEP
        self._y = np.cumsum(np.sin(self._heading)) * _STEP
        self._z = np.cumsum(rise) * _STEP
        self._rise = rise

    @staticmethod
    def straight(start: float, end: float) -> Course:
        """A straight, level road."""
        return Course(start, end, np.zeros(2), np.zeros(2))

    def points(self, s: np.ndarray, d: np.ndarray, h: np.ndarray) -> np.ndarray:
        """World positions (..., 3) of road coordinates."""
        heading = np.interp(s, self._s, self._heading)
        x = np.interp(s, self._s, self._x) - d * np.sin(heading)
        y = np.interp(s, self._s, self._y) + d * np.cos(heading)
        return np.stack(np.broadcast_arrays(x, y, np.interp(s, self._s, self._z) + h), -1)

    def frame(self, s: float, d: float, h: float = 0.0, yaw: float = 0.0) -> np.ndarray:
        """(4, 4) world_from_object of something standing at (s, d), turned by yaw from the road."""
        heading = float(np.interp(s, self._s, self._heading)) + yaw
        climb = float(np.arctan(np.interp(s, self._s, self._rise))) * np.cos(yaw)
        cos, sin = np.cos(heading), np.sin(heading)
        forward = np.array([cos * np.cos(climb), sin * np.cos(climb), np.sin(climb)])
        left = np.array([-sin, cos, 0.0])
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = forward, left
        matrix[:3, 2] = np.cross(forward, left)
        matrix[:3, 3] = self.points(np.float64(s), np.float64(d), np.float64(h))
        return matrix


@dataclass(frozen=True)
class Band:
    """One strip of the ground beside or on the road, between two offsets from its middle."""

    inner: float
    outer: float
    inner_height: float
    outer_height: float
    kind: str  # texture kind
    layer: int
    tint: float
    tile: float


class Ground:
    """Cross-section of the ground: bands to the left (d > 0) and to the right."""

    def __init__(self, left: list[Band], right: list[Band]) -> None:
        self.left, self.right = left, right

    def height(self, d: float) -> float:
        """Height above the road's middle at offset d."""
        reach = abs(d)
        for band in self.left if d >= 0 else self.right:
            if band.inner <= reach <= band.outer:
                share = (reach - band.inner) / max(band.outer - band.inner, 1e-6)
                return band.inner_height + share * (band.outer_height - band.inner_height)
        return 0.0
