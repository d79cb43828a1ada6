"""From trained networks to a bundle: metric factor, manifest, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from training.baselines import write_baselines
from training.config import Recipe
from training.environment import git_hash
from training.metric_scale import fit_metres_per_unit
from training.stages.prior import NOTE
from training.stages.system import System


def write_bundle(
    path: Path,
    recipe: Recipe,
    system: System,
    progress: list[dict[str, Any]],
    root: Path,
    with_multi: bool = True,
) -> Path:
    """Write the finished system, and maps that do not look at the image, as a bundle.

    Without ``with_multi`` it is a student alone.
    """
    for network in system.networks.values():
        network.eval()
    factor, source = recipe.metres_per_unit, "unit of the training poses and synthetic depth"
    if recipe.output.scale_drive is not None:
        factor, spread = fit_metres_per_unit(
            system, root / recipe.output.scale_drive, recipe.size, recipe.metres_per_unit
        )
        source = (
            f"photometric fit of the student's depth to the camera poses of "
            f"{recipe.output.scale_drive} (interquartile range over frames {spread:.1%})"
        )
    manifest = Manifest(
        name=recipe.output.name,
        architecture=Architecture(
            student=system.student.architecture,
            pose=system.pose.architecture if with_multi else None,
            multi_frame=_without_size(system.multi_frame.architecture) if with_multi else None,
            align_motion=system.align and with_multi,
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
            steps={p["part"]: p["step"] for p in progress},
        ),
        prior=None
        if system.prior is None
        else PriorSpec(
            pixels=system.prior.features.shape[0],
            channels=system.prior.features.shape[1],
            note=NOTE,
        ),
        metrics={p["part"]: p.get("validation", {}) for p in progress},
    )
    save_bundle(
        path,
        manifest,
        student=system.student,
        prior=system.prior,
        multi_frame=system.multi_frame if with_multi else None,
        pose=system.pose if with_multi else None,
    )
    if recipe.data.recorded:
        write_baselines(path, root)
    return path


def _without_size(architecture: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in architecture.items() if key != "size"}


def _training_camera(recipe: Recipe, root: Path) -> Camera:
    """The camera of the first drive at the input size; KITTI's where nothing real was seen."""
    width, height = recipe.size
    if recipe.data.drives:
        return (
            open_recording(root / recipe.data.drives[0].path).frames[0].camera.scaled(*recipe.size)
        )
    return Camera(0.58 * width, 1.92 * height, 0.49 * width, 0.46 * height, width, height)
