"""From camera_info to cameras and rectifiers, made once for each calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import rectification_wanted
from depth_prior_ros.ros.camera_infos import (
    CameraModels,
    camera_info_of,
    rectifier_from_info,
    scaled_camera_info,
)

D = [-0.3, 0.1, 1e-3, -1e-3, 0.0]


def distorted(**changes) -> CameraInfo:
    info = camera_info_of(Camera(130.0, 128.0, 101.0, 58.0, 200, 120), Header(frame_id="f"))
    info.d = D
    info.k[0], info.k[2] = 140.0, 98.0
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def ramp(width: int, height: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width, dtype=np.float32), (height, width)).copy()


def test_the_rectified_camera_is_the_projection_matrix():
    camera, rectifier = CameraModels().of(distorted(), 200, 120)
    assert camera == Camera(130.0, 128.0, 101.0, 58.0, 200, 120)
    assert rectifier is not None
    assert rectifier.camera == camera


def test_without_a_projection_matrix_the_camera_matrix_stays():
    camera, rectifier = CameraModels().of(distorted(p=[0.0] * 12), 200, 120)
    assert (camera.fx, camera.cx) == (140.0, 98.0)
    assert rectifier is not None
    info = scaled_camera_info(distorted(p=[0.0] * 12), (200, 120), (100, 60))
    np.testing.assert_allclose(info.p, [70, 0, 49, 0, 0, 64, 29, 0, 0, 0, 1, 0])


def test_the_middle_of_the_picture_comes_from_the_middle_of_the_lens():
    rectifier = rectifier_from_info(distorted(), 200, 120)
    assert rectifier is not None
    assert rectifier.apply(ramp(200, 120))[58, 101] == pytest.approx(98.0, abs=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"d": []},
        {"d": [0.0] * 5},
        {"d": [0.0] * 3, "distortion_model": "ftheta"},
        {"d": [0.0] * 4, "distortion_model": "equidistant"},
        {"d": [], "k": [0.0] * 9, "r": [0.0] * 9},
    ],
)
def test_without_distortion_there_is_nothing_to_do(changes):
    camera, rectifier = CameraModels().of(distorted(**changes), 200, 120)
    assert camera.fx == 130.0
    assert rectifier is None


def test_a_topic_that_is_rectified_already_is_left_alone():
    camera, rectifier = CameraModels().of(distorted(), 200, 120, rectify=False)
    assert camera.fx == 130.0
    assert rectifier is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d": [math.nan] * 5}, "not finite"),
        ({"d": [0.1, 0.2]}, "coefficients"),
        ({"distortion_model": "ftheta"}, "rectify: never"),
        ({"r": [3.0] * 9}, "not a rotation"),
        ({"k": [0.0] * 9}, "focal lengths"),
        ({"k": [math.nan] * 9}, "not finite"),
    ],
)
def test_a_lens_that_cannot_be_is_refused(changes, words):
    with pytest.raises(MessageError, match=words) as caught:
        CameraModels().of(distorted(**changes), 200, 120)
    assert caught.value.cause == "bad_intrinsics"


def test_a_missing_rotation_is_none():
    with_none = rectifier_from_info(distorted(r=[0.0] * 9), 200, 120)
    plain = rectifier_from_info(distorted(), 200, 120)
    assert with_none is not None
    assert plain is not None
    np.testing.assert_array_equal(with_none.apply(ramp(200, 120)), plain.apply(ramp(200, 120)))


def test_an_image_of_half_the_size_is_rectified_by_half_the_numbers():
    full = rectifier_from_info(distorted(), 200, 120)
    half = rectifier_from_info(distorted(), 100, 60)
    assert full is not None
    assert half is not None
    assert half.camera.fx == 65.0
    np.testing.assert_allclose(
        half.apply(ramp(100, 60))[5:-5, 10:-10],
        full.apply(ramp(200, 120))[10:-10:2, 20:-20:2] / 2,
        atol=0.05,
    )


def test_a_region_of_interest_is_rectified_as_that_part_of_the_whole():
    roi = RegionOfInterest(x_offset=40, y_offset=20, width=120, height=80)
    whole = rectifier_from_info(distorted(), 200, 120)
    part = rectifier_from_info(distorted(roi=roi), 120, 80)
    assert whole is not None
    assert part is not None
    from_whole = whole.apply(ramp(200, 120))[20:100, 40:160] - 40
    from_part = part.apply(ramp(120, 80))
    inside = (from_whole > 1) & (from_whole < 118) & (np.abs(np.arange(80)[:, None] - 40) < 30)
    np.testing.assert_allclose(from_part[inside], from_whole[inside], atol=0.04)


def test_a_map_is_made_once_for_each_calibration():
    models = CameraModels(kept=2)
    first = models.of(distorted(), 200, 120)
    assert models.of(distorted(), 200, 120) is first
    stamped = distorted()
    stamped.header.stamp.sec = 99
    assert models.of(stamped, 200, 120) is first, "only what matters is looked at"
    other = models.of(distorted(d=[*D[:4], 0.01]), 200, 120)
    assert other is not first
    assert models.of(distorted(), 200, 120) is first
    assert models.of(distorted(), 100, 60) is not first
    assert models.of(distorted(), 200, 120) is first
    assert models.of(distorted(d=[*D[:4], 0.01]), 200, 120) is not other, "the oldest has gone"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("d", [-0.31, *D[1:]]),
        ("k", [141.0, 0, 98, 0, 128, 58, 0, 0, 1]),
        ("r", [0.0, -1, 0, 1, 0, 0, 0, 0, 1]),
        ("p", [131.0, 0, 101, 0, 0, 128, 58, 0, 0, 0, 1, 0]),
        ("distortion_model", "rational_polynomial"),
    ],
)
def test_every_number_counts(change, value):
    models = CameraModels()
    before = models.of(distorted(), 200, 120)
    info = distorted(**{change: value})
    if change == "distortion_model":
        info.d = [*D, 0.0, 0.0, 0.1]
    assert models.of(info, 200, 120) is not before


@pytest.mark.parametrize(
    ("topic", "wanted"),
    [
        ("/image", True),
        ("/camera/image_raw", True),
        ("/camera/image_color", True),
        ("/camera/image_rect", False),
        ("/camera/image_rect/compressed", False),
        ("/camera/image_rect_color", False),
        ("/camera/infra1/image_rect_raw", False),
        ("/zed/zed_node/left/color/rect/image", False),
        ("/robot/direct/image_raw", True),
        ("/rectangle/image_raw", True),
        ("/camera/image_unrectified", True),
        ("/camera/rectified/image", False),
    ],
)
def test_the_name_tells_whether_a_topic_is_rectified(topic, wanted):
    assert rectification_wanted("auto", topic) is wanted
    assert rectification_wanted("always", topic)
    assert not rectification_wanted("never", topic)


def test_another_choice_is_refused():
    with pytest.raises(ValueError, match="auto, always, never"):
        rectification_wanted("on", "/image")
