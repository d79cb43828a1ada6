"""Fusion of a student's features with a prior: reference pixels of a multi-frame teacher.

RPrDepth, section 3: a pixel-wise branch, in which the affinity of every image pixel to all
reference pixels yields reference features and reference depth, and a depth-hint branch of
multi-head attention. The result is added to the student's features through a convolution that
starts at zero, so that a fresh fusion changes nothing.

What the attentions leave out, exactly: a bias on the keys adds the same value to all scores of a
query and softmax ignores it; the values' bias and the output projection of multi-head attention are
linear and fold into the convolution that follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Inverse depth below this (network units) is treated as this before its logarithm is taken.
_MIN_INVERSE_DEPTH = 1e-3
# Attention kernels want widths that are multiples of this.
_WIDTH_MULTIPLE = 8
# Queries per block when the entropy needs the explicit weights; bounds the memory to block x N.
_ENTROPY_BLOCK = 256


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the prior fusion; the paper names none of them, so all are settings.

    Attributes:
        tap: stride of the student's features that are fused, 16 (cheap) or 8.
        reference_channels: channels of the prior's features.
        width: channels of queries and keys, and of the depth-hint branch.
        heads: heads of the depth-hint attention; divides `width`.
        depth_input: "log" feeds the logarithm of the reference inverse depth D_c to the fusion
            beside F_s, F_c and F_d; "none" leaves it to an auxiliary loss.
    """

    tap: int = 16
    reference_channels: int = 32
    width: int = 64
    heads: int = 4
    depth_input: str = "log"

    def __post_init__(self) -> None:
        if self.tap not in (4, 8, 16, 32):
            raise ValueError(f"fusion tap {self.tap}: must be 4, 8, 16 or 32")
        if min(self.reference_channels, self.width, self.heads) < 1:
            raise ValueError("fusion reference_channels, width and heads must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"fusion width {self.width} is no multiple of {self.heads} heads")
        if self.depth_input not in ("log", "none"):
            raise ValueError(f"fusion depth_input {self.depth_input!r}: must be 'log' or 'none'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """Build from a mapping; an unknown key is a ValueError."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown fusion settings: {unknown}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` takes."""
        return asdict(self)


@dataclass(frozen=True)
class Prior:
    """Reference pixels of a teacher.

    Attributes:
        features: (N, C) float.
        inverse_depth: (N,) inverse depth in network units, positive.
    """

    features: Tensor
    inverse_depth: Tensor

    def __post_init__(self) -> None:
        if self.features.dim() != 2 or self.features.shape[0] < 1:
            raise ValueError(f"prior features have shape {tuple(self.features.shape)}: not (N, C)")
        if self.inverse_depth.shape != self.features.shape[:1]:
            raise ValueError(
                f"prior inverse depth has shape {tuple(self.inverse_depth.shape)}: "
                f"expected ({self.features.shape[0]},)"
            )

    def to(self, device: torch.device | str) -> Prior:
        """The same prior on another device."""
        return Prior(self.features.to(device), self.inverse_depth.to(device))


class ProjectedPrior(NamedTuple):
    """Keys and values of a prior for one fusion, projected once.

    Attributes:
        keys: (1, 1, N, P) of the pixel-wise branch, zero padded to P channels.
        values: (1, 1, N, P): features, inverse depth, zeros.
        hint_keys: (1, heads, N, width / heads).
        hint_values: (1, heads, N, width / heads).
    """

    keys: Tensor
    values: Tensor
    hint_keys: Tensor
    hint_values: Tensor


class FusionOutput(NamedTuple):
    """What the fusion returns.

    Attributes:
        features: (B, C, h, w), the student's features plus what the prior adds.
        inverse_depth: (B, 1, h, w) reference inverse depth D_c, network units, float32.
        entropy: (B, 1, h, w) entropy of the affinity divided by log N, in [0, 1]; None unless asked
            for.
    """

    features: Tensor
    inverse_depth: Tensor
    entropy: Tensor | None


def _pad(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))


class PriorFusion(nn.Module):
    """Both branches of RPrDepth's prior fusion, as a residual on the student's features.

    Args:
        channels: channels of the student's concatenated features at the tap.
        config: sizes.
    """

    def __init__(self, channels: int, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        c, width = config.reference_channels, config.width
        # Equal widths of queries, keys and values keep the attention out of the kernel that
        # materialises all scores.
        widest = max(width, c + 1)
        self.padded_width = math.ceil(widest / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Linear(c, width, bias=False)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.hint_query = nn.Conv2d(channels, width, 1)
        self.hint_key = nn.Linear(c, width, bias=False)
        self.hint_value = nn.Linear(c, width, bias=False)
        depth = 1 if config.depth_input == "log" else 0
        self.merge = nn.Conv2d(channels + c + width + depth, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def project(self, prior: Prior) -> ProjectedPrior:
        """Project a prior's keys and values; do it once where the weights no longer change.

        Raises:
            ValueError: the prior's features have other channels than the fusion was built for.
        """
        if prior.features.shape[1] != self.config.reference_channels:
            raise ValueError(
                f"the prior has {prior.features.shape[1]} channels: this student's fusion was "
                f"built for {self.config.reference_channels}"
            )
        f = prior.features
        values = torch.cat([f, prior.inverse_depth[:, None].to(f.dtype)], dim=1)
        return ProjectedPrior(
            keys=_pad(self.key(f), self.padded_width)[None, None],
            values=_pad(values, self.padded_width)[None, None],
            hint_keys=self._split_heads(self.hint_key(f)),
            hint_values=self._split_heads(self.hint_value(f)),
        )

    def forward(
        self, features: Tensor, prior: Prior | ProjectedPrior, *, entropy: bool = False
    ) -> FusionOutput:
        """Fuse features (B, C, h, w) with a prior.

        Args:
            features: the student's features F_s at the tap.
            prior: the prior, or its projection by `project`.
            entropy: compute the entropy of the affinity, too (slower: needs explicit weights).
        """
        projected = prior if isinstance(prior, ProjectedPrior) else self.project(prior)
        reference, inverse_depth = self._pixel_wise(features, projected)
        parts = [features, reference, self._hint(features, projected)]
        if self.config.depth_input == "log":
            parts.append(inverse_depth.clamp(min=_MIN_INVERSE_DEPTH).log().to(reference.dtype))
        added = self.out(F.relu(self.merge(torch.cat([p.to(features.dtype) for p in parts], 1))))
        spread = self._entropy(features, projected) if entropy else None
        return FusionOutput(features + added, inverse_depth, spread)

    def _queries(self, features: Tensor) -> Tensor:
        """Scaled queries of the pixel-wise branch, (B, 1, h * w, padded width)."""
        scale = self.log_temperature.exp() / math.sqrt(self.config.width)
        queries = self.query(features).flatten(2).transpose(1, 2) * scale
        return _pad(queries, self.padded_width)[:, None]

    def _pixel_wise(self, features: Tensor, prior: ProjectedPrior) -> tuple[Tensor, Tensor]:
        """F_c (B, C_r, h, w) and D_c (B, 1, h, w): one attention over [features, inverse depth]."""
        batch, _, height, width = features.shape
        queries = self._queries(features)
        keys, values = (t.expand(batch, -1, -1, -1).to(queries.dtype) for t in prior[:2])
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        c = self.config.reference_channels
        mixed = mixed[:, 0, :, : c + 1].transpose(1, 2).reshape(batch, c + 1, height, width)
        return mixed[:, :c], mixed[:, c:].float()

    def _hint(self, features: Tensor, prior: ProjectedPrior) -> Tensor:
        """F_d (B, width, h, w): multi-head attention of the features over the prior."""
        batch, _, height, width = features.shape
        heads, size = self.config.heads, self.config.width // self.config.heads
        queries = self.hint_query(features).reshape(batch, heads, size, height * width)
        queries = queries.transpose(2, 3)
        keys, values = (t.expand(batch, -1, -1, -1).to(queries.dtype) for t in prior[2:])
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return mixed.transpose(2, 3).reshape(batch, heads * size, height, width)

    def _entropy(self, features: Tensor, prior: ProjectedPrior) -> Tensor:
        batch, _, height, width = features.shape
        queries = self._queries(features)[:, 0].float()
        keys = prior.keys[0, 0].float()
        blocks = []
        for block in queries.split(_ENTROPY_BLOCK, dim=1):
            logs = torch.log_softmax(block @ keys.T, dim=-1)
            blocks.append(-(logs.exp() * logs).sum(-1))
        total = torch.cat(blocks, dim=1) / math.log(max(keys.shape[0], 2))
        return total.reshape(batch, 1, height, width)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, width) -> (1, heads, N, width / heads)."""
        heads = self.config.heads
        return x.reshape(x.shape[0], heads, -1).transpose(0, 1)[None]
