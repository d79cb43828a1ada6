"""Stages that make or take up a prior, beside those of a student that learns with one (`student`).

`prior`: random pixels of training frames go through the frozen multi-frame network (RPrDepth, 3.1,
without the high resolution and without attention-guided selection), and the fusion that reads them
learns. `reference` and `select` extract a reference set and choose out of it, which
`training.prior.steps` does. `tune` goes on from all of a bundle's student, with its prior.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from training.data.triplets import TripletSource
from training.errors import TrainingError
from training.stages.base import NetworkName, Place, StageConfig, stage
from training.stages.self_supervised import SelfSupervised
from training.stages.system import LookupFrame, System

if TYPE_CHECKING:
    from training.runs.run import Run
    from training.stages.system import System

NOTE = (
    "provisional: random pixels of training frames through the frozen multi-frame network, "
    "at the student's own resolution and without selection"
)
_BATCH = 8


@stage
class RandomPrior(SelfSupervised):
    """A provisional prior: random pixels of training frames through the multi-frame network.

    Then, unless ``train`` says otherwise, the student's fusion alone learns to read it.
    """

    kind: Literal["prior"]  # type: ignore[assignment]
    passes_fusion = True
    train: tuple[NetworkName, ...] = ("fusion",)
    references: int = Field(8192, ge=1)
    per_image: int = Field(64, ge=1)

    def check(self, place: Place) -> None:
        """As every stage; M has features to keep, and an image has so many pixels."""
        super().check(place)
        pixels = (
            place.recipe.size[0] * place.recipe.size[1] // 16
        )  # reference pixels lie in a quarter map
        if self.per_image > pixels:
            raise ValueError(f"per_image {self.per_image} is more than {pixels}")
        if place.recipe.networks.multi_frame.kind != "pads":
            raise ValueError("needs networks.multi_frame.kind: pads")
        if place.recipe.networks.fusion is not None:
            raise ValueError("does not go with networks.fusion: use student stages")

    def prepare(self, run: Run, system: System, number: int) -> System:
        """What the stages before left, with a fusion besides and the prior that it reads."""
        prior = random_prior(
            system, run.data().training, self.references, self.per_image, run.recipe.seed
        )
        fused = _with_fusion(run, system, FusionConfig(), prior)
        _load_without_fusion(fused.student, system.student)
        return fused


@torch.no_grad()
def random_prior(
    system: System, triplets: TripletSource, references: int, per_image: int, seed: int
) -> Prior:
    """Draw reference pixels: features of the multi-frame network and inverse depth.

    Args:
        system: networks; Pose and M are used as they are, in evaluation mode.
        triplets: training frames.
        references: number of reference pixels N.
        per_image: pixels drawn from one frame.
        seed: decides frames and pixels.

    Returns:
        Features (N, 32) and inverse depth (N,) in network units.
    """
    for network in system.networks.values():
        network.eval()
    rng = np.random.default_rng([seed, 25_000])
    features, inverse, count = [], [], 0
    while count < references:
        f, d = _reference_pixels(system, triplets, per_image, rng)
        features.append(f)
        inverse.append(d)
        count += len(d)
    return Prior(torch.cat(features)[:references], torch.cat(inverse)[:references])


def _reference_pixels(
    system: System, triplets: TripletSource, per_image: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = triplets.batch(_BATCH, rng).to(system.device)
    before, now = batch.images[:, 0], batch.images[:, 1]
    predicted = system.motion(before, now).inverse().matrix
    known = batch.known[:, None, None]
    single = system.single_depth(now)
    guess = Pose(torch.where(known, batch.poses[:, 0], predicted))
    pose = system.aligned(now, LookupFrame(before, guess), batch.K, single).motion
    mine = system.multi_frame.features(now)
    theirs = system.multi_frame.features(before)
    output = system.multi_frame(mine, theirs, pose, batch.K, single)
    maps = mine.matching.flatten(2).transpose(1, 2)  # (B, h*w, 32)
    depth = output.depth_quarter.flatten(1)
    pixels = torch.from_numpy(
        np.stack([rng.choice(depth.shape[1], per_image, replace=False) for _ in range(_BATCH)])
    ).to(system.device)
    picked = torch.gather(maps, 1, pixels[..., None].expand(-1, -1, maps.shape[-1]))
    return picked.flatten(0, 1), 1 / torch.gather(depth, 1, pixels).flatten()


def _load_without_fusion(target: nn.Module, source: nn.Module) -> None:
    """Copy a student's weights into one that has a fusion besides."""
    missing, unknown = target.load_state_dict(source.state_dict(), strict=False)
    lost = [name for name in missing if not name.startswith("fusion.")] + unknown
    if lost:
        raise TrainingError(f"the student's weights {', '.join(lost[:3])} have no counterpart")


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


@stage
class Tune(SelfSupervised):
    """As `self_supervised`, of the student with the fusion and the prior of the bundle `start`."""

    kind: Literal["tune"]  # type: ignore[assignment]
    passes_fusion = True
    train: tuple[NetworkName, ...] = ("student", "pose")

    def check(self, place: Place) -> None:
        """As every stage; there is a bundle to go on from, and no stage before it."""
        super().check(place)
        if place.recipe.start is None or place.before:
            raise ValueError("goes on from the bundle that start names, as the first stage")

    def prepare(self, run: Run, system: System, number: int) -> System:
        """The bundle's networks, its student whole."""
        assert run.recipe.start is not None  # the recipe was checked
        return whole_student(run, system, load_bundle(run.recipe.start))


def whole_student(run: Run, system: System, bundle: Bundle) -> System:
    """The system, whose networks are those of the bundle, with its student and prior whole."""
    student = bundle.student()
    if student.fusion is None or not bundle.has("prior"):
        return system
    prior = bundle.prior().to(run.device)
    whole = _with_fusion(run, system, student.fusion.config, prior)
    whole.student.load_state_dict(student.state_dict())
    return whole


def _with_fusion(run: Run, system: System, fusion: FusionConfig, prior: Prior) -> System:
    """A system's pose and multi-frame network beside a fresh student that reads a prior."""
    fused = System.build(run.recipe, run.device, fusion, run.processes)
    fused.pose.load_state_dict(system.pose.state_dict())
    fused.multi_frame.load_state_dict(system.multi_frame.state_dict())
    fused.prior = prior
    return fused
