"""The renderer's depth against rays computed by hand in float64; what is said without OpenGL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL
from depth_prior_ros.recordings.synthetic.mesh import Mesh, Surface, box, quads
from depth_prior_ros.recordings.synthetic.renderer import (
    Drawing,
    Light,
    Renderer,
    RendererUnavailableError,
    resolve,
)
from depth_prior_ros.recordings.synthetic.samples import turned
from depth_prior_ros.recordings.synthetic.textures import TextureBank

CAMERA = Camera(92.0, 90.0, 78.4, 22.7, 160, 48)
LOW, HIGH = np.array([9.0, -2.5, 0.0]), np.array([13.0, 1.0, 2.2])


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    try:
        made = Renderer(128)
    except RendererUnavailableError as error:
        pytest.skip(str(error))  # names the Debian packages libegl1 and libgl1-mesa-dri
    made.load_textures(TextureBank(0))
    ground = np.array([[[-50, -50, 0], [400, -50, 0], [400, 50, 0], [-50, 50, 0]]], float)
    block = box(tuple(LOW), tuple(HIGH), Surface(0))
    made.load(Drawing(Mesh.merge([quads(ground, Surface(0)), block])))
    yield made
    made.release()


def _pose(yaw: float = 0.05, pitch: float = -0.02, roll: float = 0.03) -> np.ndarray:
    pose = turned(yaw, pitch, roll)
    pose[:3, 3] = (0.3, -0.4, 1.6)
    return pose @ BODY_FROM_OPTICAL


def _ray_depth(camera: Camera, pose: np.ndarray) -> np.ndarray:
    """Depth of the ground (0 < x < 400, |y| < 50) and the box by intersection; 0 = nothing hit."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1
    )
    rays = rays @ pose[:3, :3].T  # in the world, per unit of depth
    eye = pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(rays[..., 2] < 0, -eye[2] / rays[..., 2], np.inf)
        hit = eye + ground[..., None] * rays
        ground[~((np.abs(hit[..., 1]) < 50) & (hit[..., 0] < 400))] = np.inf
        first, second = (LOW - eye) / rays, (HIGH - eye) / rays
    enter = np.minimum(first, second).max(-1)
    leave = np.maximum(first, second).min(-1)
    block = np.where((enter < leave) & (enter > 0), enter, np.inf)
    depth = np.minimum(ground, block)
    return np.where(np.isfinite(depth), depth, 0.0)


def _inside(truth: np.ndarray) -> np.ndarray:
    """Pixels whose neighbours see the same surface: edges are compared apart."""
    inverse = np.where(truth > 0, 1 / np.where(truth > 0, truth, 1), 0)
    bend = np.zeros_like(inverse)
    for axis in (0, 1):
        second = np.abs(np.roll(inverse, 1, axis) + np.roll(inverse, -1, axis) - 2 * inverse)
        bend = np.maximum(bend, second)
    good = bend < 1e-9
    good[[0, -1]] = good[:, [0, -1]] = False
    return good


@pytest.mark.parametrize("supersample", [1, 2])
def test_depth_equals_ray_intersection(renderer: Renderer, supersample: int) -> None:
    pose = _pose()
    _, depth, moving = renderer.render_linear(CAMERA, pose, Light(), None, supersample)
    truth = _ray_depth(CAMERA, pose)
    inside = _inside(truth)
    assert inside.mean() > 0.8
    near = inside & (truth > 0) & (truth < 100)
    block = near & (np.abs(truth - 8.6) < 1.0)
    assert near.sum() > 2000 and block.sum() > 50
    error = np.abs(depth[near] / truth[near] - 1)
    assert (error < 2e-4).mean() > 0.999 and error.max() < 2e-3  # the foot of the box is both
    assert (depth[inside & (truth == 0)] == 0).all()
    assert not moving.any()


def test_a_shifted_principal_point_would_be_noticed(renderer: Renderer) -> None:
    pose = _pose()
    shifted = Camera(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy + 0.5, CAMERA.width, CAMERA.height)
    _, depth, _ = renderer.render_linear(shifted, pose, Light(), None, 2)
    truth = _ray_depth(CAMERA, pose)
    near = _inside(truth) & (truth > 0) & (truth < 100)
    assert np.median(np.abs(depth[near] / truth[near] - 1)) > 5e-3


def test_movers_are_marked_and_have_depth(renderer: Renderer) -> None:
    pose = _pose(0, 0, 0)
    mover = box((5.0, -1.0, 0.2), (6.0, 0.0, 1.5), Surface(1))
    _, depth, moving = renderer.render_linear(CAMERA, pose, Light(), mover, 2)
    assert moving.sum() > 50
    face = depth[moving]
    assert face.min() > 0
    # The camera stands at x = 0.3, the front face at x = 5.
    assert np.isclose(np.median(face), 4.7, atol=1e-3)


def test_what_waits_is_drawn_but_does_not_move(renderer: Renderer) -> None:
    pose = _pose(0, 0, 0)
    mover = box((5.0, -1.0, 0.2), (6.0, 0.0, 1.5), Surface(1))
    arguments = (CAMERA, pose, Light(), mover, 2)
    _, depth, moving = renderer.render_linear(*arguments)
    _, same, waiting = renderer.render_linear(CAMERA, pose, Light(), None, 2, None, arguments[3])
    assert np.array_equal(depth, same) and moving.any() and not waiting.any()


def test_without_egl_the_error_names_what_to_install() -> None:
    code = """
from depth_prior_ros.recordings.synthetic.renderer import Renderer
try:
    Renderer()
except Exception as error:
    print(type(error).__name__, error)
"""
    nowhere = os.environ | {"GLCONTEXT_LINUX_LIBEGL": "libEGL_missing.so"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=nowhere, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.startswith("RendererUnavailableError")
    assert "libegl1 and libgl1-mesa-dri" in found.stdout


def test_shadow_darkens_the_ground_behind_the_box(renderer: Renderer) -> None:
    pose = _pose(0, 0, 0)
    light = Light(sun_direction=(0.6, 0.0, 0.8), fog=0.0)  # the sun stands ahead
    renderer.cast_shadows(light, np.array([10.0, 0.0, 0.0]), 15.0)
    image, depth, _ = renderer.render_linear(CAMERA, pose, light, None, 2)
    # Ground in front of the box: at x = 8.4 shaded, at x = 6.5 lit.
    rows = {x: round(CAMERA.cy + CAMERA.fy * 1.6 / (x - 0.3)) for x in (6.5, 8.4)}
    column = round(CAMERA.cx)
    assert abs(depth[rows[6.5], column] - 6.2) < 0.3
    assert image[rows[8.4], column].mean() < 0.6 * image[rows[6.5], column].mean()


def test_resolve_is_exact_on_planes_and_takes_one_side_of_an_edge() -> None:
    y, x = np.mgrid[0:8, 0:8].astype(float)
    inverse = 0.02 + 0.0003 * x + 0.0005 * y
    raw = np.zeros((8, 8, 4), np.float32)
    raw[..., 3] = 1 / inverse
    _, depth, _ = resolve(raw, 2)
    at = 2 * np.arange(4) + 0.5
    centre = 0.02 + 0.0003 * at + 0.0005 * at[:, None]
    np.testing.assert_allclose(1 / depth, centre, rtol=1e-5)
    raw[..., 3] = np.where(x < 3, 5.0, 50.0)
    _, depth, _ = resolve(raw, 2)
    assert set(np.unique(depth)) == {5.0, 50.0}
