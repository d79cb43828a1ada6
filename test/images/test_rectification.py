"""Rectification against lens formulas written a second time, and against pictures of known rays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.calibration import DistortedCamera
from depth_prior_ros.images.rectification import Rectifier

SIZE = (200, 120)
RAW = Camera(118.0, 121.0, 97.5, 63.25, *SIZE)
RECTIFIED = Camera(105.0, 108.0, 101.0, 58.5, *SIZE)

LENSES = {
    "plumb_bob": (-0.28, 0.07, 1e-3, -8e-4, 0.01),
    "plumb_bob with four": (-0.2, 0.05, -5e-4, 1e-3),
    "rational_polynomial": (0.5, -0.1, 2e-4, -3e-4, 0.02, 0.7, 0.03, 0.01),
    "equidistant": (-0.02, 0.008, -0.005, 0.001),
}


def lens(name: str, **changes) -> DistortedCamera:
    fields = {
        "raw": RAW,
        "model": name.split()[0],
        "coefficients": LENSES[name],
        "camera": RECTIFIED,
        **changes,
    }
    return DistortedCamera(**fields)


def turned(x: float, y: float, z: float) -> np.ndarray:
    """A rotation by three small angles."""
    cx, cy, cz, sx, sy, sz = *np.cos([x, y, z]), *np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def bent(model: str, d: tuple[float, ...], x: np.ndarray, y: np.ndarray) -> tuple:
    """Where on the plane z = 1 a lens puts the ray (x, y, 1), by the formulas in the papers."""
    if model == "equidistant":
        r = np.hypot(x, y)
        theta = np.arctan(r)
        angle = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(d)))
        scale = np.divide(angle, r, out=np.ones_like(r), where=r > 1e-12)
        return x * scale, y * scale
    k1, k2, p1, p2, k3, k4, k5, k6 = (*d, *[0.0] * (8 - len(d)))
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def straightened(model: str, d: tuple[float, ...], x: np.ndarray, y: np.ndarray) -> tuple:
    """The ray that a lens puts at (x, y): Newton's method on :func:`bent`."""
    u, v = x.copy(), y.copy()
    h = 1e-6
    for _ in range(30):
        fx, fy = bent(model, d, u, v)
        fxu, fyu = bent(model, d, u + h, v)
        fxv, fyv = bent(model, d, u, v + h)
        a, c, b, e = (fxu - fx) / h, (fyu - fy) / h, (fxv - fx) / h, (fyv - fy) / h
        det = a * e - b * c
        u, v = u + (e * (x - fx) - b * (y - fy)) / det, v + (a * (y - fy) - c * (x - fx)) / det
    return u, v


def rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel's ray on the plane z = 1."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(float)
    return (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy


def seen_radius(model: str, d: tuple[float, ...]) -> float:
    """How far from the axis rays on the plane z = 1 land further out the further out they are."""
    out = np.linspace(0, 4, 8000)
    if model != "equidistant":
        d = tuple(0.0 if i in (2, 3) else n for i, n in enumerate(d))  # without the tangential part
    falling = np.diff(bent(model, d, out, np.zeros_like(out))[0]) <= 0
    return float(out[falling.argmax()]) if falling.any() else math.inf


def radii(model: DistortedCamera) -> np.ndarray:
    """How far from the camera's axis the ray of every rectified pixel is, on the plane z = 1."""
    x, y = rays(model.camera)
    R = np.reshape(model.rotation, (3, 3))
    in_camera = np.stack([x, y, np.ones_like(x)], axis=-1) @ R  # R.T applied to columns
    return np.hypot(in_camera[..., 0], in_camera[..., 1]) / in_camera[..., 2]


def sources(model: DistortedCamera) -> tuple[np.ndarray, np.ndarray]:
    """Where in the distorted image every pixel of the rectified one lies."""
    x, y = rays(model.camera)
    R = np.reshape(model.rotation, (3, 3))
    in_camera = np.stack([x, y, np.ones_like(x)], axis=-1) @ R  # R.T applied to columns
    x, y = in_camera[..., 0] / in_camera[..., 2], in_camera[..., 1] / in_camera[..., 2]
    x, y = bent(model.model, model.coefficients, x, y)
    return x * model.raw.fx + model.raw.cx, y * model.raw.fy + model.raw.cy


def assert_map_is(model: DistortedCamera) -> None:
    """Ramps of coordinates, rectified, show where every pixel comes from."""
    rectifier = Rectifier.for_camera(model)
    assert rectifier is not None
    x, y = sources(model)
    width, height = model.raw.size
    v, u = np.mgrid[:height, :width].astype(np.float32)
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    # Coordinates are kept in 32nds.
    np.testing.assert_allclose(rectifier.apply(u)[inside], x[inside], atol=1 / 60)
    np.testing.assert_allclose(rectifier.apply(v)[inside], y[inside], atol=1 / 60)
    beyond = np.maximum.reduce([-0.5 - x, x - (width - 0.5), -0.5 - y, y - (height - 0.5)])
    # Past the turning point the polynomial shows the picture a second time: nothing, too.
    past = radii(model) - seen_radius(model.model, model.coefficients)
    beyond = np.maximum(beyond, np.where(np.abs(past) < 0.002, 0.0, past))
    if rectifier.outside is None:
        assert (beyond <= 0.001).all()
    else:
        assert rectifier.outside[beyond > 0.001].all()
        assert not rectifier.outside[beyond < -0.001].any()


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.01, -0.02, 0.015)])
def test_every_pixel_comes_from_where_the_formula_says(name, angles):
    assert_map_is(lens(name, rotation=tuple(turned(*angles).reshape(-1))))


small = st.floats(-0.05, 0.05)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant"]),
    st.lists(small, min_size=8, max_size=8),
    st.tuples(small, small, small),
)
def test_every_small_distortion_is_the_formulas(model, numbers, angles):
    count = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}[model]
    coefficients = tuple(0.1 * n if i in (2, 3) else n for i, n in enumerate(numbers[:count]))
    assume(any(abs(c) > 1e-9 for c in coefficients))
    assert_map_is(
        DistortedCamera(RAW, model, coefficients, RECTIFIED, tuple(turned(*angles).reshape(-1)))
    )


def scene(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RGB of the ray (x, y, 1): smooth, without symmetry, up to five levels a pixel."""
    red = 120 + 60 * np.sin(6 * x + 1) + 50 * np.sin(5 * y)
    green = 120 + 60 * np.sin(5 * y + 2) + 50 * np.cos(4 * x + 3 * y)
    return np.stack([red, green, 128 + 90 * np.tanh(x)], axis=-1)


@pytest.mark.parametrize("name", LENSES)
def test_a_lens_picture_becomes_the_pinhole_picture(name):
    """End to end: the picture of a known scene through a lens, against the pinhole's."""
    model = lens(name)
    seen = scene(*straightened(model.model, model.coefficients, *rays(RAW)))
    rectifier = Rectifier.for_camera(model)
    assert rectifier is not None
    assert rectifier.camera == RECTIFIED
    rectified = rectifier.apply(np.round(seen).astype(np.uint8)).astype(float)
    expected = scene(*rays(RECTIFIED))
    error = np.abs(rectified - expected).max(axis=-1)
    x, y = sources(model)
    inside = (x >= 0) & (x <= SIZE[0] - 1) & (y >= 0) & (y <= SIZE[1] - 1)
    assert inside.mean() > 0.5
    assert error[inside].max() < 1.5
    assert np.abs(np.round(seen) - expected).max() > 20, "the lens must have done something"


def test_where_the_lens_saw_nothing_is_told():
    wide = Camera(50.0, 50.0, 100.0, 60.0, *SIZE)
    model = lens("rational_polynomial", camera=wide)
    rectifier = Rectifier.for_camera(model)
    assert rectifier is not None
    assert rectifier.outside is not None
    assert 0.2 < rectifier.outside.mean() < 0.9
    x, y = sources(model)
    inside = (x >= -0.5) & (x <= SIZE[0] - 0.5) & (y >= -0.5) & (y <= SIZE[1] - 0.5)
    np.testing.assert_array_equal(rectifier.outside, ~inside)


def test_the_second_picture_beyond_the_turning_point_is_not_shown():
    """r (1 - 0.4 r^2) grows up to r = 0.913 and falls back to 0 at 1.58: a ghost of the middle."""
    wide = Camera(50.0, 50.0, 100.0, 60.0, *SIZE)
    model = lens("plumb_bob", coefficients=(-0.4, 0.0, 0.0, 0.0, 0.0), camera=wide)
    rectifier = Rectifier.for_camera(model)
    assert rectifier is not None
    assert rectifier.outside is not None
    x, y = sources(model)
    r = np.hypot(*rays(wide))
    ghost = (r > 0.92) & (x > 0) & (x < SIZE[0] - 1) & (y > 0) & (y < SIZE[1] - 1)
    assert ghost.mean() > 0.1, "the example must have a ghost"
    assert rectifier.outside[ghost].all()
    assert not rectifier.outside[(r < 0.5) & (x > 0) & (x < 199) & (y > 0) & (y < 119)].any()


def test_types_and_channels_are_kept():
    rectifier = Rectifier.for_camera(lens("plumb_bob"))
    assert rectifier is not None
    for shape, kind in (((120, 200), np.uint8), ((120, 200, 3), np.uint8), ((120, 200), np.uint16)):
        image = np.zeros(shape, kind)
        image.flags.writeable = False
        result = rectifier.apply(image)
        assert (result.shape, result.dtype) == (shape, kind)


@pytest.mark.parametrize("coefficients", [(), (0.0,) * 5, (1e-12, 0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial", "equidistant"])
def test_what_is_rectified_already_costs_nothing(model, coefficients):
    assert Rectifier.for_camera(DistortedCamera(RAW, model, coefficients, RECTIFIED)) is None


def test_another_size_is_refused():
    rectifier = Rectifier.for_camera(lens("plumb_bob"))
    assert rectifier is not None
    with pytest.raises(ValueError, match=r"200x120.*100x60"):
        rectifier.apply(np.zeros((60, 100, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coefficients": (0.1, 0.2, 0.3)}, "plumb_bob with 3 coefficients is no model"),
        ({"coefficients": (math.nan, 0, 0, 0, 0)}, "not finite"),
        ({"coefficients": (math.inf, 0, 0, 0, 0)}, "not finite"),
        ({"rotation": (2.0, 0, 0, 0, 1, 0, 0, 0, 1)}, "not a rotation"),
        ({"rotation": (math.nan,) * 9}, "not a rotation"),
        ({"model": "mirror_ball"}, "'mirror_ball' is not known"),
    ],
)
def test_numbers_that_no_lens_has(changes, words):
    with pytest.raises(InvalidCameraError, match=words):
        lens("plumb_bob", **changes)


def test_a_rectified_image_without_a_pixel_of_the_real_one_is_refused():
    aside = Camera(100.0, 100.0, 400.0, 60.0, *SIZE)
    with pytest.raises(InvalidCameraError, match="empty"):
        Rectifier.for_camera(lens("plumb_bob", coefficients=(0.01, 0, 0, 0), camera=aside))


def test_what_lies_behind_the_lens_is_outside():
    behind = tuple(turned(0, 3.0, 0).reshape(-1))
    with pytest.raises(InvalidCameraError, match="empty"):
        Rectifier.for_camera(lens("equidistant", rotation=behind))


def test_a_tilted_sensor_and_a_thin_prism_are_taken_too():
    twelve = (*LENSES["rational_polynomial"], 1e-3, 0.0, 0.0, 0.0)
    plain = Rectifier.for_camera(lens("rational_polynomial"))
    prism = Rectifier.for_camera(lens("rational_polynomial", coefficients=twelve))
    assert plain is not None
    assert prism is not None
    ramp = np.broadcast_to(np.arange(200, dtype=np.float32), (120, 200)).copy()
    x, y = rays(RECTIFIED)
    moved = prism.apply(ramp) - plain.apply(ramp)
    # s1 r^2, and nothing else.
    inside = np.s_[40:80, 60:140]
    expected = 1e-3 * (x**2 + y**2) * RAW.fx
    np.testing.assert_allclose(moved[inside], expected[inside], atol=0.04)
