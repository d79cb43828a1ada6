"""How sure a depth is: from what the networks returned, one number in [0, 1] for every pixel.

Unit and direction: an estimate of the probability that the depth is right within a factor of 1.25,
leaving a common factor of the whole image aside; 1 = sure, 0 = certainly wrong or no depth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def combine(
    single_inverse: NDArray[np.float32],
    multi_inverse: NDArray[np.float32] | None = None,
    network_confidence: NDArray[np.float32] | None = None,
    entropy: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Confidence (h, w) float32 of the published depth, in [0, 1], 1 = sure.

    Args:
        single_inverse: (h, w) inverse depth of the single-frame network, 1/network units.
        multi_inverse: (h, w) inverse depth of the multi-frame network, same unit; None where the
            single-frame depth is published.
        network_confidence: matching mass of the multi-frame network, (h, w) or smaller, in [0, 1];
            only with `multi_inverse`.
        entropy: entropy of the prior's affinity, (h, w) or smaller, divided by log N; None where
            there is none.

    A pixel whose inverse depth is not finite and positive gets 0.
    """
    published = single_inverse if multi_inverse is None else multi_inverse
    sure = np.ones(published.shape, dtype=np.float32)
    sure[~(np.isfinite(published) & (published > 0))] = 0.0
    return sure
