"""Scales that the picture and the page of a prior share: colours, bars, words, windows."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NEAR, FAR = 2.0, 80.0
"""Metres between which colours, and the axes of depth, run (logarithmic)."""
BINS = 36

_CROP_SHARE = 0.34  # of the image's height, for the surroundings of a reference
_CROP_LEAST = 48


def colour_depth(metres: NDArray[Any]) -> NDArray[np.uint8]:
    """Depth (...) in metres as RGB (..., 3): turbo over its logarithm, near is red."""
    share = np.log(np.maximum(metres, 1e-6) / NEAR) / np.log(FAR / NEAR)
    grey = np.rint(255 * (1 - np.clip(share, 0, 1))).astype(np.uint8)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(table[grey, 0][..., ::-1])


def depth_edges() -> NDArray[np.float64]:
    """Edges of the bars of every distribution over depth; the outer bars hold what is beyond."""
    return np.asarray(np.geomspace(NEAR / 1.5, FAR * 1.5, BINS + 1), np.float64)


def depth_shares(metres: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (N,) summed by depth (N,) into the bars of `depth_edges`; their sum is kept."""
    edges = depth_edges()
    place = np.searchsorted(edges, metres, side="right") - 1
    sums = np.bincount(np.clip(place, 0, BINS - 1), weights, minlength=BINS)
    return np.asarray(sums, np.float64)


def percent(share: float) -> str:
    """A share for people: 12 %, 3.4 %, 0.056 %."""
    value = 100 * share
    if value >= 10 or value == 0:
        return f"{value:.0f} %"
    digits = max(1, 1 - int(np.floor(np.log10(value)))) if value > 1e-4 else 6
    return f"{value:.{digits}f} %"


def metres(depth: float) -> str:
    """A depth for people: 7.4 m, 31 m."""
    if depth > 1.5 * FAR:
        return f"> {1.5 * FAR:.0f} m"
    return f"{depth:.1f} m" if depth < 10 else f"{depth:.0f} m"


def crop_around(
    image: NDArray[np.uint8], place: tuple[float, float], aspect: float
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """A window of width / height ``aspect`` around a place, inside the image, and the place in it.

    Returns:
        The window (h, w, 3), and (x, y) as shares of it.
    """
    height, width = image.shape[:2]
    tall = min(height, max(_CROP_LEAST, round(_CROP_SHARE * height)))
    wide = min(width, max(1, round(tall * aspect)))
    tall = min(tall, max(1, round(wide / aspect)))
    left = int(np.clip(round(place[0] - wide / 2), 0, width - wide))
    top = int(np.clip(round(place[1] - tall / 2), 0, height - tall))
    window = image[top : top + tall, left : left + wide]
    return window, ((place[0] - left) / wide, (place[1] - top) / tall)
