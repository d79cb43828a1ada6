"""`depth_train run`: a recipe's stages one after the other, then the bundle.

The run folder holds the resolved recipe, environment.json (versions, commit, seed, machine), a
folder a stage (checkpoint, metrics.jsonl, TensorBoard; for a teacher its bundle) and at the end
``bundle``. Between stages full-precision checkpoints are passed on, because a bundle rounds to half
precision. A command given again goes on where it was. `torchrun` starts it on several processes.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_prior_ros import strict_yaml
from depth_prior_ros.atomic_files import alone_in, remove_leftovers, write_text
from depth_prior_ros.backends.devices import choose_device, choose_precision
from depth_prior_ros.bundle import MANIFEST_NAME, load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.progress import ProgressBar
from training.data.pairs import PairSource
from training.data.sources import LoadedData, load_data, plan_data
from training.evaluation.sets import DATA_VARIABLE, EvaluationError, data_folder
from training.loop.distributed import ProcessGroup, start_processes
from training.loop.trainer import LAST, Trainer, TrainerConfig
from training.prior.reference.set import ReferenceSet
from training.prior.steps import FILE, PriorWork
from training.recipes.files import load_recipe
from training.recipes.recipe import Recipe, RecipeError
from training.runs.initialise import initialise, look_for, start_from
from training.runs.metric_scale import check_scale_drive
from training.runs.output import keep_environment, training_camera, write_bundle, write_student
from training.stages.base import StageConfig, TrainingConfig
from training.stages.prior import Reference
from training.stages.system import System
from training.stages.validation import Validation

# Steps of which the quickest tells how long one takes.
_TIMED = 3


@dataclass(frozen=True)
class Part:
    """A stage, or one round of one: its number decides its random numbers."""

    number: int
    folder: str
    config: StageConfig
    stage: int


@dataclass
class Run:
    """One recipe being carried out in ``folder``."""

    recipe: Recipe
    folder: Path
    console: Console = field(default_factory=lambda: Console(stderr=True))
    loaded: LoadedData | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        device = choose_device(self.recipe.device)
        if device.type == "cpu":
            torch.set_num_threads(self.recipe.threads)
        self.processes: ProcessGroup = start_processes(device)
        self.device = self.processes.device
        if not self.processes.is_main_process:
            self.console = Console(quiet=True)
        self.precision = choose_precision(self.recipe.precision, self.device)
        if self.recipe.precision == "auto":
            how = "fast" if self.precision == "bf16" else "slowly or not at all"
            self.console.print(f"precision {self.precision}: bf16 is computed {how} here")
        self.root = self._root()
        self.validation = Validation(self.root, self.recipe.size)
        self.done: dict[int, Path] = {}  # stage number -> its checkpoint
        self.prior = PriorWork(
            self.recipe, self.folder, self.device, self.processes, self.console, self.data
        )

    def carry_out(self) -> Path:
        """Run all stages and write the bundle; returns its folder."""
        self._check_folders()
        bundle = self.folder / "bundle"
        with self._alone():
            self._begin()
            if (bundle / MANIFEST_NAME).is_file():
                self.console.print(f"finished already; remove {bundle} to write it once more")
                return load_bundle(bundle).path
            return self._write(bundle, *self._train())

    def train(self) -> System:
        """Run all stages; the networks as they are then, and no bundle."""
        self._check_folders()
        with self._alone():
            self._begin()
            return self._train()[0]

    def seconds_per_step(self) -> float:
        """What a step of the first stage takes here, forward and backward; changes nothing."""
        config = next(stage for stage in self.recipe.stages if isinstance(stage, TrainingConfig))
        stage = config.build(self, config.prepare(self, self.initial_system(), 0))
        rng, times = np.random.default_rng(self.recipe.seed), []
        for network in stage.networks.values():
            network.train()
        for _ in range(_TIMED):
            begun = time.monotonic()
            stage.loss(stage.draw_batch(rng))[0].backward()
            times.append(time.monotonic() - begun)
        return min(times)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """This folder for this run only; the lock ends with the process, however that ends.

        Raises InUseError where another run has it.
        """
        if not self.processes.is_main_process:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder, self.folder / ".lock"):
            remove_leftovers(self.folder)
            for stage in self.folder.glob("[0-9]*_*/"):
                remove_leftovers(stage)
            yield

    def _begin(self) -> None:
        """The recipe in the folder, which is that of this run."""
        with self.processes.main_process_first():
            if self.processes.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                begun = any([*self.folder.glob(f"*/{LAST}"), *self.folder.glob(f"*/{FILE}")])
                _keep_recipe(self.folder / "recipe.yaml", self.recipe, begun)

    def _train(self) -> tuple[System, list[dict[str, Any]]]:
        """All stages: the networks, and how far each came."""
        if self.processes.is_main_process:
            path = self.folder / "environment.json"
            keep_environment(path, self.recipe.seed, self.device, self.precision)
        system = self.initial_system(announce=True)
        progress: list[dict[str, Any]] = []
        for part in self._parts():
            folder = self.folder / part.folder
            if not isinstance(part.config, TrainingConfig):
                part.config.carry_out(self, folder, system)
                continue
            system = part.config.prepare(self, system, part.stage)
            stage = part.config.build(self, system)
            settings = self._settings(part.number)
            done = Trainer(stage, folder, settings, self.console, self.processes).run()
            progress.append({"part": part.folder, **done})
            self.done[part.stage] = folder / LAST
            if part.config.leaves_bundle and part.stage + 1 < len(self.recipe.stages):
                self._write(folder / "bundle", system, progress)
        return system, progress

    def _parts(self) -> Iterator[Part]:
        trained = 0
        for number, config in enumerate(self.recipe.stages):
            stage = f"{number}_{config.kind}"
            if not isinstance(config, TrainingConfig):
                yield Part(number, stage, config, number)
                continue
            draws = trained if config.draws is None else config.draws
            if config.epochs:
                config = config.in_steps(len(self.data().training))
            for turn in range(config.turns):
                folder = stage if config.turns == 1 else f"{stage}_round{turn + 1}"
                yield Part(draws + 100 * turn, folder, config, number)
            trained += 1

    def _write(self, path: Path, system: System, progress: list[dict[str, Any]]) -> Path:
        """The bundle of a system as it is now; the first process writes, the others wait."""
        if self.processes.is_main_process and not (path / MANIFEST_NAME).is_file():
            final = path == self.folder / "bundle"
            with_multi = self.recipe.has_multi_frame if final else True
            with ProgressBar(self.console) as bar:
                bar("writing the bundle")
                if self.recipe.stages[-1].goes_on:
                    write_student(path, self.recipe, system, progress, self.root)
                else:
                    chosen = self.prior.chosen
                    write_bundle(path, self.recipe, system, progress, self.root, with_multi, chosen)
        self.processes.barrier()
        return path

    def initial_system(self, announce: bool = False) -> System:
        """The networks as the run starts: random, with ImageNet weights, or from another run."""
        fusion = self.prior.fusion()
        system = System.build(self.recipe, self.device, fusion, processes=self.processes)
        note = initialise(system, self.recipe)
        if self.prior.chosen is not None:
            system.prior = self.prior.chosen.prior.to(self.device)
        first = next(iter(self._parts()))
        if announce and not (self.folder / first.folder / LAST).is_file():
            self.console.print(note, markup=False, highlight=False)
        return system

    def system_of(self, checkpoint: str) -> System:
        """The recipe's networks as another run left them. Raises RecipeError."""
        system = System.build(self.recipe, self.device, processes=self.processes)
        start_from(Path(checkpoint), system, "teacher")
        return system

    def _settings(self, number: int) -> TrainerConfig:
        r = self.recipe
        return TrainerConfig(r.seed, number, r.checkpoint_every, r.validate_every, r.log_every)

    def _root(self) -> Path:
        if not self.recipe.data.recorded and self.recipe.data.root is None:
            return Path(os.environ.get(DATA_VARIABLE, "."))
        try:
            return data_folder(self.recipe.data.root)
        except EvaluationError as error:
            raise RecipeError(
                f"no data: set {DATA_VARIABLE}, or data.root in the recipe, to the folder that "
                f"holds the drives ({error})"
            ) from error

    def _check_folders(self) -> None:
        """What only a later stage reads is looked for now, not after hours."""
        data, scale = self.recipe.data, self.recipe.output.scale_drive
        plan_data(self.root, data)
        for number, stage in enumerate(self.recipe.stages):
            for key, path in stage.files.items():
                look_for(f"stages.{number}.{key}", path)
        if self.recipe.start is not None:
            look_for("start", self.recipe.start)
        wanted = {}
        for i, path in enumerate(data.synthetic.textures if data.synthetic else ()):
            wanted[f"data.synthetic.textures.{i}"] = path
        if scale is not None:
            wanted["output.scale_drive"] = scale
        for key, path in wanted.items():
            if not (self.root / path).exists():
                raise RecipeError(f"{key}: {self.root / path} does not exist")
        if scale is not None:
            check_scale_drive(self.root / scale)

    def data(self) -> LoadedData:
        """Real triplets, read once; what had to be left out is named."""
        if self.loaded is None:
            r = self.recipe
            teacher_size = self.prior.size()
            # The first process fills the cache.
            with self.processes.main_process_first(), ProgressBar(self.console) as bar:
                self.loaded = load_data(
                    self.root, r.data, r.size, r.metres_per_unit, teacher_size, bar
                )
            training = self.loaded.training
            for line in training.skipped:
                self.console.print(f"left out: {line}", markup=False, highlight=False)
            out = f", {len(training.skipped)} left out" if training.skipped else ""
            self.console.print(f"{len(training)} triplets to train on{out}")
        return self.loaded

    def training_camera(self) -> Camera:
        """What the student sees every image as, at the input size."""
        return training_camera(self.recipe, self.root)

    def pairs(self, count: int | None = None) -> PairSource | None:
        """Synthetic pairs; the first ``count`` (default: all) are rendered if they are missing."""
        synthetic = self.recipe.data.synthetic
        if synthetic is None:
            return None
        from training.data.pairs import ensure_samples

        with self.processes.main_process_first():
            folder = ensure_samples(synthetic, self.recipe.size, self.root, count)
        return PairSource.open(folder, self.recipe.metres_per_unit, synthetic.count)


def run_recipe(recipe: Path, overrides: list[str], out: Path | None = None) -> Path:
    """Carry out the recipe file with ``key=value`` overrides; ``out`` defaults to runs/NAME.

    Returns:
        The folder of the finished bundle.

    Raises:
        RecipeError: the recipe is not valid, or belongs to another run in ``out``.
        TrainingError: training cannot go on.
    """
    resolved = load_recipe(recipe, overrides)
    folder = out or Path("runs") / Path(recipe).stem
    return Run(resolved, folder).carry_out()


def fine_tune(bundle: str, recipe: Path, overrides: list[str], out: Path | None = None) -> Path:
    """Carry out a recipe's last fine_tune stage for a bundle's student and prior.

    Args:
        bundle: folder or name.
        recipe: a recipe with a stage of kind fine_tune, with the bundle's networks.
        overrides: key=value of the recipe.
        out: folder of the run; default: runs/fine_tune/NAME, the bundle's name.

    Returns:
        The folder of the new bundle.

    Raises:
        RecipeError: the recipe has no such stage, or other networks than the bundle.
        TrainingError: training cannot go on.
    """
    made = load_recipe(recipe, overrides)
    stages = [stage for stage in made.stages if stage.kind == "fine_tune"]
    if not stages:
        raise RecipeError(f"{recipe} has no stage of kind fine_tune")
    data = made.model_dump(mode="json")
    data |= {"stages": [stages[-1].model_dump(mode="json")], "start": None, "prior": str(bundle)}
    source = load_bundle(bundle)
    if made.output.multi_frame is None:  # what the bundle has, it keeps
        data["output"]["multi_frame"] = source.has("multi_frame")
    alone = type(made).model_validate_json(json.dumps(data))
    return Run(alone, out or Path("runs/fine_tune") / source.manifest.name).carry_out()


def extract_references(
    recipe: Path, overrides: list[str] | None = None, out: Path | None = None
) -> ReferenceSet:
    """Extract the reference set of a recipe's first stage of kind reference.

    Args:
        recipe: YAML file.
        overrides: ``key=value``.
        out: folder of the set; default: the stage's, else where `depth_train run` will look for it.

    Raises:
        RecipeError: the recipe is not valid, or has no such stage.
        TrainingError: the set cannot be extracted, or the folder holds something else.
    """
    resolved = load_recipe(recipe, overrides)
    stages = [
        (place, stage)
        for place, stage in enumerate(resolved.stages)
        if isinstance(stage, Reference)
    ]
    if not stages:
        raise RecipeError(
            f"recipe {recipe} extracts no reference set: it needs a stage {{kind: reference}}"
        )
    place, stage = stages[0]
    run = Run(resolved, Path("runs") / recipe.stem)
    folder = run.folder / f"{place}_reference"
    if out is not None:
        stage = stage.model_copy(update={"folder": str(out)})
    command = ["depth_train", "reference", str(recipe), *(overrides or [])]
    command += [] if out is None else ["--out", str(out)]
    run.prior.extract(stage, folder, shlex.join(command))
    found = run.prior.references
    assert found is not None
    return found


def _keep_recipe(path: Path, recipe: Recipe, begun: bool) -> None:
    """Write the resolved recipe; a folder where another recipe's run has begun is refused."""
    if path.is_file() and begun:
        kept = _read_kept(path)
        if kept is None or kept.model_dump() != recipe.model_dump():
            raise RecipeError(
                f"{path.parent} holds a run of another recipe or other overrides (see {path.name} "
                "there); give --out another folder, or remove that one"
            )
        return
    write_text(path, strict_yaml.dump(recipe.model_dump(mode="json")))


def _read_kept(path: Path) -> Recipe | None:
    """A run's recipe; None where this version cannot read it."""
    try:
        return load_recipe(path)
    except RecipeError:
        return None
