"""A short bag through the real node over DDS, and what the replay writes about it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_process import fork_replay_nodes
from helpers import make_tiny_bundle
from test_bag import make_recording

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.bundle.baselines import LIDAR_ROW, OWN_MEAN, add_baselines, stored_maps
from depth_prior_ros.evaluation.protocols import protocol_for
from depth_prior_ros.recordings import (
    CorruptFrameError,
    RecordingError,
    StoredRecording,
    open_recording,
)
from depth_prior_ros.recordings.base import Frame
from rosbag_tools.cli import main
from rosbag_tools.make import write_bag
from rosbag_tools.replaying.node_process import NodeProcess, ReplayError, free_domain
from rosbag_tools.replaying.session import ReplayOptions, _Session, replay
from rosbag_tools.reports.results import (
    FrameRecord,
    latency_percentiles,
    load,
    result_folder,
    switches,
)
from rosbag_tools.reports.scoring import (
    OWN_DRIVE,
    ReplayErrors,
    in_view,
)

SIZE = (96, 32)
ERRORS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(path, SIZE)
    return path


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about how the node starts: `replayed` starts one as users do."""
    fork_replay_nodes(monkeypatch)


def stopping_drive(count: int = 16, stop_at: int = 7) -> StoredRecording:
    """Drives, then stands: speeds that make the node change its model."""
    recording = make_recording(count, size=SIZE)
    recording.frames = [
        Frame(
            frame.index,
            frame.stamp_ns,
            frame.camera,
            frame.load_image,
            frame.load_depth,
            frame.pose,
            speed=5.0 if frame.index < stop_at else 0.0,
        )
        for frame in recording.frames
    ]
    return recording


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """The folder of a replay in lockstep, made by the command itself."""
    folder = tmp_path_factory.mktemp("replay")
    bag = write_bag(stopping_drive(), folder / "drive.mcap").path
    out = folder / "out"
    command = ["replay", str(bag), "--out", str(out), "--bundle", str(bundle)]
    assert main([*command, "--backend", "torch"]) == 0
    return out


@pytest.fixture(scope="module")
def metrics(replayed: Path) -> dict[str, Any]:
    return json.loads((replayed / "metrics.json").read_text())


def test_every_frame_is_answered_in_lockstep(metrics: dict[str, Any]) -> None:
    assert metrics["frames_in"] == 16
    assert metrics["frames_out"] == 16
    assert metrics["dropped"] == 0


def test_metrics_have_the_fixed_form(metrics: dict[str, Any]) -> None:
    latency = metrics["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert set(metrics["depth"]) == {"all", "single_frame", "multi_frame"}
    for entry in metrics["depth"].values():
        assert set(ERRORS) <= set(entry)
        assert all(math.isfinite(entry[name]) for name in ERRORS)
    assert metrics["depth"]["all"]["frames"] == 16
    # the first frame has no predecessor
    assert metrics["depth"]["single_frame"]["frames"] == 15
    assert metrics["depth"]["multi_frame"]["frames"] == 15
    assert metrics["protocol"]["name"] == "synthetic"
    assert metrics["protocol"]["crop"] is None


def test_references_are_told_apart(replayed: Path, metrics: dict[str, Any]) -> None:
    assert metrics["references"] == load(replayed).run["references"] == "the bundle has none"
    page = (replayed / "report.html").read_text()
    assert "<dt>references</dt><dd>the bundle has none" in page


@pytest.mark.parametrize(
    ("look_up", "cameras", "said", "expected"),
    [
        (True, 1, {"inferred": "3", "references": "5 pixels"}, "5 pixels"),
        (True, 2, {"inferred": "3", "references": "5 pixels"}, "5 pixels, as the node said last"),
        (True, 1, {"inferred": "0", "references": "5 pixels"}, "not known"),
        (True, 1, {"inferred": "3"}, "not known"),
        (True, 1, None, "not known"),
        (False, 2, None, "not looked up: switched off"),
    ],
)
def test_references_are_those_that_the_node_is_known_to_look_up(
    look_up: bool, cameras: int, said: dict[str, str] | None, expected: str, tmp_path: Path
) -> None:
    from rosbag_tools.replaying.replay import Played

    recording = make_recording(2, size=SIZE)
    last = recording.frames[-1]
    camera = replace(last.camera, fx=last.camera.fx + cameras - 1)
    recording.frames[-1] = replace(last, camera=camera)
    options = ReplayOptions(look_up=look_up)
    session = _Session(recording, tmp_path, options, load_bundle("lite"))
    assert session._references(Played(diagnostics=said)) == expected


def test_the_stop_is_seen(metrics: dict[str, Any]) -> None:
    found = [(s["from"], s["to"], s["reason"]) for s in metrics["switches"]]
    assert ("multi_frame", "single_frame", "stationary") in found
    stop = next(s for s in metrics["switches"] if s["reason"] == "stationary")
    assert 7 <= stop["frame"] <= 12
    assert stop["stamp"] == pytest.approx(1_700_000_000.123456789 + 0.1 * stop["frame"], abs=1e-3)


def test_models_are_told_apart_frame_by_frame(replayed: Path) -> None:
    frames = load(replayed).frames
    assert (frames[0].model, frames[0].reason) == ("single_frame", "first_frame")
    assert (frames[4].model, frames[4].reason) == ("multi_frame", "moving")
    assert (frames[-1].model, frames[-1].reason) == ("single_frame", "stationary")


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_second_replay_gives_the_same_figures(
    replayed: Path, bundle: Path, tmp_path: Path, metrics: dict[str, Any]
) -> None:
    options = ReplayOptions(bundle=str(bundle), backend="torch", forced=False)
    drive = write_bag(stopping_drive(), tmp_path / "drive.mcap").path
    again = replay(open_recording(drive), tmp_path / "out", options, "test").metrics
    assert again["switches"] == metrics["switches"]
    assert again["depth"]["all"] == metrics["depth"]["all"]
    assert again["depth"]["single_frame"]["frames"] == 0


def test_report_carries_everything_in_itself(replayed: Path) -> None:
    page = (replayed / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 16 * 4
    assert "src=" not in page.replace("img.src", "").replace(".src =", "")
    assert "http" not in page
    assert "stationary" in page
    assert "depth_bag replay" in page
    assert "Apache-2.0" in page
    assert "@" not in page.split("<body>")[1].split("<script")[0]  # every placeholder is filled


def test_report_can_be_made_again(replayed: Path) -> None:
    page = (replayed / "report.html").read_bytes()
    (replayed / "report.html").unlink()
    assert main(["report", str(replayed)]) == 0
    assert (replayed / "report.html").read_bytes() == page


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_real_time_counts_what_is_dropped(bundle: Path, tmp_path: Path) -> None:
    recording = make_recording(30, size=SIZE)
    options = ReplayOptions(
        bundle=str(bundle), backend="torch", rate=60.0, forced=False, answer_timeout=3
    )
    found = replay(recording, tmp_path / "out", options, "test").metrics
    assert found["frames_in"] == 30
    assert found["frames_out"] + found["dropped"] == 30
    assert found["frames_out"] >= 1
    assert found["mode"] == "rate 60"


@pytest.mark.usefixtures("forked")
def test_no_depth_no_odometry_a_corrupt_frame_and_another_shape(
    bundle: Path, tmp_path: Path
) -> None:
    recording = make_recording(4, depth=False, speed=None, size=(640, 480))

    def broken() -> np.ndarray:
        raise CorruptFrameError("0000000002.png: truncated")

    frames = list(recording.frames)
    frames[2] = Frame(2, frames[2].stamp_ns, frames[2].camera, broken)
    recording.frames = frames
    options = ReplayOptions(bundle=str(bundle), backend="torch")
    found = replay(recording, tmp_path / "out", options, "test").metrics
    assert (found["frames_in"], found["frames_out"]) == (3, 3)
    assert found["skipped"] == ["frame 2: 0000000002.png: truncated"]
    assert found["depth"]["all"]["frames"] == 0
    assert found["protocol"] is None
    assert "no true depth" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("forked")
def test_a_drive_without_a_readable_frame_is_an_error(bundle: Path, tmp_path: Path) -> None:
    def broken() -> np.ndarray:
        raise CorruptFrameError("encoding 'yuv422'")

    recording = make_recording(2, size=SIZE)
    recording.frames = [
        Frame(frame.index, frame.stamp_ns, frame.camera, broken) for frame in recording.frames
    ]
    options = ReplayOptions(bundle=str(bundle), backend="torch")
    with pytest.raises(ReplayError, match=r"not one frame.*yuv422"):
        replay(recording, tmp_path / "out", options, "test")
    assert list(tmp_path.iterdir()) == []


def test_missing_bundle_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(make_recording(2), tmp_path / "drive.mcap").path
    command = ["replay", str(bag), "--out", str(tmp_path / "out"), "--bundle", "nowhere"]
    assert main(command) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_node_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    process = NodeProcess({"bundle": "/nowhere/at/all"}, {}, domain_id=77, log=log)
    with process:
        assert process._process is not None
        process._process.wait(60)
        with pytest.raises(ReplayError, match=r"exit code 1(.|\n)*/nowhere/at/all"):
            process.check()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_node_that_dies_on_the_way_ends_the_replay(bundle: Path, tmp_path: Path) -> None:
    from rosbag_tools.replaying.replay import IMAGE_TOPIC, INFO_TOPIC, Player

    process = NodeProcess(
        {"bundle": str(bundle), "backend": "torch", "image_reliability": "reliable"},
        {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC},
        domain_id=78,
        log=tmp_path / "node.log",
    )
    answers: list[Any] = []

    def kill(answer: Any) -> None:
        answers.append(answer)
        assert process._process is not None
        process._process.kill()

    recording = make_recording(5, size=SIZE, speed=None)
    with process, Player(78) as player:
        player.wait_for_node(process, 120)
        with pytest.raises(ReplayError, match="exit code -9"):
            player.lockstep(recording, process, kill, lambda done, total: None, 30)
    assert len(answers) == 1
    assert answers[0].depth.shape == SIZE[::-1]


def test_node_that_never_answers_is_an_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rosbag_tools.replaying import session

    # an image topic that nobody publishes on
    original = session.NodeProcess

    def deaf(parameters: Any, remappings: Any, **other: Any) -> NodeProcess:
        return original(parameters, {**remappings, "depth/image_rect": "/elsewhere"}, **other)

    monkeypatch.setattr(session, "NodeProcess", deaf)
    options = ReplayOptions(bundle=str(bundle), backend="torch", start_timeout=6)
    with pytest.raises(ReplayError, match="not active"):
        replay(make_recording(2, size=SIZE), tmp_path / "out", options, "test")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecordingError, match=r"thesis\.tex"), result_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_older_result_stays_when_a_replay_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with result_folder(out) as folder:
        (folder / "metrics.json").write_text("old")
    with pytest.raises(RuntimeError), result_folder(out) as folder:
        (folder / "metrics.json").write_text("new")
        raise RuntimeError
    assert (out / "metrics.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_switches_and_percentiles_ignore_frames_without_an_answer() -> None:
    models = ["single_frame", None, "multi_frame", "multi_frame", "single_frame"]
    frames = [
        FrameRecord(i, i * 10**8, None, None if m is None else 10.0 + i, m, "why")
        for i, m in enumerate(models)
    ]
    assert [s["frame"] for s in switches(frames)] == [2, 4]
    assert latency_percentiles(frames)["p50"] == 12.5
    assert latency_percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_truth_is_seen_through_the_window_of_the_depth() -> None:
    truth = np.arange(480 * 640).reshape(480, 640)
    window = in_view(truth, np.zeros((32, 96)))
    assert window.shape == (213, 640)
    assert window[0, 0] == truth[133, 0]
    assert in_view(truth, np.zeros((240, 320))).shape == truth.shape


def test_maps_of_a_bundle_are_evaluated_beside_it(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "tiny")
    width, height = SIZE
    rows = np.log(np.linspace(40, 4, height, dtype=np.float32))
    arrays = {OWN_MEAN: np.full((height, width), 0.1, np.float32), LIDAR_ROW: rows}
    own = add_baselines(load_bundle(tmp_path / "tiny"), arrays)
    maps = stored_maps(own)
    assert maps[OWN_MEAN] == pytest.approx(10.0, rel=1e-3)
    assert maps[LIDAR_ROW].shape == (height, width)
    assert maps[LIDAR_ROW][-1, 5] == pytest.approx(4, rel=1e-2)

    recording = make_recording(3, size=SIZE)
    errors = ReplayErrors(recording, protocol_for(recording))
    truths = [frame.depth() for frame in recording.frames]
    for position, truth in enumerate(truths):
        assert truth is not None
        errors.add(position, np.where(truth > 0, 2 * truth, np.inf).astype(np.float32))
    first = errors.results[0]
    assert first.errors.abs_rel == pytest.approx(0, abs=1e-6)  # medians take the factor away
    assert first.metric.abs_rel > 0.9
    found = errors.baselines(own, lambda done, total: None)
    assert set(found) == {OWN_MEAN, LIDAR_ROW, OWN_DRIVE}
    assert found[OWN_DRIVE]["abs_rel"] < found[OWN_MEAN]["abs_rel"]
    assert {entry["frames"] for entry in found.values()} == {3}


def test_pixels_that_the_range_took_are_told() -> None:
    """Published depth is cut to the node's range before anybody can scale it."""
    recording = make_recording(2, size=SIZE)
    errors = ReplayErrors(recording, protocol_for(recording))
    truth = recording.frames[0].depth()
    assert truth is not None
    depth = np.where(truth > 0, truth, 50).astype(np.float32)
    errors.add(0, depth)
    assert errors.entry()["pixels_beyond_range"] == 0 and errors.notes() == []
    depth[:2, :5] = np.inf
    errors.add(1, depth)
    entry = errors.entry()
    assert (entry["frames"], entry["pixels"]) == (2, 2 * depth.size)
    assert entry["pixels_beyond_range"] == 10
    assert "10 of 6,144 pixels" in errors.notes()[0]


@pytest.mark.data
@pytest.mark.slow
def test_the_real_stop_is_seen_without_odometry(
    bundle: Path, data_dir: Path, tmp_path: Path
) -> None:
    drive = data_dir / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"
    bag, out = tmp_path / "52.mcap", tmp_path / "out"
    assert main(["make", "--kitti-raw", str(drive), "--out", str(bag)]) == 0
    assert main(["replay", str(bag), "--out", str(out), "--bundle", str(bundle)]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert (found["frames_in"], found["frames_out"], found["dropped"]) == (78, 78, 0)
    assert any(s["to"] == "single_frame" and s["reason"] == "stationary" for s in found["switches"])
    assert found["protocol"]["crop"] == "garg"
    assert found["protocol"]["max_depth"] == 80
    assert found["depth"]["all"]["frames"] == 78
    assert found["depth"]["multi_frame"]["frames"] == 77


def test_a_domain_in_which_somebody_takes_part_is_not_free() -> None:
    from rclpy.context import Context
    from rclpy.node import Node

    from rosbag_tools.replaying import node_process

    domain = free_domain()
    assert 1 <= domain <= 101 and node_process._nobody_listens(domain)
    context = Context()
    context.init(domain_id=domain)
    node = Node("somebody", context=context)
    assert not node_process._nobody_listens(domain)
    node.destroy_node()
    context.shutdown()
