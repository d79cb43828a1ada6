"""A look-up of references of the same camera, for a student that stays as it is.

RPrDepth's prior (`prior_fusion`) is one set for every image, out of the frames that the student
learned from; references from there hold nothing that its weights do not. Here the references are
pixels of the recording itself, with depth in metres, and training draws them so, step by step, from
recordings whose cameras differ: what is looked up is then how this camera sees depth.

Queries come from the student's decoder at stride 8; keys from the frozen trunk at strides 8 and 16
and from the place in the image, so that making references needs no decoder. A locality that is
learned goes into the product. What comes out is a mixture of the student's own depth with what
each head looked up, added to the logarithm of the student's depth as a smooth map: its edges stay,
and without references it is not changed by a bit. What is beyond the references, as the sky, is
moved as the rest of the image is.

Keys and values of references are inputs of exported networks, of a fixed capacity, with a mask: to
exchange them compiles nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.prior_fusion import attend, pad_channels
from depth_prior_ros.models.trunk import Features

#: Pixels of the input between queries, and between possible references, each way.
STRIDE = 8
KEY_STRIDES = (8, 16)
_PLACES = 10  # what `_place` says of a place in the image
_HIDDEN = 64
#: Depth in network units whose logarithm counts as zero.
_MIDDLE = 1.2
#: Network units, of about 10 m: from the first of each on what is looked up counts less, beyond the
#: second not at all. Where nothing is like a reference any more (references end at 80 m, but what
#: they say of the camera holds beyond), and what is sky whatever the camera, before it was moved.
_END, _SKY = (10.0, 13.0), (12.0, 20.0)
# Score of a slot without a reference: no weight next to any other, and finite.
_EMPTY = -1e4
_WIDTH_MULTIPLE = 4
# Behind the learned ones: log depth, its square, row, and whether there is a reference at all.
_VALUES = 4


@dataclass(frozen=True)
class EpisodicConfig:
    """Sizes of the look-up.

    Attributes:
        heads: attentions side by side, each with a locality of its own.
        width: learned channels of queries, keys and values, a head.
        capacity: references that there is room for; exported networks have that many slots.
        stride: of the map that looks up, 8 or 16, which costs less than half.
    """

    heads: int = 4
    width: int = 16
    capacity: int = 1024
    stride: int = 8

    def __post_init__(self) -> None:
        if min(self.heads, self.width, self.capacity) < 1:
            raise ValueError("episodic heads, width and capacity must be at least 1")
        if self.stride not in (STRIDE, 2 * STRIDE):
            raise ValueError(f"episodic stride {self.stride}: must be 8 or 16")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpisodicConfig:
        """Build from a mapping; an unknown key is a ValueError."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown episodic settings: {unknown}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` takes."""
        return asdict(self)


@dataclass(frozen=True)
class References:
    """Pixels with known depth of one camera.

    Attributes:
        features: (N, C) of the trunk at strides 8 and 16, see `EpisodicPrior.key_features`.
        position: (N, 2) row and column, -1 at the upper and left border of the input, 1 at the
            lower and right one.
        inverse_depth: (N,) 1 / network units, positive.
    """

    features: Tensor
    position: Tensor
    inverse_depth: Tensor

    def __post_init__(self) -> None:
        count = self.features.shape[0]
        if self.features.dim() != 2 or count < 1:
            raise ValueError(f"reference features have shape {tuple(self.features.shape)}")
        if self.position.shape != (count, 2) or self.inverse_depth.shape != (count,):
            raise ValueError(
                f"{count} reference features, but positions {tuple(self.position.shape)} and "
                f"inverse depth {tuple(self.inverse_depth.shape)}"
            )

    def __len__(self) -> int:
        return self.features.shape[0]

    def rows(self, indices: Tensor) -> References:
        """The references of these numbers, in their order."""
        return References(
            self.features[indices], self.position[indices], self.inverse_depth[indices]
        )

    def mirrored(self) -> References:
        """The same pixels of mirrored images, as far as features are alike."""
        side = self.position.new_tensor([1.0, -1.0])
        return replace(self, position=self.position * side)

    def to(self, device: torch.device | str) -> References:
        """The same on another device."""
        return References(
            self.features.to(device), self.position.to(device), self.inverse_depth.to(device)
        )

    @classmethod
    def join(cls, parts: Sequence[References]) -> References:
        """All references of several sets."""
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.position for part in parts]),
            torch.cat([part.inverse_depth for part in parts]),
        )


class ProjectedReferences(NamedTuple):
    """Keys and values of references, (B or 1, heads, capacity, P), slots without one masked."""

    keys: Tensor
    values: Tensor


class EpisodicPrior(nn.Module):
    """Looks up references for a student's decoder features, and corrects its depth.

    Args:
        channels: of the decoder's features at stride 8.
        key_channels: of the trunk's features at strides 8 and 16 together.
        config: sizes.
    """

    #: What reads the references: with other weights their keys mean something else.
    READERS = ("key.", "value.", "near.")

    def __init__(self, channels: int, key_channels: int, config: EpisodicConfig) -> None:
        super().__init__()
        self.config, self.key_channels = config, key_channels
        heads, width = config.heads, config.width
        self.padded_width = math.ceil((width + _VALUES) / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        self.read = nn.Conv2d(channels + 1 + _PLACES, _HIDDEN, 3, padding=1)
        self.query = nn.Conv2d(_HIDDEN, heads * width, 1)
        self.key = nn.Sequential(
            nn.Linear(key_channels + _PLACES, _HIDDEN), nn.ELU(), nn.Linear(_HIDDEN, heads * width)
        )
        self.value = nn.Sequential(
            nn.Linear(key_channels + _PLACES + 1, _HIDDEN),
            nn.ELU(),
            nn.Linear(_HIDDEN, heads * width),
        )
        # Logarithms of how fast the weight falls off, vertically and horizontally.
        self.near = nn.Parameter(torch.tensor([[2.0, 0.0]] * heads))
        found = heads * (width + 4)
        self.merge = nn.Conv2d(_HIDDEN + found + 2, _HIDDEN, 1)
        self.mix = nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1)
        self.weigh = nn.Conv2d(_HIDDEN, heads + 2, 3, padding=1)
        nn.init.zeros_(self.weigh.weight)
        assert self.weigh.bias is not None
        nn.init.zeros_(self.weigh.bias)

    @staticmethod
    def key_features(trunk: Features) -> Tensor:
        """The trunk's features at strides 8 and 16 in one map (B, C, H / 8, W / 8)."""
        fine = torch.cat(trunk[KEY_STRIDES[0]], dim=1)
        coarse = torch.cat(trunk[KEY_STRIDES[1]], dim=1)
        return torch.cat([fine, F.interpolate(coarse, fine.shape[2:], mode="bilinear")], dim=1)

    def project(
        self, references: Sequence[References | None], slots: int | None = None
    ) -> ProjectedReferences:
        """Keys and values of one set of references for each image of a batch; None: none at all.

        `slots` makes room for that many instead of the capacity; nothing changes but the time.

        Raises:
            ValueError: more references than there is room for, or of another trunk.
        """
        like, heads = self.near, self.config.heads
        slots = self.config.capacity if slots is None else slots
        shape = (len(references), heads, slots, self.padded_width)
        none = like.new_zeros(shape), like.new_zeros(shape)
        none[0][..., self.config.width + 2] = _EMPTY
        keys, values = list(none[0].unbind()), list(none[1].unbind())
        for number, found in enumerate(references):
            if found is None:
                continue
            self._check(found)
            empty = slots - len(found)
            mine = self._keys(found), self._values(found)
            keys[number] = torch.cat([mine[0], keys[number][:, :empty]], dim=1)
            values[number] = torch.cat([mine[1], values[number][:, :empty]], dim=1)
        return ProjectedReferences(torch.stack(keys), torch.stack(values))

    def _check(self, references: References) -> None:
        if len(references) > self.config.capacity:
            raise ValueError(
                f"{len(references)} references: there is room for {self.config.capacity}"
            )
        if references.features.shape[1] != self.key_channels:
            raise ValueError(
                f"references of {references.features.shape[1]} channels: this student's trunk has "
                f"{self.key_channels}"
            )

    def _keys(self, references: References) -> Tensor:
        """(heads, N, P): learned, then row, column and how far they lie from the middle."""
        heads = self.config.heads
        place = _place_of(references.position)
        learned = self.key(torch.cat([references.features, place], dim=1))
        learned = learned.unflatten(1, (heads, -1)).transpose(0, 1)
        at = references.position.expand(heads, -1, -1)
        away = (self.near.exp()[:, None] * at.square()).sum(2, keepdim=True)
        return pad_channels(torch.cat([learned, at, -away], dim=2), self.padded_width)

    def _values(self, references: References) -> Tensor:
        """(heads, N, P): learned, log depth, its square, row, and one."""
        place = _place_of(references.position)
        depth = -(references.inverse_depth * _MIDDLE).log()[:, None]
        learned = self.value(torch.cat([references.features, place, depth], dim=1))
        learned = learned.unflatten(1, (self.config.heads, -1)).transpose(0, 1)
        plain = torch.cat(
            [depth, depth.square(), references.position[:, :1], torch.ones_like(depth)], dim=1
        )
        both = torch.cat([learned, plain.expand(len(learned), -1, -1)], dim=2)
        return pad_channels(both, self.padded_width)

    def _queries(self, read: Tensor, place: Tensor) -> Tensor:
        """(B, heads, h * w, P): learned, then what the keys' locality is multiplied by."""
        heads = self.config.heads
        learned = self.query(read).flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)
        learned = learned / math.sqrt(self.config.width)
        at = 2 * self.near.exp()[:, None] * place.flatten(2)[:, None, :2].transpose(2, 3)
        ones = torch.ones_like(at[..., :1])
        at, ones = (t.expand(len(read), -1, -1, -1) for t in (at, ones))
        return pad_channels(torch.cat([learned, at, ones], dim=3), self.padded_width)

    def forward(self, decoded: Tensor, depth: Tensor, found: ProjectedReferences) -> Tensor:
        """What to add to the logarithm of the student's depth, at stride 8.

        Args:
            decoded: the decoder's features (B, C, h, w).
            depth: the student's depth there (B, 1, h, w), network units.
            found: projected references, one set an image or one for all.

        Returns:
            (B, 1, h, w); exactly zero without references.
        """
        if decoded.dtype == torch.float16:  # squares of logarithms and scores lose too much in it
            with torch.autocast(decoded.device.type, enabled=False):
                return self.forward(decoded.float(), depth, found)
        whole_size, own = decoded.shape[2:], (depth / _MIDDLE).log()
        if self.config.stride > STRIDE:
            decoded, own = F.avg_pool2d(decoded, 2), F.avg_pool2d(own, 2)
        size = decoded.shape[2:]
        place = place_map(decoded)
        read = F.elu(self.read(torch.cat([decoded, own, place.expand(len(own), -1, -1, -1)], 1)))
        mixed = attend(self._queries(read, place), found.keys, found.values)
        mixed = mixed.transpose(2, 3).unflatten(3, size)  # (B, heads, P, h, w)
        width = self.config.width
        looked_up, square, row, there = mixed[:, :, width : width + _VALUES].unbind(2)
        spread = (square - looked_up.square()).clamp(min=1e-6).sqrt()
        away = looked_up - own
        # The image as a whole, nearer or farther: the camera's height and focal length do that.
        whole = away.mean((1, 2, 3), keepdim=True).expand_as(own)
        parts = [read, mixed[:, :, :width].flatten(1, 2), away, spread, row - place[:, :1]]
        parts += [looked_up, own, whole]
        x = F.elu(self.merge(torch.cat(parts, dim=1)))
        x = F.elu(self.mix(x))
        weights = torch.softmax(self.weigh(x), dim=1)
        added = (weights[:, 2:] * away).sum(1, keepdim=True) + weights[:, 1:2] * whole
        added = level_beyond(added, own) * there.mean(1, keepdim=True)
        return added if size == whole_size else F.interpolate(added, whole_size, mode="bilinear")

    def alignment_hash(self) -> str:
        """A sha256 in hex of what reads references; other weights need other references."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            if name.startswith(self.READERS) or name == "near":
                half = tensor.detach().cpu().to(torch.float16).contiguous()
                digest.update(f"{name} {tuple(half.shape)}\n".encode())
                digest.update(half.numpy().astype("<f2").tobytes())
        return digest.hexdigest()


def level_beyond(added: Tensor, own: Tensor) -> Tensor:
    """Corrections (B, 1, h, w) of log depth, one for all that is beyond the references.

    No reference is of the sky, and nothing says how far it is: it is moved as the rest of the image
    is on average. own: log depth over `_MIDDLE`.
    """
    own = own.detach()
    shift = _mean(added, _nearer(own, _SKY))
    near = _nearer(own + shift, _END)
    return near * added + (1 - near) * _mean(added, near)


def _nearer(log_depth: Tensor, limits: tuple[float, float]) -> Tensor:
    """1 up to the first depth, 0 from the second on; linear in log depth between."""
    first, last = (math.log(limit / _MIDDLE) for limit in limits)
    return ((last - log_depth) / (last - first)).clamp(0, 1)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Of each image (B, 1, h, w), weighted; (B, 1, 1, 1)."""
    total = weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-3)
    return (values * weight).sum((1, 2, 3), keepdim=True) / total


def place_map(like: Tensor) -> Tensor:
    """What the network is told of every place: (1, 10, h, w), row and column first."""
    height, width = like.shape[2:]
    rows, columns = (
        (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) * 2 / n - 1
        for n in (height, width)
    )
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    return _place_of(position.flatten(0, 1)).T.unflatten(1, (height, width))[None]


def _place_of(position: Tensor) -> Tensor:
    """(N, 2) row and column in [-1, 1] -> (N, 10): those, and sines and cosines of them."""
    angles = math.pi * torch.cat([position, 2 * position], dim=1)
    return torch.cat([position, angles.sin(), angles.cos()], dim=1)


def pooled_depth(inverse_depth: Tensor) -> Tensor:
    """Depth (B, 1, H / 8, W / 8) of a map of inverse depth, mean of logarithms."""
    return (-F.avg_pool2d(inverse_depth.log(), STRIDE)).exp()


def corrected(inverse_depth: Tensor, added: Tensor) -> Tensor:
    """Inverse depth (B, 1, H, W) with a correction (B, 1, h, w) of log depth, enlarged, added."""
    size = inverse_depth.shape[2:]
    return inverse_depth * (-F.interpolate(added, size, mode="bilinear")).exp()
