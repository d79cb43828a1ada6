"""Metres of inverse depth that is right up to a factor and a shift.

Inverse depth in metres is gain (w + shift) of a network's w. The two are measured together, by the
road (`RoadLine`) or by followed points (`TrackedLine`), and filtered as what they say of two
places, one near and one far: the factor and the shift themselves go together, so that the median
of each would not be that of a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from depth_prior_ros.scale.filter import FactorFilter, FilterSettings
from depth_prior_ros.scale.lines import Line, fit_line
from depth_prior_ros.scale.measured import (
    MeasuredScale,
    NothingMeasuredError,
    Sample,
    checked_height,
    seen_depth,
)
from depth_prior_ros.scale.road import NoRoadError, RoadSettings, fit_affine_road
from depth_prior_ros.scale.state import FixedScale, ScaleMode, ScaleSight, ScaleStatus
from depth_prior_ros.scale.tracks import PointTracker, known_points

_FAR, _NEAR = 1.0, 2.0  # the two places, 1/units: those of `models.imported.gauge`
_ERROR = 0.12  # relative error of a network's inverse depth that a followed point may have
_LEAST = 0.01  # 1/m, the same for far ones
_MIN_SHARE = 0.4


@dataclass(frozen=True)
class AffineStart:
    """Where a search begins: metres per unit, and the shift in 1/units."""

    factor: FixedScale
    shift: float


class Measure(Protocol):
    """Measures inverse depth in 1/m over a network's."""

    mode: ScaleMode

    def __call__(self, sight: ScaleSight) -> Line:
        """1/m = gain w + offset. Raises NothingMeasuredError."""


class RoadLine:
    """The road lies a known height below the camera, whose pitch is known, too."""

    mode: ScaleMode = "camera_height"

    def __init__(self, camera_height: float, road: RoadSettings | None = None) -> None:
        """`camera_height`: metres. Raises ValueError as `CameraHeightScale`."""
        self.camera_height = checked_height(camera_height)
        self._road = road or RoadSettings()

    def __call__(self, sight: ScaleSight) -> Line:
        """See `Measure`."""
        try:
            shift, road = fit_affine_road(seen_depth(sight), sight.camera, self._road)
        except NoRoadError as error:
            raise NothingMeasuredError(str(error)) from error
        gain = road.height / self.camera_height
        return Line(gain, gain * shift, road.share)


class TrackedLine:
    """Depth of points that are followed from picture to picture, by odometry's metres."""

    mode: ScaleMode = "odometry"

    def __init__(self) -> None:
        self._tracker = PointTracker()

    def __call__(self, sight: ScaleSight) -> Line:
        """See `Measure`."""
        units, metres, sigma = known_points(self._tracker.see(sight), sight)

        def tolerance(gain: Any, offset: Any) -> Any:
            at = np.maximum(gain * units + offset, _LEAST / _ERROR)
            return 2.5 * np.hypot(sigma, _ERROR * at)

        try:
            line = fit_line(units, metres, tolerance)
        except ValueError as error:
            raise NothingMeasuredError("the followed points contradict the depth") from error
        if line.share < _MIN_SHARE:
            raise NothingMeasuredError(f"{line.share:.0%} of the followed points fit the depth")
        return line


class AffineScale(MeasuredScale):
    """A factor and a shift that are measured while the vehicle drives. Thread-safe."""

    needs_depth: ClassVar[bool] = True

    def __init__(
        self, start: AffineStart, measure: Measure, settings: FilterSettings | None = None
    ) -> None:
        """`start`: where the search begins. `measure`: what each frame says."""
        self.mode = measure.mode  # type: ignore[misc]
        self._take = measure
        settings = settings or FilterSettings()
        near = start.factor.metres_per_unit / (_NEAR + start.shift)
        ratio = (_FAR + start.shift) / (_NEAR + start.shift)
        # Its logarithm is the ratio: what moves by 5 % there moves by 0.05 here.
        self._ratios = FactorFilter(math.exp(ratio), replace(settings, limit=10.0))
        super().__init__(FixedScale(near, start.factor.source), settings)

    def _measure(self, sight: ScaleSight) -> Sample:
        line = self._take(sight)
        near, far = line.gain * _NEAR + line.offset, line.gain * _FAR + line.offset
        if not (near > 0 and far < near):
            raise NothingMeasuredError("what is near would lie beyond infinity")
        sample = Sample(1 / near, line.share)
        ratio = math.exp(max(far / near, -2.0))
        if self._filter.plausible(sample.factor) and self._ratios.plausible(ratio):
            self._ratios.advance(self._elapsed(sight), ratio, line.share)
        return sample

    def _elapsed(self, sight: ScaleSight) -> float:
        return max(0.0, sight.seconds or 0.0)

    def _place(self) -> tuple[float, float]:
        """Metres per unit and shift, of what both filters say."""
        near, ratio = 1 / self._filter.factor, min(math.log(self._ratios.factor), 0.95)
        gain = near * (1 - ratio) / (_NEAR - _FAR)
        return 1 / gain, near / gain - _NEAR

    def reset(self) -> None:
        """Begin anew."""
        self._ratios.reset()
        super().reset()

    def store(self) -> dict[str, Any]:
        """The factor and the shift as plain data."""
        return {**super().store(), "shift": self._status.shift}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor and shift. Raises ValueError as `MeasuredScale.restore`."""
        shift, factor = stored.get("shift"), stored.get("metres_per_unit")
        number = isinstance(shift, float) and math.isfinite(shift) and shift > -_NEAR
        if not number or not isinstance(factor, (int, float)):
            raise ValueError(f"shift must be a number above {-_NEAR:g}, got {shift!r}")
        assert isinstance(shift, float)
        ratio = (_FAR + shift) / (_NEAR + shift)
        super().restore({**stored, "metres_per_unit": factor / (_NEAR + shift)})
        measured = self._filter.arrived
        with self._lock:
            self._ratios.take_up(math.exp(ratio), None, measured)
            self._status = self._describe("stored in an earlier run")

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        status = super()._describe(why, standing)
        factor, shift = self._place()
        near = f"{status.metres_per_unit:.4g} m per unit"
        words = status.text.replace(near, f"{factor:.4g} m per unit, shift {shift:.3g}")
        return replace(status, metres_per_unit=factor, shift=shift, text=words)
