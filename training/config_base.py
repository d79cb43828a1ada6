"""What every section of a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A section of a recipe: typed, without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
