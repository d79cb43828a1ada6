"""Depth metrics, and how much depth flickers.

Metrics and the order of operations follow the evaluation that monocular depth papers share: the
prediction is resized to the truth *as inverse depth*, scaled by the ratio of medians, clamped, and
compared on the valid pixels; metrics are taken per image and then averaged. A prediction must
therefore not be cut to a range before: the cut would depend on its unit.

Flicker is a figure of its own beside accuracy: the depth of a frame, moved onto the next one,
against what is said there. Depth that is wrong by the same share in every frame does not flicker,
depth whose scale wanders does. Only what stands still and stays visible counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse

if TYPE_CHECKING:
    from depth_prior_ros.evaluation.frames import EvaluationFrame


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


_FARTHEST = 80.0  # metres
_EDGE = 1.15  # depth of neighbours that differs by more than this factor is an edge
_HIDDEN = 1.05  # what lies this much behind what is moved to the same place is hidden by it
_LONGEST_NS = 500_000_000
_LEAST = 64  # pixels
_NEAREST = 0.1  # metres


def flicker(
    previous: NDArray[Any],
    current: NDArray[Any],
    camera: Camera,
    current_from_previous: NDArray[np.float64],
    moving: Sequence[NDArray[np.bool_] | None] = (None, None),
) -> float | None:
    """Mean relative difference between depth moved onto the next frame and the depth there.

    previous, current: (h, w) metres, not finite or not positive = unknown. camera: of both.
    current_from_previous: (4, 4), metres. moving: (h, w) of both, what moves by itself. None where
    too few pixels can be compared: those that are known, nearer than 80 m, not at an edge of depth,
    and visible in both.
    """
    usable = [_inner(depth, mask) for depth, mask in zip((previous, current), moving, strict=True)]
    height, width = current.shape
    v, u = np.nonzero(usable[0])
    z = previous[v, u].astype(np.float64)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(z.size)])
    moved = current_from_previous[:3, :3] @ (rays * z) + current_from_previous[:3, 3:]
    moved = moved[:, moved[2] > _NEAREST]
    x = camera.fx * moved[0] / moved[2] + camera.cx
    y = camera.fy * moved[1] / moved[2] + camera.cy
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y, z = x[inside], y[inside], moved[2][inside]
    if z.size < _LEAST:
        return None
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    seen = usable[1][row, column] & (z <= _HIDDEN * _nearest(row, column, z, (height, width)))
    if seen.sum() < _LEAST:
        return None
    inverse = np.zeros(current.shape, np.float32)  # planes are flat in inverse depth
    np.divide(1.0, current, out=inverse, where=np.isfinite(current) & (current > 0))
    place = x[seen].astype(np.float32), y[seen].astype(np.float32)
    there = 1.0 / _sampled(inverse, *place)
    return float(np.mean(np.abs(there - z[seen]) / z[seen]))


def _inner(depth: NDArray[Any], moving: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(h, w): what is known, stands still, and has no edge of depth beside it."""
    known = np.isfinite(depth) & (depth > 0) & (depth < _FARTHEST)
    filled = np.where(known, depth, 1e6).astype(np.float32)
    square = np.ones((3, 3), np.uint8)
    smooth = cv2.dilate(filled, square) <= _EDGE * cv2.erode(filled, square)
    return known & smooth if moving is None else known & smooth & ~moving


def _nearest(
    row: NDArray[np.int64], column: NDArray[np.int64], z: NDArray[Any], shape: tuple[int, int]
) -> NDArray[Any]:
    """The nearest depth that is moved to the neighbourhood of each point's pixel."""
    nearest = np.full(shape, np.float32(1e6))
    np.minimum.at(nearest, (row, column), z.astype(np.float32))
    return cv2.erode(nearest, np.ones((3, 3), np.uint8))[row, column]


def _sampled(
    picture: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Values of (h, w) at places between pixels, bilinear; cv2.remap rounds places to 32nds."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right = np.minimum(left + 1, picture.shape[1] - 1)
    below = np.minimum(top + 1, picture.shape[0] - 1)
    across, down = (x - left).astype(np.float64), (y - top).astype(np.float64)
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[below, left] * (1 - across) + picture[below, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


@dataclass
class FlickerMeter:
    """Measures from frame to frame; keeps the frame before.

    Both depths of a pair are scaled by one factor, the mean of what the truth makes of each: so a
    wrong metric factor, which makes a step of the camera too long or too short, is no flicker.
    """

    _before: dict[str, Any] | None = None

    def add(self, frame: EvaluationFrame, depth: NDArray[Any], ratio: float) -> float | None:
        """The flicker from the frame before to this one; None where that cannot be said.

        depth: (h, w) of the frame's window. ratio: truth over depth, by medians.
        """
        before, self._before = self._before, None
        if frame.pose is None or frame.view is None or not (np.isfinite(ratio) and ratio > 0):
            return None
        size = depth.shape[1], depth.shape[0]
        moving = frame.moving
        if moving is not None:
            shrunk = cv2.resize(moving.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            moving = shrunk > 0
        self._before = now = {
            "index": frame.index,
            "stamp_ns": frame.stamp_ns,
            "pose": frame.pose,
            "depth": depth,
            "moving": moving,
            "ratio": ratio,
        }
        if before is None or before["depth"].shape != depth.shape:
            return None
        apart = now["stamp_ns"] - before["stamp_ns"]
        if now["index"] != before["index"] + 1 or not 0 < apart <= _LONGEST_NS:
            return None
        common = np.sqrt(before["ratio"] * ratio)
        return flicker(
            before["depth"] * common,
            depth * common,
            frame.view.scaled(*size),
            rigid_inverse(frame.pose) @ before["pose"],
            (before["moving"], moving),
        )

    def state(self) -> dict[str, Any] | None:
        """The frame before, as plain data and arrays."""
        return self._before

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state`."""
        self._before = None if state is None else dict(state)


def mean_flicker(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """`flicker`, the mean over pairs of frames, and `flicker_pairs`, their number."""
    known = [value for value in values if value is not None]
    return {"flicker": fmean(known) if known else None, "flicker_pairs": len(known)}
