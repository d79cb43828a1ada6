"""What is done about a prior between training: extract the reference set, choose out of it.

`training.prior.steps` does both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from training.stages.base import Place, StageConfig, stage

if TYPE_CHECKING:
    from training.runs.run import Run
    from training.stages.system import System


@stage
class Reference(StageConfig):
    """Extract the reference set: pixels of triplets as the teacher sees them (RPrDepth)."""

    kind: Literal["reference"]
    trains = False
    extracts = True
    triplets: int = Field(2000, ge=1, description="drawn at random; fewer where there are fewer")
    per_image: int = Field(1300, ge=1, description="pixels of one image")
    shard_images: int = Field(50, ge=1, description="images in one file")
    seed: int | None = Field(None, ge=0, description="default: the recipe's")
    folder: str | None = Field(
        None, description="where it lies, for several runs to share; default: in the run's folder"
    )

    @property
    def needs_teacher_size(self) -> bool:
        """The teacher looks at triplets."""
        return True

    def check(self, place: Place) -> None:
        """As every stage; and there is a teacher."""
        super().check(place)
        if place.recipe.teacher is None:
            raise ValueError("needs teacher.model, whose pixels or depth it uses")

    def carry_out(self, run: Run, folder: Path, system: System) -> None:
        """Make the set, or go on with it."""
        run.prior.extract(self, folder)


@stage
class Select(StageConfig):
    """Choose the prior out of the reference set.

    attention: RPrDepth's attention-guided feature selection; the other methods are controls.
    """

    kind: Literal["select"]
    trains = False
    needs_triplets = False
    selects = True
    keep: int = Field(25_000, ge=1)
    method: Literal["attention", "random", "k_means", "all"] = "attention"
    images: int = Field(64, ge=1, description="validation images whose attention is averaged")

    def check(self, place: Place) -> None:
        """As every stage; and there is a set that holds so many pixels, and who looks them up."""
        super().check(place)
        if place.recipe.teacher is None:
            raise ValueError("needs teacher.model, whose pixels or depth it uses")
        references = [s for s in place.before if isinstance(s, Reference)]
        if place.recipe.networks.fusion is None or not references:
            raise ValueError("needs networks.fusion and a reference stage before")
        largest = max(s.triplets * s.per_image for s in references)
        if self.method != "all" and self.keep > largest:
            raise ValueError(
                f"keep {self.keep} is more than the {largest} pixels of the reference stage "
                "(triplets x per_image)"
            )

    def carry_out(self, run: Run, folder: Path, system: System) -> None:
        """Choose the prior, or read what was chosen before."""
        run.prior.select(self, folder, system)
