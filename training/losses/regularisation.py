"""Metric scale from the vehicle's speed (PackNet, scale-aware SfM).

Edge-aware smoothness of inverse depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edges:
    """How much a change of depth between neighbours counts: (B, 1, H - 1, W), (B, 1, H, W - 1)."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, image: Tensor) -> Edges:
        """From an image (B, 3, H, W) in [0, 1]: little where its colours change."""
        rows, columns = (
            torch.exp(-torch.diff(image.detach(), dim=dim).abs().mean(1, keepdim=True))
            for dim in (2, 3)
        )
        return cls(rows, columns)


def edge_aware_smoothness(inverse_depth: Tensor, image: Tensor | Edges) -> Tensor:
    """First differences of mean-normalised inverse depth, weak at image edges (monodepth2, eq. 3).

    Args:
        inverse_depth: (B, 1, H, W), positive.
        image: (B, 3, H, W) of the same size; or its edges, computed once for several depth maps.

    Returns:
        A scalar; the same for ``inverse_depth`` times any positive number per image.
    """
    edges = image if isinstance(image, Edges) else Edges.of(image)
    # Dividing the sums by the mean of the image is dividing each pixel, but for the passes.
    mean = inverse_depth.mean((1, 2, 3)) + 1e-7
    rows = (torch.diff(inverse_depth, dim=2).abs() * edges.rows).mean((1, 2, 3))
    columns = (torch.diff(inverse_depth, dim=3).abs() * edges.columns).mean((1, 2, 3))
    return ((rows + columns) / mean).mean()


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
