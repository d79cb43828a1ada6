"""Edge-aware smoothness of inverse depth."""

from __future__ import annotations

import torch
from torch import Tensor


def edge_aware_smoothness(inverse_depth: Tensor, image: Tensor) -> Tensor:
    """First differences of mean-normalised inverse depth, weak at image edges (monodepth2, eq. 3).

    Args:
        inverse_depth: (B, 1, H, W), positive.
        image: (B, 3, H, W) of the same size.

    Returns:
        A scalar; the same for ``inverse_depth`` times any positive number per image.
    """
    normalised = inverse_depth / (inverse_depth.mean((2, 3), keepdim=True) + 1e-7)
    total = inverse_depth.new_zeros(())
    for dim in (2, 3):
        change = torch.diff(normalised, dim=dim).abs()
        edge = torch.diff(image, dim=dim).abs().mean(1, keepdim=True)
        total = total + (change * torch.exp(-edge)).mean()
    return total
