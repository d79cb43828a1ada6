"""A straight line through points of which many are wrong.

Least squares hold x for exact. Where it is not, the slope comes out too small (Fuller, Measurement
Error Models, 1987, section 1.1): which of the two is the exact one has to be said, or that neither
is (`fit_both`).

MSAC (Torr and Zisserman, 2000) over pairs of points: outliers cost the same however far off they
are; then least squares on what agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
