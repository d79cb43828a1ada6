"""The decoder of monodepth2 (arXiv 1806.01260, supplementary section A.1), for any trunk.

What all depth decoders share: which scales there are, the heads, and two building blocks.

A decoder asks the trunk for channels and strides (`channels` of a trunk) and returns sigmoid
disparities in [0, 1] at scale s, that is 1 / 2**s of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.trunk import Features, check_features
from depth_prior_ros.registry import Registry

#: Strides that a trunk must offer, the deepest first.
DECODER_STRIDES = (32, 16, 8, 4, 2)
SCALES = (0, 1, 2, 3)
#: The logit of 0.05: about two network units far. Starting at sigmoid 0.5 (0.2 units) makes every
#: early warp fail, and training from random weights then settles on a flat depth.
FAR_BIAS = math.log(0.05 / 0.95)


def upsample(x: Tensor) -> Tensor:
    """Twice the size, nearest."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvBlock(nn.Module):
    """Reflection padding, 3x3 convolution, ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return F.elu(self.conv(x))


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


class Decoder(nn.Module):
    """Base of the decoders: the trunk's channels, the heads, and which scales are asked for.

    Args:
        trunk_channels: stride -> channels of each of its tensors at that stride.
        far_bias: the logit that every head starts with.

    Raises:
        ValueError: a trunk without features at a stride from 2 to 32.
    """

    #: Channels of the maps at scale 0, 1, ... that have a head.
    HEADS: tuple[int, ...]
    #: Channels of the map at 1/8; None: there is none.
    EIGHTH: int | None = None
    #: The smallest side of the input; those that reflect at 1/32 of it need two pixels there.
    MIN_SIDE = 32

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__()
        missing = [stride for stride in DECODER_STRIDES if not trunk_channels.get(stride)]
        if missing:
            raise ValueError(f"the trunk offers no features at strides {missing}")
        self.trunk_channels = {stride: list(c) for stride, c in trunk_channels.items()}
        self.heads = nn.ModuleList(DisparityHead(width, far_bias) for width in self.HEADS)

    @classmethod
    def offered(cls) -> tuple[int, ...]:
        """The scales that decoders of this class have."""
        return tuple(range(len(cls.HEADS)))

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales this decoder has."""
        return self.offered()

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        """Scale -> map at 1 / 2**scale of the input."""
        raise NotImplementedError

    def forward(self, features: Features, scales: Sequence[int] | None = None) -> dict[int, Tensor]:
        """Decode trunk features.

        Args:
            features: stride -> tensors, as the trunk returns them.
            scales: which scales to compute (0 alone saves the other heads); None: all there are.

        Returns:
            scale -> disparity (B, 1, H / 2**scale, W / 2**scale) in [0, 1], float32.

        Raises:
            ValueError: features of another trunk or of too small an image, or a scale that this
                decoder has not.
        """
        return self.with_maps(features, scales)[0]

    def with_maps(
        self, features: Features, scales: Sequence[int] | None = None
    ) -> tuple[dict[int, Tensor], Mapping[int, Tensor]]:
        """As `forward`, and the maps that the disparities are read from: scale -> (B, C, h, w)."""
        wanted = self.scales if scales is None else tuple(scales)
        check_scales(wanted, self.scales)
        check_features(features, self.trunk_channels)
        side = 32 * min(features[32][0].shape[2:])
        if not torch.jit.is_tracing() and side < self.MIN_SIDE:
            raise ValueError(
                f"an image with a side of {side} is too small for this decoder: at least "
                f"{self.MIN_SIDE} are needed"
            )
        maps = self._maps(features)
        return self._disparities(maps, wanted), maps

    def _disparities(self, maps: Mapping[int, Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
        """The disparity of each of the scales that are wanted, from its map and head."""
        return {scale: self.heads[scale](maps[scale]) for scale in wanted}


DECODERS: Registry[type[Decoder]] = Registry("decoder", __package__)


def check_scales(wanted: Sequence[int], offered: Sequence[int]) -> None:
    """Raise ValueError where a scale is asked for that a decoder does not offer."""
    absent = sorted(set(wanted) - set(offered))
    if absent:
        raise ValueError(
            f"scales {absent} were asked for: this decoder has {list(offered)} "
            "(scale s is 1 / 2**s of the input); set the scales of the recipe accordingly"
        )


class _Node(nn.Module):
    """ConvBlock, upsample, concatenate the trunk's features of that size, ConvBlock."""

    def __init__(self, high: int, low: int, outputs: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(high, outputs)
        self.merge = ConvBlock(outputs + low, outputs)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        return self.merge(torch.cat([upsample(self.reduce(high)), *lows], dim=1))


@DECODERS.register("monodepth2")
class Monodepth2Decoder(Decoder):
    """256, 128, 64, 32, 16 channels from 1/16 to 1/1: 3.15 M parameters on ResNet-18."""

    CHANNELS = (16, 32, 64, 128, 256)
    HEADS = CHANNELS[:4]
    EIGHTH = CHANNELS[3]
    MIN_SIDE = 64

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        channels = {stride: sum(widths) for stride, widths in self.trunk_channels.items()}
        c0, c1, c2, c3, c4 = self.CHANNELS
        self.node4 = _Node(channels[32], channels[16], c4)
        self.node3 = _Node(c4, channels[8], c3)
        self.node2 = _Node(c3, channels[4], c2)
        self.node1 = _Node(c2, channels[2], c1)
        self.node0 = _Node(c1, 0, c0)

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        return {0: self.node0(d1, []), 1: d1, 2: d2, 3: d3}
