"""Episodes for a look-up: some frames of a recording ask, other frames of it are the references.

The networks below the look-up do not learn, so what they say of every frame is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.adaptation.references import at_cells
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.episodic_prior import (
    STRIDE,
    EpisodicPrior,
    References,
    pooled_depth,
)
from depth_prior_ros.models.student import Student
from depth_prior_ros.scale.state import focal_ratio
from training.data.pairs import SampleSet
from training.recipes.base import RecipeError

_NEAREST, _FARTHEST = 0.5, 80.0  # metres
# Cells of the noise that references get, each way: as wide as errors of multi-frame depth are.
_NOISE_CELLS = (3, 6)


@dataclass(frozen=True)
class SeenFrame:
    """What the frozen networks say of a frame; half precision but for depth.

    decoded: (1, C, h, w). keys: (1, K, h, w). own: depth (1, 1, h, w), network units. depth: the
    true one, 0 = unknown.
    """

    decoded: Tensor
    keys: Tensor
    own: Tensor
    depth: Tensor


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
    return SeenFrame(maps[3].half(), keys.half(), own, depth)


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
    ) -> EpisodeSource:
        """See all frames of the first ``count`` recordings of ``frames`` pairs each.

        Depth is that of the ``trained`` camera's focal length, as the student's is.
        """
        number = len(samples) // frames
        if number < 2:
            raise RecipeError(f"{len(samples)} pairs are no two recordings of {frames} frames")
        number = min(number, count or number)
        made = []
        for first in range(0, number * frames, frames):
            rows = [samples[first + i] for i in range(frames)]
            unit = [metres_per_unit * _stretch(row, trained) for row in rows]
            plain, mirrored = (
                [
                    see(student, image, depth)
                    for image, depth in (_view(r, u, flip) for r, u in zip(rows, unit, strict=True))
                ]
                for flip in (False, True)
            )
            made.append((plain, mirrored))
        return cls(made)

    def batch(
        self,
        rng: np.random.Generator,
        *,
        recordings: int,
        queries: int,
        references: tuple[int, int],
        frames: tuple[int, int],
        noise_share: float,
        noise: float,
    ) -> EpisodeBatch:
        """Draw episodes.

        Args:
            rng: decides everything.
            recordings: how many.
            queries: frames that ask, of each.
            references: fewest and most, drawn log-uniformly.
            frames: fewest and most that they come from; never one that asks.
            noise_share: share of the episodes whose references have errors.
            noise: their largest deviation, of log depth.
        """
        asked, sets = [], []
        for number in rng.integers(len(self.recordings), size=recordings):
            frames_of = self.recordings[number][int(rng.random() < 0.5)]
            order = rng.permutation(len(frames_of))
            low, high = frames
            used = int(rng.integers(low, min(high, len(order) - queries) + 1))
            count = int(np.exp(rng.uniform(*np.log(references))))
            sigma = noise * rng.random() if rng.random() < noise_share else 0.0
            sets.append(draw_references([frames_of[i] for i in order[-used:]], count, rng, sigma))
            asked += [frames_of[i] for i in order[:queries]]
        return EpisodeBatch(
            torch.cat([frame.decoded for frame in asked]).float(),
            torch.cat([frame.own for frame in asked]),
            torch.cat([frame.depth for frame in asked]),
            sets,
            torch.arange(recordings).repeat_interleave(queries),
        )


def draw_references(
    frames: Sequence[SeenFrame], count: int, rng: np.random.Generator, sigma: float = 0.0
) -> References:
    """Up to ``count`` pixels of some frames, their log depth with smooth errors of ``sigma``."""
    known = torch.cat([(frame.depth > 0).flatten() for frame in frames]).nonzero().flatten()
    drawn = known[torch.from_numpy(rng.permutation(len(known))[:count])]
    cells = frames[0].depth.numel()
    parts = []
    for number, frame in enumerate(frames):
        mine = drawn[drawn // cells == number] % cells
        if len(mine):
            depth = frame.depth * smooth_noise(frame.depth.shape[2:], rng, sigma).exp()
            parts.append(at_cells(frame.keys.float(), depth, mine))
    return References.join(parts)


def smooth_noise(size: Sequence[int], rng: np.random.Generator, sigma: float) -> Tensor:
    """Errors (1, 1, h, w) of that deviation at a few places, and between them."""
    coarse = rng.standard_normal((1, 1, *_NOISE_CELLS)).astype(np.float32) * sigma
    return F.interpolate(torch.from_numpy(coarse), tuple(size), mode="bilinear")


def _stretch(row: dict[str, np.ndarray], trained: Camera) -> float:
    K = row["K"]
    return focal_ratio(float(K[0, 0]), float(K[1, 1]), trained.fx, trained.fy)


def _view(row: dict[str, np.ndarray], unit: float, flip: bool) -> tuple[Tensor, Tensor]:
    """A pair's current frame (1, 3, H, W) and its depth at the centres of cells, network units."""
    image = torch.from_numpy(np.array(row["images"][1])).permute(2, 0, 1)[None].float() / 255
    depth = cell_depth(row["depth"][1]) / unit
    return (image.flip(-1).contiguous(), depth.flip(-1)) if flip else (image, depth)


def cell_depth(depth: np.ndarray) -> Tensor:
    """Depth (H, W) in metres at the middle of every cell, (1, 1, H / 8, W / 8); 0 = unknown."""
    middle = STRIDE // 2
    cells = torch.from_numpy(np.array(depth[middle::STRIDE, middle::STRIDE], np.float32))
    inside = (cells > _NEAREST) & (cells < _FARTHEST)
    return (cells * inside)[None, None]
