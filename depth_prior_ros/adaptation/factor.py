"""Fit the metric factor of a network that is told nothing of its camera.

One factor is all that is free: depth is right up to it, whatever the picture. Not so of
affine-invariant networks, whose gain and shift are others in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.adaptation.keyframes import AdaptationError, Keyframe
from depth_prior_ros.pipeline.results import known_inverse
from depth_prior_ros.pipeline.runtime import Networks


def unit_depth(networks: Networks, keyframe: Keyframe, stretch: float) -> NDArray[np.float32]:
    """Depth (h, w) of a keyframe by the compiled single-frame network, in units; NaN unknown.

    networks: of whatever camera; its frames wait for this one. stretch: see `focal_ratio`.
    """
    planes = keyframe.planes()[np.newaxis]
    with networks.turns:
        answer = networks.single(networks.backend.to_native(planes))[0]
        values = networks.backend.to_numpy(answer)[0, 0].copy()
    return np.float32(stretch) / known_inverse(values, inverse=True)


def fit_factor(ratios: Sequence[float]) -> float:
    """Metres per unit, of keyframes' medians of depth in metres over that in units.

    The median in logarithms, in which twice too large and twice too small are equally wrong. Raises
    AdaptationError where there is none.
    """
    usable = [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    if not usable:
        raise AdaptationError(
            "the network's depth is nowhere a positive number on these keyframes, so no factor "
            "fits it"
        )
    return math.exp(float(np.median(np.log(usable))))
