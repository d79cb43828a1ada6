"""Factors that are measured while the vehicle drives.

Single measurements go into a filter, and out of it comes a factor that never jumps. Everything is
done in the logarithm of the factor, where twice too large and twice too small are equally wrong.
The median over the last seconds of driving is the target: up to half of the measurements may be
nonsense. The published factor follows it at a limited rate, faster only until it has arrived for
the first time.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.scale.road import NoRoadError, RoadSettings, fit_road
from depth_prior_ros.scale.state import (
    FixedScale,
    ScaleMode,
    ScaleSight,
    ScaleState,
    ScaleStatus,
    stored_factor,
)

_MAD_TO_SIGMA = 1.4826  # median absolute deviation to standard deviation, for a normal distribution
_ARRIVED = 0.01  # relative distance from the target that counts as having arrived
_AS_GOOD = 500  # one measurement among this many more or less leaves the median where it is
_LONGEST_STEP = 0.2  # seconds: a frame after a longer pause moves the factor no further than this


@dataclass(frozen=True)
class FilterSettings:
    """How measurements become the published factor.

    window: seconds of driving over which the median is taken; standing does not count.
    min_samples: measurements in the window before anything is believed.
    first_rate, rate: largest relative change per second before and after the factor has arrived at
        the measurements for the first time. A frame interval counts as 0.2 s at most.
    limit: measurements further from the starting factor than this ratio are left out.

    Raises ValueError for values that make no sense.
    """

    window: float = 10.0
    min_samples: int = 5
    first_rate: float = 0.3
    rate: float = 0.05
    limit: float = 10.0

    def __post_init__(self) -> None:
        numbers = (self.window, self.first_rate, self.rate)
        if not all(math.isfinite(v) and v > 0 for v in numbers):
            raise ValueError(f"window and rates must be finite and positive, got {numbers}")
        if self.min_samples < 1:
            raise ValueError(f"min_samples must be at least 1, got {self.min_samples}")
        if self.rate > self.first_rate:
            raise ValueError(
                f"rate must not exceed first_rate, got {self.rate} and {self.first_rate}"
            )
        if not (math.isfinite(self.limit) and self.limit > 1):
            raise ValueError(f"limit must be finite and above 1, got {self.limit}")


class FactorFilter:
    """A window of measurements and the factor that follows their median. Not thread-safe."""

    def __init__(self, start: float, settings: FilterSettings) -> None:
        """`start`: the factor to begin with, and the middle of what is plausible."""
        self.settings = settings
        self._start = start
        self.reset()

    def reset(self) -> None:
        """As at the start."""
        self._factor = self._start
        self._arrived = False
        self._clock = 0.0
        self._window: deque[tuple[float, float, float]] = deque()  # clock, log factor, weight
        self._target: float | None = None
        self._since = 0  # frames since the median was taken
        self._spread: float | None = None

    @property
    def factor(self) -> float:
        """The factor to publish."""
        return self._factor

    @property
    def samples(self) -> int:
        """Measurements in the window."""
        return len(self._window)

    @property
    def enough(self) -> bool:
        """Whether the window holds enough to be believed."""
        return len(self._window) >= self.settings.min_samples

    @property
    def arrived(self) -> bool:
        """Whether the factor has been at the measurements, here or in the run it was taken from."""
        return self._arrived

    @property
    def spread(self) -> float | None:
        """Robust relative standard deviation of single measurements; None before there are any."""
        return self._spread

    def plausible(self, factor: float) -> bool:
        """Whether a measurement is finite, positive and within the limit."""
        if not (math.isfinite(factor) and factor > 0):
            return False
        return abs(math.log(factor / self._start)) <= math.log(self.settings.limit)

    def take_up(self, factor: float, spread: float | None, arrived: bool) -> None:
        """Go on from a factor that was measured before; the window is empty."""
        self.reset()
        self._factor = factor
        self._spread = spread
        self._arrived = arrived

    def snapshot(self) -> dict[str, Any]:
        """All of it, as plain data."""
        names = ("factor", "arrived", "clock", "target", "since", "spread")
        kept = {name: getattr(self, f"_{name}") for name in names}
        return {**kept, "window": [list(entry) for entry in self._window]}

    def resume(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`."""
        for name, value in snapshot.items():
            setattr(self, f"_{name}", value)
        self._window = deque((clock, log, weight) for clock, log, weight in snapshot["window"])

    def advance(self, seconds: float, factor: float | None, weight: float = 1.0) -> None:
        """A frame later: add its measurement, if it made one, and move towards the median.

        seconds: of driving since the frame before. factor: plausible. weight: positive; more than
        the usual one of the window counts as that.
        """
        self._clock += seconds
        if factor is not None:
            self._window.append((self._clock, math.log(factor), weight))
        while self._window and self._window[0][0] < self._clock - self.settings.window:
            self._window.popleft()
        if not self.enough:
            self._target = None
            return
        target = self._median()
        rate = self.settings.rate if self._arrived else self.settings.first_rate
        step = rate * min(seconds, _LONGEST_STEP)
        away = target - math.log(self._factor)
        self._factor *= math.exp(min(max(away, -step), step))
        if abs(away) < max(step, _ARRIVED):
            self._arrived = True

    def _median(self) -> float:
        """Of the window, and its spread; of a long window not with every frame, as that takes time.

        The window has changed by a 500th at most.
        """
        self._since += 1
        if self._target is None or self._since > len(self._window) // _AS_GOOD:
            self._target, self._spread = _weighted(self._window)
            self._since = 0
        return self._target


def _weighted(window: deque[tuple[float, float, float]]) -> tuple[float, float]:
    """Weighted median of the log factors, and their robust standard deviation about it.

    Weights are cut at their median: a step that odometry took for ten times as long as it was would
    else count as ten.
    """
    table = np.asarray(window)
    values, weights = table[:, 1], np.minimum(table[:, 2], np.median(table[:, 2]))
    middle = weighted_median(values, weights)
    return middle, _MAD_TO_SIGMA * weighted_median(np.abs(values - middle), weights)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value (n,) with half of the weight (n,) on either side; the mean of two if it is even."""
    order = np.argsort(values, kind="stable")
    values, total = values[order], np.cumsum(weights[order])
    half = total[-1] / 2
    low = int(np.searchsorted(total, half * (1 - 1e-12)))
    high = int(np.searchsorted(total, half * (1 + 1e-12)))
    return float(values[low] + values[min(high, len(values) - 1)]) / 2


_MIN_STEP = 0.1  # metres between two frames; shorter ones are mostly noise
_LEVER = 2.0  # metres between odometry's reference point and a camera
_MAX_SWING = 0.3  # of a step that may come from turning about that point: 5 % of its length


@dataclass(frozen=True)
class Sample:
    """A measured factor, metres per unit, and how much it counts."""

    factor: float
    weight: float = 1.0


class NothingMeasuredError(Exception):
    """A frame that measures nothing; the message says why."""


class MeasuredScale:
    """What both measured modes share: the filter, the states, storing. Thread-safe."""

    mode: ClassVar[ScaleMode]
    needs_depth: ClassVar[bool] = False
    needs_travel: ClassVar[bool] = False

    def __init__(self, start: FixedScale, settings: FilterSettings | None = None) -> None:
        """`start`: the factor to begin with and its source."""
        self._start = start
        self._filter = FactorFilter(start.metres_per_unit, settings or FilterSettings())
        self._lock = threading.Lock()
        self._first = start.source
        self._why = "nothing measured yet"
        self._status = self._describe(self._why)

    @property
    def metres_per_unit(self) -> float:
        """The factor in use."""
        return self._status.metres_per_unit

    @property
    def source(self) -> str:
        """The status in words."""
        return self._status.text

    @property
    def status(self) -> ScaleStatus:
        """Mode, state, factor and spread of this moment."""
        return self._status

    def observe(self, sight: ScaleSight) -> None:
        """Learn from a frame; see `Scale.observe`."""
        with self._lock:
            self._see(sight)
            if not sight.moving:
                self._status = self._describe("the vehicle stands", standing=True)
                return
            known = sight.seconds is not None and math.isfinite(sight.seconds)
            seconds = max(0.0, sight.seconds) if known and sight.seconds is not None else 0.0
            sample = None
            if sight.looked:
                try:
                    sample = self._measure(sight)
                    if sample is not None:
                        self._why, sample = "", self._plausible(sample)
                except NothingMeasuredError as error:
                    self._why, sample = str(error), None
            self._advance(seconds, sample)
            self._status = self._describe(self._why)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`; of no use to most."""

    def reset(self) -> None:
        """Begin anew with the factor that was given at the start."""
        with self._lock:
            self._filter.reset()
            self._first = self._start.source
            self._status = self._describe("reset")

    def store(self) -> dict[str, Any]:
        """The factor as plain data."""
        return self._status.stored()

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor: as measured if it was, else as one to begin with.

        Raises ValueError for what `store` cannot have written, or a factor beyond the limit.
        """
        factor, spread = stored_factor(stored), stored.get("spread")
        with self._lock:
            if not self._filter.plausible(factor):
                raise ValueError(
                    f"the stored factor {factor:.4g} is more than "
                    f"{self._filter.settings.limit:g} times off the given one"
                )
            measured = stored.get("state") in ("measured", "held")
            self._filter.take_up(factor, spread if measured else None, measured)
            self._first = "stored"
            self._status = self._describe("stored in an earlier run")

    def _see(self, sight: ScaleSight) -> None:
        """A frame has come, also of a vehicle that stands."""

    def snapshot(self) -> dict[str, Any]:
        """All that was measured, as plain data, to go on from exactly; see `resume`."""
        with self._lock:
            return {"filter": self._filter.snapshot(), "why": self._why}

    def resume(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from the `snapshot` of a scale with the same settings."""
        with self._lock:
            self._filter.resume(snapshot["filter"])
            self._why = snapshot["why"]
            self._status = self._describe(self._why)

    def _measure(self, sight: ScaleSight) -> Sample | None:
        """The factor as this frame sees it; None: not this frame's turn. Raises
        NothingMeasuredError."""
        raise NotImplementedError

    def _advance(self, seconds: float, sample: Sample | None) -> None:
        """A frame later, of a vehicle that drives."""
        if sample is None:
            self._filter.advance(seconds, None)
        else:
            self._filter.advance(seconds, sample.factor, sample.weight)

    def _plausible(self, sample: Sample) -> Sample:
        if not self._filter.plausible(sample.factor):
            raise NothingMeasuredError(f"implausible: {sample.factor:.3g} m per unit")
        return sample

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        state: ScaleState = "searching"
        if self._filter.arrived:
            state = "measured" if self._filter.enough and not standing else "held"
        factor, spread, samples = self._filter.factor, self._filter.spread, self._filter.samples
        words = f"{factor:.4g} m per unit, {state} by {self.mode}"
        if not self._filter.arrived:
            words += f", begun with {self._first}"
        if spread is not None:
            words += f", spread {spread:.1%}, {samples} samples"
        if why:
            words += f" ({why})"
        return ScaleStatus(self.mode, state, factor, spread, samples, words)


class CameraHeightScale(MeasuredScale):
    """The road plane lies a known height below the camera."""

    mode: ClassVar[ScaleMode] = "camera_height"
    needs_depth: ClassVar[bool] = True

    def __init__(
        self,
        start: FixedScale,
        camera_height: float | None,
        settings: FilterSettings | None = None,
        road: RoadSettings | None = None,
    ) -> None:
        """`camera_height`: metres from the road to the camera's optical centre; None: not known
        until `mount` tells it.

        Raises ValueError for a height that is not finite and positive.
        """
        self.camera_height = None if camera_height is None else checked_height(camera_height)
        self._road = road or RoadSettings()
        super().__init__(start, settings)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`; while the height is not known nothing is measured."""
        self.camera_height, self._road = camera_height, road

    def _measure(self, sight: ScaleSight) -> Sample:
        height = self.camera_height
        if height is None:
            raise NothingMeasuredError("where the camera sits is not known")
        try:
            road = fit_road(seen_depth(sight), sight.camera, self._road)
        except NoRoadError as error:
            raise NothingMeasuredError(str(error)) from error
        return Sample(height / road.height, road.share)


class OdometryScale(MeasuredScale):
    """The step between two frames as odometry measured it, over the same step as networks see it.

    Steps count by their length, as short ones are mostly noise; long ones like the usual one.
    """

    mode: ClassVar[ScaleMode] = "odometry"
    needs_travel: ClassVar[bool] = True

    def _measure(self, sight: ScaleSight) -> Sample:
        metres, units = known_way(sight), sight.units_travelled
        if units is None or not math.isfinite(units) or units <= 0:
            raise NothingMeasuredError("the networks saw no motion")
        if metres < _MIN_STEP:
            raise NothingMeasuredError(f"steps below {_MIN_STEP} m are too short")
        check_swing(metres, sight.radians_turned)
        return Sample(metres / units, metres)


def known_way(sight: ScaleSight) -> float:
    """Metres since the frame before. Raises NothingMeasuredError without odometry."""
    metres = sight.metres_travelled
    if metres is None or not math.isfinite(metres):
        raise NothingMeasuredError("no odometry")
    return abs(metres)


def check_swing(metres: float, turned: float | None) -> None:
    """Raise NothingMeasuredError for a way (m) that may well be due to a turn (radians)."""
    if turned is not None and abs(turned) * _LEVER > _MAX_SWING * metres:
        raise NothingMeasuredError("the vehicle turns on the spot")


def seen_depth(sight: ScaleSight) -> NDArray[np.floating]:
    """Inverse depth of the camera's size. Raises NothingMeasuredError without it."""
    if sight.inverse_units is None:
        raise NothingMeasuredError("no depth of this frame")
    if sight.inverse_units.shape != (sight.camera.height, sight.camera.width):
        raise NothingMeasuredError("the depth is not of the camera's size")
    return sight.inverse_units


def checked_height(camera_height: float) -> float:
    """The height itself. Raises ValueError for one that is not finite and positive."""
    if not (math.isfinite(camera_height) and camera_height > 0):
        raise ValueError(f"camera_height must be finite and positive, got {camera_height}")
    return camera_height


class AutoScale(OdometryScale):
    """Odometry where there is some; until then the given factor, without a word of doubt."""

    mode: ClassVar[ScaleMode] = "auto"

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor, if it was measured."""
        if stored.get("state") != "fixed":
            super().restore(stored)

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        known = super()._describe(why, standing)
        if known.samples or known.state != "searching":
            return known
        words = f"{known.metres_per_unit:.4g} m per unit: {self._first}"
        if why:
            words += f" ({why})"
        return replace(known, state="fixed", spread=None, text=words)
