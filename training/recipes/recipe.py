"""Typed recipes: one training run. An unknown key or a wrong type is an error that names it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from training.recipes.base import RecipeError, Strict
from training.recipes.data import Data, Drive, Synthetic
from training.recipes.prior import FineTune, Fusion, Reference, Rich, Select, Student
from training.recipes.stages import (
    Distil,
    Mutual,
    NetworkName,
    Prior,
    Schedule,
    SelfSupervised,
    Supervised,
    Teacher,
)
from training.recipes.steps import AnyStage, Stage

__all__ = [
    "Data",
    "Distil",
    "Drive",
    "FineTune",
    "Fusion",
    "MultiFrame",
    "Mutual",
    "NetworkName",
    "Networks",
    "Output",
    "Prior",
    "Recipe",
    "RecipeError",
    "Reference",
    "Rich",
    "Schedule",
    "Select",
    "SelfSupervised",
    "Stage",
    "Student",
    "Supervised",
    "Synthetic",
    "Teacher",
]


class Init(Strict):
    """Files with ImageNet weights (timm's names) that the encoders begin with."""

    student: str | None = None
    pose: str | None = Field(None, description="a ResNet-18; its first layer is doubled")
    multi_frame: str | None = Field(None, description="a ResNet-18, for kind: cost_volume")


class MultiFrame(Strict):
    """The multi-frame network: MISM's with PADS, or ManyDepth's cost volume."""

    kind: Literal["pads", "cost_volume"] = "pads"
    hypotheses: int = Field(16, ge=8, description="96 in ManyDepth's cost volume")
    range_mode: Literal["pads", "tracked"] = Field(
        "pads",
        description="pads: around the single-frame depth; tracked: one range for the data set",
    )
    delta_init: float = Field(1.0, gt=0, description="PADS map at the beginning")
    delta_mode: Literal["adaptive", "fixed"] = "adaptive"
    parallax: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=False,
        description="pixels of parallax from which matching is trusted entirely (pads); 0: always, "
        "as in MISM",
    )
    lookup: tuple[Literal[-1, 1], ...] = Field(
        (-1,),
        min_length=1,
        description="frames that are matched in training: previous, next. On a vehicle there is "
        "only the previous one",
    )

    @field_validator("lookup")
    @classmethod
    def _previous(cls, lookup: tuple[int, ...]) -> tuple[int, ...]:
        if -1 not in lookup or len(set(lookup)) != len(lookup):
            raise ValueError(f"must be [-1] or [-1, 1], got {list(lookup)}")
        return lookup

    align_motion: bool = Field(
        True, description="refine the pose network's motion against the single-frame depth"
    )


class Networks(Strict):
    """Which networks a run trains."""

    trunk: Literal["hrnet_w18", "hrnet_w18_small", "resnet18"] = "hrnet_w18_small"
    decoder: Literal["diffnet", "light", "ra_depth", "monodepth2"] = "light"
    pose: Literal["resnet18", "small"] = "small"
    multi_frame: MultiFrame = MultiFrame()
    fusion: Fusion | None = Field(None, description="reads a prior; default: a plain student")
    far_disparity: float = Field(
        0.05, gt=0, lt=1, description="initial disparity; low = start with everything far away"
    )


def teaches_multi(stage: AnyStage) -> bool:
    """Whether a stage trains the multi-frame network."""
    if isinstance(stage, Supervised):
        return stage.multi_batch != 0
    return isinstance(stage, SelfSupervised) and "multi_frame" in stage.train


class Output(Strict):
    """What the finished bundle says of itself."""

    name: str
    licence: str
    provenance: tuple[str, ...] = ()
    scale_drive: str | None = Field(
        None, description="drive with metric poses on which the metric factor is fitted"
    )
    multi_frame: bool | None = Field(
        None, description="whether it holds the multi-frame network; default: where it was trained"
    )
    teacher: bool = Field(
        True, description="a copy of the prior's teacher goes with it, which `adapt` needs"
    )


def _refuse_too_many(place: str, stage: Select, before: tuple[AnyStage, ...]) -> None:
    largest = max(s.triplets * s.per_image for s in before if isinstance(s, Reference))
    if stage.keep > largest:
        raise ValueError(
            f"{place}: keep {stage.keep} is more than the {largest} pixels of the reference stage "
            "(triplets x per_image)"
        )


class Recipe(Strict):
    """One training run: data, networks, stages, and the bundle that comes out."""

    seed: int = Field(1, ge=0)
    size: tuple[int, int] = Field((320, 96), description="width and height of the input")
    metres_per_unit: float = Field(10.0, gt=0, description="unit of depth in training")
    networks: Networks = Networks()
    init: Init = Init()
    start: str | None = Field(
        None, description="checkpoint of another run (last.safetensors) to begin with"
    )
    rich: Rich | None = None
    prior: str | None = Field(
        None, description="bundle whose student and prior to begin with (depth_train fine-tune)"
    )
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    output: Output
    device: str = Field("auto", description="cpu, cuda, cuda:N; auto: CUDA where there is one")
    threads: int = Field(1, ge=1, description="CPU threads; one is often faster than two")
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(200, ge=1, description="steps")
    validate_every: int = Field(1000, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps")

    @property
    def has_multi_frame(self) -> bool:
        """Whether the multi-frame network that comes out was trained, and is not a student's."""
        last = self.stages[-1]
        if self.output.multi_frame is not None:
            return self.output.multi_frame
        if isinstance(last, Distil):
            return isinstance(last, Mutual)
        return self.start is not None or any(map(teaches_multi, self.stages))

    @field_validator("size")
    @classmethod
    def _multiple_of_32(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(side < 32 or side % 32 for side in size):
            raise ValueError(f"sides must be multiples of 32, got {size[0]}x{size[1]}")
        return size

    @model_validator(mode="after")
    def _stages_have_their_data(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            place = f"stages.{number} ({stage.kind})"
            if isinstance(stage, Supervised):
                if self.data.synthetic is None:
                    raise ValueError(f"{place} needs data.synthetic")
            elif (
                not isinstance(stage, Select)
                and not self.data.drives
                and self.data.kitti_raw is None
            ):
                raise ValueError(f"{place} needs data.drives or data.kitti_raw")
            pixels = self.size[0] * self.size[1] // 16  # reference pixels lie in a quarter map
            if isinstance(stage, Prior) and stage.per_image > pixels:
                raise ValueError(f"{place}: per_image {stage.per_image} is more than {pixels}")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Recipe:
        if self.prior is not None and self.start is not None:
            raise ValueError("start and prior both say what to begin with: give one")
        return self

    @model_validator(mode="after")
    def _prior_stages_follow(self) -> Recipe:
        if self.networks.fusion is not None and self.rich is None:
            raise ValueError("networks.fusion needs rich.teacher, whose features it reads")
        for number, stage in enumerate(self.stages):
            place, before = f"stages.{number} ({stage.kind})", self.stages[:number]
            if not isinstance(stage, Reference | Select | Student):
                continue
            fuses = self.networks.fusion is not None
            asks = not isinstance(stage, Student) or fuses or stage.asks_teacher
            if self.rich is None and (asks or stage.view == "rich"):  # type: ignore[union-attr]
                raise ValueError(f"{place} needs rich.teacher, whose pixels or depth it uses")
            extracted = any(isinstance(s, Reference) for s in before)
            selected = self.prior is not None or any(isinstance(s, Select) for s in before)
            if isinstance(stage, Select) and not (fuses and extracted):
                raise ValueError(f"{place} needs networks.fusion and a reference stage before")
            reads = fuses and self.networks.fusion.pixel_wise  # type: ignore[union-attr]
            if isinstance(stage, Student) and stage.auxiliary and not reads:
                raise ValueError(f"{place}: auxiliary needs networks.fusion with pixel_wise")
            if isinstance(stage, FineTune) and fuses and not selected:
                raise ValueError(f"{place} needs a select stage before")
            if isinstance(stage, Student) and fuses and not (extracted or selected):
                raise ValueError(f"{place} needs a reference stage before")
            if isinstance(stage, Select) and stage.method != "all":
                _refuse_too_many(place, stage, before)
            later = any(isinstance(s, Select) for s in self.stages[number + 1 :])
            if isinstance(stage, Student) and fuses and not (selected or later):
                raise ValueError(
                    f"{place} needs a select stage after it, which says what of the reference set "
                    "goes into the bundle (method: all keeps the whole set)"
                )
        return self

    @model_validator(mode="after")
    def _stages_follow(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            place = f"stages.{number} ({stage.kind})"
            distils = isinstance(stage, Distil) and stage.fresh_from is not None
            if distils and stage.fresh_from >= number:  # type: ignore[union-attr]
                raise ValueError(f"{place}: fresh_from has to name a stage before")
            taught = self.start is not None or any(map(teaches_multi, self.stages[:number]))
            if isinstance(stage, Distil) and stage.teacher is None and not taught:
                raise ValueError(
                    f"{place} needs a teacher: a stage before it that trains multi_frame, start, "
                    "or a checkpoint (teacher)"
                )
            primed = any(isinstance(s, Prior) for s in self.stages[:number])
            if isinstance(stage, Distil) and primed:
                raise ValueError(f"{place}: a fresh student has no prior; put prior stages last")
            if isinstance(stage, Prior) and self.networks.multi_frame.kind != "pads":
                raise ValueError(f"{place} needs networks.multi_frame.kind: pads")
            if isinstance(stage, Distil | Prior) and self.networks.fusion is not None:
                raise ValueError(f"{place} does not go with networks.fusion: use student stages")
            one_scale = self.networks.decoder == "ra_depth"
            if isinstance(stage, SelfSupervised) and one_scale and set(stage.scales) != {0}:
                raise ValueError(f"{place}: the decoder ra_depth has scale 0 only")
        return self
