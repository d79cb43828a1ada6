"""Single measurements of the factor in, a factor that never jumps out.

Everything is done in the logarithm of the factor, where twice too large and twice too small are
equally wrong. The median over the last seconds of driving is the target: up to half of the
measurements may be nonsense. The published factor follows it at a limited rate, faster only until
it has arrived for the first time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
