"""`depth_train fit-camera`: tell a bundle's student the camera of a recording with known depth.

Five numbers are fitted (`depth_prior_ros.adaptation.camera_code`); no weight changes. They are kept
only where they help on frames that the fit has not seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.bundle.bundle import seal_bundle
from depth_prior_ros.bundle.files import copy_file, refuse_foreign, staging
from depth_prior_ros.bundle.manifest import CameraCodeSpec, CameraSpec
from depth_prior_ros.pipeline.framing import NetworkInput, frame_image
from depth_prior_ros.pipeline.multi_frame_step import stretch_of
from depth_prior_ros.recordings import StoredRecording, open_recording, read_frames
from training.errors import TrainingError

if TYPE_CHECKING:
    from depth_prior_ros.adaptation.camera_code import FittedCode

#: Pixels of the input between references, each way.
CELL = 8
_NEAREST, _FARTHEST = 0.5, 80.0  # metres


def fit_camera(
    name_or_path: str | Path, bag: Path, out: Path, frames: int = 12
) -> tuple[Bundle, FittedCode]:
    """Fit on evenly spaced frames of a recording and write a bundle that is told its camera.

    Args:
        name_or_path: bundle whose student takes the numbers.
        bag: a recording with depth (LiDAR, another sensor, rendered); half of the frames validate.
        out: folder of the new bundle.
        frames: how many, at least 2.

    Raises:
        BundleError, RecordingError: one of them cannot be opened, or ``out`` not be written.
        TrainingError: a student that takes no numbers, a recording without depth, or a fit that
            makes the frames that were kept out worse.
    """
    import torch

    from depth_prior_ros.adaptation.camera_code import fit_camera_code

    if frames < 2:
        raise TrainingError(f"frames {frames}: at least 2, as every second one validates the fit")
    bundle = load_bundle(name_or_path)
    refuse_foreign(out)
    student = bundle.student()
    if student.camera_code is None:
        raise TrainingError(
            f"{bundle.path}: this student is not told its camera; train one with "
            "networks.camera_code: true"
        )
    recording = open_recording(bag)
    images, depth = _references(bundle, recording, frames)
    found = fit_camera_code(
        student,
        torch.from_numpy(images),
        torch.from_numpy(depth),
        bundle.manifest.depth.metres_per_unit,
    )
    if not found.better:
        raise TrainingError(
            f"{recording.name}: the numbers that fit half of the frames make the others worse "
            f"(AbsRel {found.before:.3f} before, {found.after:.3f} after): is the depth in metres, "
            "and of one camera only? The bundle is left as it is"
        )
    camera = next(f.camera for f in recording.frames if f.has_depth)
    spec = CameraCodeSpec(
        numbers=found.numbers,  # type: ignore[arg-type]  # five of them
        camera=CameraSpec.of(camera),
        source=f"{recording.name}, {found.frames} frames: AbsRel in metres of those kept out "
        f"{found.before:.3f} before, {found.after:.3f} after",
    )
    with staging(out) as folder:
        for file in bundle.manifest.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            copy_file(bundle.path / file, folder / file)
        manifest = bundle.manifest.model_copy(update={"camera_code": spec, "metrics": {}})
        return seal_bundle(folder, out, manifest), found


def _references(
    bundle: Bundle, recording: StoredRecording, count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images (N, 3, H, W) as the student sees them, and depth (N, 1, H / 8, W / 8) to fit on.

    Depth is that of the training camera's focal length, as the student's output is before the
    pipeline multiplies it.
    """
    known = [i for i, frame in enumerate(recording.frames) if frame.has_depth]
    if len(known) < 2:
        raise TrainingError(
            f"{recording.name}: {len(known)} frames with depth in metres; at least 2 are needed"
        )
    chosen = [known[i] for i in np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)]
    trained = bundle.manifest.camera
    images, depths = [], []
    for position, image in read_frames(recording, chosen):
        frame = recording.frames[position]
        depth = frame.depth()
        assert depth is not None  # those were chosen
        framed = frame_image(image, frame.camera, trained)
        images.append(framed.tensor()[0])
        depths.append(_at_cells(depth, framed)[None] / stretch_of(framed, trained))
    return np.stack(images), np.stack(depths).astype(np.float32)


def _at_cells(depth: NDArray[np.float32], framed: NetworkInput) -> NDArray[np.float32]:
    """Known depth nearest to the centre of each cell, within a quarter of it; 0 = unknown."""
    height, width = (side // CELL for side in framed.pixels.shape[:2])
    cells = np.zeros((height, width), np.float32)
    rows, columns = np.nonzero((depth > _NEAREST) & (depth < _FARTHEST))
    y = (rows + 0.5 - framed.region.y) / framed.region.height * height
    x = (columns + 0.5 - framed.region.x) / framed.region.width * width
    away = np.maximum(np.abs(y - np.floor(y) - 0.5), np.abs(x - np.floor(x) - 0.5))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (away < 0.25)
    order = np.argsort(-away[inside])  # the nearest last, which stays
    r, c = rows[inside][order], columns[inside][order]
    cells[y[inside][order].astype(int), x[inside][order].astype(int)] = depth[r, c]
    return cells
