"""What all trunks return: features by stride, and the check that a decoder fits them."""

from __future__ import annotations

import torch
from torch import Tensor

#: stride -> tensors (B, C_i, H / stride, W / stride).
Features = dict[int, list[Tensor]]


def check_features(features: Features, channels: dict[int, list[int]]) -> None:
    """Raise ValueError unless `features` has the strides and channels that `channels` names."""
    if torch.jit.is_tracing():
        return
    found = {stride: [tensor.shape[1] for tensor in taps] for stride, taps in features.items()}
    if found != channels:
        raise ValueError(f"features have channels {found}: this decoder was built for {channels}")
