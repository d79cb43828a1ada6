"""`depth_train fine-tune`: a bundle's student settles on the prior that it has."""

from __future__ import annotations

import json
from pathlib import Path

from depth_prior_ros.bundle import load_bundle
from training.recipes.base import RecipeError
from training.recipes.files import load_recipe
from training.runs.run import Run


def fine_tune(bundle: str, recipe: Path, overrides: list[str], out: Path | None = None) -> Path:
    """Carry out a recipe's last fine_tune stage for a bundle's student and prior.

    Args:
        bundle: folder or name.
        recipe: a recipe with a stage of kind fine_tune, with the bundle's networks.
        overrides: key=value of the recipe.
        out: folder of the run; default: runs/fine_tune/NAME, the bundle's name.

    Returns:
        The folder of the new bundle.

    Raises:
        RecipeError: the recipe has no such stage, or other networks than the bundle.
        TrainingError: training cannot go on.
    """
    made = load_recipe(recipe, overrides)
    stages = [stage for stage in made.stages if stage.kind == "fine_tune"]
    if not stages:
        raise RecipeError(f"{recipe} has no stage of kind fine_tune")
    data = made.model_dump(mode="json")
    data |= {"stages": [stages[-1].model_dump(mode="json")], "start": None, "prior": str(bundle)}
    source = load_bundle(bundle)
    if made.output.multi_frame is None:  # what the bundle has, it keeps
        data["output"]["multi_frame"] = source.has("multi_frame")
    alone = type(made).model_validate_json(json.dumps(data))
    return Run(alone, out or Path("runs/fine_tune") / source.manifest.name).carry_out()
