"""Second step: real triplets explain each other (monodepth2); M with PADS jointly (MISM, 4.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry import Pose, disparity_to_depth
from training.config import SelfSupervised
from training.data.pairs import PairSource
from training.data.triplets import TripletBatch, TripletSource
from training.losses.photometric import Target, identity_error, minimum_reprojection
from training.losses.smoothness import edge_aware_smoothness
from training.losses.supervised import pose_loss
from training.stages.system import System, rebuild, supervised_loss
from training.stages.validation import Validation


@dataclass
class SelfSupervisedStage:
    """S, Pose and M on real triplets, with rehearsal on synthetic pairs.

    Networks that ``schedule.train`` does not name serve as they are.
    """

    schedule: SelfSupervised
    system: System
    triplets: TripletSource
    pairs: PairSource | None
    validation: Validation
    name: str = "self-supervised"

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.requires_grad_(False)
        for module in self._learning:
            module.requires_grad_(True)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for module in self._learning for p in module.parameters()]

    @property
    def _learning(self) -> list[nn.Module]:
        train = self.schedule.train
        modules = [network for name, network in self.networks.items() if name in train]
        fusion = self.system.student.fusion
        if "fusion" in train and "student" not in train and fusion is not None:
            modules.append(fusion)
        return modules

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of triplets and, for rehearsal, one of pairs."""
        for name, network in self.networks.items():
            if name not in self.schedule.train:  # batch statistics, PADS map stay as they are
                network.eval()
        batch = self.triplets.batch(self.schedule.batch, rng).to(self.system.device)
        loss, values = self._photometric(batch)
        if self.pairs is not None and self.schedule.synthetic_batch:
            pairs = self.pairs.batch(self.schedule.synthetic_batch, rng).to(self.system.device)
            rehearsal, logs = supervised_loss(
                self.system, pairs, self.schedule.gradient_weight, self.schedule.multi_batch
            )
            loss = loss + self.schedule.synthetic_weight * rehearsal
            values |= logs
        return loss, values

    def _poses(self, batch: TripletBatch) -> tuple[Tensor, Tensor]:
        """Motion to previous and next from current (2, B, 4, 4); the pose loss where known."""
        before, now, after = batch.inputs.unbind(1)
        later_from_earlier = self.system.motion(torch.cat([before, now]), torch.cat([now, after]))
        now_from_before, after_from_now = later_from_earlier.matrix.chunk(2)
        predicted = torch.stack([Pose(now_from_before).inverse().matrix, after_from_now])
        recorded = batch.poses.transpose(0, 1)
        if not batch.known.any():
            return predicted, predicted.new_zeros(())
        loss = pose_loss(Pose(predicted[:, batch.known]), Pose(recorded[:, batch.known]))
        known = batch.known[None, :, None, None]
        return torch.where(known, recorded, predicted), loss

    def _photometric(self, batch: TripletBatch) -> tuple[Tensor, dict[str, float]]:
        schedule = self.schedule
        before, now, after = batch.images.unbind(1)
        sources, target = torch.stack([before, after]), Target.of(now)
        poses, pose_error = self._poses(batch)
        with torch.no_grad():
            identity = identity_error(sources, target, torch.default_generator)
        disparities = self.system.single(batch.inputs[:, 1], schedule.scales)
        reprojection = smooth = poses.new_zeros(())
        for scale, disparity in disparities.items():
            full = F.interpolate(disparity, now.shape[-2:], mode="bilinear", align_corners=False)
            inverse, depth = disparity_to_depth(full)
            rebuilt = rebuild(sources, depth, batch.K, poses)
            error, mask = minimum_reprojection(rebuilt, target, identity)
            reprojection = reprojection + error / len(disparities)
            smooth = smooth + edge_aware_smoothness(inverse, now) / 2**scale / len(disparities)
        _, single_depth = disparity_to_depth(disparities[min(disparities)])
        values = {
            "photometric": reprojection.item(),
            "smoothness": smooth.item(),
            "explained": mask.float().mean().item(),
            "pose": pose_error.item(),
            "depth_mean": single_depth.mean().item(),
            "translation": poses[0, :, :3, 3].norm(dim=-1).mean().item(),
        }
        loss = reprojection + schedule.smoothness * smooth
        loss = loss + schedule.known_pose_weight * pose_error
        if "multi_frame" in schedule.train:
            multi, logs = self._multi(batch, sources, poses.detach(), single_depth)
            loss = loss + multi
            values |= logs
        return loss, values

    def _multi(
        self,
        batch: TripletBatch,
        sources: Tensor,
        poses: Tensor,
        single_depth: Tensor,
    ) -> tuple[Tensor, dict[str, float]]:
        """M against both neighbours, all pixels, motion detached (MISM's code, teacher stage)."""
        n = slice(self.schedule.multi_batch)
        before, now, _ = batch.inputs[n].unbind(1)
        single = single_depth[n]
        multi = self.system.multi(now, before, Pose(poses[0, n]), batch.K[n], single)
        if self.system.multi_frame.training:
            self.system.multi_frame.update_delta(multi.depth.detach(), single.detach())
        rebuilt = rebuild(sources[:, n], multi.depth, batch.K[n], poses[:, n])
        target = Target.of(batch.images[n, 1])
        error, _ = minimum_reprojection(rebuilt, target, None)
        smooth = edge_aware_smoothness(1 / multi.depth, target.image)
        delta = self.system.multi_frame.delta
        values = {
            "multi/photometric": error.item(),
            "multi/smoothness": smooth.item(),
            "multi/delta_mean": delta.mean().item(),
            "multi/delta_max": delta.max().item(),
        }
        return error + self.schedule.smoothness * smooth, values

    def validate(self) -> dict[str, float]:
        """Figures of the student on held-out frames."""
        return self.validation.figures(self.system)

    def pictures(self) -> dict[str, np.ndarray]:
        """Depth of fixed frames."""
        return self.validation.pictures(self.system)
