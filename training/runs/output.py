"""What a run leaves: a bundle (metric factor, manifest, files), and what it was made with.

The latter is kept beside the results: commit, seed, versions, machine.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from depth_prior_ros.atomic_files import staging_folder, write_json
from depth_prior_ros.bundle import (
    Architecture,
    Bundle,
    CameraSpec,
    DepthSpec,
    Manifest,
    PriorSources,
    PriorSpec,
    Provenance,
    load_bundle,
    save_bundle,
)
from depth_prior_ros.bundle.derive import replace_references, replace_student
from depth_prior_ros.bundle.manifest import STEREO_BASELINES
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import StoredRecording
from training.data.drives import network_camera, open_drive
from training.data.frames import Window
from training.data.sources import plan_data
from training.evaluation.baselines import write_baselines
from training.prior.steps import ChosenPrior
from training.recipes.data import Drive
from training.recipes.recipe import Recipe, RecipeError
from training.runs.metric_scale import fit_by_camera_height, fit_metres_per_unit
from training.stages.prior import NOTE
from training.stages.system import System

# Those that can change a figure; OpenCV goes by either name.
_PACKAGES = (
    "depth_prior_ros",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pydantic",
    "safetensors",
    "torch",
)


def keep_environment(path: Path, seed: int, device: torch.device, precision: str) -> None:
    """Note in a JSON file what this start of a run is made with.

    The file holds a list: a run that goes on with other versions, another commit or on another
    machine adds an entry, so that a difference in its figures can be explained.
    """
    entries = _entries(path)
    entry = environment(seed, device) | {"precision": precision}
    if entries[-1:] == [entry]:
        return
    write_json(path, [*entries, entry])


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Commit, seed, versions and machine as plain values."""
    cuda = device.type == "cuda"
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "git": git_hash(),
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processes": torch.distributed.get_world_size() if several else 1,
        "threads": torch.get_num_threads(),
        "packages": {name: v for name in _PACKAGES if (v := version_of(name))},
    }


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_hash() -> str | None:
    """The commit of the checkout, with ``-dirty`` where files were changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository around it is somebody else's
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


# For the mean of the student's own output: so many drives and frames, evenly spaced, are enough.
_DRIVES, _FRAMES = 20, 400


def write_bundle(
    path: Path,
    recipe: Recipe,
    system: System,
    progress: list[dict[str, Any]],
    root: Path,
    with_multi: bool = True,
    chosen: ChosenPrior | None = None,
) -> Path:
    """Write the finished system, and maps that do not look at the image, as a bundle.

    Without ``with_multi`` it is a student alone. ``chosen`` tells where the system's prior comes
    from. ``path`` appears when all of it is there.

    Raises:
        BundleError: it cannot be written.
        OSError: ``path`` is a folder with other things in it.
    """
    for network in system.networks.values():
        network.eval()
    factor, source = recipe.metres_per_unit, "unit of the training poses and synthetic depth"
    if recipe.data.stereo:
        source = f"{STEREO_BASELINES} of the training drives (mode {recipe.data.mode})"
    if recipe.output.scale_drive is not None:
        factor, spread = fit_metres_per_unit(
            system, root / recipe.output.scale_drive, recipe.size, recipe.metres_per_unit
        )
        source = (
            f"photometric fit of the student's depth to the camera poses of "
            f"{recipe.output.scale_drive} (interquartile range over frames {spread:.1%})"
        )
    seen = _trained_on(recipe, root)
    if recipe.output.camera_height is not None:
        height = recipe.output.camera_height
        factor, spread = fit_by_camera_height(system, seen, recipe.size, height)
        source = (
            f"{height:g} m from camera to road in the training drives (their factors differ by "
            f"{spread:.0%} at most)"
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
        training_camera=CameraSpec.of(_training_camera(recipe, seen)),
        depth=DepthSpec(metres_per_unit=factor, metres_per_unit_source=source),
        licence=recipe.output.licence,
        provenance=Provenance(
            data_sources=list(recipe.output.provenance),
            recipe=recipe.model_dump(mode="json"),
            seed=recipe.seed,
            git=git_hash(),
            steps={p["part"]: p["step"] for p in progress},
        ),
        prior=_prior_spec(system, chosen),
        metrics={p["part"]: p.get("validation", {}) for p in progress},
    )
    # A bundle without its maps would pass for a finished one after a kill in between.
    with staging_folder(path) as folder:
        whole = folder / path.name
        save_bundle(
            whole,
            manifest,
            student=system.student,
            prior=system.prior,
            prior_sources=None
            if chosen is None
            else PriorSources(chosen.image, chosen.pixel, chosen.images),
            teacher=_teacher(recipe, chosen),
            identify=_identify(recipe),
            multi_frame=system.multi_frame if with_multi else None,
            pose=system.pose if with_multi else None,
        )
        _write_maps(whole, root, seen)
        whole.rename(path)
    return path


def write_student(
    path: Path, recipe: Recipe, system: System, progress: list[dict[str, Any]], root: Path
) -> Path:
    """Write the bundle that the recipe starts with, with the student as it is now.

    Its other networks, prior, references, camera and metric factor are kept. ``path`` appears when
    all of it is there.

    Raises:
        BundleError: it cannot be written.
        OSError: ``path`` is a folder with other things in it.
    """
    assert recipe.start is not None  # the recipe was checked
    old = load_bundle(recipe.start)
    manifest = old.manifest
    made = manifest.provenance
    note = (
        f"so far: seed {made.seed}, commit {made.git}; since then its student alone learned on, by "
        "the recipe, seed and commit named here"
    )
    steps = dict(made.steps)
    for part in progress:
        steps[part["part"]] = steps.get(part["part"], 0) + part["step"]
    sources = [s for s in recipe.output.provenance if s not in made.data_sources]
    provenance = Provenance(
        data_sources=[*made.data_sources, *sources],
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        git=git_hash(),
        steps=steps,
        note="; ".join(filter(None, (made.note, note))),
    )
    metrics = {p["part"]: p.get("validation", {}) for p in progress}
    with staging_folder(path) as folder:
        changed = replace_student(
            old,
            folder / "student",
            student=system.student.eval(),
            pose=old.pose() if old.has("pose") else None,
            camera=manifest.training_camera,
            depth=manifest.depth,
            provenance=provenance,
            name=recipe.output.name,
        )
        whole = folder / path.name
        spec = manifest.references
        if spec is not None:
            spec = spec.model_copy(update={"source": f"{spec.source} (of the student before)"})
        replace_references(changed, whole, old.references(), spec, metrics=metrics)
        _write_maps(whole, root, _trained_on(recipe, root))
        whole.rename(path)
    return path


def _write_maps(bundle: Path, root: Path, seen: list[tuple[Drive, StoredRecording]]) -> None:
    """Maps that do not look at the image, of the recordings that a bundle was trained on."""
    if seen:
        recordings = [recording for _, recording in seen]
        stride = max(10, sum(len(r.frames) for r in recordings) // _FRAMES)
        write_baselines(bundle, root, stride, recordings)


def _prior_spec(system: System, chosen: ChosenPrior | None) -> PriorSpec | None:
    if system.prior is None or system.student.fusion is None:
        return None
    pixels, channels = system.prior.features.shape
    if chosen is None:
        return PriorSpec(pixels=pixels, channels=channels, note=NOTE)
    about = chosen.selection  # of a bundle's prior that somebody made by hand it may say nothing
    method, out_of = about.get("method"), about.get("out_of")
    note = f"{pixels} reference pixels of {chosen.teacher.name}"
    if method and out_of:
        note = f"{method}: {pixels} of {out_of} reference pixels of {chosen.teacher.name}"
    return PriorSpec(
        pixels=pixels,
        channels=channels,
        note=note,
        teacher=chosen.teacher,
        selection=about or None,
    )


def _teacher(recipe: Recipe, chosen: ChosenPrior | None) -> str | None:
    """The bundle that goes with the prior; a model of Hugging Face does not."""
    if chosen is None or recipe.teacher is None or not recipe.output.teacher:
        return None
    return recipe.teacher.model if chosen.teacher.kind == "bundle" else None


def _identify(recipe: Recipe) -> Callable[[Bundle], str] | None:
    """The hash of a bundle as this recipe's teacher, so that no other one goes with the prior."""
    asked = recipe.teacher
    if asked is None:
        return None

    def digest(bundle: Bundle) -> str:
        from training.prior.teachers.bundle import BundleTeacher

        teacher = BundleTeacher(
            bundle,
            asked.stride,
            asked.lookup,
            metres_per_unit=recipe.metres_per_unit,
            features=asked.features,
        )
        return teacher.identity.sha256

    return digest


def _trained_on(recipe: Recipe, root: Path) -> list[tuple[Drive, StoredRecording]]:
    """Some of the recordings that a recipe trains on, opened as training opens them."""
    if not recipe.data.recorded:
        return []
    entries = plan_data(root, recipe.data).training
    seen = []
    for entry in entries[:: -(-len(entries) // _DRIVES)]:
        try:
            seen.append((entry.drive, open_drive(root, entry.drive)))
        except RecipeError:
            if entry.named:
                raise  # otherwise it was left out of the training, too
    return seen


def _without_size(architecture: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in architecture.items() if key != "size"}


def training_camera(recipe: Recipe, root: Path) -> Camera:
    """The camera of the first drive at the input size; KITTI's where nothing real was seen."""
    return _training_camera(recipe, _trained_on(recipe, root))


def _training_camera(recipe: Recipe, seen: list[tuple[Drive, StoredRecording]]) -> Camera:
    if seen:
        drive, recording = seen[0]
        return network_camera(recording, Window(recipe.size, drive.crop))
    width, height = recipe.size
    return Camera(0.58 * width, 1.92 * height, 0.49 * width, 0.46 * height, width, height)
