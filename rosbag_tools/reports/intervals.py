"""Differences between two results with the uncertainty that a recording of this length leaves.

Frames that follow each other are alike, so spans of them are drawn, not frames: the moving-block
bootstrap (Kuensch, 1989), here circular (Politis and Romano, 1992), its block length that of an
autoregressive process of the same correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEAST = 20
"""Frames below which nothing is said about the uncertainty."""

_SHARE = 0.95
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of values (draws, n) along the last axis."""


@dataclass(frozen=True)
class Difference:
    """A figure of two results on the same frames: `second` minus `first`, from `low` to `high`.

    low and high bound the difference with 95 % confidence; None for too few frames.
    """

    first: float
    second: float
    frames: int
    low: float | None = None
    high: float | None = None

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first

    @property
    def sign(self) -> int:
        """-1: smaller for certain, 1: larger for certain, 0: it may be chance."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A `Statistic`."""
    return np.asarray(values.mean(axis=-1))


def percentile_95(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A `Statistic`."""
    return np.asarray(np.percentile(values, 95, axis=-1))


def difference(
    first: NDArray[Any], second: NDArray[Any], statistic: Statistic = mean, seed: int = 0
) -> Difference:
    """Compare values (n,) of two results on the same n frames, in the order of time."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    found = float(statistic(a)), float(statistic(b))
    n = a.size
    if n < LEAST:
        return Difference(*found, n)
    block = block_length(b - a)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(10):  # a tenth at a time: of 10,000 frames all would be 160 MB
        starts = generator.integers(0, n, (DRAWS // 10, -(-n // block)))
        places = (starts[..., None] + np.arange(block)).reshape(DRAWS // 10, -1)[:, :n] % n
        drawn.append(statistic(b[places]) - statistic(a[places]))
    tail = 100 * (1 - _SHARE) / 2
    low, high = map(float, np.percentile(np.concatenate(drawn), [tail, 100 - tail]))
    # Few blocks tell their own spread badly, as few measurements do (Student).
    from scipy.stats import norm, t

    wider = float(t.ppf((1 + _SHARE) / 2, max(2, n / block - 1)) / norm.ppf((1 + _SHARE) / 2))
    value = found[1] - found[0]
    return Difference(*found, n, value + (low - value) * wider, value + (high - value) * wider)


def block_length(values: NDArray[np.float64]) -> int:
    """Frames of a block, for values (n,): twice what is best for the variance of their mean."""
    centred = values - values.mean()
    power = float(centred @ centred)
    correlation = float(centred[1:] @ centred[:-1]) / power if power > 0 else 0.0
    r = min(max(correlation, 0.0), 0.98)
    best = (6 * r**2 / (1 - r**2) ** 2 * values.size) ** (1 / 3)
    return max(1, min(math.ceil(2 * best), values.size // 4))
