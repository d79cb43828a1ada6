"""`depth_train tune`: held-out spans, what is kept, and the whole chain on small drives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TOLD, make_tiny_bundle, make_told_bundle, texture
from test_bag import CAMERA, raw_image, smooth, write_messages
from tiny_trunk import TINY_TRUNK
from training_files import TRAINING_NAMES, write_moving_drive

from depth_prior_ros.bundle import Bundle, CameraCodeSpec, CameraSpec, load_bundle
from depth_prior_ros.bundle.derive import replace_student, tell_camera
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recording_options import recording_options
from depth_prior_ros.recordings import Frame, StoredRecording, open_recording
from depth_prior_ros.recordings.bag_topics import IMAGE
from depth_prior_ros.scale import focal_ratio
from rosbag_tools.make import write_bag
from training.commands.cli import main
from training.data.drives import find_triplets, open_drive, part_of
from training.data.triplets import TripletBatch
from training.evaluation.evaluation import ALL, SetReport
from training.recipes.base import RecipeError
from training.runs import tune as tuning
from training.runs.run import Run
from training.runs.tune import Request
from training.runs.tune_result import Measured, TuneResult, depth_of
from training.stages.validation import validation_error

SIZE = (192, 64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", trunk=TINY_TRUNK)


def street(count: int) -> StoredRecording:
    """Exact depth and speeds; the pictures are of a textured wall that goes by."""
    wall = np.random.default_rng(0).integers(0, 255, (8, 200, 3)).astype(np.uint8)
    wall = wall.repeat(8, 0).repeat(8, 1)
    depth = np.repeat(np.linspace(60, 3, SIZE[1], dtype=np.float32)[:, None], SIZE[0], 1)

    def frame(number: int) -> Frame:
        return Frame(
            number,
            10**18 + number * 10**8,
            Camera(111.0, 123.0, 96.0, 30.0, *SIZE),
            load_image=lambda: wall[:, 4 * number : 4 * number + SIZE[0]].copy(),
            load_depth=lambda: depth,
            speed=5.0,
        )

    return StoredRecording("street", [frame(i) for i in range(count)], depth_source="exact")


@pytest.mark.parametrize("count", [37, 200, 5000])
def test_parts_share_no_frame_and_no_triplet(count: int) -> None:
    camera = Camera(111.0, 123.0, 96.0, 30.0, *SIZE)
    frames = [Frame(i, i, camera, load_image=lambda: np.zeros(0)) for i in range(count)]  # type: ignore[arg-type, return-value]
    whole = StoredRecording("drive", frames)
    seen: list[int] = []
    for part in ("training", "choosing", "evaluation"):
        cut = part_of(whole, part)
        seen += [frame.index for frame in cut.frames]
        triplets = find_triplets(cut, 1, [True] * len(cut.frames))
        assert triplets
        for triplet in triplets:
            a, b, c = (cut.frames[i].index for i in triplet)
            assert (a + 1, b + 1) == (b, c)
        share = len(cut.frames) / count
        assert share == pytest.approx(0.75 if part == "training" else 0.125, abs=0.05)
    assert sorted(seen) == list(range(count))
    unseen = [frame.index for frame in part_of(whole, "evaluation").frames]
    assert unseen[0] > 0 and unseen[-1] < count - 1  # neither end
    assert part_of(whole, "all") is whole


@pytest.mark.slow
def test_a_drive_is_tuned_and_evaluated_on_what_was_held_out(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Run, "seconds_per_step", lambda self: 10.0)
    bag = write_bag(street(48), tmp_path / "street.mcap").path
    other = write_bag(street(6), tmp_path / "other.mcap").path
    out = tmp_path / "out"
    command = ["tune", str(bundle.path), "--bag", str(bag), "--out", str(out)]
    command += ["--backend", "torch"]
    code = main([*command, "--minutes", "0.3", "--test", str(other)])
    said = capsys.readouterr().out
    figures = json.loads((out / "tune.json").read_text())
    assert code == (0 if figures["better"] else 1)
    assert (out / "bundle").is_dir() == figures["better"]
    assert "unit by speeds" in said and "of the way is taken" in said
    tuned = load_bundle(out / "tuned")
    assert tuned.manifest.training_camera.fy == pytest.approx(123 / 2, rel=0.02)  # the drive's
    assert tuned.manifest.depth.metres_per_unit_source.startswith("unit by speeds")
    before = figures["before"]["depth"]
    assert before["held-out span"]["all"]["frames"] == 6
    assert before["test: other"]["all"]["frames"] == 6
    page = (out / "tune.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    # The same command goes on, that is, has nothing to train; another one is refused.
    assert main([*command, "--minutes", "0.3"]) == code
    assert json.loads((out / "tune.json").read_text())["said"] == figures["said"]
    assert main([*command, "--seed", "2"]) == 1
    assert "holds a tuning of another bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_without_truth_and_metres_the_unit_stays(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Run, "seconds_per_step", lambda self: 10.0)
    drive = write_moving_drive(tmp_path, TRAINING_NAMES[0], range(40))
    out = tmp_path / "out"
    main(["tune", str(bundle.path), "--bag", str(drive), "--out", str(out), "--minutes", "0.3"])
    said = capsys.readouterr().out
    assert "nothing tells metres while training" in said and "training moved the unit by" in said
    assert "not adapted: " in said
    assert "photometric error from the frames beside" in said
    moved = re.search(r"training moved the unit by ([+-][\d.]+)%", said)
    assert moved is not None
    old, new = bundle.manifest, load_bundle(out / "tuned").manifest
    seen, trained = new.camera, old.camera
    unit = old.depth.metres_per_unit * focal_ratio(seen.fx, seen.fy, trained.fx, trained.fy)
    expected = unit * (1 + float(moved[1]) / 100)
    assert new.depth.metres_per_unit == pytest.approx(expected, rel=1e-3)


def test_what_is_measured_is_what_is_written(tmp_path: Path) -> None:
    """What `adapt` tells the student of its camera counts, as it does on a vehicle."""
    bundle = make_told_bundle(tmp_path / "plain")
    camera = bundle.manifest.camera
    spec = CameraCodeSpec(numbers=TOLD, camera=CameraSpec.of(camera), source="test")
    picture = texture(camera.width, camera.height, margin=0)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = []
    for one in (bundle, tell_camera(bundle, tmp_path / "told", spec)):
        pipeline = DepthPipeline(one, "torch", max_metres=1e9)
        expected = pipeline.process(picture, 0, None, camera).depth
        depth = depth_of(one, camera, torch.device("cpu"))(image)[0, 0].detach().numpy()
        found.append(depth * one.manifest.depth.metres_per_unit)
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4)
    assert np.abs(found[0] / found[1] - 1).max() > 0.05


def test_the_partner_has_no_say_in_what_the_frames_beside_explain(bundle: Bundle) -> None:
    """The error from the frames beside is the same with a partner and without."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 3, SIZE[1], SIZE[0], generator=generator)
    K = torch.tensor([[111.0, 0, 96], [0, 123, 30], [0, 0, 1]]).repeat(2, 1, 1)
    poses = torch.eye(4).repeat(2, 2, 1, 1)
    alone = TripletBatch(images, images, K, poses, torch.ones(2, dtype=torch.bool))
    beside = replace(alone, partner=images[:, 1], partner_K=K, partner_pose=poses[:, 0])

    class Given:
        def __init__(self, batch: TripletBatch) -> None:
            self.batch = lambda size, rng: batch

    class Motionless:
        device = torch.device("cpu")

        def neighbour_motions(self, images: torch.Tensor) -> torch.Tensor:
            return poses.transpose(0, 1)

        def single_depth(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(images[:, :1])

    errors = []
    for batch, mode in ((alone, "M"), (beside, "M"), (beside, "MS")):
        torch.manual_seed(0)
        errors.append(validation_error(Motionless(), Given(batch), mode))  # type: ignore[arg-type]
    assert errors[0] == errors[1] != errors[2]


def test_intrinsics_of_a_bag_without_camera_info(tmp_path: Path) -> None:
    images = [(10**9 * i, raw_image(10**9 * i, smooth(i), "rgb8")) for i in range(1, 3)]
    bag = write_messages(tmp_path / "bag", {"/front/image_raw": (IMAGE, images)})
    request = Request("lite", bag, intrinsics="40,41,31.5,11.25")
    assert open_drive(Path(), tuning.make_drive(request)).frames[0].camera == CAMERA
    file = tmp_path / "front.yaml"
    values = "units: normalised\nfx: 0.625\nfy: 1.7083333333333333\n"
    file.write_text(values + "cx: 0.4921875\ncy: 0.46875\n")
    camera = open_drive(Path(), tuning.make_drive(replace(request, intrinsics=str(file)))).frames
    assert camera[0].camera.matrix() == pytest.approx(CAMERA.matrix())
    file.write_text(
        "image_width: 64\nimage_height: 24\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [40, 0, 31.5, 0, 41, 11.25, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [-0.3, 0.1, 0, 0, 0]}\n"
    )
    with pytest.raises(RecipeError, match=r"has a lens, .*depth_bag extract"):
        tuning.make_drive(replace(request, intrinsics=str(file)))
    # The other tools read the bag through that lens.
    seen = open_recording(bag, **recording_options(bag, replace(request, intrinsics=str(file))))
    assert seen.frames[0].lens is not None


def test_a_short_recording_is_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = write_moving_drive(tmp_path, TRAINING_NAMES[0], range(12))
    assert main(["tune", str(bundle.path), "--bag", str(drive), "--out", str(tmp_path / "x")]) == 1
    assert "12 frames; 32 that follow each other are needed" in capsys.readouterr().err


def test_new_weights_bring_their_alignment_and_leave_the_rest(
    bundle: Bundle, tmp_path: Path
) -> None:
    student, old = bundle.student(), bundle.manifest
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.01)
    depth = old.depth.model_copy(update={"metres_per_unit": 7.0})
    made = replace_student(
        bundle,
        tmp_path / "new",
        student=student,
        pose=bundle.pose(),
        camera=old.training_camera,
        depth=depth,
        provenance=old.provenance,
    )
    assert made.manifest.depth.metres_per_unit == 7.0
    assert made.manifest.prior is not None and old.prior is not None
    assert made.manifest.prior.alignment != old.prior.alignment
    for file in ("multi_frame.safetensors", "pose.safetensors"):
        assert (made.path / file).read_bytes() == (bundle.path / file).read_bytes()


def result(scaled: float, metres: float, count: int, photometric: float = 0.9) -> TuneResult:
    """After against before, where all errors before are 1; `count` frames have truth."""
    from depth_prior_ros.evaluation.evaluate import FrameResult
    from depth_prior_ros.evaluation.metrics import DepthErrors

    def reports(scaled: float, metres: float) -> dict[str, SetReport]:
        chosen = EvaluationSet("x", PROTOCOLS["synthetic"], StoredRecording("x", []), ())
        errors = [DepthErrors(value, 1, 1, 1, 1, 1, 1, 1) for value in (scaled, metres)]
        frame = FrameResult(0, 0, "", "", errors[0], errors[1], (0, 0, 1, 1))
        return {"held-out span": SetReport(chosen, {ALL: [frame] * count})}

    weights = (Measured(1.0, None), Measured(photometric, None))
    return TuneResult("x", (), weights, (reports(1, 1), reports(scaled, metres)))


def test_what_is_not_better_is_not_kept() -> None:
    assert result(0.9, 0.9, 9).better
    assert result(1.01, 0.9, 9).better  # metres are what a vehicle gets
    assert not result(1.1, 0.9, 9).better  # at the price of the shape
    assert not result(0.9, 1.1, 9).better
    assert not result(1.0, 1.0, 9).better
    # Two frames with truth say nothing: the pictures decide.
    assert result(1.1, 1.1, 2).better and not result(0.9, 0.9, 2, 1.1).better
    stereo = replace(result(1, 1, 0), photometric=(Measured(1, 1), Measured(0.9, 1.1)))
    assert not stereo.better
