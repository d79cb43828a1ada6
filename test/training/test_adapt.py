"""`depth_train adapt` on drives whose depth the student itself made, told another camera."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import TOLD, import_student, make_tiny_bundle, make_told_bundle, texture
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.adaptation.drives import matched_keyframes, motion_since
from depth_prior_ros.bundle import Bundle, CameraCodeSpec, FactorSpec, describe, load_bundle
from depth_prior_ros.evaluation.evaluate import evaluate_model
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.pipeline.multi_frame_step import stretch_of
from depth_prior_ros.recordings import Frame, StoredRecording, open_recording
from training.commands.cli import REFERENCES, main
from training.errors import TrainingError
from training.runs import adapt as adapting
from training.runs.adapt import DepthSource, Request, adapt_bundle, joined_sources

FRAMES = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_told_bundle(tmp_path_factory.mktemp("bundles") / "told", trunk=TINY_TRUNK)


def write_scenes(
    folder: Path, bundle: Bundle, told: tuple[float, ...] = TOLD, scaled: float = 1.0
) -> Path:
    """Frames of KITTI 2015's form with depth for every pixel, that of the student, scaled."""
    student, trained = bundle.student(), bundle.manifest.camera
    prior = (bundle.prior(),) if bundle.has("prior") else ()
    for name in ("image_02", "depth_stereo"):
        (folder / name).mkdir(parents=True)
    for i in range(FRAMES):
        image = texture(414, 125, seed=i, margin=0)
        cv2.imwrite(str(folder / "image_02" / f"{i:06d}.png"), image)
    for i, frame in enumerate(open_recording(folder).frames):
        framed = frame_image(frame.image(), frame.camera, trained)
        with torch.no_grad():
            code = torch.tensor([told]) if bundle.manifest.takes_code else None
            seen = student(torch.from_numpy(framed.tensor()), *prior, code=code)
            disparity = seen.disparity[0]
        units = disparity_to_depth(disparity)[1][0, 0].numpy()
        unit = scaled * bundle.manifest.depth.metres_per_unit
        metres = units * unit * stretch_of(framed, trained)
        full = cv2.resize(metres, (414, 125), interpolation=cv2.INTER_NEAREST)
        depth = np.clip(full * 256, 0, 65535).astype(np.uint16)
        cv2.imwrite(str(folder / "depth_stereo" / f"{i:06d}.png"), depth)
    return folder


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_is_not_better_is_not_kept(tmp_path: Path, bundle: Bundle) -> None:
    """References that the bundle itself would give: nothing can better it."""
    scenes = write_scenes(tmp_path / "kitti_2015", bundle, (0.0,) * 5)
    out = tmp_path / "mine"
    make_tiny_bundle(out, trunk=TINY_TRUNK)
    before = (out / "bundle.yaml").read_bytes()
    outcome = adapt_bundle(Request(bundle.path, scenes, out))
    assert outcome.bundle is None and "stays as it was" in str(outcome)
    assert (out / "bundle.yaml").read_bytes() == before
    assert "none was written" in outcome.page.read_text()


@pytest.mark.slow
def test_several_recordings_of_one_camera(tmp_path: Path, bundle: Bundle) -> None:
    """All of them are fitted and evaluated on; another camera is another matter."""
    scenes = write_scenes(tmp_path / "kitti_2015", bundle)
    again, out = write_scenes(tmp_path / "again" / "kitti_2015", bundle), tmp_path / "mine"
    bags = [str(scenes), str(again)]
    assert main(["adapt", str(bundle.path), "--bag", *bags, "--out", str(out)]) == 0
    figures = json.loads((tmp_path / "mine.json").read_text())
    assert figures["fitted"] == FRAMES and figures["recording"]["more"] == [str(again)]
    assert figures["source"].startswith("kitti_2015 (2 recordings), recorded depth (stereo): ")
    request = Request(bundle.path, scenes, out, more=[scenes])
    recording = open_recording(scenes)
    longer = [
        replace(frame, camera=replace(frame.camera, fx=1.6 * frame.camera.fx))
        for frame in recording.frames
    ]
    with pytest.raises(TrainingError, match="is of another camera: adapt to each alone"):
        adapt_bundle(request, recording=replace(recording, frames=longer))


@pytest.mark.slow
def test_what_cannot_be_adapted_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    scenes, out = write_scenes(tmp_path / "kitti_2015", bundle), tmp_path / "out"
    pytest.importorskip("onnx")
    affine = import_student(bundle, tmp_path, "affine_invariant")
    with pytest.raises(TrainingError, match=r"another factor and shift in every picture.*odometry"):
        adapt_bundle(Request(affine.path, scenes, out))
    alone = import_student(bundle, tmp_path, "scale_invariant")
    with pytest.raises(TrainingError, match=r"no multi-frame network.*scale\.mode camera_height"):
        adapt_bundle(Request(alone.path, scenes, out, references="multi_frame", camera_height=1.6))
    with pytest.raises(TrainingError, match="nothing says how far"):
        adapt_bundle(Request(bundle.path, scenes, out, references="multi_frame"))
    with pytest.raises(TrainingError, match="separate scenes"):
        adapt_bundle(Request(bundle.path, scenes, out, references="multi_frame", camera_height=1.6))
    for depth in sorted((scenes / "depth_stereo").iterdir())[5:]:
        depth.unlink()
    with pytest.raises(TrainingError, match="5 keyframes with depth in metres, and 8"):
        adapt_bundle(Request(bundle.path, scenes, out, references="recorded"))
    assert not out.exists()


@pytest.mark.slow
def test_a_student_that_takes_no_numbers_gets_a_factor(tmp_path: Path) -> None:
    """References half as far as the bundle says; its other networks go with it."""
    plain, out = make_tiny_bundle(tmp_path / "plain", trunk=TINY_TRUNK), tmp_path / "out"
    scenes = write_scenes(tmp_path / "kitti_2015", plain, scaled=0.5)
    outcome = adapt_bundle(Request(plain.path, scenes, out))
    assert "factor: " in str(outcome) and "The factor from" in outcome.page.read_text()
    new = load_bundle(out)
    assert new.manifest.files == plain.manifest.files
    unit = plain.manifest.depth.metres_per_unit
    assert new.manifest.depth.metres_per_unit == pytest.approx(0.5 * unit, rel=0.02)
    told = new.manifest.told
    assert isinstance(told, FactorSpec) and told.source in describe(new)
    camera = open_recording(scenes).frames[0].camera
    assert told.doubt(camera) is None
    doubt = told.doubt(replace(camera, fx=1.5 * camera.fx, fy=1.5 * camera.fy))
    assert doubt is not None and "another camera" in doubt
    with pytest.raises(ValueError, match="a factor, no numbers"):
        numbers = CameraCodeSpec(numbers=(0.0,) * 5, camera=told.camera, source="elsewhere")
        DepthPipeline(new, "torch").tell_camera(numbers)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered drive as a bag, the camera 1.1 m above the road, looking 4 degrees down."""
    from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive
    from rosbag_tools.make import write_bag

    spec = DriveSpec(frames=70, stop=False, camera_height=1.1, camera_pitch_deg=4.0)
    drive = SyntheticDrive(21, (416, 128), spec, supersample=1, street="town")
    path = tmp_path_factory.mktemp("bags") / "street.mcap"
    try:
        write_bag(drive, path)
    except Exception as error:
        pytest.skip(f"needs OpenGL: {error}")
    finally:
        drive.close()
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The student of `lite` as a network of which nobody knows the unit."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("imported")
    return import_student(load_bundle("lite"), folder, "scale_invariant")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("references", "words"), [("recorded", "recorded depth"), ("multi_frame", "followed points")]
)
def test_an_imported_network_of_unknown_unit_gets_its_metres(
    tmp_path: Path,
    street: Path,
    imported: Bundle,
    references: DepthSource,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By exact depth, and by odometry alone, and as well on another part of the drive."""
    assert not imported.manifest.has_metres
    out = tmp_path / "mine"
    asked = ["--bag", str(street), "--references", references, "--out", str(out)]
    assert main(["adapt", str(imported.path), *asked]) == 0
    said = capsys.readouterr().out
    assert words in said and "factor: " in said
    figures = json.loads((tmp_path / "mine.json").read_text())
    before, after = (abs(figures[key]["ratio"] - 1) for key in ("before", "after"))
    assert before > 0.5 and after < 0.08, (before, after)
    new = load_bundle(out)
    assert new.manifest.files == imported.manifest.files and new.manifest.has_metres
    # Wherever metres come from a bundle they are these.
    pipeline = DepthPipeline(new)
    assert pipeline.scale.status.state == "fixed"
    assert pipeline.scale.metres_per_unit == figures["metres_per_unit"]
    recording = open_recording(street)
    chosen = EvaluationSet("street", PROTOCOLS["synthetic"], recording, range(0, 70, 7))
    found = evaluate_model(pipeline, chosen, None, chosen.positions)
    ratio = float(np.median([frame.metric.ratio for frame in found]))
    assert abs(ratio - 1) < 0.15, ratio


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
    bundle = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
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


def test_recordings_of_one_name_are_each_named() -> None:
    same = [("run", "run, exact depth"), ("run", "run, exact depth")]
    assert joined_sources([*same, ("b", "b, exact depth")]) == (
        "run (2 recordings), b, exact depth"
    )
    assert joined_sources([*same, ("b", "b, by poses")]) == (
        "run, exact depth; run, exact depth; b, by poses"
    )
    assert joined_sources([("a", "a, exact depth")]) == "a, exact depth"
