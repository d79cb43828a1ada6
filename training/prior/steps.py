"""What a run does about its prior between the stages that train: extract, select, look up.

What it has chosen is kept with its history: where the pixels come from, and how they were chosen.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from depth_prior_ros.atomic_files import write_safetensors
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.progress import ProgressBar
from depth_prior_ros.untrusted import check_regular, parse_json
from training.data.sources import LoadedData
from training.errors import TrainingError
from training.loop.distributed import ProcessGroup
from training.prior.reference.extraction import claimed, extract_reference_set
from training.prior.reference.set import ReferenceSet
from training.prior.teachers.base import FrozenTeacher, TeacherIdentity, open_teacher
from training.prior.teachers.outputs import TeacherOutputs
from training.recipes.recipe import Recipe, RecipeError
from training.stages.prior import Reference, Select
from training.stages.system import System

FILE = "prior.safetensors"


@dataclass(frozen=True)
class ChosenPrior:
    """A prior with its history.

    Attributes:
        prior: features (N, C) and inverse depth (N,), 1 / network units.
        teacher: whose pixels they are.
        image: (N,) int32, place in `images`.
        pixel: (N,) int32, row-major in the teacher's map of features.
        images: where they come from: drive, frame.
        selection: how they were chosen: method, out of how many, seed, images.
    """

    prior: Prior
    teacher: TeacherIdentity
    image: NDArray[np.int32]
    pixel: NDArray[np.int32]
    images: list[dict[str, Any]]
    selection: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write to a safetensors file, so that all of it is there or nothing.

        Raises:
            TrainingError: it cannot be written.
        """
        about = {"teacher": self.teacher.to_dict(), "images": self.images}
        tensors = {
            "features": self.prior.features.half().contiguous(),
            "inverse_depth": self.prior.inverse_depth.half().contiguous(),
            "image": torch.from_numpy(self.image),
            "pixel": torch.from_numpy(self.pixel),
        }
        try:
            about_all = json.dumps(about | {"selection": self.selection})
            write_safetensors(path, tensors, {"about": about_all})
        except OSError as error:
            raise TrainingError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> ChosenPrior:
        """Read what `save` wrote.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            check_regular(path)
            with safe_open(str(path), framework="pt") as file:
                about = parse_json((file.metadata() or {})["about"])
                features, inverse, image, pixel = (
                    file.get_tensor(name)
                    for name in ("features", "inverse_depth", "image", "pixel")
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{path} cannot be read ({error}); remove it, and the selection is made again"
            ) from error
        return cls(
            Prior(features.float(), inverse.float()),
            TeacherIdentity.of(about["teacher"]),
            image.numpy(),
            pixel.numpy(),
            about["images"],
            about["selection"],
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ChosenPrior:
        """The prior of a bundle.

        Raises:
            TrainingError: it has none, or does not say where its prior comes from.
        """
        spec = bundle.manifest.prior
        sources = bundle.prior_sources() if bundle.has("prior") else None
        if spec is None or spec.teacher is None or sources is None:
            raise TrainingError(
                f"{bundle.path}: no prior that names its teacher and its images; depth_train "
                "select makes one"
            )
        return cls(
            bundle.prior(),
            spec.teacher,
            sources.image,
            sources.pixel,
            [dict(image) for image in sources.images],
            dict(spec.selection or {}),
        )


@dataclass
class PriorWork:
    """The prior of one run in ``folder``; ``data`` loads its triplets."""

    recipe: Recipe
    folder: Path
    device: torch.device
    processes: ProcessGroup
    console: Console
    data: Callable[[], LoadedData]
    references: ReferenceSet | None = field(default=None, init=False)
    chosen: ChosenPrior | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.recipe.prior is not None:
            self.chosen = ChosenPrior.of_bundle(load_bundle(self.recipe.prior))

    @cached_property
    def teacher(self) -> FrozenTeacher:
        """The recipe's teacher, opened once."""
        asked = self.recipe.teacher
        assert asked is not None  # the recipe was checked
        return open_teacher(
            asked.model,
            stride=asked.stride,
            lookup=asked.lookup,
            device=str(self.device),
            size=asked.size,
            metres_per_unit=self.recipe.metres_per_unit,
            fetch=asked.fetch,
            features=asked.features,
        )

    @cached_property
    def outputs(self) -> TeacherOutputs:
        """The teacher's depth and motions of all training triplets."""
        cache = self.recipe.teacher.cache if self.recipe.teacher else None
        source = self.data().training
        folder = None if cache is None else Path(cache)
        with ProgressBar() as progress, ExitStack() as stack:
            if folder is not None:
                what = "outputs of the teacher"
                stack.enter_context(claimed(folder, self.processes, progress, what))
            return TeacherOutputs.open(
                folder, self.teacher, source, processes=self.processes, progress=progress
            )

    def size(self) -> tuple[int, int] | None:
        """The second size (W, H) that triplets are needed at; None where no stage asks for one."""
        asked = any(stage.needs_teacher_size for stage in self.recipe.stages)
        return self.teacher.identity.size if asked and self.recipe.teacher is not None else None

    def fusion(self) -> FusionConfig | None:
        """Sizes of the student's fusion; the teacher says how wide the references are."""
        settings = self.recipe.networks.fusion
        if settings is None:
            return None
        self._refuse_other_teacher()
        return FusionConfig(
            reference_channels=self.teacher.identity.channels, **settings.model_dump()
        )

    def _refuse_other_teacher(self) -> None:
        """The prior that a run begins with has to be of its teacher, which guides and goes along.

        Raises:
            RecipeError: it is of another one.
        """
        if self.recipe.prior is None or self.chosen is None:
            return
        has, mine = self.chosen.teacher, self.teacher.identity
        if has.sha256 != mine.sha256:
            raise RecipeError(
                f"teacher.model: {mine.name} ({mine.sha256[:12]}...) is not the teacher that the "
                f"prior of {self.recipe.prior} came from ({has.name} at stride {has.stride}, "
                f"{has.sha256[:12]}...); name that one, with teacher.stride, teacher.lookup and "
                "metres_per_unit as they were"
            )

    def extract(self, stage: Reference, folder: Path, command: str | None = None) -> None:
        """Make the reference set, or go on with it; one process at a time in a shared folder.

        ``command`` is what finishes it after an interruption; default: the run again.
        """
        again = ["depth_train", "run", str(self.folder / "recipe.yaml"), "--out", str(self.folder)]
        folder = folder if stage.folder is None else Path(stage.folder)
        training = self.data().training  # which has a bar of its own
        with ProgressBar() as progress:
            self.references = extract_reference_set(
                self.teacher,
                training,
                folder,
                triplets=stage.triplets,
                per_image=stage.per_image,
                seed=self.recipe.seed if stage.seed is None else stage.seed,
                shard_images=stage.shard_images,
                processes=self.processes,
                progress=progress,
                command=shlex.join(again) if command is None else command,
            )
        self._verify()
        for note in self.references.notes:
            self.console.print(f"reference set: {note}", markup=False, highlight=False)
        from training.prior.selection.selection import check

        for later in self.recipe.stages:  # told before a student is trained for it
            if isinstance(later, Select):
                check(len(self.references), later.keep, later.method)

    def _verify(self) -> None:
        """Read the set through before hours of training on it; it may be older than this run.

        Raises:
            ReferenceSetError: it is damaged.
        """
        assert self.references is not None
        with self.processes.main_process_first():
            if self.processes.is_main_process:
                ReferenceSet.open(self.references.folder, verify=True)

    def select(self, stage: Select, folder: Path, system: System) -> None:
        """Choose the prior, or read what was chosen before; from now on the system looks it up."""
        path = folder / FILE
        with self.processes.main_process_first():
            if not path.is_file():
                self._choose(stage, system).save(path)
        self.chosen = ChosenPrior.load(path)
        system.prior = self.chosen.prior.to(system.device)
        about = self.chosen.selection
        self.console.print(
            f"select: {about['kept']} of {about['out_of']} reference pixels by {about['method']}"
        )

    def _choose(self, stage: Select, system: System) -> ChosenPrior:
        from training.prior.selection.command import spread_images
        from training.prior.selection.selection import select

        references = self.references
        assert references is not None  # the recipe was checked
        data = self.data()
        source = data.validation or data.training
        if data.validation is None and stage.method == "attention":
            self.console.print("select: nothing is held out (data.split): by training images")
        looked = 0

        def images() -> Iterator[Tensor]:
            """One after the other, if they are asked for: hundreds of large ones are gigabytes."""
            nonlocal looked
            for image in spread_images(source, stage.images):
                looked += 1
                progress("looking at images", looked, stage.images)
                yield image

        system.student.eval()
        with ProgressBar() as progress:
            found = select(
                system.student,
                references,
                images(),
                keep=len(references) if stage.method == "all" else stage.keep,
                method=stage.method,
                seed=self.recipe.seed,
                progress=progress,
            )
        image, pixel = references.sources(found.indices)
        used, place = np.unique(image, return_inverse=True)
        return ChosenPrior(
            references.rows(found.indices),
            references.identity,
            place.astype(np.int32),
            pixel.astype(np.int32),
            [references.images[i] for i in used],
            found.about(references, stage.method, looked, self.recipe.seed),
        )
