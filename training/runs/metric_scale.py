"""The factor from network units to metres: by a drive's camera poses, or the camera's height.

On drives without poses the unit floats in self-supervised training, by a tenth and more from that
of a drive with poses; the height above the road is known of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.recordings import StoredRecording, open_recording, read_frames
from depth_prior_ros.scale.road import NoRoadError, RoadSettings, fit_road
from training.data.drives import network_camera
from training.data.frames import Window
from training.data.triplets import DriveFrames, load_sequence
from training.losses.photometric import Target, identity_error, minimum_reprojection
from training.losses.views import Views
from training.recipes.base import RecipeError
from training.recipes.data import Drive
from training.stages.system import System

# With less parallax (metres from frame to frame) the pictures do not tell the scale.
_MIN_STEP = 0.2
_MAX_FRAMES = 80
# Frames of a drive whose road is looked at.
_ROADS = 30
# Candidates: up to a factor of 16 either way from the unit of training, 8 % apart, and 4 % around
# the best of them. A narrower search ends at its border, or in a minimum of no meaning.
_STEP = 2 ** (1 / 9)
_REACH = 36


@torch.no_grad()
def fit_by_camera_height(
    system: System,
    drives: Sequence[tuple[Drive, StoredRecording]],
    size: tuple[int, int],
    height: float,
    road: RoadSettings | None = None,
) -> tuple[float, float]:
    """The factor with which the camera is `height` metres above the road.

    Args:
        system: networks; only the student is used.
        drives: recordings, as training opened them.
        size: width and height of the network's input.
        height: of the camera above the road, metres.
        road: how the camera is mounted, and where to look for the road.

    Returns:
        Median over drives of each drive's median over frames, and the largest over the smallest of
        the drives' medians, minus one.

    Raises:
        RecipeError: no drive shows a flat road.
    """
    system.student.eval()
    found = []
    for drive, recording in drives:
        window = Window(size, drive.crop)
        camera = network_camera(recording, window)
        stride = max(1, len(recording.frames) // _ROADS)
        heights = []
        for _, image in read_frames(recording, range(0, len(recording.frames), stride)):
            picture = torch.from_numpy(window.apply(image)).permute(2, 0, 1)[None]
            pixels = picture.to(system.device).float().div(255)
            inverse = 1 / disparity_to_depth(system.single(pixels)[0])[1]
            with suppress(NoRoadError):
                found_road = fit_road(inverse[0, 0].cpu().numpy(), camera, road or RoadSettings())
                heights.append(found_road.height)
        if heights:
            found.append(height / float(np.median(heights)))
    if not found:
        raise RecipeError("output.camera_height: no drive shows a flat road to measure it by")
    return float(np.median(found)), max(found) / min(found) - 1


def check_scale_drive(drive: Path) -> None:
    """Whether a metric factor can be fitted on a drive, from its poses alone.

    Raises:
        RecipeError: it has no metric poses, or its camera hardly moves.
    """
    poses = [frame.pose for frame in open_recording(drive).frames]
    for before, now in pairwise(poses):
        if before is not None and now is not None and _travel(before, now) >= _MIN_STEP:
            return
    raise RecipeError(
        f"output.scale_drive: {drive} has no frames with poses {_MIN_STEP} m or more apart, so "
        "the metric factor cannot be fitted on it"
    )


def _travel(before: np.ndarray, now: np.ndarray) -> float:
    """Metres between two world_from_camera poses."""
    return float(np.linalg.norm(now[:3, 3] - before[:3, 3]))


@torch.no_grad()
def fit_metres_per_unit(
    system: System, drive: Path, size: tuple[int, int], metres_per_unit: float
) -> tuple[float, float]:
    """Find the factor with which single-frame depth explains a drive with metric poses best.

    Each frame is rebuilt from its neighbours with the measured motion and the depth times each
    candidate factor; the one with the smallest auto-masked photometric error is the frame's, the
    median over frames the answer.

    Args:
        system: networks; only the student is used.
        drive: a recording with metric camera poses.
        size: width and height of the network's input.
        metres_per_unit: unit of the training, the middle of the candidates.

    Returns:
        Factor, and its spread over frames (interquartile range over the median).

    Raises:
        RecipeError: no frame has neighbours with poses far enough apart, or more than a quarter of
            the frames is explained best by the largest or the smallest candidate.
    """
    sequence, _ = load_sequence(open_recording(drive), Drive(path=str(drive)), size)
    return fit_on_frames(system, sequence, metres_per_unit, "output.scale_drive")


@torch.no_grad()
def fit_on_frames(
    system: System,
    sequence: DriveFrames,
    metres_per_unit: float,
    key: str,
    most: int = _MAX_FRAMES,
) -> tuple[float, float]:
    """As `fit_metres_per_unit`, on frames that are read already.

    Where they have stereo partners, a frame is rebuilt from its partner in place of its neighbours:
    the distance between the cameras gives the metres.

    Args:
        system: networks; only the student is used.
        sequence: frames with metric poses or with stereo partners.
        metres_per_unit: unit of the training, the middle of the candidates.
        key: what of a recipe or command line asks for it, for messages.
        most: frames that are looked at.

    Returns:
        Factor, and its spread over frames (interquartile range over the median).

    Raises:
        RecipeError: as `fit_metres_per_unit`.
    """
    drive = sequence.name
    chosen = sequence.triplets
    if sequence.partner is None:
        chosen = [
            frames
            for frames in chosen
            if all(i in sequence.poses for i in frames) and _parallax(sequence, frames) >= _MIN_STEP
        ]
    if not chosen:
        raise RecipeError(f"{drive}: no neighbouring frames to fit the metric factor on")
    system.student.eval()

    def best_of(frames: tuple[int, int, int]) -> float:
        def measure(steps: Sequence[float]) -> list[float]:
            factors = metres_per_unit * _STEP ** np.array(steps)
            return _errors(system, sequence, frames, factors)

        return _best_step(measure)

    best = [best_of(frames) for frames in chosen[:: max(1, len(chosen) // most)]]
    low, middle, high = np.percentile(best, [25, 50, 75])
    if low <= -_REACH or high >= _REACH:
        raise RecipeError(
            f"{key}: the metric factor cannot be fitted on {drive}: of {len(best)} "
            f"frames {sum(abs(step) >= _REACH for step in best)} are explained best by a factor "
            f"{_STEP**_REACH:g} times the unit of training ({metres_per_unit:g} m) or its inverse. "
            "Are the poses in metres? Name another drive, or none, and run again: what was trained "
            "is kept"
        )
    low, middle, high = metres_per_unit * _STEP ** np.array([low, middle, high])
    return float(middle), float((high - low) / middle)


def _parallax(sequence: DriveFrames, frames: tuple[int, int, int]) -> float:
    """The smaller travel to a neighbour, metres."""
    return min(_travel(sequence.poses[a], sequence.poses[b]) for a, b in pairwise(frames))


def _best_step(measure: Callable[[Sequence[float]], list[float]]) -> float:
    """The step within -_REACH.._REACH whose error is smallest, by the parabola through three."""

    def best(known: Mapping[float, float]) -> float:
        return min(known, key=lambda step: known[step])

    steps = range(-_REACH, _REACH + 1)
    known: dict[float, float] = dict(zip(steps, measure(steps), strict=True))
    k = best(known)
    between = [step for step in (k - 0.5, k + 0.5) if abs(step) < _REACH]
    known |= dict(zip(between, measure(between), strict=True))
    k = best(known)
    if abs(k) == _REACH:
        return k
    left, middle, right = (known[k + shift] for shift in (-0.5, 0, 0.5))
    return k + 0.25 * (left - right) / max(left - 2 * middle + right, 1e-12)


def _errors(
    system: System, sequence: DriveFrames, frames: tuple[int, int, int], factors: np.ndarray
) -> list[float]:
    """Photometric error of a triplet's middle image for each factor."""
    now = _picture(sequence.picture(frames[1]), system)
    target, (sources, motion, through) = Target.of(now), _sources(system, sequence, frames)
    identity = identity_error(sources, target, torch.Generator().manual_seed(0))
    _, units = disparity_to_depth(system.single(now)[0])
    K = torch.from_numpy(sequence.matrix(frames[1]))[None].to(now)
    views = Views.of(sources, K, motion, None if through is None else through.to(now))
    rebuilt = (views.rebuild(units * float(f)) for f in factors)
    return [float(minimum_reprojection(view, target, identity)[0]) for view in rebuilt]


def _sources(
    system: System, sequence: DriveFrames, frames: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures (S, 1, 3, H, W), motions to them in metres (S, 1, 4, 4), and their intrinsics
    (S, 1, 3, 3) where those are not the target's: the stereo partner, else the neighbours."""
    partner = sequence.partner
    if partner is None:
        pictures = [_picture(sequence.picture(frames[i]), system) for i in (0, 2)]
        motion = torch.from_numpy(np.asarray(sequence.motions(frames)))
    else:
        pictures = [_picture(partner.picture(frames[1]), system)]
        motion = torch.from_numpy(partner.partner_from_camera)[None]
    sources = torch.stack(pictures)
    through = None if partner is None else torch.from_numpy(partner.K)[None, None]
    return sources, motion[:, None].to(sources), through


def _picture(picture: NDArray[np.uint8], system: System) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return planes[None].to(system.device).float() / 255
