"""Which frames are evaluated: the Eigen list, and what is found below a data folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from kitti_files import TEST_DRIVE, TRAINING_DRIVE, write_drive, write_frame

from training.evaluation.sets import (
    PROTOCOL_SETS,
    EvaluationError,
    choose_sets,
    data_folder,
    drive_set,
    eigen_drive_sets,
    eigen_test_frames,
    find_drives,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_drive(tmp_path, TEST_DRIVE, range(5))
    write_drive(tmp_path, TRAINING_DRIVE, range(3))
    for number in (2, 7, 9):
        write_frame(tmp_path / "kitti_2015", number, 20.0, name="{:06d}")
    return tmp_path


def test_the_eigen_list_is_complete():
    listed = eigen_test_frames()
    assert len(listed) == 28
    assert sum(len(frames) for frames in listed.values()) == 697
    assert listed["2011_09_26", "0052"] == (*range(0, 23, 2), *range(26, 33, 2), *range(36, 53, 2))
    assert listed["2011_09_29", "0071"][-2:] == (951, 1054)
    assert all(len(set(f)) == len(f) and sorted(f) == list(f) for f in listed.values())


def test_training_drives_are_never_evaluated_by_accident(root: Path):
    assert {d.name for d in find_drives(root)} == {TEST_DRIVE, TRAINING_DRIVE}
    for listed_only in (False, True):
        found = eigen_drive_sets(root, listed_only=listed_only)
        assert [s.name for s in found] == [TEST_DRIVE]


def test_protocols_choose_frames(root: Path):
    def chosen(protocol: str | None, data: Path = root) -> dict[str, list[int]]:
        return {
            s.name: [s.recording.frames[i].index for i in s.positions]
            for s in choose_sets(data, protocol)
        }

    scenes, everything, listed = [2, 7, 9], [0, 1, 2, 3, 4], [0, 2, 4]
    assert chosen(None) == {"kitti_2015": scenes, TEST_DRIVE: everything}
    assert chosen("kitti2015") == {"kitti_2015": scenes}
    assert chosen("kitti2015", root / "kitti_2015") == {"kitti_2015": scenes}
    assert chosen("eigen") == {TEST_DRIVE: listed}
    assert chosen("drive") == {TEST_DRIVE: everything}
    drive = root / "kitti_raw" / "2011_09_26"
    assert chosen("eigen", drive) == {TEST_DRIVE: listed}
    assert chosen("eigen", drive / TEST_DRIVE) == {TEST_DRIVE: listed}
    # Named outright, any recording will do.
    assert chosen("drive", drive / TRAINING_DRIVE) == {TRAINING_DRIVE: [0, 1, 2]}


def test_crops_belong_to_the_kind_of_depth(root: Path):
    by_name = {s.name: s.protocol for s in choose_sets(root, None)}
    assert by_name["kitti_2015"].crop is None
    assert by_name[TEST_DRIVE].crop == "garg"
    assert {p.max_depth for p in by_name.values()} == {80.0}
    assert {p.scaling for p in by_name.values()} == {"median"}
    drive = root / "kitti_raw" / "2011_09_26" / TRAINING_DRIVE
    assert drive_set(drive).protocol.crop == "garg"


def test_frames_without_depth_are_shown_but_not_evaluated(root: Path):
    folder = root / "kitti_raw" / "2011_09_26" / TEST_DRIVE
    (folder / "proj_depth/velodyne_raw/image_02/0000000002.png").unlink()
    (found,) = choose_sets(root, "drive")
    assert len(found.recording.frames) == 5
    assert found.positions == (0, 1, 3, 4)


@pytest.mark.parametrize("protocol", [*sorted({*PROTOCOL_SETS} - {"drive"}), None])
def test_nothing_to_evaluate_is_an_error_that_says_what_was_looked_for(tmp_path: Path, protocol):
    with pytest.raises(EvaluationError, match=r"nothing to evaluate.*looked for"):
        choose_sets(tmp_path, protocol)


def test_an_unknown_protocol_is_refused(root: Path):
    with pytest.raises(EvaluationError, match="unknown protocol 'best'"):
        choose_sets(root, "best")


def test_data_come_from_the_argument_or_the_environment(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    with pytest.raises(EvaluationError, match="--data DIR or set DEPTH_PRIOR_DATA"):
        data_folder(None)
    monkeypatch.setenv("DEPTH_PRIOR_DATA", str(tmp_path))
    assert data_folder(None) == tmp_path
    (tmp_path / "other").mkdir()
    assert data_folder(tmp_path / "other") == tmp_path / "other"
    with pytest.raises(EvaluationError, match="no such folder"):
        data_folder(tmp_path / "absent")
