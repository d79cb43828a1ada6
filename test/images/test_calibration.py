"""What a calibration says: every model, every size, every number that no camera has."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.calibration import Calibration, read_distortion, rectification_wanted
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import Rectifier, check_calibration
from depth_prior_ros.ros.messages import (
    CameraModels,
    camera_info,
    camera_info_of,
)

read = Calibration.from_message


def camera_of(info: CameraInfo, width: int, height: int) -> Camera:
    return read(info).camera(width, height)


def rectifier_of(info: CameraInfo, width: int, height: int) -> Rectifier | None:
    return CameraModels().of(read(info), width, height)[1]


def depth_info(info: CameraInfo, image: tuple[int, int], depth: tuple[int, int]) -> CameraInfo:
    return camera_info(read(info).of_depth(image, depth), info.header)


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
    assert camera_of(camera_info_of(camera, Header()), width, height) == camera


def test_the_projection_matrix_goes_before_k():
    info = make_info()
    info.k[0] = 999.0
    assert camera_of(info, 640, 192).fx == 372.0
    info.p = np.zeros(12)
    assert camera_of(info, 640, 192).fx == 999.0


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
        camera_of(info, 640, 192)
    assert caught.value.cause == "bad_intrinsics"


@given(st.sampled_from([math.nan, math.inf, -math.inf, 1e9]), st.sampled_from([2, 6]))
def test_principal_points_that_no_camera_has(number, index):
    info = make_info()
    info.p[index] = number
    with pytest.raises(MessageError, match="bad_intrinsics"):
        camera_of(info, 640, 192)


def test_all_zeros_is_said_to_be_uncalibrated():
    info = CameraInfo(width=640, height=192)
    with pytest.raises(MessageError, match=r"bad_intrinsics.*not calibrated"):
        camera_of(info, 640, 192)


@given(st.lists(st.floats(), min_size=21, max_size=21), st.integers(0, 99), st.integers(0, 99))
def test_whatever_intrinsics_come_are_read_or_refused(numbers, width, height):
    info = CameraInfo(width=width, height=height, k=numbers[:9], p=numbers[9:])
    try:
        with np.errstate(all="ignore"):
            camera_of(info, 64, 32)
    except MessageError as error:
        assert error.cause in {"bad_intrinsics", "camera_info_size"}


@given(st.floats(0.25, 4), st.integers(100, 2000), st.integers(100, 2000))
def test_another_size_of_the_same_aspect_is_scaled(factor, width, height):
    camera = Camera(0.6 * width, 0.6 * width, width / 2, height / 2, width, height)
    image_width, image_height = round(width * factor), round(height * factor)
    mismatch = abs(width * image_height / (height * image_width) - 1)
    info = camera_info_of(camera, Header())
    if mismatch <= 0.01:
        fitted = camera_of(info, image_width, image_height)
        assert fitted.size == (image_width, image_height)
        assert fitted.fx == pytest.approx(camera.fx * image_width / width)
        assert fitted.cy == pytest.approx(camera.cy * image_height / height)
    else:
        with pytest.raises(MessageError, match="camera_info_size"):
            camera_of(info, image_width, image_height)


@pytest.mark.parametrize("size", [(640, 480), (1242, 385), (192, 640), (0, 0)])
def test_another_aspect_is_refused_with_both_sizes_named(size):
    info = make_info()
    info.width, info.height = size
    with pytest.raises(MessageError, match=f"{size[0]}x{size[1]}.*640x192") as caught:
        camera_of(info, 640, 192)
    assert caught.value.cause == "camera_info_size"


def test_camera_info_of_the_depth_size():
    """Depth belongs to the rectified image, whatever lens its camera has."""
    info = make_info(1242, 375)
    info.header.stamp = Time(sec=3, nanosec=4)
    info.k[0], info.k[2] = 350.0, 300.0
    info.p[3], info.p[7] = -50.0, 5.0
    info.d = [0.1, 0.2, 0.3, 0.4, 0.5]
    info.r = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    info.distortion_model = "rational_polynomial"
    info.roi = RegionOfInterest(x_offset=30, width=1242, height=375)
    scaled = depth_info(info, (1242, 375), (640, 192))
    sx, sy = 640 / 1242, 192 / 375
    assert (scaled.width, scaled.height) == (640, 192)
    assert (scaled.header, scaled.distortion_model) == (info.header, "plumb_bob")
    assert list(scaled.d) == [0.0] * 5
    assert list(scaled.r) == np.eye(3).ravel().tolist()
    assert scaled.roi == RegionOfInterest()
    np.testing.assert_allclose(
        scaled.k, [372 * sx, 0, 315.5 * sx, 0, 360 * sy, 96.25 * sy, 0, 0, 1]
    )
    np.testing.assert_allclose(
        scaled.p,
        [372 * sx, 0, 315.5 * sx, -50 * sx, 0, 360 * sy, 96.25 * sy, 5 * sy, 0, 0, 1, 0],
    )
    assert (info.width, info.k[0]) == (1242, 350.0), "the camera's own message must stay as it is"


def test_a_point_projects_onto_the_same_place_of_the_scaled_image():
    info = make_info(1242, 375)
    scaled = depth_info(info, (1242, 375), (320, 96))
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
    camera = camera_of(info, 1000, 300)
    assert (camera.cx, camera.cy, camera.size) == (540.0, 280.0, (1000, 300))
    scaled = depth_info(info, (1000, 300), (500, 150))
    assert (scaled.width, scaled.height, scaled.roi.width) == (500, 150, 0)
    assert (scaled.p[2], scaled.p[6]) == (270.0, 140.0)


def test_binning_is_a_scale():
    info = make_info(1280, 960)
    info.binning_x = info.binning_y = 2
    assert camera_of(info, 640, 480).fx == 186.0
    info.roi = RegionOfInterest(x_offset=100, y_offset=50, width=800, height=200)
    info.p[2] = 400.0
    camera = camera_of(info, 400, 100)
    assert (camera.fx, camera.cx, camera.cy) == (186.0, 150.0, 23.125)
    scaled = depth_info(info, (400, 100), (400, 100))
    assert (scaled.binning_x, scaled.p[0]) == (0, 186.0)


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
    camera, rectifier = CameraModels().of(read(distorted()), 200, 120)
    assert camera == Camera(130.0, 128.0, 101.0, 58.0, 200, 120)
    assert rectifier is not None
    assert rectifier.camera == camera


def test_without_a_projection_matrix_the_camera_matrix_stays():
    camera, rectifier = CameraModels().of(read(distorted(p=[0.0] * 12)), 200, 120)
    assert (camera.fx, camera.cx) == (140.0, 98.0)
    assert rectifier is not None
    info = depth_info(distorted(p=[0.0] * 12), (200, 120), (100, 60))
    np.testing.assert_allclose(info.p, [70, 0, 49, 0, 0, 64, 29, 0, 0, 0, 1, 0])


def test_the_middle_of_the_picture_comes_from_the_middle_of_the_lens():
    rectifier = rectifier_of(distorted(), 200, 120)
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
    camera, rectifier = CameraModels().of(read(distorted(**changes)), 200, 120)
    assert camera.fx == 130.0
    assert rectifier is None


def test_a_topic_that_is_rectified_already_is_left_alone():
    camera, rectifier = CameraModels().of(read(distorted()), 200, 120, rectify=False)
    assert camera.fx == 130.0
    assert rectifier is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d": [math.nan] * 5}, "not finite"),
        ({"d": [0.1, 0.2]}, "coefficients"),
        ({"distortion_model": "ftheta"}, "rectify: never"),
        ({"r": [3.0] * 9}, "not a rotation"),
        ({"k": [math.nan] * 9}, "not finite"),
    ],
)
def test_a_lens_that_cannot_be_is_refused(changes, words):
    with pytest.raises(MessageError, match=words) as caught:
        CameraModels().of(read(distorted(**changes)), 200, 120)
    assert caught.value.cause == "bad_intrinsics"


def test_a_missing_rotation_is_none():
    with_none = rectifier_of(distorted(r=[0.0] * 9), 200, 120)
    plain = rectifier_of(distorted(), 200, 120)
    assert with_none is not None
    assert plain is not None
    np.testing.assert_array_equal(with_none.apply(ramp(200, 120)), plain.apply(ramp(200, 120)))


def test_an_image_of_half_the_size_is_rectified_by_half_the_numbers():
    full = rectifier_of(distorted(), 200, 120)
    half = rectifier_of(distorted(), 100, 60)
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
    whole = rectifier_of(distorted(), 200, 120)
    part = rectifier_of(distorted(roi=roi), 120, 80)
    assert whole is not None
    assert part is not None
    from_whole = whole.apply(ramp(200, 120))[20:100, 40:160] - 40
    from_part = part.apply(ramp(120, 80))
    inside = (from_whole > 1) & (from_whole < 118) & (np.abs(np.arange(80)[:, None] - 40) < 30)
    np.testing.assert_allclose(from_part[inside], from_whole[inside], atol=0.04)


def test_a_map_is_made_once_for_each_calibration():
    models = CameraModels(kept=2)
    first = models.of(read(distorted()), 200, 120)
    assert models.of(read(distorted()), 200, 120) is first
    stamped = distorted()
    stamped.header.stamp.sec = 99
    assert models.of(read(stamped), 200, 120) is first, "only what matters is looked at"
    other = models.of(read(distorted(d=[*D[:4], 0.01])), 200, 120)
    assert other is not first
    assert models.of(read(distorted()), 200, 120) is first
    assert models.of(read(distorted()), 100, 60) is not first
    assert models.of(read(distorted()), 200, 120) is first
    assert models.of(read(distorted(d=[*D[:4], 0.01])), 200, 120) is not other, (
        "the oldest has gone"
    )


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
    before = models.of(read(distorted()), 200, 120)
    info = distorted(**{change: value})
    if change == "distortion_model":
        info.d = [*D, 0.0, 0.0, 0.1]
    assert models.of(read(info), 200, 120) is not before


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


@st.composite
def lenses(draw):
    """A model's name and coefficients as OpenCV takes them, and as many zeros behind them."""
    fisheye = draw(st.booleans())
    count = 4 if fisheye else draw(st.sampled_from([4, 5, 8, 12, 14]))
    d = draw(
        st.lists(
            st.floats(-0.02, 0.02).filter(lambda c: abs(c) > 1e-3), min_size=count, max_size=count
        )
    )
    name = "equidistant" if fisheye else draw(st.sampled_from(["plumb_bob", "rational_polynomial"]))
    return name, d, draw(st.integers(0, 10))


@given(lenses())
def test_coefficients_are_read_by_their_number_as_opencv_does(lens):
    """The map is the one that OpenCV makes of them, whatever zeros and name they have."""
    name, d, zeros = lens
    info = distorted(d=[*d, *[0.0] * zeros], distortion_model=name, p=[0.0] * 12)
    model = read(info).lens(200, 120)
    assert model is not None
    rectifier = Rectifier(model)
    K = np.reshape(info.k, (3, 3))
    make = cv2.fisheye if name == "equidistant" else cv2
    x, _ = make.initUndistortRectifyMap(K, np.array(d), np.eye(3), K, (200, 120), cv2.CV_32FC1)
    found = rectifier.apply(ramp(200, 120))
    inside = (x > 0) & (x < 199)
    if rectifier.outside is not None:
        inside &= ~rectifier.outside
    np.testing.assert_allclose(found[inside], x[inside], atol=0.05)


def test_a_name_and_a_number_that_contradict_each_other():
    eight = [0.3, -0.1, 0.0, 0.0, 0.02, 0.5, 0.03, 0.01]
    model, _, doubt = read_distortion("plumb_bob", eight)
    assert model == "rational_polynomial"
    assert "8 of them are read as rational_polynomial" in doubt
    assert read_distortion("rational_polynomial", eight[:5])[::2] == ("plumb_bob", "")
    model, _, doubt = read_distortion("", eight[:5])
    assert model == "plumb_bob"
    assert "no distortion model is named" in doubt
    with pytest.raises(
        InvalidCameraError, match="equidistant has 4 distortion coefficients, got 8"
    ):
        read_distortion("equidistant", eight)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fisheye", "equidistant"),
        ("Kannala_Brandt", "equidistant"),
        ("radial-tangential", "plumb_bob"),
        ("Brown Conrady", "plumb_bob"),
    ],
)
def test_models_by_the_names_that_drivers_use(name, expected):
    assert read_distortion(name, (0.1, 0.0, 0.0, 0.0))[0] == expected


@pytest.mark.parametrize("empty", [[0.0] * 12, [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0]])
def test_a_projection_that_was_never_filled_in_gives_way_to_k(empty):
    info = distorted(p=empty)
    assert camera_of(info, 200, 120) == Camera(140.0, 128.0, 98.0, 58.0, 200, 120)
    info.k = np.zeros(9)
    with pytest.raises(MessageError, match=r"bad_intrinsics.*not calibrated"):
        camera_of(info, 200, 120)


def test_a_lens_without_k_is_that_of_p_and_doubted():
    calibration = read(distorted(k=[0.0] * 9))
    lens = calibration.lens(200, 120)
    assert lens is not None
    assert lens.raw == lens.camera == Camera(130.0, 128.0, 101.0, 58.0, 200, 120)
    assert "K is not filled in" in calibration.doubts(200, 120, rectified=True)[0]


def test_an_image_that_was_resized_after_it_was_cut():
    """A region of the full image's shape: the driver says that it cut, so it did."""
    info = make_info(1280, 384)
    info.p[2], info.p[6] = 640.0, 192.0
    info.roi = RegionOfInterest(x_offset=320, y_offset=96, width=640, height=192)
    assert camera_of(info, 320, 96) == Camera(186.0, 180.0, 160.0, 48.0, 320, 96)
    assert camera_of(info, 1280, 384).fx == 372.0, "the full image has no region"
    info.roi.x_offset = 1000  # a region that leaves the image is none
    assert camera_of(info, 320, 96).fx == 93.0


def test_a_good_calibration_has_no_doubts():
    assert read(make_info()).doubts(640, 192, "/image_raw") == []
    assert read(distorted()).doubts(200, 120, "/image_raw", rectified=True) == []


def test_k_that_is_of_the_binned_image_already_is_doubted():
    info = make_info(1280, 384)  # the principal point of 640x192
    info.binning_x = info.binning_y = 2
    (doubt,) = read(info).doubts(640, 192)
    assert "far from the middle" in doubt
    assert "seem to be those of images of 640x192 already" in doubt


def test_an_image_called_undistorted_is_doubted_where_it_is_rectified():
    (doubt,) = read(distorted()).doubts(200, 120, "/cam/image_undistorted", rectified=True)
    assert "rectify: never" in doubt
    assert not read(distorted()).doubts(200, 120, "/cam/image_undistorted")


def test_what_leaves_nothing_of_the_image_is_refused_on_arrival():
    aside = distorted(p=[130.0, 0, 500, 0, 0, 128, 58, 0, 0, 0, 1, 0])
    aside.p[2] = 399.0
    with pytest.raises(MessageError, match="would be empty"):
        check_calibration(read(aside), rectify=True)
    check_calibration(read(aside), rectify=False)


def test_a_last_row_of_p_that_was_never_filled_in():
    """image_geometry does not read it; without it P has no inverse."""
    info = make_info()
    info.p[3] = -0.5 * info.p[0]
    expected = read(info).place_in_pair()
    info.p[10] = 0.0
    np.testing.assert_allclose(read(info).place_in_pair(), expected)
    np.testing.assert_allclose(expected[:3, 3], [0.5, 0, 0])
    np.testing.assert_allclose(read(info).rectified_from_optical()[:3, 3], [-0.5, 0, 0])


def test_a_matrix_that_is_not_finite_is_refused_whatever_it_is_used_for():
    info = make_info()
    info.p[3] = math.nan
    with pytest.raises(MessageError, match="P of camera_info is not finite"):
        check_calibration(read(info), rectify=False)


def test_a_rotation_that_is_none_is_not_filled_in_and_doubted():
    info = make_info()
    info.r = np.ones(9)
    np.testing.assert_array_equal(read(info).rectified_from_optical(), np.eye(4))
    assert read(info).doubts(640, 192) == ["R is not a rotation, taken as not filled in"]


def test_ros_1_messages_have_capital_matrices():
    info = distorted()
    old = SimpleNamespace(
        width=200,
        height=120,
        distortion_model="plumb_bob",
        D=info.d,
        K=info.k,
        R=info.r,
        P=info.p,
        binning_x=0,
        binning_y=0,
        roi=info.roi,
    )
    assert read(old) == read(info)


def test_a_file_of_camera_calibration_is_the_same_calibration():
    info = distorted()
    content = {
        "image_width": 200,
        "image_height": 120,
        "camera_name": "front",
        "camera_matrix": {"rows": 3, "cols": 3, "data": info.k.tolist()},
        "distortion_model": "plumb_bob",
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": list(info.d)},
        "rectification_matrix": {"rows": 3, "cols": 3, "data": info.r.tolist()},
        "projection_matrix": {"rows": 3, "cols": 4, "data": info.p.tolist()},
    }
    assert Calibration.from_yaml(content) == read(info)
    del content["projection_matrix"], content["rectification_matrix"]
    assert Calibration.from_yaml(content).camera(200, 120).fx == 140.0
    content["camera_matrix"]["data"] = [1.0, 2.0]
    with pytest.raises(InvalidCameraError, match="camera_matrix: 9 numbers expected, got 2"):
        Calibration.from_yaml(content)
    with pytest.raises(InvalidCameraError, match="image_width"):
        Calibration.from_yaml({"camera_matrix": {}})
