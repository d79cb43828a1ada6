"""Typed recipes read from YAML. An unknown key or a wrong type is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from training.config_base import Strict
from training.config_data import Data, Drive, Synthetic
from training.config_stages import (
    NetworkName,
    Prior,
    Schedule,
    SelfSupervised,
    Stage,
    Supervised,
)

__all__ = [
    "Data",
    "Drive",
    "NetworkName",
    "Networks",
    "Output",
    "Prior",
    "Recipe",
    "RecipeError",
    "Schedule",
    "SelfSupervised",
    "Stage",
    "Supervised",
    "Synthetic",
    "load_recipe",
]


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names file, key and cause."""


class Networks(Strict):
    """Which networks a run trains."""

    trunk: Literal["hrnet_w18", "hrnet_w18_small"] = "hrnet_w18_small"
    decoder: Literal["diffnet", "light"] = "light"
    pose: Literal["resnet18", "small"] = "small"
    far_disparity: float = Field(
        0.05, gt=0, lt=1, description="initial disparity; low = start with everything far away"
    )


class Output(Strict):
    """What the finished bundle says of itself."""

    name: str
    licence: str
    provenance: tuple[str, ...] = ()
    scale_drive: str | None = Field(
        None, description="drive with metric poses on which the metric factor is fitted"
    )


class Recipe(Strict):
    """One training run: data, networks, stages, and the bundle that comes out."""

    seed: int = 1
    size: tuple[int, int] = Field((320, 96), description="width and height of the input")
    metres_per_unit: float = Field(10.0, gt=0, description="unit of depth in training")
    networks: Networks = Networks()
    data: Data
    stages: tuple[Stage, ...] = Field(min_length=1)
    output: Output
    device: str = Field("auto", description="cpu, cuda, cuda:N; auto: CUDA where there is one")
    threads: int = Field(1, ge=1, description="CPU threads; one is often faster than two")
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(200, ge=1, description="steps")
    validate_every: int = Field(1000, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps")

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
            elif not self.data.drives:
                raise ValueError(f"{place} needs data.drives")
            pixels = self.size[0] * self.size[1] // 16  # reference pixels lie in a quarter map
            if isinstance(stage, Prior) and stage.per_image > pixels:
                raise ValueError(f"{place}: per_image {stage.per_image} is more than {pixels}")
        return self


def _set(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise RecipeError(f"override '{override}' is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    target: Any = values
    for name in parents:
        if isinstance(target, list):
            target = target[_index(target, name, override)]
        else:
            target = target.setdefault(name, {})
        if not isinstance(target, (dict, list)):
            raise RecipeError(f"override '{override}': '{name}' is a value, not a section")
    target[_index(target, last, override) if isinstance(target, list) else last] = value


def _index(target: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise RecipeError(
            f"override '{override}': '{name}' is no place in a list of {len(target)}, count from 0"
        )
    return int(name)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``key.sub=value`` overrides (lists by index: ``stages.0.steps=9``).

    Raises:
        RecipeError: file missing or not YAML, unknown key, wrong type or value; the message names
            the file and every offending key.
    """
    values = _read_yaml(Path(path))
    for override in overrides or []:
        _set(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_plain(e)}" for e in error.errors()]
        raise RecipeError(f"recipe {path} is not valid:\n" + "\n".join(lines)) from error


def _plain(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"unknown key {place}"
    return f"{place}: {error['msg']}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} holds no keys")
    return values
