"""`depth_train adapt`: a prior from a recording of one's own; no network weight changes.

RPrDepth names as its limitation that the reference set of another domain has to be made anew. Here
that is one command: the bundle's frozen teacher looks at the first part of the recording, the
student's attention selects, and what that changes is measured on the rest.

The teacher that a bundle's prior came from, opened so that it says the same as then.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_json
from depth_prior_ros.backends.devices import choose_device
from depth_prior_ros.bundle import Bundle, PriorSpec, load_bundle, rewrite_manifest
from depth_prior_ros.bundle.derive import replace_prior
from depth_prior_ros.bundle.manifest import MANIFEST_NAME, TEACHER_FOLDER, PriorTeacher
from depth_prior_ros.bundle.prior import PriorSources
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.progress import Progress, ProgressBar
from depth_prior_ros.recording_options import recording_options
from training.errors import TrainingError
from training.prior.own_drive import OwnDrive, depth_errors, notes, photometric, table
from training.prior.reference.extraction import extract_reference_set
from training.prior.reference.set import ReferenceSet
from training.prior.selection.selection import SelectionError, select
from training.prior.selection.sweep import split
from training.prior.teachers.base import TEACHERS, RichTeacher, TeacherIdentity, open_teacher
from training.prior.teachers.bundle import BundleTeacher


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
    if prefix := TEACHERS[known.kind].prefix:
        return trained if trained.startswith(prefix) else prefix + known.name
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
    foundation = where.startswith(TEACHERS["foundation"].prefix)
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


FIGURES = "adapt.json"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        bundle: name or folder, of a student with a fusion.
        bag: any recording.
        out: folder for the reference set, the bundle and the figures.
        share: of the frames, the first ones, that extraction and selection see.
        keep: pixels of the new prior; None: as many as the present one has, or as there are.
        keep_old: select among the present prior's pixels, too.
        teacher: a bundle, or hf:NAME; None: the one in the bundle.
        triplets: of the recording that are extracted, at most.
        per_image: pixels of each; None: 1,300, or as many as the teacher's map has.
        images: whose attention selects.
        stride: frames between neighbours; above 1 for cameras faster than those of training.
        seed: decides triplets and pixels.
        device: where the networks run.
        image_topic, camera_info_topic, odom_topic, depth_topic, rectify, intrinsics: how the
            recording is read, as `recording_options` has it.
    """

    bundle: str | Path
    bag: Path
    out: Path | None = None
    share: float = 0.5
    keep: int | None = None
    keep_old: bool = False
    teacher: str | None = None
    triplets: int = 2000
    per_image: int | None = None
    images: int = 64
    stride: int = 1
    seed: int = 1
    device: str = "auto"
    image_topic: str | None = None
    camera_info_topic: str | None = None
    odom_topic: str | None = None
    depth_topic: str | None = None
    rectify: str = "auto"
    intrinsics: str | None = None

    @property
    def command(self) -> str:
        """What a user has to give to go on: every option that is not the default."""
        words = ["depth_train", "adapt", str(self.bundle)]
        for one in fields(self)[1:]:
            value = getattr(self, one.name)
            if value != one.default:
                option = f"--{one.name.replace('_', '-')}"
                words += [option] if value is True else [option, str(value)]
        return shlex.join(words)

    def settings(self, bundle: Bundle, teacher: AdaptTeacher, drive: OwnDrive) -> dict[str, Any]:
        """What decides the new bundle."""
        return {
            "bundle": bundle.digest,
            "teacher": teacher.identity.sha256,
            "recording": drive.name,
            "frames": len(drive.recording),
            "share": self.share,
            "keep": self.keep,
            "keep_old": self.keep_old,
            "triplets": self.triplets,
            "per_image": self.per_image,
            "images": self.images,
            "stride": self.stride,
            "seed": self.seed,
            # Another camera of the same bag is another drive.
            **({"image_topic": self.image_topic} if self.image_topic else {}),
        }


@dataclass(frozen=True)
class Adapted:
    """The new bundle, its figures (adapt.json), and where they are."""

    bundle: Bundle
    figures: dict[str, Any]
    folder: Path

    def __str__(self) -> str:
        about, prior = self.figures["recording"], self.figures["prior"]
        old = f", {prior['old']:,} of them of the old prior" if prior["keep_old"] else ""
        lines = [
            f"{about['name']}: {about['first']} of {about['frames']} frames for the prior, "
            f"{about['frames'] - about['first']} held out",
            f"kept {prior['kept']:,} of {prior['out_of']:,} reference pixels{old}",
            table(self.figures),
            *self.figures["notes"],
            f"figures: {self.folder / FIGURES}",
            f"bundle: {self.bundle.path}",
        ]
        return "\n".join(lines)


def adapt(request: Request) -> Adapted:
    """Make a prior of a recording and write a new bundle; the same call again goes on.

    Raises:
        BundleError, RecordingError: one of the two cannot be opened.
        TrainingError: no fusion, another teacher than the prior's, a recording that is too short or
            stands, more pixels to keep than there are, numbers that make no sense, or a folder of
            something else.
    """
    _check(request)
    bundle = load_bundle(request.bundle)
    if not bundle.manifest.architecture.student.get("fusion"):
        raise TrainingError(
            f"{bundle.path}: this student has no prior fusion, so no prior can change it"
        )
    device = str(choose_device(request.device))
    with ProgressBar() as progress:
        read_as = recording_options(request.bag, request)
        drive = OwnDrive.open(request.bag, request.share, request.stride, progress, read_as)
        teacher = open_adapt_teacher(bundle, request.teacher, device)
        folder = request.out or Path("runs/adapt") / f"{bundle.manifest.name}_{drive.name}"
        work = _Work(request, bundle, drive, teacher, folder, device)
        found = work.finished()
        if found is not None:
            return found
        references = work.extract(progress)
    return work.judge(work.select(references))


@dataclass(frozen=True)
class _Work:
    """One adaptation in ``folder``."""

    request: Request
    bundle: Bundle
    drive: OwnDrive
    teacher: AdaptTeacher
    folder: Path
    device: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.request.settings(self.bundle, self.teacher, self.drive)

    def finished(self) -> Adapted | None:
        """What an earlier call left, all of it; None where something is still to be done.

        Raises:
            TrainingError: a bundle of other settings is there.
        """
        bundle = self._written()
        if bundle is None:
            return None
        figures = bundle.manifest.metrics.get("adapt")
        if figures is None:
            return None
        write_json(self.folder / FIGURES, figures)
        return Adapted(bundle, figures, self.folder)

    def _written(self) -> Bundle | None:
        """The new bundle, where it is there already."""
        path = self.folder / "bundle"
        if not (path / MANIFEST_NAME).is_file():
            return None
        bundle = load_bundle(path)
        spec = bundle.manifest.prior
        had = ((spec.selection or {}) if spec else {}).get("adapt", {})
        if had != self.settings:
            other = [f"{k} {had.get(k)}" for k in self.settings if had.get(k) != self.settings[k]]
            raise TrainingError(
                f"{path} was made with other settings ({', '.join(other)}); give another --out, or "
                f"remove it: the reference set beside it is used again where it fits"
            )
        return bundle

    def extract(self, progress: Progress) -> ReferenceSet:
        """The reference set of the recording's first part."""
        teacher, request = self.teacher, self.request
        width, height = teacher.identity.size
        pixels = (width // teacher.identity.tap) * (height // teacher.identity.tap)
        source = self.drive.source(self.drive.moving, teacher.camera, teacher.metres_per_unit)
        return extract_reference_set(
            teacher.teacher,
            source,
            self.folder / "reference",
            triplets=min(request.triplets, len(source)),
            per_image=min(1300, pixels) if request.per_image is None else request.per_image,
            seed=request.seed,
            progress=progress,
            command=replace(request, out=self.folder).command,
        )

    def select(self, references: ReferenceSet) -> Bundle:
        """Choose by attention and write the bundle, still without figures."""
        written = self._written()
        if written is not None:
            return written
        request, student = self.request, self.bundle.student().to(self.device)
        pool = _Pool(references, self.bundle.prior() if request.keep_old else None)
        keep = self._keep(pool)
        images = list(self.drive.images(request.images, self.bundle.manifest.camera))
        with ProgressBar() as progress:
            chosen = select(
                student, cast("ReferenceSet", pool), images, keep=keep, progress=progress
            )
        prior = pool.rows(chosen.indices)
        about = {
            "method": "attention",
            "kept": keep,
            "out_of": len(pool),
            "images": len(images),
            "seed": request.seed,
            "old": int((chosen.indices < pool.offset).sum()),
            "adapt": self.settings,
        }
        what = f"{keep} of {len(pool)} reference pixels, chosen by attention, of {self.drive.name}"
        if pool.offset:
            what += f" and the prior before ({about['old']} of its)"
        spec = PriorSpec(
            pixels=keep,
            channels=references.channels,
            note=what,
            teacher=PriorTeacher.of(references.identity.to_dict()),
            selection=about,
        )
        return replace_prior(
            self.bundle,
            self.folder / "bundle",
            prior,
            spec,
            pool.sources(chosen.indices, self.bundle),
            note=f"adapted to {self.drive.name}: {what}; no network weight changed",
            name=f"{self.bundle.manifest.name}_{self.drive.name}",
            data_sources=[f"prior: {self.drive.name}, its first {self.drive.first} frames"],
        )

    def _keep(self, pool: _Pool) -> int:
        spec = self.bundle.manifest.prior
        if self.request.keep is None:
            return min(spec.pixels if spec else 25_000, len(pool))
        if not 1 <= self.request.keep <= len(pool):
            raise SelectionError(
                f"keep {self.request.keep}: there are {len(pool)} reference pixels to choose from; "
                "keep fewer, or take more (--per-image, --triplets, a longer recording)"
            )
        return self.request.keep

    def judge(self, after: Bundle) -> Adapted:
        """Measure before and after on what was held out, and finish the bundle."""
        drive, teacher = self.drive, self.teacher
        light = depth = None
        if drive.first < len(drive.recording):
            with ProgressBar() as progress:
                light = photometric(
                    self.bundle,
                    after,
                    drive,
                    teacher.teacher,
                    teacher.camera,
                    teacher.metres_per_unit,
                    self.device,
                    progress,
                )
                depth = depth_errors(self.bundle, after, drive, "torch", self.device, progress)
        spec = after.manifest.prior
        assert spec is not None and spec.selection is not None
        prior = {k: v for k, v in spec.selection.items() if k != "adapt"}
        figures = {
            "recording": {
                "name": drive.name,
                "path": str(drive.path.absolute()),
                "frames": len(drive.recording),
                "first": drive.first,
                "moving": len(drive.moving),
            },
            "bundle": {"name": self.bundle.manifest.name, "digest": self.bundle.digest},
            "teacher": teacher.identity.to_dict(),
            "prior": prior | {"keep_old": self.request.keep_old},
            "photometric": light,
            "depth": depth,
            "notes": [*teacher.notes, *notes(drive, light, depth)],
        }
        done = rewrite_manifest(after, metrics={"adapt": figures})
        write_json(self.folder / FIGURES, figures)
        return Adapted(done, figures, self.folder)


@dataclass(frozen=True)
class _Pool:
    """What is chosen from: the old prior's pixels first, where they are kept, then the new ones."""

    references: ReferenceSet
    old: Prior | None

    @property
    def offset(self) -> int:
        """Pixels of the old prior."""
        return 0 if self.old is None else len(self.old.features)

    def __len__(self) -> int:
        return self.offset + len(self.references)

    def require(self, channels: int) -> None:
        """As of a `ReferenceSet`."""
        self.references.require(channels=channels)

    def chunks(self, size: int) -> Iterator[Prior]:
        """All rows in order, at most ``size`` at a time."""
        if self.old is not None:
            yield from split(self.old, size)
        yield from self.references.chunks(size)

    def rows(self, indices: NDArray[np.int64]) -> Prior:
        """Ascending rows."""
        new = (
            self.references.rows(indices[indices >= self.offset] - self.offset)
            if ((indices >= self.offset).any())
            else None
        )
        if self.old is None:
            assert new is not None
            return new
        kept = torch.from_numpy(indices[indices < self.offset])
        features, inverse = self.old.features[kept], self.old.inverse_depth[kept]
        if new is not None:
            features = torch.cat([features, new.features])
            inverse = torch.cat([inverse, new.inverse_depth])
        return Prior(features, inverse)

    def sources(self, indices: NDArray[np.int64], bundle: Bundle) -> PriorSources:
        """Where ascending rows come from; pixels of an old prior that does not say: "unknown"."""
        image, pixel = self.references.sources(indices[indices >= self.offset] - self.offset)
        images: list[Any] = list(self.references.images)
        kept = indices[indices < self.offset]
        if len(kept):
            old = bundle.prior_sources()
            if old is None:
                nothing = np.zeros(self.offset, np.int32)
                old = PriorSources(nothing, nothing, [{"drive": _UNKNOWN, "frame": 0}])
            image = np.concatenate([old.image[kept] + len(images), image])
            pixel = np.concatenate([old.pixel[kept], pixel])
            images += old.images
        return PriorSources(image, pixel, images)


def _check(request: Request) -> None:
    """Numbers that make no sense are told before anything is opened."""
    for name, least in (("triplets", 1), ("per_image", 1), ("images", 1), ("seed", 0)):
        value = getattr(request, name)
        if value is not None and value < least:
            raise TrainingError(f"{name.replace('_', '-')} {value}: at least {least}")
