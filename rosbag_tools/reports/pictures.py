"""A replay's pictures: depth and errors in colour, on scales that are the same in every report."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.pages import colours

NEAR, FAR = 3.0, 80.0  # metres; the colour follows log depth between them
LARGEST_ERROR = 0.5  # relative; beyond it the colour stays
WIDTH = 512


def colour_depth(depth: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) metres to (H, W, 3) RGB, see `colours.colour_depth`."""
    return colours.colour_depth(depth, NEAR, FAR)


def relative_error(prediction: NDArray[Any], truth: NDArray[Any], ratio: float) -> NDArray[Any]:
    """|prediction * ratio - truth| / truth where there is truth (H, W); NaN elsewhere.

    The prediction, of any size, is resized as inverse depth.
    """
    from depth_prior_ros.evaluation.metrics import resize_depth

    scaled = resize_depth(prediction, *truth.shape) * ratio
    error = np.full(truth.shape, np.nan)
    valid = (truth > 0) & (truth < FAR)
    error[valid] = np.abs(np.minimum(scaled[valid], FAR) - truth[valid]) / truth[valid]
    return error


def colour_error(
    error: NDArray[Any], image: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Relative error (H, W), NaN = none, over a dimmed grey `image`, as RGB of `size` (w, h).

    Sparse truth (LiDAR) is drawn as dots large enough to be seen.
    """
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    picture = cv2.cvtColor((grey * 0.35).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    small = _shrink_sparse(error, size)
    drawn = ~np.isnan(small)
    picture[drawn] = colours.colour_heat(small / LARGEST_ERROR)[drawn]
    return np.asarray(picture, np.uint8)


def colour_truth(truth: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """True depth (H, W) metres, 0 = none, in colour at `size` (w, h); none is nearly black."""
    small = _shrink_sparse(np.where(truth > 0, truth, np.nan), size)
    return colour_depth(np.where(np.isnan(small), np.inf, small))


def _shrink_sparse(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) with NaN holes to `size` (w, h): dense maps by nearest, sparse ones as dots."""
    width, height = size
    dense = np.mean(~np.isnan(values)) > 0.3
    if dense:
        return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST)
    small = np.full((height, width), np.nan)
    rows, columns = np.nonzero(~np.isnan(values))
    y = rows * height // values.shape[0]
    x = columns * width // values.shape[1]
    found = values[rows, columns]
    for dx, dy in ((1, 0), (0, 1), (1, 1), (0, 0)):  # 2x2 dots, their own pixel last
        small[np.minimum(y + dy, height - 1), np.minimum(x + dx, width - 1)] = found
    return small


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """(w, h) of the report's pictures: WIDTH wide, or the image's own width if that is less."""
    w = min(WIDTH, width)
    return w, max(1, round(height * w / width))


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An RGB picture at `size` (w, h)."""
    shrinks = size[0] < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def jpeg(picture: NDArray[np.uint8], quality: int = 80) -> bytes:
    """RGB as JPEG bytes."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
