"""Metres of inverse depth that is right up to a factor and a shift.

Inverse depth in metres is gain (w + shift) of a network's w. The two are measured together, by the
road (`RoadLine`) or by followed points (`TrackedLine`).

Gain and shift may be others in every picture, so measurements of several cannot be compared as
they are. What a frame's w is in terms of the frame before, the depth of both tells (`Chain`): seen
from a vehicle a street looks alike from frame to frame. In those terms the measurements are
filtered, as what they say of two places, one near and one far: factor and shift themselves go
together, so that the median of each would not be that of a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.scale.measured import (
    FactorFilter,
    FilterSettings,
    MeasuredScale,
    NothingMeasuredError,
    Sample,
    checked_height,
    seen_depth,
)
from depth_prior_ros.scale.road import (
    Line,
    NoRoadError,
    RoadSettings,
    fit_affine_road,
    fit_both,
    fit_line,
)
from depth_prior_ros.scale.state import (
    FixedScale,
    ScaleMode,
    ScaleSight,
    ScaleStatus,
    stored_factor,
)
from depth_prior_ros.scale.tracks import PointTracker, known_points

_FAR, _NEAR = 1.0, 2.0  # the two places, 1/units: those of `models.imported.gauge`
_ERROR = 0.12  # relative error of a network's inverse depth that a followed point may have
_LEAST = 0.01  # 1/m, the same for far ones
_MIN_SHARE = 0.4
_GRID = 1200  # pixels at which two frames are compared
_LEAK = 1e-3
_WINDOW = 3.0  # seconds: longer the chain may not hold


@dataclass(frozen=True)
class AffineStart:
    """Where a search begins: metres per unit, and the shift in 1/units."""

    factor: FixedScale
    shift: float


@dataclass(frozen=True)
class AffineSample(Sample):
    """Of what is near; `ratio`: e to the power of far over near, both in 1/m."""

    ratio: float = 1.0


class Measure(Protocol):
    """Measures inverse depth in 1/m over a network's."""

    mode: ScaleMode

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`."""

    def __call__(self, sight: ScaleSight) -> Line | None:
        """1/m = gain w + offset; None: not this frame's turn. Raises NothingMeasuredError."""


class RoadLine:
    """The road lies a known height below the camera, whose pitch is known, too."""

    mode: ScaleMode = "camera_height"

    def __init__(self, camera_height: float | None, road: RoadSettings | None = None) -> None:
        """`camera_height`: metres, as of `CameraHeightScale`; raises ValueError as that does."""
        self.camera_height = None if camera_height is None else checked_height(camera_height)
        self._road = road or RoadSettings()

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Measure`."""
        self.camera_height, self._road = camera_height, road

    def __call__(self, sight: ScaleSight) -> Line:
        """See `Measure`."""
        height = self.camera_height
        if height is None:
            raise NothingMeasuredError("where the camera sits is not known")
        try:
            road = fit_affine_road(seen_depth(sight), sight.camera, self._road)
        except NoRoadError as error:
            raise NothingMeasuredError(str(error)) from error
        return Line(road.gain / height, road.offset / height, road.share)


class TrackedLine:
    """Depth of points that are followed from picture to picture, by odometry's metres."""

    mode: ScaleMode = "odometry"

    def __init__(self) -> None:
        self._tracker = PointTracker()

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """Of no use."""

    def __call__(self, sight: ScaleSight) -> Line | None:
        """See `Measure`."""
        points = self._tracker.see(sight)
        if points is None:
            return None
        units, metres, sigma = known_points(points, sight)

        def tolerance(gain: Any, _: Any) -> Any:
            at = np.maximum(metres, _LEAST / _ERROR)
            return 2.5 * gain * np.hypot(sigma, _ERROR * at)

        try:  # The points are exact beside the network: its depth by theirs, not theirs by it.
            line = fit_line(metres, units, tolerance)
        except ValueError as error:
            raise NothingMeasuredError("the followed points contradict the depth") from error
        if line.share < _MIN_SHARE:
            raise NothingMeasuredError(f"{line.share:.0%} of the followed points fit the depth")
        return Line(1 / line.gain, -line.offset / line.gain, line.share)


class Chain:
    """What a frame's inverse depth w is in terms of the frames before: r = gain w + offset.

    Errors of the steps add up, so r is drawn to w itself by a thousandth with each; the filters
    follow that.
    """

    def __init__(self) -> None:
        self.line = Line(1.0, 0.0, 1.0)
        self._before: NDArray[np.float64] | None = None

    def follow(self, inverse: NDArray[np.floating]) -> bool:
        """Go on with a frame's w (h, w); False where it does not look like the one before."""
        step = max(1, round(math.sqrt(inverse.size / _GRID)))
        values = np.asarray(inverse[::step, ::step], np.float64)
        before, line = self._before, None
        if before is not None and before.shape == values.shape:
            known = np.isfinite(before) & np.isfinite(values)
            if known.sum() >= _GRID // 10:
                line = _alike(values[known], before[known])
        going_on = line is not None
        self.line = line or Line(1.0, 0.0, 1.0)
        self._before = self.line.gain * values + self.line.offset
        return going_on


def _alike(values: NDArray[np.float64], before: NDArray[np.float64]) -> Line | None:
    """The line from a frame's w (n,) to what the frame before was at the same pixels (n,)."""

    try:
        line = fit_both(values, before, lambda at: 0.03 + 0.08 * np.maximum(at - _FAR, 0))
    except ValueError:
        return None
    if line.share < _MIN_SHARE:
        return None
    return Line((1 - _LEAK) * line.gain + _LEAK, (1 - _LEAK) * line.offset, line.share)


class AffineScale(MeasuredScale):
    """A factor and a shift that are measured while the vehicle drives. Thread-safe."""

    needs_depth: ClassVar[bool] = True

    def __init__(
        self, start: AffineStart, measure: Measure, settings: FilterSettings | None = None
    ) -> None:
        """`start`: where the search begins. `measure`: what each frame says."""
        self.mode = measure.mode  # type: ignore[misc]
        self._take = measure
        self._chain = Chain()
        settings = settings or FilterSettings()
        # The chain drifts, too: to follow it takes the rate that else is for arriving.
        settings = replace(settings, window=min(settings.window, _WINDOW), rate=settings.first_rate)
        near = start.factor.metres_per_unit / (_NEAR + start.shift)
        ratio = (_FAR + start.shift) / (_NEAR + start.shift)
        # Its logarithm is the ratio: what moves by 5 % there moves by 0.05 here.
        self._ratios = FactorFilter(math.exp(ratio), replace(settings, limit=10.0))
        super().__init__(FixedScale(near, start.factor.source), settings)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`."""
        self._take.mount(camera_height, road)

    def _see(self, sight: ScaleSight) -> None:
        if sight.inverse_units is not None and not self._chain.follow(sight.inverse_units):
            self._forget()

    def _forget(self) -> None:
        """What was measured is of no use for a frame unlike those before; begin near it."""
        for values in (self._filter, self._ratios):
            values.take_up(values.factor, None, False)

    def _measure(self, sight: ScaleSight) -> Sample | None:
        found, told = self._take(sight), self._chain.line
        if found is None:
            return None
        gain = found.gain / told.gain
        line = Line(gain, found.offset - gain * told.offset, found.share)
        near, far = line.gain * _NEAR + line.offset, line.gain * _FAR + line.offset
        if not (near > 0 and far < near):
            raise NothingMeasuredError("what is near would lie beyond infinity")
        ratio = math.exp(max(far / near, -2.0))
        if not self._ratios.plausible(ratio):
            raise NothingMeasuredError("what is far would lie as near as the rest")
        return AffineSample(1 / near, line.share, ratio)

    def _advance(self, seconds: float, sample: Sample | None) -> None:
        """Both by the same measurements, at the same time."""
        super()._advance(seconds, sample)
        ratio = sample.ratio if isinstance(sample, AffineSample) else None
        self._ratios.advance(seconds, ratio, 1.0 if sample is None else sample.weight)

    def _place(self) -> tuple[float, float]:
        """Metres per unit and shift, of what both filters say."""
        near, ratio = 1 / self._filter.factor, min(math.log(self._ratios.factor), 0.95)
        gain = near * (1 - ratio) / (_NEAR - _FAR)
        told = self._chain.line
        shift = (told.offset + near / gain - _NEAR) / told.gain
        return 1 / (gain * told.gain), shift

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._ratios.reset()
            self._chain = Chain()
        super().reset()

    def store(self) -> dict[str, Any]:
        """The factor and the shift as plain data."""
        return {**super().store(), "shift": self._status.shift}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Begin with a stored factor and shift; what another picture had is no measurement here.

        Raises ValueError as `MeasuredScale.restore`.
        """
        shift, factor = stored.get("shift"), stored_factor(stored)
        number = isinstance(shift, float) and math.isfinite(shift) and shift > -_NEAR
        if not number:
            raise ValueError(f"shift must be a number above {-_NEAR:g}, got {shift!r}")
        assert isinstance(shift, float)
        exponent = (_FAR + shift) / (_NEAR + shift)
        ratio = math.exp(exponent) if abs(exponent) < 100 else 0.0
        if not (ratio > 0 and self._ratios.plausible(ratio)):
            raise ValueError(f"shift {shift:g} is none that was measured")
        begun = {**stored, "metres_per_unit": factor / (_NEAR + shift), "state": "searching"}
        super().restore(begun)
        with self._lock:
            self._chain = Chain()
            self._ratios.take_up(ratio, None, False)
            self._status = self._describe("stored in an earlier run")

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        status = super()._describe(why, standing)
        factor, shift = self._place()
        near = f"{status.metres_per_unit:.4g} m per unit"
        words = status.text.replace(near, f"{factor:.4g} m per unit, shift {shift:.3g}")
        return replace(status, metres_per_unit=factor, shift=shift, text=words)
