"""`depth_train reference`: the reference stage of a recipe by itself."""

from __future__ import annotations

import shlex
from pathlib import Path

from training.prior.reference.set import ReferenceSet
from training.recipes.base import RecipeError
from training.recipes.files import load_recipe
from training.runs.run import Run
from training.stages.reference import Reference


def reference_command(
    recipe: Path, overrides: list[str] | None = None, out: Path | None = None
) -> ReferenceSet:
    """Extract the reference set of a recipe's first stage of kind reference.

    Args:
        recipe: YAML file.
        overrides: ``key=value``.
        out: folder of the set; default: the stage's, else where `depth_train run` will look for it.

    Raises:
        RecipeError: the recipe is not valid, or has no such stage.
        TrainingError: the set cannot be extracted, or the folder holds something else.
    """
    recipe = Path(recipe)
    resolved = load_recipe(recipe, overrides)
    stages = [
        (place, stage)
        for place, stage in enumerate(resolved.stages)
        if isinstance(stage, Reference)
    ]
    if not stages:
        raise RecipeError(
            f"recipe {recipe} extracts no reference set: it needs a stage {{kind: reference}}"
        )
    place, stage = stages[0]
    run = Run(resolved, Path("runs") / recipe.stem)
    folder = run.folder / f"{place}_reference"
    if out is not None:
        stage = stage.model_copy(update={"folder": str(out)})
    command = ["depth_train", "reference", str(recipe), *(overrides or [])]
    command += [] if out is None else ["--out", str(out)]
    run.prior.extract(stage, folder, shlex.join(command))
    found = run.prior.references
    assert found is not None
    return found


def summary(references: ReferenceSet) -> str:
    """What a set is, in a few lines for people."""
    identity = references.identity
    size = sum(entry.bytes for entry in references.manifest.shards) / 2**20
    drives = {image["drive"] for image in references.images}
    used = sum(image["pixels"] > 0 for image in references.images)
    width, height = identity.size
    lines = [
        f"reference set: {references.folder}",
        f"{len(references):,} pixels with {references.channels} channels of {used} images from "
        f"{len(drives)} drives, {size:.1f} MiB",
        f"teacher: {identity.name} ({identity.kind}, {width}x{height}, features at "
        f"1/{identity.stride}, {identity.licence}), {identity.sha256[:12]}...",
    ]
    return "\n".join(lines)
