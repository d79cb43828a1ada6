"""Depth decoders, for any trunk: monodepth2's, DIFFNet's, RA-Depth's, and light ones.

What all share: which scales there are, the heads, and the way up from 1/32 of the input.

A decoder asks the trunk for channels and strides (`channels` of a trunk) and returns sigmoid
disparities in [0, 1] at scale s, that is 1 / 2**s of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.matching import convex_upsample
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


class Pyramid(Decoder):
    """A decoder that goes up node by node: each takes the coarser map and the trunk's features."""

    #: Makes a node of the channels of the coarser map, of the trunk's features and of its own map.
    NODE: type[nn.Module]
    #: Channels of the nodes' maps by scale, the coarsest first; `node{scale}` makes the map.
    WIDTHS: ClassVar[Mapping[int, int]]

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        above = sum(self.trunk_channels[32])
        for scale, width in self.WIDTHS.items():
            lows = self.trunk_channels.get(2**scale, [])
            setattr(self, f"node{scale}", self.NODE(above, lows, width))
            above = width

    def _maps(self, features: Features) -> dict[int, Tensor]:
        maps, above = {}, torch.cat(features[32], dim=1)
        for scale in self.WIDTHS:
            above = maps[scale] = getattr(self, f"node{scale}")(above, features.get(2**scale, []))
        return maps


class _Node(nn.Module):
    """ConvBlock, upsample, concatenate the trunk's features of that size, ConvBlock."""

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(high, outputs)
        self.merge = ConvBlock(outputs + sum(lows), outputs)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        return self.merge(torch.cat([upsample(self.reduce(high)), *lows], dim=1))


@DECODERS.register("monodepth2")
class Monodepth2Decoder(Pyramid):
    """monodepth2's (arXiv 1806.01260, supplementary section A.1): 3.15 M parameters on ResNet-18.

    256, 128, 64, 32, 16 channels from 1/16 to 1/1.
    """

    NODE = _Node
    WIDTHS: ClassVar = {4: 256, 3: 128, 2: 64, 1: 32, 0: 16}
    HEADS = (16, 32, 64, 128)
    EIGHTH = 128
    MIN_SIDE = 64


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
class DiffNetDecoder(Pyramid):
    """DIFFNet's, with channel attention (section 3.3): 1,306,840 parameters on HRNet-W18."""

    NODE = AttentionNode
    WIDTHS: ClassVar = {4: 256, 3: 128, 2: 64, 1: 32}
    HEADS = (16, 32, 64, 128)
    EIGHTH = 128

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        self.node0_low = ConvBlock(32, 16)
        self.node0_high = ConvBlock(16, 16)

    def _maps(self, features: Features) -> dict[int, Tensor]:
        maps = super()._maps(features)
        return {0: self.node0_high(upsample(self.node0_low(maps[1]))), **maps}


class LightNode(nn.Module):
    """Reduce, upsample, concatenate, merge: the convolutions are plain, and zero padded."""

    PADDING: Literal["zeros", "replicate"] = "zeros"

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        # Reducing before upsampling costs a quarter of doing it after.
        self.reduce = nn.Conv2d(high, outputs, 3, padding=1, padding_mode=self.PADDING)
        merged = outputs + sum(lows)
        self.merge = nn.Conv2d(merged, outputs, 3, padding=1, padding_mode=self.PADDING)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        x = upsample(F.elu(self.reduce(high)))
        return F.elu(self.merge(torch.cat([x, *lows], dim=1)))


@DECODERS.register("light")
class LightDecoder(Pyramid):
    """The decoder of the bundle `lite`: 16, 24, 32, 64, 96 channels from 1/1 to 1/16."""

    NODE = LightNode
    WIDTHS: ClassVar = {4: 96, 3: 64, 2: 32, 1: 24, 0: 16}
    HEADS = (16, 24, 32, 64)
    EIGHTH = 64


class _RepeatingNode(LightNode):
    """What lies beyond the frame repeats its border instead of being zero."""

    PADDING = "replicate"


@DECODERS.register("convex")
class ConvexDecoder(Pyramid):
    """32, 32, 64, 96 channels from 1/2 to 1/16; scale 0 is upsampled from scale 1.

    Half of `LightDecoder`'s work is at full resolution, where it smooths. Here every pixel of the
    full map chooses among the 3x3 disparities around it (RAFT, section 3.3), so that a jump in
    depth stays one.
    """

    NODE = _RepeatingNode
    WIDTHS: ClassVar = {4: 96, 3: 64, 2: 32, 1: 32}
    HEADS = (32, 32, 64)
    EIGHTH = 64

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        self.mask = nn.Conv2d(self.WIDTHS[1], 9 * 2**2, 1)

    @classmethod
    def offered(cls) -> tuple[int, ...]:
        """One more than there are heads: the full resolution has none of its own."""
        return tuple(range(len(cls.HEADS) + 1))

    def _disparities(self, maps: Mapping[int, Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
        found = {s: self.heads[s - 1](maps[s]) for s in maps if s in wanted or s == 1}
        if 0 in wanted:
            d1 = maps[1]
            with torch.autocast(device_type=d1.device.type, enabled=False):
                found[0] = convex_upsample(found[1], self.mask(d1.to(self.mask.weight.dtype)), 2)
        return {scale: found[scale] for scale in wanted}


# From fine to coarse; the stem at 1/2 joins at the end.
_STRIDES = (4, 8, 16, 32)


class _Lift(nn.Module):
    """Bring a coarser map to a finer one's channels and size.

    1x1 convolution and ELU act on single pixels, so they commute with nearest upsampling; before it
    they cost a quarter (a sixteenth, ...) of what they cost after.
    """

    def __init__(self, inputs: int, outputs: int, steps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, 2**steps H, 2**steps W)."""
        return F.interpolate(F.elu(self.conv(x)), scale_factor=float(2**self.steps), mode="nearest")


class _Round(nn.Module):
    """One dense top-down round: every map takes in all coarser ones, then the coarsest leaves."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.own = nn.ModuleList(ConvBlock(width, width) for width in widths)
        self.lifts = nn.ModuleList(
            nn.ModuleList(
                _Lift(widths[coarse], widths[fine], coarse - fine)
                for coarse in range(fine + 1, len(widths))
            )
            for fine in range(len(widths) - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse -> the same without the coarsest."""
        refined = [block(x) for block, x in zip(self.own, maps, strict=True)]
        results = []
        for fine, lifts in enumerate(self.lifts):
            assert isinstance(lifts, nn.ModuleList)
            total = refined[fine]
            for lift, coarse in zip(lifts, refined[fine + 1 :], strict=True):
                total = total + lift(coarse)
            results.append(total)
        return results


@DECODERS.register("ra_depth")
class RADepthDecoder(Decoder):
    """RA-Depth's multi-scale fusion, which MISM uses, too: 416,589 parameters on HRNet-W18.

    Three dense rounds, then 1/4 to 1/1; scale 0 only.

    Of several tensors at a stride it takes the last, the one of the deepest stage.
    """

    HEADS = (16,)
    MIN_SIDE = 64

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        stem = self.trunk_channels[2][-1]
        widths = [self.trunk_channels[stride][-1] for stride in _STRIDES]
        self.rounds = nn.ModuleList(_Round(widths[:count]) for count in (4, 3, 2))
        self.quarter = ConvBlock(widths[0], widths[0])
        self.lift = _Lift(widths[0], stem, 1)
        self.stem = ConvBlock(stem, stem)
        self.finer = ConvBlock(stem, 32)
        self.finest = ConvBlock(32, 16)

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        maps = [features[stride][-1] for stride in _STRIDES]
        for dense in self.rounds:
            maps = dense(maps)
        half = self.stem(features[2][-1]) + self.lift(self.quarter(maps[0]))
        return {0: self.finest(upsample(self.finer(half)))}
