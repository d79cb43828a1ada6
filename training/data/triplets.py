"""Triplets (previous, current, next) of neighbouring frames out of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry import Pose
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import CorruptFrameError, Recording
from training.config import Drive, RecipeError
from training.data.augmentation import jitter, mirror_intrinsics, mirror_pose


@dataclass
class TripletBatch:
    """A batch of triplets; image order is previous, current, next.

    images: (B, 3, 3, H, W), as recorded; inputs: the same with changed colours, for the networks.
    K: (B, 3, 3) in pixels. poses: previous_from_current and next_from_current (B, 2, 4, 4) in
    network units, the identity where they were not recorded; known: (B,) whether they were.
    """

    images: Tensor
    inputs: Tensor
    K: Tensor
    poses: Tensor
    known: Tensor

    def to(self, device: torch.device) -> TripletBatch:
        """The same batch on another device."""
        return TripletBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass
class DriveFrames:
    """One drive at the network's size, in memory as uint8.

    K: (3, 3) in pixels. poses: world_from_camera in metres, by frame. triplets: frames (previous,
    current, next).
    """

    weight: float
    images: dict[int, np.ndarray]
    K: np.ndarray
    poses: dict[int, np.ndarray]
    triplets: list[tuple[int, int, int]]

    def pictures(self, frames: tuple[int, int, int]) -> Tensor:
        """The images of a triplet, (3, 3, H, W) in [0, 1]."""
        stack = np.stack([self.images[i] for i in frames])
        return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255

    def motions(self, frames: tuple[int, int, int]) -> np.ndarray | None:
        """To previous and next from current, (2, 4, 4) in metres; None where not recorded."""
        if not all(i in self.poses for i in frames):
            return None
        before, current, after = (self.poses[i] for i in frames)
        return np.stack([np.linalg.inv(before) @ current, np.linalg.inv(after) @ current])


@dataclass
class TripletSource:
    """All triplets of the drives of a recipe. ``skipped`` names every frame left out."""

    sequences: list[DriveFrames]
    metres_per_unit: float
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(s.triplets) for s in self.sequences)

    def batch(self, size: int, rng: np.random.Generator) -> TripletBatch:
        """Draw ``size`` triplets; drives are drawn by weight, mirrored half the time."""
        weights = np.array([s.weight for s in self.sequences])
        chosen = rng.choice(len(self.sequences), size, p=weights / weights.sum())
        images, K, poses, known = [], [], [], []
        for number in chosen:
            sequence = self.sequences[number]
            indices = sequence.triplets[rng.integers(len(sequence.triplets))]
            images.append(sequence.pictures(indices))
            K.append(torch.from_numpy(sequence.K).float())
            motions = sequence.motions(indices)
            known.append(motions is not None)
            if motions is None:
                motions = np.tile(np.eye(4), (2, 1, 1))
            motions[:, :3, 3] /= self.metres_per_unit
            poses.append(torch.from_numpy(motions).float())
        which = torch.from_numpy(rng.random(size) < 0.5)
        stacked = (torch.stack(column) for column in (images, K, poses))
        pictures, intrinsics, relative = _mirror(which, *stacked)
        inputs = jitter(pictures, rng)
        return TripletBatch(pictures, inputs, intrinsics, relative, torch.tensor(known))


def _mirror(
    which: Tensor, images: Tensor, K: Tensor, poses: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror the samples that ``which`` (B,) names: images, intrinsics and poses."""
    mirrored_K = mirror_intrinsics(K, images.shape[-1])
    mirrored_poses = mirror_pose(Pose(poses)).matrix
    return (
        torch.where(which[:, None, None, None, None], images.flip(-1), images),
        torch.where(which[:, None, None], mirrored_K, K),
        torch.where(which[:, None, None, None], mirrored_poses, poses),
    )


def find_triplets(
    recording: Recording, stride: int, usable: Sequence[bool]
) -> list[tuple[int, int, int]]:
    """Positions (previous, current, next) ``stride`` frames apart; no gap is bridged."""
    gaps = [recording.gap_before(i) for i in range(len(recording.frames))]
    found = []
    for i in range(stride, len(recording.frames) - stride):
        window = range(i - stride, i + stride + 1)
        if all(usable[j] for j in window) and not any(gaps[j] for j in list(window)[1:]):
            found.append((i - stride, i, i + stride))
    return found


def _kept_out(recording: Recording, rule: str) -> list[bool]:
    """Which frames may be used: with 'depth', none that has ground truth and no neighbour of it."""
    count = len(recording.frames)
    if rule == "none":
        return [True] * count
    has = [frame.has_depth for frame in recording.frames]
    return [not any(has[max(0, i - 1) : i + 2]) for i in range(count)]


def load_sequence(
    recording: Recording, drive: Drive, size: tuple[int, int]
) -> tuple[DriveFrames, list[str]]:
    """Read a recording into memory at the network's ``size`` (width, height).

    Returns:
        The sequence and the list of what was left out, as text.
    """
    usable = _kept_out(recording, drive.keep_out)
    images: dict[int, np.ndarray] = {}
    poses: dict[int, np.ndarray] = {}
    skipped = [f"{recording.name}: {s}" for s in recording.skipped]
    for i, frame in enumerate(recording.frames):
        if not usable[i]:
            continue
        try:
            images[i] = cv2.resize(frame.image(), size, interpolation=cv2.INTER_AREA)
        except CorruptFrameError as error:
            skipped.append(f"{recording.name}: {error}")
            usable[i] = False
            continue
        if frame.pose is not None:
            poses[i] = frame.pose
    K = recording.frames[0].camera.scaled(*size).matrix() if len(recording.frames) else np.eye(3)
    triplets = find_triplets(recording, drive.stride, usable)
    return DriveFrames(drive.weight, images, K, poses, triplets), skipped


def load_triplets(
    root: Path, drives: Sequence[Drive], size: tuple[int, int], metres_per_unit: float
) -> TripletSource:
    """All triplets of ``drives`` below ``root``.

    Raises:
        RecipeError: when no triplet is left; says what was left out.
    """
    source = TripletSource([], metres_per_unit)
    for drive in drives:
        sequence, skipped = load_sequence(open_recording(root / drive.path), drive, size)
        source.skipped += skipped
        if sequence.triplets:
            source.sequences.append(sequence)
        else:
            source.skipped.append(f"{drive.path}: no three frames follow each other")
    if not len(source):
        raise RecipeError("nothing to train on: " + "; ".join(source.skipped[:10]))
    return source
