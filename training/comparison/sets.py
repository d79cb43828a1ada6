"""Evaluation sets read once, for many bundles of one input size.

Images are kept at the network's input size and truth as the list of its pixels that count, so that
judging another bundle costs little more than its networks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.metrics import (
    ComparedPixels,
    DepthErrors,
    NoValidPixelsError,
    Protocol,
    TruthPixels,
    part_errors,
)
from depth_prior_ros.motion.gate import ImageMotion, MotionGate
from depth_prior_ros.pipeline.framing import InvalidFrameError, frame_image
from depth_prior_ros.recordings import CorruptFrameError, Frame
from depth_prior_ros.recordings.base import name_skipped
from training.evaluation.baseline_rows import mean_depth
from training.evaluation.frames import moving_in, scaled_window, show, truth_in
from training.evaluation.sets import (
    EvaluationError,
    EvaluationSet,
    Progress,
    drive_key,
    drive_set,
    eigen_drive_sets,
    kitti_2015_set,
    lidar_training_set,
    quiet,
)

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, Model

# What is kept of each frame, and of each of its parts.
ERRORS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
PART_ERRORS = ("abs_rel", "sq_rel", "rmse", "d1")
SETS = ("kitti_2015", "drives", "synthetic")
# Frames of a training drive that recipes keep out (keep_out: depth); only when asked for.
KEPT_OUT = "kept_out"
PARTS = ("moving", "static")


@dataclass(frozen=True)
class PreparedFrame:
    """A frame at the network's input size; `truth` is None where it is only a predecessor.

    `moves` tells whether the vehicle moves, `moving` (window of the truth's size) what else does.
    """

    index: int
    stamp_ns: int
    pixels: NDArray[np.uint8] = field(repr=False)
    camera: Camera
    speed: float | None
    moves: bool
    truth: TruthPixels | None = field(repr=False)
    moving: NDArray[np.bool_] | None = field(repr=False)


@dataclass(frozen=True)
class PreparedSet:
    """A recording of a `group` of the table, ready to be judged; `fingerprint` is of all of it."""

    group: str
    name: str
    protocol: Protocol
    consecutive: bool
    frames: tuple[PreparedFrame, ...]
    fingerprint: str
    notes: tuple[str, ...]


def find_sets(
    data: Path, synthetic: Sequence[Path], wanted: Sequence[str] = SETS
) -> list[tuple[str, EvaluationSet]]:
    """(group, set): KITTI 2015, each Eigen test drive, the bags of synthetic drives together, and
    if asked for the LiDAR frames of drive 0039, which the small recipes keep out of training.

    Raises:
        EvaluationError: an unknown name, or a wanted set that is not there.
    """
    found: list[tuple[str, EvaluationSet]] = []
    for name in wanted:
        sets: list[tuple[str, EvaluationSet]] = []
        if name == "kitti_2015":
            scenes = kitti_2015_set(data)
            sets = [(name, scenes)] if scenes else []
        elif name == "drives":
            for chosen in eigen_drive_sets(data, listed_only=False):
                key = drive_key(Path(chosen.name))
                sets.append((f"drive_{key[1]}" if key else chosen.name, chosen))
        elif name == KEPT_OUT:
            kept = lidar_training_set(data)
            sets = [("drive_0039_kept_out", kept)] if kept else []
        elif name == "synthetic":
            sets = [(name, drive_set(path)) for path in synthetic]
            for path, (_, chosen) in zip(synthetic, sets, strict=True):
                if chosen.recording.depth_source != "exact":
                    raise EvaluationError(f"{path}: not a synthetic drive, its depth is not exact")
        else:
            raise EvaluationError(f"unknown set '{name}': {', '.join([*SETS, KEPT_OUT])}")
        if not sets and name != "synthetic":
            raise EvaluationError(f"{data}: no {name} there; leave it out of the sets")
        found += sets
    if not found:
        raise EvaluationError("nothing to judge on: name a bag with --synthetic, or other sets")
    return found


def prepare(
    group: str, chosen: EvaluationSet, trained: Camera, progress: Progress = quiet
) -> PreparedSet:
    """Read a set for networks of the trained camera's input size.

    Of a drive the frames with a predecessor are judged, so that single- and multi-frame models are
    judged on the same ones; of separate scenes all.

    Raises:
        EvaluationError: not one frame can be judged.
    """
    recording = chosen.recording
    wanted = set(chosen.followed() if recording.consecutive else chosen.judged)
    gate, flow = MotionGate(), ImageMotion()
    frames: list[PreparedFrame] = []
    before: NDArray[np.uint8] | None = None
    shown = range(max(wanted, default=-1) + 1) if recording.consecutive else chosen.judged
    for done, position in enumerate(shown):
        progress(f"reading {chosen.name}", done, len(shown))
        frame = recording.frames[position]
        judged = position in wanted
        try:
            one = _prepare_frame(frame, chosen.protocol, trained, judged)
        except (CorruptFrameError, InvalidFrameError) as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            before = None
            continue
        if recording.consecutive:
            small = flow.prepare(one.pixels)
            image_motion = flow.measure(before, small) if before is not None else None
            moves = gate.update(frame.stamp_ns, frame.speed, image_motion) == "moving"
            one, before = replace(one, moves=moves), small
        frames.append(one)
    if not any(frame.truth for frame in frames):
        raise EvaluationError(f"{chosen.name}: not one frame with depth can be judged")
    return PreparedSet(
        group,
        chosen.name,
        chosen.protocol,
        recording.consecutive,
        tuple(frames),
        _fingerprint(chosen.protocol, frames),
        (*recording.notes, *map(str, recording.skipped)),
    )


def _prepare_frame(
    frame: Frame, protocol: Protocol, trained: Camera, judged: bool
) -> PreparedFrame:
    seen = show(frame, protocol, trained.size)
    framed = frame_image(seen.image, seen.camera, trained)
    truth, moving = None, None
    depth = frame.depth() if judged else None
    if depth is not None:
        region = (framed.region.x, framed.region.y, framed.region.width, framed.region.height)
        window = scaled_window(region, framed.source_size, (depth.shape[1], depth.shape[0]))
        truth, moving = truth_in(depth, protocol, window), moving_in(frame, depth, window)
        if not truth.index.size:
            truth = None
    return PreparedFrame(
        frame.index,
        frame.stamp_ns,
        framed.pixels,
        framed.camera,
        frame.speed,
        True,
        truth,
        moving,
    )


def _fingerprint(protocol: Protocol, frames: Sequence[PreparedFrame]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(protocol), sort_keys=True).encode())
    for frame in frames:
        plain = (frame.index, frame.stamp_ns, asdict(frame.camera), frame.speed, frame.moves)
        digest.update(repr(plain).encode())
        digest.update(frame.pixels.tobytes())
        if frame.truth is not None:
            digest.update(frame.truth.index.tobytes() + frame.truth.expected.tobytes())
        if frame.moving is not None:
            digest.update(np.packbits(frame.moving).tobytes())
    return digest.hexdigest()


def judge_model(
    pipeline: DepthPipeline,
    prepared: PreparedSet,
    model: Model,
    progress: Progress = quiet,
    what: str = "",
) -> dict[str, Any]:
    """Errors of a forced model: `frames` (see :func:`frame_entry`), and `fell_back`.

    `fell_back` counts the frames that the forced multi-frame network left to the single-frame one.
    Of the single-frame model also `own_mean`: its mean over the set judged in the place of each
    prediction.
    """
    from depth_prior_ros.pipeline import Motion

    pipeline.force_model = model
    pipeline.reset()
    entries, depths, fell_back = [], [], 0
    for done, frame in enumerate(prepared.frames):
        progress(what, done, len(prepared.frames))
        if model == "single_frame" and frame.truth is None:
            continue
        motion = Motion(frame.speed, "odometry") if frame.speed is not None else None
        result = pipeline.process(frame.pixels, frame.stamp_ns, motion, frame.camera)
        if frame.truth is None:
            continue
        fell_back += result.model != model
        try:
            entries.append(frame_entry(frame, result.depth, prepared.protocol))
        except NoValidPixelsError:
            continue  # a network that knows nothing here: the frame is missing for every row
        if model == "single_frame":
            depths.append(result.depth)
    pipeline.force_model = None
    content: dict[str, Any] = {"frames": entries, "fell_back": fell_back}
    if depths:
        content["own_mean"] = judge_map(mean_depth(depths), prepared)
    return content


def judge_map(depth: NDArray[Any], prepared: PreparedSet) -> list[dict[str, Any]]:
    """The errors of one depth map (h, w) in the place of every prediction."""
    return [
        frame_entry(frame, depth, prepared.protocol, parts=False)
        for frame in prepared.frames
        if frame.truth is not None
    ]


def frame_entry(
    frame: PreparedFrame, depth: NDArray[Any], protocol: Protocol, *, parts: bool = True
) -> dict[str, Any]:
    """One frame's errors: `index`, `moves`, ERRORS, `ratio`, and `parts` with PART_ERRORS each.

    Raises NoValidPixelsError.
    """
    assert frame.truth is not None
    pixels: ComparedPixels = frame.truth.compare(depth)
    errors = pixels.errors(protocol.scaling)
    entry: dict[str, Any] = {"index": frame.index, "moves": frame.moves}
    entry |= _rounded(errors, ERRORS) | {"ratio": float(f"{errors.ratio:.7g}")}
    if parts and frame.moving is not None:
        found = part_errors(pixels, protocol.scaling, frame.moving)
        entry["parts"] = {n: _rounded(found[n], PART_ERRORS) for n in PARTS if n in found}
    return entry


def _rounded(errors: DepthErrors, names: Sequence[str]) -> dict[str, float]:
    return {name: float(f"{getattr(errors, name):.7g}") for name in names}
