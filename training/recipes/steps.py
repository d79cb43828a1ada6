"""All kinds of stages of a recipe."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field

from training.recipes.prior import FineTune, Reference, Select, Student
from training.recipes.stages import (
    Distil,
    Mutual,
    Prior,
    Schedule,
    SelfSupervised,
    Supervised,
    Teacher,
)

#: Stages that train networks, and those that only make something of them.
TrainedStage = Supervised | SelfSupervised | Teacher | Distil | Mutual | Prior | Student | FineTune
AnyStage = TrainedStage | Reference | Select
Stage = Annotated[AnyStage, Field(discriminator="kind")]

_Schedule = TypeVar("_Schedule", bound=Schedule)


def in_steps(stage: _Schedule, samples: int) -> _Schedule:
    """The stage with its length in steps; an epoch sees as many triplets as there are."""
    if not stage.epochs:
        return stage
    batch: int = stage.batch  # type: ignore[attr-defined]  # every kind has one
    steps = max(1, stage.epochs * samples // batch)
    return stage.model_copy(update={"steps": steps, "epochs": 0})
