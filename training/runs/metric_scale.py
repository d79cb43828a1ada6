"""The factor from network units to metres, fitted on a drive whose camera poses are known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.recordings import open_recording
from training.data.triplets import DriveFrames, load_sequence
from training.losses.photometric import Target, identity_error, minimum_reprojection
from training.recipes.base import RecipeError
from training.recipes.data import Drive
from training.stages.system import System, rebuild

# With less parallax (metres from frame to frame) the pictures do not tell the scale.
_MIN_STEP = 0.2
_MAX_FRAMES = 80
# Candidates: this far either way from the unit of training, 4 % apart.
_RANGE = 2.0
_CANDIDATES = 35


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
        RecipeError: no frame has neighbours with poses far enough apart.
    """
    sequence, _ = load_sequence(open_recording(drive), Drive(path=str(drive)), size)
    chosen = [
        frames
        for frames in sequence.triplets
        if all(i in sequence.poses for i in frames) and _parallax(sequence, frames) >= _MIN_STEP
    ]
    if not chosen:
        raise RecipeError(f"{drive}: no neighbouring frames to fit the metric factor on")
    system.student.eval()
    factors = metres_per_unit * np.geomspace(1 / _RANGE, _RANGE, _CANDIDATES)
    best = [
        _minimum(factors, _errors(system, sequence, frames, factors))
        for frames in chosen[:: max(1, len(chosen) // _MAX_FRAMES)]
    ]
    low, middle, high = np.percentile(best, [25, 50, 75])
    return float(middle), float((high - low) / middle)


def _parallax(sequence: DriveFrames, frames: tuple[int, int, int]) -> float:
    """The smaller travel to a neighbour, metres."""
    return min(_travel(sequence.poses[a], sequence.poses[b]) for a, b in pairwise(frames))


def _minimum(factors: np.ndarray, errors: list[float]) -> float:
    """Where the errors are smallest, between candidates by the parabola through three of them."""
    k = int(np.argmin(errors))
    if not 0 < k < len(errors) - 1:
        return float(factors[k])
    left, middle, right = errors[k - 1 : k + 2]
    shift = 0.5 * (left - right) / max(left - 2 * middle + right, 1e-12)
    return float(factors[k] * (factors[k + 1] / factors[k]) ** shift)


def _errors(
    system: System, sequence: DriveFrames, frames: tuple[int, int, int], factors: np.ndarray
) -> list[float]:
    """Photometric error of a triplet's middle image for each factor."""
    before, now, after = sequence.pictures(frames).to(system.device)[:, None].unbind(0)
    target, sources = Target.of(now), torch.stack([before, after])
    identity = identity_error(sources, target, torch.Generator().manual_seed(0))
    _, units = disparity_to_depth(system.single(now)[0])
    K = torch.from_numpy(sequence.K)[None].to(now)
    motion = torch.from_numpy(np.asarray(sequence.motions(frames)))[:, None].to(now)
    rebuilt = (rebuild(sources, units * float(f), K, motion) for f in factors)
    return [float(minimum_reprojection(view, target, identity)[0]) for view in rebuilt]
