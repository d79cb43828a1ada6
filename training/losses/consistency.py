"""Consistency of the multi-frame network: with the single-frame depth, and with itself.

ManyDepth trusts single-frame depth where matching is unreliable (its section on the overfitting of
cost volumes); MISM asks for the same depth when a part of the image is hidden (its training of the
teacher).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.masked import masked_mean

# MISM's code applies its weight of 10 twice.
MASKED_INPUT_WEIGHT = 100.0


def reliable_matches(
    lowest_cost: Tensor,
    single_depth: Tensor,
    confidence: Tensor,
    augmented: Tensor | None = None,
) -> Tensor:
    """Where the cost volume can be believed (ManyDepth, cost volume overfitting).

    The depth of lowest cost and the single-frame depth agree within a factor of two, and the cost
    volume has seen every hypothesis. Returns (B, 1, H, W), bool; no gradient passes.

    Args:
        lowest_cost: depth of the hypothesis with the lowest cost (B, 1, h, w), network units,
            positive; enlarged to the nearest pixel where it is smaller than ``single_depth``.
        single_depth: (B, 1, H, W), network units, positive.
        confidence: (B, 1, h, w), bool or 1 where all hypotheses fell into the other image.
        augmented: (B,), bool: images whose neighbours were taken away in training (ManyDepth,
            static cameras and start of sequences); nothing in them is reliable.
    """
    size = single_depth.shape[-2:]
    single = single_depth.detach()
    matched = F.interpolate(lowest_cost.detach(), size, mode="nearest")
    seen = F.interpolate(confidence.to(single.dtype), size, mode="nearest") > 0.5
    agree = ((matched - single) / single < 1) & ((single - matched) / matched < 1)
    reliable = agree & seen
    return reliable if augmented is None else reliable & ~augmented.bool()[:, None, None, None]


def single_frame_consistency(multi_depth: Tensor, single_depth: Tensor, reliable: Tensor) -> Tensor:
    """Multi-frame depth keeps to single-frame depth where matching is unreliable.

    The mean over all pixels of the difference, zero where ``reliable`` (ManyDepth, cost volume
    overfitting); the single-frame depth gets no gradient. Weight 1 in the paper's code.

    Args:
        multi_depth: (B, 1, H, W), network units.
        single_depth: the same shape and unit.
        reliable: (B, 1, H, W), bool, of :func:`reliable_matches`.
    """
    difference = (multi_depth - single_depth.detach()).abs()
    return torch.where(reliable, torch.zeros_like(difference), difference).mean()


@dataclass(frozen=True)
class Rectangle:
    """A part of an image of ``size`` (height, width): rows and columns from ``top``, ``left``."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    @classmethod
    def draw(cls, height: int, width: int, rng: np.random.Generator) -> Rectangle:
        """A third of the image's height and width, anywhere in it (MISM, teacher)."""
        h, w = max(1, height // 3), max(1, width // 3)
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        return cls(int(top), int(left), h, w, (height, width))

    def inside(self, device: torch.device | None = None) -> Tensor:
        """(H, W), bool: True in the rectangle."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=device)
        mask[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return mask

    def hide(self, images: Tensor) -> Tensor:
        """A copy of images (..., H, W) with zeros in the rectangle."""
        if images.shape[-2:] != self.size:
            raise ValueError(f"the rectangle is for {self.size}, not {tuple(images.shape[-2:])}")
        return images.masked_fill(self.inside(images.device), 0)


def masked_input_consistency(hidden_depth: Tensor, depth: Tensor, rectangle: Rectangle) -> Tensor:
    """Smooth L1 between depth with and without a hidden rectangle (MISM, teacher).

    As in the paper's code the mean is over what was not hidden, with gradients to both sides. To be
    weighted with ``MASKED_INPUT_WEIGHT``.

    Args:
        hidden_depth: depth of the images with the rectangle hidden (B, 1, H, W), network units.
        depth: depth of the whole images, the same shape and unit.
        rectangle: what was hidden.
    """
    error = F.smooth_l1_loss(hidden_depth, depth, reduction="none")
    seen = ~rectangle.inside(depth.device).expand_as(error)
    return masked_mean(error, seen)
