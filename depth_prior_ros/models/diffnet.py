"""Depth decoders: DIFFNet's with channel attention, and a light one for small machines.

Both ask the trunk for channels and strides (`HRNet.channels`) and return sigmoid disparities in
[0, 1] at scales 0 to 3, that is 1/1, 1/2, 1/4 and 1/8 of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.hrnet import Features, check_features

#: Strides that a trunk must offer, the deepest first.
DECODER_STRIDES = (32, 16, 8, 4, 2)
SCALES = (0, 1, 2, 3)
#: The logit of 0.05: about two network units far. Starting at sigmoid 0.5 (0.2 units) makes every
#: early warp fail, and training from random weights then settles on a flat depth.
FAR_BIAS = math.log(0.05 / 0.95)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvBlock(nn.Module):
    """Reflection padding, 3x3 convolution, ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return F.elu(self.conv(x))


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
        x = torch.cat([_upsample(high), *lows], dim=1)
        return F.relu(self.conv(self.attention(x)))


class DisparityHead(nn.Module):
    """3x3 convolution with reflection padding to one logit, and its sigmoid, both in float32.

    Args:
        inputs: channels of the map.
        far_bias: the bias it starts with; -2.94 is a sigmoid of 0.05, about two network units.
    """

    def __init__(self, inputs: int, far_bias: float = FAR_BIAS) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 1, 3, padding=1, padding_mode="reflect")
        assert self.conv.bias is not None
        nn.init.constant_(self.conv.bias, far_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> disparity (B, 1, H, W) in [0, 1], float32 even under autocast."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            return torch.sigmoid(self.conv(x.to(self.conv.weight.dtype)))


class _Decoder(nn.Module):
    """What both decoders share: the trunk's channels, the heads, and which scales are asked for."""

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], heads: Sequence[int], far_bias: float
    ) -> None:
        super().__init__()
        missing = [stride for stride in DECODER_STRIDES if not trunk_channels.get(stride)]
        if missing:
            raise ValueError(f"the trunk offers no features at strides {missing}")
        self.trunk_channels = {stride: list(c) for stride, c in trunk_channels.items()}
        self.heads = nn.ModuleList(DisparityHead(width, far_bias) for width in heads)

    def _maps(self, features: Features) -> list[Tensor]:
        """Maps at 1/1, 1/2, 1/4, 1/8."""
        raise NotImplementedError

    def forward(self, features: Features, scales: Sequence[int] = SCALES) -> dict[int, Tensor]:
        """Decode trunk features.

        Args:
            features: stride -> tensors, as `HRNet.forward` returns them.
            scales: which of the scales 0 to 3 to compute (0 alone saves the other heads).

        Returns:
            scale -> disparity (B, 1, H / 2**scale, W / 2**scale) in [0, 1], float32.

        Raises:
            ValueError: features of another trunk.
        """
        check_features(features, self.trunk_channels)
        maps = self._maps(features)
        return {scale: self.heads[scale](maps[scale]) for scale in scales}


class DiffNetDecoder(_Decoder):
    """DIFFNet's decoder (section 3.3): 1,306,840 parameters on HRNet-W18."""

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, heads=(16, 32, 64, 128), far_bias=far_bias)
        taps = self.trunk_channels
        self.node4 = AttentionNode(sum(taps[32]), taps[16], 256)
        self.node3 = AttentionNode(256, taps[8], 128)
        self.node2 = AttentionNode(128, taps[4], 64)
        self.node1 = AttentionNode(64, taps[2], 32)
        self.node0_low = ConvBlock(32, 16)
        self.node0_high = ConvBlock(16, 16)

    def _maps(self, features: Features) -> list[Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        d0 = self.node0_high(_upsample(self.node0_low(d1)))
        return [d0, d1, d2, d3]


class LightNode(nn.Module):
    """Reduce, upsample, concatenate, merge: the convolutions are zero padded and plain."""

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        # Reducing before upsampling costs a quarter of doing it after.
        self.reduce = nn.Conv2d(high, outputs, 3, padding=1)
        self.merge = nn.Conv2d(outputs + sum(lows), outputs, 3, padding=1)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        x = _upsample(F.elu(self.reduce(high)))
        return F.elu(self.merge(torch.cat([x, *lows], dim=1)))


class LightDecoder(_Decoder):
    """The decoder of the bundle `lite`: 16, 24, 32, 64, 96 channels from 1/1 to 1/16."""

    CHANNELS = (16, 24, 32, 64, 96)

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, heads=self.CHANNELS[:4], far_bias=far_bias)
        taps = self.trunk_channels
        c0, c1, c2, c3, c4 = self.CHANNELS
        self.node4 = LightNode(sum(taps[32]), taps[16], c4)
        self.node3 = LightNode(c4, taps[8], c3)
        self.node2 = LightNode(c3, taps[4], c2)
        self.node1 = LightNode(c2, taps[2], c1)
        self.node0 = LightNode(c1, (), c0)

    def _maps(self, features: Features) -> list[Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        return [self.node0(d1, []), d1, d2, d3]


DECODERS: dict[str, type[DiffNetDecoder] | type[LightDecoder]] = {
    "diffnet": DiffNetDecoder,
    "light": LightDecoder,
}
