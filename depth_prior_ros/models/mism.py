"""The multi-frame network of MISM: matching features, a narrow cost volume, 3-D regularisation.

Two frames and the motion between them refine a single-frame depth. Sources: MISM (arXiv 2304.12685)
and MOVEDepth, its ancestor. Beyond the papers, matching is trusted by parallax and confidence:
where the search range spans a fraction of a pixel there is nothing to match, and the single-frame
depth stays; where no hypothesis stands out, a part of it does.

The parts of MISM's multi-frame network that learn: its feature pyramid and its 3-D U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.decoder import check_scales
from depth_prior_ros.models.manydepth import CostVolumeNet
from depth_prior_ros.models.matching import (
    PARALLAX,
    STRIDE,
    WINDOW,
    Features,
    Gather,
    Lookup,
    MultiFrameNetwork,
    PadsMap,
    TrackedRange,
    blend_depth,
    check_parallax,
    check_stride,
    convex_upsample,
    depth_hypotheses,
    group_correlation,
    hypothesis_pixels,
    local_max_regression,
    parallax_weight,
    quarter,
    quarter_intrinsics,
    sample_hypotheses,
    search_parallax,
    within,
)
from depth_prior_ros.models.resnet import initialise_convolutions
from depth_prior_ros.models.trunk import check_size

FEATURE_CHANNELS = 32
_FEW_HYPOTHESES = 16  # with more, the band of zeros costs more than it saves


def _conv2d(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _conv2d(inputs, outputs, kernel=5, stride=2),
        _conv2d(outputs, outputs),
        _conv2d(outputs, outputs),
    )


class FeatureNet(nn.Module):
    """Feature pyramid from scratch: 0.186 M parameters (MISM, M-DepthNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_conv2d(3, 8), _conv2d(8, 8))
        self.conv1 = _down(8, 16)
        self.conv2 = _down(16, FEATURE_CHANNELS)
        self.conv3 = _down(FEATURE_CHANNELS, 64)
        self.lateral = nn.Conv2d(FEATURE_CHANNELS, 64, 1)
        self.out = nn.Conv2d(64, FEATURE_CHANNELS, 3, padding=1, bias=False)
        initialise_convolutions(self)

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W), RGB in [0, 1] -> features at (H / 4, W / 4)."""
        context = self.conv2(self.conv1(self.conv0(image)))
        deep = F.interpolate(
            self.conv3(context), scale_factor=2.0, mode="bilinear", align_corners=True
        )
        return Features(self.out(self.lateral(context) + deep), context)


def _conv3d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


def _up3d(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class Regulariser(nn.Module):
    """3-D U-Net over the cost volume: 1.170 M parameters (MISM, M-DepthNet).

    Hypotheses are the last dimension: with them first, PyTorch's heuristics take a slow kernel for
    a batch of one on a CPU (measured: 8.5 times as slow at 640x192).
    """

    def __init__(self, groups: int, base: int = 16) -> None:
        super().__init__()
        self.conv0 = _conv3d(groups, base)
        self.down1 = nn.Sequential(_conv3d(base, 2 * base, 2), _conv3d(2 * base, 2 * base))
        self.down2 = nn.Sequential(_conv3d(2 * base, 4 * base, 2), _conv3d(4 * base, 4 * base))
        self.down3 = nn.Sequential(_conv3d(4 * base, 8 * base, 2), _conv3d(8 * base, 8 * base))
        self.up3 = _up3d(8 * base, 4 * base)
        self.up2 = _up3d(4 * base, 2 * base)
        self.up1 = _up3d(2 * base, base)
        self.logits = nn.Conv3d(base, 1, 3, padding=1, bias=False)

    def forward(self, cost: Tensor) -> Tensor:
        """(B, groups, h, w, D), h, w and D multiples of eight -> logits (B, D, h, w)."""
        x0 = self.conv0(cost)
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        # With eight hypotheses one is left here, and there PyTorch's strided convolution (the
        # gradient of the transposed one is such a one too) reads foreign memory in bfloat16 on a
        # CPU with AMX: pytorch/pytorch#169688.
        with torch.autocast(device_type=x2.device.type, enabled=False):
            deep = self.up3(self.down3(x2.to(self.logits.weight.dtype)))
        x = deep + x2
        x = self.up2(x) + x1
        x = self.up1(x) + x0
        hypotheses = int(x.shape[-1])
        if hypotheses > _FEW_HYPOTHESES:
            return self.logits(x).squeeze(1).permute(0, 3, 1, 2)
        # A CPU computes sixteen channels where one is asked for; hypotheses as channels fill them.
        flat = x.permute(0, 4, 1, 2, 3).flatten(1, 2)
        kernel = _as_2d(self.logits.weight, hypotheses)
        # The export to ONNX has to be told the shape of a kernel that is computed.
        kernel = kernel.reshape(hypotheses, hypotheses * self.logits.in_channels, 3, 3)
        return F.conv2d(flat, kernel, padding=1)


def _as_2d(weight: Tensor, size: int) -> Tensor:
    """A 3-D convolution (1, C, 3, 3, 3) to one channel, as a 2-D one (size, size * C, 3, 3).

    Its last dimension, `size` long and padded with zeros, becomes channels, which a band connects.
    """
    taps = weight[0].permute(3, 0, 1, 2)
    padded = (F.pad(taps, (0, 0, 0, 0, 0, 0, d, size - 1 - d)) for d in range(size))
    return torch.stack([row[1:-1].flatten(0, 1) for row in padded])


class MultiFrameOutput(NamedTuple):
    """What the multi-frame network returns; depth in network units.

    Attributes:
        depth: (B, 1, H, W), from single-frame depth to ``matched`` by ``weight``.
        depth_quarter: (B, 1, h, w), the same before upsampling.
        probability: (B, D, h, w) over the hypotheses.
        confidence: (B, 1, h, w) in [0, 1]: probability of the likeliest hypothesis and its two
            neighbours. Provisional: not calibrated against errors.
        hypotheses: (B, D, h, w) depths, the farthest first.
        parallax: (B, 1, h, w) pixels of the input that the search range spans in the lookup frame
            (of several, in that where it spans most).
        matched: (B, 1, H, W) depth by matching alone, the papers' plain form.
        weight: (B, 1, H, W) in [0, 1], trust in matching, by parallax and, but in training,
            confidence; None where the network blends nothing.
    """

    depth: Tensor
    depth_quarter: Tensor
    probability: Tensor
    confidence: Tensor
    hypotheses: Tensor
    parallax: Tensor
    matched: Tensor
    weight: Tensor | None

    @property
    def trusted(self) -> Tensor:
        """``matched``, NaN where nothing of it is in ``depth``: what the PADS map may follow."""
        if self.weight is None:
            return self.matched
        nothing = torch.full_like(self.matched, torch.nan)
        return torch.where(self.weight > 0, self.matched, nothing)

    @property
    def best(self) -> Tensor:
        """(B, 1, h, w) index of the likeliest hypothesis."""
        return self.probability.argmax(dim=1, keepdim=True)

    @property
    def depths(self) -> dict[int, Tensor]:
        """scale -> depth: there is scale 0 only."""
        return {0: self.depth}


class MultiFrameNet(PadsMap, MultiFrameNetwork):
    """Refines a single-frame depth by matching with other frames: 1.38 M parameters.

    Where the search range spans too little parallax, `forward` returns the single-frame depth.

    The buffer `delta` (1, 1, h, w) is the PADS map (see `PadsMap`): it belongs to one camera
    mounting and one input size.

    Args:
        size: (H, W) of the input, multiples of 32.
        hypotheses: depth hypotheses per pixel, a multiple of 8.
        groups: groups of the correlation; divides 32.
        range_mode: "pads": hypotheses lie around the single-frame depth, as far as `delta` says;
            "tracked": between the least and the largest depth of the data set (ManyDepth's adaptive
            range, buffers `range.min_depth` and `range.max_depth`). Uniform in inverse depth both.
        delta_init: delta at the beginning.
        delta_mode: "adaptive", or "fixed": delta stays what it is.
        window: images over which the largest disagreement is taken for one step of delta.
        parallax: pixels of parallax (`matching.search_parallax`) from which matching is trusted
            as far as it is confident; below half of them the single-frame depth is returned. 0:
            matching always, as MISM and ManyDepth do. While the network is trained, confidence has
            no say, so that it learns from all that it matches.

    Raises:
        ValueError: a size, count, name or threshold that the network can't take.
    """

    lookup_gradient = True
    scales: tuple[int, ...] = (0,)
    _BOUND = ", with its search map,"

    def __init__(
        self,
        size: tuple[int, int],
        hypotheses: int = 16,
        groups: int = 16,
        *,
        range_mode: str = "pads",
        delta_init: float = 1.0,
        delta_mode: str = "adaptive",
        window: int = WINDOW,
        parallax: float = PARALLAX,
    ) -> None:
        height, width = (int(side) for side in size)
        check_size(height, width, "multi-frame input size")
        if hypotheses < 8 or hypotheses % 8:
            raise ValueError(f"{hypotheses} hypotheses: must be a positive multiple of 8")
        if groups < 1 or FEATURE_CHANNELS % groups:
            raise ValueError(f"{groups} groups: must divide {FEATURE_CHANNELS}")
        if range_mode not in ("pads", "tracked"):
            raise ValueError(f"unknown range_mode {range_mode!r}: choose 'pads' or 'tracked'")
        super().__init__((height, width), delta_init, delta_mode, window)
        self.parallax = check_parallax(parallax)
        self.size = (height, width)
        self.hypotheses = hypotheses
        self.groups = groups
        self.feature_channels = {STRIDE: FEATURE_CHANNELS}
        self.feature_net = FeatureNet()
        self.regulariser = Regulariser(groups)
        self.mask = nn.Sequential(
            nn.Conv2d(FEATURE_CHANNELS, 64, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 9 * STRIDE**2, 1),
        )
        self.range = TrackedRange(window=window) if range_mode == "tracked" else None
        self.uses_single_depth = self.range is None
        self.architecture: dict[str, Any] = {
            "kind": "pads",
            "size": [height, width],
            "hypotheses": hypotheses,
            "groups": groups,
            "range_mode": range_mode,
            "delta_init": delta_init,
            "delta_mode": delta_mode,
            "window": window,
            "parallax": self.parallax,
        }

    def feature_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """See `MultiFrameNetwork`."""
        shape = (FEATURE_CHANNELS, self.size[0] // STRIDE, self.size[1] // STRIDE)
        return shape, shape

    def _features(self, image: Tensor) -> Features:
        result: Features = self.feature_net(image)
        return result

    def match_many(
        self,
        current: Features,
        lookups: Sequence[Lookup],
        K: Tensor,
        single_depth: Tensor,
        scales: Sequence[int] = (0,),
    ) -> MultiFrameOutput:
        """See `MultiFrameNetwork`: the frames' correlations are averaged.

        The average runs, per pixel and hypothesis, over the lookup frames that are there and see
        the point; there must be one at least. Gradients of motions and single-frame depth are cut.
        """
        check_scales(scales, self.scales)
        if not lookups:
            raise ValueError("the multi-frame network needs at least one lookup frame")
        # Coordinates need more than the eight bits of bfloat16's mantissa.
        with torch.autocast(device_type=K.device.type, enabled=False):
            hypotheses = self._hypotheses(quarter(single_depth.detach().float()))
            cost, parallax = self._correlation(
                current, lookups, quarter_intrinsics(K.float()), hypotheses
            )
        logits = self.regulariser(cost).float()
        mask = self.mask(current.context).float()
        probability = torch.softmax(logits, dim=1)
        depth_quarter, mass = local_max_regression(probability, hypotheses)
        depth = matched = convex_upsample(depth_quarter, mask)
        weight = None
        if self.parallax:
            single = single_depth.detach().float()
            coarse = parallax_weight(parallax, self.parallax)
            if not self.training:
                coarse = coarse * mass
            weight = F.interpolate(coarse, scale_factor=float(STRIDE), mode="bilinear")
            depth = blend_depth(single, matched, weight)
            depth_quarter = blend_depth(quarter(single), depth_quarter, coarse)
        return MultiFrameOutput(
            depth=depth,
            depth_quarter=depth_quarter,
            probability=probability,
            confidence=mass,
            hypotheses=hypotheses,
            parallax=parallax,
            matched=matched,
            weight=weight,
        )

    def _hypotheses(self, single: Tensor) -> Tensor:
        if self.range is None:
            return depth_hypotheses(single, self.delta, self.hypotheses)
        return self.range.inverse(self.hypotheses).expand(len(single), -1, *single.shape[2:])

    def _correlation(
        self, current: Features, lookups: Sequence[Lookup], K: Tensor, hypotheses: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Correlation (B, groups, h, w, D) and parallax (B, 1, h, w)."""
        costs, seen, parallaxes = [], [], []
        for lookup in lookups:
            pose = Pose(lookup.lookup_from_current.matrix.detach().float())
            pixels = hypothesis_pixels(hypotheses, K, pose)
            warped = sample_hypotheses(lookup.matching.float(), pixels)
            cost = group_correlation(current.matching.float(), warped, self.groups)
            parallax = search_parallax(pixels, *hypotheses.shape[2:])
            if len(lookups) == 1 and lookup.valid is None:
                return cost, parallax
            # Sampling fades to zero over one pixel beyond the frame.
            there = within(pixels, cost.shape[2], cost.shape[3], low=-1, high=0)
            if lookup.valid is not None:
                valid = lookup.valid.view(-1, 1, 1, 1, 1)
                cost, there = torch.where(valid, cost, torch.zeros_like(cost)), there & valid
                parallax = parallax * lookup.valid.view(-1, 1, 1, 1)
            costs.append(cost)
            seen.append(there.float())
            parallaxes.append(parallax)
        mean = torch.stack(costs).sum(dim=0) / torch.stack(seen).sum(dim=0).clamp(min=1)
        return mean, torch.stack(parallaxes).amax(dim=0)

    def features_at(
        self, current: Features, output: MultiFrameOutput, stride: int = STRIDE
    ) -> Tensor:
        """The current frame's matching features (B, 32, H / 4, W / 4), the only stride there is."""
        check_stride(stride, self.feature_channels)
        return current.matching

    def observe(
        self, multi_depth: Tensor, single_depth: Tensor, gather: Gather | None = None
    ) -> None:
        """After a training step: `update_delta`, or the tracked range's update."""
        if self.range is None:
            self.update_delta(multi_depth, single_depth, gather)
        else:
            self.range.update(single_depth, gather)

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Refused: this network starts from scratch (MISM).

        Raises:
            ValueError: always.
        """
        raise ValueError("the PADS network has no ImageNet weights: it starts from scratch")


AnyMultiFrame = MultiFrameNet | CostVolumeNet
_KINDS: dict[str, tuple[type[MultiFrameNet] | type[CostVolumeNet], tuple[str, ...]]] = {
    "pads": (
        MultiFrameNet,
        ("hypotheses", "groups", "range_mode", "delta_init", "delta_mode", "window", "parallax"),
    ),
    "cost_volume": (CostVolumeNet, ("hypotheses", "window")),
}


def build_multi_frame(architecture: Mapping[str, Any]) -> AnyMultiFrame:
    """Build a randomly initialised network from {"kind", "size": [H, W], "hypotheses", ...}.

    `kind` is "pads" (the default: bundles from before there were kinds) or "cost_volume".

    Raises:
        ValueError: an unknown kind or key, a missing size, or a value the network can't take.
    """
    values = dict(architecture)
    kind = values.pop("kind", "pads")
    if kind not in _KINDS:
        raise ValueError(
            f"unknown kind of multi-frame network {kind!r}: choose one of {sorted(_KINDS)}"
        )
    network, settings = _KINDS[kind]
    unknown = sorted(set(values) - {"size", *settings})
    if unknown:
        raise ValueError(
            f"unknown multi-frame settings: {unknown}; kind {kind!r} has {sorted(settings)}"
        )
    if "size" not in values:
        raise ValueError("the multi-frame network needs its input size [H, W]")
    height, width = values.pop("size")
    return network((height, width), **values)
