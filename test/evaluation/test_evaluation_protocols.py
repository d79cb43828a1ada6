"""Protocols of the papers' other sets, evaluated end to end on small files of their layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_set_files import write_city, write_make3d, write_nuscenes
from kitti_files import TEST_DRIVE, write_drive

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.evaluation.evaluate import evaluate, part_entries, row_entry
from depth_prior_ros.evaluation.frames import (
    read_evaluation_frame,
    read_evaluation_frames,
    scaled_window,
)
from depth_prior_ros.evaluation.predictors import StoredDepth
from depth_prior_ros.evaluation.protocols import PROTOCOLS, Protocol
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import Frame, StoredRecording
from training.evaluation.evaluation import evaluate_bundle, evaluate_set
from training.evaluation.report import as_json, print_report, write_pictures
from training.evaluation.sets import choose_sets

OTHER_DRIVE = "2011_09_26_drive_0002_sync"


@pytest.mark.parametrize("below", ["", "set"])
def test_make3d_is_shown_whole_and_quoted_by_log10(tmp_path: Path, bundle: Bundle, below: str):
    write_make3d(tmp_path / ("make3d" if below else ""), ("a", "b"))
    report = evaluate_bundle(
        bundle, tmp_path, "make3d", backend="torch", device="cpu", baselines=True
    )
    (one,) = report.sets
    assert [frame.region for frame in one.rows["all"]] == [(0, 0, 1704, 852)] * 2
    assert one.rows["all"][0].depth.shape == (32, 96)
    entry = as_json(report)["depth"]["all"]
    assert entry["rmse_log10"] == pytest.approx(entry["rmse_log"] / np.log(10))
    assert entry["metric"]["frames"] == 2
    truth = one.chosen.recording.frames[0].depth()
    again = Protocol("", max_depth=70.0).errors(one.rows["all"][0].depth, truth)
    assert again.abs_rel == pytest.approx(one.rows["all"][0].errors.abs_rel)
    from rich.console import Console

    console = Console(record=True, width=120, file=Path("/dev/null").open("w"))  # noqa: SIM115
    print_report(report, console)
    text = console.export_text()
    assert "rmse_log10" in text and "up to 70 m" in text and "abs_rel by metres" in text
    assert cv2.imread(str(write_pictures(report, tmp_path / "out", 1)[0])).shape[0] == 320


def test_cityscapes_is_cropped_and_shown_whole(tmp_path: Path, bundle: Bundle):
    for name in ("bonn_000000_000019", "bonn_000001_000019"):
        write_city(tmp_path / "cityscapes", name)
    (one,) = evaluate_bundle(bundle, tmp_path, "cityscapes", backend="torch", device="cpu").sets
    assert one.name == "cityscapes_test" and one.chosen.protocol.crop == "cityscapes"
    frame = one.rows["all"][0]
    assert frame.region == (0, 0, 256, 96)
    truth = one.chosen.recording.frames[0].depth()
    expected = Protocol("", crop="cityscapes").errors(frame.depth, truth)
    assert frame.errors == expected
    # Truth of 20 m everywhere: one range, and no other.
    assert len(frame.parts) == 1


def test_nuscenes_has_predecessors_where_the_sweeps_are_there(tmp_path: Path, bundle: Bundle):
    write_nuscenes(tmp_path)
    (one,) = evaluate_bundle(bundle, tmp_path, "nuscenes", backend="torch", device="cpu").sets
    numbers = {n: [f.position for f in frames] for n, frames in one.rows.items()}
    every = [0, 3, 6, 9]
    expected = {"all": every, "single_frame": [3, 9], "single_frame_all": every}
    assert numbers == expected | {"multi_frame": [3, 9]}
    assert {f.model for f in one.rows["multi_frame"]} == {"multi_frame"}
    # A 16:9 image loses rows above and below, as in a vehicle.
    assert one.rows["all"][0].region == (0, 18, 160, 53)


def test_improved_truth_has_its_own_folder_and_no_crop(tmp_path: Path):
    drive = write_drive(tmp_path, TEST_DRIVE, range(3))
    with pytest.raises(Exception, match="proj_depth/groundtruth"):
        choose_sets(tmp_path, "eigen_improved")
    raw = drive / "proj_depth" / "velodyne_raw"
    shutil.copytree(raw, drive / "proj_depth" / "groundtruth")
    (raw / "image_02" / f"{2:010d}.png").unlink()
    (improved,), (single,) = (choose_sets(tmp_path, p) for p in ("eigen_improved", "eigen"))
    assert improved.protocol.name == "eigen_improved" and improved.protocol.crop is None
    assert (improved.positions, single.positions) == ((0, 2), (0,))
    assert improved.notes == ("2 of the 25 listed frames are there with depth",)


def test_all_drives_of_a_protocol_are_summed_up(tmp_path: Path, bundle: Bundle):
    write_drive(tmp_path, TEST_DRIVE, range(5))
    write_drive(tmp_path, OTHER_DRIVE, range(4), depth=20.0)
    report = evaluate_bundle(
        bundle,
        tmp_path,
        "eigen",
        models=["single_frame"],
        backend="torch",
        device="cpu",
        baselines=True,
    )
    names = [one.name for one in report.sets]
    assert names == [OTHER_DRIVE, TEST_DRIVE, "eigen (all)"]
    counts = [len(one.rows["single_frame"]) for one in report.sets]
    assert counts[2] == counts[0] + counts[1] > 0
    # The papers' figure is over every listed frame, also the first of a drive.
    assert [len(one.rows["single_frame_all"]) for one in report.sets] == [2, 3, 5]
    content = as_json(report)
    assert "depth" not in content and "eigen (all)" in content["data_sets"]
    assert content["data_sets"]["eigen (all)"]["baselines"]["constant_depth"]["frames"] == 5
    written = write_pictures(report, tmp_path / "out")
    assert {path.stem for path in written} == {f"{n}_single_frame" for n in names[:2]}


# --- parts of a frame -----------------------------------------------------------------------------


def test_truth_coarser_than_the_image_is_compared_with_its_window():
    truth = np.repeat(np.linspace(40, 4, 50, dtype=np.float32)[:, None], 100, 1)
    moving = np.arange(200)[:, None].repeat(400, 1) < 100
    frame = Frame(
        7,
        0,
        Camera(300, 300, 200, 100, 400, 200),
        lambda: np.zeros((200, 400, 3), np.uint8),
        lambda: truth,
        load_moving=lambda: moving,
    )
    protocol, recording = PROTOCOLS["synthetic"], StoredRecording("one", [frame])
    frames = read_evaluation_frames(recording, protocol, (100, 30), [0])
    (result,) = evaluate(StoredDepth({0: truth[10:40] * 3}), frames, protocol)
    assert result.errors.abs_rel == pytest.approx(0, abs=1e-6)
    assert result.errors.ratio == pytest.approx(1 / 3)
    assert result.depth.size == 0 and result.region == (0, 40, 400, 120) and result.index == 7
    assert {"moving", "static"} < set(result.parts)
    assert scaled_window((0, 40, 400, 120), (400, 200), (100, 50)) == (0, 10, 100, 30)


def test_parts_are_averaged_over_the_frames_that_have_them():
    one, two = (
        Protocol("", scaling="none").errors(np.full((4, 4), v), np.full((4, 4), 10.0))
        for v in (11, 13)
    )
    entries = part_entries([{"0-10": one, "moving": two}, {"0-10": two}, {}])
    assert list(entries) == ["0-10", "moving"]
    assert entries["0-10"]["abs_rel"] == pytest.approx(0.2) and entries["0-10"]["frames"] == 2
    assert entries["moving"]["frames"] == 1 and "ratio_median" not in entries["moving"]
    assert row_entry([])["parts"] == {} and row_entry([], PROTOCOLS["make3d"])["frames"] == 0


def test_a_protocol_says_how_a_frame_is_shown(tmp_path: Path):
    write_city(tmp_path, "bonn_000000_000019")
    (chosen,) = choose_sets(tmp_path, "cityscapes")
    recording, camera = chosen.recording, chosen.recording.frames[0].camera
    squeezed = read_evaluation_frame(recording, 0, PROTOCOLS["cityscapes"], (96, 32))
    assert squeezed.image.shape == (32, 96, 3) and squeezed.window == (0, 0, 256, 96)
    assert squeezed.camera.fx == pytest.approx(camera.fx * 96 / 256)
    assert squeezed.camera.fy == pytest.approx(camera.fy * 32 / 96)
    shown = read_evaluation_frame(recording, 0, PROTOCOLS["eigen"], (96, 32))
    assert shown.image.shape == (32, 96, 3) and shown.window == (0, 5, 256, 85)
    assert shown.camera.fx == pytest.approx(camera.fx * 96 / 256)
    assert shown.camera.cy == pytest.approx((camera.cy - 5) * 32 / 85)


def test_depth_images_are_kept_only_where_they_are_wanted(tmp_path: Path, bundle: Bundle):
    from depth_prior_ros.pipeline import DepthPipeline

    write_drive(tmp_path, TEST_DRIVE, range(2))
    (chosen,) = choose_sets(tmp_path, "drive")
    pipeline = DepthPipeline(bundle, "torch", "cpu")
    told: list[tuple[int, int]] = []
    report = evaluate_set(
        pipeline, chosen, progress=lambda _, done=0, total=0: told.append((done, total)), keep=False
    )
    assert {frame.depth.size for rows in report.rows.values() for frame in rows} == {0}
    assert (1, 2) in told
