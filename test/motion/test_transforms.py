"""Frames against transforms composed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from depth_prior_ros.motion.transforms import TransformBuffer, TransformError

SECOND = 10**9
UPRIGHT = (0.0, 0.0, 0.0, 1.0)
# A camera that looks along the vehicle's x axis: optical x is its -y, y its -z, z its x.
OPTICAL = (-0.5, 0.5, -0.5, 0.5)


def about_z(angle: float) -> tuple[float, float, float, float]:
    return 0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)


def vehicle() -> TransformBuffer:
    """A camera 1 m ahead of and a LiDAR 2 m above a vehicle that drives 10 m/s along odom's x."""
    buffer = TransformBuffer()
    buffer.add("base_link", "camera", (1.0, 0.0, 1.5), OPTICAL)
    buffer.add("base_link", "lidar", (0.0, 0.0, 2.0), UPRIGHT)
    for i in range(11):
        buffer.add("odom", "base_link", (1.0 * i, 0.0, 0.0), UPRIGHT, i * SECOND // 10)
    return buffer


def test_a_point_ahead_of_the_lidar_lies_ahead_of_the_camera():
    found = vehicle().lookup("camera", "lidar", 0)
    # 5 m ahead, 1 m to the left, at the LiDAR's height: half a metre above the camera.
    np.testing.assert_allclose(found @ [5, 1, 0, 1], [-1, -0.5, 4, 1], atol=1e-12)
    back = vehicle().lookup("lidar", "camera", 0)
    np.testing.assert_allclose(back @ found, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(vehicle().lookup("lidar", "lidar", 0), np.eye(4))


def test_a_moving_frame_is_interpolated():
    found = vehicle().lookup("odom", "lidar", 333_000_000)
    np.testing.assert_allclose(found[:3, 3], [3.33, 0.0, 2.0], atol=1e-9)


def test_a_turn_is_interpolated_at_constant_speed():
    buffer = TransformBuffer()
    buffer.add("map", "base", (0, 0, 0), about_z(0.0), 0)
    buffer.add("map", "base", (0, 0, 0), about_z(1.0), SECOND // 2)
    found = buffer.lookup("map", "base", SECOND // 8)
    assert math.atan2(found[1, 0], found[0, 0]) == pytest.approx(0.25)


def test_a_message_that_comes_late_takes_its_place():
    buffer = vehicle()
    buffer.add("odom", "base_link", (4.9, 0.0, 0.0), UPRIGHT, 450_000_000)
    found = buffer.lookup("odom", "base_link", 450_000_000)
    assert found[0, 3] == pytest.approx(4.9)
    assert buffer.lookup("odom", "base_link", 900_000_000)[0, 3] == pytest.approx(9.0)


def test_what_is_not_known_at_that_time_is_said():
    with pytest.raises(TransformError, match=r"base_link is in odom.*0\.000 to 1\.000 s, not at 5"):
        vehicle().lookup("odom", "camera", 5 * SECOND)
    # Static ones are known at any time.
    assert vehicle().lookup("camera", "lidar", 5 * SECOND).shape == (4, 4)


def test_two_times_are_bridged_through_the_frame_that_stands():
    """A sweep of 0.4 s seen by an image of 0.6 s: the vehicle has come 2 m closer."""
    found = vehicle().lookup("camera", "lidar", 600_000_000, 400_000_000)
    now = vehicle().lookup("camera", "lidar", 600_000_000)
    np.testing.assert_allclose(found @ [8, 0, 0, 1], now @ [6, 0, 0, 1], atol=1e-9)
    # Without a moving frame there is nothing to bridge.
    static = TransformBuffer()
    static.add("base_link", "camera", (1.0, 0.0, 1.5), OPTICAL)
    static.add("base_link", "lidar", (0.0, 0.0, 2.0), UPRIGHT)
    np.testing.assert_allclose(static.lookup("camera", "lidar", 5, 9), now, atol=1e-12)


def test_missing_links_are_named():
    buffer = vehicle()
    with pytest.raises(TransformError, match=r"no frame radar; there are base_link, camera, lidar"):
        buffer.lookup("camera", "radar", 0)
    buffer.add("rig", "radar", (0, 0, 0), UPRIGHT)
    with pytest.raises(TransformError, match="radar ends at rig, camera at odom; a transform"):
        buffer.lookup("camera", "radar", 0)


def test_frames_that_loop_are_named():
    buffer = TransformBuffer()
    for parent, child in (("a", "b"), ("b", "c"), ("c", "a")):
        buffer.add(parent, child, (1, 0, 0), UPRIGHT)
    with pytest.raises(TransformError, match="loop: b -> a -> c -> b"):
        buffer.lookup("b", "a", 0)
    assert not buffer.add("d", "d", (0, 0, 0), UPRIGHT)


def test_a_frame_with_two_parents_is_doubted_and_the_newest_counts():
    buffer = vehicle()
    assert buffer.doubts == []
    buffer.add("mast", "lidar", (0, 0, 0), UPRIGHT)
    assert buffer.doubts == ["frame lidar has two parents, base_link and mast"]
    assert buffer.lookup("mast", "lidar", 0).shape == (4, 4)


def test_messages_of_ros_1_and_2_with_a_rotation_that_is_none():
    def transform(parent: str, child: str, w: float) -> SimpleNamespace:
        return SimpleNamespace(
            header=SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=1, nanosec=5)),
            child_frame_id=child,
            transform=SimpleNamespace(
                translation=SimpleNamespace(x=1.0, y=2.0, z=3.0),
                rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=w),
            ),
        )

    buffer = TransformBuffer()
    message = [transform("/base", "/camera", 1.0), transform("base", "empty", 0.0)]
    buffer.add_message(SimpleNamespace(transforms=message), static=False)
    np.testing.assert_allclose(buffer.lookup("base", "camera", SECOND + 5)[:3, 3], [1, 2, 3])
    assert buffer.doubts == ["the transform from empty to base makes no sense"]
