"""Last step of the first bundle: a provisional prior and the fusion that reads it.

Random pixels of training frames go through the frozen multi-frame network (RPrDepth, 3.1, without
the high resolution and without attention-guided selection).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from training.data.triplets import TripletSource
from training.errors import TrainingError
from training.stages.base import NetworkName, Place, stage
from training.stages.self_supervised import SelfSupervised
from training.stages.system import LookupFrame, System

if TYPE_CHECKING:
    from training.runs.run import Run

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
        fused = System.build(run.recipe, run.device, FusionConfig(), run.processes)
        _load_without_fusion(fused.student, system.student)
        fused.pose.load_state_dict(system.pose.state_dict())
        fused.multi_frame.load_state_dict(system.multi_frame.state_dict())
        fused.prior = prior
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
