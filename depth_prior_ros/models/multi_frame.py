"""The multi-frame network of MISM: matching features, a narrow cost volume, 3-D regularisation.

Two consecutive frames and their motion refine a single-frame depth. Sources: MISM (arXiv
2304.12685) and MOVEDepth, its ancestor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry import Pose
from depth_prior_ros.models.inputs import check_image, check_size
from depth_prior_ros.models.matching import (
    STRIDE,
    convex_upsample,
    depth_hypotheses,
    group_correlation,
    local_max_regression,
    quarter,
    quarter_intrinsics,
    warp_to_hypotheses,
)
from depth_prior_ros.models.residual import initialise_convolutions

FEATURE_CHANNELS = 32
#: Bounds of the search width delta: never closed, never beyond five times the depth.
DELTA_RANGE = (0.05, 4.0)
_MOMENTUM = 0.99
_MARGIN = 1.2


class Features(NamedTuple):
    """Features of one frame at a quarter of its resolution.

    Attributes:
        matching: (B, 32, h, w), compared between frames.
        context: (B, 32, h, w), steers the upsampling; only the current frame's is used.
    """

    matching: Tensor
    context: Tensor


class MultiFrameOutput(NamedTuple):
    """What the multi-frame network returns; depth in network units.

    Attributes:
        depth: (B, 1, H, W).
        depth_quarter: (B, 1, h, w) before upsampling.
        probability: (B, D, h, w) over the hypotheses.
        confidence: (B, 1, h, w) in [0, 1]: probability of the likeliest hypothesis and its two
            neighbours. Provisional: not calibrated against errors.
        hypotheses: (B, D, h, w) depths, the farthest first.
    """

    depth: Tensor
    depth_quarter: Tensor
    probability: Tensor
    confidence: Tensor
    hypotheses: Tensor


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
        x = self.up3(self.down3(x2)) + x2
        x = self.up2(x) + x1
        x = self.up1(x) + x0
        return self.logits(x).squeeze(1).permute(0, 3, 1, 2)


class MultiFrameNet(nn.Module):
    """Refines a single-frame depth by matching with the previous frame: 1.38 M parameters.

    The persisted buffer `delta` (1, 1, h, w) is the PADS map: how far around the single-frame depth
    hypotheses reach, per pixel position, shared by all images. It starts at one, and follows the
    disagreement of both depths while training (`update_delta`). It belongs to one camera mounting
    and one input size.

    Args:
        size: (H, W) of the input, multiples of 32.
        hypotheses: depth hypotheses per pixel, a multiple of 8.
        groups: groups of the correlation; divides 32.

    Raises:
        ValueError: a size or count that the network can't take.
    """

    delta: Tensor

    def __init__(self, size: tuple[int, int], hypotheses: int = 16, groups: int = 16) -> None:
        super().__init__()
        height, width = (int(side) for side in size)
        check_size(height, width, "multi-frame input size")
        if hypotheses < 8 or hypotheses % 8:
            raise ValueError(f"{hypotheses} hypotheses: must be a positive multiple of 8")
        if groups < 1 or FEATURE_CHANNELS % groups:
            raise ValueError(f"{groups} groups: must divide {FEATURE_CHANNELS}")
        self.size = (height, width)
        self.hypotheses = hypotheses
        self.groups = groups
        self.feature_net = FeatureNet()
        self.regulariser = Regulariser(groups)
        self.mask = nn.Sequential(
            nn.Conv2d(FEATURE_CHANNELS, 64, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 9 * STRIDE**2, 1),
        )
        self.register_buffer("delta", torch.ones(1, 1, height // STRIDE, width // STRIDE))
        self.architecture: dict[str, Any] = {
            "size": [height, width],
            "hypotheses": hypotheses,
            "groups": groups,
        }

    def features(self, image: Tensor) -> Features:
        """Features of one frame (B, 3, H, W), RGB in [0, 1]; keep them for the next frame.

        Raises:
            ValueError: an image of another size than the network was built for.
        """
        check_image(image)
        if not torch.jit.is_tracing() and tuple(image.shape[2:]) != self.size:
            height, width = self.size
            raise ValueError(
                f"image is {image.shape[3]}x{image.shape[2]}: this multi-frame network, with its "
                f"search map, was built for {width}x{height} (width x height)"
            )
        result: Features = self.feature_net(image)
        return result

    def forward(
        self,
        current: Features,
        previous: Features,
        previous_from_current: Pose,
        K: Tensor,
        single_depth: Tensor,
    ) -> MultiFrameOutput:
        """Depth of the current frame.

        Args:
            current: features of the current frame.
            previous: features of the frame before; its context is not used.
            previous_from_current: motion (B, 4, 4), translation in network units; its gradient is
                cut here, as the pose network learns from the photometric loss only.
            K: intrinsics (B, 3, 3) in pixels of the full input.
            single_depth: (B, 1, H, W) of the single-frame network, network units; gradient cut.
        """
        return self.match(current, previous.matching, previous_from_current.matrix, K, single_depth)

    def match(
        self,
        current: Features,
        previous_matching: Tensor,
        previous_from_current: Tensor,
        K: Tensor,
        single_depth: Tensor,
    ) -> MultiFrameOutput:
        """As `forward`, from bare tensors: previous matching features and motion (B, 4, 4)."""
        # Coordinates need more than the eight bits of bfloat16's mantissa.
        with torch.autocast(device_type=K.device.type, enabled=False):
            depth = quarter(single_depth.detach().float())
            hypotheses = depth_hypotheses(depth, self.delta, self.hypotheses)
            pose = Pose(previous_from_current.detach().float())
            warped = warp_to_hypotheses(
                previous_matching.float(), hypotheses, quarter_intrinsics(K.float()), pose
            )
            cost = group_correlation(current.matching.float(), warped, self.groups)
        logits = self.regulariser(cost).float()
        mask = self.mask(current.context).float()
        probability = torch.softmax(logits, dim=1)
        depth_quarter, mass = local_max_regression(probability, hypotheses)
        return MultiFrameOutput(
            depth=convex_upsample(depth_quarter, mask),
            depth_quarter=depth_quarter,
            probability=probability,
            confidence=mass,
            hypotheses=hypotheses,
        )

    @torch.no_grad()
    def update_delta(self, multi_depth: Tensor, single_depth: Tensor) -> None:
        """Let `delta` follow the disagreement of both depths (MISM, PADS); nothing in eval mode.

        delta <- 0.99 delta + 0.01 * 1.2 * (r - 1), r the largest ratio of both depths (or its
        reciprocal) over the batch, then clipped to [0.05, 4]. Positions with a ratio that is not
        finite keep their value.

        Args:
            multi_depth: (B, 1, H, W) of this network, reduced bilinearly to a quarter.
            single_depth: (B, 1, H, W) of the single-frame network, every fourth pixel.
        """
        if not self.training:
            return
        reduced = F.interpolate(
            multi_depth.float(), size=self.delta.shape[2:], mode="bilinear", align_corners=False
        )
        single = quarter(single_depth.float())
        ratio = torch.maximum(reduced / single, single / reduced).amax(dim=0, keepdim=True)
        updated = _MOMENTUM * self.delta + (1 - _MOMENTUM) * _MARGIN * (ratio - 1)
        updated = torch.where(ratio.isfinite(), updated, self.delta)
        self.delta.copy_(updated.clamp(*DELTA_RANGE))


def build_multi_frame(architecture: Mapping[str, Any]) -> MultiFrameNet:
    """Build a randomly initialised network from {"size": [H, W], "hypotheses", "groups"}.

    Raises:
        ValueError: an unknown key, a missing size, or a value the network can't take.
    """
    unknown = sorted(set(architecture) - {"size", "hypotheses", "groups"})
    if unknown:
        raise ValueError(f"unknown multi-frame settings: {unknown}")
    if "size" not in architecture:
        raise ValueError("the multi-frame network needs its input size [H, W]")
    values = dict(architecture)
    height, width = values.pop("size")
    return MultiFrameNet((height, width), **values)
