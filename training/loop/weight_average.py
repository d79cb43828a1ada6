"""Averages of weights: over the steps of a stage, and with those that it began with.

A running average is steadier than the last weights (Polyak and Juditsky, 1992). Weights between
those of before and after a stage keep more of what was known before, on other data than the stage's
(WiSE-FT, Wortsman et al., 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential average of all floating-point weights and buffers of some networks.

    Args:
        networks: by name.
        decay: share of the old average at every step; early steps use (1 + n) / (10 + n) at most,
            so that the start is forgotten.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float) -> None:
        self._decay = decay
        self._live = {
            f"{network}.{name}": tensor
            for network, module in networks.items()
            for name, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        }
        self._average = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, the first of which is 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        averages, weights = list(self._average.values()), list(self._live.values())
        torch._foreach_lerp_(averages, weights, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the networks' weights and the average."""
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The networks hold the average for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def tensors(self) -> dict[str, Tensor]:
        """The average by name, for a checkpoint."""
        return self._average

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over an average from a checkpoint; names that it lacks stay as they are."""
        for name, tensor in tensors.items():
            if name in self._average:
                self._average[name].copy_(tensor)


@torch.no_grad()
def mix_weights(network: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Move a network's weights back to `start` by `share` of the way."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(start[name].to(tensor), share)
