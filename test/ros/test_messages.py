"""Depth messages out."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from depth_prior_ros.ros.messages import depth_to_image, image_to_depth

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
