"""A bundle as the teacher of a prior: its multi-frame network, or else its single-frame one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.bundle import Bundle, BundleError, load_bundle
from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.matching import STRIDE, Lookup
from training.prior.teachers.base import (
    TeacherError,
    TeacherIdentity,
    TeacherView,
    teacher,
)
from training.stages.system import LookupFrame, System

_PLACES = (-1, 1)  # previous and next, in the order of all motions
_PARTS = ("student", "prior", "multi_frame", "pose")
_DEFAULT_STRIDE = (
    4  # what is matched; finer features of a cost-volume network are those of its stem
)


@dataclass(frozen=True)
class _Single:
    """Single-frame depth (B, 1, H, W), the network's units, and features.

    levels: the trunk's, by stride. decoded: the decoder's, where they are the reference.
    """

    depth: Tensor
    levels: dict[int, list[Tensor]]
    decoded: Tensor | None


@dataclass
class BundleTeacher:
    """Any bundle as a frozen teacher (RPrDepth, 3.1: there ManyDepth at high resolution).

    With a multi-frame and a pose network: depth of the multi-frame network from the frames of
    ``lookup``, around the single-frame depth; motions of the pose network, or as recorded, refined
    against the single-frame depth where the bundle asks for it; features of the multi-frame
    network at the teacher's stride. Of the PADS network these are the matching features at stride 4
    (32 channels), of a cost-volume network those of its encoder at 2 to 32.

    Without a multi-frame network: single-frame depth, and the features of the student's trunk at
    that stride, its tensors of that stride side by side, before any fusion. Without a pose network
    there are no motions.

    ``features="decoder"``: the last features of the single-frame network before its disparity at
    the teacher's stride, which know depth, where matching features know what a place looks like.

    Depth and motions are in the bundle's network units, or, with ``metres_per_unit``, in units of
    so many metres by the bundle's own metric factor.

    Args:
        bundle: the bundle.
        stride: of the features; default: 4.
        lookup: frames that the multi-frame network compares with, -1 previous and 1 next.
        device: where it runs.
        metres_per_unit: unit of everything that goes in and out; default: the bundle's.
        precision: "f32", or "bf16" for autocast.
        features: "encoder" or "decoder", see above.

    Raises:
        TeacherError: a stride or lookup that it does not have, or a bundle that lacks a part.
    """

    bundle: Bundle
    stride: int | None = None
    lookup: tuple[int, ...] = _PLACES
    device: str = "cpu"
    metres_per_unit: float | None = None
    precision: str = "f32"
    features: str = "encoder"
    identity: TeacherIdentity = field(init=False)

    def __post_init__(self) -> None:
        bundle, manifest = self.bundle, self.bundle.manifest
        student = bundle.student().to(self.device)
        multi: Any = bundle.multi_frame().to(self.device) if bundle.has("multi_frame") else None
        pose: Any = bundle.pose().to(self.device) if bundle.has("pose") else None
        if multi is not None and pose is None:
            raise TeacherError(f"{bundle.path}: a multi-frame network without a pose network")
        self._prior: Any = None
        if student.fusion is not None:
            if not bundle.has("prior"):
                raise TeacherError(
                    f"{bundle.path}: the student has a fusion, but there is no prior"
                )
            self._prior = student.fusion.project(bundle.prior().to(self.device))
        self._student, self._multi = student, multi
        self._system = System(
            student,
            pose,
            multi,
            torch.device(self.device),
            self.precision,
            align=manifest.architecture.align_motion,
        )
        self._unit = 1.0  # network units of the outside in one of the bundle's
        if self.metres_per_unit is not None:
            self._unit = manifest.depth.metres_per_unit / self.metres_per_unit
        self.lookup = self._checked_lookup()
        channels = self._feature_channels()
        self.stride = _choose_stride(self.stride, channels, str(bundle.path))
        self.identity = TeacherIdentity(
            name=manifest.name,
            kind="bundle",
            sha256=self._digest(),
            stride=self.stride,
            channels=channels[self.stride],
            size=manifest.input_size,
            licence=manifest.licence,
        )

    @torch.no_grad()
    def look(
        self,
        images: Tensor,
        K: Tensor,
        poses: Tensor | None = None,
        known: Tensor | None = None,
    ) -> TeacherView:
        """See `FrozenTeacher.look`; motions come refined where the bundle refines them.

        Raises:
            ValueError: images of another size than the bundle's.
        """
        images, K = images.to(self.device), K.to(self.device)
        check_triplets(images, self.identity.size)
        now = images[:, 1]
        single = self._single(now)
        views = self._views(images, K, single.depth, poses, known)
        assert self.stride is not None
        if self._multi is None:
            depth = single.depth
            features = single.decoded
            if features is None:
                features = torch.cat(single.levels[self.stride], dim=1)
            inverse = shrink_inverse(depth, features.shape[-2:])
        else:
            with self._system.autocast():
                mine = self._multi.features(now)
                lookups = [
                    Lookup(self._multi.features(view.image).matching, view.motion)
                    for place, view in zip(_PLACES, views, strict=True)
                    if place in self.lookup
                ]
                output = self._multi.match_many(mine, lookups, K, single.depth)
            depth = output.depth.float()
            features = single.decoded
            if features is None:
                features = self._multi.features_at(mine, output, self.stride)
            inverse = (
                1 / output.depth_quarter.float()
                if self.stride == STRIDE
                else shrink_inverse(depth, features.shape[-2:])
            )
        motions = torch.stack([view.motion.matrix for view in views]) if views else None
        return TeacherView(
            features.float(),
            inverse / self._unit,
            depth * self._unit,
            None if motions is None else scale_motions(motions, self._unit),
        )

    def _single(self, image: Tensor) -> _Single:
        image = image.contiguous(memory_format=torch.channels_last)
        depth = self.bundle.manifest.depth
        limits = depth.min_units, depth.max_units
        scale = self._decoder_scale
        head = self._student.decoder.heads[scale or 0]
        with (
            self._system.autocast(),
            outputs_of(self._student.trunk) as seen,
            inputs_of(head) as decoded,
        ):
            output = self._student(
                image, self._prior, scales=sorted({0, scale or 0}), depth_range=limits
            )
        _, units = disparity_to_depth(output.disparity[0].float(), *limits)
        return _Single(units, seen[0], None if scale is None else decoded[0])

    def _views(
        self,
        images: Tensor,
        K: Tensor,
        single: Tensor,
        poses: Tensor | None,
        known: Tensor | None,
    ) -> list[LookupFrame]:
        """Previous and next with their motions, the bundle's units; empty without pose network."""
        if self._system.pose is None:
            return []
        motions = self._system.neighbour_motions(images)
        if poses is not None and known is not None:
            recorded = scale_motions(poses.to(motions).transpose(0, 1), 1 / self._unit)
            motions = torch.where(known.to(self.device)[:, None, None], recorded, motions)
        before, now, after = images.unbind(1)
        return [
            self._system.aligned(now, LookupFrame(image, Pose(motion)), K, single)
            for image, motion in zip((before, after), motions, strict=True)
        ]

    @property
    def _decoder_scale(self) -> int | None:
        """Scale whose head's input is the reference features; None: they are the encoder's."""
        return None if self.features == "encoder" else int(self.stride or 1).bit_length() - 1

    def _feature_channels(self) -> dict[int, int]:
        if self.features == "decoder":
            heads: Any = self._student.decoder.heads
            return {2**scale: head.conv.in_channels for scale, head in enumerate(heads)}
        if self._multi is not None:
            return dict(self._multi.feature_channels)
        return {stride: sum(widths) for stride, widths in self._student.trunk.channels.items()}

    def _checked_lookup(self) -> tuple[int, ...]:
        lookup = tuple(sorted(set(self.lookup)))
        if not set(lookup) <= set(_PLACES) or not lookup:
            raise TeacherError(f"lookup {list(self.lookup)}: -1 (previous), 1 (next), or both")
        return lookup

    def _digest(self) -> str:
        """Of all that decides features, depth and motions; see `TeacherIdentity.sha256`."""
        manifest = self.bundle.manifest
        architecture = manifest.architecture.model_dump(mode="json")
        fusion = architecture["student"].get("fusion") or {}
        if "stride" in fusion:
            fusion["tap"] = fusion.pop("stride")  # as up to schema 3, see below
        names = [f"{part}.safetensors" for part in _PARTS]
        depth_range = (manifest.depth.min_units, manifest.depth.max_units)
        decisive: dict[str, Any] = {
            "files": {name: manifest.files[name] for name in names if name in manifest.files},
            "architecture": architecture,
            "size": list(manifest.input_size),
            "depth": list(depth_range),
            "tap": self.stride,  # the stride's first name: a prior's teacher stays the same
            "lookup": list(self.lookup) if self._multi is not None else [],
            "unit": float(f"{self._unit:.6g}"),
        }
        if getattr(self._multi, "parallax", 0.0):
            decisive["parallax"] = [self._multi.parallax, "confidence"]  # what M is trusted by
        if self.features != "encoder":
            decisive["features"] = self.features
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@teacher("bundle")
def open_bundle_teacher(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    fetch: bool = False,
    metric: bool | None = None,
    **options: Any,
) -> BundleTeacher:
    """A `BundleTeacher` of a bundle's folder or name; options as there, and as of `open_teacher`.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    try:
        opened = BundleTeacher(load_bundle(spec), **options)
    except BundleError as error:
        raise TeacherError(f"teacher {spec}: {error}") from error
    if size is not None and tuple(size) != opened.identity.size:
        has, asked = ("x".join(map(str, s)) for s in (opened.identity.size, size))
        raise TeacherError(f"teacher {spec}: its input is {has} and cannot be {asked}")
    return opened


def check_triplets(images: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError unless images are (B, 3, 3, H, W) of ``size`` (W, H)."""
    width, height = size
    if images.dim() != 5 or tuple(images.shape[1:]) != (3, 3, height, width):
        raise ValueError(
            f"images are {tuple(images.shape)}: this teacher takes triplets (B, 3, 3, {height}, "
            f"{width}), its input is {width}x{height} (width x height)"
        )


def shrink_inverse(depth: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Inverse of depth (B, 1, H, W), averaged over the area of each pixel of ``size`` (h, w)."""
    return F.interpolate(1 / depth, tuple(size), mode="area")


def scale_motions(motions: Tensor, factor: float) -> Tensor:
    """Motions (..., 4, 4) with their translations multiplied by ``factor``."""
    scale = torch.ones(4, 4, dtype=motions.dtype, device=motions.device)
    scale[:3, 3] = factor
    return motions * scale


def _choose_stride(stride: int | None, channels: dict[int, int], name: str) -> int:
    if stride is None:
        return _DEFAULT_STRIDE if _DEFAULT_STRIDE in channels else min(channels)
    if stride not in channels:
        raise TeacherError(
            f"teacher {name} has no features at stride {stride}: choose one of {sorted(channels)}"
        )
    return stride


@contextmanager
def outputs_of(module: torch.nn.Module) -> Iterator[list[Any]]:
    """A list that gets what the module returns while the context is open."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def inputs_of(module: torch.nn.Module) -> Iterator[list[Any]]:
    """A list that gets the module's first argument while the context is open."""
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
