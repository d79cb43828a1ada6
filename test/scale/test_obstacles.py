"""Obstacles of scenes whose geometry is known, and the scan beside depthimage_to_laserscan's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import RoadSettings
from depth_prior_ros.scale.obstacles import (
    Obstacles,
    ObstacleSettings,
    bearings,
    depth_sigma,
    find_obstacles,
    road_of_depth,
    thinned,
)
from depth_prior_ros.scale.road import NoRoadError, mounted_road

CAMERA = Camera(185.9, 184.7, 157.0, 44.25, 320, 96)
HEIGHT = 1.5
Floats = NDArray[np.float32]


def scene(*boards: tuple[float, float, float, float], far: float = math.inf) -> Floats:
    """Depth (h, w) of a level road and upright boards: (left, right, distance, height), metres."""
    rows, columns = np.mgrid[: CAMERA.height, : CAMERA.width].astype(float)
    x, y = (columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy
    depth = np.full(x.shape, far)
    np.divide(HEIGHT, y, out=depth, where=y > HEIGHT / 60)
    for left, right, distance, height in boards:
        above = HEIGHT - y * distance
        seen = (x * distance >= left) & (x * distance <= right) & (above >= 0) & (above <= height)
        depth = np.where(seen, np.minimum(depth, distance), depth)
    return depth.astype(np.float32)


def found(depth: Floats, **changes: float) -> Obstacles:
    road = road_of_depth(depth, CAMERA, RoadSettings())
    return find_obstacles(depth, CAMERA, road, ObstacleSettings(**changes))


@settings(deadline=None, max_examples=40)
@given(distance=st.floats(5.0, 19.0), middle=st.floats(-2.0, 2.0), height=st.floats(0.6, 2.4))
def test_boards_are_found_and_the_road_is_not(
    distance: float, middle: float, height: float
) -> None:
    board = (middle - 0.5, middle + 0.5, distance, height)
    depth = scene(board)
    obstacles = found(depth)
    shows = depth != scene()
    rows = (np.arange(CAMERA.height) - CAMERA.cy)[:, None] / CAMERA.fy
    above = np.broadcast_to(HEIGHT - rows * distance, depth.shape)
    assert obstacles.mask[shows & (above > 0.35)].all()
    assert not obstacles.mask[~shows].any()
    points = obstacles.points()
    assert np.allclose(points[:, 2], distance)
    assert (np.abs(points[:, 0] - middle) < 0.51).all()


def test_what_is_low_high_or_far_is_none() -> None:
    boards = ((-3.0, -1.0, 9.0, 0.1), (1.0, 2.0, 25.0, 2.0))
    assert not found(scene(*boards)).mask.any()
    bridge = scene()
    bridge[:5] = 12.0  # 4.1 m up
    assert not found(bridge).mask.any()
    assert found(bridge, max_height=9.0).mask[:5].any()


def test_no_road_no_obstacles() -> None:
    with pytest.raises(NoRoadError):
        road_of_depth(np.full((96, 320), 5.0, np.float32), CAMERA, RoadSettings())


def test_right_behind_a_car_the_road_as_mounted_serves() -> None:
    depth = scene((-3.0, 3.0, 4.0, 2.0))
    with pytest.raises(NoRoadError):
        road_of_depth(depth, CAMERA, RoadSettings())
    road = mounted_road(HEIGHT, RoadSettings())
    mask = find_obstacles(depth, CAMERA, road, ObstacleSettings()).mask
    assert np.array_equal(mask.any(axis=0), (depth == 4.0).any(axis=0))


def by_laserscan(depth: Floats, camera: Camera, rows: int) -> tuple[Floats, float, float]:
    """depthimage_to_laserscan as its documentation describes it: of `rows` rows around the middle,
    the range of every column in the x-z plane goes into the bin of its angle, the nearest stays.
    """
    angle_max = math.atan2(camera.cx, camera.fx)
    angle_min = -math.atan2(camera.width - 1 - camera.cx, camera.fx)
    increment = (angle_max - angle_min) / (camera.width - 1)
    ranges = np.full(camera.width, np.nan)
    top = int(camera.cy) - rows // 2
    for row in range(top, top + rows):
        for column in range(camera.width):
            z = float(depth[row, column])
            angle = -math.atan2(column - camera.cx, camera.fx)
            index = int((angle - angle_min) / increment + 1e-9)
            distance = math.hypot(z, z * (column - camera.cx) / camera.fx)
            if math.isfinite(z) and not distance >= ranges[index]:
                ranges[index] = distance
    return ranges.astype(np.float32), angle_min, increment


@pytest.mark.parametrize("width", [320, 200])
def test_the_scan_is_that_of_depthimage_to_laserscan(width: int) -> None:
    """Boards side by side close the view: the rows around the middle show nothing else."""
    edges = np.linspace(-14, 14, 15)
    distances = np.random.default_rng(3).uniform(9.0, 14.0, 14)
    boards = [(a, b, d, 2.4) for a, b, d in zip(edges, edges[1:], distances, strict=False)]
    depth = scene(*boards, far=15.0)[:, :width]
    camera = Camera(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, width, CAMERA.height)
    road = road_of_depth(depth, camera, RoadSettings())
    ranges = find_obstacles(depth, camera, road, ObstacleSettings()).ranges()
    theirs, first, step = by_laserscan(depth, camera, 3)
    assert (first, step) == pytest.approx((bearings(camera)[0], bearings(camera)[2]))
    both = np.isfinite(theirs) & (theirs < 20)
    assert both.mean() > 0.7
    assert np.allclose(ranges[both], theirs[both], rtol=0.01)
    # Where columns are further apart than bearings they have holes; here there are none.
    assert np.isfinite(ranges[np.flatnonzero(both)[0] : np.flatnonzero(both)[-1]]).all()


def test_free_and_unknown_directions_differ() -> None:
    depth = scene((-1.0, 1.0, 9.0, 1.5))
    depth[:, :20] = math.nan
    ranges = found(depth).ranges()
    assert math.isinf(ranges[10])  # to the right: the road, and nothing on it
    assert math.isnan(ranges[-5])  # to the left: nobody knows
    assert ranges[len(ranges) // 2] == pytest.approx(9.0, rel=0.01)


def test_sigma_is_that_of_a_normal_error() -> None:
    """By drawing: of normal errors with this sigma the share within 1.25 is the confidence."""
    rng = np.random.default_rng(0)
    for confidence in (0.3, 0.7, 0.95):
        sigma = depth_sigma(np.float32([[10.0]]), np.float32([[confidence]]))[0, 0]
        log_errors = (sigma / 10.0) * rng.standard_normal(200_000)
        assert np.mean(np.abs(log_errors) < math.log(1.25)) == pytest.approx(confidence, abs=0.005)
    sure = depth_sigma(np.float32([[10.0]]), np.float32([[1.0]]), spread=0.2)[0, 0]
    assert sure == pytest.approx(10 * math.hypot(0.2, 0.0959), rel=0.01)


def test_thinning_leaves_one_point_a_cube() -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (5000, 3)).astype(np.float32)
    thin = thinned(points, 0.25)
    cubes = {tuple(c) for c in np.floor(points / 0.25).astype(int)}
    assert len(thin) == len(cubes)
    assert thinned(points[:0], 0.25).shape == (0, 3)
    by_hand = [points[(np.floor(points / 0.25) == c).all(axis=1)].mean(axis=0) for c in cubes]
    assert np.allclose(np.sort(np.array(by_hand), axis=0), np.sort(thin, axis=0), atol=1e-5)
