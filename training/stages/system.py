"""The three networks that are trained together, and what every stage computes with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depth_prior_ros.geometry import Pose, disparity_to_depth, view_synthesis
from depth_prior_ros.models.multi_frame import Features, MultiFrameNet, MultiFrameOutput
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import Student
from training.config import Recipe
from training.data.pairs import PairBatch
from training.losses.supervised import log_depth_loss, log_gradient_loss, pose_loss


@dataclass
class System:
    """Student (S), pose network and multi-frame network (M), and how they are run."""

    student: Student
    pose: PoseNet
    multi_frame: MultiFrameNet
    device: torch.device
    precision: str
    prior: Prior | None = None

    @classmethod
    def build(
        cls, recipe: Recipe, device: torch.device, fusion: FusionConfig | None = None
    ) -> System:
        """Randomly initialised networks of a recipe; the seed decides them."""
        torch.manual_seed(recipe.seed)
        nets, (width, height) = recipe.networks, recipe.size
        far = math.log(nets.far_disparity / (1 - nets.far_disparity))
        student = Student(nets.trunk, nets.decoder, fusion, far_bias=far)
        system = cls(
            student,
            PoseNet(nets.pose),
            MultiFrameNet((height, width)),
            device,
            recipe.precision,
        )
        for network in system.networks.values():
            network.to(device)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return system

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By the names that checkpoints and bundles use."""
        return {"student": self.student, "pose": self.pose, "multi_frame": self.multi_frame}

    def autocast(self) -> torch.autocast:
        """bf16 for the networks when the recipe asks for it; losses stay in fp32."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def single(self, image: Tensor, scales: tuple[int, ...] = (0,)) -> dict[int, Tensor]:
        """Disparity in [0, 1] of images (B, 3, H, W) at the given scales, fp32."""
        image = image.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            output = self.student(image, self.prior, scales=scales)
        return {scale: d.float() for scale, d in output.disparity.items()}

    def motion(self, first: Tensor, second: Tensor) -> Pose:
        """``second_from_first`` (B, 4, 4) in network units, fp32."""
        with self.autocast():
            pose = self.pose(first, second)
        return Pose(pose.matrix.float())

    def multi(
        self,
        current: Tensor,
        previous: Tensor,
        previous_from_current: Pose,
        K: Tensor,
        single_depth: Tensor,
    ) -> MultiFrameOutput:
        """Multi-frame depth of ``current`` (B, 3, H, W), its hypotheses around ``single_depth``."""
        with self.autocast():
            both = self.multi_frame.features(torch.cat([current, previous]))
            (mine, theirs), (context, other) = (m.split(current.shape[0]) for m in both)
            return self.multi_frame(
                Features(mine, context),
                Features(theirs, other),
                previous_from_current,
                K,
                single_depth,
            )


def supervised_loss(
    system: System, batch: PairBatch, gradient_weight: float, multi_batch: int | None
) -> tuple[Tensor, dict[str, float]]:
    """All three networks against exact depth and motion."""
    previous, current = batch.inputs.unbind(1)
    _, depth = disparity_to_depth(system.single(current)[0])
    pose = system.motion(previous, current)
    truth = batch.previous_from_current
    n = slice(multi_batch)
    multi = system.multi(current[n], previous[n], Pose(truth.matrix[n]), batch.K[n], depth[n])
    if system.multi_frame.training:
        system.multi_frame.update_delta(multi.depth.detach(), depth[n].detach())
    parts = {
        "single": log_depth_loss(depth, batch.depth),
        "single_gradient": log_gradient_loss(depth, batch.depth),
        "multi": log_depth_loss(multi.depth, batch.depth[n]),
        "multi_gradient": log_gradient_loss(multi.depth, batch.depth[n]),
        "pose": pose_loss(pose.inverse(), truth),
    }
    loss = parts["single"] + parts["multi"] + 10 * parts["pose"]
    loss = loss + gradient_weight * (parts["single_gradient"] + parts["multi_gradient"])
    return loss, {f"synthetic/{name}": value.item() for name, value in parts.items()}


def rebuild(sources: Tensor, depth: Tensor, K: Tensor, poses: Tensor) -> Tensor:
    """The target view from both neighbours: sources (2, B, 3, H, W), poses (2, B, 4, 4)."""
    count, batch = sources.shape[:2]
    image, _ = view_synthesis(
        sources.flatten(0, 1),
        depth.repeat(count, 1, 1, 1),
        K.repeat(count, 1, 1),
        Pose(poses.flatten(0, 1)),
    )
    return image.unflatten(0, (count, batch))
