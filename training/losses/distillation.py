"""The multi-frame network teaches the single-frame one (MISM, distillation).

Consistency of the multi-frame network: with the single-frame depth, and with itself.

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

from training.losses.masked import masked_mean, mean_per_image

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


# A smaller variance of log ratios is rounding.
_NO_VARIANCE = 1e-12


def distillation_mask(teacher_error: Tensor, student_error: Tensor) -> Tensor:
    """Where the teacher explains the image better (MISM, distillation): (B, 1, H, W), bool.

    Args:
        teacher_error: :func:`~training.losses.photometric.minimum_error` (B, 1, H, W) of the
            teacher's depth and motion.
        student_error: that of the student's, the unwarped sources included (``identity``).
    """
    return teacher_error.detach() < student_error.detach()


def log_ratio_distillation(
    student_depth: Tensor, teacher_depth: Tensor, mask: Tensor, lam: float = 1.0
) -> Tensor:
    """sqrt(mean(g^2) - lam mean(g)^2) of g = log(student / teacher) (MISM, distillation).

    Means are over the mask of each image; the loss is the mean over all images. An image with an
    empty mask adds zero, with a gradient of zero; so does one where student and teacher differ by a
    factor alone (``lam`` = 1), where the root has no derivative. With ``lam`` = 1 the loss is the
    spread of the log ratio, and the scale of either depth has no influence. Its weight is 0.1 in
    the paper's code.

    Args:
        student_depth: (B, 1, H, W), positive, any unit.
        teacher_depth: the same shape, positive, any unit; gets no gradient.
        mask: (B, 1, H, W), bool, of :func:`distillation_mask`. What it leaves out has no influence.
        lam: 0 to 1.

    Raises:
        ValueError: ``lam`` is not within 0 and 1.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be 0 to 1, got {lam}")
    ones = torch.ones_like(student_depth)
    student = torch.where(mask, student_depth, ones)
    g = (student / torch.where(mask, teacher_depth.detach(), ones)).log()
    mean = mean_per_image(g, mask)
    # The same as the difference of means in the formula, but without its cancellation.
    variance = mean_per_image((g - mean[:, None, None, None]).square(), mask)
    variance = variance + (1 - lam) * mean.square()
    some = variance > _NO_VARIANCE
    spread = torch.where(some, variance, torch.ones_like(variance)).sqrt()
    return torch.where(some, spread, torch.zeros_like(spread)).mean()
