"""What a stage of a recipe is: its section, which answers what a run asks, and builds what trains.

A new stage is one module of this room: a `StageConfig` under `@stage`, and the code that it builds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar, get_args

from pydantic import Field, model_validator

from depth_prior_ros.registry import Registry
from training.recipes.base import Strict

if TYPE_CHECKING:
    from training.loop.trainer import TrainingStage
    from training.recipes.recipe import Recipe
    from training.runs.run import Run
    from training.stages.system import System

#: "fusion" is the part of the student that reads the prior.
NetworkName = Literal["student", "fusion", "pose", "multi_frame"]


class Place(NamedTuple):
    """Where a stage stands: its recipe, and the stages before and after it."""

    recipe: Recipe
    before: Sequence[StageConfig]
    after: Sequence[StageConfig]


class StageConfig(Strict):
    """One section of a recipe's stages, told apart by ``kind``.

    Attributes:
        trains: whether networks learn; the others make something of them and carry it out.
        needs_pairs, needs_triplets: which data it cannot be without.
        extracts, selects: whether it makes the reference set, or chooses the prior out of it.
        reads_prior: whether its student learns to look up a prior of the recipe's teacher.
        passes_fusion: whether it leaves a student that looks up a prior.
        leaves_bundle: whether a bundle is written behind it, with stages to come.
        goes_on: whether it leaves the bundle ``start`` with another student and all else of it.
        passes_multi_frame: whether the multi-frame network that it leaves is worth keeping; None:
            if one was trained.
    """

    kind: str
    trains: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = False
    needs_triplets: ClassVar[bool] = True
    extracts: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    reads_prior: ClassVar[bool] = False
    passes_fusion: ClassVar[bool] = False
    leaves_bundle: ClassVar[bool] = False
    goes_on: ClassVar[bool] = False
    passes_multi_frame: ClassVar[bool | None] = None

    @property
    def teaches_multi(self) -> bool:
        """Whether it trains the multi-frame network."""
        return False

    @property
    def asks_teacher(self) -> bool:
        """Whether the depth of the recipe's teacher is needed in every step."""
        return False

    @property
    def needs_teacher_size(self) -> bool:
        """Whether triplets are needed at the input size of the recipe's teacher, too."""
        return False

    @property
    def files(self) -> dict[str, str]:
        """Checkpoints that it begins with, by their keys."""
        return {}

    def check(self, place: Place) -> None:
        """Raise ValueError where it does not fit into its place in a recipe."""
        if self.needs_pairs and place.recipe.data.synthetic is None:
            raise ValueError("needs data.synthetic")
        if self.needs_triplets and not place.recipe.data.recorded:
            raise ValueError("needs data.drives or data.kitti_raw")

    def carry_out(self, run: Run, folder: Path, system: System) -> None:
        """Do what it is for, where it ``trains`` nothing; the result stays in ``folder``."""
        raise NotImplementedError


class TrainingConfig(StageConfig):
    """Length, batch and learning rate of a stage that trains. Either ``steps`` or ``epochs``."""

    batch: int = Field(6, ge=1, le=4096)
    steps: int = Field(0, ge=0)
    epochs: int = Field(0, ge=0, description="passes over the triplets, instead of steps")
    learning_rate: float = Field(1e-4, gt=0)
    warm_up: int = Field(100, ge=0, description="steps of linear warm-up")
    decay: Literal["cosine", "step"] = Field(
        "cosine", description="step: times step_factor once, after the share step_at of all steps"
    )
    final: float = Field(0.05, gt=0, le=1, description="last learning rate, relative (cosine)")
    step_at: float = Field(0.75, gt=0, lt=1)
    step_factor: float = Field(0.1, gt=0, le=1)
    clip: float = Field(10.0, gt=0, description="largest gradient norm")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, which is what validation sees and "
        "the stage leaves",
    )
    keep_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the student's weights of before the stage that is mixed in at its "
        "end, so that it forgets less of what it learned elsewhere (WiSE-FT); 1: the others alone "
        "have learned, beside a student that moved",
    )
    trunk_rate: float = Field(
        1.0, gt=0, description="learning rate of the student's trunk over that of the rest"
    )
    frozen_to: int | None = Field(
        None,
        description="the trunk stays as it is up to this stride (mobilenet_v2 can)",
    )
    draws: int | None = Field(
        None,
        ge=0,
        description="number that decides its random draws; default: how many stages train before "
        "it. Runs whose stages share it see the same batches",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("give either steps or epochs, above 0")
        return self

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear warm-up, then the decay."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        if self.decay == "step":
            late = step >= self.step_at * self.steps
            return self.learning_rate * (self.step_factor if late else 1.0)
        share = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        wave = 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate * (self.final + (1 - self.final) * wave)

    @property
    def turns(self) -> int:
        """How often it is trained, each time beginning with what the time before left."""
        return 1

    def in_steps(self: _Config, samples: int) -> _Config:
        """With its length in steps; an epoch sees as many triplets as there are."""
        if not self.epochs:
            return self
        steps = max(1, self.epochs * samples // self.batch)
        return self.model_copy(update={"steps": steps, "epochs": 0})

    def prepare(self, run: Run, system: System, number: int) -> System:
        """The networks that stage ``number`` starts with, from what the stages before left."""
        return system

    def build(self, run: Run, system: System) -> TrainingStage:
        """What the loop trains."""
        raise NotImplementedError


_Config = TypeVar("_Config", bound=TrainingConfig)
_Stage = TypeVar("_Stage", bound=StageConfig)

STAGES: Registry[type[StageConfig]] = Registry("stage", __package__)


def stage(config: type[_Stage]) -> type[_Stage]:
    """Class decorator: found in recipes under its ``kind``, which is a Literal of one name."""
    (kind,) = get_args(config.model_fields["kind"].annotation)
    return STAGES.register(kind)(config)
