"""What every section of a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names file, key and cause."""


class Strict(BaseModel):
    """A section of a recipe: typed, without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
