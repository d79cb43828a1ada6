"""A student goes on with its own multi-frame depth as its teacher (MISM, 4.5), all looked up.

The student of a bundle guides the bundle's multi-frame network, and learns what that makes of its
depth: with its prior and its references, as a vehicle runs the student. The depth that guides is
the mean of a frame's and its mirrored picture's (monodepth2's post-processing), so where nothing
was matched there is still that to learn. The teacher is the system as it was before the stage; in a
further round it is what the round before left (MISM, 4.6). There is no photometric loss: the target
is what matching found already, and its noise is not.

What references say of other cameras, and depth of rendered streets, is rehearsed in every step. The
trunk's early layers stay, whose features the references hold; so do multi-frame and pose network,
and the fusion that reads the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.episodic_prior import KEY_STRIDES, EpisodicPrior, pooled_depth
from training.data.pairs import PairBatch, PairSource
from training.data.triplets import TripletBatch, TripletSource
from training.loop.distributed import to_device
from training.losses.supervised import log_depth_loss, log_gradient_loss
from training.recipes.base import RecipeError
from training.stages.base import Place, stage
from training.stages.episodic import (
    EpisodeConfig,
    KeyedFrame,
    draw_references,
    draw_roles,
    stretch_of,
    view,
)
from training.stages.prior import whole_student
from training.stages.system import LookupFrame, System, freeze_trunk, parameter_groups
from training.stages.validation import Validation

if TYPE_CHECKING:
    from training.recipes.recipe import Recipe
    from training.runs.run import Run

#: Network units (of about 10 m) beyond which the teacher's depth is only far.
FAR = 10.0


@stage
class SelfDistil(EpisodeConfig):
    """The student of the bundle `start` learns from the multi-frame depth that it guides."""

    kind: Literal["self_distil"]
    needs_pairs = True
    goes_on = True
    rounds: int = Field(1, ge=1, description="each round's system teaches the next")
    gradient_weight: float = Field(0.5, ge=0, description="of differences of log depth")
    without_references: float = Field(
        0.25, ge=0, le=1, description="share of steps in which the student looks none up"
    )
    synthetic_batch: int = Field(3, ge=0, description="rendered pairs that are rehearsed in a step")
    synthetic_weight: float = Field(0.2, ge=0)
    episodic_weight: float = Field(
        0.5, ge=0, description="of a recording of another camera and its references, in every step"
    )

    @property
    def turns(self) -> int:
        """One a round."""
        return self.rounds

    def check(self, place: Place) -> None:
        """As every stage; it goes on from a bundle, whose references keep their meaning."""
        super().check(place)
        self._check_start(place)
        if place.recipe.data.mode == "S":
            raise ValueError("the teacher compares frames over time, which data.mode S has not")
        if place.recipe.networks.episodic is None:
            return
        if (self.frozen_to or 0) < max(KEY_STRIDES):
            raise ValueError(
                f"frozen_to: {max(KEY_STRIDES)} or more: references hold the trunk's features"
            )
        if self.episodic_weight:
            self.check_episodes(place)

    def _check_start(self, place: Place) -> None:
        """Raise ValueError where more than a student would change, or another one would learn."""
        recipe = place.recipe
        if recipe.start is None or place.before or place.after:
            raise ValueError("goes on from the bundle that start names, as the only stage")
        if Path(recipe.start).is_file():
            raise ValueError(f"goes on from a bundle, not from the checkpoint {recipe.start}")
        if any(path is not None for _, path in recipe.init) or len(recipe.start_networks) < 3:
            raise ValueError("begins with all networks of start: leave init and start_networks out")
        fixed = ("camera_height", "scale_drive", "multi_frame")
        given = [name for name in fixed if getattr(recipe.output, name) is not None]
        if given:
            raise ValueError(f"keeps all else of the bundle: leave output.{given[0]} out")

    def prepare(self, run: Run, system: System, number: int) -> System:
        """The bundle's networks with all that they look up, and a frozen copy as the teacher."""
        if system.teacher is None:  # the first round
            assert run.recipe.start is not None  # the recipe was checked
            bundle = load_bundle(run.recipe.start)
            refuse_other(run.recipe, system, bundle)
            system = whole_student(run, system, bundle)
            found = bundle.references() if system.student.episodic is not None else None
            system.references = None if found is None else found.to(run.device)
        return replace(system, teacher=system.frozen_copy())

    def build(self, run: Run, system: System) -> SelfDistilStage:
        """The stage on the run's triplets, rendered pairs and recordings."""
        pairs, synthetic = run.pairs(), run.recipe.data.synthetic
        assert pairs is not None and synthetic is not None  # the recipe was checked
        recordings = None
        if self.episodic_weight and system.student.episodic is not None:
            assert run.recipe.start is not None
            trained = load_bundle(run.recipe.start).manifest.camera
            recordings = RawRecordings(pairs, synthetic.frames_per_street, trained)
        return SelfDistilStage(self, system, run.data().training, pairs, recordings, run.validation)


def refuse_other(recipe: Recipe, system: System, bundle: Bundle) -> None:
    """Raise RecipeError where a bundle cannot go on, or is not what the recipe says.

    system: the recipe's networks.
    """
    manifest = bundle.manifest
    if not (bundle.has("multi_frame") and bundle.has("pose")):
        raise RecipeError(f"start: bundle {bundle.path} has no multi-frame network to learn from")
    if manifest.told is not None:
        raise RecipeError(
            f"start: what bundle {bundle.path} was told by adapt was fitted to its student as it "
            "is: start with the bundle before, and adapt what comes out"
        )
    pairs = {
        "size": (recipe.size, manifest.input_size),
        "output.licence": (recipe.output.licence, manifest.licence),
        "networks.multi_frame.align_motion": (system.align, manifest.architecture.align_motion),
        "networks": (
            system.student.architecture,
            {**bundle.student().architecture, "fusion": None},
        ),
        "networks.pose": (system.pose.architecture, bundle.pose().architecture),
        "networks.multi_frame": (
            system.multi_frame.architecture,
            bundle.multi_frame().architecture,
        ),
    }
    for key, (wanted, found) in pairs.items():
        if wanted != found:
            raise RecipeError(
                f"{key}: {wanted} is not what the bundle {bundle.path} has, which stays: {found}"
            )


@dataclass(frozen=True)
class Episode:
    """Frames of one rendered recording.

    asked: those that look up, (Q, 3, H, W), and depth of their cells (Q, 1, h, w). given: those
    that references come from, (R, 3, H, W), and depth (R, 1, h, w). In network units, 0 = unknown.
    count, sigma: most references, and deviation of their log depth. seed: decides which.
    """

    asked: Tensor
    depth: Tensor
    given: Tensor
    given_depth: Tensor
    count: int
    sigma: float
    seed: int


@dataclass
class RawRecordings:
    """Rendered pairs, so many of one recording behind each other, as the `trained` camera sees."""

    pairs: PairSource
    frames: int
    trained: Camera

    def episode(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """Frames of a recording, all mirrored half the time; ``rng`` decides everything."""
        first = self.frames * int(rng.integers(self.pairs.count // self.frames))
        flip = bool(rng.random() < 0.5)
        roles = draw_roles(self.frames, rng, config)

        def views(numbers: list[int]) -> tuple[Tensor, Tensor]:
            rows = [self.pairs.samples[first + number] for number in numbers]
            unit = self.pairs.metres_per_unit
            found = [view(row, unit * stretch_of(row, self.trained), flip) for row in rows]
            images, depths = zip(*found, strict=True)
            return torch.cat(images), torch.cat(depths)

        asked, given = views(roles.asked), views(roles.given)
        return Episode(*asked, *given, roles.count, roles.sigma, int(rng.integers(2**31)))


@dataclass(frozen=True)
class Lesson:
    """What a step learns from; `looks_up`: whether real frames have their references."""

    triplets: TripletBatch
    looks_up: bool
    pairs: PairBatch | None
    episode: Episode | None


@dataclass
class SelfDistilStage:
    """The student, its prior fusion left as it is; the teacher is the system's."""

    config: SelfDistil
    system: System
    triplets: TripletSource
    pairs: PairSource
    recordings: RawRecordings | None
    validation: Validation
    name: str = "self-distil"

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.requires_grad_(False)
        self.system.student.requires_grad_(True)
        if (fusion := self.system.student.fusion) is not None:
            fusion.requires_grad_(False)
        freeze_trunk(self.system, self.config)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for p in self.system.student.parameters() if p.requires_grad]

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trunk at its own rate."""
        return parameter_groups(self.system, self.trained, self.config)

    def draw_batch(self, rng: np.random.Generator) -> Lesson:
        """Triplets, rendered pairs and an episode; a process's share of the first two."""
        config, processes = self.config, self.system.processes
        part = processes.slice(config.batch)
        triplets = self.triplets.batch(config.batch, rng, part=part)
        looks_up = bool(rng.random() >= config.without_references)
        pairs = episode = None
        if size := config.synthetic_batch:
            pairs = self.pairs.batch(size, rng, part=processes.slice(size))
        if self.recordings is not None:
            episode = self.recordings.episode(rng, config)
        return Lesson(triplets, looks_up, pairs, episode)

    def loss(self, drawn: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance in log depth to the teacher's, and what is rehearsed."""
        for name, network in self.networks.items():
            if name != "student":
                network.eval()
        lesson = to_device(drawn, self.system.device)
        batch, config = lesson.triplets, self.config
        assert self.system.teacher is not None
        target = taught_depth(self.system.teacher, batch)
        found = self.system.looked_up(batch.mirrored) if lesson.looks_up else None
        depth = self.system.single_depth(batch.inputs[:, 1], found)
        apart = log_depth_loss(depth, target)
        parts = {"distil": apart, "distil_gradient": log_gradient_loss(depth, target)}
        loss = apart + config.gradient_weight * parts["distil_gradient"]
        if lesson.pairs is not None:
            parts["rendered"] = self._rendered(lesson.pairs)
            loss = loss + config.synthetic_weight * parts["rendered"]
        if lesson.episode is not None:
            parts["episode"] = self._asked(lesson.episode)
            loss = loss + config.episodic_weight * parts["episode"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def _rendered(self, pairs: PairBatch) -> Tensor:
        """Against exact depth, told the camera, without references."""
        output = self.system.predict(pairs.inputs[:, 1], code=pairs.code)
        depth = disparity_to_depth(output.disparity[0])[1]
        gradients = log_gradient_loss(depth, pairs.depth)
        return log_depth_loss(depth, pairs.depth) + self.config.gradient_weight * gradients

    def _asked(self, episode: Episode) -> Tensor:
        """Mean distance in log depth of frames that look up others of their recording."""
        student = self.system.student
        assert student.episodic is not None
        with torch.no_grad():
            keys = EpisodicPrior.key_features(student.trunk(episode.given))
        frames = [
            KeyedFrame(*pair)
            for pair in zip(keys.split(1), episode.given_depth.split(1), strict=True)
        ]
        rng = np.random.default_rng(episode.seed)
        drawn = draw_references(frames, episode.count, rng, episode.sigma)
        found = student.episodic.project([drawn], len(drawn))
        own = pooled_depth(1 / self.system.single_depth(episode.asked, found))
        known = episode.depth > 0
        return (own / episode.depth.clamp(min=1e-3)).log()[known].abs().mean()

    def validate(self) -> dict[str, float]:
        """Figures of the student with its references on held-out frames."""
        return self.validation.figures(self.system)

    def pictures(self) -> dict[str, np.ndarray]:
        """Depth of fixed frames."""
        return self.validation.pictures(self.system)


@torch.no_grad()
def taught_depth(teacher: System, batch: TripletBatch, far: float = FAR) -> Tensor:
    """Multi-frame depth (B, 1, H, W) of a batch's frames between the others, network units.

    Around the geometric mean of single-frame depth of the frames and of their mirrored pictures,
    by the pose network's motion, refined against that. Zero where the teacher alone, without
    references, sees something beyond ``far``, as the sky: no reference is of it, and whatever is
    matched there is wrong. It has to stay far, and that is all.
    """
    now = batch.images[:, 1]
    plain = teacher.single_depth(now, teacher.looked_up(batch.mirrored))
    other = teacher.single_depth(now.flip(-1), teacher.looked_up(~batch.mirrored)).flip(-1)
    single = (plain * other).sqrt()
    places = zip((-1, 1), (0, 2), teacher.neighbour_motions(batch.images), strict=True)
    views = [
        teacher.aligned(now, LookupFrame(batch.images[:, index], Pose(motion)), batch.K, single)
        for place, index, motion in places
        if place in teacher.lookup
    ]
    depth = teacher.multi(now, views, batch.K, single).depth.float()
    return depth.masked_fill(teacher.single_depth(now) > far, 0)
