"""Depth models of Hugging Face as teachers of a prior (extra `foundation`).

Nothing is downloaded unless asked for, weights are read from safetensors only, and no code of a
model's author is run (`depth_prior_ros.bundle.hugging_face`). What the models have in common is
read off their outputs, so any depth-estimation model that transformers knows can teach, as long as
it is known there whether it gives depth or inverse depth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.bundle.hugging_face import (
    Loaded,
    NetworkError,
    NotHereError,
    gives_depth,
    load_model,
    settle_missing,
)
from depth_prior_ros.geometry.warping import MAX_DEPTH, MIN_DEPTH
from training.prior.teachers.base import (
    TeacherError,
    TeacherIdentity,
    TeacherView,
    teacher,
)
from training.prior.teachers.bundle import check_triplets, outputs_of

# Modules that fuse the levels of an encoder, by the names they have in transformers.
_NECKS = ("neck", "fusion_stage", "decoder")
_STRIDES = (2, 4, 8, 16, 32)
_DEFAULT_STRIDE = 4
_NEAREST = 1e-3  # metres


@dataclass
class FoundationTeacher:
    """A depth-estimation model of Hugging Face as a frozen single-frame teacher.

    Pictures come at ``identity.size`` and are resized to the next size that the model's patches
    fit into; a model that takes one size only gets that one.

    Features: of the maps that the model's neck returns (the fused levels of its encoder) the
    coarsest one that is at least as fine as the stride, resized to it; without a neck the last
    hidden state as a grid of patches. Depth: of relative models the inverse depth divided by its
    median of each image, so that its unit is the image's own; of metric ones metres. Nothing is
    nearer than 0.1 or farther than 100 units. No motions.

    Args:
        loaded: the model.
        size: (W, H) of the pictures; default: the model's own, at multiples of 32.
        stride: of the features; default: 4.
        device: where it runs.
        metres_per_unit: unit of a metric model's depth; default: 1.
        metric: keep metres; default: where the model's config says that its depth is metric.
        precision: "f32", or "bf16" for autocast.

    Raises:
        TeacherError: the model, the size or the stride cannot be used.
    """

    loaded: Loaded
    size: tuple[int, int] | None = None
    stride: int | None = None
    device: str = "cpu"
    metres_per_unit: float | None = None
    metric: bool | None = None
    precision: str = "f32"
    identity: TeacherIdentity = field(init=False)

    def __post_init__(self) -> None:
        loaded = self.loaded
        self._model = loaded.model.to(self.device)
        self._gives_depth = gives_depth(loaded)
        if self.metric and not self._gives_depth:
            raise TeacherError(f"teacher {loaded.name}: its depth is relative, not metric")
        self._metric = self._gives_depth if self.metric is None else self.metric
        self._metres_per_unit = self.metres_per_unit or 1.0
        stride = _DEFAULT_STRIDE if self.stride is None else self.stride
        size = self.size or _own_size(loaded)
        if stride not in _STRIDES or size[0] % stride or size[1] % stride:
            raise TeacherError(
                f"teacher {loaded.name}: no features at stride {stride} of {size[0]}x{size[1]}; "
                f"choose one of {list(_STRIDES)} that divides both sides"
            )
        self.stride, self._size = stride, size
        channels = self._find_input()
        settle_missing(loaded, self._probe)
        self.identity = TeacherIdentity(
            name=loaded.name,
            kind="foundation",
            sha256=self._digest(),
            stride=stride,
            channels=channels,
            size=size,
            licence=loaded.licence,
        )

    @torch.no_grad()
    def look(
        self,
        images: Tensor,
        K: Tensor,
        poses: Tensor | None = None,
        known: Tensor | None = None,
    ) -> TeacherView:
        """See `FrozenTeacher.look`; of the triplets the middle frame is looked at.

        Raises:
            ValueError: images of another size than the teacher's.
        """
        check_triplets(images, self.identity.size)
        features, output = self._run(images[:, 1].to(self.device))
        width, height = self._size
        inverse = self._inverse(output, (height, width))
        small = (height // self.identity.stride, width // self.identity.stride)
        return TeacherView(_resize(features, small), _resize(inverse, small), 1 / inverse, None)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) of the chosen map and output (B, 1, h', w'), float32."""
        pixels = _resize(images.float(), self._input)
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in self.loaded.normalisation)
        pixels = (pixels - mean) / std
        # Heads of several data sets are chosen by a vote over the batch: then one image at a time.
        alone = len(getattr(self.loaded.model.config, "bin_configurations", None) or ()) > 1
        parts = [self._infer(part) for part in pixels.split(1 if alone else len(pixels))]
        features, output = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return features, output

    def _infer(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        neck = next((m for m in map(self._child, _NECKS) if m is not None), None)
        watched: nn.Module = neck if neck is not None else nn.Identity()
        with self._autocast(), outputs_of(watched) as seen:
            found = self._model(pixel_values=pixels, output_hidden_states=neck is None)
        maps = list(_maps(seen)) if neck is not None else [self._grid(found.hidden_states[-1])]
        wanted = (self._size[1] // (self.stride or 1), self._size[0] // (self.stride or 1))
        features = _nearest_map(maps, wanted)
        depth = found.predicted_depth.float()
        return features.float(), depth.reshape(len(pixels), 1, *depth.shape[-2:])

    def _child(self, name: str) -> nn.Module | None:
        child = getattr(self._model, name, None)
        return child if isinstance(child, nn.Module) else None

    def _grid(self, hidden: Tensor) -> Tensor:
        """A hidden state as a map (B, C, h, w); class and register tokens come first."""
        if hidden.dim() == 4:
            return hidden
        patch = self.loaded.patch
        height, width = (side // patch for side in self._input)
        patches = hidden[:, hidden.shape[1] - height * width :]
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _inverse(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Inverse depth (B, 1, H, W), 1 / network units, of the model's output (B, 1, h, w)."""
        inverse = 1 / output.clamp(min=_NEAREST) if self._gives_depth else output.clamp(min=0)
        inverse = _resize(inverse, size)
        if not self._metric:
            inverse = inverse / _unit_of(inverse)
        else:
            inverse = inverse * self._metres_per_unit
        return inverse.clamp(1 / MAX_DEPTH, 1 / MIN_DEPTH)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor]:
        """What the model says of one picture of noise."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(1, 3, self._size[1], self._size[0], generator=generator)
        return self._run(noise.to(self.device))

    def _find_input(self) -> int:
        """Choose the input size (H, W): the pictures', or else the model's own; channels."""
        patches = [max(1, round(side / self.loaded.multiple)) for side in self._size]
        sizes = [(patches[1] * self.loaded.multiple, patches[0] * self.loaded.multiple)]
        sizes += [(own[1], own[0]) for own in self.loaded.sizes]
        reasons = []
        for size in dict.fromkeys(sizes):
            self._input = size
            try:
                return self._probe()[0].shape[1]
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reasons.append(f"{size[1]}x{size[0]}: {str(error).splitlines()[0]}")
        raise TeacherError(
            f"teacher {self.loaded.name}: takes no picture of any size tried ({'; '.join(reasons)})"
        )

    def _digest(self) -> str:
        """Of all that decides features and depth; see `TeacherIdentity.sha256`."""
        digest = hashlib.sha256()
        decisive = {
            "model": self.loaded.kind,
            "input": list(self._input),
            "size": list(self._size),
            "tap": self.stride,  # the stride's first name: a prior's teacher stays the same
            "normalisation": self.loaded.normalisation,
            "metres_per_unit": self._metres_per_unit if self._metric else None,
            "metric": self._metric,
        }
        digest.update(json.dumps(decisive, sort_keys=True).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@teacher("foundation", prefix="hf:")
def open_foundation_teacher(
    name: str,
    *,
    fetch: bool = False,
    features: str = "encoder",
    lookup: tuple[int, ...] = (),
    **options: Any,
) -> FoundationTeacher:
    """Open a depth-estimation model by name or folder; options as of `FoundationTeacher`.

    A single frame is looked at, whatever ``lookup`` says.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    if features != "encoder":
        raise TeacherError(f"teacher hf:{name}: only a bundle has decoder features to look up")
    try:
        return FoundationTeacher(load_model(name, fetch=fetch), **options)
    except NotHereError as error:
        raise TeacherError(f"teacher {error}, or set teacher.fetch: true") from error
    except NetworkError as error:
        raise TeacherError(f"teacher {error}") from error


def _own_size(loaded: Loaded) -> tuple[int, int]:
    if not loaded.sizes:
        raise TeacherError(
            f"teacher {loaded.name}: it names no input size of its own; set one "
            "(teacher.size: [W, H])"
        )
    width, height = (max(32, round(side / 32) * 32) for side in loaded.sizes[0])
    return width, height


def _unit_of(inverse: Tensor) -> Tensor:
    """Median (B, 1, 1, 1) of every image's inverse depth (B, 1, h, w) >= 0; never 0."""
    flat = inverse.flatten(1)
    median, mean = flat.median(1).values, flat.mean(1)
    unit = torch.where(median > 0, median, mean)  # most of the picture is infinitely far
    return torch.where(unit > 0, unit, torch.ones_like(unit))[:, None, None, None]


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) at another size (h, w), averaged where that is smaller."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", antialias=True, align_corners=False)


def _maps(value: Any) -> Iterator[Tensor]:
    """All maps (B, C, h, w) in nested lists and tuples."""
    if isinstance(value, Tensor):
        if value.dim() == 4:
            yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _maps(entry)


def _nearest_map(maps: Sequence[Tensor], wanted: tuple[int, int]) -> Tensor:
    """The smallest map that is not smaller than ``wanted`` (h, w), else the largest."""
    if not maps:
        raise TypeError("the model's neck returns no feature map")

    def area(one: Tensor) -> int:
        return one.shape[-2] * one.shape[-1]

    fine = [m for m in maps if m.shape[-2] >= wanted[0] and m.shape[-1] >= wanted[1]]
    return min(fine, key=area) if fine else max(maps, key=area)
