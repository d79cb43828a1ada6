"""LiDAR projected into an image: points placed by hand, and KITTI's own projection."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import project_points
from depth_prior_ros.recordings.kitti import read_calibration

CAMERA = Camera(100.0, 50.0, 10.0, 5.0, 21, 11)
DRIVE = "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"


def test_points_fall_where_the_pinhole_puts_them():
    points = np.array(
        [
            [0.0, 0.0, 8.0],  # the principal point
            [0.4, -0.2, 4.0],  # 10 to the right, 2.5 up: rounds to the even row 2
            [0.0, 0.0, 5.0],  # hides the first
            [0.0, 0.0, -5.0],  # behind
            [5.0, 0.0, 5.0],  # beside the image
            [np.nan, 0.0, 5.0],
            [0.0, 0.0, 0.01],  # on the lens
        ]
    )
    depth = project_points(points, np.eye(4), CAMERA)
    assert depth.dtype == np.float32
    expected = np.zeros((11, 21))
    expected[5, 10], expected[2, 20] = 5.0, 4.0
    np.testing.assert_array_equal(depth, expected)


def test_the_transform_comes_first():
    move = np.eye(4)
    move[:3, 3] = (0.3, 0.0, 1.0)
    depth = project_points(np.array([[0.0, 0.0, 2.0]]), move, CAMERA)
    assert depth[5, 20] == pytest.approx(3.0)
    assert np.count_nonzero(depth) == 1


def test_no_points_are_no_depth():
    assert not project_points(np.empty((0, 3)), np.eye(4), CAMERA).any()


@pytest.mark.data
@pytest.mark.parametrize("number", [0, 1])
def test_a_sweep_of_kitti_is_its_own_projection(number):
    """The two sweeps of drive 0052 against the published map, which has steps of 1/256 m."""
    drive = Path(os.environ["DEPTH_PRIOR_DATA"]) / DRIVE
    lidar = read_calibration(drive.parent / "calib_velo_to_cam.txt")
    cameras = read_calibration(drive.parent / "calib_cam_to_cam.txt")
    projection = cameras["P_rect_02"].reshape(3, 4)
    rectify, unrectified, beside = np.eye(4), np.eye(4), np.eye(4)
    rectify[:3, :3] = cameras["R_rect_00"].reshape(3, 3)
    unrectified[:3, :3], unrectified[:3, 3] = lidar["R"].reshape(3, 3), lidar["T"]
    beside[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    name = f"{number:010d}"
    published = cv2.imread(
        str(drive / f"proj_depth/velodyne_raw/image_02/{name}.png"), cv2.IMREAD_UNCHANGED
    )
    points = np.fromfile(drive / f"velodyne_points/data/{name}.bin", np.float32).reshape(-1, 4)
    height, width = published.shape
    camera = Camera.from_matrix(projection, width, height)
    found = project_points(points[:, :3].astype(float), beside @ rectify @ unrectified, camera)
    np.testing.assert_array_equal(found > 0, published > 0)
    difference = np.abs(found - published / 256)[published > 0]
    print(f"{name}: {difference.size} points, {difference.max():.5f} m apart at most")
    assert difference.max() <= 1 / 256 + 1e-5
