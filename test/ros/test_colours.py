"""Depth as a picture: ends, order and what has no depth; turbo against published values."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from depth_prior_ros.ros.outputs.publishers import ColourScale, turbo

SCALE = ColourScale(2.0, 80.0)


def test_turbo_is_googles() -> None:
    """Entries 0, 64, 128, 192 and 255 of the published table (turbo_colormap_data, times 255)."""
    expected = {
        0: (48, 18, 59),
        64: (40, 187, 235),
        128: (162, 252, 60),
        192: (251, 128, 34),
        255: (122, 4, 3),
    }
    for step, colour in expected.items():
        assert np.abs(turbo()[step].astype(int) - colour).max() <= 3


def test_matplotlib_has_the_same_map() -> None:
    colormaps = pytest.importorskip("matplotlib", reason="an independent table").colormaps
    table = np.array([colormaps["turbo"](i)[:3] for i in range(256)]) * 255
    assert np.abs(turbo() - table).max() <= 3


@pytest.mark.parametrize("near", [0.0, 0.1, 1.99, 2.0])
def test_the_near_end(near: float) -> None:
    found = SCALE.colours(np.array([[near]], np.float32))
    assert found[0, 0].tolist() == turbo()[255].tolist()


@pytest.mark.parametrize("far", [80.0, 500.0, np.inf])
def test_the_far_end(far: float) -> None:
    found = SCALE.colours(np.array([[far]], np.float32))
    assert found[0, 0].tolist() == turbo()[0].tolist()


@pytest.mark.parametrize("unknown", [np.nan, -1.0, -np.inf])
def test_what_is_no_depth_is_black(unknown: float) -> None:
    assert not SCALE.colours(np.array([[unknown]], np.float32)).any()


def test_the_middle_is_the_geometric_mean() -> None:
    found = SCALE.colours(np.array([[np.sqrt(2 * 80)]], np.float32))
    assert found[0, 0].tolist() in (turbo()[127].tolist(), turbo()[128].tolist())


def test_colours_do_not_depend_on_the_rest_of_the_frame() -> None:
    one = SCALE.colours(np.array([[10.0, 3.0]], np.float32))
    other = SCALE.colours(np.array([[10.0, 70.0]], np.float32))
    assert one[0, 0].tolist() == other[0, 0].tolist()


@given(arrays(np.float32, (4, 7), elements=st.floats(width=32)))
@settings(deadline=None, max_examples=50)
def test_any_depth_has_a_colour(depth: np.ndarray) -> None:
    with warnings.catch_warnings():  # of this call, not of what other tests left to be collected
        warnings.simplefilter("error")
        found = SCALE.colours(depth)
    assert found.shape == (4, 7, 3)
    assert (found.any(axis=2) == (depth >= 0)).all()


@pytest.mark.parametrize("ends", [(0.0, 80.0), (80.0, 2.0), (2.0, np.inf), (-1.0, 5.0)])
def test_senseless_ends_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="colour scale"):
        ColourScale(*ends)
