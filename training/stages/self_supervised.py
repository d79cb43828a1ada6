"""Real triplets explain each other (monodepth2), with rehearsal on synthetic pairs.

The part that all self-supervised stages share: student and pose network, and the plain multi-frame
loss. `teacher.py` and `distil.py` build on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.decoder import DECODERS
from depth_prior_ros.models.matching import DELTA_RANGE, MultiFrameDepth
from training.data.pairs import PairSource
from training.data.triplets import StepBatch, TripletBatch, TripletSource
from training.loop.distributed import to_device
from training.losses.photometric import (
    Target,
    edge_aware_smoothness,
    identity_error,
    minimum_reprojection,
    velocity_loss,
    view_errors,
)
from training.losses.supervised import pose_loss
from training.losses.views import Views
from training.recipes.data import Mode
from training.stages.base import NetworkName, Place, TrainingConfig, stage
from training.stages.system import (
    LookupFrame,
    System,
    freeze_trunk,
    held_loss,
    motion_sources,
    parameter_groups,
    share,
    standing,
    supervised_loss,
    views_of,
)
from training.stages.validation import (
    VALIDATION_ERROR,
    Validation,
    system_pictures,
    validation_error,
)

if TYPE_CHECKING:
    from training.runs.run import Run

Logs = dict[str, Tensor]  # numbers of shape (), on the device


@stage
class SelfSupervised(TrainingConfig):
    """Photometric training on real triplets, with rehearsal on synthetic pairs."""

    kind: Literal["self_supervised"]
    train: tuple[NetworkName, ...] = Field(
        ("student", "pose", "multi_frame"),
        min_length=1,
        description="the networks that learn; the others serve, frozen",
    )
    multi_batch: int | None = Field(
        None, ge=1, description="samples of a batch the multi-frame network sees; default: all"
    )
    synthetic_batch: int = Field(
        2, ge=0, description="synthetic pairs beside each batch, where data.synthetic is given"
    )
    synthetic_weight: float = Field(0.1, ge=0)
    smoothness: float = Field(1e-3, ge=0)
    known_pose_weight: float = Field(1.0, ge=0, description="where poses were recorded")
    recorded_motion: bool = Field(
        True,
        description="recorded motion explains frames where it is known; false: always the pose "
        "network's, as in the papers",
    )
    velocity_weight: float = Field(
        0.0, ge=0, description="travel of the pose network against the recorded one (PackNet)"
    )
    gradient_weight: float = Field(0.5, ge=0)
    pose_weight: float = Field(10.0, ge=0, description="of synthetic pairs")
    predicted_pose: float = Field(0.0, ge=0, le=1, description="as in supervised stages")
    static_camera: float = Field(0.0, ge=0, le=1, description="as in supervised stages")
    held_weight: float = Field(0.1, ge=0, description="as in supervised stages")
    scales: tuple[int, ...] = Field(
        (0,), description="of 0 (full size) to 3; the multi-frame network needs 0"
    )
    auto_masked: bool = Field(
        False,
        description="mean over the pixels that the auto-mask keeps (ManyDepth, MISM) instead of "
        "over all (monodepth2)",
    )

    @field_validator("scales")
    @classmethod
    def _decoded(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if 0 not in scales or not set(scales) <= {0, 1, 2, 3}:
            raise ValueError(f"must hold 0 and otherwise 1, 2 or 3, got {list(scales)}")
        return scales

    @property
    def teaches_multi(self) -> bool:
        """Whether the multi-frame network learns."""
        return "multi_frame" in self.train

    def check(self, place: Place) -> None:
        """As every stage; the decoder has its scales, and there is motion where it is needed."""
        super().check(place)
        if place.recipe.data.mode == "S" and (why := self._needs_motion()):
            raise ValueError(
                f"data.mode S explains a frame by its stereo partner alone, without motion, but "
                f"{why}: use mode MS, or leave that out"
            )
        offered = DECODERS[place.recipe.networks.decoder].offered()
        if not set(self.scales) <= set(offered):
            has = ", ".join(map(str, offered))
            raise ValueError(f"the decoder {place.recipe.networks.decoder} has scale {has} only")

    def _needs_motion(self) -> str:
        """What of the stage cannot be done without frames before and after; empty: nothing."""
        moved = [name for name in ("pose", "multi_frame") if name in self.train]
        if moved:
            return f"train names {' and '.join(moved)}, which compare frames over time"
        return "velocity_weight is of motion" if self.velocity_weight else ""

    def build(self, run: Run, system: System) -> SelfSupervisedStage:
        """The stage of this kind on the run's triplets."""
        return SelfSupervisedStage(self, system, **self._common(run))

    def _common(self, run: Run) -> dict[str, Any]:
        """What all stages on triplets are built with."""
        return {
            "triplets": run.data().training,
            "pairs": run.pairs(),
            "validation": run.validation,
            "name": self.kind.replace("_", "-"),
            "metres_per_unit": run.recipe.metres_per_unit,
            "validation_triplets": run.data().validation,
            "mode": run.recipe.data.mode,
        }


@dataclass
class Scene:
    """A batch of triplets and how the student explains it.

    sources: previous and next frame as recorded (2, B, 3, H, W), none in mode S. target: the frame
    between. poses: previous_from_current and next_from_current (2, B, 4, 4). identity: error of the
    unwarped sources (B, 1, H, W). depth: the student's, with gradient (B, 1, H, W). rebuilt: the
    target from the sources, and from its stereo partner where the batch has them, by that depth
    (S, B, 3, H, W). prior_inverse_depth: what the student
    looked up (B, 1, h, w), None without a prior. Units are the network's; H and W are those of the
    frames that are explained, which a stage may choose larger than the student's input.
    """

    batch: TripletBatch
    sources: Tensor
    target: Target
    poses: Tensor
    identity: Tensor
    depth: Tensor
    rebuilt: Tensor
    prior_inverse_depth: Tensor | None = None


@dataclass
class SelfSupervisedStage:
    """S, Pose and M on real triplets, with rehearsal on synthetic pairs.

    Networks that ``config.train`` does not name serve as they are.
    """

    config: SelfSupervised
    system: System
    triplets: TripletSource
    pairs: PairSource | None
    validation: Validation
    name: str = "self-supervised"
    metres_per_unit: float = 10.0
    validation_triplets: TripletSource | None = None
    mode: Mode = "M"
    last_batch: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _partner_look: PartnerLook | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.requires_grad_(False)
        for module in self._learning:
            module.requires_grad_(True)
        freeze_trunk(self.system, self.config)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        found = [p for module in self._learning for p in module.parameters()]
        return [p for p in found if p.requires_grad]

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trunk at its own rate."""
        return parameter_groups(self.system, self.trained, self.config)

    @property
    def _learning(self) -> list[nn.Module]:
        train = self.config.train
        modules = [network for name, network in self.networks.items() if name in train]
        fusion = self.system.student.fusion
        if "fusion" in train and "student" not in train and fusion is not None:
            modules.append(fusion)
        return modules

    def draw_batch(self, rng: np.random.Generator) -> StepBatch:
        """One batch of triplets and, for rehearsal, one of pairs."""
        processes, config = self.system.processes, self.config
        size = config.batch
        batch = StepBatch(self.triplets.batch(size, rng, part=processes.slice(size)))
        if self.pairs is not None and (size := config.synthetic_batch):
            batch.pairs = self.pairs.batch(size, rng, part=processes.slice(size))
        return batch

    def loss(self, drawn: StepBatch) -> tuple[Tensor, Logs]:
        """Real frames explain each other; and rehearsal."""
        for name, network in self.networks.items():
            if name not in self.config.train:  # batch statistics, PADS map stay as they are
                network.eval()
        drawn = to_device(drawn, self.system.device)
        batch = drawn.triplets
        self.last_batch = {"images": batch.images, "K": batch.K, "poses": batch.poses}
        scene, loss, values = self._student(batch)
        further, logs = self._further(scene)
        loss, values = loss + further, values | logs
        if drawn.pairs is not None:
            seen = self._rehearsed_by_multi()
            rehearsal, logs = supervised_loss(self.system, drawn.pairs, self.config, seen)
            loss, values = loss + self.config.synthetic_weight * rehearsal, values | logs
        return loss, {name: value.detach() for name, value in values.items()}

    def _rehearsed_by_multi(self) -> int | None:
        """Pairs of a batch that M rehearses on: none where it does not learn."""
        if "multi_frame" not in self.config.train:
            return 0
        limit = self.config.multi_batch
        if limit is not None:
            limit = min(limit, self.config.synthetic_batch)
        return share(self.system, limit)

    def _poses(self, batch: TripletBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Motions to previous and next from current (2, B, 4, 4), recorded where they are known
        and wanted; the same as predicted; and the loss of these where known. Without motion none
        (0, B, 4, 4).
        """
        if self.mode == "S":
            none = batch.poses.transpose(0, 1)[:0]
            return none, none, none.new_zeros(())
        predicted = self.system.neighbour_motions(batch.inputs)
        recorded = batch.poses.transpose(0, 1)
        loss = pose_loss(Pose(predicted), Pose(recorded), known=batch.known)
        if not self.config.recorded_motion:
            return predicted, predicted, loss
        known = batch.known[None, :, None, None]
        return torch.where(known, recorded, predicted), predicted, loss

    def _student(self, batch: TripletBatch) -> tuple[Scene, Tensor, Logs]:
        """Photometric loss and smoothness of the student's depth, at every scale asked for."""
        config = self.config
        images, K = self._targets(batch)
        sources, target = motion_sources(images, self.mode), Target.of(images[:, 1])
        now = target.image
        poses, predicted, pose_error = self._poses(batch)
        views = views_of(batch, K, sources, poses)
        with torch.no_grad():
            noise = self._noise(images, len(views.sources))
            identity = identity_error(views.sources, target, noise)
        reprojection = smooth = poses.new_zeros(())
        output = self.system.predict(batch.inputs[:, 1], config.scales)
        disparities = output.disparity
        scene = mask_share = None
        for scale in sorted(disparities):
            disparity, size = disparities[scale], now.shape[-2:]
            full = F.interpolate(disparity, size, mode="bilinear", align_corners=False)
            _, depth = disparity_to_depth(full)
            rebuilt = views.rebuild(depth)
            error, mask = minimum_reprojection(
                rebuilt, target, identity, "kept" if config.auto_masked else "all"
            )
            reprojection = reprojection + error / len(disparities)
            smooth = smooth + scale_smoothness(disparity, batch.images[:, 1], scale) / len(
                disparities
            )
            if scene is None:  # scale 0, the finest
                scene = Scene(
                    batch,
                    sources,
                    target,
                    poses,
                    identity,
                    depth,
                    rebuilt,
                    output.prior_inverse_depth,
                )
                mask_share = mask.float().mean()
        assert scene is not None and mask_share is not None  # the recipe was checked
        values = {
            "photometric": reprojection,
            "smoothness": smooth,
            "auto_mask_share": mask_share,
            "pose": pose_error,
            "depth_mean": scene.depth.mean(),
            "disparity_mean": disparities[0].mean(),
            "disparity_spread": disparities[0].std((1, 2, 3)).mean(),
        }
        if len(predicted):
            values["translation"] = predicted[0, :, :3, 3].norm(dim=-1).mean()
        self._partner_look = None if batch.partner is None else PartnerLook.of(scene)
        loss = self._photometric_weight * reprojection + config.smoothness * smooth
        loss = loss + config.known_pose_weight * pose_error
        if config.velocity_weight:
            travel, logs = self._travel_error(batch, predicted)
            loss, values = loss + config.velocity_weight * travel, values | logs
        return scene, loss, values

    def _travel_error(self, batch: TripletBatch, poses: Tensor) -> tuple[Tensor, Logs]:
        """Predicted motions (2, B, 4, 4) are as long as the way that was driven, in metres."""
        driven = batch.travel.transpose(0, 1).flatten()
        error = velocity_loss(poses[..., :3, 3].flatten(0, 1), driven, self.metres_per_unit)
        return error, {"travel_error": error}

    @property
    def _photometric_weight(self) -> float:
        """Of the student's photometric loss."""
        return 1.0

    def _targets(self, batch: TripletBatch) -> tuple[Tensor, Tensor]:
        """The frames (B, 3, 3, H, W) that the student's depth has to explain, and their K."""
        return batch.images, batch.K

    def _noise(self, images: Tensor, sources: int) -> Tensor:
        """Standard normal numbers (S, B, 1, H, W) for images (B, 3, 3, H, W), the same whatever
        the number of processes."""
        height, width = images.shape[-2:]
        drawn = self.system.processes.draw(
            len(images), lambda count: torch.randn(count, sources, 1, height, width)
        )
        return drawn.transpose(0, 1)

    def _further(self, scene: Scene) -> tuple[Tensor, Logs]:
        """What this kind of stage adds: here, the plain loss of M where it learns."""
        if "multi_frame" not in self.config.train:
            return scene.depth.new_zeros(()), {}
        scene = self._part(scene)
        views = aligned_views(self.system, scene)
        seen, still = self._lookups(scene, views)
        multi = self._match(scene, seen)
        error, smooth = self._multi_errors(scene, views, multi.depth)
        held, logs = self._held(multi, scene)
        loss = error + self.config.smoothness * smooth + held
        return loss, self._multi_logs(multi, error, smooth, still) | logs

    def _lookups(self, scene: Scene, views: list[LookupFrame]) -> tuple[list[LookupFrame], Tensor]:
        """What M compares with, and where (B,) it is the current frame itself, without motion."""
        seen = self._seen(scene, views)
        still = self.system.still(self.config.static_camera, len(scene.depth))
        if self.config.static_camera:
            now = scene.batch.inputs[:, 1]
            seen = [standing(view, now, still) for view in seen]
        return seen, still

    def _held(self, multi: MultiFrameDepth, scene: Scene) -> tuple[Tensor, Logs]:
        """M's matches held to the student's depth where there is no parallax."""
        if not self.config.held_weight:
            return scene.depth.new_zeros(()), {}
        held = held_loss(multi, scene.depth)
        return self.config.held_weight * held, {"multi/held": held.detach()}

    def _part(self, scene: Scene) -> Scene:
        """The samples that M sees, without the student's gradient."""
        n = slice(share(self.system, self.config.multi_batch))
        batch = replace(
            scene.batch,
            **{name: value[n] for name, value in vars(scene.batch).items() if value is not None},
        )
        return Scene(
            batch,
            scene.sources[:, n],
            Target.of(scene.target.image[n]),
            scene.poses[:, n].detach(),
            scene.identity[n],
            scene.depth[n].detach(),
            scene.rebuilt[:, n].detach(),
        )

    def _seen(self, scene: Scene, views: list[LookupFrame]) -> list[LookupFrame]:
        """Of previous and next frame those that M looks up, with their changed images."""
        inputs = scene.batch.inputs
        return [
            replace(view, image=inputs[:, index])
            for place, index, view in zip((-1, 1), (0, 2), views, strict=True)
            if place in self.system.lookup
        ]

    def _match(self, scene: Scene, seen: list[LookupFrame]) -> MultiFrameDepth:
        """M's depth of a part of the batch; its range follows."""
        system, batch = self.system, scene.batch
        scales = self.config.scales
        multi = system.multi(batch.inputs[:, 1], seen, batch.K, scene.depth, scales)
        # Not once S, which was learning, is frozen (ManyDepth).
        frozen = "student" in self.config.train and not system.student.training
        if not frozen:
            system.observe(multi, scene.depth)
        return multi

    def _multi_errors(
        self, scene: Scene, views: list[LookupFrame], depth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """M against both neighbours over all pixels, motion detached (MISM's code), smoothness."""
        poses = torch.stack([view.motion.matrix for view in views])
        rebuilt = views_of(scene.batch, scene.batch.K, scene.sources, poses).rebuild(depth)
        error, _ = minimum_reprojection(rebuilt, scene.target, None)
        return error, edge_aware_smoothness(1 / depth, scene.target.image)

    def _multi_logs(
        self, multi: MultiFrameDepth, error: Tensor, smooth: Tensor, changed: Tensor | None = None
    ) -> Logs:
        """What to log of M; samples that ``changed`` (B,) names do not count for its range."""
        best, last = multi.best, multi.hypotheses.shape[1] - 1
        counted = (multi.confidence > 0).float()
        if changed is not None:
            counted = counted * ~changed.view(-1, 1, 1, 1)
        at_end = (((best == 0) | (best == last)) * counted).sum() / counted.sum().clamp(min=1)
        values = {
            "multi/photometric": error,
            "multi/smoothness": smooth,
            "multi/depth_mean": multi.depth.mean(),
            "multi/at_range_end": at_end,
            "multi/parallax": multi.parallax.median(),
        }
        return values | range_figures(self.system.multi_frame)

    def logged(self) -> Logs:
        """How the stereo partner explains a frame of the last step, where there are partners."""
        return {} if self._partner_look is None else self._partner_look.figures()

    def validate(self) -> dict[str, float]:
        """Figures of the student on held-out frames."""
        figures = self.validation.figures(self.system)
        if self.validation_triplets is not None:
            figures[VALIDATION_ERROR] = validation_error(
                self.system, self.validation_triplets, self.mode
            )
        return figures

    def pictures(self) -> dict[str, np.ndarray]:
        """Depth of fixed frames, the multi-frame network's range and map."""
        pictures = self.validation.pictures(self.system)
        if self.mode == "S":
            return pictures
        return pictures | system_pictures(self.system, self.triplets)


@dataclass(frozen=True)
class PartnerLook:
    """How the stereo partner explains the first target of a batch by the student's depth.

    target (1, 3, H, W), depth (1, 1, H, W), and of the partner its picture (1, 3, H, W), rebuilt
    the target from it (1, 3, H, W), partner_from_target (1, 4, 4), and the intrinsics of both
    (1, 3, 3). Copies without gradient, so that nothing else of a step is kept.
    """

    target: Tensor
    depth: Tensor
    partner: Tensor
    rebuilt: Tensor
    partner_pose: Tensor
    intrinsics: Tensor
    partner_intrinsics: Tensor

    @classmethod
    def of(cls, scene: Scene) -> PartnerLook:
        """Of a scene whose batch has partners."""
        batch = scene.batch
        assert batch.partner is not None
        assert batch.partner_K is not None
        assert batch.partner_pose is not None
        pictures = [scene.target.image, scene.depth, batch.partner, scene.rebuilt[-1]]
        cameras = [batch.partner_pose, batch.K, batch.partner_K]
        return cls(*(tensor[:1].detach().clone() for tensor in pictures + cameras))

    @torch.no_grad()
    def figures(self) -> Logs:
        """``stereo_photometric``, the partner's error, and ``stereo_side``: the share of pixels
        that it explains better than it would if it stood on the other side."""
        mirrored = Pose(self.partner_pose).inverse().matrix
        views = Views.of(
            self.partner[None], self.intrinsics, mirrored[None], self.partner_intrinsics[None]
        )
        rebuilt = torch.stack([self.rebuilt, views.rebuild(self.depth)[0]])
        errors = view_errors(rebuilt, Target.of(self.target))
        side = (errors[0] < errors[1]).float().mean()
        return {"stereo_photometric": errors[0].mean(), "stereo_side": side}


def scale_smoothness(disparity: Tensor, image: Tensor, scale: int) -> Tensor:
    """Smoothness of a disparity (B, 1, H / 2**scale, W / 2**scale) at its own size (monodepth2)."""
    inverse, _ = disparity_to_depth(disparity)
    small = image if scale == 0 else F.avg_pool2d(image, 2**scale)
    return edge_aware_smoothness(inverse, small) / 2**scale


def aligned_views(system: System, scene: Scene) -> list[LookupFrame]:
    """Previous and next frame as recorded, their motions refined against the student's depth."""
    now, K = scene.target.image, scene.batch.K
    return [
        system.aligned(now, LookupFrame(image, Pose(pose)), K, scene.depth)
        for image, pose in zip(scene.sources, scene.poses, strict=True)
    ]


def range_figures(multi_frame: nn.Module) -> Logs:
    """Where the multi-frame network looks: its PADS map, or the range of its data set."""
    delta = getattr(multi_frame, "delta", None)
    followed = getattr(multi_frame, "range", None)
    if followed is not None:
        return {
            "multi/range_near": followed.min_depth,
            "multi/range_far": followed.max_depth,
        }
    if delta is None:
        return {}
    low, high = DELTA_RANGE
    return {
        "multi/delta_mean": delta.mean(),
        "multi/delta_max": delta.max(),
        "multi/at_clip": ((delta <= low) | (delta >= high)).float().mean(),
    }
