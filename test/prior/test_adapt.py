"""A prior from one's own recording: a new bundle, the same networks, honest figures."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle, shifted, texture, tiny_manifest
from training_files import write_moving_drive

from depth_prior_ros.bundle import (
    Bundle,
    PriorSources,
    PriorSpec,
    Provenance,
    TeacherIdentity,
    load_bundle,
    rewrite_manifest,
    save_bundle,
)
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recordings.base import Frame, StoredRecording
from rosbag_tools.make import write_bag
from training.commands.cli import build_parser, main
from training.errors import TrainingError
from training.prior.adapt import FIGURES, Adapted, Request, _Pool, adapt, open_adapt_teacher
from training.prior.own_drive import OwnDrive, spaced
from training.prior.reference.set import ReferenceSet
from training.prior.teachers.bundle import open_bundle_teacher

SIZE = (124, 38)
COUNT = 16
KEEP = 40


def recording(count: int = COUNT, *, speed: float = 5.0, depth: bool = True) -> StoredRecording:
    """A texture that moves to the side; exact, made-up depth; speed, no poses."""
    camera = Camera(72.0, 72.0, 62.0, 19.0, *SIZE)
    wide = texture(*SIZE, seed=3)
    truth = np.broadcast_to(np.linspace(50, 4, SIZE[1], dtype=np.float32)[:, None], SIZE[::-1])

    def frame(number: int) -> Frame:
        return Frame(
            number,
            10**18 + number * 100_000_000,
            camera,
            lambda: shifted(wide, 2.0 * number * (speed > 0)),
            (lambda: truth.copy()) if depth else None,
            speed=speed,
        )

    name = "made"
    return StoredRecording(name, list(map(frame, range(count))), depth_source="exact")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(recording(), tmp_path_factory.mktemp("bag") / "made.mcap").path


def student_bundle(
    folder: Path,
    teacher: Path,
    *,
    inside: bool = True,
    named: bool = True,
    pose: bool = True,
    identity: TeacherIdentity | None = None,
) -> Bundle:
    """A student with a prior of a teacher, which is in it or not."""
    identity = identity or open_bundle_teacher(str(teacher)).identity
    plain = make_tiny_bundle(folder / "plain", seed=5)
    prior = plain.prior()
    count = len(prior.features)
    spec = PriorSpec(
        pixels=count,
        channels=32,
        note="random numbers",
        teacher=identity if named else None,
    )
    manifest = tiny_manifest().model_copy(update={"prior": spec})
    if not pose:
        alone = manifest.architecture.model_copy(update={"multi_frame": None, "pose": None})
        manifest = manifest.model_copy(update={"architecture": alone})
    student = plain.student()
    with torch.no_grad():  # a fusion that does something
        assert student.fusion is not None
        student.fusion.out.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    pixels = np.arange(count, dtype=np.int32)
    return save_bundle(
        folder / "student",
        manifest,
        student=student,
        prior=prior,
        prior_sources=PriorSources(pixels * 0, pixels, [{"drive": "before", "frame": 7}]),
        teacher=teacher if inside else None,
        pose=plain.pose() if pose else None,
        multi_frame=plain.multi_frame() if pose else None,
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than the student."""
    return make_tiny_bundle(tmp_path_factory.mktemp("teacher") / "teacher", (128, 64), 9).path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Bundle:
    return student_bundle(tmp_path_factory.mktemp("student"), teacher)


def request(bundle: Bundle, bag: Path, out: Path, **changes: Any) -> Request:
    start = Request(bundle.path, bag, out, keep=KEEP, per_image=50, images=3, device="cpu")
    return replace(start, **changes)


@pytest.fixture(scope="module")
def done(bundle: Bundle, bag: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return adapt(request(bundle, bag, tmp_path_factory.mktemp("out") / "out"))


# -- what comes out --------------------------------------------------------------------------------


def test_the_networks_are_the_same_files(bundle: Bundle, done: Adapted) -> None:
    new = load_bundle(done.folder / "bundle")
    for name in ("student", "pose", "multi_frame"):
        file = f"{name}.safetensors"
        assert (new.path / file).read_bytes() == (bundle.path / file).read_bytes()
    assert new.manifest.name == "tiny_made"
    assert new.teacher() is not None
    assert "adapted to made" in new.manifest.provenance.note
    assert new.manifest.provenance.data_sources[-1] == "prior: made, its first 8 frames"
    assert new.manifest.prior is not None and new.manifest.prior.pixels == KEEP


def test_the_prior_is_of_the_first_part_only(done: Adapted) -> None:
    references = ReferenceSet.open(done.folder / "reference", verify=True)
    assert [image["frame"] for image in references.images] == [1, 2, 3, 4, 5, 6]
    assert len(references) == 6 * 50
    sources = done.bundle.prior_sources()
    assert sources is not None
    assert {(i["drive"], i["frame"]) for i in sources.images} <= {("made", n) for n in range(1, 7)}
    # Every pixel of the prior is one of the set, by its source.
    image, pixel = references.sources(range(len(references)))
    frames = [references.images[i]["frame"] for i in image]
    place = {key: row for row, key in enumerate(zip(frames, pixel.tolist(), strict=True))}
    rows = [
        place[sources.images[i]["frame"], int(p)]
        for i, p in zip(sources.image, sources.pixel, strict=True)
    ]
    assert len(set(rows)) == KEEP
    torch.testing.assert_close(done.bundle.prior().features, references.rows(rows).features)


def test_depth_errors_are_those_of_the_pipeline(bundle: Bundle, bag: Path, done: Adapted) -> None:
    """Before and after, frame by frame, computed here once more."""
    from depth_prior_ros.recordings import open_recording

    frames = open_recording(bag).frames
    for which, one in (("before", bundle), ("after", done.bundle)):
        pipeline = DepthPipeline(one, "torch", "cpu", force_model="single_frame")
        errors = []
        for frame in frames[8:]:
            result = pipeline.process(frame.image(), frame.stamp_ns, None, frame.camera)
            region, truth = result.region, frame.depth()
            assert truth is not None
            part = truth[region.y : region.y + region.height, region.x : region.x + region.width]
            errors.append(PROTOCOLS["synthetic"].errors(result.depth, part).abs_rel)
        assert done.figures["depth"]["abs_rel"][which] == pytest.approx(np.mean(errors), rel=1e-6)
    depth = done.figures["depth"]
    assert depth["frames"] == 8 and depth["protocol"] == "synthetic"
    for name in ("abs_rel", "sq_rel", "rmse", "d1"):
        row = depth[name]
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
    assert depth["abs_rel"]["before"] != depth["abs_rel"]["after"]


def test_photometric_error_by_the_plain_way(bundle: Bundle, bag: Path, done: Adapted) -> None:
    """Rebuilt with `geometry.view_synthesis`, errors by hand."""
    from depth_prior_ros.geometry.warping import Pose, disparity_to_depth, view_synthesis
    from training.losses.photometric import Target, photometric_error

    drive = OwnDrive.open(bag, 0.5)
    source = drive.source(drive.validation, bundle.manifest.camera, 20.0)
    pose = bundle.pose()
    for which, one in (("before", bundle), ("after", done.bundle)):
        student, prior = one.student(), one.prior()
        values = []
        for number in range(len(drive.validation)):
            batch = source.triplet(0, number)
            before, now, after = batch.images.unbind(1)
            with torch.no_grad():
                depth = disparity_to_depth(student(now, prior).disparity[0])[1]
                motions = [(before, pose(before, now).inverse()), (after, pose(now, after))]
                errors = [
                    photometric_error(
                        view_synthesis(image, depth, batch.K, Pose(motion.matrix))[0],
                        Target.of(now),
                    )
                    for image, motion in motions
                ]
            values.append(float(torch.minimum(*errors).mean()))
        found = done.figures["photometric"]
        assert found[which] == pytest.approx(np.mean(values), rel=1e-3)
    assert found["frames"] == 6 and found["motions"] == "the bundle's pose network"


def test_figures_are_in_the_bundle_and_beside_it(done: Adapted) -> None:
    figures = json.loads((done.folder / FIGURES).read_text())
    assert done.bundle.manifest.metrics["adapt"] == figures == done.figures
    said = str(done)
    assert "8 of 16 frames for the prior, 8 held out" in said
    assert f"kept {KEEP} of 300 reference pixels" in said
    for word in ("photometric", "abs_rel", "sq_rel", "rmse", "d1", "difference"):
        assert word in said


def test_the_same_command_is_finished_already(
    bundle: Bundle, bag: Path, done: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = adapt(request(bundle, bag, done.folder))
    assert again.figures == done.figures and again.bundle.digest == done.bundle.digest
    with pytest.raises(TrainingError, match=r"made with other settings \(keep 40\)"):
        adapt(request(bundle, bag, done.folder, keep=41))


def test_a_stop_before_the_figures_goes_on(
    bundle: Bundle, bag: Path, done: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("training.prior.adapt.photometric", _stops)
        with pytest.raises(KeyboardInterrupt):
            adapt(request(bundle, bag, out))
    assert not (out / FIGURES).exists()
    stamp = (out / "bundle" / "prior.safetensors").stat().st_mtime_ns
    found = adapt(request(bundle, bag, out))
    assert (out / "bundle" / "prior.safetensors").stat().st_mtime_ns == stamp
    assert found.figures["depth"] == done.figures["depth"]


def _stops(*_: Any) -> None:
    raise KeyboardInterrupt


# -- choices ---------------------------------------------------------------------------------------


def test_old_pixels_are_chosen_from_too(bundle: Bundle, bag: Path, tmp_path: Path) -> None:
    """All of both: the old prior comes first, unchanged, with its sources."""
    found = adapt(request(bundle, bag, tmp_path / "out", keep=316, keep_old=True, share=0.5))
    old, new = bundle.prior(), found.bundle.prior()
    torch.testing.assert_close(new.features[:16], old.features, rtol=0, atol=0)
    torch.testing.assert_close(new.inverse_depth[:16], old.inverse_depth, rtol=0, atol=0)
    sources = found.bundle.prior_sources()
    assert sources is not None
    names = [sources.images[i]["drive"] for i in sources.image]
    assert names == ["before"] * 16 + ["made"] * 300
    assert found.figures["prior"]["old"] == 16
    assert "kept 316 of 316 reference pixels, 16 of them of the old prior" in str(found)


def test_a_pool_reads_as_one_set(done: Adapted, bundle: Bundle) -> None:
    references = ReferenceSet.open(done.folder / "reference")
    pool = _Pool(references, bundle.prior())
    rows = torch.cat([part.features for part in pool.chunks(7)])
    joined = torch.cat([bundle.prior().features, references.rows(range(300)).features])
    assert rows.equal(joined) and len(pool) == 316
    for chosen in ([0, 3, 15], [16, 40], [2, 15, 16, 315]):
        assert pool.rows(np.array(chosen)).features.equal(joined[chosen])


def test_a_kitti_drive_and_everything_for_the_prior(bundle: Bundle, tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(8))
    found = adapt(request(bundle, drive, tmp_path / "out", share=1.0, keep=None))
    assert found.figures["prior"]["kept"] == 16  # as many as there were
    assert found.figures["photometric"] is None and found.figures["depth"] is None
    assert found.figures["notes"] == ["nothing is held out, so nothing was evaluated"]
    assert "nothing to evaluate" in str(found)


def test_without_true_depth(bundle: Bundle, tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(12))
    found = adapt(request(bundle, drive, tmp_path / "out"))
    assert found.figures["photometric"]["frames"] == 4
    assert found.figures["notes"] == ["no depth error: no held-out frame has true depth"]


def test_a_student_alone_is_evaluated_with_its_teachers_motions(
    teacher: Path, bag: Path, tmp_path: Path
) -> None:
    bundle = student_bundle(tmp_path, teacher, pose=False)
    found = adapt(request(bundle, bag, tmp_path / "out"))
    light = found.figures["photometric"]
    assert light["motions"] == "the teacher's" and light["frames"] == 6


# -- the teacher -----------------------------------------------------------------------------------


def test_another_teacher_is_refused(bundle: Bundle, bag: Path, tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", (128, 64), 10)
    with pytest.raises(TrainingError, match="is not the one that the student's prior came from"):
        adapt(request(bundle, bag, tmp_path / "out", teacher=str(other.path)))
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_not_in_the_bundle(teacher: Path, bag: Path, tmp_path: Path) -> None:
    bundle = student_bundle(tmp_path, teacher, inside=False)
    with pytest.raises(TrainingError, match=r"is not in it .* say where it lies by --teacher"):
        adapt(request(bundle, bag, tmp_path / "out"))
    found = open_adapt_teacher(bundle, str(teacher), "cpu")
    assert found.identity.sha256 == bundle.manifest.prior.teacher.sha256  # type: ignore[union-attr]
    # What it was trained with, where that still lies there.
    recipe = Provenance(recipe={"teacher": {"model": str(teacher), "lookup": [-1, 1]}})
    trained = rewrite_manifest(bundle, provenance=recipe.model_dump(mode="json"))
    assert open_adapt_teacher(trained, None, "cpu").identity == found.identity


def test_a_teacher_is_opened_as_in_training(teacher: Path, tmp_path: Path) -> None:
    """In the recipe's unit, with its lookup: otherwise it would be another teacher."""
    options: dict[str, Any] = {"lookup": (-1,), "metres_per_unit": 10.0}
    identity = open_bundle_teacher(str(teacher), **options).identity
    assert identity != open_bundle_teacher(str(teacher)).identity
    bundle = student_bundle(tmp_path, teacher, inside=False, identity=identity)
    recipe = {"metres_per_unit": 10.0, "teacher": {"model": str(teacher), "lookup": [-1]}}
    for known in (recipe, {"metres_per_unit": 10.0}):
        provenance = Provenance(recipe=known).model_dump(mode="json")
        trained = rewrite_manifest(bundle, provenance=provenance)
        found = open_adapt_teacher(trained, str(teacher), "cpu")
        assert found.identity == identity and found.metres_per_unit == 10.0


def test_a_prior_that_names_no_teacher(teacher: Path, bag: Path, tmp_path: Path) -> None:
    bundle = student_bundle(tmp_path, teacher, inside=False, named=False)
    with pytest.raises(TrainingError, match="names no teacher; say which one it was"):
        adapt(request(bundle, bag, tmp_path / "out"))
    found = open_adapt_teacher(bundle, str(teacher), "cpu")
    assert "taken on trust" in found.notes[0]


def test_a_student_without_a_fusion(bag: Path, tmp_path: Path) -> None:
    manifest = tiny_manifest()
    architecture = manifest.architecture.model_copy(
        update={
            "student": {"trunk": "hrnet_w18_small", "decoder": "light"},
            "multi_frame": None,
            "pose": None,
        }
    )
    from depth_prior_ros.models.student import Student

    changes = {"architecture": architecture, "prior": None}
    plain = save_bundle(
        tmp_path / "plain",
        manifest.model_copy(update=changes),
        student=Student("hrnet_w18_small", "light"),
    )
    with pytest.raises(TrainingError, match="no prior fusion"):
        adapt(request(plain, bag, tmp_path / "out"))


# -- the recording ---------------------------------------------------------------------------------


def test_no_recording(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", str(bundle.path), "--bag", str(tmp_path / "none.mcap")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_a_standing_camera(bundle: Bundle, tmp_path: Path) -> None:
    still = write_bag(recording(speed=0.0), tmp_path / "still.mcap").path
    with pytest.raises(TrainingError, match="the camera stands in all 6 triplets of the first 8"):
        adapt(request(bundle, still, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_standing_camera_that_nobody_measured(bundle: Bundle, tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(12), pixels=0.0)
    with pytest.raises(TrainingError, match="the camera stands in all"):
        adapt(request(bundle, drive, tmp_path / "out"))


def test_too_few_frames(bundle: Bundle, tmp_path: Path) -> None:
    short = write_bag(recording(5), tmp_path / "short.mcap").path
    with pytest.raises(TrainingError, match=r"5 frames, of which the first 50% are 2; .* needs 3"):
        adapt(request(bundle, short, tmp_path / "out"))
    with pytest.raises(TrainingError, match="no three frames of the first 8 follow"):
        gaps = write_moving_drive(tmp_path, numbers=range(0, 32, 2))
        adapt(request(bundle, gaps, tmp_path / "out"))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_impossible_shares(bundle: Bundle, bag: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(TrainingError, match="share"):
        adapt(request(bundle, bag, tmp_path / "out", share=share))


@pytest.mark.parametrize(
    ("name", "value"), [("triplets", 0), ("per_image", 0), ("images", -1), ("seed", -1)]
)
def test_impossible_numbers(
    bundle: Bundle, bag: Path, tmp_path: Path, name: str, value: int
) -> None:
    with pytest.raises(TrainingError, match=rf"{name.replace('_', '-')} {value}: at least"):
        adapt(request(bundle, bag, tmp_path / "out", **{name: value}))
    assert not (tmp_path / "out").exists()


def test_more_to_keep_than_there_is(bundle: Bundle, bag: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="keep 301: there are 300 reference pixels"):
        adapt(request(bundle, bag, tmp_path / "out", keep=301))
    assert not (tmp_path / "out" / "bundle").exists()


def test_a_cut_off_bag(bundle: Bundle, bag: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(bag.read_bytes()[: bag.stat().st_size // 2])
    with pytest.raises(Exception, match="cut") as caught:
        adapt(request(bundle, cut, tmp_path / "out"))
    assert "cut.mcap" in str(caught.value)


def test_the_command(
    bundle: Bundle, bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--keep", "20", "--per-image", "30", "--images", "2", "--device", "cpu"]
    assert main(["adapt", str(bundle.path), "--bag", str(bag), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "kept 20 of 180 reference pixels" in said and f"bundle: {out / 'bundle'}" in said


def test_an_unfinished_set_names_the_whole_command(tmp_path: Path) -> None:
    """Without its options it would begin another one, and be refused."""
    asked = Request(
        "my bundle",
        tmp_path / "a bag.mcap",
        tmp_path / "out",
        share=0.7,
        keep=40,
        keep_old=True,
        teacher="lite",
        per_image=50,
        seed=3,
    )
    words = shlex.split(asked.command)
    assert words[:2] == ["depth_train", "adapt"]
    found = vars(build_parser().parse_args(words[1:]))
    assert Request(**{k: v for k, v in found.items() if k not in ("command", "handler")}) == asked
    assert asked.command.count("--") == 8


def test_places_are_spread() -> None:
    assert spaced(10, 3) == [1, 4, 7]
    assert spaced(3, 10) == [0, 1, 2]
    assert spaced(0, 5) == []


def test_identity_survives_the_manifest(bundle: Bundle, done: Adapted) -> None:
    identity = TeacherIdentity.of(done.figures["teacher"])
    ReferenceSet.open(done.folder / "reference").require(identity)
