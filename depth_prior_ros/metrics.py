"""Depth metrics and the protocols (range, crop, scaling) under which they are quoted.

The metrics and the order of operations follow the evaluation that monocular depth papers share:
the prediction is resized to the truth *as inverse depth*, scaled by the ratio of medians,
clamped, and compared on the valid pixels; metrics are taken per image and then averaged.
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

Crop = Literal["garg", "cityscapes"]
Scaling = Literal["median", "none"]

_LOG_FACTOR = math.log(1.25)
_ERROR_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


class NoValidPixelsError(ValueError):
    """The truth and the prediction share no pixel on which they can be compared."""


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with the truth of one data set.

    `min_depth` and `max_depth` (metres) bound the truth that counts and clamp the prediction;
    without `cap_truth` truth beyond `max_depth` counts, too. `stretch`: the whole image is squeezed
    into the network's input, as the papers do, instead of its middle being cut out, as a vehicle
    does. `log10`: the papers quote the RMSE of the decimal logarithm.
    """

    name: str
    min_depth: float
    max_depth: float
    crop: Crop | None
    scaling: Scaling
    cap_truth: bool = True
    stretch: bool = False
    log10: bool = False

    def errors(self, prediction: NDArray[Any], truth: NDArray[Any]) -> DepthErrors:
        """`depth_errors` under this protocol."""
        return self.pixels(prediction, truth).errors(self.scaling)

    def pixels(
        self, prediction: NDArray[Any], truth: NDArray[Any], inside: NDArray[np.bool_] | None = None
    ) -> ComparedPixels:
        """The compared pixels; `inside` (H, W) takes the place of the protocol's crop."""
        return self.truth(truth, inside).compare(prediction)

    def truth(self, truth: NDArray[Any], inside: NDArray[np.bool_] | None = None) -> TruthPixels:
        """The pixels that count; `inside` (H, W) takes the place of the protocol's crop."""
        if inside is None and self.crop is not None:
            inside = crop_mask(self.crop, *truth.shape[:2])
        return truth_pixels(
            truth,
            min_depth=self.min_depth,
            max_depth=self.max_depth,
            cap_truth=self.cap_truth,
            inside=inside,
        )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # KITTI 2015 scene flow: depth from published disparity; dense enough to need no crop.
        Protocol("kitti2015", 1e-3, 80.0, None, "median"),
        # Eigen et al.: projected LiDAR, Garg's crop, 80 m.
        Protocol("eigen", 1e-3, 80.0, "garg", "median"),
        # The accumulated LiDAR of KITTI's depth benchmark (Uhrig et al.): in the peers' code there
        # is no crop, and all truth counts, also the little beyond 80 m.
        Protocol("eigen_improved", 1e-3, 80.0, None, "median", cap_truth=False),
        # Make3D's central crop against its laser grid, up to 70 m.
        Protocol("make3d", 1e-3, 70.0, None, "median", stretch=True, log10=True),
        # ManyDepth's crop of what is left of Cityscapes without its bottom quarter.
        Protocol("cityscapes", 1e-3, 80.0, "cityscapes", "median", stretch=True),
        # A projected sweep; no protocol that everybody follows: whole image, 80 m.
        Protocol("nuscenes", 1e-3, 80.0, None, "median"),
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

    @property
    def rmse_log10(self) -> float:
        """RMSE of the decimal logarithm, as Make3D is quoted; rmse_log is that of the natural."""
        return self.rmse_log / math.log(10)


def crop_mask(crop: Crop, height: int, width: int) -> NDArray[np.bool_]:
    """A crop by its name as a (height, width) mask; True inside."""
    return garg_mask(height, width) if crop == "garg" else cityscapes_mask(height, width)


def cityscapes_mask(height: int, width: int) -> NDArray[np.bool_]:
    """Rows from 256 of 768, columns 192 to 1856 of 2048: no sky, no edges of the rectification.

    For truth whose bottom quarter (of 1024 rows) is gone already.
    """
    mask = np.zeros((height, width), dtype=bool)
    mask[round(height / 3) :, round(width * 192 / 2048) : round(width * 1856 / 2048)] = True
    return mask


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


def truth_pixels(
    truth: NDArray[Any],
    *,
    min_depth: float = 1e-3,
    max_depth: float = 80.0,
    cap_truth: bool = True,
    inside: NDArray[np.bool_] | None = None,
) -> TruthPixels:
    """The pixels of truth (H, W, metres, 0 = none) that count.

    Truth outside min_depth..max_depth (`cap_truth` False: below min_depth) or `inside` (H, W) does
    not.
    """
    if truth.ndim != 2:
        raise ValueError(f"depth images have two axes, got shape {truth.shape}")
    wanted = (truth > min_depth) & (truth < max_depth if cap_truth else np.isfinite(truth))
    if inside is not None:
        wanted &= inside
    index = np.flatnonzero(wanted).astype(np.int32)
    expected = truth.reshape(-1)[index]
    if expected.dtype != np.float64:
        expected = expected.astype(np.float32)
    return TruthPixels(truth.shape, index, expected, min_depth, max_depth)


def depth_errors(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    min_depth: float = 1e-3,
    max_depth: float = 80.0,
    crop: Crop | None = None,
    scaling: Scaling = "median",
) -> DepthErrors:
    """Compare a predicted depth image (h, w) with the truth (H, W), metres, 0 = none.

    See `truth_pixels` and `TruthPixels.compare`; the scaled prediction is clamped to
    min_depth..max_depth. Raises NoValidPixelsError where nothing can be compared.
    """
    return Protocol("", min_depth, max_depth, crop, scaling).errors(prediction, truth)


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
