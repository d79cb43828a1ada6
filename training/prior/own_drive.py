"""What another prior changes on frames that neither was made of.

A user's recording as `depth_train adapt` uses it: its first part, and the rest, held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.evaluation.evaluate import evaluate_model, row_entry
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.protocols import PROTOCOLS, protocol_for
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.pipeline.framing import InvalidFrameError, frame_image
from depth_prior_ros.progress import Progress, quiet
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
from training.losses.photometric import Target, minimum_error
from training.losses.views import Views
from training.prior.teachers.base import FrozenTeacher

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.geometry.camera import Camera

# A triplet's frames are read once, though three triplets in a row share them.
_KEPT = 24
# Size at which it is looked whether the camera moves: that of `depth_prior_ros.motion.gate`.
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
        cls,
        path: Path,
        share: float,
        stride: int = 1,
        progress: Progress = quiet,
        options: Mapping[str, Any] | None = None,
    ) -> OwnDrive:
        """Open any recording; `options` are those of `open_recording`.

        Raises:
            RecordingError: it cannot be opened.
            TrainingError: a share or stride that makes no sense, or too few frames.
        """
        if not 0 < share <= 1:
            raise TrainingError(f"share {share:g}: above 0, and 1 at most (then none is held out)")
        if stride < 1:
            raise TrainingError(f"stride {stride}: at least 1")
        drive = cls(path, open_recording(path, **(options or {})), share, stride, progress)
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
    def validation_depth(self) -> tuple[int, ...]:
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
    def validation(self) -> list[Triplet]:
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


# Triplets whose photometric error is measured, evenly spaced.
PHOTOMETRIC = 200
_ERRORS = ("abs_rel", "sq_rel", "rmse", "d1")
_MORE_IS_BETTER = ("d1",)


@dataclass(frozen=True)
class Paired:
    """A figure of the same frames with the old prior and the new one: one value a frame."""

    before: list[float]
    after: list[float]

    def entry(self, more_is_better: bool = False) -> dict[str, float | int]:
        """Means, their difference, and in how many frames the new one is better."""
        sign = -1 if more_is_better else 1
        pairs = list(zip(self.before, self.after, strict=True))
        return {
            "before": fmean(self.before),
            "after": fmean(self.after),
            "difference": fmean(self.after) - fmean(self.before),
            "better": sum(sign * (after - before) < 0 for before, after in pairs),
        }


# -- photometric error -----------------------------------------------------------------------------


@torch.no_grad()
def photometric(
    before: Bundle,
    after: Bundle,
    drive: OwnDrive,
    teacher: FrozenTeacher,
    camera: Camera,
    metres_per_unit: float,
    device: str,
    progress: Progress,
) -> dict[str, Any] | None:
    """Minimum reprojection error of both neighbours (monodepth2, eq. 4), no auto-mask.

    Motions are those of the bundle's own pose network, in the unit of its depth. A student alone is
    evaluated with its teacher's motions; its depth is then scaled to the teacher's by medians.
    Where neither knows a motion, recorded poses serve.

    Args:
        before: with the old prior.
        after: with the new one; the networks are the same.
        drive: whose held-out triplets are evaluated.
        teacher: of the prior.
        camera: the teacher's, at its input size.
        metres_per_unit: unit of what the teacher sees and says.
        device: where the networks run.
        progress: told of every triplet.

    Returns:
        "frames", "motions" (whose), and `Paired.entry`; None where no motion is known.
    """
    student = before.student().to(device)
    assert student.fusion is not None
    priors = [student.fusion.project(b.prior().to(device)) for b in (before, after)]
    limits = before.manifest.depth.min_units, before.manifest.depth.max_units
    places = spaced(len(drive.validation), PHOTOMETRIC)
    triplets = [drive.validation[place] for place in places]
    trained = before.manifest.camera
    source = drive.source(triplets, trained, metres_per_unit)
    motions = _Motions(before, drive.source(triplets, camera, metres_per_unit), teacher, device)
    errors = Paired([], [])
    whose = ""
    for number in range(len(triplets)):
        progress("held out: photometric error", number, len(triplets))
        try:
            batch = source.triplet(0, number).to(torch.device(device))
            found = motions.of(batch.images, batch.poses, bool(batch.known[0]), number)
        except CorruptFrameError:
            continue
        if found is None:
            continue
        whose, poses, scale = found
        images = batch.images.transpose(0, 1)
        views = Views.of(images[::2], batch.K, poses)
        target = Target.of(images[1])
        for prior, values in zip(priors, (errors.before, errors.after), strict=True):
            seen = student(images[1], prior, scales=(0,), depth_range=limits)
            _, depth = disparity_to_depth(seen.disparity[0].float(), *limits)
            if scale is not None:
                depth = depth * (scale / depth.median())
            values.append(float(minimum_error(views.rebuild(depth), target).mean()))
    if not errors.before:
        return None
    return {"frames": len(errors.before), "motions": whose, **errors.entry()}


class _Motions:
    """Motions to previous and next from current (2, 1, 4, 4), and the depth they belong to."""

    def __init__(self, bundle: Bundle, source: Any, teacher: FrozenTeacher, device: str) -> None:
        self._pose = bundle.pose().to(device) if bundle.has("pose") else None
        self._source, self._teacher, self._device = source, teacher, device

    def of(
        self, images: Tensor, poses: Tensor, known: bool, number: int
    ) -> tuple[str, Tensor, float | None] | None:
        """Whose they are, the motions, and the median depth in their unit (None: the student's)."""
        if self._pose is not None:
            before, now, after = images.unbind(1)
            back = Pose(self._pose(before, now).matrix.float()).inverse().matrix
            forth = self._pose(now, after).matrix.float()
            return "the bundle's pose network", torch.stack([back, forth]), None
        batch = self._source.triplet(0, number)
        view = self._teacher.look(batch.images, batch.K, batch.poses, batch.known)
        if view.motions is not None:
            scale = float(view.depth.median())
            return "the teacher's", view.motions.float().to(self._device), scale
        return ("recorded", poses.transpose(0, 1), None) if known else None


# -- depth error -----------------------------------------------------------------------------------


def depth_errors(
    before: Bundle, after: Bundle, drive: OwnDrive, backend: str, device: str, progress: Progress
) -> dict[str, Any] | None:
    """Single-frame depth against the recording's own truth, scaled by medians.

    The pipeline and the protocol are those of `depth_train evaluate --protocol drive`.

    Returns:
        "protocol", "frames", for each error `Paired.entry`, and "all": every figure of both; None
        where no held-out frame has depth.
    """
    from depth_prior_ros.pipeline import DepthPipeline

    positions = drive.validation_depth
    if not positions:
        return None
    recording = drive.recording
    protocol = protocol_for(recording) or PROTOCOLS["eigen"]
    chosen = EvaluationSet(recording.name, protocol, recording, positions)
    rows = []
    for what, bundle in (("old prior", before), ("new prior", after)):
        pipeline = DepthPipeline(bundle, backend, device)
        told = partial(progress, f"held out: depth, {what}")
        rows.append(evaluate_model(pipeline, chosen, "single_frame", positions, told))
    common = {f.position for f in rows[0]} & {f.position for f in rows[1]}
    old, new = ([f for f in row if f.position in common] for row in rows)
    if not old:
        return None
    content: dict[str, Any] = {"protocol": protocol.name, "frames": len(old)}
    for name in _ERRORS:
        paired = Paired(*([getattr(f.errors, name) for f in row] for row in (old, new)))
        content[name] = paired.entry(name in _MORE_IS_BETTER)
    content["all"] = {"before": row_entry(old, protocol), "after": row_entry(new, protocol)}
    return content


def table(content: Mapping[str, Any]) -> str:
    """Photometric and depth errors before and after, as lines of text."""
    rows: list[tuple[str, Mapping[str, Any], int]] = []
    light, depth = content.get("photometric"), content.get("depth")
    if light is not None:
        rows.append(("photometric", light, light["frames"]))
    if depth is not None:
        rows += [(name, depth[name], depth["frames"]) for name in _ERRORS]
    lines = [f"{'held out':<12} {'before':>9} {'after':>9} {'difference':>11} {'better in':>14}"]
    for name, row, frames in rows:
        share = f"{row['better']} of {frames}"
        numbers = f"{row['before']:9.4f} {row['after']:9.4f} {row['difference']:+11.4f}"
        lines.append(f"{name:<12} {numbers} {share:>14}")
    return "\n".join(lines) if rows else "held out: nothing to evaluate"


def notes(drive: OwnDrive, light: object, depth: object) -> Sequence[str]:
    """What could not be evaluated, and why."""
    said = []
    if drive.first == len(drive.recording):
        return ["nothing is held out, so nothing was evaluated"]
    if light is None:
        why = "the camera stands" if not drive.validation else "no motion is known"
        said.append(f"no photometric error: {why} in the held-out frames")
    if depth is None:
        said.append("no depth error: no held-out frame has true depth")
    return said
