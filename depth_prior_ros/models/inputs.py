"""The one rule all networks share about what they accept."""

from __future__ import annotations

import torch
from torch import Tensor

#: Every side of a network input is a multiple of this, the deepest stride of the trunks.
SIDE_MULTIPLE = 32


def check_size(height: int, width: int, name: str = "image") -> None:
    """Raise ValueError unless both sides are positive multiples of 32."""
    if height <= 0 or width <= 0 or height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise ValueError(
            f"{name} is {width}x{height} (width x height): both sides must be positive multiples "
            f"of {SIDE_MULTIPLE}; resize it first, for example to 320x96 or 640x192"
        )


def check_image(image: Tensor, name: str = "image", channels: int = 3) -> None:
    """Raise ValueError unless `image` is (B, channels, H, W) with sides that the networks take.

    Does nothing while a graph is traced for export: there the example input was checked before.
    """
    if torch.jit.is_tracing():
        return
    if image.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(image.shape)}: expected (B, {channels}, H, W)")
    if image.shape[1] != channels:
        raise ValueError(f"{name} has {image.shape[1]} channels: expected {channels}")
    check_size(int(image.shape[2]), int(image.shape[3]), name)
