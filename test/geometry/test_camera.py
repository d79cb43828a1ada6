"""The pinhole camera: scaling, mirroring, cropping and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError

# The first call into a library loads it, and machines are shared: no deadline per example.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

KITTI = Camera(721.5377, 721.5377, 609.5593, 172.854, 1242, 375)


@st.composite
def cameras(draw):
    width, height = draw(st.integers(16, 4000)), draw(st.integers(16, 4000))
    return Camera(
        fx=width * draw(st.floats(0.3, 5)),
        fy=height * draw(st.floats(0.3, 5)),
        cx=width * draw(st.floats(0.1, 0.9)),
        cy=height * draw(st.floats(0.1, 0.9)),
        width=width,
        height=height,
    )


def close(a: Camera, b: Camera) -> bool:
    return a.size == b.size and np.allclose(a.matrix(), b.matrix(), rtol=1e-9, atol=1e-9)


def pixel(camera: Camera, point: np.ndarray) -> np.ndarray:
    u = camera.matrix() @ point
    return u[:2] / u[2]


def test_matrix_round_trip():
    m = KITTI.matrix()
    assert m.dtype == np.float64 and m.shape == (3, 3)
    assert Camera.from_matrix(m, 1242, 375) == KITTI
    assert Camera.from_matrix(np.hstack([m, np.ones((3, 1))]), 1242, 375) == KITTI


def test_halving_by_hand():
    half = Camera(100.0, 90.0, 50.0, 30.0, 104, 60).scaled(52, 30)
    assert half == Camera(50.0, 45.0, 25.0, 15.0, 52, 30)


@given(cameras(), st.integers(16, 4000), st.integers(16, 4000))
def test_scaling_there_and_back(camera, width, height):
    scaled = camera.scaled(width, height)
    assert scaled.size == (width, height)
    assert close(scaled.scaled(*camera.size), camera)
    # The field of view, as seen in normalised coordinates, does not change.
    assert math.isclose(scaled.fx / width, camera.fx / camera.width, rel_tol=1e-12)
    assert math.isclose(scaled.cy / height, camera.cy / camera.height, rel_tol=1e-12)


@given(cameras())
def test_flipping_twice_is_nothing(camera):
    assert close(camera.flipped().flipped(), camera)


@given(cameras(), st.floats(-1, 1), st.floats(-1, 1), st.floats(0.5, 80))
def test_flipped_camera_sees_the_mirrored_world_in_the_mirrored_image(camera, x, y, z):
    """A point mirrored in x lands at width - 1 - u, which is where image[:, ::-1] puts it."""
    point = np.array([x, y, z])
    u, v = pixel(camera, point)
    flipped_u, flipped_v = pixel(camera.flipped(), point * [-1, 1, 1])
    assert math.isclose(flipped_u, camera.width - 1 - u, rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(flipped_v, v, rel_tol=1e-9, abs_tol=1e-6)


@given(cameras(), st.data())
def test_crops_move_pixels_by_their_corner(camera, data):
    x = data.draw(st.integers(0, camera.width // 2))
    y = data.draw(st.integers(0, camera.height // 2))
    width, height = camera.width - x - data.draw(st.integers(0, 4)), camera.height - y
    # Further off, a crop is refused as any camera would be.
    assume(abs(camera.cx - x) <= width and abs(camera.cy - y) <= height)
    window = camera.cropped(x, y, width, height)
    point = np.array([0.3, -0.2, 5.0])
    np.testing.assert_allclose(pixel(window, point), pixel(camera, point) - [x, y], atol=1e-8)
    assert window.size == (width, height) and window.fx == camera.fx


@pytest.mark.parametrize("window", [(-1, 0, 9, 9), (0, -1, 9, 9), (1235, 0, 8, 8), (0, 370, 8, 8)])
def test_crops_outside_the_image_are_refused(window):
    with pytest.raises(InvalidCameraError, match="leaves the image of 1242x375"):
        KITTI.cropped(*window)


def test_same_aspect():
    assert KITTI.same_aspect(KITTI.scaled(621, 188), tolerance=0.01)
    assert KITTI.same_aspect(KITTI.scaled(640, 192), tolerance=0.01)
    assert not KITTI.same_aspect(KITTI.scaled(640, 480))


@given(cameras(), st.sampled_from(["fx", "fy", "cx", "cy"]), st.sampled_from([math.nan, math.inf]))
def test_values_that_are_not_finite_are_refused(camera, field, value):
    values = camera.__dict__ | {field: value}
    with pytest.raises(InvalidCameraError, match="not finite"):
        Camera(**values)


@given(cameras(), st.sampled_from(["fx", "fy"]), st.floats(-1e6, 0))
def test_focal_lengths_must_be_positive(camera, field, value):
    with pytest.raises(InvalidCameraError, match="positive"):
        Camera(**camera.__dict__ | {field: value})


@given(cameras(), st.sampled_from(["width", "height"]), st.integers(-5000, 0))
def test_empty_images_are_refused(camera, field, value):
    with pytest.raises(InvalidCameraError, match="empty"):
        Camera(**camera.__dict__ | {field: value})


@given(st.integers(9, 4000), st.integers(9, 4000))
def test_normalised_intrinsics_are_named_as_such(width, height):
    with pytest.raises(InvalidCameraError, match="normalised"):
        Camera(0.58, 1.92, 0.5, 0.5, width, height)


@given(cameras(), st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_principal_points_far_outside_are_refused(camera, cx, cy):
    assume(abs(cx) > 2 * camera.width or abs(cy) > 2 * camera.height)
    with pytest.raises(InvalidCameraError, match="principal point"):
        Camera(**camera.__dict__ | {"cx": cx, "cy": cy})


def test_all_zero_matrix_is_refused():
    with pytest.raises(InvalidCameraError, match="positive"):
        Camera.from_matrix(np.zeros((3, 3)), 640, 192)


@given(cameras())
def test_cameras_are_values(camera):
    assert camera == Camera(**camera.__dict__) and hash(camera) == hash(Camera(**camera.__dict__))
    with pytest.raises(AttributeError):
        camera.fx = 1.0
