from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import shifted, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import NetworkInput, Region, frame_image
from depth_prior_ros.pipeline.results import (
    check_output_size,
    known_inverse,
    parse_output_size,
    resize_known,
    to_confidence,
    to_metres,
    to_rgb,
    view_of,
)

NAN, INF = math.nan, math.inf
TRAINED = Camera(60.0, 62.0, 47.0, 15.5, 96, 32)
CAMERA = Camera(120.0, 120.0, 99.0, 80.0, 200, 160)  # taller than the networks' pictures


def framed_image(
    fit: str = "crop", size: tuple[int, int] = (200, 160)
) -> tuple[NDArray, NetworkInput]:
    image = shifted(texture(*size), 0)
    camera = CAMERA if size == CAMERA.size else None
    return image, frame_image(image, camera, TRAINED, fit)  # type: ignore[arg-type]


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("model", "model"), ("input", "input"), ("640x192", (640, 192)), ("1x8192", (1, 8192))],
)
def test_output_sizes(text: str, size: object) -> None:
    assert parse_output_size(text) == size


@pytest.mark.parametrize("text", ["", "Model", "640", "640x", "0x10", "10x0", "8193x10", "640X192"])
def test_output_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="output size"):
        parse_output_size(text)


@pytest.mark.parametrize("size", [(640,), (640, 192, 3), (640.0, 192), "large", None])
def test_sizes_that_no_image_has(size: object) -> None:
    with pytest.raises(ValueError, match="output size"):
        check_output_size(size)  # type: ignore[arg-type]


# -- views -----------------------------------------------------------------------------------------


def pixel_of(view_camera: Camera, ray: tuple[float, float]) -> tuple[float, float]:
    return (
        ray[0] * view_camera.fx + view_camera.cx,
        ray[1] * view_camera.fy + view_camera.cy,
    )


def test_the_view_of_the_model() -> None:
    _, framed = framed_image()
    view = view_of(framed, "model")
    assert (view.size, view.camera, view.region) == ((96, 32), framed.camera, framed.region)
    assert view.filled


def test_the_view_of_another_size() -> None:
    _, framed = framed_image()
    view = view_of(framed, (192, 96))
    assert view.size == (192, 96)
    assert view.camera == framed.camera.scaled(192, 96)
    assert view.region == framed.region
    assert view.filled


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_view_of_the_input_is_the_camera_s_own(fit: str) -> None:
    _, framed = framed_image(fit)
    view = view_of(framed, "input")
    assert (view.size, view.region) == ((200, 160), Region(0, 0, 200, 160))
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(view.camera, name) == pytest.approx(getattr(CAMERA, name), abs=1e-9)
    assert not view.filled
    assert view.picture[:2] == (framed.region.x, framed.region.y)


# -- from units to metres --------------------------------------------------------------------------


def test_known_inverse() -> None:
    values = np.array([[1.0, 4.0, 0.0, -1.0, INF, NAN]], np.float32)
    expected = np.array([[1.0, 4.0, NAN, NAN, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(known_inverse(values, inverse=True), expected)
    np.testing.assert_array_equal(known_inverse(values, inverse=False), 1 / expected)
    fine = np.array([[0.5, 2.0]], np.float32)
    assert known_inverse(fine, inverse=True) is fine
    np.testing.assert_array_equal(known_inverse(fine, inverse=False), [[2.0, 0.5]])
    outside = np.array([[True, False]])
    np.testing.assert_array_equal(known_inverse(fine, outside, inverse=True), [[NAN, 2.0]])
    np.testing.assert_array_equal(known_inverse(fine, outside, inverse=False), [[NAN, 0.5]])
    assert fine[0, 0] == 0.5


def test_beyond_the_range_is_infinite_and_the_unknown_is_not() -> None:
    _, framed = framed_image(size=(96, 32))
    inverse = np.full((32, 96), 0.5, np.float32)
    inverse[0, :4] = [0.25, 0.2, NAN, 1.0]
    depth = to_metres(inverse, 20.0, 80.0, view_of(framed, "model"))
    np.testing.assert_array_equal(depth[0, :5], np.array([80, INF, NAN, 20, 40], np.float32))
    assert depth.dtype == np.float32
    assert inverse[0, 0] == 0.25


@pytest.mark.parametrize("size", [(200, 160), (480, 64), (37, 11)])
def test_planes_stay_planes_in_other_sizes(size: tuple[int, int]) -> None:
    """Inverse depth of a plane is linear in the pixel, and so is what lies between pixels."""
    _, framed = framed_image(size=(96, 32))
    view = view_of(framed, size)
    x, y = np.meshgrid(np.arange(96), np.arange(32))
    inverse = (0.2 + 0.003 * x + 0.004 * y).astype(np.float32)
    depth = to_metres(inverse, 10.0, INF, view)
    assert depth.shape == (size[1], size[0])
    u = (np.arange(size[0]) + 0.5) * 96 / size[0] - 0.5
    v = (np.arange(size[1]) + 0.5) * 32 / size[1] - 0.5
    u, v = np.meshgrid(u, v)
    expected = 10.0 / (0.2 + 0.003 * u + 0.004 * v)
    inner = (u >= 0) & (u <= 95) & (v >= 0) & (v <= 31)
    np.testing.assert_allclose(depth[inner], expected[inner], rtol=2e-5)


def slow_resize(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear by hand, unknown neighbours left out, unknown where the nearest one is."""
    height, width = values.shape
    result = np.full((size[1], size[0]), NAN)
    for row in range(size[1]):
        for column in range(size[0]):
            x = (column + 0.5) * width / size[0] - 0.5
            y = (row + 0.5) * height / size[1] - 0.5
            nearest = values[
                min(int((row + 0.5) * height / size[1]), height - 1),
                min(int((column + 0.5) * width / size[0]), width - 1),
            ]
            if math.isnan(nearest):
                continue
            total = weight = 0.0
            for j, share_y in ((math.floor(y), 1 - y % 1), (math.floor(y) + 1, y % 1)):
                for i, share_x in ((math.floor(x), 1 - x % 1), (math.floor(x) + 1, x % 1)):
                    value = values[min(max(j, 0), height - 1), min(max(i, 0), width - 1)]
                    if not math.isnan(value):
                        total += share_x * share_y * value
                        weight += share_x * share_y
            result[row, column] = total / weight
    return result


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
        elements=st.sampled_from([NAN, 0.125, 0.5, 1.0, 3.0]),
    ),
    # Sizes at which no new pixel lies exactly between two old ones: there "nearest" is a toss-up.
    size=st.tuples(st.sampled_from([16, 32]), st.sampled_from([16, 32])),
)
def test_the_unknown_does_not_spread(values: NDArray[np.float32], size: tuple[int, int]) -> None:
    np.testing.assert_allclose(resize_known(values, size), slow_resize(values, size), rtol=1e-3)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_depth_at_the_size_of_the_input(fit: str) -> None:
    """Every pixel of the image that the networks saw has the depth of its ray, the others none."""
    _, framed = framed_image(fit)
    x, y = np.meshgrid(np.arange(96), np.arange(32))
    inverse = (0.3 + 0.001 * x + 0.003 * y).astype(np.float32)
    if framed.outside is not None:
        inverse[framed.outside] = NAN
    depth = to_metres(inverse, 1.0, INF, view_of(framed, "input"))
    assert depth.shape == (160, 200)
    region = framed.region
    u = (np.arange(200) - region.x + 0.5) * 96 / region.width - 0.5
    v = (np.arange(160) - region.y + 0.5) * 32 / region.height - 0.5
    u, v = np.meshgrid(u, v)
    expected = 1.0 / (0.3 + 0.001 * u + 0.003 * v)
    rows = np.arange(160)
    seen = (rows >= region.y) & (rows < region.y + region.height)
    assert (~seen).any() == (fit == "crop")
    assert np.isnan(depth[~seen]).all()
    inner = (u >= 1) & (u <= 94) & (v >= 1) & (v <= 30) & seen[:, np.newaxis]
    if fit == "pad":  # beside the border, the nearest pixel of the networks' is unknown
        inner[:, :2] = inner[:, -2:] = False
    np.testing.assert_allclose(depth[inner], expected[inner], rtol=1e-4)


# -- confidence and colours ------------------------------------------------------------------------


def test_confidence_belongs_to_the_depth() -> None:
    _, framed = framed_image()
    view = view_of(framed, "input")
    inverse = np.ones((32, 96), np.float32)
    inverse[10:20] = NAN
    depth = to_metres(inverse, 1.0, 80.0, view)
    values = np.full((16, 48), 0.75, np.float32)
    values[:, :8], values[:, 40:] = 7.0, -3.0
    sure = to_confidence(values, depth, view)
    assert sure.shape == depth.shape
    assert sure.dtype == np.float32
    assert (sure[np.isnan(depth)] == 0).all()
    known = ~np.isnan(depth)
    assert (sure[known][:, np.newaxis] >= 0).all()
    assert sure.max() == 1.0
    row = sure[framed.region.y + 2]
    assert row[0] == 1.0
    assert row[100] == 0.75
    assert row[-1] == 0.0
    assert to_confidence(np.full((32, 96), NAN, np.float32), depth, view).max() == 0.0


def test_colours_of_every_size() -> None:
    image, framed = framed_image()
    assert to_rgb(image, framed, view_of(framed, "model")) is framed.pixels
    assert to_rgb(image, framed, view_of(framed, "input")) is image
    larger = to_rgb(image, framed, view_of(framed, (192, 64)))
    assert larger.shape == (64, 192, 3)
    region = framed.region
    crop = image[region.y : region.y + region.height, region.x : region.x + region.width]
    assert abs(larger.mean() - crop.mean()) < 2
