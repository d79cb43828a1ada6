"""The sections of a recipe that say what is done: a stage after the other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from training.config_base import Strict


class Schedule(Strict):
    """Length, batch and learning rate of a stage."""

    steps: int = Field(ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    warm_up: int = Field(100, ge=0, description="steps of linear warm-up")
    final: float = Field(0.05, gt=0, le=1, description="last learning rate, relative (cosine)")
    clip: float = Field(10.0, gt=0, description="largest gradient norm")


class Supervised(Schedule):
    """Exact depth and motion of synthetic pairs, all networks."""

    kind: Literal["supervised"]
    batch: int = Field(8, ge=1)
    multi_batch: int | None = Field(
        None, ge=1, description="samples of a batch the multi-frame network sees; default: all"
    )
    pairs: int | None = Field(
        None, ge=1, description="draw from the first so many pairs only; default: all"
    )
    gradient_weight: float = Field(0.5, ge=0)


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
    known_pose_weight: float = Field(1.0, ge=0)
    gradient_weight: float = Field(0.5, ge=0)
    scales: tuple[int, ...] = Field(
        (0,), description="of 0 (full size) to 3; the multi-frame network needs 0"
    )

    @field_validator("scales")
    @classmethod
    def _decoded(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if 0 not in scales or not set(scales) <= {0, 1, 2, 3}:
            raise ValueError(f"must hold 0 and otherwise 1, 2 or 3, got {list(scales)}")
        return scales


class Prior(SelfSupervised):
    """A provisional prior: random pixels of training frames through the multi-frame network.

    Then, unless ``train`` says otherwise, the student's fusion alone learns to read it.
    """

    kind: Literal["prior"]  # type: ignore[assignment]
    train: tuple[NetworkName, ...] = ("fusion",)
    references: int = Field(8192, ge=1)
    per_image: int = Field(64, ge=1)


Stage = Annotated[Supervised | SelfSupervised | Prior, Field(discriminator="kind")]
