"""`depth_train select`: a bundle with a prior chosen out of a reference set, or out of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from depth_prior_ros.backends.devices import choose_device
from depth_prior_ros.bundle import Bundle, PriorSpec, load_bundle
from depth_prior_ros.bundle.derive import replace_prior
from depth_prior_ros.bundle.files import refuse_foreign
from depth_prior_ros.bundle.prior import PriorSources
from depth_prior_ros.models.prior_fusion import Prior
from depth_prior_ros.pipeline.framing import InvalidFrameError, frame_image
from depth_prior_ros.progress import ProgressBar
from depth_prior_ros.recording_options import recording_options
from depth_prior_ros.recordings import CorruptFrameError, open_recording
from training.data.sources import load_data
from training.data.triplets import TripletSource
from training.evaluation.sets import EvaluationError, data_folder
from training.prior.reference.set import ReferenceSet, ReferenceSetError
from training.prior.selection.selection import (
    Method,
    OwnPrior,
    SelectionError,
    check,
    feature_maps,
    select,
)
from training.prior.selection.statistics import Progress, prior_usage, split
from training.recipes.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.models.student import Student

# A prior of more pixels than this is not looked at again to count neighbours.
_LARGEST_LOOK = 200_000
_ELSEWHERE = "choose the images by --images-from RECORDING"


@dataclass(frozen=True)
class SelectionReport:
    """What `depth_train select` did.

    Attributes:
        bundle: the new one.
        about: the prior's `selection`, as in the manifest.
        sources: images that the chosen pixels come from, and images of the set; None: not known,
            of a prior that does not tell.
        neighbours: effective number of references that a query looks up; None: not counted.
        unused: share of the chosen references with less than a hundredth of the mean weight.
        checked: whether the pixels are of the teacher that the student was trained with, as far as
            it is known: the bundle names it, or they are the bundle's own.
    """

    bundle: Bundle
    about: dict[str, Any]
    sources: tuple[int, int] | None
    neighbours: float | None
    unused: float | None
    checked: bool

    def __str__(self) -> str:
        kept, out_of = self.about["kept"], self.about["out_of"]
        lines = [f"kept {kept:,} of {out_of:,} reference pixels by {self.about['method']}"]
        if "share" in self.about:
            lines.append(
                f"they hold {self.about['share']:.1%} of the attention of {self.about['images']} "
                f"images (as many at random: about {kept / out_of:.1%})"
            )
        if self.sources is not None:
            lines.append(f"they come from {self.sources[0]} of the set's {self.sources[1]} images")
        if self.neighbours is not None and self.unused is not None:
            lines.append(
                f"a query looks up {self.neighbours:,.0f} of them (effective number: exp of the "
                f"weights' entropy); {self.unused:.1%} are hardly used (below 1/100 of the mean)"
            )
        if not self.checked:
            lines.append(
                "note: the bundle did not say which teacher its student was trained with, so it "
                "was not compared with the set's"
            )
        return "\n".join([*lines, f"bundle: {self.bundle.path}"])


def select_command(
    bundle: str | Path,
    reference: Path | None,
    out: Path,
    *,
    keep: int | None = None,
    method: Method = "attention",
    images: int = 64,
    data: Path | None = None,
    images_from: Path | None = None,
    reading: Any = None,
    seed: int = 1,
    device: str = "auto",
) -> SelectionReport:
    """Choose a prior for a bundle's student and write a new bundle; no network changes.

    Args:
        bundle: name or folder, of a student with a fusion that was trained on this set.
        reference: folder of the reference set; None: choose of the prior that the bundle has.
        out: folder of the new bundle; may be that of `bundle`.
        keep: number of references; see `select`. None: 25,000 as in the paper, of a set alone.
        method: how to choose.
        images: number of validation images at most, evenly spaced.
        data: data root for the bundle's own recipe; default: the recipe's, else $DEPTH_PRIOR_DATA.
        images_from: take the images from this recording instead of the recipe's data.
        reading: how it is read, see `recording_options`; default: as it is found.
        seed: of the methods that draw.
        device: "cpu", "cuda"; "auto": CUDA where there is one.

    Raises:
        BundleError, ReferenceSetError: one of the two cannot be used, or they do not belong
            together.
        SelectionError: see `select`; no validation image was found; the bundle has no prior to
            choose of, or `keep` is not said for it.
        RecipeError: the recipe's data cannot be loaded.
    """
    if seed < 0:
        raise SelectionError(f"seed {seed}: at least 0")
    source = load_bundle(bundle)
    student = _student(source)
    references = OwnPrior.of(source) if reference is None else ReferenceSet.open(reference)
    refuse_foreign(out)
    _check_teacher(source, student, references)
    if keep is None and method != "all" and reference is None:
        raise SelectionError(
            f"{source.path} has {len(references):,} reference pixels: say by --keep how many stay"
        )
    keep = 25_000 if keep is None else keep
    check(len(references), keep, method)  # before any image is decoded
    if reference is not None:
        ReferenceSet.open(reference, verify=True)
    looked: list[Tensor] = []
    if method == "attention":
        looked = list(_images(source, images, data, images_from, reading))
    student.to(choose_device(device))
    with ProgressBar() as progress:
        found = select(
            student, references, looked, keep=keep, method=method, seed=seed, progress=progress
        )
        prior = references.rows(found.indices)
        usage = _usage(student, prior, looked, progress)
    about = found.about(references, method, len(looked), seed)
    if found.share is not None:
        about["share"] = round(found.share, 4)
    words = _note(about)
    if isinstance(references, OwnPrior):
        sources, counts = references.sources(found.indices), None
        if sources is not None:
            counts = len(np.unique(sources.image)), len(sources.images)
        if references.chosen_of is not None:
            about["before"] = references.chosen_of
        words += f"; all {about['out_of']}: {references.note}"
    else:
        image, pixel = references.sources(found.indices)
        sources = PriorSources(image, pixel, references.images)
        counts = len(np.unique(image)), sum(entry["pixels"] > 0 for entry in references.images)
    spec = PriorSpec(
        pixels=len(found.indices),
        channels=references.channels,
        note=words,
        teacher=references.identity,
        selection=about,
    )
    written = replace_prior(source, out, prior, spec, sources, note=f"select: {_note(about)}")
    old = source.manifest.prior
    known = reference is None or (old is not None and old.teacher is not None)
    return SelectionReport(written, about, counts, *usage, known)


def _student(bundle: Bundle) -> Student:
    """The bundle's student, if it reads a prior."""
    student = bundle.student()
    if student.fusion is None:
        raise SelectionError(
            f"{bundle.path}: this student has no prior fusion; train one with networks.fusion"
        )
    return student


def _check_teacher(bundle: Bundle, student: Student, references: ReferenceSet | OwnPrior) -> None:
    """Raise where the student was not trained on features of the set's teacher."""
    assert student.fusion is not None
    references.require(channels=student.fusion.config.reference_channels)
    if isinstance(references, OwnPrior):
        return
    spec = bundle.manifest.prior
    old, new = None if spec is None else spec.teacher, references.identity
    if old is not None and (old.sha256, old.stride) != (new.sha256, new.stride):
        raise ReferenceSetError(
            references.folder,
            f"written by another teacher ({new.name} at stride {new.stride}, "
            f"{new.sha256[:12]}...) than the one that {bundle.path} was "
            f"trained with ({old.name} at stride {old.stride}, {old.sha256[:12]}...); "
            "extract a set with that teacher into another folder",
        )


def _images(
    bundle: Bundle, count: int, data: Path | None, recording: Path | None, reading: Any
) -> Iterator[Tensor]:
    if count < 1:
        raise SelectionError(f"images {count}: selection needs at least one validation image")
    if recording is not None:
        return recorded_images(recording, bundle.manifest.camera, count, reading)
    return spread_images(recipe_triplets(bundle, data), count)


def recipe_triplets(bundle: Bundle, data: Path | None = None) -> TripletSource:
    """What the bundle's own recipe holds out, else what it trains on; decoded when asked for.

    Args:
        bundle: with a recipe in its provenance.
        data: data root; default: the recipe's, else $DEPTH_PRIOR_DATA.

    Raises:
        SelectionError: the bundle names no recipe, or one of another version.
        RecipeError: its data cannot be loaded.
    """
    values = bundle.manifest.provenance.recipe
    if not values:
        raise SelectionError(f"{bundle.path} names no recipe, hence no data; {_ELSEWHERE}")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise SelectionError(
            f"the recipe of {bundle.path} is of another version "
            f"({error.errors()[0]['msg']}); {_ELSEWHERE}"
        ) from error
    try:
        root = data_folder(data or recipe.data.root)
        section = recipe.data.model_copy(update={"memory": 0})
        loaded = load_data(root, section, bundle.manifest.input_size, recipe.metres_per_unit)
    except (RecipeError, EvaluationError) as error:
        raise RecipeError(
            f"the data of {bundle.path}'s recipe: {error}; or {_ELSEWHERE}"
        ) from error
    return loaded.validation or loaded.training


def spread_images(source: TripletSource, count: int) -> Iterator[Tensor]:
    """Middle frames (3, H, W) of ``count`` triplets, evenly spaced, as recorded.

    A triplet that cannot be read is replaced by the next one; there are fewer images where there
    are fewer triplets.
    """
    places = source.index
    for chosen in spread(len(places), count):
        for place in chosen:
            try:
                yield source.triplet(*places[place]).images[0, 1]
                break
            except CorruptFrameError:
                continue


def recorded_images(
    recording: Path, camera: Camera, count: int, reading: Any = None
) -> Iterator[Tensor]:
    """``count`` evenly spaced images (3, H, W) of a recording, framed as at inference.

    Args:
        recording: whatever `open_recording` opens.
        camera: the training camera at the input size.
        reading: how it is read, see `recording_options`.
        count: images at most; one that cannot be read is replaced by the next one.

    Raises:
        RecordingError: it cannot be opened.
    """
    options = {} if reading is None else recording_options(recording, reading)
    frames = open_recording(recording, **options).frames
    for chosen in spread(len(frames), count):
        for place in chosen:
            try:
                framed = frame_image(frames[place].image(), frames[place].camera, camera)
            except (CorruptFrameError, InvalidFrameError):
                continue
            yield torch.from_numpy(framed.tensor()[0])
            break


def spread(total: int, count: int) -> list[range]:
    """``count`` runs that ``total`` places fall into; as many as there are places at most."""
    count = min(total, count)
    ends = [total * n // count for n in range(count + 1)] if count else [0]
    return [range(a, b) for a, b in pairwise(ends)]


def _usage(
    student: Student, prior: Prior, images: list[Tensor], progress: Progress
) -> tuple[float | None, float | None]:
    """Effective number of neighbours in the chosen prior, and the share hardly used."""
    if not images or student.fusion is None or len(prior.features) > _LARGEST_LOOK:
        return None, None
    maps = feature_maps(student, images)
    usage = prior_usage(student.fusion, maps, split(prior), progress=progress)
    return usage.neighbours, usage.unused()


def _note(about: dict[str, Any]) -> str:
    how = f" of {about['images']} images" if about["images"] else ""
    return (
        f"{about['kept']} of {about['out_of']} reference pixels, chosen by {about['method']}{how}"
    )
