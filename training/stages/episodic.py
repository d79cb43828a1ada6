"""A look-up learns from episodes: some frames of a recording ask, others of it are the references.

Recordings differ in their camera and its mount, so what helps is what the references tell of it.
Nothing else learns: without references the student stays what it was, and what the networks below
the look-up say of every frame is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from depth_prior_ros.adaptation.keyframes import (
    AdaptationError,
    MatchedKeyframe,
    in_metres,
    matched_keyframe,
)
from depth_prior_ros.adaptation.references import at_cells
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.alignment import align_motion
from depth_prior_ros.models.episodic_prior import (
    STRIDE,
    EpisodicPrior,
    References,
    pooled_depth,
)
from depth_prior_ros.models.mism import MultiFrameNet
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.student import Student
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.results import MatchedFrame
from depth_prior_ros.scale.state import focal_ratio
from training.data.pairs import SampleSet
from training.recipes.base import RecipeError
from training.stages.base import Place, TrainingConfig, stage
from training.stages.system import System

if TYPE_CHECKING:
    from training.runs.run import Run

_NEAREST, _FARTHEST = 0.5, 80.0  # metres
# Cells of the noise that references get, each way: as wide as errors of multi-frame depth are.
_NOISE_CELLS = (3, 6)


@dataclass(frozen=True)
class KeyedFrame:
    """A frame that references can come from.

    keys: of its cells, (1, K, h, w). depth: the true one there, (1, 1, h, w), network units,
    0 = unknown.
    """

    keys: Tensor
    depth: Tensor


@dataclass(frozen=True)
class SeenFrame(KeyedFrame):
    """What the frozen networks say of a frame; half precision but for depth.

    decoded: (1, C, h, w). own: depth (1, 1, h, w), network units. matched: with depth of the
    multi-frame network; None: not asked for, or too little was matched. unit: metres a network unit
    of this camera.
    """

    decoded: Tensor
    own: Tensor
    matched: MatchedKeyframe | None = None
    unit: float = 1.0


@torch.no_grad()
def see(student: Student, image: Tensor, depth: Tensor, code: Tensor | None = None) -> SeenFrame:
    """Look at a frame once.

    Args:
        student: with a look-up, in eval mode.
        image: (1, 3, H, W), RGB in [0, 1].
        depth: (1, 1, H / 8, W / 8), network units, 0 = unknown.
        code: (1, 5), what the student is told of the camera; None: the training camera.
    """
    trunk = student.trunk(image)
    keys = EpisodicPrior.key_features(trunk)
    disparities, maps = student.decoder.with_maps(student.told(trunk, code), (0,))
    own = pooled_depth(disparity_to_depth(disparities[0])[0])
    return SeenFrame(keys.half(), depth, maps[3].half(), own)


@dataclass(frozen=True)
class Matcher:
    """Keyframes of rendered pairs with multi-frame depth, as a vehicle has them.

    The networks of one bundle or run, in eval mode, and the camera that they take images for.
    """

    student: Student
    pose: PoseNet
    multi_frame: MultiFrameNet
    trained: Camera

    @torch.no_grad()
    def keyframe(self, row: dict[str, np.ndarray]) -> MatchedKeyframe | None:
        """By the pose network's motion, refined against single-frame depth; metres are exact.

        None where too little is matched, see `adaptation.keyframes`.
        """
        before, now = (picture(image) for image in row["images"])
        stretch = stretch_of(row, self.trained)
        K = torch.from_numpy(np.array(row["K"], np.float32))
        K[0, 0], K[1, 1] = K[0, 0] / stretch, K[1, 1] / stretch
        single = disparity_to_depth(self.student(now).disparity[0])[1]
        guess = self.pose(before, now).inverse()
        motion = align_motion(now, before, single, K[None], guess)
        mine, theirs = self.multi_frame.features(now), self.multi_frame.features(before)
        found = self.multi_frame.match(mine, theirs.matching, motion.matrix, K[None], single)
        step = motion.matrix[0, :3, 3] * torch.tensor([1.0, 1.0, stretch])
        framed = frame_image(row["images"][1], None, self.trained, "crop")
        walked = float(np.linalg.norm(row["previous_from_current"][:3, 3]))
        tensors = (1 / found.depth, 1 / found.matched, found.parallax)
        inverse, alone, parallax = (t[0, 0].numpy() for t in tensors)
        matched = MatchedFrame(
            0, framed, inverse, alone, parallax, stretch, None, walked, float(step.norm())
        )
        keyframe = matched_keyframe(matched, self.multi_frame.parallax, None)
        # Pictures are seen already, and there are many.
        return keyframe and replace(keyframe, pixels=keyframe.pixels[:0])


@dataclass(frozen=True)
class EpisodeBatch:
    """Query frames, some a recording, and the references of each recording.

    decoded: (B, C, h, w). own, depth: (B, 1, h, w). references: one set for each recording;
    which: (B,), whose they are.
    """

    decoded: Tensor
    own: Tensor
    depth: Tensor
    references: list[References]
    which: Tensor


@dataclass
class EpisodeSource:
    """Recordings, each a list of frames, and mirrored the same."""

    recordings: list[tuple[list[SeenFrame], list[SeenFrame]]]

    @classmethod
    def open(
        cls,
        samples: SampleSet,
        frames: int,
        student: Student,
        trained: Camera,
        metres_per_unit: float,
        count: int | None = None,
        matcher: Matcher | None = None,
    ) -> EpisodeSource:
        """See all frames of the first ``count`` recordings of ``frames`` pairs each.

        Depth is that of the ``trained`` camera's focal length, as the student's is. With a
        ``matcher`` multi-frame depth is computed, too.
        """
        number = len(samples) // frames
        if number < 2:
            raise RecipeError(f"{len(samples)} pairs are no two recordings of {frames} frames")
        number = min(number, count or number)
        made = []
        for first in range(0, number * frames, frames):
            rows = [samples[first + i] for i in range(frames)]
            unit = [metres_per_unit * stretch_of(row, trained) for row in rows]
            plain, mirrored = (
                [
                    see(student, image, depth)
                    for image, depth in (view(r, u, flip) for r, u in zip(rows, unit, strict=True))
                ]
                for flip in (False, True)
            )
            if matcher is not None:
                found = [matcher.keyframe(row) for row in rows]
                plain = with_matches(plain, found, unit)
                mirrored = with_matches(mirrored, [f and mirror(f) for f in found], unit)
            made.append((plain, mirrored))
        return cls(made)

    def batch(self, rng: np.random.Generator, config: Episodic) -> EpisodeBatch:
        """Draw episodes; ``rng`` decides everything. No frame that asks gives references."""
        recordings, queries = config.batch // config.queries, config.queries
        asked, sets = [], []
        for number in rng.integers(len(self.recordings), size=recordings):
            frames_of = self.recordings[number][int(rng.random() < 0.5)]
            roles = draw_roles(len(frames_of), rng, config)
            others = [frames_of[i] for i in roles.given]
            if config.matched_share and rng.random() < config.matched_share:
                others = matched_frames(others, config.odometry, rng) or others
            sets.append(draw_references(others, roles.count, rng, roles.sigma))
            asked += [frames_of[i] for i in roles.asked]
        return EpisodeBatch(
            torch.cat([frame.decoded for frame in asked]).float(),
            torch.cat([frame.own for frame in asked]),
            torch.cat([frame.depth for frame in asked]),
            sets,
            torch.arange(recordings).repeat_interleave(queries),
        )


@dataclass(frozen=True)
class Roles:
    """What the frames of a recording do in an episode.

    asked, given: numbers of those that ask, and of those that references come from. count: most of
    them. sigma: deviation of their log depth.
    """

    asked: list[int]
    given: list[int]
    count: int
    sigma: float


def draw_roles(frames: int, rng: np.random.Generator, config: EpisodeConfig) -> Roles:
    """An episode of a recording of so many frames. No frame that asks gives references."""
    order = rng.permutation(frames).tolist()
    low, high = config.frames
    used = int(rng.integers(low, min(high, frames - config.queries) + 1))
    count = int(np.exp(rng.uniform(*np.log(config.references))))
    wrong = rng.random() < config.noise_share
    sigma = config.noise * rng.random() if wrong else 0.0
    return Roles(order[: config.queries], order[-used:], count, sigma)


def matched_frames(
    frames: Sequence[SeenFrame], odometry: float, rng: np.random.Generator
) -> list[SeenFrame]:
    """The frames with multi-frame depth; with none where `adapt` would not take them.

    ``odometry``: deviation of what odometry says of each step, of its length. Empty where none
    would be taken: nothing was matched, or their metres do not agree.
    """
    matched = []
    for number, frame in enumerate(frames):
        error = 1 + odometry * rng.standard_normal()
        if frame.matched is not None and frame.matched.metres is not None:
            metres = frame.matched.metres * error
            matched.append(replace(frame.matched, stamp_ns=number, metres=metres))
    try:
        taken = {keyframe.stamp_ns: keyframe.depth for keyframe in in_metres(matched)}
    except AdaptationError:
        return []
    nothing = np.zeros(frames[0].depth.shape[2:], np.float32)
    depths = [torch.from_numpy(taken.get(n, nothing))[None, None] for n in range(len(frames))]
    if not any(bool(depth.any()) for depth in depths):
        return []
    return [replace(f, depth=depth / f.unit) for f, depth in zip(frames, depths, strict=True)]


def with_matches(
    frames: Sequence[SeenFrame], matched: Sequence[MatchedKeyframe | None], unit: Sequence[float]
) -> list[SeenFrame]:
    """Frames, and what was matched of each; metres a unit."""
    rows = zip(frames, matched, unit, strict=True)
    return [replace(frame, matched=found, unit=u) for frame, found, u in rows]


def mirror(frame: MatchedKeyframe) -> MatchedKeyframe:
    """Its depth from right to left."""
    return replace(frame, depth=frame.depth[:, ::-1].copy())


def draw_references(
    frames: Sequence[KeyedFrame], count: int, rng: np.random.Generator, sigma: float = 0.0
) -> References:
    """Up to ``count`` pixels of some frames, their log depth with smooth errors of ``sigma``."""
    known = torch.cat([(frame.depth > 0).flatten() for frame in frames]).nonzero().flatten()
    drawn = known[torch.from_numpy(rng.permutation(len(known))[:count])]
    cells = frames[0].depth.numel()
    parts = []
    for number, frame in enumerate(frames):
        mine = drawn[drawn // cells == number] % cells
        if len(mine):
            noise = smooth_noise(frame.depth.shape[2:], rng, sigma).to(frame.depth)
            depth = frame.depth * noise.exp()
            parts.append(at_cells(frame.keys.float(), depth, mine))
    return References.join(parts)


def smooth_noise(size: Sequence[int], rng: np.random.Generator, sigma: float) -> Tensor:
    """Errors (1, 1, h, w) of that deviation at a few places, and between them."""
    coarse = rng.standard_normal((1, 1, *_NOISE_CELLS)).astype(np.float32) * sigma
    return F.interpolate(torch.from_numpy(coarse), tuple(size), mode="bilinear")


def stretch_of(row: dict[str, np.ndarray], trained: Camera) -> float:
    """True depth of a pair over what the `trained` camera would see."""
    K = row["K"]
    return focal_ratio(float(K[0, 0]), float(K[1, 1]), trained.fx, trained.fy)


def view(row: dict[str, np.ndarray], unit: float, flip: bool) -> tuple[Tensor, Tensor]:
    """A pair's current frame (1, 3, H, W) and its depth at the centres of cells, network units."""
    image = picture(row["images"][1])
    depth = cell_depth(row["depth"][1]) / unit
    return (image.flip(-1).contiguous(), depth.flip(-1)) if flip else (image, depth)


def picture(image: np.ndarray) -> Tensor:
    """An image (H, W, 3) uint8 as networks are shown it, (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def cell_depth(depth: np.ndarray) -> Tensor:
    """Depth (H, W) in metres at the middle of every cell, (1, 1, H / 8, W / 8); 0 = unknown."""
    middle = STRIDE // 2
    cells = torch.from_numpy(np.array(depth[middle::STRIDE, middle::STRIDE], np.float32))
    inside = (cells > _NEAREST) & (cells < _FARTHEST)
    return (cells * inside)[None, None]


class EpisodeConfig(TrainingConfig):
    """How episodes are drawn."""

    queries: int = Field(
        3, ge=1, description="frames of a recording that ask; divides batch of `episodic`"
    )
    references: tuple[int, int] = Field((100, 800), description="fewest and most, log-uniform")
    frames: tuple[int, int] = Field((1, 5), description="fewest and most that they come from")
    noise_share: float = Field(0.6, ge=0, le=1, description="of episodes with wrong depth")
    noise: float = Field(0.12, ge=0, description="largest deviation of log depth there, smooth")

    @model_validator(mode="after")
    def _ordered(self) -> EpisodeConfig:
        for name in ("references", "frames"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: from 1 up, the fewer first, got {[low, high]}")
        return self

    def check_episodes(self, place: Place) -> None:
        """Raise ValueError where there is no look-up, or no recordings of enough frames."""
        episodic, synthetic = place.recipe.networks.episodic, place.recipe.data.synthetic
        if episodic is None:
            raise ValueError("needs networks.episodic")
        if self.references[1] > episodic.capacity:
            raise ValueError(f"references: networks.episodic has room for {episodic.capacity}")
        if synthetic is None or synthetic.frames_per_street < self.queries + self.frames[0]:
            raise ValueError(
                f"needs data.synthetic.frames_per_street of {self.queries + self.frames[0]} or more"
            )


@stage
class Episodic(EpisodeConfig):
    """The student's look-up, on rendered recordings; everything else stays as it is."""

    kind: Literal["episodic"]
    needs_pairs = True
    needs_triplets = False
    matched_share: float = Field(
        0.0, ge=0, le=1, description="of episodes whose references are multi-frame depth"
    )
    odometry: float = Field(
        0.05, ge=0, lt=0.3, description="deviation of the length of a step there, of itself"
    )
    recordings: int | None = Field(None, ge=2, description="the first so many only; default: all")
    validation_recordings: int = Field(
        8, ge=0, description="the last of them are kept for validation"
    )

    @model_validator(mode="after")
    def _divides(self) -> Episodic:
        if self.batch % self.queries:
            raise ValueError(f"batch {self.batch} is no multiple of queries {self.queries}")
        return self

    def check(self, place: Place) -> None:
        """As every stage; there is a look-up, and there are recordings of enough frames."""
        super().check(place)
        self.check_episodes(place)
        if self.matched_share and place.recipe.networks.multi_frame.kind != "pads":
            raise ValueError("matched_share needs networks.multi_frame.kind pads")

    def build(self, run: Run, system: System) -> EpisodicStage:
        """The stage on the recipe's recordings, seen once by the frozen networks."""
        synthetic = run.recipe.data.synthetic
        assert synthetic is not None  # the recipe was checked
        frames = synthetic.frames_per_street
        wanted = None if self.recordings is None else self.recordings * frames
        pairs = run.pairs(wanted)
        assert pairs is not None
        student, trained = system.student.eval(), run.training_camera()
        matcher = None
        if self.matched_share:
            matcher = Matcher(student, system.pose.eval(), system.multi_frame.eval(), trained)
        source = EpisodeSource.open(
            pairs.samples,
            frames,
            student,
            trained,
            run.recipe.metres_per_unit,
            min(pairs.count, wanted or pairs.count) // frames,
            matcher,
        )
        training = source.recordings[: len(source.recordings) - self.validation_recordings]
        validation = source.recordings[len(training) :]
        return EpisodicStage(self, system, EpisodeSource(training), EpisodeSource(validation))


@dataclass
class EpisodicStage:
    """The look-up of a student on episodes."""

    config: Episodic
    system: System
    source: EpisodeSource
    validation: EpisodeSource
    name: str = "episodic"

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.requires_grad_(False)
        self.look_up.requires_grad_(True)

    @property
    def look_up(self) -> EpisodicPrior:
        """What learns."""
        found = self.system.student.episodic
        assert found is not None  # the recipe was checked
        return found

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the system."""
        return self.system.networks

    @property
    def trained(self) -> list[nn.Parameter]:
        """The look-up's parameters."""
        return list(self.look_up.parameters())

    def draw_batch(self, rng: np.random.Generator) -> EpisodeBatch:
        """This process's episodes of a batch."""
        return self.source.batch(rng, self.config)

    def loss(self, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean distance in log depth."""
        slots = max(len(found) for found in batch.references)
        found = self.look_up.project(batch.references, slots)
        found = type(found)(*(t[batch.which] for t in found))
        added = self.look_up(batch.decoded, batch.own, found)
        known = batch.depth > 0
        without = (batch.own / batch.depth.clamp(min=1e-3)).log()[known]
        error = (without + added[known]).abs().mean()
        return error, {"episodic/error": error.detach(), "episodic/none": without.abs().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AbsRel in metres of recordings that are kept out: without and with references."""
        rng = np.random.default_rng(0)
        none: list[float] = []
        own: list[float] = []
        for frames, _ in self.validation.recordings:
            half = len(frames) // 2
            count = self.config.references[1]
            found = self.look_up.project([draw_references(frames[half:], count, rng)], count)
            for frame in frames[:half]:
                added = self.look_up(frame.decoded.float(), frame.own, found)
                known = frame.depth > 0
                for errors, depth in ((none, frame.own), (own, frame.own * added.exp())):
                    errors.append(float((depth / frame.depth - 1)[known].abs().mean()))
        if not none:
            return {}
        return {"abs_rel_none": float(np.mean(none)), "abs_rel_references": float(np.mean(own))}

    def pictures(self) -> dict[str, np.ndarray]:
        """None: depth without references does not change."""
        return {}
