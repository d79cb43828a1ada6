"""A user's recording as `depth_train adapt` uses it: its first part, and the rest, held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.camera import Camera
from depth_prior_ros.framing import InvalidFrameError, frame_image
from depth_prior_ros.recordings import (
    CorruptFrameError,
    Frame,
    RecordingError,
    StoredRecording,
    open_recording,
)
from training.data.drives import DriveFrames, find_triplets
from training.data.frames import LazyFrames, Picture
from training.data.static import StaticRule, Travel, Triplet, moving_triplets
from training.data.triplets import TripletSource
from training.errors import TrainingError
from training.evaluation_sets import Progress, quiet

# A triplet's frames are read once, though three triplets in a row share them.
_KEPT = 24
# Size at which it is looked whether the camera moves: that of `depth_prior_ros.motion`.
_LOOK = (160, 48)


@dataclass(frozen=True)
class OwnDrive:
    """A recording cut in two.

    Attributes:
        path: where it lies.
        recording: its frames.
        share: of the frames, the first ones, that a prior may be made of.
        stride: frames between neighbours.
        progress: told of what takes long.
    """

    path: Path
    recording: StoredRecording
    share: float
    stride: int = 1
    progress: Progress = quiet

    @classmethod
    def open(
        cls, path: Path, share: float, stride: int = 1, progress: Progress = quiet
    ) -> OwnDrive:
        """Open any recording.

        Raises:
            RecordingError: it cannot be opened.
            TrainingError: a share or stride that makes no sense, or too few frames.
        """
        if not 0 < share <= 1:
            raise TrainingError(f"share {share:g}: above 0, and 1 at most (then none is held out)")
        if stride < 1:
            raise TrainingError(f"stride {stride}: at least 1")
        drive = cls(path, open_recording(path), share, stride, progress)
        needed, has = 2 * stride + 1, drive.first
        if not drive.recording.consecutive:
            raise TrainingError(f"{path}: separate scenes; a prior needs frames that follow others")
        if has < needed:
            raise TrainingError(
                f"{path}: {len(drive.recording)} frames, of which the first {share:.0%} are {has}; "
                f"a prior needs {needed} that follow each other: record for longer, or give a "
                "larger --share"
            )
        return drive

    @property
    def name(self) -> str:
        """Of the recording."""
        return self.recording.name

    @property
    def first(self) -> int:
        """Frames of the first part."""
        return int(len(self.recording) * self.share + 1e-9)

    @property
    def held_out_depth(self) -> tuple[int, ...]:
        """Positions of the rest's frames with true depth."""
        frames = self.recording.frames
        return tuple(i for i in range(self.first, len(frames)) if frames[i].has_depth)

    @cached_property
    def moving(self) -> list[Triplet]:
        """Triplets of the first part in which the camera moves.

        Raises:
            TrainingError: there is none; says why.
        """
        found, kept = self._moving(range(self.first), "looking for motion")
        if not found:
            raise TrainingError(
                f"{self.path}: no three frames of the first {self.first} follow each other"
                + (f" at stride {self.stride}" if self.stride > 1 else "")
            )
        if not kept:
            raise TrainingError(
                f"{self.path}: the camera stands in all {len(found)} triplets of the first "
                f"{self.first} frames; the teacher needs a drive that moves"
            )
        return kept

    @cached_property
    def held_out(self) -> list[Triplet]:
        """Triplets of the rest in which the camera moves."""
        rest = range(self.first, len(self.recording))
        return self._moving(rest, "held out: looking for motion")[1]

    def _moving(self, part: range, what: str) -> tuple[list[Triplet], list[Triplet]]:
        usable = [i in part for i in range(len(self.recording))]
        found = find_triplets(self.recording, self.stride, usable)
        frames = self.recording.frames

        def picture(position: int) -> Picture:
            self.progress(what, position - part.start, len(part))
            return _framed(frames[position], frames[0].camera.scaled(*_LOOK))

        rule = StaticRule("auto")
        return found, moving_triplets(found, Travel(frames), picture, rule)

    def source(
        self, triplets: list[Triplet], trained: Camera, metres_per_unit: float
    ) -> TripletSource:
        """Triplets framed for a network, as at inference.

        Args:
            triplets: positions.
            trained: the network's camera at its input size.
            metres_per_unit: unit of the recorded motions.
        """
        frames = self.recording.frames
        read = lru_cache(_KEPT)(_reader(frames, trained))
        size = (trained.width, trained.height)
        poses = {i: f.pose for i, f in enumerate(frames) if f.pose is not None}
        K = self._matrix(triplets, trained)
        sequence = DriveFrames(
            1.0, LazyFrames(read), K, poses, triplets, self.name, Travel(frames), size
        )
        return TripletSource([sequence] if triplets else [], metres_per_unit)

    def _matrix(self, triplets: list[Triplet], trained: Camera) -> NDArray[np.float64]:
        """Intrinsics (3, 3) of the framed pictures, by the first one that can be read."""
        for position in sorted({p for triplet in triplets for p in triplet}):
            frame = self.recording.frames[position]
            try:
                return frame_image(frame.image(), frame.camera, trained).camera.matrix()
            except CorruptFrameError:
                continue
            except InvalidFrameError as error:
                raise RecordingError(f"{self.path}: {error}") from error
        return np.eye(3)

    def images(self, count: int, trained: Camera) -> Iterator[Tensor]:
        """Middle frames (3, H, W) of ``count`` moving triplets of the first part, evenly spaced."""
        frames = self.recording.frames
        for place in spaced(len(self.moving), count):
            try:
                pixels = _framed(frames[self.moving[place][1]], trained)
            except CorruptFrameError:
                continue
            yield torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)


def spaced(total: int, count: int) -> list[int]:
    """``count`` places out of ``total``, evenly spaced; all, where there are not more."""
    count = min(total, count)
    return [total * n // count + total // (2 * count) for n in range(count)]


def _reader(frames: Sequence[Frame], trained: Camera) -> Callable[[int], Picture]:
    return lambda position: _framed(frames[position], trained)


def _framed(frame: Frame, trained: Camera) -> Picture:
    """A frame as a network takes it (H, W, 3) uint8; raises CorruptFrameError."""
    try:
        return frame_image(frame.image(), frame.camera, trained).pixels
    except InvalidFrameError as error:
        raise CorruptFrameError(f"frame {frame.index}: {error}") from error
