"""A light decoder that ends at half the resolution and upsamples by learned convex combinations.

Half of `LightDecoder`'s work is at full resolution, where it smooths. Here every pixel of the full
map chooses among the 3x3 disparities around it (RAFT, section 3.3), so that a jump in depth stays
one; and what lies beyond the frame repeats its border instead of being zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.decoder import DECODERS, FAR_BIAS, Decoder, upsample
from depth_prior_ros.models.matching import convex_upsample
from depth_prior_ros.models.trunk import Features


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


class _Node(nn.Module):
    """Reduce, upsample, concatenate the trunk's features, merge."""

    def __init__(self, high: int, lows: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.reduce = _convolution(high, outputs)
        self.merge = _convolution(outputs + sum(lows), outputs)

    def forward(self, high: Tensor, lows: Sequence[Tensor]) -> Tensor:
        """(B, high, H / 2, W / 2) and (B, low_i, H, W) -> (B, outputs, H, W)."""
        x = upsample(F.elu(self.reduce(high)))
        return F.elu(self.merge(torch.cat([x, *lows], dim=1)))


@DECODERS.register("convex")
class ConvexDecoder(Decoder):
    """32, 32, 64, 96 channels from 1/2 to 1/16; scale 0 is upsampled from scale 1."""

    CHANNELS = (32, 32, 64, 96)
    HEADS = CHANNELS[:3]
    EIGHTH = CHANNELS[2]

    def __init__(
        self, trunk_channels: Mapping[int, Sequence[int]], far_bias: float = FAR_BIAS
    ) -> None:
        super().__init__(trunk_channels, far_bias)
        channels = self.trunk_channels
        c1, c2, c3, c4 = self.CHANNELS
        self.node4 = _Node(sum(channels[32]), channels[16], c4)
        self.node3 = _Node(c4, channels[8], c3)
        self.node2 = _Node(c3, channels[4], c2)
        self.node1 = _Node(c2, channels[2], c1)
        self.mask = nn.Conv2d(c1, 9 * 2**2, 1)

    @classmethod
    def offered(cls) -> tuple[int, ...]:
        """One more than there are heads: the full resolution has none of its own."""
        return tuple(range(len(cls.HEADS) + 1))

    def _maps(self, features: Features) -> Mapping[int, Tensor]:
        d4 = self.node4(torch.cat(features[32], dim=1), features[16])
        d3 = self.node3(d4, features[8])
        d2 = self.node2(d3, features[4])
        d1 = self.node1(d2, features[2])
        return {1: d1, 2: d2, 3: d3}

    def _disparities(self, maps: Mapping[int, Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
        found = {s: self.heads[s - 1](maps[s]) for s in maps if s in wanted or s == 1}
        if 0 in wanted:
            d1 = maps[1]
            with torch.autocast(device_type=d1.device.type, enabled=False):
                found[0] = convex_upsample(found[1], self.mask(d1.to(self.mask.weight.dtype)), 2)
        return {scale: found[scale] for scale in wanted}
