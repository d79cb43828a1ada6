"""The multi-scale fusion decoder of RA-Depth, which MISM's single-frame network uses, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.decoder import DECODERS, FAR_BIAS, ConvBlock, Decoder, upsample
from depth_prior_ros.models.trunk import Features

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
    """Three dense rounds, then 1/4 to 1/1: 416,589 parameters on HRNet-W18; scale 0 only.

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
