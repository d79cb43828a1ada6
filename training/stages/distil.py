"""A fresh student learns from the frozen teacher, where the teacher is right (MISM, 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from training.data.triplets import TripletBatch
from training.loop.checkpoint import load_checkpoint
from training.losses.distillation import distillation_mask, log_ratio_distillation
from training.losses.photometric import Target, identity_error, minimum_error
from training.stages.base import NetworkName, Place, StageConfig, stage
from training.stages.self_supervised import Logs, Scene, SelfSupervised, SelfSupervisedStage
from training.stages.system import LookupFrame, System, views_of
from training.stages.validation import fixed_batch, overlay

if TYPE_CHECKING:
    from training.runs.run import Run


@stage
class Distil(SelfSupervised):
    """A fresh student and pose network learn from the frozen teacher too (MISM, 4.5)."""

    kind: Literal["distil"]  # type: ignore[assignment]
    passes_multi_frame = False
    train: tuple[NetworkName, ...] = ("student", "pose")
    weight: float = Field(0.1, ge=0, description="of the distillation loss")
    variance: float = Field(
        1.0, ge=0, le=1, description="lambda: 1 is the standard deviation of the log ratio"
    )
    masked: bool = Field(
        True, description="only where the teacher explains the frame better than the student"
    )
    teacher: str | None = Field(
        None,
        description="checkpoint of a teacher that was trained in another run (last.safetensors), "
        "with the recipe's networks; default: the stage before",
    )
    fresh_from: int | None = Field(
        None,
        ge=-1,
        description="the student starts as it was after this stage, -1: as the run started; "
        "default: before the last teacher stage",
    )

    @field_validator("train")
    @classmethod
    def _no_teacher(cls, train: tuple[NetworkName, ...]) -> tuple[NetworkName, ...]:
        if "multi_frame" in train:
            raise ValueError("the multi-frame network is the teacher's and stays frozen")
        return train

    @property
    def files(self) -> dict[str, str]:
        """The teacher, if it is another run's."""
        return {} if self.teacher is None else {"teacher": self.teacher}

    def check(self, place: Place) -> None:
        """As every stage; and there is a teacher, and no prior that a fresh student had not."""
        super().check(place)
        if self.fresh_from is not None and self.fresh_from >= len(place.before):
            raise ValueError("fresh_from has to name a stage before")
        taught = place.recipe.start is not None or any(s.teaches_multi for s in place.before)
        if self.teacher is None and not taught:
            raise ValueError(
                "needs a teacher: a stage before it that trains multi_frame, start, or a "
                "checkpoint (teacher)"
            )
        if any(s.passes_fusion for s in place.before):
            raise ValueError("a fresh student has no prior; put prior stages last")
        if place.recipe.networks.fusion is not None:
            raise ValueError("does not go with networks.fusion: use student stages")

    def prepare(self, run: Run, system: System, number: int) -> System:
        """A student and pose network as before the teacher, beside the teacher's M.

        In the second round of a mutual stage the teacher is what the first round left.
        """
        fresh = run.initial_system()
        source = self._fresh_source(run.recipe.stages[:number])
        if source >= 0:
            load_checkpoint(run.done[source], fresh.networks)
        teacher = system
        if self.teacher is not None and number not in run.done:
            teacher = run.system_of(self.teacher)
        fresh.multi_frame.load_state_dict(teacher.multi_frame.state_dict())
        fresh.teacher = teacher.frozen_copy()
        return fresh

    def _needs_motion(self) -> str:
        """The teacher matches frames over time."""
        return "the teacher is a multi-frame network"

    def _fresh_source(self, before: Sequence[StageConfig]) -> int:
        """The stage whose student is the fresh one, -1: as the run started."""
        if self.fresh_from is not None:
            return self.fresh_from
        taught = [n for n, s in enumerate(before) if s.needs_triplets and s.teaches_multi]
        return taught[-1] - 1 if taught else -1

    def build(self, run: Run, system: System) -> DistilStage:
        """The stage of this kind on the run's triplets."""
        return DistilStage(self, system, **self._common(run))


@stage
class Mutual(Distil):
    """Distillation, then the new student and pose network guide the teacher's M (MISM, 4.6)."""

    kind: Literal["mutual"]  # type: ignore[assignment]
    passes_multi_frame = True
    rounds: int = Field(
        1, ge=1, description="each round's system is the teacher of a fresh student in the next"
    )

    @property
    def turns(self) -> int:
        """One a round."""
        return self.rounds


@dataclass(frozen=True)
class Taught:
    """What the teacher says of a batch: depth (B, 1, H, W) and its error (B, 1, H, W)."""

    depth: Tensor
    error: Tensor


class DistilStage(SelfSupervisedStage):
    """S' and Pose' on real triplets, with the depth of a frozen S, Pose and M beside them.

    The teacher is the system's. Its depth counts only where it explains the frame better than
    the student's (and than no motion at all), by its own motions; the mask is made anew in
    every step. The distance is that of log ratios, so the two may differ in scale.
    """

    config: Distil

    @property
    def teacher(self) -> System:
        """The frozen system."""
        assert self.system.teacher is not None
        return self.system.teacher

    def _further(self, scene: Scene) -> tuple[Tensor, Logs]:
        taught = teach(self.teacher, scene.batch, scene.sources, scene.target)
        with torch.no_grad():
            own = minimum_error(scene.rebuilt.detach(), scene.target, scene.identity)
        mask = distillation_mask(taught.error, own)
        kept = mask if self.config.masked else torch.ones_like(mask)
        loss = log_ratio_distillation(scene.depth, taught.depth, kept, self.config.variance)
        values = {
            "distil/loss": loss,
            "distil/mask_share": mask.float().mean(),
            "distil/teacher_error": taught.error.mean(),
            "distil/student_error": own.mean(),
        }
        return self.config.weight * loss, values

    def pictures(self) -> dict[str, np.ndarray]:
        """As before, and in red what the distillation mask removes."""
        batch = fixed_batch(self.system, self.triplets)
        masks = self._mask(batch).squeeze(1).cpu().numpy()
        images = (batch.images[:, 1].permute(0, 2, 3, 1).cpu().numpy() * 255).astype(np.uint8)
        rows = [overlay(image, mask) for image, mask in zip(images, masks, strict=True)]
        return super().pictures() | {"distil/removed_by_mask": cv2.vconcat(rows)}

    @torch.no_grad()
    def _mask(self, batch: TripletBatch) -> Tensor:
        before, now, after = batch.images.unbind(1)
        sources, target = torch.stack([before, after]), Target.of(now)
        poses = self.system.neighbour_motions(batch.images)
        views = views_of(batch, batch.K, sources, poses)
        rebuilt = views.rebuild(self.system.single_depth(now))
        identity = identity_error(views.sources, target, torch.default_generator)
        own = minimum_error(rebuilt, target, identity)
        return distillation_mask(teach(self.teacher, batch, sources, target).error, own)


@torch.no_grad()
def teach(teacher: System, batch: TripletBatch, sources: Tensor, target: Target) -> Taught:
    """The teacher's multi-frame depth of the frames as recorded, and how well it explains them."""
    now = target.image
    single = teacher.single_depth(now)
    views = [
        teacher.aligned(now, LookupFrame(image, Pose(pose)), batch.K, single)
        for image, pose in zip(sources, teacher.neighbour_motions(batch.images), strict=True)
    ]
    seen = [v for place, v in zip((-1, 1), views, strict=True) if place in teacher.lookup]
    depth = teacher.multi(now, seen, batch.K, single).depth.float()
    poses = torch.stack([view.motion.matrix for view in views])
    rebuilt = views_of(batch, batch.K, sources, poses).rebuild(depth)
    return Taught(depth, minimum_error(rebuilt, target))
