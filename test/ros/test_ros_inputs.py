"""The mailbox and what is matched to a frame by its stamp, without any ROS node."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.motion.odometry import CameraMount
from depth_prior_ros.ros.inputs import SIZES_KEPT, Calibrations, Inputs
from depth_prior_ros.ros.messages import MessageError, camera_info_of

SECOND = 10**9
read = Calibration.from_message


def image(seconds: float) -> SimpleNamespace:
    whole, part = divmod(round(seconds * SECOND), SECOND)
    stamp = SimpleNamespace(sec=whole, nanosec=part)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp))


def info(width: int, height: int):
    return camera_info_of(
        Camera(width * 0.6, width * 0.6, width / 2, height / 2, width, height), Header()
    )


def make_inputs() -> tuple[Inputs, list[int]]:
    overwritten: list[int] = []
    return Inputs(lambda: overwritten.append(1)), overwritten


@given(st.lists(st.booleans(), max_size=40))
def test_the_newest_image_is_taken_and_every_other_is_counted(puts):
    inputs, overwritten = make_inputs()
    put = taken = 0
    waiting = None
    for is_put in puts:
        if is_put:
            put += 1
            waiting = image(put)
            inputs.put_image(waiting)
        elif waiting is not None:
            assert inputs.take_image().message is waiting
            waiting, taken = None, taken + 1
    assert len(overwritten) == put - taken - (waiting is not None)


def test_taking_waits_for_an_image():
    inputs, _ = make_inputs()
    message = image(1)
    threading.Timer(0.05, inputs.put_image, [message]).start()
    arrival = inputs.take_image()
    assert arrival.message is message
    assert arrival.stamp == SECOND


def test_closing_ends_the_wait_and_drops_what_waited():
    inputs, _ = make_inputs()
    threading.Timer(0.05, inputs.close).start()
    assert inputs.take_image() is None
    inputs, _ = make_inputs()
    inputs.put_image(image(1))
    inputs.close()
    assert inputs.take_image() is None


def test_without_camera_info_the_frame_is_refused():
    inputs, _ = make_inputs()
    with pytest.raises(MessageError) as caught:
        inputs.calibration(640, 192, wait=0.01)
    assert caught.value.cause == "no_camera_info"
    assert "camera_info" in caught.value.text


def test_camera_info_that_comes_after_its_image_is_waited_for():
    inputs, _ = make_inputs()
    late = info(640, 192)
    threading.Timer(0.05, inputs.put_camera_info, [late]).start()
    assert inputs.calibration(640, 192, wait=5) == read(late)


def test_camera_info_of_the_new_size_is_waited_for():
    inputs, _ = make_inputs()
    inputs.put_camera_info(info(640, 480))
    late = info(640, 192)
    threading.Timer(0.05, inputs.put_camera_info, [late]).start()
    assert inputs.calibration(640, 192, wait=5) == read(late)


def test_camera_info_that_never_fits_is_returned_for_the_conversion_to_refuse():
    inputs, _ = make_inputs()
    wrong = info(640, 480)
    inputs.put_camera_info(wrong)
    assert inputs.calibration(640, 192, wait=0.01) == read(wrong)


def test_of_every_size_the_newest_calibration_is_kept():
    inputs, _ = make_inputs()
    small, old, new = info(640, 192), info(640, 480), info(640, 480)
    new.p[0] = 400.0
    for message in (small, old, new):
        inputs.put_camera_info(message)
    assert inputs.calibration(640, 192, wait=0) == read(small)
    assert inputs.calibration(640, 480, wait=0) == read(new)
    assert inputs.calibration(320, 96, wait=0) == read(small), "the one of the same aspect ratio"


def test_sizes_that_come_and_go_do_not_pile_up():
    inputs, _ = make_inputs()
    for width in range(100, 100 + 3 * SIZES_KEPT):
        inputs.put_camera_info(info(width, 50))
    assert len(inputs._calibrations) == SIZES_KEPT


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("bad_intrinsics", {"k": [math.nan] * 9, "p": [math.nan] * 12}),
        ("bad_intrinsics", {"k": [0.0] * 9, "p": [0.0] * 12}),
        ("bad_intrinsics", {"d": [0.1] * 5, "distortion_model": "ftheta"}),
        ("bad_intrinsics", {"d": [0.1] * 8, "distortion_model": "equidistant"}),
        ("bad_intrinsics", {"d": [0.1] * 5, "r": [2.0] * 9}),
        ("camera_info_size", {"width": 0}),
        ("camera_info_size", {"width": 0, "height": 0}),
    ],
)
def test_a_useless_calibration_does_not_replace_a_good_one(cause, change):
    inputs, _ = make_inputs()
    good, bad = info(640, 192), info(640, 192)
    inputs.put_camera_info(good)
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(MessageError) as caught:
        inputs.put_camera_info(bad)
    assert caught.value.cause == cause
    assert inputs.calibration(640, 192, wait=0) == read(good)


def test_of_rectified_images_the_distortion_does_not_matter():
    inputs = Inputs(lambda: None, rectifies=lambda: False)
    strange = info(640, 192)
    strange.d, strange.distortion_model = [0.1] * 5, "ftheta"
    inputs.put_camera_info(strange)
    assert inputs.calibration(640, 192, wait=0) == read(strange)


def test_a_calibration_outlives_the_activation_that_it_came_in():
    known: Calibrations = {}
    Inputs(lambda: None, calibrations=known).put_camera_info(info(640, 192))
    again = Inputs(lambda: None, calibrations=known)
    assert again.calibration(640, 192, wait=0) == read(info(640, 192))


speeds = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 40, allow_nan=False)), min_size=1, max_size=30
)


@given(speeds, st.integers(0, 50), st.floats(0.05, 3))
def test_the_speed_nearest_in_time_counts(history, tenths, max_age):
    inputs, _ = make_inputs()
    for stamp, speed in history:
        assert inputs.put_speed(stamp * SECOND // 10, speed)
    found = inputs.motion_at(tenths * SECOND // 10, max_age, wait=0)
    distance = min(abs(stamp - tenths) for stamp, _ in history)
    if distance * SECOND // 10 > max_age * SECOND:
        assert found is None
    else:
        nearest = [speed for stamp, speed in history if abs(stamp - tenths) == distance]
        assert found.speed == nearest[-1], "of equally near ones the newest arrival counts"


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_speed_that_is_not_a_number_is_not_stored(speed):
    inputs, _ = make_inputs()
    assert not inputs.put_speed(0, speed)
    assert inputs.motion_at(0, 1.0, wait=0) is None


def test_odometry_that_comes_after_its_image_is_waited_for():
    inputs, _ = make_inputs()
    inputs.put_speed(9 * SECOND // 10, 1.0)
    threading.Timer(0.05, inputs.put_speed, [SECOND, 2.0]).start()
    assert inputs.motion_at(SECOND, 0.5, wait=5) == Motion(2.0, "odometry")


def test_missing_odometry_is_waited_for_once_only():
    inputs, _ = make_inputs()
    assert inputs.motion_at(SECOND, 0.5, wait=0.05) is None
    start = time.monotonic()
    for k in range(20):
        assert inputs.motion_at((2 + k) * SECOND, 0.5, wait=60) is None
    assert time.monotonic() - start < 10


def test_the_nearest_topic_says_how_fast():
    inputs, _ = make_inputs()
    inputs.put_speed(SECOND, 1.0, "twist")
    inputs.put_speed(SECOND + 10, 2.0, "twist_with_covariance")
    assert inputs.motion_at(SECOND + 2, 0.5, wait=0) == Motion(1.0, "twist")
    assert inputs.motion_at(SECOND + 9, 0.5, wait=0) == Motion(2.0, "twist_with_covariance")


def drive(inputs: Inputs, start: float, yaw: float = 0.0) -> None:
    """Ten poses at 10 Hz of a vehicle that drives 5 m/s east, seen in a frame whose x is north."""
    facing = (0.0, 0.0, math.sin((yaw - math.pi / 2) / 2), math.cos((yaw - math.pi / 2) / 2))
    for k in range(10):
        stamp = round((start + 0.1 * k) * SECOND)
        inputs.put_speed(stamp, 5.0)
        assert inputs.put_pose(stamp, (0.0, -0.5 * k, 0.0), facing)


def test_the_way_between_two_frames_is_of_the_camera():
    """Straight ahead is along the optical axis, for a camera that looks ahead."""
    inputs, _ = make_inputs()
    drive(inputs, 1.0)
    motion = inputs.motion_at(round(1.45 * SECOND), 0.5, 0, previous=round(1.25 * SECOND))
    assert motion.pose_since_ns == round(1.25 * SECOND)
    expected = np.eye(4)
    expected[2, 3] = 1.0
    np.testing.assert_allclose(motion.pose, expected, atol=1e-9)


def test_a_camera_that_looks_to_the_left_sees_the_way_to_its_right():
    inputs, _ = make_inputs()
    drive(inputs, 1.0)
    mount = CameraMount(yaw=math.pi / 2)
    pose = inputs.motion_at(round(1.4 * SECOND), 0.5, 0, round(1.2 * SECOND), mount).pose
    np.testing.assert_allclose(pose[:3, 3], [1.0, 0.0, 0.0], atol=1e-9)


def test_no_way_leads_across_the_start_of_a_bag_that_loops():
    inputs, _ = make_inputs()
    drive(inputs, 1.0)
    drive(inputs, 1.0)
    motion = inputs.motion_at(round(1.4 * SECOND), 0.5, 0, previous=round(1.9 * SECOND))
    assert motion == Motion(5.0, "odometry")
    assert motion.pose is None
    assert inputs.motion_at(round(1.4 * SECOND), 0.5, 0, round(1.2 * SECOND)).pose is not None


def test_a_twist_tells_the_way_where_there_are_no_poses():
    """A quarter of a circle to the left in a second: the camera ends up left of where it looked."""
    inputs, _ = make_inputs()
    speed, turn = 6.0, math.pi / 2
    inputs.put_speed(2 * SECOND, speed, "twist", (speed, turn))
    motion = inputs.motion_at(2 * SECOND, 1.5, 0, previous=SECOND)
    radius = speed / turn
    np.testing.assert_allclose(motion.pose[:3, 3], [-radius, 0.0, radius], atol=1e-9)
    # What it now looks along (z) was its left (-x).
    np.testing.assert_allclose(motion.pose[:3, 2], [-1.0, 0.0, 0.0], atol=1e-9)
    assert inputs.motion_at(2 * SECOND, 0.5, 0, previous=SECOND).pose is None, "too long ago"


def test_poses_go_before_twists():
    inputs, _ = make_inputs()
    drive(inputs, 1.0)
    inputs.put_speed(round(1.45 * SECOND), 50.0, "twist", (50.0, 0.0))
    motion = inputs.motion_at(round(1.45 * SECOND), 0.5, 0, previous=round(1.25 * SECOND))
    assert motion.speed == 50.0
    assert motion.pose[2, 3] == pytest.approx(1.0)


@given(st.sampled_from([math.nan, math.inf]), st.integers(0, 6))
def test_a_pose_that_is_not_a_number_is_refused(value, place):
    numbers = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    numbers[place] = value
    inputs, _ = make_inputs()
    assert not inputs.put_pose(0, tuple(numbers[:3]), tuple(numbers[3:]))


def slow_odometry(inputs: Inputs, until: float) -> None:
    """Poses and speeds at 20 Hz and stamps of their own, 5 m/s ahead."""
    for k in range(round(until * 20)):
        stamp = round((k / 20 + 0.013) * SECOND)
        inputs.put_pose(stamp, (5.0 * stamp / SECOND, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        inputs.put_speed(stamp, 5.0)


def test_odometry_that_is_slower_than_the_camera_is_gone_on_from_without_waiting():
    inputs, _ = make_inputs()
    slow_odometry(inputs, 2.0)
    inputs.motion_at(2 * SECOND, 0.5, wait=0.01)  # a stamp without odometry of its own
    start = time.monotonic()
    for k in range(1, 3):
        stamp = 2 * SECOND + k * SECOND // 30
        motion = inputs.motion_at(stamp, 0.5, 60, previous=stamp - SECOND // 30)
        np.testing.assert_allclose(motion.pose[:3, 3], [0, 0, 5 / 30], atol=1e-9)
    assert time.monotonic() - start < 10


def test_odometry_with_the_images_own_stamps_is_waited_for():
    """As in a replay that waits: the same frames are answered the same way each time."""
    inputs, _ = make_inputs()
    for k in range(5):
        inputs.put_speed(k * SECOND // 10, 1.0)
        inputs.motion_at(k * SECOND // 10, 0.5, wait=5)
    threading.Timer(0.05, inputs.put_speed, [SECOND // 2, 2.0]).start()
    assert inputs.motion_at(SECOND // 2, 0.5, wait=5) == Motion(2.0, "odometry")


def test_a_twist_beside_poses_that_never_move_tells_the_way():
    inputs, _ = make_inputs()
    for k in range(11):
        inputs.put_pose(k * SECOND // 10, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        inputs.put_speed(k * SECOND // 10, 6.0, "odometry", (6.0, 0.0))
    pose = inputs.motion_at(SECOND, 0.5, 0, previous=SECOND - SECOND // 10).pose
    np.testing.assert_allclose(pose[:3, 3], [0, 0, 0.6], atol=1e-9)


def test_without_calibration_a_guessed_field_of_view_serves_until_one_comes():
    inputs = Inputs(lambda: None)
    with pytest.raises(MessageError, match="no calibration"):
        inputs.calibration(640, 480, 0.0)
    guess = inputs.calibration(640, 480, 0.0, fov_guess_deg=60.0).camera(640, 480)
    assert inputs.guessed
    # The left and the right edge of the picture are 60 degrees apart.
    edges = [math.degrees(math.atan((u - guess.cx) / guess.fx)) for u in (-0.5, 639.5)]
    assert edges == pytest.approx([-30.0, 30.0])
    assert guess.fx == guess.fy
    inputs.put_camera_info(info(640, 480))
    known = inputs.calibration(640, 480, 0.0, fov_guess_deg=60.0).camera(640, 480)
    assert not inputs.guessed
    assert known.fx == pytest.approx(0.6 * 640)
