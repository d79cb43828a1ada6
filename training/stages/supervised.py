"""First step: exact depth and motion of synthetic pairs teach shapes and boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from training.data.pairs import PairBatch, PairSource
from training.stages.base import TrainingConfig, stage
from training.stages.system import (
    System,
    freeze_trunk,
    parameter_groups,
    share,
    supervised_loss,
)
from training.stages.validation import Validation

if TYPE_CHECKING:
    from training.runs.run import Run


@stage
class Supervised(TrainingConfig):
    """Exact depth and motion of synthetic pairs, all networks."""

    kind: Literal["supervised"]
    needs_pairs = True
    needs_triplets = False
    batch: int = Field(8, ge=1, le=4096)
    multi_batch: int | None = Field(
        None, ge=0, description="samples of a batch the multi-frame network sees; default: all"
    )
    pairs: int | None = Field(
        None, ge=1, description="draw from the first so many pairs only; default: all"
    )
    gradient_weight: float = Field(0.5, ge=0)
    pose_weight: float = Field(10.0, ge=0)
    predicted_pose: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples whose multi-frame depth is matched with the pose "
        "network's motion, as on a vehicle, instead of the exact one",
    )
    static_camera: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the multi-frame network's samples whose other frame is the current "
        "one: as on a vehicle that stands",
    )
    held_weight: float = Field(
        0.1,
        ge=0,
        description="of the distance in log depth between what M matches and the single-frame "
        "depth, where there is no parallax (networks.multi_frame.parallax)",
    )

    @property
    def teaches_multi(self) -> bool:
        """Whether the multi-frame network sees a sample."""
        return self.multi_batch != 0

    def build(self, run: Run, system: System) -> SupervisedStage:
        """All networks on synthetic pairs."""
        pairs = run.pairs(self.pairs)
        assert pairs is not None  # the recipe was checked
        return SupervisedStage(self, system, pairs, run.validation)


@dataclass
class SupervisedStage:
    """S, Pose and M on synthetic pairs."""

    config: Supervised
    system: System
    pairs: PairSource
    validation: Validation
    name: str = "supervised"

    def __post_init__(self) -> None:
        for network in self.networks.values():  # a stage before may have frozen some
            network.requires_grad_(True)
        freeze_trunk(self.system, self.config)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """All parameters that are not frozen."""
        found = [p for network in self.networks.values() for p in network.parameters()]
        return [p for p in found if p.requires_grad]

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trunk at its own rate."""
        return parameter_groups(self.system, self.trained, self.config)

    def draw_batch(self, rng: np.random.Generator) -> PairBatch:
        """One batch of pairs."""
        config = self.config
        part = self.system.processes.slice(config.batch)
        return self.pairs.batch(config.batch, rng, config.pairs, part)

    def loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All networks against exact depth and motion."""
        seen = share(self.system, self.config.multi_batch)
        return supervised_loss(self.system, batch.to(self.system.device), self.config, seen)

    def validate(self) -> dict[str, float]:
        """Figures of the student on held-out frames."""
        return self.validation.figures(self.system)

    def pictures(self) -> dict[str, np.ndarray]:
        """Depth of fixed frames."""
        return self.validation.pictures(self.system)
