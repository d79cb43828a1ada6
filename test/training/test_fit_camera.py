"""`depth_train fit-camera` on a drive whose depth the student itself made, told another camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle, texture, tiny_manifest

from depth_prior_ros.bundle import Bundle, load_bundle, save_bundle
from depth_prior_ros.bundle.manifest import Architecture
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.student import build_student
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.multi_frame_step import stretch_of
from depth_prior_ros.pipeline.runtime import compile_networks
from depth_prior_ros.recordings import open_recording
from training.errors import TrainingError
from training.runs.fit_camera import fit_camera

TOLD = (1.0, -0.5, 0.3, 0.8, -0.4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = tiny_manifest()
    student = {"trunk": "mobilenet_v2", "decoder": "convex", "camera_code": True, "far_bias": -2.0}
    torch.manual_seed(0)
    net = build_student(student)
    assert net.camera_code is not None
    for layer in net.camera_code.added.values():
        torch.nn.init.normal_(layer.weight, 0, 3)
    manifest = manifest.model_copy(
        update={"architecture": Architecture(student=net.architecture), "prior": None}
    )
    return save_bundle(tmp_path / "bundle", manifest, student=net)


def write_drive(folder: Path, bundle: Bundle, factor: float = 1.0) -> Path:
    """Six frames of KITTI 2015's form with depth for every pixel."""
    student, trained = bundle.student(), bundle.manifest.camera
    for name in ("image_02", "depth_stereo"):
        (folder / name).mkdir(parents=True)
    for i in range(6):
        image = texture(414, 125, seed=i, margin=0)
        cv2.imwrite(str(folder / "image_02" / f"{i:06d}.png"), image)
    recording = open_recording(folder)
    for i, frame in enumerate(recording.frames):
        framed = frame_image(frame.image(), frame.camera, trained)
        with torch.no_grad():
            told = torch.tensor([TOLD])
            disparity = student(torch.from_numpy(framed.tensor()), code=told).disparity[0]
        units = disparity_to_depth(disparity)[1][0, 0].numpy()
        metres = units * bundle.manifest.depth.metres_per_unit * stretch_of(framed, trained)
        full = cv2.resize(metres * factor, (414, 125), interpolation=cv2.INTER_NEAREST)
        depth = np.clip(full * 256, 0, 65535).astype(np.uint16)
        cv2.imwrite(str(folder / "depth_stereo" / f"{i:06d}.png"), depth)
    return folder


def test_the_new_bundle_tells_its_camera(tmp_path: Path, bundle: Bundle) -> None:
    drive = write_drive(tmp_path / "kitti_2015", bundle)
    fitted, found = fit_camera(bundle.path, drive, tmp_path / "fitted", frames=6)
    assert found.after < found.before
    again = load_bundle(tmp_path / "fitted")
    spec = again.manifest.camera_code
    assert spec is not None and spec.numbers == found.numbers == fitted.manifest.camera_code.numbers  # type: ignore[union-attr]
    assert again.manifest.files == bundle.manifest.files, "no weight changed"
    same = next(f.camera for f in open_recording(drive).frames)
    assert spec.doubt(same) is None
    longer = replace(same, fx=1.5 * same.fx, fy=1.5 * same.fy)
    doubt = spec.doubt(longer)
    assert doubt is not None and "another camera" in doubt and "fx over width is" in doubt
    image = np.random.default_rng(0).random((1, 3, *bundle.manifest.input_size[::-1]), np.float32)
    before, after = (
        compile_networks(b, "torch")[0].single(torch.from_numpy(image))[0] for b in (bundle, again)
    )
    told = torch.tensor([spec.numbers])
    with torch.no_grad():
        disparity = bundle.student()(torch.from_numpy(image), code=told).disparity[0]
    torch.testing.assert_close(after, disparity_to_depth(disparity)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, rtol=1e-3)


def test_what_cannot_be_fitted_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    drive = write_drive(tmp_path / "kitti_2015", bundle)
    with pytest.raises(TrainingError, match="at least 2"):
        fit_camera(bundle.path, drive, tmp_path / "out", frames=1)
    plain = make_tiny_bundle(tmp_path / "plain")
    with pytest.raises(TrainingError, match="not told its camera"):
        fit_camera(plain.path, drive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
