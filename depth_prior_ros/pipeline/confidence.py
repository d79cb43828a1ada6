"""How sure a depth is: from what the networks returned, one number in [0, 1] for every pixel.

Unit and direction: an estimate of the probability that the depth is right within a factor of 1.25,
leaving a common factor of the whole image aside; 1 = sure, 0 = certainly wrong, or no depth. It is
a logistic model of a few cues, fitted to synthetic streets with exact depth that nothing was
trained on (`python benchmarks/confidence.py --fit` prints the constants below). What it ranks well
elsewhere it need not hit as a number: on other roads the share of right pixels is another one.

Left out after measuring, because errors on frames that the fit had not seen were ranked no better:
the probability mass of the matching, texture, the place in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CUE_WIDTH = 320
"""Wider maps are reduced to this width first: cues count in pixels, and are cheap."""

_WINDOW = (9, 9)
# Added before logarithms: below these, differences between cues say nothing.
_FLAT, _SMOOTH, _AGREE = 0.003, 0.005, 0.02


@dataclass(frozen=True)
class Weights:
    """Of the logistic model: the logit is `constant` plus weights times cues (`cues`).

    `disagreement` counts for multi-frame depth only, `entropy` where there is one.
    """

    constant: float
    roughness: float
    distance: float
    slope: float
    disagreement: float = 0.0
    entropy: float = 0.0


# Printed by `python benchmarks/confidence.py --fit`; by what there is: (multi-frame, entropy).
WEIGHTS: dict[tuple[bool, bool], Weights] = {
    (False, False): Weights(-2.45, -0.53, -0.48, -0.26),
    (False, True): Weights(-2.08, -0.55, -0.49, -0.27, entropy=-0.76),
    (True, False): Weights(-3.71, -0.79, -0.48, -0.27, disagreement=-0.13),
    (True, True): Weights(-3.25, -0.81, -0.49, -0.28, disagreement=-0.13, entropy=-0.85),
}


def combine(
    single_inverse: NDArray[np.float32],
    multi_inverse: NDArray[np.float32] | None = None,
    *,
    entropy: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Confidence (h, w) float32 of the published depth, in [0, 1], 1 = sure.

    Args:
        single_inverse: (h, w) inverse depth of the single-frame network, 1/network units.
        multi_inverse: (h, w) inverse depth of the multi-frame network, same unit; None where the
            single-frame depth is published.
        entropy: entropy of the prior's affinity, of any size, divided by log N; None where there
            is none (the node does not compute it: it costs a second pass over the prior).

    A pixel whose published inverse depth is not finite and positive gets 0.
    """
    published = single_inverse if multi_inverse is None else multi_inverse
    known = _known(published)
    if not known.any():
        return np.zeros(published.shape, dtype=np.float32)
    found = cues(single_inverse, multi_inverse, entropy)
    weights = WEIGHTS[multi_inverse is not None, entropy is not None]
    logit = np.full(found["distance"].shape, np.float32(weights.constant))
    for name, cue in found.items():
        logit += np.float32(getattr(weights, name)) * cue
    sure = 1.0 / (1.0 + np.exp(-logit))
    if sure.shape != published.shape:
        size = (published.shape[1], published.shape[0])
        sure = cv2.resize(sure, size, interpolation=cv2.INTER_LINEAR)
    return np.where(known, sure, np.float32(0.0)).astype(np.float32, copy=False)


def cues(
    single_inverse: NDArray[np.float32],
    multi_inverse: NDArray[np.float32] | None = None,
    entropy: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """What confidence is estimated from, at most `CUE_WIDTH` wide, by the names in `Weights`.

    All are free of the depth's unit. With z the published depth:
    roughness: log of the mean of |log z - blurred log z| over 9x9 pixels; noise and edges.
    distance: log of z over its median in the image; what is far is worse known.
    slope: log of the relative change of z per pixel to the side; edges and slanted walls.
    disagreement: log of the mean of |log multi / single| over 9x9 pixels.
    entropy: as given.

    Arguments as of `combine`; some pixel of the published depth must be known.
    """
    multi = multi_inverse is not None
    log = _log_depth(multi_inverse if multi_inverse is not None else single_inverse)
    rough = cv2.blur(np.abs(log - cv2.GaussianBlur(log, (0, 0), 2)), _WINDOW)
    slope = np.abs(cv2.Sobel(log, cv2.CV_32F, 1, 0, ksize=3)) / 8
    found = {
        "roughness": np.log(rough + np.float32(_SMOOTH)),
        "distance": log - np.median(log),
        "slope": np.log(slope + np.float32(_FLAT)),
    }
    if multi:
        apart = cv2.blur(np.abs(log - _log_depth(single_inverse)), _WINDOW)
        found["disagreement"] = np.log(apart + np.float32(_AGREE))
    if entropy is not None:
        size = (log.shape[1], log.shape[0])
        found["entropy"] = cv2.resize(
            np.asarray(entropy, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR
        )
    return found


def _known(inverse: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(inverse) & (inverse > 0))


def _log_depth(inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log depth, at most `CUE_WIDTH` wide; unknown pixels get the median, which says nothing."""
    known = _known(inverse)
    log: NDArray[np.float32] = np.zeros(inverse.shape, dtype=np.float32)
    np.log(inverse, out=log, where=known)
    np.negative(log, out=log)
    if not known.all():
        log[~known] = np.median(log[known]) if known.any() else 0.0
    width = log.shape[1]
    if width > CUE_WIDTH:
        size = (CUE_WIDTH, max(1, round(log.shape[0] * CUE_WIDTH / width)))
        log = cv2.resize(log, size, interpolation=cv2.INTER_AREA)
    return log
