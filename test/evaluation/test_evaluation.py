"""A bundle against ground truth: what counts, what is written, on small made-up KITTI folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from kitti_files import TEST_DRIVE, TRAINING_DRIVE, write_drive, write_frame
from torch import nn

from depth_prior_ros.atomic_files import write_json
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.bundle.derive import replace_references
from depth_prior_ros.evaluation.evaluate import evaluate
from depth_prior_ros.evaluation.frames import (
    EvaluationSet,
    read_evaluation_frames,
    shown_positions,
)
from depth_prior_ros.evaluation.predictors import (
    BundlePredictor,
    ImageIndependentMap,
    NetworkPredictor,
    StoredDepth,
)
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.keyframes import KEYFRAME_SECONDS
from depth_prior_ros.recordings import Frame, StoredRecording
from training.commands.cli import main
from training.evaluation import evaluation
from training.evaluation.baselines import CONSTANT, COUNTED, OTHER_IMAGE, SET_MEAN
from training.evaluation.evaluation import beside_baselines, evaluate_bundle, evaluate_set
from training.evaluation.report import as_json, print_report, write_pictures
from training.evaluation.sets import drive_set, kitti_2015_set
from training.stages.validation import evaluate_network

ERRORS = {"abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3"}
TORCH = {"backend": "torch", "device": "cpu"}
WHOLE = SimpleNamespace(x=0, y=0, width=414, height=125)


def road(tilt: float = 1.0) -> np.ndarray:
    """True depth (125, 414), metres: nearer towards the bottom."""
    rows = np.linspace(40, 5, 125, dtype=np.float32) * tilt
    return np.repeat(rows[:, None], 414, axis=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of drive 0052 without number 3, three training frames, three scenes."""
    root = tmp_path_factory.mktemp("data")
    drive = write_drive(root, TEST_DRIVE, range(6))
    for folder in ("image_02", "proj_depth/velodyne_raw/image_02"):
        (drive / folder / f"{3:010d}.png").unlink()
    write_drive(root, TRAINING_DRIVE, range(3))
    for number in (2, 7, 9):
        write_frame(root / "kitti_2015", number, 1.0, name="{:06d}")
        depth = (road(1 + number / 20) * 256).astype(np.uint16)
        cv2.imwrite(str(root / "kitti_2015" / "depth_stereo" / f"{number:06d}.png"), depth)
    return root


class PretendPipeline:
    """Answers with the truth times `factor`; multi-frame where the frame before was there."""

    def __init__(self, chosen: EvaluationSet, factor: float = 1.0) -> None:
        self.by_stamp = {f.stamp_ns: f.depth() for f in chosen.recording.frames}
        self.networks = SimpleNamespace(has_multi_frame=True)
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(input_size=(414, 125)))
        self.factor, self.force_model, self.max_metres = factor, None, 80.0
        self.shown: list[tuple[str | None, int]] = []
        self.previous: int | None = None

    def reset(self) -> None:
        self.previous = None

    def process(self, image, stamp_ns, motion=None, camera=None):
        assert image.shape == (125, 414, 3) and camera.size == (414, 125)
        self.shown.append((self.force_model, stamp_ns))
        follows = self.previous is not None and stamp_ns - self.previous < 150_000_000
        multi = self.force_model == "multi_frame" and follows
        self.previous = stamp_ns
        return SimpleNamespace(
            depth=self.by_stamp[stamp_ns] * self.factor,
            model="multi_frame" if multi else "single_frame",
            reason="forced" if follows else "gap",
            region=WHOLE,
            references="",
        )


# --- what is evaluated
# -----------------------------------------------------------------------------


def test_a_perfect_pipeline_has_no_error_and_its_scale_is_seen(root: Path):
    chosen = kitti_2015_set(root)
    report = evaluate_set(PretendPipeline(chosen, factor=0.5), chosen)
    assert len(report.rows["all"]) == 3
    for frame in report.rows["all"]:
        assert frame.errors.abs_rel == pytest.approx(0, abs=1e-6)
        assert frame.errors.ratio == pytest.approx(2)
        assert frame.metric.abs_rel == pytest.approx(0.5, abs=1e-3)


def test_scenes_are_evaluated_one_by_one(root: Path):
    chosen = kitti_2015_set(root)
    pipeline = PretendPipeline(chosen)
    report = evaluate_set(pipeline, chosen)
    assert [model for model, _ in pipeline.shown] == ["single_frame"] * 3
    assert report.rows["all"] is report.rows["single_frame"]
    assert report.rows["multi_frame"] == []
    assert any("separate scenes" in note for note in report.notes)


def test_a_frame_that_cannot_be_shown_is_named(root: Path):
    chosen = kitti_2015_set(root)
    frames = list(chosen.recording.frames)
    frames[1] = replace(frames[1], camera=Camera(100, 100, 50, 50, 100, 100))
    recording = replace(chosen.recording, frames=frames)
    report = evaluate_set(PretendPipeline(chosen), replace(chosen, recording=recording))
    assert [frame.position for frame in report.rows["all"]] == [0, 2]
    assert any("another aspect ratio" in entry.why for entry in recording.skipped)


def test_forced_models_are_evaluated_on_frames_with_a_predecessor(root: Path):
    chosen = drive_set(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    pipeline = PretendPipeline(chosen)
    report = evaluate_set(pipeline, chosen)
    numbers = {
        name: [chosen.recording.frames[f.position].index for f in frames]
        for name, frames in report.rows.items()
    }
    # Frame 3 is missing: 4 has no predecessor.
    assert numbers == {"all": [0, 1, 2, 4, 5], "single_frame": [1, 2, 5], "multi_frame": [1, 2, 5]}
    assert {f.model for f in report.rows["multi_frame"]} == {"multi_frame"}
    assert not [note for note in report.notes if "fell back" in note]
    assert any("frame 3" in str(entry) for entry in chosen.recording.skipped)


def test_the_forced_multi_frame_model_is_shown_what_it_may_match() -> None:
    """Two seconds before each evaluated frame, and its predecessor whatever the rate."""

    def shown(seconds: float, positions: list[int], memory: float | None) -> list[int]:
        frames = [SimpleNamespace(stamp_ns=round(i * seconds * 1e9)) for i in range(100)]
        return shown_positions(frames, positions, memory)  # type: ignore[arg-type]

    memory = BundlePredictor(None, "multi_frame").memory  # type: ignore[arg-type]
    assert memory == KEYFRAME_SECONDS == 2
    assert shown(0.1, [30, 33, 80], memory) == [*range(10, 34), *range(60, 81)]
    assert shown(5, [3, 7], memory) == [2, 3, 6, 7]
    assert shown(5, [], memory) == []
    assert shown(5, [3, 7], 0) == [3, 7]
    assert shown(5, [3], None) == [0, 1, 2, 3]


def test_a_sequence_is_shown_whole_though_few_frames_are_evaluated(root: Path):
    whole = drive_set(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    chosen = EvaluationSet(whole.name, whole.protocol, whole.recording, (2,))
    pipeline = PretendPipeline(chosen)
    report = evaluate_set(pipeline, chosen)
    stamps = [f.stamp_ns for f in whole.recording.frames[:3]]
    shown = {m: [s for n, s in pipeline.shown if n == m] for m in (None, "multi_frame")}
    # As published, motion is evaluated over all frames; forced, what may be matched is enough.
    assert shown == {None: stamps, "multi_frame": stamps}
    assert [len(frames) for frames in report.rows.values()] == [1, 1, 1]


def test_one_model_alone(root: Path):
    chosen = drive_set(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    assert set(evaluate_set(PretendPipeline(chosen), chosen, ["multi_frame"]).rows) == {
        "multi_frame"
    }


def test_a_corrupt_frame_is_named_and_left_out(tmp_path: Path):
    drive = write_drive(tmp_path, TEST_DRIVE, range(3))
    chosen = drive_set(drive)
    pipeline = PretendPipeline(chosen)
    file = drive / "proj_depth/velodyne_raw/image_02" / f"{1:010d}.png"
    file.write_bytes(file.read_bytes()[:40])
    report = evaluate_set(pipeline, chosen)
    assert [f.position for f in report.rows["all"]] == [0, 2]
    assert [e for e in chosen.recording.skipped if e.what == "frame 1"]


def test_fallbacks_of_the_multi_frame_network_are_told(root: Path):
    chosen = drive_set(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    pipeline = PretendPipeline(chosen)
    pipeline.process = lambda image, stamp_ns, *_: SimpleNamespace(  # type: ignore[method-assign]
        depth=pipeline.by_stamp[stamp_ns],
        model="single_frame",
        reason="model_failed",
        region=WHOLE,
        references="",
    )
    notes = evaluate_set(pipeline, chosen).notes
    assert "multi_frame: 3 of 3 frames fell back to single frame (model_failed)" in notes


# --- comparing ----------------------------------------------------------------------------------


def recorded(truth: np.ndarray, size: tuple[int, int]) -> StoredRecording:
    """One frame of a camera of `size` (width, height)."""
    width, height = size
    camera = Camera(width, width, width / 2, height / 2, width, height)
    image = np.zeros((height, width, 3), np.uint8)
    return StoredRecording("one", [Frame(0, 0, camera, lambda: image, lambda: truth)])


def compared(depth: np.ndarray, truth: np.ndarray, name: str, size: tuple[int, int]):
    """Errors of depth (h, w) of one frame, for what a network of input `size` is shown."""
    protocol = PROTOCOLS[name]
    recording = recorded(truth, (truth.shape[1], truth.shape[0]))
    frames = read_evaluation_frames(recording, protocol, size, [0], images=False)
    return evaluate(StoredDepth({0: depth}), frames, protocol)[0]


def test_a_window_of_the_image_is_compared_with_that_window():
    truth = road()
    found = compared(truth[:, 107:307], truth, "kitti2015", (200, 125))
    assert found.region == (107, 0, 200, 125)
    assert found.errors.abs_rel == pytest.approx(0, abs=1e-9) and found.errors.coverage == 1
    truth = np.repeat(np.linspace(40, 5, 414, dtype=np.float32)[:, None], 125, axis=1)
    assert compared(truth[107:307], truth, "kitti2015", (125, 200)).errors.abs_rel < 1e-9
    assert compared(truth[107:307], truth, "kitti2015", (125, 414)).errors.abs_rel > 0.01


def test_the_crop_is_that_of_the_whole_image():
    """Garg's crop of a window is not the part of Garg's crop within the window."""
    truth = np.zeros((125, 414), np.float32)
    truth[60:70], truth[100:110] = 10.0, 20.0  # within Garg's rows, 51 to 123
    truth[20:30] = 5.0  # outside of them
    prediction = np.full((125, 414), 10.0, np.float32)
    prediction[85:] = 20.0
    for size in ((414, 125), (414, 112)):
        shown = prediction if size[1] == 125 else prediction[6:118]
        found = compared(shown, truth, "eigen", size)
        assert found.region[1] == (125 - size[1]) // 2
        assert found.errors.abs_rel == pytest.approx(0, abs=1e-6)


def test_a_range_counts_in_metres_alone():
    """Scaled first, clamped after: what a vehicle does not publish must not change the figure."""
    truth = np.tile(np.array([10, 20, 40, 70], np.float32), (8, 1))
    depth = truth / 2

    class Ranged(ImageIndependentMap):
        def predict(self, frames):
            for frame, prediction in super().predict(frames):
                yield frame, replace(prediction, max_metres=12.0)

    protocol = PROTOCOLS["synthetic"]
    frames = list(
        read_evaluation_frames(recorded(truth, (4, 8)), protocol, (4, 8), [0], images=False)
    )
    (found,) = evaluate(Ranged(depth), frames, protocol)
    assert found.errors.abs_rel == pytest.approx(0, abs=1e-9)
    assert found.errors.ratio == pytest.approx(2)
    # 5 and 10 m are published, 20 and 35 m are beyond the range: as far as the protocol goes.
    assert found.metric.abs_rel == pytest.approx((0.5 + 0.5 + 40 / 40 + 10 / 70) / 4)


# --- what the bundle is compared with
# --------------------------------------------------------------------


def test_baselines_are_evaluated_beside_the_bundle(root: Path, bundle: Bundle):
    report = evaluate_bundle(
        bundle, root, "kitti2015", baselines=True, backend="torch", device="cpu"
    )
    (scenes,) = report.sets
    assert set(scenes.baselines) == {*COUNTED, CONSTANT, SET_MEAN, OTHER_IMAGE}
    assert {len(rows) for rows in scenes.baselines.values()} == {3}
    # The LiDAR of the training frames is 10 m everywhere: as good as a constant.
    constant = [e.abs_rel for e in scenes.baselines[CONSTANT]]
    for name in COUNTED[1:]:
        assert [e.abs_rel for e in scenes.baselines[name]] == pytest.approx(constant, abs=1e-3)
    truth = [scenes.chosen.recording.frames[i].depth() for i in scenes.chosen.positions]
    by_hand = [float(np.mean(np.abs(t / np.median(t) - 1) / (t / np.median(t)))) for t in truth]
    assert constant == pytest.approx(by_hand, abs=1e-4)


def scenes_report(root: Path, factor_by_row: float = 0.0, baseline: float = 0.5):
    """KITTI 2015 with predictions that are wrong by a known amount, and one baseline."""
    chosen = kitti_2015_set(root)
    pipeline = PretendPipeline(chosen)
    ramp = np.linspace(1, 1 + factor_by_row, 125, dtype=np.float32)[:, None]
    pipeline.by_stamp = {stamp: depth * ramp for stamp, depth in pipeline.by_stamp.items()}
    report = evaluate_set(pipeline, chosen)
    error = SimpleNamespace(abs_rel=baseline)
    report.baselines = {COUNTED[0]: [error] * 3, COUNTED[1]: [SimpleNamespace(abs_rel=9.0)] * 3}
    return report


def test_being_better_than_baselines_needs_ten_percent(root: Path):
    report = scenes_report(root, factor_by_row=0.4)
    own = float(np.mean([f.errors.abs_rel for f in report.rows["all"]]))
    assert own > 0.05
    for baseline, passed in ((own / 0.89, True), (own / 0.91, False)):
        outcome = beside_baselines(scenes_report(root, factor_by_row=0.4, baseline=baseline))
        assert outcome is not None
        assert outcome.passed == passed
        assert outcome.best_baseline == COUNTED[0]
        assert outcome.ratio == pytest.approx(own / baseline)


def test_rows_for_orientation_do_not_count(root: Path):
    report = scenes_report(root, factor_by_row=0.4)
    report.baselines[CONSTANT] = [SimpleNamespace(abs_rel=1e-6)] * 3
    outcome = beside_baselines(report)
    assert outcome is not None and outcome.best_abs_rel == 0.5


def test_there_is_no_comparison_without_baselines_or_on_drives(root: Path):
    report = scenes_report(root)
    report.baselines = {}
    assert beside_baselines(report) is None
    chosen = drive_set(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    drive = evaluate_set(PretendPipeline(chosen), chosen)
    drive.baselines = {COUNTED[0]: [SimpleNamespace(abs_rel=0.5)]}
    assert beside_baselines(drive) is None


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_at_once(root: Path, bundle: Bundle, tmp_path: Path):
    told: list[str] = []
    report = evaluate_bundle(
        bundle, root, baselines=True, progress=lambda what, *_: told.append(what)
    )
    assert [s.name for s in report.sets] == ["kitti_2015", TEST_DRIVE]
    assert told[0].startswith("kitti_2015") and any("baselines" in line for line in told)
    path = tmp_path / "deep" / "figures.json"
    write_json(path, as_json(report))
    content = json.loads(path.read_text())
    assert content["bundle"]["name"] == "tiny" and "depth" not in content
    scenes, drive = content["data_sets"].values()
    for one in (scenes, drive):
        assert set(one["depth"]) == {"all", "single_frame", "multi_frame"}
        assert set(one["baselines"]) == {*COUNTED, CONSTANT, SET_MEAN, OTHER_IMAGE}
    assert scenes["depth"]["multi_frame"]["frames"] == 0
    assert scenes["depth"]["multi_frame"]["abs_rel"] is None
    assert [drive["depth"][r]["frames"] for r in ("all", "single_frame", "multi_frame")] == [
        5,
        3,
        3,
    ]
    entry = drive["depth"]["all"]
    assert set(entry) >= ERRORS and set(entry["metric"]) >= ERRORS
    assert all(np.isfinite(entry[name]) for name in ERRORS)
    assert set(scenes["verdict"]) >= {"passed", "ratio", "needed", "best_baseline"}
    assert "verdict" not in drive
    assert any("3" in entry["what"] for entry in drive["skipped"])
    assert list(path.parent.iterdir()) == [path]

    from rich.console import Console

    for width in (80, 120):
        console = Console(record=True, width=width, file=Path("/dev/null").open("w"))  # noqa: SIM115
        print_report(report, console)
        text = console.export_text()
        assert "…" not in text
        for word in ("kitti_2015", TEST_DRIVE, "multi_frame", "LiDAR mean by row", "at least 10%"):
            assert word in text
        figure = np.mean([f.errors.abs_rel for f in report.sets[1].rows["multi_frame"]])
        assert f"{figure:.3f}" in text

    pictures = write_pictures(report, tmp_path / "pictures", count=2)
    assert len(pictures) == 4
    rows = [cv2.imread(str(p)).shape for p in pictures]
    assert [shape[0] // 160 for shape in rows] == [3, 4, 3, 3]


@pytest.mark.slow
def test_without_its_references_a_bundle_is_evaluated_as_one_that_has_none(
    root: Path, tmp_path: Path
):
    lite = load_bundle("lite")
    plain = replace_references(lite, tmp_path / "plain", None, None)
    looks, off, none = (
        evaluate_bundle(bundle, root, "kitti2015", look_up=look_up, **TORCH).sets[0]
        for bundle, look_up in ((lite, True), (lite, False), (plain, True))
    )
    errors = [[frame.errors for frame in one.rows["all"]] for one in (looks, off, none)]
    assert errors[1] == errors[2] != errors[0]
    said = "references not looked up: switched off"
    assert [said in one.notes for one in (looks, off, none)] == [False, True, False]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--no-look-up"], "references: the bundle has none, so --no-look-up changes nothing\n"),
        ([], ""),
    ],
)
def test_no_look_up_without_references_is_told(
    tiny_bundle: Path,
    option: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(evaluation, "evaluate_bundle", lambda *_, **__: None)
    monkeypatch.setattr("training.evaluation.report.print_report", lambda _: None)
    assert main(["evaluate", str(tiny_bundle), *option]) == 0
    assert capsys.readouterr().out == said


def scenes_through_a_longer_lens(root: Path, name: str, changed: set[int]) -> EvaluationSet:
    """The scenes of KITTI 2015, some of them as another camera's."""
    chosen = kitti_2015_set(root)
    assert chosen is not None
    frames = [
        replace(f, camera=replace(f.camera, fx=1.6 * f.camera.fx, fy=1.6 * f.camera.fy))
        if position in changed
        else f
        for position, f in enumerate(chosen.recording.frames)
    ]
    return replace(chosen, name=name, recording=replace(chosen.recording, frames=frames))


@pytest.mark.slow
def test_which_references_were_looked_up_is_said_of_every_camera(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    changed = {"own": set(), "mixed": {0}, "other": {0, 1, 2}}
    sets = [scenes_through_a_longer_lens(root, *one) for one in changed.items()]
    monkeypatch.setattr(evaluation, "choose_sets", lambda *_: sets)
    report = evaluate_bundle("lite", root, "kitti2015", models=["single_frame"], **TORCH)
    said = {
        one.name: [note for note in one.notes if note.startswith("references ")]
        for one in report.sets
    }
    up, left_out = "references looked up: 512 pixels", "references not looked up: the bundle's"
    expected = {
        "own": [],
        "mixed": [(left_out, ", in 1 of 3 frames"), (up, ", in 2 of 3 frames")],
        "other": [(left_out, "(depth_train adapt)")],
        "kitti2015 (all)": [(up, ", in 5 of 9 frames"), (left_out, ", in 4 of 9 frames")],
    }
    assert said.keys() == expected.keys()
    for name, notes in said.items():
        for note, (begin, end) in zip(notes, expected[name], strict=True):
            assert note.startswith(begin) and note.endswith(end)


@pytest.fixture(scope="module")
def eigen(root: Path, bundle: Bundle) -> evaluation.EvaluationReport:
    return evaluate_bundle(bundle, root, "eigen", models=["single_frame"], **TORCH)


def test_where_stereo_fixed_the_unit_metres_come_first(
    eigen: evaluation.EvaluationReport, bundle: Bundle
):
    from rich.console import Console

    report = replace(eigen)
    assert as_json(report)["bundle"]["unit_by_stereo"] is False
    source = "stereo baselines of the training drives (mode MS)"
    depth = bundle.manifest.depth.model_copy(update={"metres_per_unit_source": source})
    report.bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"depth": depth}))
    assert as_json(report)["bundle"]["unit_by_stereo"] is True
    console = Console(record=True, width=120, file=Path("/dev/null").open("w"))  # noqa: SIM115
    print_report(report, console)
    first, _, then = console.export_text().partition("scaled by medians")
    frames = report.sets[0].rows["single_frame_all"]
    unscaled, scaled = (
        np.mean([getattr(f, kind).rmse for f in frames]) for kind in ("metric", "errors")
    )
    assert "unscaled" in first and abs(unscaled / scaled - 1) > 0.01
    assert f"{unscaled:.3f}" in first and f"{scaled:.3f}" not in first
    assert f"{scaled:.3f}" in then


def test_one_set_stands_at_the_top_as_in_metrics_json(eigen: evaluation.EvaluationReport):
    content = as_json(eigen)
    assert content["depth"] == content["data_sets"][TEST_DRIVE]["depth"]
    # Of the listed frames 0, 2 and 4 only 2 has a predecessor.
    assert content["depth"]["single_frame"]["frames"] == 1


@pytest.mark.slow
def test_evaluating_twice_gives_the_same(root: Path, bundle: Bundle):
    first, second = (
        as_json(evaluate_bundle(bundle, root, "drive", backend="torch", device="cpu"))
        for _ in range(2)
    )
    assert first == second


# --- in training ----------------------------------------------------------------------------------


class RowNetwork(nn.Module):
    """Nearer towards the bottom, whatever the image; counts its calls by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, image: torch.Tensor, prior: object = None) -> SimpleNamespace:
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        self.modes.append(self.training)
        b, _, h, w = image.shape
        depth = torch.linspace(40, 5, h).reshape(1, 1, h, 1).expand(b, 1, h, w) / 10
        return SimpleNamespace(disparity={0: (1 / depth - 0.01) / 9.99})


def test_a_bare_network_in_training(root: Path):
    network = RowNetwork().train()
    sets = ("kitti2015", "0052", "0039lidar")
    figures = evaluate_network(NetworkPredictor(network), (96, 32), root, sets)
    assert set(figures) == set(sets)
    assert figures["kitti2015"]["abs_rel"] < 0.04
    assert figures["kitti2015"]["frames"] == 3 and figures["0052"]["frames"] == 5
    assert figures["0052"]["abs_rel"] > 0.1  # flat truth
    # It does not look at the image, which the other two rows tell.
    scenes = figures["kitti2015"]
    assert scenes["own_mean"] == pytest.approx(scenes["abs_rel"], abs=1e-4)
    assert scenes["other_image"] == pytest.approx(scenes["abs_rel"], abs=1e-4)
    assert network.training and not any(network.modes)


def test_a_prior_reaches_the_network_that_is_evaluated(root: Path):
    seen: list[object] = []

    class WithPrior(RowNetwork):
        def forward(self, image: torch.Tensor, prior: object = None) -> SimpleNamespace:
            seen.append(prior)
            return super().forward(image)

    prior = object()
    network = NetworkPredictor(WithPrior(), prior=prior)  # type: ignore[arg-type]
    evaluate_network(network, (96, 32), root, ("kitti2015",))
    assert seen and all(one is prior for one in seen)


def test_damaged_depth_is_left_out_with_a_warning(tmp_path: Path, caplog):
    for number in range(3):
        write_frame(tmp_path / "kitti_2015", number, 20.0, name="{:06d}")
    broken = tmp_path / "kitti_2015" / "depth_stereo" / f"{1:06d}.png"
    broken.write_bytes(broken.read_bytes()[:40])
    figures = evaluate_network(NetworkPredictor(RowNetwork()), (96, 32), tmp_path, ("kitti2015",))
    assert figures["kitti2015"]["frames"] == 2
    assert broken.name in caplog.text


def test_another_image_is_told_from_the_right_one(tmp_path: Path):
    """A dark scene, and a bright one that is upside down, by a network that tells them apart."""
    for number, depth in enumerate((road(), road()[::-1])):
        write_frame(tmp_path / "kitti_2015", number, 20.0, name="{:06d}")
        name = f"{number:06d}.png"
        bright = np.full((125, 414, 3), 200 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "kitti_2015" / "image_02" / name), bright)
        stored = (depth * 256).astype(np.uint16)
        cv2.imwrite(str(tmp_path / "kitti_2015" / "depth_stereo" / name), stored)

    class ByBrightness(RowNetwork):
        def forward(self, image: torch.Tensor, prior: object = None) -> SimpleNamespace:
            upright = super().forward(image).disparity[0]
            dark = image.mean((1, 2, 3), keepdim=True) < 0.5
            return SimpleNamespace(disparity={0: torch.where(dark, upright, upright.flip(2))})

    network = NetworkPredictor(ByBrightness())
    figures = evaluate_network(network, (96, 32), tmp_path, ("kitti2015",))["kitti2015"]
    assert figures["abs_rel"] < 0.02
    assert figures["other_image"] > figures["own_mean"] > 0.1


def test_model_names_are_the_pipelines():
    from training.commands.cli import MODEL_NAMES

    assert MODEL_NAMES[1:] == evaluation.MODELS


@pytest.mark.data
@pytest.mark.slow
def test_the_shipped_bundle_looks_at_the_image(data_dir: Path):
    """At least 10 % below the best image-independent predictor on KITTI 2015."""
    report = evaluate_bundle("lite", data_dir, "kitti2015", models=["single_frame"], baselines=True)
    outcome = beside_baselines(report.sets[0])
    assert outcome is not None and set(COUNTED) <= set(report.sets[0].baselines)
    assert outcome.best_abs_rel <= 0.245  # the LiDAR rows alone reach .242
    assert outcome.passed, outcome
