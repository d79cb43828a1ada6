"""Ego-motion against known poses: snippets of five frames (Zhou et al., 2017), and whole drives.

A step is previous_from_current (4, 4): where the camera has got to, seen from where it was. The
pose network's steps are in metres by the bundle's factor; monocular motion has no scale of its own,
so the errors of a snippet are taken after one factor for the snippet, those of a drive after one
for the drive. How much that factor wanders is told beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recordings import (
    CorruptFrameError,
    RecordingError,
    StoredRecording,
    open_recording,
)
from depth_prior_ros.recordings.base import name_skipped
from training.evaluation.sets import EvaluationError

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline

SNIPPET = 5
# Metres. Of a vehicle that (nearly) stands, neither scale nor relative error says anything.
LEAST_STEP, LEAST_SNIPPET = 0.05, 0.2

Transform = NDArray[np.float64]


@dataclass(frozen=True)
class SnippetErrors:
    """Errors over all snippets of SNIPPET frames of a drive.

    `ate_mean` and `ate_std` (metres) are as the papers quote them: the root of the summed squared
    distances after scaling, over the number of frames; `ate_rmse` is the mean of the true RMSE.
    `translation_percent` is the distance at a snippet's end over its length, `rotation_deg` the
    angle between the directions at its end.
    """

    ate_mean: float
    ate_std: float
    ate_rmse: float
    translation_percent: float | None
    rotation_deg: float
    snippets: int


@dataclass(frozen=True)
class DriveErrors:
    """Errors along a drive's longest stretch without a gap, after one factor for all of it.

    `scale` is the median of true over predicted length of a step in metres, `scale_spread` the
    standard deviation of that ratio over its median. `translation_percent` is the distance at the
    end over the length of the way, `rotation_deg_per_100m` the angle there by 100 m of it.
    """

    metres: float
    scale: float | None
    scale_spread: float | None
    translation_percent: float | None
    rotation_deg_per_100m: float | None


@dataclass
class PoseReport:
    """One drive: errors of the network, and of a predictor that always goes straight ahead."""

    name: str
    frames: int
    snippets: SnippetErrors
    drive: DriveErrors
    straight: SnippetErrors
    notes: list[str] = field(default_factory=list)


def pose_json(report: PoseReport) -> dict[str, Any]:
    """One entry of `pose`."""
    content = asdict(report)
    del content["name"]
    return content


def pose_recordings(data: Path) -> list[StoredRecording]:
    """Recordings with poses: `data` itself, or KITTI odometry's sequences below it.

    Raises:
        EvaluationError: there is none.
    """
    folders = [data]
    for below in (data / "kitti_odometry" / "sequences", data / "sequences"):
        folders += sorted(p for p in below.iterdir() if p.is_dir()) if below.is_dir() else []
    recordings = []
    for folder in folders:
        try:
            recording = open_recording(folder)
        except RecordingError:
            if not data.is_dir():
                raise
            continue
        if sum(frame.pose is not None for frame in recording.frames) >= SNIPPET:
            recordings.append(recording)
    if not recordings:
        raise EvaluationError(
            f"{data}: no recording with poses; looked for kitti_odometry/sequences/NN with "
            "kitti_odometry/poses/NN.txt"
        )
    return recordings


def evaluate_poses(
    pipeline: DepthPipeline, recordings: Sequence[StoredRecording], progress: Progress = quiet
) -> list[PoseReport]:
    """Evaluate the pose network of a bundle on recordings.

    Raises:
        EvaluationError: the bundle has no pose network.
    """
    if not pipeline.networks.has_multi_frame:
        raise EvaluationError(f"bundle {pipeline.bundle.manifest.name} has no pose network")
    reports = []
    for recording in recordings:
        steps = predict_steps(pipeline, recording, progress)
        report = evaluate_steps(recording, steps)
        if _names(pipeline.bundle, recording):
            report.notes.append("the bundle's recipe names this drive: it may have learned it")
        reports.append(report)
    return reports


def predict_steps(
    pipeline: DepthPipeline, recording: StoredRecording, progress: Progress = quiet
) -> dict[int, Transform]:
    """previous_from_current (4, 4) in metres by position, for frames that follow another.

    The networks see every camera as the trained one, and so a world stretched along the viewing
    direction, which is undone here.
    """
    from depth_prior_ros.pipeline.framing import InvalidFrameError, frame_image
    from depth_prior_ros.scale import focal_ratio

    networks, trained = pipeline.networks, pipeline.bundle.manifest.camera
    metres = pipeline.scale.metres_per_unit
    steps: dict[int, Transform] = {}
    previous: Any = None
    for position, frame in enumerate(recording.frames):
        progress(f"{recording.name}: poses", position, len(recording.frames))
        try:
            framed = frame_image(frame.image(), frame.camera, trained)
        except (CorruptFrameError, InvalidFrameError) as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            previous = None
            continue
        current = networks.backend.to_native(framed.tensor())
        if previous is not None and not recording.gap_before(position):
            step = rigid_inverse(networks.pose(previous, current))
            camera = framed.camera
            stretch = focal_ratio(camera.fx, camera.fy, trained.fx, trained.fy)
            step[:3, 3] *= metres * np.array([1.0, 1.0, stretch])
            steps[position] = step
        previous = current
    return steps


def evaluate_steps(recording: StoredRecording, steps: dict[int, Transform]) -> PoseReport:
    """Compare predicted steps by position with a recording's poses.

    Raises:
        EvaluationError: not one snippet of frames with poses that follow each other.
    """
    runs = _runs(recording, steps)
    if not any(len(run) >= SNIPPET - 1 for run in runs):
        raise EvaluationError(
            f"{recording.name}: no {SNIPPET} frames with poses that follow each other"
        )
    ahead = np.eye(4)
    ahead[2, 3] = 1.0
    longest = max(runs, key=len)
    return PoseReport(
        recording.name,
        len(recording.frames),
        _snippet_errors(runs),
        drive_errors([true for true, _ in longest], [found for _, found in longest]),
        _snippet_errors([[(true, ahead) for true, _ in run] for run in runs]),
        notes=list(recording.notes),
    )


def _runs(
    recording: StoredRecording, steps: dict[int, Transform]
) -> list[list[tuple[Transform, Transform]]]:
    """(true, predicted) steps of stretches without a gap."""
    runs: list[list[tuple[Transform, Transform]]] = [[]]
    for position in range(1, len(recording.frames)):
        before, now = recording.frames[position - 1].pose, recording.frames[position].pose
        step = steps.get(position)
        if before is None or now is None or step is None or recording.gap_before(position):
            runs.append([])
            continue
        runs[-1].append((rigid_inverse(before) @ now, step))
    return [run for run in runs if run]


def trajectory(steps: Sequence[Transform]) -> NDArray[np.float64]:
    """Poses (N + 1, 4, 4) seen from the first one, along N steps."""
    return np.stack(list(accumulate(steps, np.matmul, initial=np.eye(4))))


def _snippet_errors(runs: Sequence[Sequence[tuple[Transform, Transform]]]) -> SnippetErrors:
    distances, translations, rotations = [], [], []
    for run in runs:
        for start in range(len(run) - SNIPPET + 2):
            part = run[start : start + SNIPPET - 1]
            true = trajectory([step for step, _ in part])
            found = trajectory([step for _, step in part])
            error = scaled_positions(found, true) - true[:, :3, 3]
            distances.append(float(np.sqrt(np.sum(error**2))))
            rotations.append(_angle(true[-1, :3, :3].T @ found[-1, :3, :3]))
            length = sum(float(np.linalg.norm(step[:3, 3])) for step, _ in part)
            if length >= LEAST_SNIPPET:
                translations.append(100 * float(np.linalg.norm(error[-1])) / length)
    ates = [distance / SNIPPET for distance in distances]
    return SnippetErrors(
        ate_mean=fmean(ates),
        ate_std=pstdev(ates),
        ate_rmse=fmean(distance / SNIPPET**0.5 for distance in distances),
        translation_percent=fmean(translations) if translations else None,
        rotation_deg=fmean(rotations),
        snippets=len(ates),
    )


def scaled_positions(found: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (N, 3) of `found` (N, 4, 4) times the factor that fits `true` best."""
    positions, wanted = found[:, :3, 3], true[:, :3, 3]
    size = float(np.sum(positions**2))
    return positions * (float(np.sum(positions * wanted)) / size if size > 0 else 1.0)


def drive_errors(true: Sequence[Transform], found: Sequence[Transform]) -> DriveErrors:
    """Errors along the N steps of a drive, after scaling by the median ratio of lengths."""
    lengths = np.array([np.linalg.norm(step[:3, 3]) for step in true])
    predicted = np.array([np.linalg.norm(step[:3, 3]) for step in found])
    usable = (lengths >= LEAST_STEP) & (predicted > 0)
    metres = float(lengths.sum())
    if not usable.any():
        return DriveErrors(metres, None, None, None, None)
    ratios = lengths[usable] / predicted[usable]
    scale = float(np.median(ratios))
    scaled = np.stack(found)
    scaled[:, :3, 3] *= scale
    end, wanted = trajectory(list(scaled))[-1], trajectory(true)[-1]
    return DriveErrors(
        metres=metres,
        scale=scale,
        scale_spread=float(np.std(ratios / scale)),
        translation_percent=100 * float(np.linalg.norm(end[:3, 3] - wanted[:3, 3])) / metres,
        rotation_deg_per_100m=100 * _angle(wanted[:3, :3].T @ end[:3, :3]) / metres,
    )


def _angle(rotation: NDArray[np.float64]) -> float:
    """Degrees."""
    from scipy.spatial.transform import Rotation

    return float(np.degrees(Rotation.from_matrix(rotation).magnitude()))


def _names(bundle: Bundle, recording: StoredRecording) -> bool:
    """Whether the recipe that a bundle was made by names an odometry sequence."""
    number = recording.name.removeprefix("odometry_")
    if number == recording.name:
        return False
    return f"sequences/{number}" in json.dumps(bundle.manifest.provenance.recipe, default=str)
