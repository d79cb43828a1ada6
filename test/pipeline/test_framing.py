"""From a camera's image to the network's input: windows, cameras, borders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import (
    ASPECT_TOLERANCE,
    InvalidFrameError,
    Region,
    fit_region,
    frame_image,
)

TRAINED = Camera(56.0, 61.0, 48.0, 16.0, 96, 32)

patient = settings(deadline=None)
sides = st.integers(16, 600)
aspects = st.floats(0.2, 6)


def ramps(width: int, height: int) -> np.ndarray:
    """Red grows with x, green with y, both from 0 to 250."""
    x, y = np.linspace(0, 250, width), np.linspace(0, 250, height)
    red, green = np.meshgrid(x, y)
    return np.stack([red, green, np.full_like(red, 77)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "fit", "region"),
    [
        ((1242, 375), "crop", Region(0, 0, 1242, 375)),
        ((1242, 375), "pad", Region(0, 0, 1242, 375)),
        ((640, 480), "crop", Region(0, 144, 640, 192)),
        ((640, 480), "pad", Region(-480, 0, 1600, 480)),
        ((1600, 300), "crop", Region(300, 0, 1000, 300)),
        ((1600, 300), "pad", Region(0, -90, 1600, 480)),
    ],
)
def test_the_window_of_common_cameras(size, fit, region):
    assert fit_region(*size, 10 / 3, fit) == region


@patient
@given(sides, sides, aspects)
def test_a_crop_lies_inside_and_a_pad_around(width, height, aspect):
    crop = fit_region(width, height, aspect, "crop")
    pad = fit_region(width, height, aspect, "pad")
    assert crop.x >= 0
    assert crop.y >= 0
    assert crop.x + crop.width <= width
    assert crop.y + crop.height <= height
    assert pad.x <= 0
    assert pad.y <= 0
    assert pad.x + pad.width >= width
    assert pad.y + pad.height >= height
    for region in (crop, pad):
        if abs(width / height / aspect - 1) <= ASPECT_TOLERANCE:
            assert region == Region(0, 0, width, height)
            continue
        # As near as whole pixels come, and in the middle, to within half a pixel.
        assert abs(region.width - region.height * aspect) <= max(1, aspect)
        assert abs(2 * region.x + region.width - width) <= 1
        assert abs(2 * region.y + region.height - height) <= 1
        assert region.width == width or region.height == height


def test_a_crop_shows_the_middle():
    framed = frame_image(ramps(96, 96), None, TRAINED, "crop")
    assert framed.region == Region(0, 32, 96, 32)
    np.testing.assert_array_equal(framed.pixels, ramps(96, 96)[32:64])
    assert framed.outside is None


def test_a_pad_shows_everything_and_says_where_nothing_is():
    picture = ramps(32, 32)
    framed = frame_image(picture, None, TRAINED, "pad")
    assert framed.region == Region(-32, 0, 96, 32)
    np.testing.assert_array_equal(framed.pixels[:, 32:64], picture)
    np.testing.assert_array_equal(framed.pixels[:, :32], np.repeat(picture[:, :1], 32, axis=1))
    np.testing.assert_array_equal(framed.pixels[:, 64:], np.repeat(picture[:, -1:], 32, axis=1))
    expected = np.ones((32, 96), bool)
    expected[:, 32:64] = False
    np.testing.assert_array_equal(framed.outside, expected)


def test_a_pad_above_and_below():
    wide = Camera(40.0, 40.0, 16.0, 16.0, 32, 32)
    framed = frame_image(ramps(96, 32), None, wide, "pad")
    assert framed.region == Region(0, -32, 96, 96)
    rows = framed.outside.all(axis=1)
    # 96 rows become 32: those of the image are 10.67 to 21.33, by their centres.
    np.testing.assert_array_equal(np.flatnonzero(~rows), np.arange(11, 21))
    assert not framed.outside[11:21].any()


@patient
@given(sides, sides, st.sampled_from(["crop", "pad"]), st.floats(0.4, 3))
def test_a_point_of_the_world_is_where_the_camera_says(width, height, fit, focal):
    """The ramp's value is the place in the source; the camera must lead to the same place."""
    assume(0.5 < width / height < 8)  # beyond, no camera is left of some windows
    assume(focal * min(width, height) > 40)
    camera = Camera(focal * width, focal * width, 0.47 * width, 0.55 * height, width, height)
    framed = frame_image(ramps(width, height), camera, TRAINED, fit)
    inside = ~framed.outside if framed.outside is not None else np.ones((32, 96), bool)
    v, u = np.nonzero(inside)
    x = (u - framed.camera.cx) / framed.camera.fx * camera.fx + camera.cx
    y = (v - framed.camera.cy) / framed.camera.fy * camera.fy + camera.cy
    # A whole-pixel convention leaves half a pixel of either size, the border another.
    scale = max(framed.region.width / 96, framed.region.height / 32, 1)
    red, green = framed.pixels[v, u, 0].astype(float), framed.pixels[v, u, 1].astype(float)
    assert np.abs(red * (width - 1) / 250 - x).max() <= scale + width / 250
    assert np.abs(green * (height - 1) / 250 - y).max() <= scale + height / 250


@patient
@given(sides, sides, st.sampled_from(["crop", "pad"]))
def test_what_is_outside_is_the_border_and_nothing_else(width, height, fit):
    framed = frame_image(ramps(width, height), None, TRAINED, fit)
    region = framed.region
    x = region.x + (np.arange(96) + 0.5) * region.width / 96
    y = region.y + (np.arange(32) + 0.5) * region.height / 32
    beyond = ((y < 0) | (y >= height))[:, None] | ((x < 0) | (x >= width))
    if framed.outside is None:
        assert not beyond.any()
    else:
        np.testing.assert_array_equal(framed.outside, beyond)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_what_the_lens_did_not_see_is_outside_too(fit):
    hidden = np.zeros((96, 96), bool)
    hidden[:, :24] = True
    framed = frame_image(ramps(96, 96), None, TRAINED, fit, hidden)
    assert framed.outside is not None
    if fit == "crop":
        np.testing.assert_array_equal(framed.outside, hidden[32:64])
    else:  # 288 columns become 96, the image the 32 in the middle
        columns = framed.outside.all(axis=0)
        np.testing.assert_array_equal(np.flatnonzero(~columns), np.arange(32 + 8, 64))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InvalidFrameError, match=r"mask is \(10, 10\)"):
        frame_image(ramps(96, 32), None, TRAINED, "crop", np.zeros((10, 10), bool))


def test_the_pixels_are_not_the_callers_buffer():
    for fit, size in (("crop", (96, 32)), ("pad", (96, 32)), ("pad", (32, 32))):
        picture = ramps(*size)
        framed = frame_image(picture, None, TRAINED, fit)
        before = framed.pixels.copy()
        picture[:] = 0
        np.testing.assert_array_equal(framed.pixels, before)
