"""The networks as flat functions of tensors: what the backends compile and the pipeline calls.

Every runner takes and returns plain float32 tensors in a fixed order, holds what does not change
from frame to frame (projected prior, search map), and exports with static shapes by
`torch.onnx.export(..., dynamo=False, opset_version=17)`. `INPUTS` and `OUTPUTS` name them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry import disparity_to_depth
from depth_prior_ros.models.confidence import single_frame_confidence
from depth_prior_ros.models.folded_fusion import FoldedFusion, Precision
from depth_prior_ros.models.matching import STRIDE
from depth_prior_ros.models.multi_frame import AnyMultiFrame
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import Prior, blend_disparity
from depth_prior_ros.models.student import Student
from depth_prior_ros.models.teacher import Features


class StudentRunner(nn.Module):
    """image (B, 3, H, W) -> inverse depth (B, 1, H, W) in network units, confidence (B, 1, H, W).

    Args:
        student: the network; it is set to eval mode.
        prior: its prior, projected and folded here once; required where the student has a fusion.
        min_depth: depth of sigmoid one, network units.
        max_depth: depth of sigmoid zero, network units.
        precision: of the products with the prior, see `FoldedFusion`; "fp32" for export.

    Raises:
        ValueError: a fusion without a prior, or the reverse.
    """

    INPUTS: ClassVar = ("image",)
    OUTPUTS: ClassVar = ("inverse_depth", "confidence")

    def __init__(
        self,
        student: Student,
        prior: Prior | None = None,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        if (student.fusion is None) != (prior is None):
            raise ValueError(
                "a prior was given but this student has no prior fusion"
                if student.fusion is None
                else "this student has a prior fusion: it needs its prior"
            )
        self.student = student.eval()
        self.min_depth, self.max_depth = min_depth, max_depth
        self.folded = None
        if student.fusion is not None and prior is not None:
            self.folded = FoldedFusion(student.fusion, prior, precision)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run the student; RGB in [0, 1]."""
        features = self.student.trunk(image)
        if self.folded is None:
            disparity = self.student.decoder(features, (0,))[0]
        else:
            fused = self.folded(self.student.at_tap(features))
            features = self.student.with_tap(features, fused.features)
            disparity = self.student.decoder(features, (0,))[0]
            disparity = blend_disparity(disparity, fused, self.min_depth, self.max_depth)
        inverse, _ = disparity_to_depth(disparity, self.min_depth, self.max_depth)
        return inverse, single_frame_confidence(inverse)


class FeatureRunner(nn.Module):
    """image (B, 3, H, W) -> matching and context, (B, C, h, w) as `feature_shapes` says."""

    INPUTS: ClassVar = ("image",)
    OUTPUTS: ClassVar = ("matching", "context")

    def __init__(self, multi_frame: AnyMultiFrame) -> None:
        super().__init__()
        self.multi_frame = multi_frame.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run the feature network; RGB in [0, 1]."""
        features = self.multi_frame.features(image)
        return features.matching, features.context


class PoseRunner(nn.Module):
    """first, second (B, 3, H, W), in temporal order -> second_from_first (B, 4, 4)."""

    INPUTS: ClassVar = ("first", "second")
    OUTPUTS: ClassVar = ("second_from_first",)

    def __init__(self, pose: PoseNet) -> None:
        super().__init__()
        self.pose = pose.eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Run the pose network; RGB in [0, 1], translation in network units."""
        matrix: Tensor = self.pose(first, second).matrix
        return matrix


class MultiFrameRunner(nn.Module):
    """Features of both frames, motion, intrinsics, single-frame depth -> depth and confidence.

    In: matching_current, context_current, matching_previous (shapes as `feature_shapes` says),
    previous_from_current (B, 4, 4), K (B, 3, 3) in pixels of the full input, single_depth
    (B, 1, H, W) in network units. Out: depth (B, 1, H, W) in network units, confidence
    (B, 1, H, W) in [0, 1], repeated from a quarter of the resolution.
    """

    INPUTS: ClassVar = (
        "matching_current",
        "context_current",
        "matching_previous",
        "previous_from_current",
        "K",
        "single_depth",
    )
    OUTPUTS: ClassVar = ("depth", "confidence")

    def __init__(self, multi_frame: AnyMultiFrame) -> None:
        super().__init__()
        self.multi_frame = multi_frame.eval()

    def forward(
        self,
        matching_current: Tensor,
        context_current: Tensor,
        matching_previous: Tensor,
        previous_from_current: Tensor,
        K: Tensor,
        single_depth: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the multi-frame network."""
        output = self.multi_frame.match(
            Features(matching_current, context_current),
            matching_previous,
            previous_from_current,
            K,
            single_depth,
        )
        confidence = F.interpolate(output.confidence, scale_factor=float(STRIDE), mode="nearest")
        if torch.jit.is_tracing() and not self.multi_frame.uses_single_depth:
            # An exported graph must have all inputs, also the one this network leaves alone.
            return output.depth + 0 * single_depth, confidence
        return output.depth, confidence
