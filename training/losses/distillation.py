"""The multi-frame network teaches the single-frame one (MISM, distillation)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.masked import mean_per_image

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
