"""`depth_train adapt` on drives whose depth the student itself made, told another camera."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import TOLD, make_tiny_bundle, make_told_bundle, texture

from depth_prior_ros.adaptation.drives import matched_keyframes, motion_since
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.multi_frame_step import stretch_of
from depth_prior_ros.recordings import Frame, StoredRecording, open_recording
from training.commands.cli import REFERENCES, main
from training.errors import TrainingError
from training.runs import adapt as adapting
from training.runs.adapt import Request, adapt_bundle

FRAMES = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_told_bundle(tmp_path_factory.mktemp("bundles") / "told")


def write_scenes(folder: Path, bundle: Bundle, told: tuple[float, ...] = TOLD) -> Path:
    """Frames of KITTI 2015's form with depth for every pixel."""
    student, trained = bundle.student(), bundle.manifest.camera
    for name in ("image_02", "depth_stereo"):
        (folder / name).mkdir(parents=True)
    for i in range(FRAMES):
        image = texture(414, 125, seed=i, margin=0)
        cv2.imwrite(str(folder / "image_02" / f"{i:06d}.png"), image)
    for i, frame in enumerate(open_recording(folder).frames):
        framed = frame_image(frame.image(), frame.camera, trained)
        with torch.no_grad():
            code = torch.tensor([told])
            disparity = student(torch.from_numpy(framed.tensor()), code=code).disparity[0]
        units = disparity_to_depth(disparity)[1][0, 0].numpy()
        metres = units * bundle.manifest.depth.metres_per_unit * stretch_of(framed, trained)
        full = cv2.resize(metres, (414, 125), interpolation=cv2.INTER_NEAREST)
        depth = np.clip(full * 256, 0, 65535).astype(np.uint16)
        cv2.imwrite(str(folder / "depth_stereo" / f"{i:06d}.png"), depth)
    return folder


def test_the_new_bundle_is_told_its_camera(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, out = write_scenes(tmp_path / "kitti_2015", bundle), tmp_path / "mine"
    assert main(["adapt", str(bundle.path), "--bag", str(scenes), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "recorded depth (stereo)" in said and f"bundle: {out}" in said
    figures = json.loads((tmp_path / "mine.json").read_text())
    assert figures["better"] and figures["fitted"] == figures["evaluated"] == FRAMES // 2
    assert figures["after"]["abs_rel"] < figures["before"]["abs_rel"]
    page = (tmp_path / "mine.html").read_text()
    assert "was written" in page and page.count("<img") == 16
    new = load_bundle(out)
    assert new.manifest.files == bundle.manifest.files, "no weight changed"
    told = new.manifest.camera_code
    assert told is not None and list(told.numbers) == figures["numbers"]
    camera = open_recording(scenes).frames[0].camera
    assert told.doubt(camera) is None
    doubt = told.doubt(replace(camera, fx=1.5 * camera.fx, fy=1.5 * camera.fy))
    assert doubt is not None and "depth_train adapt" in doubt
    # Through the pipeline of a vehicle the depth is that of the numbers.
    frame = open_recording(scenes).frames[0]
    truth = frame.depth()
    assert truth is not None
    errors = []
    for each in (bundle, new):
        depth = (
            DepthPipeline(each, "torch", max_metres=1e6)
            .process(frame.image(), 0, None, frame.camera)
            .depth
        )
        small = cv2.resize(truth, depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        errors.append(float(np.mean(np.abs(depth - small)[small > 0] / small[small > 0])))
    assert errors[1] < errors[0]


def test_what_is_not_better_is_not_kept(tmp_path: Path, bundle: Bundle) -> None:
    """References that the bundle itself would give: nothing can better it."""
    scenes = write_scenes(tmp_path / "kitti_2015", bundle, (0.0,) * 5)
    out = tmp_path / "mine"
    make_tiny_bundle(out)
    before = (out / "bundle.yaml").read_bytes()
    outcome = adapt_bundle(Request(bundle.path, scenes, out))
    assert outcome.bundle is None and "stays as it was" in str(outcome)
    assert (out / "bundle.yaml").read_bytes() == before
    assert "none was written" in outcome.page.read_text()


def test_what_cannot_be_adapted_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    scenes, out = write_scenes(tmp_path / "kitti_2015", bundle), tmp_path / "out"
    plain = make_tiny_bundle(tmp_path / "plain")
    with pytest.raises(TrainingError, match="not told its camera"):
        adapt_bundle(Request(plain.path, scenes, out))
    with pytest.raises(TrainingError, match="nothing says how far"):
        adapt_bundle(Request(bundle.path, scenes, out, references="multi_frame"))
    with pytest.raises(TrainingError, match="separate scenes"):
        adapt_bundle(Request(bundle.path, scenes, out, references="multi_frame", camera_height=1.6))
    for depth in sorted((scenes / "depth_stereo").iterdir())[5:]:
        depth.unlink()
    with pytest.raises(TrainingError, match="5 keyframes with depth in metres, and 8"):
        adapt_bundle(Request(bundle.path, scenes, out, references="recorded"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("camera_height", 0.0), ("camera_pitch_deg", 50.0), ("ignore_bottom", 0.9)],
)
def test_impossible_numbers(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(TrainingError, match=name.replace("_", "-")):
        adapt_bundle(Request("lite", tmp_path, **{name: value}))


def test_names_are_those_of_the_library() -> None:
    assert adapting.REFERENCES == REFERENCES


def test_a_recorded_drive_gives_keyframes_with_its_odometry(tmp_path: Path) -> None:
    """A picture that moves, and poses half a metre apart."""
    bundle = make_tiny_bundle(tmp_path / "tiny")
    camera, wide = Camera(110.0, 110.0, 96.0, 32.0, 192, 64), texture(192, 64)
    poses = [np.eye(4) for _ in range(24)]
    for i, pose in enumerate(poses):
        pose[2, 3] = 0.5 * i

    def image(i: int) -> np.ndarray:
        return np.roll(wide, 2 * i, axis=1)[64:128, 64:256].copy()

    frames = [
        Frame(i, i * 10**8, camera, lambda i=i: image(i), pose=pose, speed=5.0)
        for i, pose in enumerate(poses)
    ]
    drive = StoredRecording("drive", frames)
    pipeline = DepthPipeline(bundle, "torch")
    found = matched_keyframes(drive, pipeline)
    assert pipeline.witness is None and len(found) >= 3
    assert all(k.metres is not None and k.metres >= 0.5 and k.units > 0 for k in found)
    assert {k.pixels.shape for k in found} == {(32, 96, 3)}
    told = motion_since(frames[3], frames[4])
    assert told is not None and told.pose is not None
    np.testing.assert_allclose(told.pose[:3, 3], [0, 0, 0.5])
    assert motion_since(None, frames[4]).pose is None  # type: ignore[union-attr]
