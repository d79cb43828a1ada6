"""A prior fusion whose weights and prior no longer change, with all folded that folds exactly."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from depth_prior_ros.models.attention import pad_channels
from depth_prior_ros.models.prior_fusion import FusionOutput, Prior, PriorFusion, ProjectedPrior

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class FoldedFusion(nn.Module):
    """`PriorFusion` over one prior, for inference.

    One 1x1 convolution gives the queries of both branches with scale, temperature and the
    pixel-wise branch's key layer inside, padded; keys and values of the depth hint are projected;
    the reference features are the pixel-wise branch's keys as they are. Composed in double
    precision, so that the result differs from `PriorFusion`'s by rounding only.

    Args:
        fusion: the fusion; its convolutions behind the attentions are shared, not copied.
        prior: its prior.
        precision: "fp32", or "bf16" for the products of the pixel-wise branch, in blocks of
            queries. Then the keys are centred, which softmax does not see but rounding does. The
            depth hint stays in float32: its heads are so narrow that bfloat16 gains nothing.

    Raises:
        ValueError: the prior's features have other channels than the fusion was built for, or an
            unknown precision.
    """

    def __init__(self, fusion: PriorFusion, prior: Prior, precision: Precision = "fp32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}: choose fp32 or bf16")
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
        """Fuse the student's features F_s at the tap, (B, C, h, w)."""
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
