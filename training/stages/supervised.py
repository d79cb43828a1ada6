"""First step: exact depth and motion of synthetic pairs teach shapes and boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from training.data.pairs import PairSource
from training.recipes.recipe import Supervised
from training.stages.system import System, share, supervised_loss
from training.stages.validation import Validation


@dataclass
class SupervisedStage:
    """S, Pose and M on synthetic pairs."""

    schedule: Supervised
    system: System
    pairs: PairSource
    validation: Validation
    name: str = "supervised"

    def __post_init__(self) -> None:
        for network in self.networks.values():  # a stage before may have frozen some
            network.requires_grad_(True)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """All parameters."""
        return [p for network in self.networks.values() for p in network.parameters()]

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of pairs."""
        schedule = self.schedule
        batch = self.pairs.batch(
            schedule.batch, rng, schedule.pairs, self.system.processes.slice(schedule.batch)
        ).to(self.system.device)
        return supervised_loss(
            self.system,
            batch,
            gradient_weight=schedule.gradient_weight,
            multi_batch=share(self.system, schedule.multi_batch),
            pose_weight=schedule.pose_weight,
            predicted_pose=schedule.predicted_pose,
            static_camera=schedule.static_camera,
            held_weight=schedule.held_weight,
        )

    def validate(self) -> dict[str, float]:
        """Figures of the student on held-out frames."""
        return self.validation.figures(self.system)

    def pictures(self) -> dict[str, np.ndarray]:
        """Depth of fixed frames."""
        return self.validation.pictures(self.system)
