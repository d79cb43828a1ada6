"""The camera's height over the road: against planes computed by hand, and a second estimator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import CameraHeightScale, FixedScale, RoadSettings, ScaleSight
from depth_prior_ros.scale.road import NoRoadError, fit_road

CAMERA = Camera(185.9, 184.7, 157.0, 44.25, 320, 96)
Floats = NDArray[np.float64]


def rays(camera: Camera) -> Floats:
    """(h, w, 3) viewing rays with z = 1."""
    rows, columns = np.mgrid[: camera.height, : camera.width].astype(float)
    x, y = (columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], -1)


def road_below(height: float, pitch: float = 0.0, roll: float = 0.0) -> Floats:
    """Inverse depth (h, w) of a plane `height` units below a camera that looks down by `pitch`.

    Beyond the horizon it is that of something 80 camera heights away.
    """
    normal = np.array(
        [
            math.sin(roll) * math.cos(pitch),
            math.cos(roll) * math.cos(pitch),
            math.sin(pitch),
        ]
    )
    return np.maximum(rays(CAMERA) @ normal / height, 1 / (80 * height))


@settings(deadline=None, max_examples=50)
@given(
    height=st.floats(0.02, 5.0),
    pitch=st.floats(-0.03, 0.03),
    roll=st.floats(-0.03, 0.03),
)
def test_exact_planes(height: float, pitch: float, roll: float) -> None:
    road = fit_road(road_below(height, pitch, roll), CAMERA, RoadSettings())
    assert road.height == pytest.approx(height, rel=3e-3)
    assert math.atan2(road.normal[2], road.normal[1]) == pytest.approx(pitch, abs=2e-3)
    assert math.atan2(road.normal[0], road.normal[1]) == pytest.approx(roll, abs=2e-3)
    assert road.share > 0.99


@pytest.mark.parametrize("pitch", [-0.1, 0.15, 0.3])
def test_a_camera_mounted_at_an_angle(pitch: float) -> None:
    road = fit_road(road_below(0.17, pitch), CAMERA, RoadSettings(pitch=pitch))
    assert road.height == pytest.approx(0.17, rel=2e-3)


@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (0.004, -0.005), (-0.004, 0.01)])
def test_noise(pitch: float, roll: float) -> None:
    rng = np.random.default_rng(5)
    inverse = road_below(0.17, pitch, roll)
    found = [
        fit_road(inverse * (1 + 0.05 * rng.standard_normal(inverse.shape)), CAMERA, RoadSettings())
        for _ in range(20)
    ]
    assert np.mean([r.height for r in found]) == pytest.approx(0.17, rel=0.02)
    assert np.std([r.height for r in found]) < 0.02 * 0.17


def by_points(inverse: Floats) -> float:
    """A second estimator: the plane through the points of the near lane, by their covariance."""
    seen = rays(CAMERA)
    points = (seen / inverse[..., None])[75:95, 110:200].reshape(-1, 3)
    centre = points.mean(0)
    normal = np.linalg.svd(points - centre, full_matrices=False)[2][2]
    return float(abs(normal @ centre))


@pytest.mark.parametrize("pitch", [-0.02, 0.0, 0.03])
def test_agrees_with_a_plane_through_the_points(pitch: float) -> None:
    rng = np.random.default_rng(7)
    inverse = road_below(0.17, pitch) * (1 + 0.005 * rng.standard_normal((96, 320)))
    road = fit_road(inverse, CAMERA, RoadSettings())
    assert road.height == pytest.approx(by_points(inverse), rel=0.02)


def test_a_car_ahead_and_a_kerb_are_left_out() -> None:
    height = 0.17
    inverse = road_below(height)
    beside = rays(CAMERA)[..., 0] > 0.9 * rays(CAMERA)[..., 1]
    inverse[beside] = road_below(0.8 * height)[beside]  # a wall's foot, a fifth of the height
    inverse[:76, 110:210] = 1 / (5.8 * height)  # the back of a car, 9.5 m away at 1.65 m
    road = fit_road(inverse, CAMERA, RoadSettings())
    assert road.height == pytest.approx(height, rel=0.05)
    assert 0.4 < road.share < 0.9


def test_missing_depth_is_left_out() -> None:
    inverse = road_below(0.17)
    rng = np.random.default_rng(2)
    inverse[rng.random(inverse.shape) < 0.2] = np.nan
    inverse[rng.random(inverse.shape) < 0.1] = 0.0
    inverse[rng.random(inverse.shape) < 0.1] = -1.0
    assert fit_road(inverse, CAMERA, RoadSettings()).height == pytest.approx(0.17, rel=1e-3)


def test_the_bonnet_is_ignored_where_asked() -> None:
    inverse = road_below(0.17)
    inverse[82:] = 5 / 0.17
    with pytest.raises(NoRoadError, match="agree on a plane"):
        fit_road(inverse, CAMERA, RoadSettings(min_share=0.6))
    road = fit_road(inverse, CAMERA, RoadSettings(min_share=0.6, ignore_bottom=0.15))
    assert road.height == pytest.approx(0.17, rel=0.01)


def lorry() -> Floats:
    return np.full((96, 320), 1.0)


def nothing() -> Floats:
    return np.full((96, 320), np.nan)


def ramp() -> Floats:
    return road_below(0.17, 0.2)


def rubble() -> Floats:
    return 1 / np.random.default_rng(1).uniform(0.5, 10, (96, 320))


@pytest.mark.parametrize("scene", [lorry, nothing, ramp, rubble])
def test_no_road_in_sight(scene: object) -> None:
    assert callable(scene)
    with pytest.raises(NoRoadError, match=r"road|plane"):
        fit_road(scene(), CAMERA, RoadSettings())


def test_a_camera_that_sees_no_ground() -> None:
    up = Camera(185.9, 184.7, 157.0, 95.0, 320, 96)
    with pytest.raises(NoRoadError, match="does not show the road"):
        fit_road(road_below(0.17), up, RoadSettings())


def test_the_scale_tells_why_and_lives_on() -> None:
    scale = CameraHeightScale(FixedScale(10.0), 1.65)
    for inverse in (lorry(), nothing(), None, np.ones((5, 5))):
        scale.observe(ScaleSight(0, inverse, CAMERA, True, seconds=0.1))
        assert scale.status.samples == 0 and scale.status.text.endswith(")")
    for _ in range(60):
        scale.observe(ScaleSight(0, road_below(0.11), CAMERA, True, seconds=0.1))
    assert scale.metres_per_unit == pytest.approx(15.0, rel=0.01)
    assert scale.status.state == "measured"


def test_a_crooked_road_changes_the_factor_little() -> None:
    """Waves of 3 cm on the road ahead, one every 4 m."""
    height, seen = 0.17, rays(CAMERA)
    flat = road_below(height)
    distance = 1.65 / height / flat
    bump = 0.03 / 1.65 * np.sin(2 * np.pi * distance / 4.0)
    inverse = np.where(seen[..., 1] > 0.01, flat / (1 + bump), flat)
    assert fit_road(inverse, CAMERA, RoadSettings()).height == pytest.approx(height, rel=0.02)
