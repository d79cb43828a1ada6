"""Losses against exact depth and motion, as rendered or recorded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose

# Sky, and everything beyond this many units, is only far: it has to be predicted at least there.
FAR_UNITS = 15.0


def log_depth_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Mean |log depth - log truth| where there is truth, and a hinge that keeps the sky far.

    Args:
        depth: (B, 1, H, W), network units, positive.
        truth: (B, 1, H, W), network units, 0 = sky or beyond ``FAR_UNITS``.
    """
    known = truth > 0
    log = depth.log()
    error = torch.where(known, (log - truth.clamp(min=1e-3).log()).abs(), torch.zeros_like(log))
    sky = torch.where(known, torch.zeros_like(log), (math.log(FAR_UNITS) - log).clamp(min=0))
    # Not per-mask means: with little sky in an image, few pixels must not weigh as much as all.
    return error.mean() + 0.5 * sky.mean()


def log_gradient_loss(depth: Tensor, truth: Tensor, scales: int = 3) -> Tensor:
    """L1 on differences of the log-depth error over several scales (MegaDepth, 4.1).

    It wants object boundaries sharp and surfaces flat. Pairs with an unknown end do not count.
    """
    known = (truth > 0).to(depth.dtype)
    error = (depth.log() - truth.clamp(min=1e-3).log()) * known
    total = depth.new_zeros(())
    for level in range(scales):
        step = 2**level
        e, k = error[..., ::step, ::step], known[..., ::step, ::step]
        for dim in (2, 3):
            length = e.shape[dim] - 1
            both = k.narrow(dim, 0, length) * k.narrow(dim, 1, length)
            total = total + (torch.diff(e, dim=dim).abs() * both).mean()
    return total / scales


def pose_loss(
    pose: Pose, truth: Pose, rotation_weight: float = 5.0, known: Tensor | None = None
) -> Tensor:
    """L1 of translation (network units) and of the rotation matrix's entries.

    Args:
        pose: (..., B, 4, 4).
        truth: of the same shape.
        rotation_weight: weight of the rotation.
        known: (B,), bool: where there is truth; elsewhere images add zero, and count in the mean.
    """
    translation = (pose.translation - truth.translation).abs().mean(-1)
    rotation = (pose.rotation - truth.rotation).abs().mean((-2, -1))
    error = translation + rotation_weight * rotation
    return (error if known is None else torch.where(known, error, torch.zeros_like(error))).mean()
