"""Means over masked pixels, image by image.

Whatever is averaged over a mask is averaged per image first, and then over all images of the
batch; an image whose mask is empty adds zero, and counts. So the loss of a batch is the mean of the
losses of its images, and the mean over processes, each with a part of the batch, is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_per_image(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` (B, ...) where ``mask`` (B, ..., bool) holds: (B,), 0 for an empty mask.

    What the mask leaves out has no influence, be it infinite or NaN, and gets a gradient of zero.
    """
    kept = torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)
    return kept / mask.flatten(1).sum(1).clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the images of :func:`mean_per_image`, a scalar."""
    return mean_per_image(values, mask).mean()
