"""`depth_train run`: a recipe's stages one after the other, then the bundle.

The run folder holds the resolved recipe, environment.json (versions, commit, seed, machine), a
folder a stage (checkpoint, metrics.jsonl, TensorBoard) and at the end ``bundle``. Between stages
full-precision checkpoints are passed on, because a bundle rounds to half precision. A command given
again goes on where it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn

from depth_prior_ros.bundle import MANIFEST_NAME, load_bundle
from depth_prior_ros.models.prior_fusion import FusionConfig
from training.checkpoint import load_checkpoint
from training.config import Prior, Recipe, RecipeError, SelfSupervised, Supervised, load_recipe
from training.data.pairs import PairSource
from training.data.triplets import TripletSource, load_triplets
from training.engine import LAST, Engine, Settings, TrainingError, TrainingStage
from training.environment import keep_environment
from training.evaluation_sets import DATA_VARIABLE, EvaluationError, data_folder
from training.metric_scale import check_scale_drive
from training.output import write_bundle
from training.stages.prior import random_prior
from training.stages.self_supervised import SelfSupervisedStage
from training.stages.supervised import SupervisedStage
from training.stages.system import System
from training.stages.validation import Validation


@dataclass
class Run:
    """One recipe being carried out in ``folder``."""

    recipe: Recipe
    folder: Path
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def __post_init__(self) -> None:
        self.device = _device(self.recipe.device)
        if self.device.type == "cpu":
            torch.set_num_threads(self.recipe.threads)
        self.root = self._root()
        self.validation = Validation(self.root, self.recipe.size)
        self._triplets: TripletSource | None = None

    def carry_out(self) -> Path:
        """Run all stages and write the bundle; returns its folder."""
        self._check_folders()
        self.folder.mkdir(parents=True, exist_ok=True)
        _keep_recipe(self.folder / "recipe.yaml", self.recipe)
        bundle = self.folder / "bundle"
        if (bundle / MANIFEST_NAME).is_file():
            self.console.print(f"finished already; remove {bundle} to write it once more")
            return load_bundle(bundle).path
        keep_environment(self.folder / "environment.json", self.recipe.seed, self.device)
        if not (self.folder / _stage_folder(0, self.recipe.stages[0]) / LAST).is_file():
            self.console.print("no trained weights to begin with: the networks start at random")
        system = System.build(self.recipe, self.device)
        progress: list[dict[str, Any]] = []
        before: Path | None = None
        for number, schedule in enumerate(self.recipe.stages):
            folder = self.folder / _stage_folder(number, schedule)
            system = self._prepare(system, schedule, before)
            stage = self._stage(system, schedule)
            progress.append(Engine(stage, folder, self._settings(number), self.console).run())
            before = folder / LAST
        return write_bundle(bundle, self.recipe, system, progress, self.root)

    def _prepare(
        self, system: System, schedule: Supervised | SelfSupervised, before: Path | None
    ) -> System:
        """The networks as the stage before left them; for a prior, rebuilt with its fusion."""
        if before is not None:
            load_checkpoint(before, system.networks)
        if not isinstance(schedule, Prior):
            return system
        prior = random_prior(
            system, self.triplets(), schedule.references, schedule.per_image, self.recipe.seed
        )
        fused = System.build(self.recipe, self.device, FusionConfig())
        _load_without_fusion(fused.student, system.student)
        fused.pose.load_state_dict(system.pose.state_dict())
        fused.multi_frame.load_state_dict(system.multi_frame.state_dict())
        fused.prior = prior
        return fused

    def _stage(self, system: System, schedule: Supervised | SelfSupervised) -> TrainingStage:
        if isinstance(schedule, Supervised):
            pairs = self.pairs(schedule.pairs)
            assert pairs is not None  # the recipe was checked
            return SupervisedStage(schedule, system, pairs, self.validation)
        return SelfSupervisedStage(
            schedule,
            system,
            self.triplets(),
            self.pairs(),
            self.validation,
            name=schedule.kind.replace("_", "-"),
        )

    def _settings(self, number: int) -> Settings:
        r = self.recipe
        return Settings(r.seed, number, r.checkpoint_every, r.validate_every, r.log_every)

    def _root(self) -> Path:
        if not self.recipe.data.drives and self.recipe.data.root is None:
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
        wanted = {f"data.drives.{i}.path": d.path for i, d in enumerate(data.drives)}
        for i, path in enumerate(data.synthetic.textures if data.synthetic else ()):
            wanted[f"data.synthetic.textures.{i}"] = path
        if scale is not None:
            wanted["output.scale_drive"] = scale
        for key, path in wanted.items():
            if not (self.root / path).exists():
                raise RecipeError(f"{key}: {self.root / path} does not exist")
        if scale is not None:
            check_scale_drive(self.root / scale)

    def triplets(self) -> TripletSource:
        """Real triplets, read once; what had to be left out is named."""
        if self._triplets is None:
            r = self.recipe
            self._triplets = load_triplets(self.root, r.data.drives, r.size, r.metres_per_unit)
            for line in self._triplets.skipped:
                self.console.print(f"left out: {line}", markup=False, highlight=False)
            out = f", {len(self._triplets.skipped)} left out" if self._triplets.skipped else ""
            self.console.print(f"{len(self._triplets)} triplets to train on{out}")
        return self._triplets

    def pairs(self, count: int | None = None) -> PairSource | None:
        """Synthetic pairs; the first ``count`` (default: all) are rendered if they are missing."""
        synthetic = self.recipe.data.synthetic
        if synthetic is None:
            return None
        from training.data.rendering import ensure_samples

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


def _stage_folder(number: int, stage: Supervised | SelfSupervised) -> str:
    return f"{number}_{stage.kind}"


def _load_without_fusion(target: nn.Module, source: nn.Module) -> None:
    """Copy a student's weights into one that has a fusion besides."""
    missing, unknown = target.load_state_dict(source.state_dict(), strict=False)
    lost = [name for name in missing if not name.startswith("fusion.")] + unknown
    if lost:
        raise TrainingError(f"the student's weights {', '.join(lost[:3])} have no counterpart")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no CUDA
        raise RecipeError(f"device '{name}' cannot be used: {error}") from error
    return device


def _keep_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe; a folder that holds another recipe's run is refused."""
    if path.is_file():
        kept = _read_kept(path)
        if kept is None or kept.model_dump() != recipe.model_dump():
            raise RecipeError(
                f"{path.parent} holds a run of another recipe or other overrides (see {path.name} "
                "there); give --out another folder, or remove that one"
            )
        return
    temporary = path.with_suffix(".partial")
    temporary.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    temporary.replace(path)


def _read_kept(path: Path) -> Recipe | None:
    """A run's recipe; None where this version cannot read it."""
    try:
        return load_recipe(path)
    except RecipeError:
        return None
