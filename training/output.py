"""From trained networks to a bundle: metric factor, manifest, files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depth_prior_ros.bundle import (
    Architecture,
    CameraSpec,
    DepthSpec,
    Manifest,
    PriorSpec,
    Provenance,
    save_bundle,
)
from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings import open_recording
from training.config import Drive, Recipe, RecipeError
from training.data.triplets import load_sequence
from training.environment import git_hash
from training.stages.prior import NOTE
from training.stages.system import System

# Slower than this (metres from frame to frame), the ratio of two lengths is mostly noise.
_MIN_STEP = 0.2


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
def fit_metres_per_unit(system: System, drive: Path, size: tuple[int, int]) -> tuple[float, float]:
    """The factor from network units to metres, from a drive with metric camera poses.

    The median ratio of measured travel and the pose network's travel between neighbouring frames.

    Returns:
        Factor, and its spread (interquartile range over the median).

    Raises:
        RecipeError: no two readable frames have poses far enough apart.
    """
    sequence, _ = load_sequence(open_recording(drive), Drive(path=str(drive)), size)
    system.pose.eval()
    ratios = []
    for before, now, _after in sequence.triplets:
        if before not in sequence.poses or now not in sequence.poses:
            continue
        travel = _travel(sequence.poses[before], sequence.poses[now])
        if travel < _MIN_STEP:
            continue
        first, second = (
            torch.from_numpy(sequence.images[i]).permute(2, 0, 1)[None].float() / 255
            for i in (before, now)
        )
        length = system.motion(first.to(system.device), second.to(system.device)).translation
        ratios.append(travel / max(float(length.norm()), 1e-6))
    if not ratios:
        raise RecipeError(f"{drive}: no neighbouring frames to fit the metric factor on")
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), float((high - low) / middle)


def write_bundle(
    path: Path,
    recipe: Recipe,
    system: System,
    progress: list[dict[str, Any]],
    root: Path,
) -> Path:
    """Write the finished system as a bundle at ``path``."""
    for network in system.networks.values():
        network.eval()
    factor, source = recipe.metres_per_unit, "unit of the training poses and synthetic depth"
    if recipe.output.scale_drive is not None:
        factor, spread = fit_metres_per_unit(system, root / recipe.output.scale_drive, recipe.size)
        source = (
            f"median ratio of measured to predicted travel on {recipe.output.scale_drive} "
            f"(interquartile range {spread:.1%})"
        )
    manifest = Manifest(
        name=recipe.output.name,
        architecture=Architecture(
            student=system.student.architecture,
            pose=system.pose.architecture,
            multi_frame={k: v for k, v in system.multi_frame.architecture.items() if k != "size"},
        ),
        input_size=recipe.size,
        training_camera=CameraSpec.of(_training_camera(recipe, root)),
        depth=DepthSpec(metres_per_unit=factor, metres_per_unit_source=source),
        licence=recipe.output.licence,
        provenance=Provenance(
            data_sources=list(recipe.output.provenance),
            recipe=recipe.model_dump(mode="json"),
            seed=recipe.seed,
            git=git_hash(),
            steps={f"{i}_{s.kind}": s.steps for i, s in enumerate(recipe.stages)},
        ),
        prior=None
        if system.prior is None
        else PriorSpec(
            pixels=system.prior.features.shape[0],
            channels=system.prior.features.shape[1],
            note=NOTE,
        ),
        metrics={
            f"{i}_{s.kind}": p.get("validation", {})
            for i, (s, p) in enumerate(zip(recipe.stages, progress, strict=True))
        },
    )
    save_bundle(
        path,
        manifest,
        student=system.student,
        prior=system.prior,
        multi_frame=system.multi_frame,
        pose=system.pose,
    )
    return path


def _training_camera(recipe: Recipe, root: Path) -> Camera:
    """The camera of the first drive at the input size; KITTI's where nothing real was seen."""
    width, height = recipe.size
    if recipe.data.drives:
        return (
            open_recording(root / recipe.data.drives[0].path).frames[0].camera.scaled(*recipe.size)
        )
    return Camera(0.58 * width, 1.92 * height, 0.49 * width, 0.46 * height, width, height)
