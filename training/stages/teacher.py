"""The teacher: student, pose and multi-frame network jointly (MISM, 4.4; ManyDepth, 2.3 to 2.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.manydepth import CostVolumeOutput
from depth_prior_ros.models.matching import PadsMap
from training.losses.distillation import (
    Rectangle,
    masked_input_consistency,
    reliable_matches,
    single_frame_consistency,
)
from training.losses.masked import masked_mean
from training.losses.photometric import minimum_error
from training.stages.base import stage
from training.stages.self_supervised import (
    Logs,
    Scene,
    SelfSupervised,
    SelfSupervisedStage,
    aligned_views,
    scale_smoothness,
)
from training.stages.system import LookupFrame, System, views_of

if TYPE_CHECKING:
    from training.runs.run import Run


@stage
class Teacher(SelfSupervised):
    """S, Pose and M jointly (MISM, 4.4; ManyDepth with networks.multi_frame: cost_volume)."""

    kind: Literal["teacher"]  # type: ignore[assignment]
    leaves_bundle = True
    masked_consistency: float = Field(
        100.0, ge=0, description="weight of M's agreement with itself on a partly masked image"
    )
    missing_frame: float = Field(
        0.0, ge=0, le=1, description="share of samples without a previous frame"
    )
    consistency: float = Field(
        0.0, ge=0, description="weight of M's L1 to S where matching is unreliable (ManyDepth)"
    )
    reset_map: bool = Field(
        True, description="the PADS map begins at delta_init, whatever the weights come from"
    )
    freeze_at: float | None = Field(
        None, gt=0, lt=1, description="S and Pose are frozen after this share of the steps"
    )

    @model_validator(mode="after")
    def _shares(self) -> Teacher:
        if self.static_camera + self.missing_frame > 1:
            raise ValueError("static_camera and missing_frame together are more than 1")
        if self.freeze_at is not None and "multi_frame" not in self.train:
            raise ValueError("freeze_at freezes all but multi_frame, which train does not name")
        if self.missing_frame and not self.consistency:
            raise ValueError("missing_frame needs consistency above 0")
        return self

    def prepare(self, run: Run, system: System, number: int) -> System:
        """What the stages before left, with a PADS map that begins anew."""
        if self.reset_map:
            system.reset_map()
        return system

    def build(self, run: Run, system: System) -> TeacherStage:
        """The stage of this kind on the run's triplets."""
        return TeacherStage(self, system, **self._common(run))


class TeacherStage(SelfSupervisedStage):
    """S, Pose and M on real triplets.

    M with PADS: photometric over all pixels, and agreement with itself when a part of the image is
    hidden. M as ManyDepth's cost volume: photometric where matching agrees with S, S itself
    elsewhere; some samples lose their previous frame, or see it stand still.
    """

    config: Teacher

    def at_step(self, step: int) -> None:
        """Freeze S and Pose for the last part, as ManyDepth does."""
        if self.config.freeze_at is None or step < self.config.freeze_at * self.config.steps:
            return
        for network in (self.system.student, self.system.pose):
            network.requires_grad_(False).eval()

    def _further(self, scene: Scene) -> tuple[Tensor, Logs]:
        if "multi_frame" not in self.config.train:
            return scene.depth.new_zeros(()), {}
        scene = self._part(scene)
        views = aligned_views(self.system, scene)
        seen, augmented = self._lookups(scene, views)
        multi = self._match(scene, seen)
        if isinstance(multi, CostVolumeOutput):
            error, smooth, extra, logs = self._many_depth(scene, views, multi, augmented)
        else:
            error, smooth = self._multi_errors(scene, views, multi.depth)
            hidden, logs = self._hidden(scene, seen, multi.depth)
            held, more = self._held(multi, scene)
            extra, logs = hidden + held, logs | more
        loss = error + self.config.smoothness * smooth + extra
        return loss, self._multi_logs(multi, error, smooth, augmented) | logs

    def _lookups(self, scene: Scene, views: list[LookupFrame]) -> tuple[list[LookupFrame], Tensor]:
        """What M compares with, and which samples were changed (B,): ManyDepth, 2.5.

        ManyDepth's standing camera keeps the motion of the frame that it hides; with PADS it has
        none, as on a vehicle that stands.
        """
        if isinstance(self.system.multi_frame, PadsMap):
            return super()._lookups(scene, views)
        config, count = self.config, len(scene.depth)
        u = self.system.processes.draw(count, lambda k: torch.rand(k)).to(scene.depth.device)
        still = u < config.static_camera
        missing = ~still & (u < config.static_camera + config.missing_frame)
        seen = self._seen(scene, views)
        if config.static_camera or config.missing_frame:
            now = scene.target.image
            seen = [
                replace(
                    view,
                    image=torch.where(still[:, None, None, None], now, view.image),
                    valid=~missing,
                )
                for view in seen
            ]
        return seen, still | missing

    def _hidden(self, scene: Scene, seen: list[LookupFrame], depth: Tensor) -> tuple[Tensor, Logs]:
        """M's agreement with itself on an image of which a rectangle is hidden (MISM, 4.4)."""
        if not self.config.masked_consistency:
            return depth.new_zeros(()), {}
        height, width = depth.shape[-2:]
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # alike in all processes
        rectangle = Rectangle.draw(height, width, rng)
        current = rectangle.hide(scene.batch.inputs[:, 1])
        hidden = self.system.multi(current, seen, scene.batch.K, scene.depth)
        loss = masked_input_consistency(hidden.depth, depth, rectangle)
        return self.config.masked_consistency * loss, {"multi/masked_consistency": loss}

    def _many_depth(
        self, scene: Scene, views: list[LookupFrame], multi: CostVolumeOutput, augmented: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Logs]:
        """Reprojection error where reliable, smoothness, L1 to S elsewhere (ManyDepth, 2.3)."""
        target, size = scene.target, scene.depth.shape[-2:]
        reliable = reliable_matches(multi.lowest_cost, scene.depth, multi.confidence, augmented)
        poses = torch.stack([view.motion.matrix for view in views])
        neighbours = views_of(scene.batch, scene.batch.K, scene.sources, poses)
        error = smooth = agreement = scene.depth.new_zeros(())
        for scale, disparity in multi.disparity.items():
            full = F.interpolate(disparity, size, mode="bilinear", align_corners=False)
            _, depth = disparity_to_depth(full)
            errors = minimum_error(neighbours.rebuild(depth), target)
            error = error + masked_mean(errors, reliable)
            smooth = smooth + scale_smoothness(disparity, target.image, scale)
            agreement = agreement + single_frame_consistency(depth, scene.depth, reliable)
        count = len(multi.disparity)
        logs = {
            "multi/reliable": reliable.float().mean(),
            "multi/consistency": agreement / count,
        }
        extra = self.config.consistency * agreement / count
        return error / count, smooth / count, extra, logs
