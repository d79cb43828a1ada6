"""A student that reads a prior, is guided by the prior's teacher, or both (RPrDepth)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from training.data.triplets import StepBatch, TripletBatch
from training.losses.distillation import (
    auxiliary_loss,
    distillation_mask,
    gradient_consistency,
    log_ratio_distillation,
    resize_depth,
    value_consistency,
)
from training.losses.photometric import minimum_error
from training.stages.base import NetworkName, Place, stage
from training.stages.self_supervised import Logs, Scene, SelfSupervised, SelfSupervisedStage
from training.stages.system import System, views_of

if TYPE_CHECKING:
    from training.prior.reference.set import ReferenceSet
    from training.prior.teachers.outputs import TeacherOutputs
    from training.runs.run import Run

# The part of the reference set that stands for all of it while the student is validated.
_SHOWN_SEED = 17


@stage
class Student(SelfSupervised):
    """A student that reads the prior, or is guided by its teacher, or both (RPrDepth).

    With networks.fusion it looks up a random part of the reference set in every step.
    """

    kind: Literal["student"]  # type: ignore[assignment]
    reads_prior = True
    train: tuple[NetworkName, ...] = ("student", "pose")
    references: int = Field(
        8192, ge=1, description="of the reference set, drawn anew in every step"
    )
    fusion_rate: float = Field(
        1.0, gt=0, description="learning rate of the fusion, relative to the rest"
    )
    view: Literal["own", "teacher"] = Field(
        "own",
        description="what the student has to explain: frames of its own size, or the teacher's",
    )
    photometric_weight: float = Field(1.0, ge=0, description="alpha of the paper")
    consistency: float = Field(0.0, ge=0, description="beta: weight of agreement with the teacher")
    consistency_of: Literal["gradients", "values", "log_ratio"] = Field(
        "gradients",
        description="gradients: normalised gradients of depth (RPrDepth); values: L1 of depth "
        "with aligned medians; log_ratio: distillation of MISM",
    )
    consistency_on: Literal["depth", "inverse_depth"] = Field(
        "inverse_depth", description="what gradients and values are taken of"
    )
    masked: bool = Field(
        False, description="agree only where the teacher explains the frame better (MISM)"
    )
    auxiliary: float = Field(0.0, ge=0, description="weight of the looked-up depth's own loss")

    @field_validator("train")
    @classmethod
    def _no_multi(cls, train: tuple[NetworkName, ...]) -> tuple[NetworkName, ...]:
        if "multi_frame" in train:
            raise ValueError("this stage has nothing to teach the multi-frame network")
        return train

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's depth is needed in every step."""
        return bool(self.consistency or self.auxiliary)

    @property
    def needs_teacher_size(self) -> bool:
        """Where the teacher looks at every triplet, or its frames have to be explained."""
        return self.asks_teacher or self.view == "teacher"

    def check(self, place: Place) -> None:
        """As every stage; with a fusion there is something to look up, and a selection of it."""
        super().check(place)
        fusion = place.recipe.networks.fusion
        if place.recipe.teacher is None and (fusion is not None or self.needs_teacher_size):
            raise ValueError("needs teacher.model, whose pixels or depth it uses")
        if self.view == "teacher" and place.recipe.data.stereo:
            raise ValueError(
                f"view: teacher has no stereo partners of the teacher's size, which data.mode "
                f"{place.recipe.data.mode} needs: use view: own"
            )
        if self.auxiliary and not (fusion is not None and fusion.pixel_wise):
            raise ValueError("auxiliary needs networks.fusion with pixel_wise")
        if fusion is not None:
            self._check_prior(place)

    def _check_prior(self, place: Place) -> None:
        selected = place.recipe.prior is not None or any(s.selects for s in place.before)
        if not selected and not any(s.extracts for s in place.before):
            raise ValueError("needs a reference stage before")
        if not selected and not any(s.selects for s in place.after):
            raise ValueError(
                "needs a select stage after it, which says what of the reference set goes into "
                "the bundle (method: all keeps the whole set)"
            )

    def build(self, run: Run, system: System) -> StudentStage:
        """The stage of this kind on the run's triplets, its references and its teacher."""
        common = self._common(run)
        unread = system.student.fusion is None or run.prior.chosen is not None
        references = None if unread else run.prior.references
        outputs = run.prior.outputs if self.asks_teacher else None
        if self.view == "own" and run.data().training.has_teacher_images:
            common["triplets"] = (
                run.data().training.without_teacher_images()
            )  # nobody looks at them
        return StudentStage(self, system, **common, references=references, outputs=outputs)


@stage
class FineTune(Student):
    """The student settles on the selected prior, which takes the set's place (RPrDepth)."""

    kind: Literal["fine_tune"]  # type: ignore[assignment]
    references: int = Field(
        25_000, ge=1, description="of the prior, drawn anew in every step; all where it has fewer"
    )

    def _check_prior(self, place: Place) -> None:
        if place.recipe.prior is None and not any(s.selects for s in place.before):
            raise ValueError("needs a select stage before")


@dataclass
class StudentStage(SelfSupervisedStage):
    """S and Pose on real triplets with a prior to look up and its teacher's depth beside them.

    references: the set of which every step draws a part; None: the system's prior, if it has one,
    stays as it is. outputs: what the teacher says, where ``config.asks_teacher``.
    """

    config: Student
    references: ReferenceSet | None = None
    outputs: TeacherOutputs | None = None

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The fusion, which is new, may learn faster than the rest."""
        fusion = self.system.student.fusion
        new = {id(p) for p in fusion.parameters()} if fusion is not None else set()
        rest = [p for p in self.trained if id(p) not in new]
        own = [p for p in self.trained if id(p) in new]
        faster = {"params": own, "factor": self.config.fusion_rate}
        return [{"params": rest}, faster] if own else [{"params": rest}]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole = self.system.prior  # while a step is computed, the system has a part of it

    def draw_batch(self, rng: np.random.Generator) -> StepBatch:
        """One batch with another part of the reference set."""
        whole, count = self._whole, self.config.references
        # A generator of its own: with a prior or without, the same triplets are drawn.
        own = _child(rng)
        batch = super().draw_batch(rng)
        if self.references is not None:
            batch.prior = self.references.sample(own, count)
        elif whole is not None and count < len(whole.inverse_depth):
            batch.prior = whole.rows(own.choice(len(whole.inverse_depth), count, replace=False))
        if self.config.asks_teacher:
            assert self.outputs is not None  # the run made them
            triplets = batch.triplets
            triplets.teacher_depth, motions = self.outputs.of(triplets)
            triplets.teacher_motions = None if motions is None else motions.transpose(0, 1)
        return batch

    def loss(self, drawn: StepBatch) -> tuple[Tensor, Logs]:
        """As before, with the batch's part of the reference set."""
        if drawn.prior is None:
            return super().loss(drawn)
        self.system.prior = drawn.prior.to(self.system.device)
        try:
            return super().loss(drawn)
        finally:
            self.system.prior = self._whole

    def validate(self) -> dict[str, float]:
        """As before, with a part of the reference set that is always the same."""
        with self._fixed_part():
            return super().validate()

    def pictures(self) -> dict[str, np.ndarray]:
        """As before."""
        with self._fixed_part():
            return super().pictures()

    @contextmanager
    def _fixed_part(self) -> Iterator[None]:
        """The system's prior for a while; afterwards it has the one that it had.

        Otherwise a stage behind this one would find a prior, but not in a run that goes on, nor on
        processes that do not validate.
        """
        before = self.system.prior
        if self.references is not None:
            fixed = np.random.default_rng(_SHOWN_SEED)
            prior = self.references.sample(fixed, self.config.references)
            self.system.prior = prior.to(self.system.device)
        try:
            yield
        finally:
            self.system.prior = before

    @property
    def _photometric_weight(self) -> float:
        return self.config.photometric_weight

    def _targets(self, batch: TripletBatch) -> tuple[Tensor, Tensor]:
        if self.config.view == "own":
            return super()._targets(batch)
        assert batch.teacher_images is not None  # the run asked for them
        assert batch.teacher_K is not None
        return batch.teacher_images, batch.teacher_K

    def _further(self, scene: Scene) -> tuple[Tensor, Logs]:
        """Agreement with the teacher, and of the looked-up depth with it."""
        config, loss = self.config, scene.depth.new_zeros(())
        if not config.asks_teacher:
            return loss, {}
        depth, motions = scene.batch.teacher_depth, scene.batch.teacher_motions
        assert depth is not None  # drawn with the batch
        height, width = scene.depth.shape[-2:]
        depth = resize_depth(depth.to(scene.depth), (height, width))
        values: Logs = {}
        if config.consistency:
            mask = self._trusted(scene, depth, motions)
            error = self._consistency(scene.depth, depth, mask)
            loss = loss + config.consistency * error
            values["teacher/consistency"] = error
            if mask is not None:
                values["teacher/mask_share"] = mask.float().mean()
        if config.auxiliary:
            assert scene.prior_inverse_depth is not None  # the recipe was checked
            error = auxiliary_loss(scene.prior_inverse_depth, depth)
            loss = loss + config.auxiliary * error
            values["teacher/auxiliary"] = error
            values["teacher/prior_spread"] = scene.prior_inverse_depth.detach().log().std()
        return loss, values

    def _consistency(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        kind = self.config.consistency_of
        if kind == "log_ratio":
            everywhere = torch.ones_like(student, dtype=torch.bool)
            return log_ratio_distillation(student, teacher, everywhere if mask is None else mask)
        if self.config.consistency_on == "inverse_depth":
            student, teacher = 1 / student, 1 / teacher
        measure = gradient_consistency if kind == "gradients" else value_consistency
        return measure(student, teacher, mask)

    @torch.no_grad()
    def _trusted(self, scene: Scene, depth: Tensor, motions: Tensor | None) -> Tensor | None:
        """Where the teacher explains the frame better than the student, by its own motions."""
        if not self.config.masked:
            return None
        if motions is None:  # a teacher of single images: the student's motions, its scale
            factor = (scene.depth / depth).flatten(1).median(dim=1).values
            depth, motions = (
                depth * factor[:, None, None, None],
                scene.poses.detach().transpose(0, 1),
            )
        _, K = self._targets(scene.batch)
        motions = motions.transpose(0, 1).to(depth)
        motions = motions[: len(scene.sources)]
        rebuilt = views_of(scene.batch, K, scene.sources, motions).rebuild(depth)
        error = minimum_error(rebuilt, scene.target)
        own = minimum_error(scene.rebuilt.detach(), scene.target, scene.identity)
        return distillation_mask(error, own)


def _child(rng: np.random.Generator) -> np.random.Generator:
    """A generator of its own, as `Generator.spawn` of numpy 1.25 gives; older ones have none."""
    bits = rng.bit_generator
    seeds = getattr(bits, "seed_seq", None) or bits._seed_seq  # type: ignore[attr-defined]
    return np.random.default_rng(seeds.spawn(1)[0])
