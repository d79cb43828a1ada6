"""The networks as flat functions of tensors: what the backends compile and the pipeline calls.

Every runner takes and returns plain float32 tensors in a fixed order, holds what does not change
from frame to frame (projected prior, search map), and exports with static shapes by
`torch.onnx.export(..., dynamo=False, opset_version=17)`. `INPUTS` and `OUTPUTS` name them; `exact`
is true where a library that knows no better must not compute all of it in half precision.

What the single-frame network says of its own depth, as a second output of exported files.

The node's confidence is another one, calibrated and made on demand:
`depth_prior_ros.pipeline.results`.

A prior fusion whose weights and prior no longer change, with all folded that folds exactly.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.episodic_prior import ProjectedReferences
from depth_prior_ros.models.matching import STRIDE, Features
from depth_prior_ros.models.mism import AnyMultiFrame
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import (
    FusionOutput,
    Prior,
    PriorFusion,
    ProjectedPrior,
    blend_disparity,
    pad_channels,
)
from depth_prior_ros.models.student import Student

# A relative step of inverse depth between neighbours at which confidence falls to 1 / e.
_EDGE = 0.1


def single_frame_confidence(inverse_depth: Tensor) -> Tensor:
    """How flat the inverse depth is around a pixel.

    Depth edges are where single-frame networks bleed, and this says no more than that a pixel lies
    near one. It is not calibrated against errors.

    Args:
        inverse_depth: (B, 1, H, W), positive.

    Returns:
        (B, 1, H, W) in (0, 1]: exp(-s / 0.1), s the larger of the mean relative differences to the
        neighbours left and right, and above and below.
    """
    padded = F.pad(inverse_depth, (1, 1, 1, 1), mode="replicate")
    horizontal = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).abs()
    vertical = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).abs()
    step = torch.maximum(horizontal, vertical) / (2 * inverse_depth)
    return torch.exp(-step / _EDGE)


Precision = Literal["f32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16")


class FoldedFusion(nn.Module):
    """`PriorFusion` over one prior, for inference.

    One 1x1 convolution gives the queries of both branches with scale, temperature and the
    pixel-wise branch's key layer inside, padded; keys and values of the depth hint are projected;
    the reference features are the pixel-wise branch's keys as they are. Composed in double
    precision, so that the result differs from `PriorFusion`'s by rounding only.

    Args:
        fusion: the fusion; its convolutions behind the attentions are shared, not copied.
        prior: its prior.
        precision: "f32", or "bf16" for the products of the pixel-wise branch, in blocks of
            queries. Then the keys are centred, which softmax does not see but rounding does. The
            depth hint stays in float32: its heads are so narrow that bfloat16 gains nothing.

    Raises:
        ValueError: the prior's features have other channels than the fusion was built for, or an
            unknown precision.
    """

    def __init__(self, fusion: PriorFusion, prior: Prior, precision: Precision = "f32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}: choose f32 or bf16")
        self.fusion = fusion
        with torch.no_grad():
            self.queries = _folded_queries(fusion)
            projected = fusion.project(prior)
            if precision == "bf16" and projected.keys is not None:
                centred = projected.keys - projected.keys.mean(dim=2, keepdim=True)
                projected = projected._replace(
                    keys=centred.to(torch.bfloat16),
                    values=projected.keys.to(torch.bfloat16),
                )
        for name, tensor in projected._asdict().items():
            self.register_buffer(name, tensor)

    def forward(self, features: Tensor) -> FusionOutput:
        """Fuse the student's features F_s at the stride, (B, C, h, w)."""
        if features.dtype == torch.float16:  # scores may lie beyond its 65,504
            with torch.autocast(features.device.type, enabled=False):
                return self.forward(features.float())
        pixel_wise, hint = self.scaled_queries(features)
        prior = ProjectedPrior(*(getattr(self, name) for name in ProjectedPrior._fields))
        return self.fusion.look_up(features, pixel_wise, hint, prior)

    def scaled_queries(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Queries for `keys` (B, 1, h * w, P) and `hint_keys` (B, heads, h * w, width / heads)."""
        config = self.fusion.config
        rows = self.queries(features).flatten(2)
        pixel_wise = hint = None
        if config.pixel_wise:
            pixel_wise = rows[:, : self.fusion.padded_width].transpose(1, 2)[:, None]
        if config.depth_hint:
            hint = rows[:, -config.width :].unflatten(1, (config.heads, -1)).transpose(2, 3)
        return pixel_wise, hint


def _folded_queries(fusion: PriorFusion) -> nn.Conv2d:
    """The 1x1 convolution whose channels are the rows of both branches' queries."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    if fusion.config.pixel_wise:
        weight, bias = _in_double(fusion.query)
        fold = pad_channels(
            fusion.key.weight.double() * fusion.pixel_scale.double(), fusion.padded_width
        ).T
        weights.append(fold @ weight)
        biases.append(fold @ bias)
    if fusion.config.depth_hint:
        weight, bias = _in_double(fusion.hint_query)
        weights.append(weight * fusion.hint_scale)
        biases.append(bias * fusion.hint_scale)
    weight = torch.cat(weights)
    folded = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    assert folded.bias is not None
    folded.to(fusion.merge.weight)
    folded.weight.copy_(weight[:, :, None, None])
    folded.bias.copy_(torch.cat(biases))
    return folded


def _in_double(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a 1x1 convolution."""
    assert layer.bias is not None
    return layer.weight.double().flatten(1), layer.bias.double()


#: Inputs of an exported student that looks up references.
REFERENCE_INPUTS = ("reference_keys", "reference_values")


class StudentRunner(nn.Module):
    """image (B, 3, H, W) -> inverse depth (B, 1, H, W) in network units, confidence (B, 1, H, W).

    A student that is told its camera takes the code (B, 5) as a further input; one that looks up
    references their keys and values, (1, heads, capacity, P) each, of `EpisodicPrior.project`.

    Args:
        student: the network; it is set to eval mode.
        prior: its prior, projected and folded here once; required where the student has a fusion.
        min_depth: depth of sigmoid one, network units.
        max_depth: depth of sigmoid zero, network units.
        precision: of the products with the prior, see `FoldedFusion`; "f32" for export.

    Raises:
        ValueError: a fusion without a prior, or the reverse.
    """

    INPUTS: tuple[str, ...]
    OUTPUTS: ClassVar = ("inverse_depth", "confidence")

    def __init__(
        self,
        student: Student,
        prior: Prior | None = None,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        precision: Precision = "f32",
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
        self.INPUTS = ("image",)
        if student.camera_code is not None:
            self.INPUTS += ("code",)
        if student.episodic is not None:
            self.INPUTS += REFERENCE_INPUTS
        self.folded = None
        if student.fusion is not None and prior is not None:
            self.folded = FoldedFusion(student.fusion, prior, precision)
        self.exact = len(self.INPUTS) > 1 or self.folded is not None

    def forward(self, image: Tensor, *further: Tensor) -> tuple[Tensor, Tensor]:
        """Run the student; RGB in [0, 1], then what else `INPUTS` names.

        Without a code it is the training camera's; without references none are looked up.
        """
        told = dict(zip(self.INPUTS[1:], further, strict=False))
        features = self.student.features(image, told.get("code"))
        fused = None
        if self.folded is not None:
            fused = self.folded(self.student.at_fusion(features))
            features = self.student.with_fused(features, fused.features)
        disparities, maps = self.student.decoder.with_maps(features, (0,))
        disparity = disparities[0]
        if fused is not None:
            disparity = blend_disparity(disparity, fused, self.min_depth, self.max_depth)
        inverse, _ = disparity_to_depth(disparity, self.min_depth, self.max_depth)
        if self.student.episodic is not None and REFERENCE_INPUTS[0] in told:
            found = ProjectedReferences(*(told[name] for name in REFERENCE_INPUTS))
            inverse = self.student.look_up(inverse, maps, found)
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
    exact: ClassVar = True

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
    (B, 1, H, W) in network units. Out: depth (B, 1, H, W) in network units, blended as the network
    has it; confidence of the matching (B, 1, H, W) in [0, 1], repeated from a quarter of the
    resolution; parallax (B, 1, H / 4, W / 4) in pixels of the input; matched (B, 1, H, W), depth by
    matching alone.
    """

    INPUTS: ClassVar = (
        "matching_current",
        "context_current",
        "matching_previous",
        "previous_from_current",
        "K",
        "single_depth",
    )
    OUTPUTS: ClassVar = ("depth", "confidence", "parallax", "matched")
    exact: ClassVar = True

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            return output.depth + 0 * single_depth, confidence, output.parallax, output.matched
        return output.depth, confidence, output.parallax, output.matched
