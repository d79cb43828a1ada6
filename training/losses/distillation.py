"""The multi-frame network teaches the single-frame one (MISM, distillation).

Consistency of the multi-frame network: with the single-frame depth, and with itself.

ManyDepth trusts single-frame depth where matching is unreliable (its section on the overfitting of
cost volumes); MISM asks for the same depth when a part of the image is hidden (its training of the
teacher).

What a student learns from a frozen teacher besides the images (RPrDepth, section 3.3).

The paper's terms are L_c = |G(D_o) - G(D_p)|_1, G being "the normalised sum of x and y gradients",
and L_aux = |D_p - Resize(D_c)|_1. What it leaves open is decided here: the gradients are forward
differences, divided by their mean over the image, so that neither side's scale counts; values are
compared after dividing by their median. All computations are in float32 or better, also under
autocast; the teacher's side gets no gradient.

Means are over the pixels that count, image by image, then over the batch (see `masked`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.masked import masked_mean, mean_per_image


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

    As in the paper's code the mean is over what was not hidden, with gradients to both sides. Its
    weight is 100: the paper's code applies 10 twice.

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


Quantity = Literal["depth", "inverse", "log"]

# Added to an image's mean gradient, relative to its mean value: what is flatter than this is
# rounding, and stays flat instead of becoming noise.
_FLAT = 1e-4
_TINY = 1e-12


def gradient_map(depth: Tensor, mask: Tensor | None = None) -> Tensor:
    """The normalised sum of x and y gradients (RPrDepth, 3.3): (B, 1, H, W), 1 in the mean.

    |dx| + |dy| by forward differences (0 beyond the last column and row), divided by its mean over
    the image plus a small share of the image's mean value: so a factor on the image changes
    nothing, and a flat image gives zeros with finite gradients.

    Args:
        depth: (B, 1, H, W), positive, any unit: depth, inverse depth or disparity.
        mask: (B, 1, H, W), bool: pixels that count in both means; default: all. A gradient counts
            where its pixel and the two that it is taken against count; elsewhere the map is 0.
    """
    with torch.autocast(depth.device.type, enabled=False):
        values = _full_precision(depth)
        keep = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        # Where nothing counts there may be anything, also NaN.
        values = torch.where(keep, values, torch.ones_like(values))
        across = F.pad(values[..., :, 1:] - values[..., :, :-1], (0, 1))
        down = F.pad(values[..., 1:, :] - values[..., :-1, :], (0, 0, 0, 1))
        whole = gradient_mask(keep)
        steps = torch.where(whole, across.abs() + down.abs(), torch.zeros_like(values))
        floor = _FLAT * mean_per_image(values, keep) + _TINY
        return steps / (mean_per_image(steps, whole) + floor)[:, None, None, None]


def gradient_mask(mask: Tensor) -> Tensor:
    """Pixels (B, 1, H, W), bool, that count with their right and lower neighbours."""
    right = F.pad(mask[..., :, 1:], (0, 1), value=True)
    below = F.pad(mask[..., 1:, :], (0, 0, 0, 1), value=True)
    return mask & right & below


def gradient_consistency(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """L_c: mean of |G(student) - G(teacher)|, a scalar (RPrDepth, 3.3). Scales do not count.

    Args:
        student: (B, 1, H, W), positive: depth, inverse depth or disparity.
        teacher: (B, 1, H, W), the same quantity in any unit; gets no gradient.
        mask: (B, 1, H, W), bool: what the teacher may teach; what is left out has no influence.
            Default: every pixel. An image without a pixel adds 0.

    Raises:
        ValueError: the two are not of one size (see `resize_depth`).
    """
    _refuse_sizes(student, teacher)
    keep = _all(student) if mask is None else mask
    difference = gradient_map(student, mask) - gradient_map(teacher.detach(), mask)
    return masked_mean(difference.abs(), gradient_mask(keep))


def value_consistency(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of |student - teacher| of values that are divided by their medians, a scalar.

    The control to `gradient_consistency`: the same teacher and mask, but values.

    Args:
        student: (B, 1, H, W), positive: depth, inverse depth or disparity.
        teacher: (B, 1, H, W), the same quantity in any unit; gets no gradient.
        mask: (B, 1, H, W), bool: what counts, also in the medians; default: every pixel.

    Raises:
        ValueError: the two are not of one size (see `resize_depth`).
    """
    _refuse_sizes(student, teacher)
    keep = _all(student) if mask is None else mask
    with torch.autocast(student.device.type, enabled=False):
        difference = _aligned(student, keep) - _aligned(teacher.detach(), keep)
        return masked_mean(difference.abs(), keep)


def auxiliary_loss(
    prior_inverse_depth: Tensor,
    teacher_depth: Tensor,
    on: Quantity = "inverse",
    mask: Tensor | None = None,
) -> Tensor:
    """L_aux: the teacher's depth against the depth that the prior gives (RPrDepth, 3.3), a scalar.

    D_c is enlarged to the teacher's size; both are divided by their medians, so that their scales
    do not count. The default compares inverse depth: that is what the prior stores and D_c is a
    mean of, it is what disparity networks predict, and far pixels, where depth is least certain, do
    not outweigh all others.

    Args:
        prior_inverse_depth: D_c (B, 1, h, w) at the fusion's stride, inverse depth, positive.
        teacher_depth: D_p (B, 1, H, W), depth in any unit, positive; gets no gradient.
        on: quantity of which the difference is taken: "inverse", "depth" or "log".
        mask: (B, 1, H, W), bool: what counts, also in the medians; default: every pixel.

    Raises:
        ValueError: ``on`` is none of the three.
    """
    if on not in ("inverse", "depth", "log"):
        raise ValueError(f"on must be inverse, depth or log, got {on}")
    keep = _all(teacher_depth) if mask is None else mask
    with torch.autocast(teacher_depth.device.type, enabled=False):
        prior = _resize(_full_precision(prior_inverse_depth), teacher_depth.shape[-2:])
        truth = _full_precision(teacher_depth.detach())
        truth = torch.where(keep, truth, torch.ones_like(truth)).reciprocal()
        prior, truth = _aligned(prior, keep), _aligned(truth, keep)
        if on == "depth":
            prior, truth = prior.reciprocal(), truth.reciprocal()
        elif on == "log":
            prior, truth = prior.log(), truth.log()
        return masked_mean((prior - truth).abs(), keep)


def resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth (B, 1, h, w) at ``size`` (height, width): bilinear on inverse depth.

    Inverse depth is linear in the image on planes, and so its mean at an edge is nearer to either
    side than that of depth. Pixel corners keep their places (``align_corners=False``).
    """
    with torch.autocast(depth.device.type, enabled=False):
        return _resize(_full_precision(depth).reciprocal(), size).reciprocal()


def _refuse_sizes(student: Tensor, teacher: Tensor) -> None:
    mine, theirs = tuple(student.shape[-2:]), tuple(teacher.shape[-2:])
    if mine != theirs:
        raise ValueError(f"the student's depth is of {mine}, the teacher's of {theirs}")


def _resize(values: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _all(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def _aligned(values: Tensor, keep: Tensor) -> Tensor:
    """Values divided by the median of those kept, image by image; 1 where nothing is kept."""
    values = _full_precision(values)
    values = torch.where(keep, values, torch.ones_like(values))
    return values / _median(values, keep)[:, None, None, None]


def _median(values: Tensor, keep: Tensor) -> Tensor:
    """The lower median of the kept values of each image (B,); 1 for an image without any."""
    hidden = torch.where(keep, values, torch.full_like(values, torch.nan)).flatten(1)
    found = hidden.nanmedian(1).values
    return torch.where(keep.flatten(1).any(1), found, torch.ones_like(found))
