"""The sections of a recipe about the prior (RPrDepth): its teacher, its student, its making."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from training.recipes.base import Strict
from training.recipes.stages import NetworkName, SelfSupervised


class Rich(Strict):
    """The frozen teacher whose pixels are looked up, and that guides the student."""

    teacher: str = Field(description="a bundle's folder or name, or hf:NAME of Hugging Face")
    tap: int | None = Field(None, description="stride of the teacher's features; default: 4")
    size: tuple[int, int] | None = Field(
        None, description="width and height of a Hugging Face model's input; a bundle has its own"
    )
    lookup: tuple[Literal[-1, 1], ...] = Field(
        (-1, 1), min_length=1, description="frames a bundle compares with: previous, next"
    )
    cache: str | None = Field(
        None,
        description="folder for its depth and motions of all triplets, computed once; default: in "
        "memory",
    )
    features: Literal["encoder", "decoder"] = Field(
        "encoder",
        description="of a bundle: what it matches with, or what its single-frame decoder makes "
        "depth of",
    )
    fetch: bool = Field(False, description="download a Hugging Face model that is not there")


class Fusion(Strict):
    """How the student reads the prior (RPrDepth, prior depth fusion); the paper names no sizes."""

    tap: Literal[4, 8, 16, 32] = Field(16, description="stride of the student's features")
    width: int = Field(64, ge=1, description="channels of queries, keys and the depth hint")
    heads: int = Field(4, ge=1, description="of the depth hint; divides width")
    depth_input: Literal["log", "inverse", "none"] = Field(
        "log", description="what the fusion sees of the looked-up inverse depth D_c"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="of the affinity, beside 1/sqrt(width); if learned, at first",
    )
    learn_temperature: bool = True
    pixel_wise: bool = Field(True, description="features and depth by affinity (F_c, D_c)")
    depth_hint: bool = Field(True, description="multi-head attention over the features (F_d)")
    activation: Literal["elu", "relu"] = Field(
        "elu", description="relu may die, and the prior is then ignored"
    )
    normalise: bool = Field(
        False, description="features of every reference pixel to mean zero and variance one"
    )

    blend: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="mix the looked-up depth into the output, by a learned weight that begins so",
    )

    @model_validator(mode="after")
    def _divides(self) -> Fusion:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


class Reference(Strict):
    """Extract the reference set: pixels of triplets as the teacher sees them (RPrDepth)."""

    kind: Literal["reference"]
    triplets: int = Field(2000, ge=1, description="drawn at random; fewer where there are fewer")
    per_image: int = Field(1300, ge=1, description="pixels of one image")
    shard_images: int = Field(50, ge=1, description="images in one file")
    seed: int | None = Field(None, ge=0, description="default: the recipe's")
    folder: str | None = Field(
        None, description="where it lies, for several runs to share; default: in the run's folder"
    )


class Student(SelfSupervised):
    """A student that reads the prior, or is guided by its teacher, or both (RPrDepth).

    With networks.fusion it looks up a random part of the reference set in every step.
    """

    kind: Literal["student"]  # type: ignore[assignment]
    train: tuple[NetworkName, ...] = ("student", "pose")
    references: int = Field(
        8192, ge=1, description="of the reference set, drawn anew in every step"
    )
    fusion_rate: float = Field(
        1.0, gt=0, description="learning rate of the fusion, relative to the rest"
    )
    view: Literal["own", "rich"] = Field(
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


class FineTune(Student):
    """The student settles on the selected prior, which takes the set's place (RPrDepth)."""

    kind: Literal["fine_tune"]  # type: ignore[assignment]
    references: int = Field(
        25_000, ge=1, description="of the prior, drawn anew in every step; all where it has fewer"
    )


class Select(Strict):
    """Choose the prior out of the reference set.

    attention: RPrDepth's attention-guided feature selection; the other methods are controls.
    """

    kind: Literal["select"]
    keep: int = Field(25_000, ge=1)
    method: Literal["attention", "random", "k_means", "all"] = "attention"
    images: int = Field(64, ge=1, description="validation images whose attention is averaged")
