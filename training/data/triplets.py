"""Triplets (previous, current, next) of neighbouring frames out of recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry import Pose
from depth_prior_ros.recordings.base import CorruptFrameError
from training.config_base import RecipeError
from training.config_data import Drive
from training.data.augmentation import Colours, mirror_intrinsics, mirror_pose, write_planes
from training.data.drives import (
    DriveFrames,
    find_triplets,
    load_sequence,
    open_drive,
    refuse_broken,
)
from training.data.frames import Picture
from training.data.static import Triplet

__all__ = [
    "DriveFrames",
    "TripletBatch",
    "TripletSource",
    "find_triplets",
    "load_sequence",
    "load_triplets",
]

_Key = tuple[int, int]  # a drive by number, and a position in it
_LARGEST_REDRAW = 50
_UNUSED = 4  # batches of frames that were asked for in advance and never fetched


@dataclass
class TripletBatch:
    """A batch of triplets; image order is previous, current, next.

    images: (B, 3, 3, H, W), as recorded; inputs: the same with changed colours, for the networks.
    K: (B, 3, 3) in pixels. poses: previous_from_current and next_from_current (B, 2, 4, 4) in
    network units, the identity where they were not recorded; known: (B,) whether they were.
    travel: metres from previous to current and from current to next (B, 2), by recorded poses or
    speeds; NaN where neither was recorded.
    """

    images: Tensor
    inputs: Tensor
    K: Tensor
    poses: Tensor
    known: Tensor
    travel: Tensor = field(default_factory=lambda: torch.empty(0, 2))

    def __post_init__(self) -> None:
        if len(self.travel) != len(self.known):
            self.travel = torch.full((len(self.known), 2), torch.nan, device=self.known.device)

    def to(self, device: torch.device) -> TripletBatch:
        """The same batch on another device."""
        return TripletBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class _Sample:
    """What was drawn: a drive, its triplet by number, and how its pictures are changed."""

    drive: int
    triplet: int
    mirrored: bool
    colours: Colours | None


@dataclass
class TripletSource:
    """All triplets of the drives of a recipe. ``skipped`` names every frame left out.

    ``workers`` threads decode the frames that are not kept in memory; they change no draw.
    """

    sequences: list[DriveFrames]
    metres_per_unit: float
    skipped: list[str] = field(default_factory=list)
    workers: int = 0

    def __post_init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[_Key, Future[Picture]] = {}
        self._read: set[tuple[int, int]] = set()
        self._corrupt: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return sum(len(s.triplets) for s in self.sequences)

    def add(self, sequence: DriveFrames, left_out: Sequence[str] = ()) -> None:
        """Add a drive and what was left out of it; one without triplets is named only."""
        self.skipped += left_out
        if sequence.triplets:
            self.sequences.append(sequence)
        else:
            self.skipped.append(
                f"{sequence.name}: no three frames follow each other that may be used"
            )

    def refuse_empty(self) -> None:
        """Raise RecipeError, saying what was left out, where there is no triplet."""
        if not len(self):
            raise RecipeError("nothing to train on: " + "; ".join(self.skipped[-10:]))

    def batch(self, size: int, rng: np.random.Generator, part: slice = slice(None)) -> TripletBatch:
        """Draw ``size`` triplets; drives are drawn by weight, mirrored half the time.

        A triplet with a frame that turns out to be corrupt is replaced by another one of its
        drive; which one depends on the draw alone.

        Args:
            size: number of triplets drawn.
            rng: decides everything; what is drawn from it does not depend on the data's state.
            part: which of them are read and returned (a process's share); default: all.

        Raises:
            RecipeError: too many frames cannot be read.
        """
        coming = _of_next_step(rng) if self.workers else None
        samples = self._draw(size, rng)[part]
        decoding = self._request(samples)
        if coming is not None:
            self._expect(self._draw(size, coming)[part], decoding)
        found = [self._readable(sample, decoding) for sample in samples]
        return self._assemble(samples, found)

    def prefetch(self, size: int, rng: np.random.Generator, part: slice = slice(None)) -> None:
        """Begin to decode what ``batch`` will need with a generator in the same state.

        A call with another state does no harm, but decodes in vain. Without ``workers``, or where
        frames are kept in memory, nothing happens. ``batch`` calls it for the next step by itself
        where it is the first to draw from ``default_rng([..., step])``, as the engine makes them.
        """
        if self.workers:
            self._expect(self._draw(size, rng)[part], {})

    def _draw(self, size: int, rng: np.random.Generator) -> list[_Sample]:
        weights = np.array([s.weight for s in self.sequences])
        chosen = rng.choice(len(self.sequences), size, p=weights / weights.sum())
        triplets = [int(rng.integers(len(self.sequences[n].triplets))) for n in chosen]
        mirrored = rng.random(size) < 0.5
        colours = [Colours.draw(rng) for _ in range(size)]
        columns = zip(chosen.tolist(), triplets, mirrored.tolist(), colours, strict=True)
        return [_Sample(*row) for row in columns]

    def _expect(self, samples: Sequence[_Sample], decoding: Mapping[_Key, Future[Picture]]) -> None:
        """Decode for a batch to come; what nobody fetched for long is given up."""
        self._coming |= self._request(samples, decoding)
        while len(self._coming) > _UNUSED * 3 * len(samples):
            self._coming.pop(next(iter(self._coming)))

    def _request(
        self, samples: Sequence[_Sample], decoding: Mapping[_Key, Future[Picture]] | None = None
    ) -> dict[_Key, Future[Picture]]:
        """Let the workers decode what lies neither in memory nor in a cache.

        Frames that were asked for before, or are among ``decoding``, are not decoded once more.
        """
        if not self.workers:
            return {}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="frames")
        futures: dict[_Key, Future[Picture]] = {}
        for sample in samples:
            sequence = self.sequences[sample.drive]
            for position in sequence.triplets[sample.triplet] if sequence.images.slow else ():
                key = (sample.drive, position)
                if key not in futures:
                    before = self._coming.pop(key, None) or (decoding or {}).get(key)
                    futures[key] = before or self._pool.submit(sequence.picture, position)
        return futures

    def _picture(
        self, drive: int, position: int, decoding: Mapping[_Key, Future[Picture]]
    ) -> Picture:
        self._read.add((drive, position))
        future = decoding.get((drive, position))
        return self.sequences[drive].picture(position) if future is None else future.result()

    def _readable(
        self, sample: _Sample, decoding: Mapping[_Key, Future[Picture]]
    ) -> tuple[Triplet, list[Picture]]:
        """The sample's frames, or those of the first readable triplet drawn in its place."""
        triplets = self.sequences[sample.drive].triplets
        redraw = np.random.default_rng([sample.drive, sample.triplet])
        frames = triplets[sample.triplet]
        for _ in range(_LARGEST_REDRAW):
            try:
                return frames, [self._picture(sample.drive, i, decoding) for i in frames]
            except CorruptFrameError:
                self._note_corrupt(sample.drive, frames)
            frames = triplets[redraw.integers(len(triplets))]
        raise RecipeError(
            f"{self.sequences[sample.drive].name}: {_LARGEST_REDRAW} triplets drawn one after the "
            f"other cannot be read ({'; '.join(self.skipped[-3:])})"
        )

    def _note_corrupt(self, drive: int, frames: Triplet) -> None:
        sequence = self.sequences[drive]
        for position in frames:
            why = sequence.images.corrupt.get(position)
            if why is not None and (drive, position) not in self._corrupt:
                self._corrupt[drive, position] = why
                self.skipped.append(f"{sequence.name}: {why}")
        # Of few frames read so far, a share says nothing yet.
        refuse_broken(len(self._corrupt), max(len(self._read), 200), self.skipped)

    def _assemble(
        self, samples: Sequence[_Sample], found: Sequence[tuple[Triplet, list[Picture]]]
    ) -> TripletBatch:
        height, width = found[0][1][0].shape[:2]
        images = np.empty((len(samples), 3, 3, height, width), np.float32)
        inputs = np.empty_like(images)
        K, poses, known, travel = [], [], [], []
        for i, (sample, (frames, pictures)) in enumerate(zip(samples, found, strict=True)):
            sequence = self.sequences[sample.drive]
            for j, picture in enumerate(pictures):
                if sample.mirrored:
                    picture = picture[:, ::-1]
                write_planes(picture, images[i, j])
                if sample.colours is None:
                    inputs[i, j] = images[i, j]
                else:
                    write_planes(picture, inputs[i, j], sample.colours)
            motions = sequence.motions(frames)
            known.append(motions is not None)
            if motions is None:
                motions = np.tile(np.eye(4), (2, 1, 1))
            motions[:, :3, 3] /= self.metres_per_unit
            K.append(sequence.K)
            poses.append(motions)
            travel.append(sequence.travels(frames))
        which = torch.tensor([sample.mirrored for sample in samples])
        relative = torch.from_numpy(np.stack(poses)).float()
        intrinsics = torch.from_numpy(np.stack(K)).float()
        mirrored_K = mirror_intrinsics(intrinsics, width)
        mirrored_poses = mirror_pose(Pose(relative)).matrix
        return TripletBatch(
            torch.from_numpy(images),
            torch.from_numpy(inputs),
            torch.where(which[:, None, None], mirrored_K, intrinsics),
            torch.where(which[:, None, None, None], mirrored_poses, relative),
            torch.tensor(known),
            torch.tensor(travel, dtype=torch.float32),
        )


def _of_next_step(rng: np.random.Generator) -> np.random.Generator | None:
    """The next step's generator, where ``rng`` is a fresh ``default_rng([..., step])``."""
    key = getattr(getattr(rng.bit_generator, "seed_seq", None), "entropy", None)
    if not isinstance(key, list | tuple) or not key:
        return None
    if np.random.default_rng(key).bit_generator.state != rng.bit_generator.state:
        return None
    return np.random.default_rng([*key[:-1], int(key[-1]) + 1])


def load_triplets(
    root: Path, drives: Sequence[Drive], size: tuple[int, int], metres_per_unit: float
) -> TripletSource:
    """All triplets of ``drives`` below ``root``, in memory (a whole recipe: `load_data`).

    Raises:
        RecipeError: when no triplet is left; says what was left out.
    """
    source = TripletSource([], metres_per_unit)
    for drive in drives:
        source.add(*load_sequence(open_drive(root, drive), drive, size))
    source.refuse_empty()
    return source
