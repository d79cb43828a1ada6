"""The decoder of monodepth2 (arXiv 1806.01260, supplementary section A.1), for any trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depth_prior_ros.models.decoder import FAR_BIAS, ConvBlock, Decoder, upsample
from depth_prior_ros.models.trunk import Features


class _Node(nn.Module):
    """ConvBlock, upsample, concatenate the trunk's features of that size, ConvBlock."""

    def __init__(self, high: int, low: int, outputs: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(high, outputs)
        self.merge = ConvBlock(outputs + low, outputs)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        return self.merge(torch.cat([upsample(self.reduce(high)), *lows], dim=1))


class Monodepth2Decoder(Decoder):
    """256, 128, 64, 32, 16 channels from 1/16 to 1/1: 3.15 M parameters on ResNet-18."""

    CHANNELS = (16, 32, 64, 128, 256)
    MIN_SIDE = 64

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, heads=self.CHANNELS[:4], far_bias=far_bias)
        taps = {stride: sum(widths) for stride, widths in self.trunk_channels.items()}
        c0, c1, c2, c3, c4 = self.CHANNELS
        self.node4 = _Node(taps[32], taps[16], c4)
        self.node3 = _Node(c4, taps[8], c3)
        self.node2 = _Node(c3, taps[4], c2)
        self.node1 = _Node(c2, taps[2], c1)
        self.node0 = _Node(c1, 0, c0)

    def _maps(self, features: Features) -> list[Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        return [self.node0(d1, []), d1, d2, d3]
