"""ManyDepth's multi-frame network: a wide cost volume over the depth range of the data set.

Watson et al., "The Temporal Opportunist", CVPR 2021 (arXiv 2104.14540), sections 3.2 and 3.3, with
the details of the authors' published networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.decoder import Monodepth2Decoder
from depth_prior_ros.models.matching import (
    STRIDE,
    WINDOW,
    Features,
    Gather,
    Lookup,
    MultiFrameNetwork,
    TrackedRange,
    check_stride,
    hypothesis_pixels,
    quarter,
    quarter_intrinsics,
    sample_hypotheses,
    search_parallax,
    within,
)
from depth_prior_ros.models.resnet import RESNET18_CHANNELS, ResNet18Body, normalise_image
from depth_prior_ros.models.trunk import check_size

# Features this near to a border are spoilt by zero padding and not compared.
_BORDER = 2
# Hypotheses warped at a time: bounds the memory to this many feature maps.
_CHUNK = 16


class CostVolumeOutput(NamedTuple):
    """What the cost-volume network returns; depth in network units.

    Attributes:
        depth: (B, 1, H, W).
        depth_quarter: (B, 1, h, w), every fourth pixel of it.
        confidence: (B, 1, h, w), one where all hypotheses were compared, else zero.
        hypotheses: (B, D, h, w) depths, the nearest first.
        cost: (B, D, h, w) mean absolute difference of features; what was not seen has the largest
            of its pixel. Differentiable by the current frame's features.
        disparity: scale -> sigmoid disparity (B, 1, H / 2**scale, W / 2**scale).
        encoded: stride 8, 16, 32 -> features of what was matched.
        parallax: (B, 1, h, w) pixels of the input that the range spans in the lookup frames; zero
            without any. This network does not blend by it: it was trained to answer alone.
    """

    depth: Tensor
    depth_quarter: Tensor
    confidence: Tensor
    hypotheses: Tensor
    cost: Tensor
    disparity: dict[int, Tensor]
    encoded: dict[int, Tensor]
    parallax: Tensor

    @property
    def matched(self) -> Tensor:
        """The depth, as nothing is blended."""
        return self.depth

    @property
    def best(self) -> Tensor:
        """(B, 1, h, w) index of the hypothesis of least cost."""
        return self.cost.argmin(dim=1, keepdim=True)

    @property
    def lowest_cost(self) -> Tensor:
        """Its depth (B, 1, h, w), which ManyDepth compares with the single-frame depth."""
        return self.hypotheses.gather(1, self.best)

    @property
    def depths(self) -> dict[int, Tensor]:
        """scale -> depth (B, 1, H / 2**scale, W / 2**scale), of the scales that were asked for."""
        return {scale: disparity_to_depth(d)[1] for scale, d in self.disparity.items()}


class CostVolumeNet(MultiFrameNetwork):
    """Depth from a volume of feature differences: 14.42 M parameters.

    The buffers `range.min_depth` and `range.max_depth` bound the hypotheses (see `TrackedRange`).
    ImageNet weights belong into `encoder`. Gradients of lookup frames, motions and single-frame
    depth are cut; compute the lookup frames' features under `torch.no_grad()`.

    Args:
        size: (H, W) of the input, multiples of 32 and at least 64.
        hypotheses: depths that are compared.
        window: images that one step of the tracked range stands for.

    Raises:
        ValueError: a size or count that the network can't take.
    """

    #: `match` takes a single-frame depth for the sake of the interface and does not look at it.
    uses_single_depth = False
    lookup_gradient = False

    def __init__(self, size: tuple[int, int], hypotheses: int = 96, window: int = WINDOW) -> None:
        super().__init__()
        height, width = (int(side) for side in size)
        check_size(height, width, "multi-frame input size")
        if min(height, width) < Monodepth2Decoder.MIN_SIDE:
            raise ValueError(
                f"multi-frame input size {width}x{height}: the cost-volume network needs sides of "
                f"at least {Monodepth2Decoder.MIN_SIDE}"
            )
        if hypotheses < 2:
            raise ValueError(f"{hypotheses} hypotheses: at least two are needed")
        self.size = (height, width)
        self.hypotheses = hypotheses
        self.feature_channels = dict(RESNET18_CHANNELS)
        channels = RESNET18_CHANNELS[STRIDE]
        self.encoder = ResNet18Body()
        self.fusion = nn.Sequential(
            nn.Conv2d(channels + hypotheses, channels, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.decoder = Monodepth2Decoder({s: [width] for s, width in RESNET18_CHANNELS.items()})
        self.range = TrackedRange(window=window)
        self.architecture: dict[str, Any] = {
            "kind": "cost_volume",
            "size": [height, width],
            "hypotheses": hypotheses,
            "window": window,
        }

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that `match_many` can return."""
        return self.decoder.scales

    def feature_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(C, h, w) of matching features at 1/4 and of the stem at 1/2."""
        height, width = self.size
        stem, matching = RESNET18_CHANNELS[2], RESNET18_CHANNELS[4]
        return (matching, height // 4, width // 4), (stem, height // 2, width // 2)

    def _features(self, image: Tensor) -> Features:
        stem, matching = self.encoder.shallow(normalise_image(image))
        return Features(matching, stem)

    def match_many(
        self,
        current: Features,
        lookups: Sequence[Lookup],
        K: Tensor,
        single_depth: Tensor | None = None,
        scales: Sequence[int] = (0,),
    ) -> CostVolumeOutput:
        """See `MultiFrameNetwork`: the mean cost over the frames that see a point.

        Without any lookup frame, or where all of a sample's are missing, the volume is zero: the
        network answers from the current frame alone, and the confidence is zero. The single-frame
        depth is not used.
        """
        if 0 not in scales:
            raise ValueError(f"scales {list(scales)} lack 0, at which the depth is")
        batch, (height, width) = len(current.matching), current.matching.shape[2:]
        # Coordinates need more than the eight bits of bfloat16's mantissa.
        with torch.autocast(device_type=K.device.type, enabled=False):
            depths = self.range.linear(self.hypotheses).expand(batch, -1, height, width)
            cost, seen = self._volume(
                current.matching.float(), lookups, quarter_intrinsics(K.float()), depths
            )
            cost = torch.where(seen, cost, cost.amax(dim=1, keepdim=True))
            confidence = seen.all(dim=1, keepdim=True).float()
            parallax = self._parallax(lookups, quarter_intrinsics(K.float()), depths)
        fused = self.fusion(torch.cat([current.matching, cost * confidence], dim=1))
        deep = dict(zip((8, 16, 32), self.encoder.deep(fused), strict=True))
        levels = {2: [current.context], 4: [current.matching], **{s: [t] for s, t in deep.items()}}
        disparity = self.decoder(levels, scales)
        depth = disparity_to_depth(disparity[0])[1]
        return CostVolumeOutput(
            depth, quarter(depth), confidence, depths, cost, disparity, deep, parallax
        )

    @torch.no_grad()
    def _parallax(self, lookups: Sequence[Lookup], K: Tensor, depths: Tensor) -> Tensor:
        ends, found = depths[:, :: self.hypotheses - 1], torch.zeros_like(depths[:, :1])
        for lookup in lookups:
            pose = Pose(lookup.lookup_from_current.matrix.float())
            spanned = search_parallax(hypothesis_pixels(ends, K, pose), *ends.shape[2:])
            if lookup.valid is not None:
                spanned = spanned * lookup.valid.view(-1, 1, 1, 1)
            found = torch.maximum(found, spanned)
        return found

    def _volume(
        self, current: Tensor, lookups: Sequence[Lookup], K: Tensor, depths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Costs and what was seen, (B, D, h, w) both; recomputed in the backward pass."""
        if not lookups:
            return torch.zeros_like(depths), torch.zeros_like(depths, dtype=torch.bool)
        lookups = [
            Lookup(found.matching.detach().float(), found.lookup_from_current.detach(), found.valid)
            for found in lookups
        ]
        costs, seen = [], []
        for part in depths.split(_CHUNK, dim=1):
            if torch.is_grad_enabled() and current.requires_grad:
                found = checkpoint(_costs, current, lookups, K, part, use_reentrant=False)
            else:
                found = _costs(current, lookups, K, part)
            costs.append(found[0])
            seen.append(found[1])
        return torch.cat(costs, dim=1), torch.cat(seen, dim=1)

    def features_at(
        self, current: Features, output: CostVolumeOutput, stride: int = STRIDE
    ) -> Tensor:
        """See `MultiFrameNetwork`.

        At 2 and 4 those of the frame alone (4: what is matched), deeper ones know the volume.
        """
        check_stride(stride, self.feature_channels)
        shallow = {2: current.context, 4: current.matching}
        return shallow[stride] if stride in shallow else output.encoded[stride]

    def observe(
        self, multi_depth: Tensor, single_depth: Tensor, gather: Gather | None = None
    ) -> None:
        """After a training step: let the range follow the single-frame depth (B, 1, H, W)."""
        self.range.update(single_depth, gather)

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights of ResNet-18 into the encoder; see `MultiFrameNetwork`."""
        self.encoder.load_weights(state)


def _costs(
    current: Tensor, lookups: Sequence[Lookup], K: Tensor, depths: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean absolute differences for some hypotheses: costs and what was seen, (B, d, h, w)."""
    height, width = current.shape[2:]
    inner = F.pad(current.new_ones(height - 2 * _BORDER, width - 2 * _BORDER), [_BORDER] * 4) > 0
    totals, counts = [], []
    for lookup in lookups:
        pose = Pose(lookup.lookup_from_current.matrix.float())
        pixels = hypothesis_pixels(depths, K, pose)
        warped = sample_hypotheses(lookup.matching, pixels)
        difference = (warped - current.unsqueeze(-1)).abs().mean(dim=1)
        there = within(pixels, height, width, _BORDER, _BORDER)[:, 0] & inner[None, :, :, None]
        if lookup.valid is not None:
            there = there & lookup.valid.view(-1, 1, 1, 1)
        totals.append(torch.where(there, difference, torch.zeros_like(difference)))
        counts.append(there.float())
    count = torch.stack(counts).sum(dim=0)
    cost = torch.stack(totals).sum(dim=0) / count.clamp(min=1)
    return cost.permute(0, 3, 1, 2), (count > 0).permute(0, 3, 1, 2)
