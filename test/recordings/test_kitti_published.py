"""KITTI's data sets in the folders that their archives unpack to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kitti_files import (
    CALIBRATION,
    TEST_DRIVE,
    write_depth_selection,
    write_drive,
    write_published_2015,
)

from depth_prior_ros.recordings import RecordingError, open_recording
from training.evaluation.sets import choose_sets, find_drives


@pytest.mark.parametrize("given", [".", "training"])
def test_kitti_2015_has_depth_by_disparity_and_a_camera_a_scene(tmp_path: Path, given: str):
    """P_rect of 2011-09-28: 379.8664 / 707.0493 = 0.53726 m between the cameras."""
    write_published_2015(tmp_path, {0: (1224, 370), 7: (612, 185)}, pixels=20.0)
    recording = open_recording(tmp_path / given)
    assert [frame.index for frame in recording.frames] == [0, 7]
    assert not recording.consecutive
    assert recording.depth_source == "stereo"
    large, half = recording.frames
    assert (large.camera.fx, large.camera.cx, large.camera.width) == (707.0493, 604.0814, 1224)
    assert (half.camera.fx, half.camera.size) == (pytest.approx(707.0493 / 2), (612, 185))
    depth = large.depth()
    assert depth is not None and not depth[0].any()
    np.testing.assert_allclose(depth[1:], (45.75831 + 334.1081) / 20.0, rtol=1e-5)
    assert large.image().shape == (370, 1224, 3)
    assert (half.image() == 7).all()


def test_kitti_2015_without_its_calibrations_takes_the_day_that_fits(tmp_path: Path):
    write_published_2015(tmp_path, {1: (1242, 375), 2: (1224, 500)}, pixels=10.0)
    for file in (tmp_path / "training" / "calib_cam_to_cam").iterdir():
        file.unlink()
    (tmp_path / "training" / "calib_cam_to_cam").rmdir()
    recording = open_recording(tmp_path)
    assert [frame.index for frame in recording.frames] == [1]
    assert "scene 000002" in str(recording.skipped[0])
    assert "2011-09-26" in recording.notes[0]
    depth = recording.frames[0].depth()
    assert depth is not None
    assert depth[5, 5] == pytest.approx(721.5377 * 0.532719 / 10, rel=1e-4)


def test_kitti_2015_is_evaluated_as_published(tmp_path: Path):
    write_published_2015(tmp_path / "kitti_2015", {0: (1224, 370)}, pixels=20.0)
    (scenes,) = choose_sets(tmp_path, None)
    assert (scenes.name, scenes.positions) == ("kitti_2015", (0,))


@pytest.mark.parametrize("place", ["kitti_raw", "kitti_raw/kitti_depth", ".", "kitti_depth"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_kitti_depth_is_found_beside_kitti_raw(tmp_path: Path, place: str, split: str):
    drive = write_drive(tmp_path, TEST_DRIVE, range(5, 8), depth=12.0)
    published = tmp_path / place / split / TEST_DRIVE
    published.mkdir(parents=True)
    (drive / "proj_depth" / "velodyne_raw").rename(drive / "groundtruth")
    (published / "proj_depth").mkdir()
    (drive / "groundtruth").rename(published / "proj_depth" / "groundtruth")
    recording = open_recording(drive)
    assert recording.depth_source == "lidar"
    depth = recording.frames[0].depth()
    assert depth is not None and (depth == 12.0).all()
    assert list(find_drives(tmp_path)) == [drive]  # a folder of depth alone is no drive
    (improved,) = choose_sets(tmp_path, "eigen_improved")
    assert improved.recording.frames[improved.positions[0]].index == 6  # of 0-22/2


def test_the_selection_of_kitti_depth(tmp_path: Path):
    folder = tmp_path / "depth_selection" / "val_selection_cropped"
    write_depth_selection(folder, depth=25.0)
    recording = open_recording(folder)
    assert [frame.camera.fx for frame in recording.frames] == [721.5377, 707.0912]
    assert recording.frames[0].camera.size == (1216, 352)
    depth = recording.frames[1].depth()
    assert depth is not None and (depth == 25.0).all()
    assert not recording.consecutive
    (folder / "intrinsics" / f"{TEST_DRIVE}_image_0000000005_image_02.txt").write_text("1 2 3")
    assert "no nine numbers of a camera" in str(open_recording(folder).skipped[0])


def test_raw_takes_the_calibration_of_its_day(tmp_path: Path):
    drive = write_drive(tmp_path, "2011_09_28_drive_0001_sync", range(2))
    with pytest.raises(RecordingError, match=r"no calib_cam_to_cam\.txt"):
        open_recording(drive)
    wide = CALIBRATION.replace("1.224000e+03 3.700000e+02", "1.242000e+03 3.750000e+02")
    (drive.parent / "calib_cam_to_cam.txt").write_text(wide)
    assert open_recording(drive).frames[0].camera.fx == pytest.approx(707.0493 / 3)
