"""Fusion of a student's features with a prior: reference pixels of a multi-frame teacher.

RPrDepth, section 3: a pixel-wise branch, in which the affinity of every image pixel to all
reference pixels yields reference features and reference depth, and a depth-hint branch of
multi-head attention. The result is added to the student's features through a convolution that
starts at zero, so that a fresh fusion changes nothing.

What the attentions leave out, exactly: a bias on the keys adds the same value to all scores of a
query and softmax ignores it; the output projection of multi-head attention is linear and folds into
the convolution that follows; weights of a softmax sum to one, so that a bias of the values, or of
the output projection, is a constant added to the values. The keys of the pixel-wise branch are
linear in the reference features: their layer is applied to the queries instead (`lookup_queries`),
and the features themselves, which are the values anyhow, serve as keys. `folded_fusion` goes
further where weights and prior no longer change.

Settings of the prior fusion.

Attention of many queries over a fixed set of references, never holding all weights at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import (
    MAX_DEPTH,
    MIN_DEPTH,
    depth_to_disparity,
    disparity_to_depth,
)

STRIDES = (4, 8, 16, 32)
DEPTH_INPUTS = ("log", "inverse", "none")


@dataclass(frozen=True)
class FusionConfig:
    """Settings of the prior fusion; the paper names none of them, so none is fixed.

    Attributes:
        stride: of the student's features that are fused: 4, 8, 16 or 32. Default 16: at 25,000
            references and 640x192 an attention costs 1.5 GMAC there, 6.1 at 8 and 24.6 at 4, and
            the whole DIFFNet 11.8.
        reference_channels: channels of the prior's features, which its teacher decides.
        width: channels of queries and keys, and of the depth-hint branch. Default 64: about what
            the features of a W18 have, and more than the 32 channels of the PADS teacher.
        heads: heads of the depth-hint attention; divides `width`. Default 4: every head takes as
            many exponentials as the whole pixel-wise branch.
        depth_input: what the convolution sees of the reference inverse depth D_c: its logarithm
            ("log", default: near and far weigh alike), itself ("inverse"), or nothing ("none").
        temperature: what the scores of the pixel-wise branch are divided by, besides sqrt(width);
            below one the affinity is sharper. Default 1, the scaling of every attention. If it is
            learned this is where it starts.
        learn_temperature: whether it is learned. Default: yes; how sharply to look up depends on
            how many references there are, and training sees fewer than the whole set.
        pixel_wise, depth_hint: use this branch; off for ablations. One of the two must be on.
        normalise: bring the features of every reference pixel to mean zero and variance one, so
            that none is looked up for the length of its features alone.
        blend: mix the looked-up depth D_c into the student's output, too, by a weight that is
            learned for every pixel and begins with this value; 0: not at all. The paper lets D_c
            in through the features alone; there a student may learn to ignore it, and another
            prior changes nothing. Needs `pixel_wise`.
        activation: behind the first convolution: "relu", which may die and leave the prior
            ignored, or "elu", which cannot.
    """

    stride: int = 16
    reference_channels: int = 32
    width: int = 64
    heads: int = 4
    depth_input: str = "log"
    temperature: float = 1.0
    learn_temperature: bool = True
    pixel_wise: bool = True
    depth_hint: bool = True
    normalise: bool = False
    activation: str = "relu"
    blend: float = 0.0

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise ValueError(f"fusion stride {self.stride}: must be 4, 8, 16 or 32")
        if min(self.reference_channels, self.width, self.heads) < 1:
            raise ValueError("fusion reference_channels, width and heads must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"fusion width {self.width} is no multiple of {self.heads} heads")
        if self.depth_input not in DEPTH_INPUTS:
            raise ValueError(
                f"fusion depth_input {self.depth_input!r}: must be one of {', '.join(DEPTH_INPUTS)}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"fusion temperature {self.temperature}: must be positive")
        if self.activation not in ("relu", "elu"):
            raise ValueError(f"fusion activation {self.activation!r}: must be relu or elu")
        if not (self.pixel_wise or self.depth_hint):
            raise ValueError("fusion with neither pixel_wise nor depth_hint: switch one on")
        if not 0 <= self.blend < 1:
            raise ValueError(f"fusion blend {self.blend}: must be at least 0 and below 1")
        if self.blend and not self.pixel_wise:
            raise ValueError("fusion blend mixes in the depth of the pixel_wise branch: it is off")

    @property
    def feeds_depth(self) -> bool:
        """Whether the convolution sees the reference depth."""
        return self.pixel_wise and self.depth_input != "none"

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


# Queries whose weights over all references are held at once in bfloat16: at 25,000 references
# 3 MiB, which stay in a processor's cache.
_BLOCK = 64


def pad_channels(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last dimension, up to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, width) -> (heads, N, width / heads)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1).contiguous()


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries keys^T) values.

    PyTorch's fused kernel holds blocks of the weights only, if queries, keys and values have the
    same number of channels, side by side in memory; otherwise it falls back, without a word, to
    one that holds them all. A map's queries are channels first and are copied. Queries in float32
    with keys and values in bfloat16 go through `attend_in_blocks`, as the fused kernel is no faster
    in bfloat16 on a CPU.

    Args:
        queries: (B, heads, Q, P), scaled.
        keys: (1, heads, N, P).
        values: (1, heads, N, P).

    Returns:
        (B, heads, Q, P) in the queries' type.
    """
    batch = queries.shape[0]
    keys, values = (t.expand(batch, -1, -1, -1) for t in (keys, values))
    if keys.dtype == torch.bfloat16 and queries.dtype == torch.float32:
        return attend_in_blocks(queries, keys, values)
    queries = queries.contiguous()
    keys, values = (t.to(queries.dtype) for t in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, block: int = _BLOCK) -> Tensor:
    """softmax(queries keys^T) values in the type of the keys, a block of queries at a time.

    Shapes as in `attend`. The products sum up in float32 and are rounded to the keys' type.
    """
    across = keys.transpose(-2, -1)
    blocks = [
        torch.softmax(part.to(keys.dtype) @ across, dim=-1) @ values
        for part in queries.split(block, dim=2)
    ]
    return torch.cat(blocks, dim=2).to(queries.dtype)


# Inverse depth below this (network units) is treated as this before its logarithm is taken.
_MIN_INVERSE_DEPTH = 1e-3
# Attention kernels like widths that are multiples of this.
_WIDTH_MULTIPLE = 8
# Queries per block when the entropy needs the explicit weights; bounds the memory to block x N.
_ENTROPY_BLOCK = 256


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

    def rows(self, indices: NDArray[np.int64]) -> Prior:
        """The reference pixels of these numbers, in their order."""
        chosen = torch.from_numpy(indices).to(self.features.device)
        return Prior(self.features[chosen], self.inverse_depth[chosen])


class ProjectedPrior(NamedTuple):
    """Keys and values of a prior for one fusion, projected once; None: that branch is off.

    Attributes:
        keys: (1, 1, N, P) of the pixel-wise branch, for `PriorFusion.lookup_queries`: the values.
        values: (1, 1, N, P): features, inverse depth, zeros up to P = `PriorFusion.padded_width`.
        hint_keys: (1, heads, N, width / heads).
        hint_values: (1, heads, N, width / heads).
    """

    keys: Tensor | None
    values: Tensor | None
    hint_keys: Tensor | None
    hint_values: Tensor | None


class FusionOutput(NamedTuple):
    """What the fusion returns.

    Attributes:
        features: (B, C, h, w), the student's features plus what the prior adds.
        inverse_depth: (B, 1, h, w) reference inverse depth D_c, network units, float32; None
            without the pixel-wise branch.
        entropy: (B, 1, h, w) entropy of the affinity divided by log N, in [0, 1]; None unless asked
            for, or without the pixel-wise branch.
        weight: (B, 1, h, w) weight in (0, 1) of D_c in the student's output; None without `blend`.
    """

    features: Tensor
    inverse_depth: Tensor | None
    entropy: Tensor | None
    weight: Tensor | None = None


class PriorFusion(nn.Module):
    """Both branches of RPrDepth's prior fusion, as a residual on the student's features.

    Args:
        channels: channels of the student's concatenated features at the fusion's stride.
        config: sizes, and which branches there are.
    """

    #: The layers whose weights decide what a reference pixel means to this fusion.
    READERS = ("key.weight", "log_temperature", "hint_key.weight", "hint_value.weight")

    def __init__(self, channels: int, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        c, width = config.reference_channels, config.width
        # Equal widths of queries, keys and values keep the attention out of the kernel that
        # materialises all scores.
        self.padded_width = math.ceil((c + 1) / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        merged = channels
        if config.pixel_wise:
            self.query = nn.Conv2d(channels, width, 1)
            self.key = nn.Linear(c, width, bias=False)
            self._add_temperature()
            merged += c + config.feeds_depth
        if config.depth_hint:
            self.hint_query = nn.Conv2d(channels, width, 1)
            self.hint_key = nn.Linear(c, width, bias=False)
            self.hint_value = nn.Linear(c, width, bias=False)
            merged += width
        self.merge = nn.Conv2d(merged, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        if config.blend:
            self.weigh = nn.Conv2d(width, 1, 3, padding=1)
            nn.init.zeros_(self.weigh.weight)
            assert self.weigh.bias is not None
            nn.init.constant_(self.weigh.bias, math.log(config.blend / (1 - config.blend)))

    def _add_temperature(self) -> None:
        # Called after its inverse's logarithm, a name that stored weights have.
        value = torch.tensor(-math.log(self.config.temperature))
        if self.config.learn_temperature:
            self.log_temperature = nn.Parameter(value)
        else:
            self.register_buffer("log_temperature", value)

    @property
    def pixel_scale(self) -> Tensor:
        """What the scores of the pixel-wise branch are multiplied by."""
        return self.log_temperature.exp() / math.sqrt(self.config.width)

    @property
    def hint_scale(self) -> float:
        """What the scores of the depth-hint branch are multiplied by."""
        return 1 / math.sqrt(self.config.width // self.config.heads)

    def project(self, prior: Prior) -> ProjectedPrior:
        """Project a prior's keys and values; do it once where the weights no longer change.

        Raises:
            ValueError: the prior's features have other channels than the fusion was built for.
        """
        features = self._read(prior.features)
        values = hint_keys = hint_values = None
        if self.config.pixel_wise:
            depth = prior.inverse_depth[:, None].to(features.dtype)
            both = torch.cat([features, depth], dim=1)
            values = pad_channels(both, self.padded_width)[None, None]
        if self.config.depth_hint:
            heads = self.config.heads
            hint_keys = split_heads(self.hint_key(features), heads)[None]
            hint_values = split_heads(self.hint_value(features), heads)[None]
        return ProjectedPrior(values, values, hint_keys, hint_values)

    def check(self, features: Tensor) -> None:
        """Raise ValueError unless reference features (n, C) have this fusion's channels."""
        if features.shape[1] != self.config.reference_channels:
            raise ValueError(
                f"the prior has {features.shape[1]} channels: this student's fusion was "
                f"built for {self.config.reference_channels}"
            )

    def _read(self, features: Tensor) -> Tensor:
        """Reference features (n, C) as the layers see them."""
        self.check(features)
        return F.layer_norm(features, features.shape[1:]) if self.config.normalise else features

    def scaled_queries(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Queries of both branches whose products with `project_keys` are the scores.

        Args:
            features: the student's features F_s at the stride, (B, C, h, w).

        Returns:
            Pixel-wise (B, 1, h * w, width) and depth hint (B, heads, h * w, width / heads), row
            by row of the map, scaled by temperature and width; None where that branch is off.
            Weights are ``softmax(queries @ keys.transpose(-2, -1), dim=-1)``.
        """
        pixel_wise = hint = None
        if self.config.pixel_wise:
            pixel_wise = self.query(features).flatten(2).transpose(1, 2)[:, None] * self.pixel_scale
        if self.config.depth_hint:
            queries = self.hint_query(features).flatten(2)
            hint = queries.unflatten(1, (self.config.heads, -1)).transpose(2, 3) * self.hint_scale
        return pixel_wise, hint

    def project_keys(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keys of both branches for reference features (n, C).

        Returns:
            Pixel-wise (1, n, width) and depth hint (heads, n, width / heads); None where that
            branch is off.

        Raises:
            ValueError: other channels than the fusion was built for.
        """
        features = self._read(features)
        pixel_wise = self.key(features)[None] if self.config.pixel_wise else None
        hint = None
        if self.config.depth_hint:
            hint = split_heads(self.hint_key(features), self.config.heads)
        return pixel_wise, hint

    def lookup_queries(self, queries: Tensor) -> Tensor:
        """Pixel-wise queries (B, 1, Q, width) for reference features as they are: (B, 1, Q, P).

        q . (W f) = (W^T q) . f; the inverse depth behind the features meets a zero.
        """
        return pad_channels(queries @ self.key.weight, self.padded_width)

    def alignment_hash(self, *, layers_only: bool = False) -> str:
        """A sha256 in hex of what reads the prior: those layers, and how they are used.

        A prior was chosen with these; with others its keys mean something else. The weights are
        rounded to half precision as in a bundle, so that saving and loading leaves the hash alone.

        Args:
            layers_only: without the settings that leave no trace in the weights, as the first
                bundles of schema 2 have it.
        """
        digest = hashlib.sha256()
        state = self.state_dict()
        for name in self.READERS:
            if name in state:
                half = state[name].detach().cpu().to(torch.float16).contiguous()
                digest.update(f"{name} {tuple(half.shape)}\n".encode())
                digest.update(half.numpy().astype("<f2").tobytes())
        if not layers_only:
            heads = self.config.heads if self.config.depth_hint else 0
            digest.update(f"heads {heads}, normalise {int(self.config.normalise)}\n".encode())
        return digest.hexdigest()

    def forward(
        self, features: Tensor, prior: Prior | ProjectedPrior, *, entropy: bool = False
    ) -> FusionOutput:
        """Fuse features (B, C, h, w) with a prior.

        Args:
            features: the student's features F_s at the stride.
            prior: the prior, or its projection by `project`.
            entropy: compute the entropy of the affinity, too (slower: needs explicit weights).
        """
        projected = prior if isinstance(prior, ProjectedPrior) else self.project(prior)
        queries, hint_queries = self.scaled_queries(features)
        if queries is not None:
            queries = self.lookup_queries(queries)
        return self.look_up(features, queries, hint_queries, projected, entropy=entropy)

    def look_up(
        self,
        features: Tensor,
        queries: Tensor | None,
        hint_queries: Tensor | None,
        prior: ProjectedPrior,
        *,
        entropy: bool = False,
    ) -> FusionOutput:
        """The fusion behind the queries.

        Args:
            features: F_s (B, C, h, w).
            queries: (B, 1, h * w, P), those of `lookup_queries`; None without that branch.
            hint_queries: (B, heads, h * w, width / heads), scaled; None without that branch.
            prior: the projected prior.
            entropy: compute the entropy of the affinity, too.
        """
        size = features.shape[-2:]
        parts, inverse_depth, spread = [features], None, None
        if queries is not None:
            reference, inverse_depth = self._pixel_wise(queries, prior, size)
            parts.append(reference)
            spread = self._entropy(queries, prior, size) if entropy else None
        if hint_queries is not None:
            parts.append(self._hint(hint_queries, prior, size))
        if inverse_depth is not None and self.config.feeds_depth:
            parts.append(depth_input(inverse_depth, self.config.depth_input))
        merged = self.merge(torch.cat([p.to(features.dtype) for p in parts], 1))
        merged = F.elu(merged) if self.config.activation == "elu" else F.relu(merged)
        weight = torch.sigmoid(self.weigh(merged)) if self.config.blend else None
        return FusionOutput(features + self.out(merged), inverse_depth, spread, weight)

    def _pixel_wise(
        self, queries: Tensor, prior: ProjectedPrior, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """F_c (B, C_r, h, w) and D_c (B, 1, h, w): one attention over [features, inverse depth]."""
        assert prior.keys is not None
        assert prior.values is not None
        c = self.config.reference_channels
        mixed = attend(queries, prior.keys, prior.values)[:, 0, :, : c + 1]
        mixed = mixed.transpose(1, 2).unflatten(2, size)
        inverse_depth = mixed[:, c:]
        exact = inverse_depth.dtype == torch.float64
        return mixed[:, :c], inverse_depth if exact else inverse_depth.float()

    def _hint(self, queries: Tensor, prior: ProjectedPrior, size: torch.Size) -> Tensor:
        """F_d (B, width, h, w): multi-head attention of the features over the prior."""
        assert prior.hint_keys is not None
        assert prior.hint_values is not None
        mixed = attend(queries, prior.hint_keys, prior.hint_values)
        return mixed.transpose(2, 3).flatten(1, 2).unflatten(2, size)

    def _entropy(self, queries: Tensor, prior: ProjectedPrior, size: torch.Size) -> Tensor:
        assert prior.keys is not None
        keys = prior.keys[0, 0].float()
        blocks = []
        for block in queries[:, 0].float().split(_ENTROPY_BLOCK, dim=1):
            logs = torch.log_softmax(block @ keys.T, dim=-1)
            blocks.append(-(logs.exp() * logs).sum(-1))
        total = torch.cat(blocks, dim=1) / math.log(max(keys.shape[0], 2))
        return total.unflatten(1, size)[:, None]


def blend_disparity(
    disparity: Tensor,
    fused: FusionOutput,
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
) -> Tensor:
    """A student's disparity mixed with the looked-up depth where the fusion says how much.

    Weighted means of log inverse depth, so that mixing keeps depth positive and does not prefer
    near to far; D_c and its weight are enlarged to the disparity's size.

    Args:
        disparity: sigmoid disparity (B, 1, H, W) in [0, 1].
        fused: what the fusion returned; without a weight the disparity stays as it is.
        min_depth, max_depth: range that the disparity stands for, see `disparity_to_depth`;
            network units, as those of D_c.
    """
    if fused.weight is None or fused.inverse_depth is None:
        return disparity
    size = disparity.shape[-2:]
    own, _ = disparity_to_depth(disparity.float(), min_depth, max_depth)
    looked_up = fused.inverse_depth.clamp(min=_MIN_INVERSE_DEPTH).log()
    maps = torch.cat([looked_up, fused.weight.to(looked_up.dtype)], dim=1)
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    looked_up, weight = maps[:, :1], maps[:, 1:]
    mixed = own.log() + weight * (looked_up - own.log())
    return depth_to_disparity((-mixed).exp(), min_depth, max_depth).clamp(0, 1)


def depth_input(inverse_depth: Tensor, kind: str) -> Tensor:
    """What the fusion's convolution sees of inverse depth (B, 1, h, w): see `FusionConfig`."""
    if kind == "log":
        return inverse_depth.clamp(min=_MIN_INVERSE_DEPTH).log()
    return inverse_depth
