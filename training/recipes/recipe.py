"""Typed recipes: one training run. An unknown key or a wrong type is an error that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import AfterValidator, Field, field_validator, model_validator

from depth_prior_ros.models.decoder import DECODERS
from depth_prior_ros.models.trunk import TRUNKS
from depth_prior_ros.untrusted import IMAGE_SIDE, INPUT_PIXELS
from training.recipes.base import RecipeError, Strict
from training.recipes.data import Data
from training.stages.base import STAGES, Place, StageConfig

__all__ = ["MultiFrame", "Networks", "Output", "Recipe", "RecipeError", "TeacherConfig"]

if TYPE_CHECKING:
    Stage = StageConfig
else:
    kinds = Union[tuple(config for _, config in STAGES.items())]  # noqa: UP007
    Stage = Annotated[kinds, Field(discriminator="kind")]


class TeacherConfig(Strict):
    """The frozen teacher whose pixels are looked up, and that guides the student."""

    model: str = Field(description="a bundle's folder or name, or hf:NAME of Hugging Face")
    stride: int | None = Field(None, description="stride of the teacher's features; default: 4")
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

    stride: Literal[4, 8, 16, 32] = Field(16, description="stride of the student's features")
    width: int = Field(
        64, ge=1, le=4096, description="channels of queries, keys and the depth hint"
    )
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


class Episodic(Strict):
    """How the student looks up references of its own camera (models/episodic_prior.py)."""

    heads: int = Field(4, ge=1, le=64)
    width: int = Field(16, ge=1, le=256, description="learned channels of keys and values, a head")
    capacity: int = Field(1024, ge=1, le=65536, description="references there is room for")
    stride: Literal[8, 16] = Field(8, description="of the map that looks up; 16 costs half")


class Init(Strict):
    """Files with weights (ImageNet's by timm's names) that the encoders begin with."""

    student: str | None = None
    pose: str | None = Field(None, description="a ResNet-18; its first layer is doubled")
    multi_frame: str | None = Field(None, description="a ResNet-18, for kind: cost_volume")


class MultiFrame(Strict):
    """The multi-frame network: MISM's with PADS, or ManyDepth's cost volume."""

    kind: Literal["pads", "cost_volume"] = "pads"
    hypotheses: int = Field(16, ge=8, le=512, description="96 in ManyDepth's cost volume")
    range_mode: Literal["pads", "tracked"] = Field(
        "pads",
        description="pads: around the single-frame depth; tracked: one range for the data set",
    )
    delta_init: float = Field(1.0, gt=0, description="PADS map at the beginning")
    delta_mode: Literal["adaptive", "fixed"] = "adaptive"
    parallax: float = Field(
        2.0,
        ge=0,
        allow_inf_nan=False,
        description="pixels of parallax for matching to be trusted (pads): in training entirely, "
        "later as far as it is confident; 0: always and entirely, as in MISM",
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

    trunk: Annotated[str, AfterValidator(TRUNKS.checked)] = "hrnet_w18_small"
    decoder: Annotated[str, AfterValidator(DECODERS.checked)] = "light"
    pose: Literal["resnet18", "small"] = "small"
    multi_frame: MultiFrame = MultiFrame()
    fusion: Fusion | None = Field(None, description="reads a prior; default: a plain student")
    episodic: Episodic | None = Field(
        None, description="looks up references of its own camera; default: it does not"
    )
    camera_code: bool = Field(
        False, description="the student is told height, pitch, roll, focal length, principal row"
    )
    far_disparity: float = Field(
        0.05, gt=0, lt=1, description="initial disparity; low = start with everything far away"
    )


class Output(Strict):
    """What the finished bundle says of itself."""

    name: str
    licence: str
    provenance: tuple[str, ...] = ()
    camera_height: float | None = Field(
        None,
        gt=0,
        description="metres above the road of the drives' camera, by which the metric factor is "
        "fitted; the drives are weighted equally",
    )
    scale_drive: str | None = Field(
        None, description="drive with metric poses on which the metric factor is fitted"
    )
    multi_frame: bool | None = Field(
        None, description="whether it holds the multi-frame network; default: where it was trained"
    )
    teacher: bool = Field(
        True, description="a copy of the prior's teacher goes with it, which `adapt` needs"
    )

    @model_validator(mode="after")
    def _one_metric_factor(self) -> Output:
        if self.camera_height is not None and self.scale_drive is not None:
            raise ValueError("camera_height and scale_drive both fit the metric factor: give one")
        return self


class Recipe(Strict):
    """One training run: data, networks, stages, and the bundle that comes out."""

    seed: int = Field(1, ge=0, lt=2**63)
    size: tuple[int, int] = Field((320, 96), description="width and height of the input")
    metres_per_unit: float = Field(10.0, gt=0, description="unit of depth in training")
    networks: Networks = Networks()
    init: Init = Init()
    start: str | None = Field(
        None,
        description="checkpoint of another run (last.safetensors) to begin with, or a bundle by "
        "name or folder: those of its networks that are built alike",
    )
    start_networks: tuple[Literal["student", "pose", "multi_frame"], ...] = Field(
        ("student", "pose", "multi_frame"),
        min_length=1,
        description="those that begin with the bundle that start names",
    )
    teacher: TeacherConfig | None = None
    prior: str | None = Field(
        None, description="bundle whose student and prior to begin with (depth_train fine-tune)"
    )
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    output: Output
    device: str = Field("auto", description="cpu, cuda, cuda:N; auto: CUDA where there is one")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads; one is often faster than two")
    precision: Literal["auto", "f32", "bf16"] = Field(
        "f32", description="of the networks in training; auto: bf16 where it is computed fast"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps")
    validate_every: int = Field(1000, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps")

    @property
    def trains_multi_frame(self) -> bool:
        """Whether a stage trains the multi-frame network, or it was trained before."""
        return self.start is not None or any(stage.teaches_multi for stage in self.stages)

    @property
    def has_multi_frame(self) -> bool:
        """Whether the multi-frame network that comes out was trained, and is not a student's."""
        passed = self.stages[-1].passes_multi_frame
        asked = passed if self.output.multi_frame is None else self.output.multi_frame
        return self.trains_multi_frame if asked is None else asked

    @field_validator("precision", mode="before")
    @classmethod
    def _old_word(cls, precision: object) -> object:
        return "f32" if precision == "fp32" else precision  # as recipes in older bundles say

    @field_validator("size")
    @classmethod
    def _multiple_of_32(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(side < 32 or side % 32 for side in size):
            raise ValueError(f"sides must be multiples of 32, got {size[0]}x{size[1]}")
        if max(size) > IMAGE_SIDE or size[0] * size[1] > INPUT_PIXELS:
            raise ValueError(f"{size[0]}x{size[1]}: at most {INPUT_PIXELS:,} pixels")
        return size

    def _check_stereo(self) -> None:
        mode, output = self.data.mode, self.output
        if mode == "S" and self.teacher is not None:
            raise ValueError("data.mode S has no motion, which teacher.model compares frames by")
        fitted = [k for k in ("camera_height", "scale_drive") if getattr(output, k) is not None]
        if self.data.stereo and fitted:
            raise ValueError(
                f"output.{fitted[0]} fits the metric factor, but with data.mode {mode} the "
                "baselines fix it: metres_per_unit"
            )

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.prior is not None and self.start is not None:
            raise ValueError("start and prior both say what to begin with: give one")
        if self.networks.fusion is not None and self.teacher is None:
            raise ValueError("networks.fusion needs teacher.model, whose features it reads")
        self._check_stereo()
        for number, stage in enumerate(self.stages):
            try:
                stage.check(Place(self, self.stages[:number], self.stages[number + 1 :]))
            except ValueError as error:
                raise ValueError(f"stages.{number} ({stage.kind}) {error}") from error
        return self
