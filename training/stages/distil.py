"""A fresh student learns from the frozen teacher, where the teacher is right (MISM, 4.5)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from training.data.triplets import TripletBatch
from training.losses.distillation import distillation_mask, log_ratio_distillation
from training.losses.photometric import Target, identity_error, minimum_error
from training.losses.views import Views
from training.recipes.recipe import Distil
from training.stages.pictures import fixed_batch, overlay
from training.stages.self_supervised import Logs, Scene, SelfSupervisedStage
from training.stages.system import System, View


@dataclass(frozen=True)
class Taught:
    """What the teacher says of a batch: depth (B, 1, H, W) and its error (B, 1, H, W)."""

    depth: Tensor
    error: Tensor


class DistilStage(SelfSupervisedStage):
    """S' and Pose' on real triplets, with the depth of a frozen S, Pose and M beside them.

    The teacher is the system's. Its depth counts only where it explains the frame better than
    the student's (and than no motion at all), by its own motions; the mask is made anew in
    every step. The distance is that of log ratios, so the two may differ in scale.
    """

    schedule: Distil

    @property
    def teacher(self) -> System:
        """The frozen system."""
        assert self.system.teacher is not None
        return self.system.teacher

    def _further(self, scene: Scene) -> tuple[Tensor, Logs]:
        taught = teach(self.teacher, scene.batch, scene.sources, scene.target)
        with torch.no_grad():
            own = minimum_error(scene.rebuilt.detach(), scene.target, scene.identity)
        mask = distillation_mask(taught.error, own)
        kept = mask if self.schedule.masked else torch.ones_like(mask)
        loss = log_ratio_distillation(scene.depth, taught.depth, kept, self.schedule.variance)
        values = {
            "distil/loss": loss,
            "distil/mask_share": mask.float().mean(),
            "distil/teacher_error": taught.error.mean(),
            "distil/student_error": own.mean(),
        }
        return self.schedule.weight * loss, values

    def pictures(self) -> dict[str, np.ndarray]:
        """As before, and in red what the distillation mask removes."""
        batch = fixed_batch(self.system, self.triplets)
        masks = self._mask(batch).squeeze(1).cpu().numpy()
        images = (batch.images[:, 1].permute(0, 2, 3, 1).cpu().numpy() * 255).astype(np.uint8)
        rows = [overlay(image, mask) for image, mask in zip(images, masks, strict=True)]
        return super().pictures() | {"distil/removed_by_mask": cv2.vconcat(rows)}

    @torch.no_grad()
    def _mask(self, batch: TripletBatch) -> Tensor:
        before, now, after = batch.images.unbind(1)
        sources, target = torch.stack([before, after]), Target.of(now)
        poses = self.system.neighbour_motions(batch.images)
        rebuilt = Views.of(sources, batch.K, poses).rebuild(self.system.single_depth(now))
        identity = identity_error(sources, target, torch.default_generator)
        own = minimum_error(rebuilt, target, identity)
        return distillation_mask(teach(self.teacher, batch, sources, target).error, own)


@torch.no_grad()
def teach(teacher: System, batch: TripletBatch, sources: Tensor, target: Target) -> Taught:
    """The teacher's multi-frame depth of the frames as recorded, and how well it explains them."""
    now = target.image
    single = teacher.single_depth(now)
    views = [
        teacher.aligned(now, View(image, Pose(pose)), batch.K, single)
        for image, pose in zip(sources, teacher.neighbour_motions(batch.images), strict=True)
    ]
    seen = [v for place, v in zip((-1, 1), views, strict=True) if place in teacher.lookup]
    depth = teacher.multi(now, seen, batch.K, single).depth.float()
    poses = torch.stack([view.motion.matrix for view in views])
    rebuilt = Views.of(sources, batch.K, poses).rebuild(depth)
    return Taught(depth, minimum_error(rebuilt, target))
