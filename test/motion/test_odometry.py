from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.motion.odometry import (
    CameraMount,
    Trajectory,
    arc,
    speed_of_twist,
)

SECOND = 1_000_000_000
ANGLES = st.floats(-math.pi, math.pi)
METRES = st.floats(-50.0, 50.0)


def turn(axis: str, angle: float) -> NDArray[np.float64]:
    """A rotation (3, 3) about one axis, written out."""
    c, s = math.cos(angle), math.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis], dtype=np.float64)


def pose(x: float, y: float, yaw: float) -> NDArray[np.float64]:
    """world_from_base of a vehicle on flat ground."""
    result = np.eye(4)
    result[:3, :3] = turn("z", yaw)
    result[:3, 3] = (x, y, 0.0)
    return result


def about_z(yaw: float) -> tuple[float, float, float, float]:
    """The quaternion x, y, z, w."""
    return 0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2)


# -- mount -----------------------------------------------------------------------------------------


def test_driving_ahead_moves_the_camera_along_its_axis() -> None:
    ahead = pose(2.0, 0.0, 0.0)
    found = CameraMount().step(ahead)
    expected = np.eye(4)
    expected[2, 3] = 2.0
    np.testing.assert_allclose(found, expected, atol=1e-12)
    left = CameraMount().step(pose(0.0, 0.5, 0.0))
    np.testing.assert_allclose(left[:3, 3], [-0.5, 0.0, 0.0], atol=1e-12)


def test_a_camera_that_looks_down_sees_the_road_come_up() -> None:
    down = 0.1
    found = CameraMount(pitch=down).step(pose(1.0, 0.0, 0.0))
    # Along its axis, and upwards in its picture (y points down).
    np.testing.assert_allclose(found[:3, 3], [0.0, -math.sin(down), math.cos(down)], atol=1e-12)


def test_a_camera_that_looks_to_the_left() -> None:
    found = CameraMount(yaw=math.pi / 2).step(pose(1.0, 0.0, 0.0))
    np.testing.assert_allclose(found[:3, 3], [1.0, 0.0, 0.0], atol=1e-12)


def test_turning_on_the_spot_swings_a_camera_at_the_front() -> None:
    angle = 0.2
    found = CameraMount(x=1.5).step(pose(0.0, 0.0, angle))
    # Turning left: the camera goes to its left, and its points of view turn about -y.
    np.testing.assert_allclose(found[:3, :3], turn("y", -angle), atol=1e-12)
    expected = [-1.5 * math.sin(angle), 0.0, 1.5 * (math.cos(angle) - 1)]
    np.testing.assert_allclose(found[:3, 3], expected, atol=1e-12)


@given(roll=ANGLES, pitch=ANGLES, yaw=ANGLES, x=METRES, y=METRES, z=METRES)
def test_a_mount_is_fixed_axis_roll_pitch_yaw(
    roll: float, pitch: float, yaw: float, x: float, y: float, z: float
) -> None:
    found = CameraMount(x, y, z, roll, pitch, yaw).matrix()
    optical = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    expected = turn("z", yaw) @ turn("y", pitch) @ turn("x", roll) @ optical
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-12)
    np.testing.assert_array_equal(found[:3, 3], [x, y, z])


def test_a_mount_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        CameraMount(pitch=math.nan)


# -- arc -------------------------------------------------------------------------------------------


def test_arcs() -> None:
    np.testing.assert_allclose(arc(10.0, 0.0, 0.1), pose(1.0, 0.0, 0.0), atol=1e-15)
    np.testing.assert_allclose(arc(-3.0, 0.0, 0.5), pose(-1.5, 0.0, 0.0), atol=1e-15)
    # A quarter of a circle of radius 2 to the left.
    quarter = arc(math.pi, math.pi / 2, 1.0)
    np.testing.assert_allclose(quarter, pose(2.0, 2.0, math.pi / 2), atol=1e-12)
    np.testing.assert_allclose(arc(0.0, 0.5, 1.0), pose(0.0, 0.0, 0.5), atol=1e-15)


@given(speed=st.floats(-40, 40), rate=st.floats(-3, 3), seconds=st.floats(0.01, 1.0))
def test_an_arc_is_many_short_steps(speed: float, rate: float, seconds: float) -> None:
    steps = 400
    x = y = 0.0
    for i in range(steps):
        heading = rate * seconds * (i + 0.5) / steps
        x += speed * seconds / steps * math.cos(heading)
        y += speed * seconds / steps * math.sin(heading)
    np.testing.assert_allclose(arc(speed, rate, seconds)[:2, 3], [x, y], atol=2e-4)


# -- trajectory ------------------------------------------------------------------------------------


def drive(trajectory: Trajectory, speed: float = 5.0, rate: float = 0.3) -> None:
    """Two seconds of a circle, odometry at 20 Hz from stamp 100 s."""
    for i in range(41):
        seconds = 0.05 * i
        here = arc(speed, rate, seconds)
        stamp = 100 * SECOND + round(seconds * 1e9)
        assert trajectory.add(stamp, here[:3, 3], about_z(rate * seconds))


@given(start=st.floats(0.0, 1.5), length=st.floats(0.01, 0.5))
def test_a_step_on_a_circle(start: float, length: float) -> None:
    trajectory = Trajectory()
    drive(trajectory)
    first = 100 * SECOND + round(start * 1e9)
    second = first + round(length * 1e9)
    found = trajectory.step(first, second)
    assert found is not None
    # Linear between poses: a chord of 5 cm of the circle is off by a tenth of a millimetre.
    np.testing.assert_allclose(found, arc(5.0, 0.3, length), atol=1.5e-3)
    np.testing.assert_allclose(found[:3, :3], turn("z", 0.3 * length), atol=1e-8)
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-12)


def test_stamps_that_poses_have_are_exact() -> None:
    trajectory = Trajectory()
    drive(trajectory)
    found = trajectory.step(100 * SECOND + 500_000_000, 100 * SECOND + 600_000_000)
    assert found is not None
    np.testing.assert_allclose(found, arc(5.0, 0.3, 0.1), atol=1e-12)


def test_an_image_newer_than_the_newest_pose() -> None:
    trajectory = Trajectory()
    drive(trajectory)
    last = 102 * SECOND
    found = trajectory.step(last, last + 40_000_000)
    assert found is not None
    # Straight on along the last chord, which lags behind by half its turn.
    np.testing.assert_allclose(found[:3, 3], arc(5.0, 0.3, 0.04)[:3, 3], atol=3e-3)
    np.testing.assert_allclose(found[:3, :3], turn("z", 0.3 * 0.04), atol=1e-9)


@pytest.mark.parametrize(
    ("previous", "current"),
    [
        (100.5, 103.0),  # odometry stopped
        (99.0, 100.5),  # before it began
        (100.5, 100.5),
        (100.6, 100.5),
    ],
)
def test_stamps_without_poses(previous: float, current: float) -> None:
    trajectory = Trajectory()
    drive(trajectory)
    assert trajectory.step(int(previous * 1e9), int(current * 1e9), 0.3) is None


def test_looking_ahead_does_not_multiply_noise() -> None:
    """Odometry at 200 Hz, every position up to 2 mm off, an image 80 ms ahead of it."""
    rng = np.random.default_rng(0)
    trajectory = Trajectory()
    for i in range(200):
        place = (0.05 * i + rng.uniform(-0.002, 0.002), 0.0, 0.0)
        assert trajectory.add(100 * SECOND + i * 5_000_000, place, (0, 0, 0, 1))
    last = 100 * SECOND + 199 * 5_000_000
    found = trajectory.step(last - 20_000_000, last + 80_000_000)
    assert found is not None
    assert found[0, 3] == pytest.approx(1.0, abs=0.015)


def test_looking_ahead_of_few_poses() -> None:
    trajectory = Trajectory()
    for i in range(3):
        trajectory.add(i * 400_000_000, (2.0 * i, 0, 0), (0, 0, 0, 1))
    last = 800_000_000
    found = trajectory.step(last, last + 450_000_000, max_age=0.5)
    assert found is not None
    np.testing.assert_allclose(found, pose(2.25, 0.0, 0.0), atol=1e-12)


def test_two_poses_with_one_stamp() -> None:
    """A simulation's clock may be coarser than its odometry."""
    trajectory = Trajectory()
    for i in range(40):
        assert trajectory.add((i // 4) * SECOND // 10, (0.1 * i, 0, 0), (0, 0, 0, 1))
    found = trajectory.step(2 * SECOND // 10, 5 * SECOND // 10)
    assert found is not None
    np.testing.assert_allclose(found, pose(1.2, 0.0, 0.0), atol=1e-12)


def test_too_few_poses() -> None:
    trajectory = Trajectory()
    assert trajectory.step(0, SECOND) is None
    trajectory.add(0, (0, 0, 0), (0, 0, 0, 1))
    assert trajectory.step(0, SECOND) is None
    trajectory.add(SECOND // 2, (1, 0, 0), (0, 0, 0, 1))
    assert trajectory.step(0, SECOND // 2) is not None
    trajectory.clear()
    assert trajectory.step(0, SECOND // 2) is None


def test_poses_far_apart_are_not_connected() -> None:
    trajectory = Trajectory()
    trajectory.add(0, (0, 0, 0), (0, 0, 0, 1))
    trajectory.add(5 * SECOND, (10, 0, 0), (0, 0, 0, 1))
    assert trajectory.step(0, 5 * SECOND, max_age=0.5) is None


def test_stamps_that_come_twice() -> None:
    """As from a simulator whose odometry is faster than its clock: the newer pose counts."""
    trajectory = Trajectory()
    for i in range(10):
        assert trajectory.add(i * SECOND // 10, (0.5 * i - 0.1, 0, 0), (0, 0, 0, 1))
        assert trajectory.add(i * SECOND // 10, (0.5 * i, 0, 0), (0, 0, 0, 1))
    found = trajectory.step(SECOND // 5, SECOND // 2)
    assert found is not None
    np.testing.assert_allclose(found, pose(1.5, 0.0, 0.0), atol=1e-12)


def test_a_bag_that_starts_again() -> None:
    trajectory = Trajectory()
    drive(trajectory)
    drive(trajectory, speed=2.0, rate=0.0)
    found = trajectory.step(100 * SECOND, 101 * SECOND)
    assert found is not None
    np.testing.assert_allclose(found, pose(2.0, 0.0, 0.0), atol=1e-12)


def test_old_poses_go() -> None:
    trajectory = Trajectory(seconds_kept=1.0)
    drive(trajectory)
    assert trajectory.step(100 * SECOND + SECOND // 2, 100 * SECOND + 600_000_000) is None
    assert trajectory.step(101 * SECOND, 101 * SECOND + 100_000_000) is not None


@pytest.mark.parametrize(
    ("position", "quaternion"),
    [
        ((math.nan, 0, 0), (0, 0, 0, 1)),
        ((0, 0, 0), (0, 0, 0, math.inf)),
        ((0, 0, 0), (0, 0, 0, 0)),
        ((0, 0, 0), (9, 0, 0, 9)),
    ],
)
def test_poses_that_are_none(position: tuple, quaternion: tuple) -> None:
    trajectory = Trajectory()
    drive(trajectory)
    assert not trajectory.add(103 * SECOND, position, quaternion)
    assert trajectory.step(101 * SECOND, 101 * SECOND + 50_000_000) is not None


def test_quaternions_of_either_sign_mean_the_same() -> None:
    trajectory = Trajectory()
    trajectory.add(0, (0, 0, 0), (0, 0, 0, 1))
    trajectory.add(SECOND // 2, (1, 0, 0), (0, 0, 0, -1))
    found = trajectory.step(0, SECOND // 4)
    assert found is not None
    np.testing.assert_allclose(found, pose(0.5, 0.0, 0.0), atol=1e-12)


@given(x=METRES, y=METRES, yaw=ANGLES)
def test_a_rigid_inverse(x: float, y: float, yaw: float) -> None:
    assume(abs(x) + abs(y) > 0)
    there = pose(x, y, yaw)
    np.testing.assert_allclose(rigid_inverse(there) @ there, np.eye(4), atol=1e-12)


def test_poses_that_come_late_and_out_of_order_take_their_place() -> None:
    """Every third message overtaken by two others: as though they had come in order."""
    stamps = [100 * SECOND + i * 10_000_000 for i in range(60)]
    order = sorted(range(60), key=lambda i: i + (2.5 if i % 3 == 0 else 0))
    assert order != sorted(order)
    ordered, mixed = Trajectory(), Trajectory()
    for places, trajectory in ((range(60), ordered), (order, mixed)):
        for i in places:
            here = arc(5.0, 0.3, 0.01 * i)
            assert trajectory.add(stamps[i], here[:3, 3], about_z(0.003 * i))
    for first, last in ((5, 17), (20, 59), (30, 31)):
        expected = ordered.step(stamps[first], stamps[last])
        assert expected is not None
        np.testing.assert_array_equal(mixed.step(stamps[first], stamps[last]), expected)


def test_one_message_25_ms_late_erases_nothing() -> None:
    trajectory = Trajectory()
    drive(trajectory)
    late = 102 * SECOND - 25_000_000
    assert trajectory.add(late, arc(5.0, 0.3, 1.975)[:3, 3], about_z(0.3 * 1.975))
    found = trajectory.step(101 * SECOND, 101 * SECOND + 100_000_000)
    assert found is not None
    np.testing.assert_allclose(found, arc(5.0, 0.3, 0.1), atol=1e-12)


def test_one_pose_far_ahead_is_left_out() -> None:
    trajectory = Trajectory()
    drive(trajectory)
    assert trajectory.add(142 * SECOND, (0, 0, 0), (0, 0, 0, 1))
    for i in range(1, 11):
        here = arc(5.0, 0.3, 2 + 0.05 * i)
        stamp = 102 * SECOND + i * 50_000_000
        trajectory.add(stamp, here[:3, 3], about_z(0.3 * (2 + 0.05 * i)))
    found = trajectory.step(102 * SECOND, 102 * SECOND + 500_000_000)
    assert found is not None
    np.testing.assert_allclose(found, arc(5.0, 0.3, 0.5), atol=1e-12)
    # Two that follow each other are another time, not a fault.
    trajectory.add(200 * SECOND, (0, 0, 0), (0, 0, 0, 1))
    trajectory.add(200 * SECOND + 50_000_000, (1, 0, 0), (0, 0, 0, 1))
    assert trajectory.step(200 * SECOND, 200 * SECOND + 50_000_000) is not None


def test_poses_of_an_optical_frame_are_told_by_where_they_go() -> None:
    vehicle, optical = Trajectory(), Trajectory()
    for i in range(40):
        vehicle.add(i * SECOND // 20, (0.4 * i, 0, 0), (0, 0, 0, 1))
        optical.add(i * SECOND // 20, (0, 0, 0.4 * i), (0, 0, 0, 1))
    assert not vehicle.is_optical
    assert optical.is_optical
    for trajectory in (vehicle, optical):
        found = trajectory.camera_step(SECOND, SECOND + SECOND // 20, CameraMount())
        assert found is not None
        np.testing.assert_allclose(found[:3, 3], [0, 0, 0.4], atol=1e-9)


def test_a_twist_tells_speed_and_course_along_either_axis() -> None:
    assert speed_of_twist((3.0, 0.0, 0.0), (0.0, 0.0, 0.2)) == (3.0, (3.0, 0.2))
    assert speed_of_twist((-2.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == (-2.0, (-2.0, 0.0))
    # An optical frame: z ahead, y down, so turning left is a negative rate about y.
    assert speed_of_twist((0.0, 0.0, 4.0), (0.0, -0.3, 0.0)) == (4.0, (4.0, 0.3))
    speed, course = speed_of_twist((3.0, 0.0, 4.0), (0.0, 0.0, 0.0))
    assert speed == pytest.approx(5.0)
    assert course is None
