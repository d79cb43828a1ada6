"""The teacher that a bundle's prior came from, opened so that it says the same as then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.bundle_manifest import TEACHER_FOLDER, PriorTeacher
from depth_prior_ros.camera import Camera
from depth_prior_ros.models.fusion_config import FusionConfig
from training.errors import TrainingError
from training.prior.bundle_teacher import BundleTeacher
from training.prior.teachers import HUGGING_FACE, RichTeacher, TeacherIdentity, open_teacher


@dataclass(frozen=True)
class AdaptTeacher:
    """A frozen teacher and what it was trained to see.

    Attributes:
        teacher: looks at triplets.
        camera: the one that recordings are framed for, at its input size.
        metres_per_unit: unit of what goes in and comes out.
        notes: what is to be said.
    """

    teacher: RichTeacher
    camera: Camera
    metres_per_unit: float
    notes: list[str] = field(default_factory=list)

    @property
    def identity(self) -> TeacherIdentity:
        """What it is."""
        return self.teacher.identity


def open_adapt_teacher(bundle: Bundle, spec: str | None, device: str) -> AdaptTeacher:
    """Open the teacher of a bundle's prior.

    Args:
        bundle: whose prior it made.
        spec: another place where the same teacher lies; None: the bundle in the bundle, or the
            Hugging Face model that the prior names.
        device: where it runs.

    Raises:
        TrainingError: it is not there, or is another one than the prior's.
        TeacherError: it cannot be opened.
    """
    prior = bundle.manifest.prior
    known = None if prior is None else prior.teacher
    where = spec or _place(bundle, known)
    opened = None
    for options in _options(bundle, known, where):
        opened = open_teacher(where, device=device, **options)
        _check_width(bundle, opened)
        if known is None or opened.identity.sha256 == known.sha256:
            return AdaptTeacher(
                opened,
                _camera(bundle, opened),
                options["metres_per_unit"] or _own_unit(bundle, opened),
                _unnamed(bundle, opened) if known is None else [],
            )
    assert known is not None and opened is not None
    raise TrainingError(
        f"teacher {where} ({opened.identity.name}, {opened.identity.sha256[:12]}...) is not the "
        f"one that the student's prior came from ({known.name}, {known.sha256[:12]}...): its "
        "features mean nothing to this student. Give that teacher, or train a student on this one "
        "(depth_train run with rich.teacher)"
    )


def _place(bundle: Bundle, known: PriorTeacher | None) -> str:
    if bundle.teacher() is not None:
        return str(bundle.path / TEACHER_FOLDER)
    if known is None:
        raise TrainingError(
            f"{bundle.path}: its prior names no teacher; say which one it was by "
            "--teacher (for lite: --teacher lite, which is its own)"
        )
    recipe = bundle.manifest.provenance.recipe
    trained = str((recipe.get("rich") or {}).get("teacher") or "")
    if known.kind == "foundation":
        return trained if trained.startswith(HUGGING_FACE) else HUGGING_FACE + known.name
    if trained and Path(trained).is_dir():
        return trained
    raise TrainingError(
        f"{bundle.path}: the teacher of its prior, {known.name}, is not in it (a bundle that was "
        "trained with output.teacher: true holds it); say where it lies by --teacher"
    )


def _options(bundle: Bundle, known: PriorTeacher | None, where: str) -> Iterator[dict[str, Any]]:
    """How it may have been opened: as the bundle's recipe says, else every likely way."""
    recipe = bundle.manifest.provenance.recipe
    rich = recipe.get("rich") or {}
    tap = known.tap if known else rich.get("tap")
    units = [recipe.get("metres_per_unit"), None]
    lookups = [tuple(rich["lookup"])] if rich.get("lookup") else [(-1, 1), (-1,)]
    foundation = where.startswith(HUGGING_FACE)
    more: dict[str, Any] = {}
    if foundation:
        more["size"] = known.size if known else rich.get("size")
        more |= {key: rich[key] for key in ("fetch", "metric") if key in rich}
        lookups = lookups[:1]
    kinds = [rich["features"]] if rich.get("features") else ["encoder", "decoder"]
    tried = []
    for unit in units:
        for lookup, kind in product(lookups, kinds[:1] if foundation else kinds):
            options = {
                "tap": tap,
                "metres_per_unit": unit,
                "lookup": lookup,
                "features": kind,
                **more,
            }
            if options not in tried:
                tried.append(options)
                yield options


def _check_width(bundle: Bundle, teacher: RichTeacher) -> None:
    fusion = FusionConfig.from_dict(bundle.manifest.architecture.student.get("fusion") or {})
    if teacher.identity.channels != fusion.reference_channels:
        raise TrainingError(
            f"teacher {teacher.identity.name} has features of {teacher.identity.channels} "
            f"channels, the student of {bundle.path} reads {fusion.reference_channels}"
        )


def _camera(bundle: Bundle, teacher: RichTeacher) -> Camera:
    """A bundle's own training camera; the student's at the teacher's size otherwise."""
    if isinstance(teacher, BundleTeacher):
        return teacher.bundle.manifest.camera
    return bundle.manifest.camera.scaled(*teacher.identity.size)


def _own_unit(bundle: Bundle, teacher: RichTeacher) -> float:
    source = teacher.bundle if isinstance(teacher, BundleTeacher) else bundle
    return source.manifest.depth.metres_per_unit


def _unnamed(bundle: Bundle, teacher: RichTeacher) -> list[str]:
    return [
        f"the prior of {bundle.manifest.name} names no teacher; that it was "
        f"{teacher.identity.name} is taken on trust"
    ]
