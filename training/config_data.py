"""The sections of a recipe that say what is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.config_base import Strict


class Drive(Strict):
    """A recording to train on."""

    path: str = Field(description="folder or bag, relative to the data root")
    weight: float = Field(1.0, gt=0, description="how often it is drawn, relative to the others")
    stride: int = Field(1, ge=1, description="frames between neighbours")
    keep_out: Literal["none", "depth"] = Field(
        "none", description="'depth' keeps frames with ground truth and their neighbours out"
    )


class Synthetic(Strict):
    """Rendered pairs with exact depth and motion; rendered on first use, then read."""

    folder: str = Field(description="where the pairs lie, relative to the working directory")
    count: int = Field(8000, ge=1)
    seed: int = 1
    textures: tuple[str, ...] = Field(
        (), description="drives, relative to the data root, whose frames give textures"
    )


class Data(Strict):
    """Where samples come from."""

    root: str | None = Field(None, description="data root; default: $DEPTH_PRIOR_DATA")
    drives: tuple[Drive, ...] = ()
    synthetic: Synthetic | None = None
