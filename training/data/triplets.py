"""Triplets (previous, current, next) of neighbouring frames of recordings, and their batches."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.augmentation import Colours, mirror_intrinsics, mirror_pose, write_planes
from training.data.drives import (
    DriveFrames,
    Views,
    add_teacher_images,
    find_triplets,
    load_sequence,
    open_drive,
    open_partner,
    refuse_broken,
)
from training.data.frames import FrameStores, Picture
from training.data.static import Triplet
from training.loop.distributed import to_device
from training.recipes.base import RecipeError
from training.recipes.data import Drive, Mode


def _unknown() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass
class StepBatch:
    """What a step on real frames is computed from.

    triplets: recorded frames. pairs: rendered ones for rehearsal, a `PairBatch`. prior: the
    reference pixels that the student looks up in this step, where another part is drawn each time.
    """

    triplets: TripletBatch
    pairs: Any = None
    prior: Any = None


@dataclass
class TripletBatch:
    """A batch of triplets; image order is previous, current, next.

    images: (B, 3, 3, H, W), as recorded; inputs: the same with changed colours, for the networks.
    K: (B, 3, 3) in pixels. poses: previous_from_current and next_from_current (B, 2, 4, 4) in
    network units, the identity where they were not recorded; known: (B,) whether they were.
    travel: metres from previous to current and from current to next (B, 2), by recorded poses or
    speeds; NaN where neither was recorded.

    drive and triplet: (B,) int64, which triplet of which drive of its source is shown (the one that
    replaced a corrupt one); -1 where unknown. mirrored: (B,) bool, whether images, K and poses are
    those of the mirrored scene. teacher_images: (B, 3, 3, H2, W2), the same frames at a second,
    larger size, as recorded (mirrored like ``images``), with teacher_K (B, 3, 3) in its pixels;
    None where the source has one size only. partner: (B, 3, H, W), the stereo partner of the
    current frame as recorded, with partner_K (B, 3, 3) in its pixels and partner_pose (B, 4, 4),
    partner_from_current in network units; None in mode M. teacher_depth: (B, 1, H2, W2) and
    teacher_motions (B, 2, 4, 4), like ``poses``: what the prior's teacher says of the triplets;
    None where nobody asked.
    """

    images: Tensor
    inputs: Tensor
    K: Tensor
    poses: Tensor
    known: Tensor
    travel: Tensor = field(default_factory=lambda: torch.empty(0, 2))
    drive: Tensor = field(default_factory=_unknown)
    triplet: Tensor = field(default_factory=_unknown)
    mirrored: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    teacher_images: Tensor | None = None
    teacher_K: Tensor | None = None  # noqa: N815  as K
    teacher_depth: Tensor | None = None
    teacher_motions: Tensor | None = None
    partner: Tensor | None = None
    partner_K: Tensor | None = None  # noqa: N815  as K
    partner_pose: Tensor | None = None

    def __post_init__(self) -> None:
        count, device = len(self.known), self.known.device
        if len(self.travel) != count:
            self.travel = torch.full((count, 2), torch.nan, device=device)
        if len(self.drive) != count:
            self.drive = torch.full((count,), -1, device=device)
        if len(self.triplet) != count:
            self.triplet = torch.full((count,), -1, device=device)
        if len(self.mirrored) != count:
            self.mirrored = torch.zeros(count, dtype=torch.bool, device=device)

    def to(self, device: torch.device) -> TripletBatch:
        """The same batch on another device."""
        return to_device(self, device)


__all__ = [
    "DriveFrames",
    "TripletBatch",
    "TripletSource",
    "find_triplets",
    "load_sequence",
    "load_triplets",
]

_Key = tuple[int, int]  # a drive by number, and a position in it
# a triplet by number, its pictures, and the stereo partner of the middle one
_Found = tuple[int, list[Views], Picture | None]
_LARGEST_REDRAW = 50


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

    ``workers`` threads decode the frames that are not kept in memory; they change no draw. Where
    every drive has pictures of a second size, a batch has them too.
    """

    sequences: list[DriveFrames]
    metres_per_unit: float
    skipped: list[str] = field(default_factory=list)
    workers: int = 0

    def __post_init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # a batch is drawn while another is looked at
        self._read: set[tuple[int, int]] = set()
        self._corrupt: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return sum(len(s.triplets) for s in self.sequences)

    @property
    def index(self) -> list[tuple[int, int]]:
        """Every triplet in order: number of the drive, number of the triplet in it."""
        return [(d, t) for d, s in enumerate(self.sequences) for t in range(len(s.triplets))]

    @property
    def has_teacher_images(self) -> bool:
        """Whether every drive has pictures of a second size."""
        return bool(self.sequences) and all(s.teacher_images is not None for s in self.sequences)

    def without_teacher_images(self) -> TripletSource:
        """The same triplets and the same draws, without decoding pictures of the second size."""
        sequences = [replace(s, teacher_images=None, teacher_K=None) for s in self.sequences]
        return TripletSource(sequences, self.metres_per_unit, self.skipped, self.workers)

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
        samples = self._draw(size, rng)[part]
        with self._lock:
            decoding = self._request(samples)
            found = [self._readable(sample, decoding) for sample in samples]
        return self._assemble(samples, found)

    def triplet(self, drive: int, triplet: int) -> TripletBatch:
        """One triplet by its number, as recorded: not mirrored, colours unchanged.

        Raises:
            CorruptFrameError: a frame of it cannot be read. It is not replaced, but named in
                ``skipped``; no batch ever shows it.
            RecipeError: too many frames cannot be read.
        """
        sample = _Sample(drive, triplet, mirrored=False, colours=None)
        frames = self.sequences[drive].triplets[triplet]
        with self._lock:
            try:
                pictures = [self._views(drive, i, {}) for i in frames]
                found = triplet, pictures, self._partner_picture(drive, frames)
            except CorruptFrameError:
                self._note_corrupt(drive, frames)
                raise
        return self._assemble([sample], [found])

    def _draw(self, size: int, rng: np.random.Generator) -> list[_Sample]:
        weights = np.array([s.weight for s in self.sequences])
        chosen = rng.choice(len(self.sequences), size, p=weights / weights.sum())
        triplets = [int(rng.integers(len(self.sequences[n].triplets))) for n in chosen]
        mirrored = rng.random(size) < 0.5
        colours = [Colours.draw(rng) for _ in range(size)]
        columns = zip(chosen.tolist(), triplets, mirrored.tolist(), colours, strict=True)
        return [_Sample(*row) for row in columns]

    def _request(self, samples: Sequence[_Sample]) -> dict[_Key, Future[Views]]:
        """Let the workers decode what lies neither in memory nor in a cache."""
        if not self.workers:
            return {}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="frames")
        futures: dict[_Key, Future[Views]] = {}
        for sample in samples:
            sequence = self.sequences[sample.drive]
            for position in sequence.triplets[sample.triplet] if sequence.slow else ():
                key = (sample.drive, position)
                if key not in futures:
                    futures[key] = self._pool.submit(sequence.views, position)
        return futures

    def _views(self, drive: int, position: int, decoding: Mapping[_Key, Future[Views]]) -> Views:
        self._read.add((drive, position))
        future = decoding.get((drive, position))
        return self.sequences[drive].views(position) if future is None else future.result()

    def _readable(self, sample: _Sample, decoding: Mapping[_Key, Future[Views]]) -> _Found:
        """The sample's frames, or those of the first readable triplet drawn in its place."""
        triplets = self.sequences[sample.drive].triplets
        redraw = np.random.default_rng([sample.drive, sample.triplet])
        number = sample.triplet
        for _ in range(_LARGEST_REDRAW):
            frames = triplets[number]
            try:
                pictures = [self._views(sample.drive, i, decoding) for i in frames]
                return number, pictures, self._partner_picture(sample.drive, frames)
            except CorruptFrameError:
                self._note_corrupt(sample.drive, frames)
            number = int(redraw.integers(len(triplets)))
        raise RecipeError(
            f"{self.sequences[sample.drive].name}: {_LARGEST_REDRAW} triplets drawn one after the "
            f"other cannot be read ({'; '.join(self.skipped[-3:])})"
        )

    def _partner_picture(self, drive: int, frames: Triplet) -> Picture | None:
        partner = self.sequences[drive].partner
        return None if partner is None else partner.picture(frames[1])

    def _note_corrupt(self, drive: int, frames: Triplet) -> None:
        sequence = self.sequences[drive]
        for position in frames:
            why = sequence.why_corrupt(position)
            if why is not None and (drive, position) not in self._corrupt:
                self._corrupt[drive, position] = why
                self.skipped.append(f"{sequence.name}: {why}")
        # Of few frames read so far, a share says nothing yet.
        refuse_broken(len(self._corrupt), max(len(self._read), 200), self.skipped)

    def _assemble(self, samples: Sequence[_Sample], found: Sequence[_Found]) -> TripletBatch:
        height, width = found[0][1][0][0].shape[:2]
        images = np.empty((len(samples), 3, 3, height, width), np.float32)
        inputs = np.empty_like(images)
        K, poses, known, travel = [], [], [], []
        for i, (sample, (number, views, _)) in enumerate(zip(samples, found, strict=True)):
            sequence = self.sequences[sample.drive]
            frames = sequence.triplets[number]
            for j, (picture, _) in enumerate(views):
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
            K.append(sequence.matrix(frames[1]))
            poses.append(motions)
            travel.append(sequence.travels(frames))
        which = torch.tensor([sample.mirrored for sample in samples])
        relative = torch.from_numpy(np.stack(poses)).float()
        mirrored_poses = mirror_pose(Pose(relative)).matrix
        large, teacher_K = (
            self._teacher_images(samples, found) if self.has_teacher_images else (None, None)
        )
        batch = TripletBatch(
            torch.from_numpy(images),
            torch.from_numpy(inputs),
            _intrinsics(K, which, width),
            torch.where(which[:, None, None, None], mirrored_poses, relative),
            torch.tensor(known),
            torch.tensor(travel, dtype=torch.float32),
            torch.tensor([sample.drive for sample in samples]),
            torch.tensor([number for number, _, _ in found]),
            which,
            large,
            teacher_K,
        )
        self._add_partners(batch, samples, found)
        return batch

    def _add_partners(
        self, batch: TripletBatch, samples: Sequence[_Sample], found: Sequence[_Found]
    ) -> None:
        """The stereo partners, where every drive has them; mirrored, left is right."""
        partners = [self.sequences[sample.drive].partner for sample in samples]
        pictures = [picture for _, _, picture in found]
        there = [(p, v) for p, v in zip(partners, pictures, strict=True) if p and v is not None]
        if len(there) < len(samples):
            return
        images = np.empty(batch.images[:, 1].shape, np.float32)
        for sample, (_, picture), planes in zip(samples, there, images, strict=True):
            write_planes(picture[:, ::-1] if sample.mirrored else picture, planes)
        poses = np.stack([partner.partner_from_camera for partner, _ in there])
        poses[:, :3, 3] /= self.metres_per_unit
        plain = torch.from_numpy(poses).float()
        mirrored = batch.mirrored
        batch.partner = torch.from_numpy(images)
        batch.partner_K = _intrinsics([p.K for p, _ in there], mirrored, images.shape[-1])
        batch.partner_pose = torch.where(
            mirrored[:, None, None], mirror_pose(Pose(plain)).matrix, plain
        )

    def _teacher_images(
        self, samples: Sequence[_Sample], found: Sequence[_Found]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures of the second size (B, 3, 3, H2, W2), and their intrinsics (B, 3, 3)."""
        large = [[view for _, view in views if view is not None] for _, views, _ in found]
        height, width = large[0][0].shape[:2]
        images = np.empty((len(samples), 3, 3, height, width), np.float32)
        for sample, pictures, out in zip(samples, large, images, strict=True):
            for picture, planes in zip(pictures, out, strict=True):
                write_planes(picture[:, ::-1] if sample.mirrored else picture, planes)
        K = [self.sequences[sample.drive].teacher_K for sample in samples]
        which = torch.tensor([sample.mirrored for sample in samples])
        return torch.from_numpy(images), _intrinsics([k for k in K if k is not None], which, width)


def _intrinsics(K: Sequence[np.ndarray], mirrored: torch.Tensor, width: int) -> torch.Tensor:
    """(B, 3, 3) in pixels of images ``width`` wide, of the mirrored image where it is."""
    plain = torch.from_numpy(np.stack(K)).float()
    return torch.where(mirrored[:, None, None], mirror_intrinsics(plain, width), plain)


def load_triplets(
    root: Path,
    drives: Sequence[Drive],
    size: tuple[int, int],
    metres_per_unit: float,
    teacher_size: tuple[int, int] | None = None,
    mode: Mode = "M",
) -> TripletSource:
    """All triplets of ``drives`` below ``root``, in memory (a whole recipe: `load_data`).

    Raises:
        RecipeError: when no triplet is left; says what was left out.
    """
    source = TripletSource([], metres_per_unit)
    for drive in drives:
        recording, pairs = open_drive(root, drive), None
        if mode != "M":
            pairs = open_partner(root, drive, recording)
            recording = pairs.recording
        sequence, left_out = load_sequence(recording, drive, size, pairs=pairs, mode=mode)
        if teacher_size is not None:
            left_out += add_teacher_images(sequence, drive, FrameStores(teacher_size))
        source.add(sequence, left_out)
    source.refuse_empty()
    return source
