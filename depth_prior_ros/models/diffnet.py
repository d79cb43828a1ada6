"""Depth decoders: DIFFNet's with channel attention, and a light one for small machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.decoder import DECODERS, FAR_BIAS, ConvBlock, Decoder, upsample
from depth_prior_ros.models.trunk import Features


class ChannelAttention(nn.Module):
    """Weighs channels by their global averages (DIFFNet, section 3.3)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        weights = self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3)))))
        return x * torch.sigmoid(weights)[:, :, None, None]


class AttentionNode(nn.Module):
    """Upsample the coarser map, concatenate the trunk's, weigh channels, 3x3 convolution, ReLU."""

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        channels = high + sum(lows)
        self.attention = ChannelAttention(channels)
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        x = torch.cat([upsample(high), *lows], dim=1)
        return F.relu(self.conv(self.attention(x)))


@DECODERS.register("diffnet")
class DiffNetDecoder(Decoder):
    """DIFFNet's decoder (section 3.3): 1,306,840 parameters on HRNet-W18."""

    HEADS = (16, 32, 64, 128)
    EIGHTH = 128

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        channels = self.trunk_channels
        self.node4 = AttentionNode(sum(channels[32]), channels[16], 256)
        self.node3 = AttentionNode(256, channels[8], 128)
        self.node2 = AttentionNode(128, channels[4], 64)
        self.node1 = AttentionNode(64, channels[2], 32)
        self.node0_low = ConvBlock(32, 16)
        self.node0_high = ConvBlock(16, 16)

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        d0 = self.node0_high(upsample(self.node0_low(d1)))
        return {0: d0, 1: d1, 2: d2, 3: d3}


class LightNode(nn.Module):
    """Reduce, upsample, concatenate, merge: the convolutions are zero padded and plain."""

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        # Reducing before upsampling costs a quarter of doing it after.
        self.reduce = nn.Conv2d(high, outputs, 3, padding=1)
        self.merge = nn.Conv2d(outputs + sum(lows), outputs, 3, padding=1)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        x = upsample(F.elu(self.reduce(high)))
        return F.elu(self.merge(torch.cat([x, *lows], dim=1)))


@DECODERS.register("light")
class LightDecoder(Decoder):
    """The decoder of the bundle `lite`: 16, 24, 32, 64, 96 channels from 1/1 to 1/16."""

    CHANNELS = (16, 24, 32, 64, 96)
    HEADS = CHANNELS[:4]
    EIGHTH = CHANNELS[3]

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        channels = self.trunk_channels
        c0, c1, c2, c3, c4 = self.CHANNELS
        self.node4 = LightNode(sum(channels[32]), channels[16], c4)
        self.node3 = LightNode(c4, channels[8], c3)
        self.node2 = LightNode(c3, channels[4], c2)
        self.node1 = LightNode(c2, channels[2], c1)
        self.node0 = LightNode(c1, (), c0)

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        return {0: self.node0(d1, []), 1: d1, 2: d2, 3: d3}
