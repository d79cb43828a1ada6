"""The sections of a recipe that say what is done: a stage after the other."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from training.recipes.base import Strict


class Schedule(Strict):
    """Length, batch and learning rate of a stage. Either ``steps`` or ``epochs``."""

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
    draws: int | None = Field(
        None,
        ge=0,
        description="number that decides its random draws; default: how many stages train before "
        "it. Runs whose stages share it see the same batches",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
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


class Supervised(Schedule):
    """Exact depth and motion of synthetic pairs, all networks."""

    kind: Literal["supervised"]
    batch: int = Field(8, ge=1)
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


# "fusion" is the part of the student that reads the prior.
NetworkName = Literal["student", "fusion", "pose", "multi_frame"]


class SelfSupervised(Schedule):
    """Photometric training on real triplets, with rehearsal on synthetic pairs."""

    kind: Literal["self_supervised"]
    train: tuple[NetworkName, ...] = Field(
        ("student", "pose", "multi_frame"),
        min_length=1,
        description="the networks that learn; the others serve, frozen",
    )
    batch: int = Field(6, ge=1)
    multi_batch: int | None = Field(
        None, ge=1, description="samples of a batch the multi-frame network sees; default: all"
    )
    synthetic_batch: int = Field(
        2, ge=0, description="synthetic pairs beside each batch, where data.synthetic is given"
    )
    synthetic_weight: float = Field(0.1, ge=0)
    smoothness: float = Field(1e-3, ge=0)
    known_pose_weight: float = Field(1.0, ge=0, description="where poses were recorded")
    velocity_weight: float = Field(
        0.0, ge=0, description="travel of the pose network against the recorded one (PackNet)"
    )
    gradient_weight: float = Field(0.5, ge=0)
    pose_weight: float = Field(10.0, ge=0, description="of synthetic pairs")
    predicted_pose: float = Field(0.0, ge=0, le=1, description="as in supervised stages")
    static_camera: float = Field(0.0, ge=0, le=1, description="as in supervised stages")
    held_weight: float = Field(0.1, ge=0, description="as in supervised stages")
    scales: tuple[int, ...] = Field(
        (0,), description="of 0 (full size) to 3; the multi-frame network needs 0"
    )
    kept_pixels_only: bool = Field(
        False,
        description="mean over the pixels that the auto-mask keeps (ManyDepth, MISM) instead of "
        "over all (monodepth2)",
    )

    @field_validator("scales")
    @classmethod
    def _decoded(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if 0 not in scales or not set(scales) <= {0, 1, 2, 3}:
            raise ValueError(f"must hold 0 and otherwise 1, 2 or 3, got {list(scales)}")
        return scales


class Teacher(SelfSupervised):
    """S, Pose and M jointly (MISM, 4.4; ManyDepth with networks.multi_frame: cost_volume)."""

    kind: Literal["teacher"]  # type: ignore[assignment]
    masked_consistency: float = Field(
        100.0, ge=0, description="weight of M's agreement with itself on a partly masked image"
    )
    missing_frame: float = Field(
        0.0, ge=0, le=1, description="share of samples without a previous frame"
    )
    consistency: float = Field(
        0.0, ge=0, description="weight of M's L1 to S where matching is unreliable (ManyDepth)"
    )
    reset_map: bool = Field(
        True, description="the PADS map begins at delta_init, whatever the weights come from"
    )
    freeze_at: float | None = Field(
        None, gt=0, lt=1, description="S and Pose are frozen after this share of the steps"
    )

    @model_validator(mode="after")
    def _shares(self) -> Teacher:
        if self.static_camera + self.missing_frame > 1:
            raise ValueError("static_camera and missing_frame together are more than 1")
        if self.freeze_at is not None and "multi_frame" not in self.train:
            raise ValueError("freeze_at freezes all but multi_frame, which train does not name")
        if self.missing_frame and not self.consistency:
            raise ValueError("missing_frame needs consistency above 0")
        return self


class Distil(SelfSupervised):
    """A fresh student and pose network learn from the frozen teacher too (MISM, 4.5)."""

    kind: Literal["distil"]  # type: ignore[assignment]
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


class Mutual(Distil):
    """Distillation, then the new student and pose network guide the teacher's M (MISM, 4.6)."""

    kind: Literal["mutual"]  # type: ignore[assignment]
    rounds: int = Field(
        1, ge=1, description="each round's system is the teacher of a fresh student in the next"
    )


class Prior(SelfSupervised):
    """A provisional prior: random pixels of training frames through the multi-frame network.

    Then, unless ``train`` says otherwise, the student's fusion alone learns to read it.
    """

    kind: Literal["prior"]  # type: ignore[assignment]
    train: tuple[NetworkName, ...] = ("fusion",)
    references: int = Field(8192, ge=1)
    per_image: int = Field(64, ge=1)
