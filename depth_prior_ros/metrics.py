"""Depth metrics and the protocols (range, crop, scaling) under which they are quoted.

The metrics and the order of operations follow the evaluation that monocular depth papers share:
the prediction is resized to the truth *as inverse depth*, scaled by the ratio of medians,
clamped, and compared on the valid pixels; metrics are taken per image and then averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, pstdev
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Crop = Literal["garg"]
Scaling = Literal["median", "none"]

_ERROR_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


class NoValidPixelsError(ValueError):
    """The truth and the prediction share no pixel on which they can be compared."""


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with the truth of one data set.

    `min_depth` and `max_depth` (metres) bound the truth that counts and clamp the prediction.
    """

    name: str
    min_depth: float
    max_depth: float
    crop: Crop | None
    scaling: Scaling

    def errors(self, prediction: NDArray[Any], truth: NDArray[Any]) -> DepthErrors:
        """`depth_errors` under this protocol."""
        return depth_errors(
            prediction,
            truth,
            min_depth=self.min_depth,
            max_depth=self.max_depth,
            crop=self.crop,
            scaling=self.scaling,
        )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # KITTI 2015 scene flow: depth from published disparity; dense enough to need no crop.
        Protocol("kitti2015", 1e-3, 80.0, None, "median"),
        # Eigen et al.: projected LiDAR, Garg's crop, 80 m.
        Protocol("eigen", 1e-3, 80.0, "garg", "median"),
        # The accumulated LiDAR of KITTI's depth benchmark: no crop in the peers' code.
        Protocol("eigen_improved", 1e-3, 80.0, None, "median"),
        # Rendered drives: exact everywhere.
        Protocol("synthetic", 1e-3, 80.0, None, "median"),
        # As published by the node: metres are taken at their word.
        Protocol("metric", 1e-3, 80.0, None, "none"),
    )
}


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


def garg_mask(height: int, width: int) -> NDArray[np.bool_]:
    """The crop of Garg et al. as a (height, width) mask; True inside."""
    mask = np.zeros((height, width), dtype=bool)
    top, bottom = int(0.40810811 * height), int(0.99189189 * height)
    left, right = int(0.03594771 * width), int(0.96405229 * width)
    mask[top:bottom, left:right] = True
    return mask


def resize_depth(depth: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """Resize depth to (height, width) by interpolating inverse depth bilinearly.

    +inf is a legal depth (inverse depth 0). NaN, zero and negative values are unknown; every
    output pixel with an unknown pixel among its sources is NaN.
    """
    depth = depth.astype(np.float64)
    known = depth > 0  # False for NaN, True for +inf
    inverse = np.zeros(depth.shape, dtype=np.float64)
    np.divide(1.0, depth, out=inverse, where=known)
    if depth.shape != (height, width):
        size = (width, height)
        inverse = cv2.resize(inverse, size, interpolation=cv2.INTER_LINEAR)
        unknown = (~known).astype(np.float64)
        known = cv2.resize(unknown, size, interpolation=cv2.INTER_LINEAR) < 1e-9
    resized = np.full((height, width), np.inf)
    np.divide(1.0, inverse, out=resized, where=inverse > 0)
    resized[~known] = np.nan
    return resized


def depth_errors(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    min_depth: float = 1e-3,
    max_depth: float = 80.0,
    crop: Crop | None = None,
    scaling: Scaling = "median",
) -> DepthErrors:
    """Compare a predicted depth image with the truth.

    prediction: (h, w), any unit under median scaling, metres otherwise; NaN or not positive =
    unknown, +inf = beyond range. truth: (H, W) metres, 0 = none. Truth outside
    min_depth..max_depth does not count, the scaled prediction is clamped to that range.
    Raises NoValidPixelsError where nothing can be compared.
    """
    if prediction.ndim != 2 or truth.ndim != 2:
        raise ValueError(
            f"depth images have two axes, got shapes {prediction.shape} and {truth.shape}"
        )
    height, width = truth.shape
    wanted = (truth > min_depth) & (truth < max_depth)
    if crop == "garg":
        wanted &= garg_mask(height, width)
    resized = resize_depth(prediction, height, width)
    compared = wanted & ~np.isnan(resized)
    if not compared.any():
        raise NoValidPixelsError(
            f"nothing to compare: {int(wanted.sum())} pixels with truth, "
            f"{int((~np.isnan(resized)).sum())} with a prediction, none with both"
        )
    expected = truth[compared].astype(np.float64)
    predicted = resized[compared]
    ratio = float(np.median(expected) / np.median(predicted))
    if scaling == "median":
        # An infinite median makes the ratio 0, and inf * 0 NaN: far stays far instead.
        near = np.isfinite(predicted)
        predicted[near] *= ratio
    predicted = np.clip(predicted, min_depth, max_depth)
    return _errors(predicted, expected, ratio, float(compared.sum() / wanted.sum()))


def _errors(
    predicted: NDArray[np.float64], expected: NDArray[np.float64], ratio: float, coverage: float
) -> DepthErrors:
    difference = predicted - expected
    log_difference = np.log(predicted) - np.log(expected)
    factor = np.exp(np.abs(log_difference))
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(difference) / expected)),
        sq_rel=float(np.mean(difference**2 / expected)),
        rmse=float(np.sqrt(np.mean(difference**2))),
        rmse_log=float(np.sqrt(np.mean(log_difference**2))),
        d1=float(np.mean(factor < 1.25)),
        d2=float(np.mean(factor < 1.25**2)),
        d3=float(np.mean(factor < 1.25**3)),
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
