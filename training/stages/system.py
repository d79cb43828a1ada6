"""The three networks that are trained together, and what every stage computes with them.

Which pictures explain a frame are the modes M, S and MS of monodepth2 (section 4): those before and
after, its stereo partner, or all three. The stereo partner is one more source, with a motion that
is known, in metres; the minimum over the sources and the auto-mask take it as the others, as
monodepth2's code does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from depth_prior_ros.backends.devices import choose_precision
from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.alignment import align_motion
from depth_prior_ros.models.episodic_prior import EpisodicConfig, ProjectedReferences, References
from depth_prior_ros.models.matching import Features, Lookup, PadsMap
from depth_prior_ros.models.mism import MultiFrameOutput, build_multi_frame
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import Student, StudentOutput
from training.data.pairs import PairBatch
from training.data.triplets import TripletBatch
from training.loop.distributed import SINGLE_PROCESS, ProcessGroup, share_batch_statistics
from training.losses.supervised import log_depth_loss, log_gradient_loss, pose_loss
from training.losses.views import Views
from training.recipes.base import RecipeError
from training.recipes.data import Mode

if TYPE_CHECKING:
    from training.recipes.recipe import MultiFrame, Recipe
    from training.stages.base import TrainingConfig
    from training.stages.self_supervised import SelfSupervised
    from training.stages.supervised import Supervised


@dataclass
class LookupFrame:
    """Another frame as the multi-frame network sees it.

    image: (B, 3, H, W). motion: view_from_current (B, 4, 4), network units. valid: (B,) boolean,
    False where the frame is missing; None: nowhere.
    """

    image: Tensor
    motion: Pose
    valid: Tensor | None = None


@dataclass
class System:
    """Student (S), pose network and multi-frame network (M), and how they are run.

    ``align``: motions for M are refined against S's depth (`models.alignment`). ``lookup``: the
    frames that M compares with, -1 previous and 1 next. ``teacher``: the frozen system that a
    distilled student learns from. ``matches``: M is more than random numbers. ``references``: what
    the student looks up of its own camera.
    """

    student: Student
    pose: PoseNet
    multi_frame: Any
    device: torch.device
    precision: str
    prior: Prior | None = None
    align: bool = True
    lookup: tuple[int, ...] = (-1,)
    processes: ProcessGroup = field(default=SINGLE_PROCESS, repr=False)
    teacher: System | None = field(default=None, repr=False)
    matches: bool = True
    references: References | None = None

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        device: torch.device,
        fusion: FusionConfig | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> System:
        """Randomly initialised networks of a recipe; the seed decides them."""
        torch.manual_seed(recipe.seed)
        nets = recipe.networks
        far = math.log(nets.far_disparity / (1 - nets.far_disparity))
        look_up = None if nets.episodic is None else EpisodicConfig(**nets.episodic.model_dump())
        student = Student(nets.trunk, nets.decoder, fusion, far, nets.camera_code, look_up)
        system = cls(
            student,
            PoseNet(nets.pose),
            build_multi_frame(multi_frame_architecture(nets.multi_frame, recipe.size)),
            device,
            choose_precision(recipe.precision, device),
            align=nets.multi_frame.align_motion,
            lookup=nets.multi_frame.lookup,
            processes=processes,
            matches=recipe.trains_multi_frame,
        )
        for network in system.networks.values():
            network.to(device)
            share_batch_statistics(network, processes)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return system

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By the names that checkpoints and bundles use."""
        return {"student": self.student, "pose": self.pose, "multi_frame": self.multi_frame}

    def frozen_copy(self) -> System:
        """The system as it is now, in evaluation mode, that nothing trains any more."""
        twin = replace(
            self,
            teacher=None,
            student=copy.deepcopy(self.student),
            pose=copy.deepcopy(self.pose),
            multi_frame=copy.deepcopy(self.multi_frame),
        )
        for network in twin.networks.values():
            network.requires_grad_(False).eval()
        return twin

    def reset_map(self) -> None:
        """Let the PADS map begin again; nothing where the multi-frame network has none."""
        if isinstance(self.multi_frame, PadsMap):
            self.multi_frame.delta.fill_(self.multi_frame.delta_init)
            self.multi_frame.window_max.zero_()
            self.multi_frame.window_seen.zero_()

    def autocast(self) -> torch.autocast:
        """bf16 for the networks when the recipe asks for it; losses stay in f32."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def single(self, image: Tensor, scales: tuple[int, ...] = (0,)) -> dict[int, Tensor]:
        """Disparity in [0, 1] of images (B, 3, H, W) at the given scales, f32."""
        return self.predict(image, scales).disparity

    def predict(
        self,
        image: Tensor,
        scales: tuple[int, ...] = (0,),
        code: Tensor | None = None,
        references: ProjectedReferences | None = None,
    ) -> StudentOutput:
        """All that the student says of images (B, 3, H, W), with the prior if there is one.

        code: (B, 5), what it is told of the cameras; None, and where it takes none: KITTI's.
        references: what it looks up, see `looked_up`; None: nothing.
        """
        image = image.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            told = code if self.student.camera_code is not None else None
            output = self.student(
                image, self.prior, scales=scales, code=told, references=references
            )
        disparity = {scale: d.float() for scale, d in output.disparity.items()}
        return replace(output, disparity=disparity)

    def looked_up(self, mirrored: Tensor) -> ProjectedReferences | None:
        """The system's references for images that are mirrored, or not (B,); None without any."""
        if self.references is None or self.student.episodic is None:
            return None
        both = [self.references, self.references.mirrored()]
        found = self.student.episodic.project(both, len(self.references))
        return ProjectedReferences(*(tensor[mirrored.long()] for tensor in found))

    def single_depth(self, image: Tensor, references: ProjectedReferences | None = None) -> Tensor:
        """Depth (B, 1, H, W) of images (B, 3, H, W), network units; see `predict`."""
        return disparity_to_depth(self.predict(image, references=references).disparity[0])[1]

    def motion(self, first: Tensor, second: Tensor) -> Pose:
        """``second_from_first`` (B, 4, 4) in network units, f32."""
        with self.autocast():
            pose = self.pose(first, second)
        return Pose(pose.matrix.float())

    def neighbour_motions(self, images: Tensor) -> Tensor:
        """Motions to previous and next from current (2, B, 4, 4) of triplets (B, 3, 3, H, W)."""
        before, now, after = images.unbind(1)
        later_from_earlier = self.motion(torch.cat([before, now]), torch.cat([now, after]))
        now_from_before, after_from_now = later_from_earlier.matrix.chunk(2)
        return torch.stack([Pose(now_from_before).inverse().matrix, after_from_now])

    def aligned(
        self, current: Tensor, view: LookupFrame, K: Tensor, single_depth: Tensor
    ) -> LookupFrame:
        """The view with its motion refined against the single-frame depth; no gradient."""
        if not self.align:
            return replace(view, motion=view.motion.detach())
        motion = align_motion(current, view.image, single_depth.detach(), K, view.motion)
        return replace(view, motion=motion)

    def multi(
        self,
        current: Tensor,
        views: Sequence[LookupFrame],
        K: Tensor,
        single_depth: Tensor,
        scales: tuple[int, ...] = (0,),
    ) -> Any:
        """Multi-frame depth of ``current`` (B, 3, H, W), a MultiFrameDepth.

        The hypotheses lie around ``single_depth``; motions are used as they are given. A cost
        volume network gives its depth at all ``scales``.
        """
        more = {} if isinstance(self.multi_frame, PadsMap) else {"scales": scales}
        with self.autocast():
            mine, *others = self._features([current, *(view.image for view in views)])
            lookups = [
                Lookup(features.matching, view.motion, view.valid)
                for features, view in zip(others, views, strict=True)
            ]
            return self.multi_frame.match_many(mine, lookups, K, single_depth, **more)

    def observe(self, multi: Any, single_depth: Tensor) -> None:
        """After a training step: M's range follows what matching found, where it is trusted."""
        if self.multi_frame.training:
            trusted = multi.trusted if isinstance(multi, MultiFrameOutput) else multi.depth
            self.multi_frame.observe(trusted.detach(), single_depth, self.processes.gather)

    def still(self, share: float, count: int) -> Tensor:
        """Which of ``count`` samples have a standing camera (B,), alike whatever the number of
        processes; nothing is drawn for a share of zero."""
        if not share:
            return torch.zeros(count, dtype=torch.bool, device=self.device)
        drawn = self.processes.draw(count, lambda k: torch.rand(k)) < share
        return drawn.to(self.device)

    def _features(self, images: Sequence[Tensor]) -> list[Features]:
        """M's features of several frames; of lookup frames without gradient where M cuts it."""
        if self.multi_frame.lookup_gradient:  # one batch, one set of batch statistics
            maps = [
                m.chunk(len(images)) for m in self.multi_frame.features(torch.cat(list(images)))
            ]
            return [Features(*pair) for pair in zip(*maps, strict=True)]
        mine = self.multi_frame.features(images[0])
        with torch.no_grad():
            return [mine, *(self.multi_frame.features(image) for image in images[1:])]


def standing(view: LookupFrame, current: Tensor, still: Tensor) -> LookupFrame:
    """The view, but where ``still`` (B,) the camera stands: the same picture, no motion.

    current: (B, 3, H, W).
    """
    return replace(
        view,
        image=torch.where(still[:, None, None, None], current, view.image),
        motion=Pose(
            torch.where(
                still[:, None, None],
                torch.eye(4, device=current.device),
                view.motion.matrix.float(),
            )
        ),
    )


def held_loss(multi: Any, single_depth: Tensor) -> Tensor:
    """Mean distance in log depth of what M matched to the single-frame depth (B, 1, H, W) that
    guides it, as far as there is no parallax; zero for a network that does not blend by it."""
    if not isinstance(multi, MultiFrameOutput) or multi.weight is None:
        return single_depth.new_zeros(())
    apart = (multi.matched / single_depth.detach()).log().abs()
    return ((1 - multi.weight) * apart).mean()


def share(system: System, samples: int | None) -> int | None:
    """How many of a batch's first samples belong to this process; None: all."""
    return None if samples is None else system.processes.part(samples)


def multi_frame_architecture(settings: MultiFrame, size: tuple[int, int]) -> dict[str, Any]:
    """What `build_multi_frame` builds from, for an input of ``size`` (W, H)."""
    architecture: dict[str, Any] = {
        "kind": settings.kind,
        "size": [size[1], size[0]],
        "hypotheses": settings.hypotheses,
    }
    if settings.kind == "pads":
        keys = {"range_mode", "delta_init", "delta_mode", "parallax"}
        architecture |= settings.model_dump(include=keys)
    return architecture


def freeze_trunk(system: System, config: TrainingConfig) -> None:
    """Keep the early layers of the student's trunk where the configuration says so.

    Raises:
        RecipeError: a trunk that cannot be frozen in part, or no features at that stride.
    """
    if config.frozen_to is None:
        return
    trunk = system.student.trunk
    try:
        for layer in trunk.layers_to(config.frozen_to):
            layer.requires_grad_(False)
    except ValueError as error:
        raise RecipeError(f"frozen_to: {type(trunk).__name__}: {error}") from error


def parameter_groups(
    system: System, trained: list[nn.Parameter], config: TrainingConfig
) -> list[dict[str, Any]]:
    """What learns, the student's trunk at a rate of its own."""
    trunk = {id(p) for p in system.student.trunk.parameters()}
    own = [p for p in trained if id(p) in trunk]
    rest = [p for p in trained if id(p) not in trunk]
    if not own or config.trunk_rate == 1:
        return [{"params": trained}]
    slower = {"params": own, "factor": config.trunk_rate}
    return [{"params": rest}, slower] if rest else [slower]


def supervised_loss(
    system: System,
    batch: PairBatch,
    config: Supervised | SelfSupervised,
    multi_batch: int | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All three networks against exact depth and motion.

    Args:
        system: the networks.
        batch: synthetic pairs.
        config: gradient_weight, of the loss on differences of log depth; pose_weight, of the
            motion's; held_weight, of `held_loss`; predicted_pose and static_camera, shares of M's
            samples that are matched with the predicted motion, and with themselves.
        multi_batch: samples that M sees; None: all, 0: none.
    """
    previous, current = batch.inputs.unbind(1)
    depth = disparity_to_depth(system.predict(current, code=batch.code).disparity[0])[1]
    pose = system.motion(previous, current).inverse()
    truth = batch.previous_from_current
    parts = {
        "single": log_depth_loss(depth, batch.depth),
        "single_gradient": log_gradient_loss(depth, batch.depth),
        "pose": pose_loss(pose, truth),
    }
    loss = parts["single"] + config.pose_weight * parts["pose"]
    loss = loss + config.gradient_weight * parts["single_gradient"]
    if multi_batch != 0:
        n = slice(multi_batch)
        single = depth[n].detach()
        view = LookupFrame(previous[n], Pose(truth.matrix[n]))
        if config.predicted_pose:
            guess = system.aligned(
                current[n], LookupFrame(previous[n], Pose(pose.matrix[n])), batch.K[n], single
            )
            count = len(single)
            chosen = system.processes.draw(count, lambda k: torch.rand(k)) < config.predicted_pose
            chosen = chosen.to(single.device)[:, None, None]
            view = replace(
                view, motion=Pose(torch.where(chosen, guess.motion.matrix, view.motion.matrix))
            )
        if config.static_camera:
            view = standing(view, current[n], system.still(config.static_camera, len(single)))
        multi = system.multi(current[n], [view], batch.K[n], single)
        system.observe(multi, single)
        parts["multi"] = log_depth_loss(multi.depth, batch.depth[n])
        parts["multi_gradient"] = log_gradient_loss(multi.depth, batch.depth[n])
        loss = loss + parts["multi"] + config.gradient_weight * parts["multi_gradient"]
        if config.held_weight:
            parts["multi_held"] = held_loss(multi, single)
            loss = loss + config.held_weight * parts["multi_held"]
    return loss, {f"synthetic/{name}": value.detach() for name, value in parts.items()}


def motion_sources(images: Tensor, mode: Mode) -> Tensor:
    """Previous and next frame (2, B, 3, H, W) of triplets (B, 3, 3, H, W); none in mode S."""
    before, _, after = images.unbind(1)
    return torch.stack([before, after])[: 0 if mode == "S" else 2]


def views_of(batch: TripletBatch, K: Tensor, sources: Tensor, poses: Tensor) -> Views:
    """The sources of a batch, and the stereo partner behind them where it has one.

    Args:
        batch: of the target frames.
        K: intrinsics of targets and sources in pixels (B, 3, 3).
        sources: previous and next frame (2, B, 3, H, W); none in mode S.
        poses: source_from_target (2, B, 4, 4), network units.
    """
    if batch.partner is None:
        return Views.of(sources, K, poses)
    assert batch.partner_pose is not None
    assert batch.partner_K is not None
    images = torch.cat([sources, batch.partner[None]])
    motions = torch.cat([poses, batch.partner_pose[None].to(poses)])
    through = [K[None].expand(len(sources), -1, -1, -1), batch.partner_K[None]]
    return Views.of(images, K, motions, torch.cat(through))
