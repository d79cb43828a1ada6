"""Metric scale from the vehicle's speed (PackNet, scale-aware SfM)."""

from __future__ import annotations

import torch
from torch import Tensor


def velocity_loss(
    translation: Tensor,
    speed: Tensor,
    interval: Tensor,
    known: Tensor,
    metres_per_unit: float = 1.0,
) -> Tensor:
    """| |t| - speed x interval | in metres: predicted motion is as long as the way driven.

    It makes the pose network's unit, and with it that of depth, ``metres_per_unit`` metres
    (PackNet, velocity supervision). The mean is over all images; one without speed adds zero.

    Args:
        translation: motion between two frames (B, 3), network units.
        speed: of the vehicle between the frames (B,), metres per second, either direction.
        interval: time between the frames (B,), seconds, either direction.
        known: (B,), bool: speed and interval are known; elsewhere they have no influence.
        metres_per_unit: length of the network's unit.
    """
    # The root has no derivative at no motion: there it gets none.
    squared = translation.square().sum(1)
    moved = squared > 0
    length = torch.where(moved, squared, torch.ones_like(squared)).sqrt()
    length = torch.where(moved, length, torch.zeros_like(length)) * metres_per_unit
    error = (length - (speed * interval).abs().to(length)).abs()
    return torch.where(known, error, torch.zeros_like(error)).mean()
