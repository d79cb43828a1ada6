"""Depth metrics.

They and the order of operations follow the evaluation that monocular depth papers share: the
prediction is resized to the truth *as inverse depth*, scaled by the ratio of medians, clamped, and
compared on the valid pixels; metrics are taken per image and then averaged. A prediction must
therefore not be cut to a range before: the cut would depend on its unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, pstdev
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Scaling = Literal["median", "none"]

_LOG_FACTOR = math.log(1.25)
_ERROR_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


class NoValidPixelsError(ValueError):
    """The truth and the prediction share no pixel on which they can be compared."""


@dataclass(frozen=True)
class DepthErrors:
    """Errors of one image (or the mean over several).

    abs_rel and sq_rel are relative to the truth, sq_rel and rmse carry metres, d1..d3 are the
    fractions of pixels within a factor of 1.25, 1.25^2 and 1.25^3 of the truth.
    `ratio` is median(truth) / median(prediction), whether or not it was applied.
    `coverage` is the fraction of the pixels with truth for which there was a prediction (not
    NaN): only those are compared.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    d1: float
    d2: float
    d3: float
    ratio: float
    coverage: float = 1.0

    @property
    def rmse_log10(self) -> float:
        """RMSE of the decimal logarithm, as Make3D is quoted; rmse_log is that of the natural."""
        return self.rmse_log / math.log(10)


def resize_depth(depth: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """Resize depth to (height, width) by interpolating inverse depth bilinearly.

    +inf is a legal depth (inverse depth 0). NaN, zero and negative values are unknown; every
    output pixel with an unknown pixel among its sources is NaN.
    """
    inverse, known = _resized_inverse(depth, height, width)
    resized = np.full((height, width), np.inf)
    np.divide(1.0, inverse, out=resized, where=inverse > 0)
    if known is not None:
        resized[~known] = np.nan
    return resized


def _resized_inverse(
    depth: NDArray[Any], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """Inverse depth (height, width), and where it is known; None for everywhere."""
    depth = depth.astype(np.float64)
    known = np.asarray(depth > 0)  # False for NaN, True for +inf
    whole = bool(known.all())
    inverse = np.zeros(depth.shape, dtype=np.float64)
    np.divide(1.0, depth, out=inverse, where=known)
    if depth.shape == (height, width):
        return inverse, None if whole else known
    size = (width, height)
    inverse = cv2.resize(inverse, size, interpolation=cv2.INTER_LINEAR)
    if whole:
        return inverse, None
    unknown = (~known).astype(np.float64)
    return inverse, np.asarray(cv2.resize(unknown, size, interpolation=cv2.INTER_LINEAR) < 1e-9)


@dataclass(frozen=True)
class ComparedPixels:
    """The pixels of one image that count, as flat arrays: what all its errors are taken from.

    `index` (N,) counts in the flattened truth, `expected` and `predicted` (N,) are metres (the
    latter as predicted, without scaling, +inf = beyond range). `ratio` and `coverage` are those of
    `DepthErrors`; `min_depth` and `max_depth` clamp the prediction.
    """

    index: NDArray[np.int32]
    expected: NDArray[np.float64]
    predicted: NDArray[np.float64]
    ratio: float
    coverage: float
    min_depth: float
    max_depth: float

    def errors(
        self, scaling: Scaling = "median", subset: NDArray[np.bool_] | None = None
    ) -> DepthErrors:
        """The errors, of `subset` (N,) alone where it is given.

        A subset is scaled like the whole image: its own median would hide an error of its own.
        Raises NoValidPixelsError for an empty subset.
        """
        expected, predicted = self.expected, self.predicted
        if subset is not None:
            expected, predicted = expected[subset], predicted[subset]
            if not expected.size:
                raise NoValidPixelsError("nothing to compare in this part of the image")
        if scaling == "median":
            # An infinite median makes the ratio 0, and inf * 0 NaN: far stays far instead.
            scaled = np.full(predicted.shape, np.inf)
            np.multiply(predicted, self.ratio, out=scaled, where=np.isfinite(predicted))
            predicted = scaled
        predicted = np.clip(predicted, self.min_depth, self.max_depth)
        return _errors(predicted, expected, self.ratio, self.coverage)


@dataclass(frozen=True)
class TruthPixels:
    """The pixels of a true depth image that count, found once for any number of predictions.

    `size` is (H, W) of the image, `index` (N,) counts in the flattened image, `expected` (N,) is
    metres. `min_depth` and `max_depth` clamp predictions.
    """

    size: tuple[int, int]
    index: NDArray[np.int32]
    expected: NDArray[np.float32]
    min_depth: float
    max_depth: float

    def compare(self, prediction: NDArray[Any]) -> ComparedPixels:
        """Pair them with a prediction (h, w), resized to the truth's size.

        Any unit under median scaling, metres otherwise; NaN or not positive = unknown, +inf =
        beyond range. Raises NoValidPixelsError where nothing can be compared.
        """
        if prediction.ndim != 2:
            raise ValueError(f"depth images have two axes, got shape {prediction.shape}")
        inverse, known = _resized_inverse(prediction, *self.size)
        index, expected = self.index, self.expected
        if known is not None:
            both = known.reshape(-1)[index]
            index, expected = index[both], expected[both]
        if not index.size:
            there = inverse.size if known is None else int(known.sum())
            raise NoValidPixelsError(
                f"nothing to compare: {self.index.size} pixels with truth, "
                f"{there} with a prediction, none with both"
            )
        chosen = inverse.reshape(-1)[index]
        predicted = np.full(chosen.shape, np.inf)
        np.divide(1.0, chosen, out=predicted, where=chosen > 0)
        true = expected.astype(np.float64)
        return ComparedPixels(
            index=index,
            expected=true,
            predicted=predicted,
            ratio=float(np.median(true) / np.median(predicted)),
            coverage=index.size / self.index.size,
            min_depth=self.min_depth,
            max_depth=self.max_depth,
        )


def _errors(
    predicted: NDArray[np.float64], expected: NDArray[np.float64], ratio: float, coverage: float
) -> DepthErrors:
    difference = predicted - expected
    log_difference = np.log(predicted) - np.log(expected)
    size = np.abs(log_difference)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(difference) / expected)),
        sq_rel=float(np.mean(difference**2 / expected)),
        rmse=float(np.sqrt(np.mean(difference**2))),
        rmse_log=float(np.sqrt(np.mean(log_difference**2))),
        d1=float(np.mean(size < _LOG_FACTOR)),
        d2=float(np.mean(size < 2 * _LOG_FACTOR)),
        d3=float(np.mean(size < 3 * _LOG_FACTOR)),
        ratio=ratio,
        coverage=coverage,
    )


def mean_errors(errors: Sequence[DepthErrors]) -> DepthErrors:
    """The unweighted mean over images. Raises ValueError for an empty sequence."""
    if not errors:
        raise ValueError("the mean of no images is not defined")
    names = asdict(errors[0])
    return DepthErrors(**{name: fmean(getattr(e, name) for e in errors) for name in names})


def summary(errors: Sequence[DepthErrors]) -> dict[str, float | int | None]:
    """One entry of `depth` in metrics.json: the mean errors and `frames`.

    Without frames every error is None. `ratio_median` and `ratio_spread` (standard deviation of
    the ratios over their median) tell how far the scale was off and how much it wandered.
    """
    if not errors:
        empty: dict[str, float | int | None] = dict.fromkeys(_ERROR_NAMES)
        return empty | {"frames": 0, "ratio_median": None, "ratio_spread": None}
    mean = mean_errors(errors)
    entry: dict[str, float | int | None] = {name: getattr(mean, name) for name in _ERROR_NAMES}
    ratios = [e.ratio for e in errors]
    middle = median(ratios)
    entry["frames"] = len(errors)
    entry["ratio_median"] = middle
    entry["ratio_spread"] = pstdev([r / middle for r in ratios]) if middle > 0 else None
    return entry


# Metres; each part counts what is at least its first and below its second bound.
RANGES = ((0, 10), (10, 20), (20, 40), (40, 80))
# A part of an image with fewer pixels says nothing about it.
LEAST_PART = 16


def part_errors(
    pixels: ComparedPixels, scaling: Scaling, moving: NDArray[np.bool_] | None = None
) -> dict[str, DepthErrors]:
    """Errors of the parts of an image, each scaled like the whole: by range, and what moves.

    Keys are "0-10", "10-20", "20-40", "40-80" (metres of truth) and, where `moving` (H, W, at the
    truth's size) is known, "moving" and "static". Parts of fewer than LEAST_PART pixels are absent.
    """
    expected = pixels.expected
    parts = {f"{near}-{far}": (expected >= near) & (expected < far) for near, far in RANGES}
    if moving is not None:
        parts["moving"] = moving.reshape(-1)[pixels.index]
        parts["static"] = ~parts["moving"]
    return {
        name: pixels.errors(scaling, part)
        for name, part in parts.items()
        if int(part.sum()) >= LEAST_PART
    }
