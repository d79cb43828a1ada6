"""Depth messages out, calibration in: every size, every number that no camera has."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.ros.messages import (
    MessageError,
    camera_from_info,
    camera_info_of,
    depth_to_image,
    image_to_depth,
    scaled_camera_info,
)

sizes = st.integers(1, 40)
depth_values = st.sampled_from([0.5, 12.25, 80.0, math.nan, math.inf, -math.inf])


@given(sizes, sizes, st.lists(depth_values, min_size=1, max_size=50))
def test_depth_round_trip_keeps_every_bit(width, height, values):
    depth = np.resize(np.array(values, dtype=np.float32), (height, width))
    header = Header(stamp=Time(sec=1, nanosec=2), frame_id="optical")
    message = depth_to_image(depth, header)
    assert (message.encoding, message.step) == ("32FC1", 4 * width)
    assert (message.header.stamp.sec, message.header.frame_id) == (1, "optical")
    assert isinstance(message.data, array.array)
    np.testing.assert_array_equal(image_to_depth(message), depth)


def test_depth_of_a_view_is_copied_row_by_row():
    depth = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(image_to_depth(depth_to_image(depth, Header())), depth)


def make_info(width: int = 640, height: int = 192) -> CameraInfo:
    return camera_info_of(Camera(372.0, 360.0, 315.5, 96.25, width, height), Header(frame_id="f"))


@given(
    st.floats(50, 5000),
    st.floats(50, 5000),
    st.integers(16, 4000),
    st.integers(16, 4000),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_camera_round_trip(fx, fy, width, height, u, v):
    camera = Camera(fx, fy, u * width, v * height, width, height)
    assert camera_from_info(camera_info_of(camera, Header()), width, height) == camera


def test_the_projection_matrix_goes_before_k():
    info = make_info()
    info.k[0] = 999.0
    assert camera_from_info(info, 640, 192).fx == 372.0
    info.p = np.zeros(12)
    assert camera_from_info(info, 640, 192).fx == 999.0


bad_numbers = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -300.0])


@given(bad_numbers, st.sampled_from([0, 4]), st.booleans())
def test_focal_lengths_that_no_camera_has(number, index, rectified):
    info = make_info()
    if rectified:
        info.p[{0: 0, 4: 5}[index]] = number
    else:
        info.p = np.zeros(12)
        info.k[index] = number
    with pytest.raises(MessageError) as caught:
        camera_from_info(info, 640, 192)
    assert caught.value.cause == "bad_intrinsics"


@given(st.sampled_from([math.nan, math.inf, -math.inf, 1e9]), st.sampled_from([2, 6]))
def test_principal_points_that_no_camera_has(number, index):
    info = make_info()
    info.p[index] = number
    with pytest.raises(MessageError, match="bad_intrinsics"):
        camera_from_info(info, 640, 192)


def test_all_zeros_is_said_to_be_uncalibrated():
    info = CameraInfo(width=640, height=192)
    with pytest.raises(MessageError, match=r"bad_intrinsics.*not calibrated"):
        camera_from_info(info, 640, 192)


@given(st.lists(st.floats(), min_size=21, max_size=21), st.integers(0, 99), st.integers(0, 99))
def test_whatever_intrinsics_come_are_read_or_refused(numbers, width, height):
    info = CameraInfo(width=width, height=height, k=numbers[:9], p=numbers[9:])
    try:
        with np.errstate(all="ignore"):
            camera_from_info(info, 64, 32)
    except MessageError as error:
        assert error.cause in {"bad_intrinsics", "camera_info_size"}


@given(st.floats(0.25, 4), st.integers(100, 2000), st.integers(100, 2000))
def test_another_size_of_the_same_aspect_is_scaled(factor, width, height):
    camera = Camera(0.6 * width, 0.6 * width, width / 2, height / 2, width, height)
    image_width, image_height = round(width * factor), round(height * factor)
    mismatch = abs(width * image_height / (height * image_width) - 1)
    info = camera_info_of(camera, Header())
    if mismatch <= 0.01:
        fitted = camera_from_info(info, image_width, image_height)
        assert fitted.size == (image_width, image_height)
        assert fitted.fx == pytest.approx(camera.fx * image_width / width)
        assert fitted.cy == pytest.approx(camera.cy * image_height / height)
    else:
        with pytest.raises(MessageError, match="camera_info_size"):
            camera_from_info(info, image_width, image_height)


@pytest.mark.parametrize("size", [(640, 480), (1242, 385), (192, 640), (0, 0)])
def test_another_aspect_is_refused_with_both_sizes_named(size):
    info = make_info()
    info.width, info.height = size
    with pytest.raises(MessageError, match=f"{size[0]}x{size[1]}.*640x192") as caught:
        camera_from_info(info, 640, 192)
    assert caught.value.cause == "camera_info_size"


def test_camera_info_of_the_depth_size():
    info = make_info(1242, 375)
    info.header.stamp = Time(sec=3, nanosec=4)
    info.p[3], info.p[7] = -50.0, 5.0
    info.d = [0.1, 0.2, 0.3, 0.4, 0.5]
    info.distortion_model = "rational_polynomial"
    info.roi = RegionOfInterest(width=1242, height=375)
    scaled = scaled_camera_info(info, (1242, 375), (640, 192))
    sx, sy = 640 / 1242, 192 / 375
    assert (scaled.width, scaled.height) == (640, 192)
    assert (scaled.header, scaled.distortion_model) == (info.header, "rational_polynomial")
    assert list(scaled.d) == [0.1, 0.2, 0.3, 0.4, 0.5]
    np.testing.assert_array_equal(scaled.r, info.r)
    np.testing.assert_allclose(
        scaled.k, [372 * sx, 0, 315.5 * sx, 0, 360 * sy, 96.25 * sy, 0, 0, 1]
    )
    np.testing.assert_allclose(
        scaled.p,
        [372 * sx, 0, 315.5 * sx, -50 * sx, 0, 360 * sy, 96.25 * sy, 5 * sy, 0, 0, 1, 0],
    )
    assert (scaled.roi.width, scaled.roi.height) == (640, 192)
    assert (info.width, info.k[0]) == (1242, 372.0), "the camera's own message must stay as it is"


def test_a_point_projects_onto_the_same_place_of_the_scaled_image():
    info = make_info(1242, 375)
    scaled = scaled_camera_info(info, (1242, 375), (320, 96))
    point = np.array([1.0, -0.5, 8.0, 1.0])
    u, v, w = np.reshape(info.p, (3, 4)) @ point
    us, vs, ws = np.reshape(scaled.p, (3, 4)) @ point
    assert us / ws / 320 == pytest.approx(u / w / 1242)
    assert vs / ws / 96 == pytest.approx(v / w / 375)


def test_a_region_of_interest_moves_the_principal_point():
    info = make_info(1280, 960)
    info.p[2] = info.k[2] = 640.0
    info.p[6] = info.k[5] = 480.0
    info.roi = RegionOfInterest(x_offset=100, y_offset=200, width=1000, height=300)
    camera = camera_from_info(info, 1000, 300)
    assert (camera.cx, camera.cy, camera.size) == (540.0, 280.0, (1000, 300))
    scaled = scaled_camera_info(info, (1000, 300), (500, 150))
    assert (scaled.width, scaled.height, scaled.roi.width) == (500, 150, 0)
    assert (scaled.p[2], scaled.p[6]) == (270.0, 140.0)


def test_binning_is_a_scale():
    info = make_info(1280, 960)
    info.binning_x = info.binning_y = 2
    assert camera_from_info(info, 640, 480).fx == 186.0
    info.roi = RegionOfInterest(x_offset=100, y_offset=50, width=800, height=200)
    info.p[2] = 400.0
    camera = camera_from_info(info, 400, 100)
    assert (camera.fx, camera.cx, camera.cy) == (186.0, 150.0, 23.125)
    scaled = scaled_camera_info(info, (400, 100), (400, 100))
    assert (scaled.binning_x, scaled.p[0]) == (0, 186.0)
