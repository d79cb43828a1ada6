"""Metres from cameras that the network was not trained for, against exact depth.

The network is replaced by one that is perfect for the training camera. One reads the size of things
off the picture, as networks do, and is told nothing about the camera. The other is given the depth
of every pixel, so that every published pixel can be compared with the exact depth of the scene.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from helpers import METRES_PER_UNIT, make_tiny_bundle
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline import DepthPipeline

SIZE = (192, 64)

CAMERAS = {
    "the training camera": Camera(0.58 * 192, 1.92 * 64, 96.0, 32.0, *SIZE),
    "twice as many pixels": Camera(1.16 * 192, 3.84 * 64, 192.0, 64.0, 384, 128),
    "a long lens": Camera(250.0, 250.0, 100.0, 30.0, *SIZE),
    "a wide lens": Camera(60.0, 60.0, 90.0, 35.0, *SIZE),
    "4:3": Camera(190.0, 190.0, 158.0, 122.0, 320, 240),
    "4:3, off centre": Camera(300.0, 300.0, 130.0, 100.0, 320, 240),
    "16:9": Camera(400.0, 395.0, 322.0, 178.0, 640, 360),
    "a panorama": Camera(260.0, 260.0, 325.0, 60.0, 640, 120),
    "stretched by 4 %": Camera(130.0, 130.0, 100.0, 32.0, 200, 64),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> DepthPipeline:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", SIZE, trunk=TINY_TRUNK)
    return DepthPipeline(bundle, "torch", "cpu", force_model="single_frame")


@pytest.fixture
def pipeline(shared: DepthPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[DepthPipeline]:
    shared.reset()
    shared.max_metres = 1e6
    yield shared
    shared.fit, shared.output_size = "crop", "model"


def answering(pipeline: DepthPipeline, monkeypatch: pytest.MonkeyPatch, network) -> None:
    """Put ``network``, picture (h, w, 3) in 0..1 to metres (h, w), in the student's place."""
    backend = pipeline.networks.backend

    def single(native):
        picture = backend.to_numpy(native)[0].transpose(1, 2, 0)
        inverse = (METRES_PER_UNIT / network(picture)).astype(np.float32)[None, None]
        return backend.to_native(inverse), backend.to_native(np.ones_like(inverse))

    monkeypatch.setattr(pipeline.networks, "single", single)


# -- a network that reads the size of things -------------------------------------------------------


def wall(camera: Camera, distance: float, period: float = 1.5) -> np.ndarray:
    """A wall across the street with a wave of ``period`` metres on it, both ways."""
    samples = (np.arange(4) - 1.5) / 4  # a pixel is a little square, not a point
    v, u = np.mgrid[: camera.height, : camera.width].astype(float)
    total = np.zeros((camera.height, camera.width, 2))
    for dv in samples:
        for du in samples:
            x = (u + du - camera.cx) / camera.fx * distance
            y = (v + dv - camera.cy) / camera.fy * distance
            total += np.sin(2 * np.pi * np.stack([x, y], axis=-1) / period)
    across, down = np.moveaxis(total / 16, -1, 0)
    return (np.stack([across, down, 0 * across], axis=-1) * 120 + 127.5).round().astype(np.uint8)


def period_of(line: np.ndarray) -> float:
    """Pixels of a period: the sine that fits best, looked for ever more finely."""
    at = np.arange(len(line))
    best, step = 1 / len(line), 0.5 / len(line)
    candidates = np.arange(0.5 / len(line), 0.45, 0.1 / len(line))
    for _ in range(6):
        waves = np.exp(-2j * np.pi * candidates[:, None] * at)
        design = np.stack([waves.real, waves.imag, np.ones_like(waves.real)], axis=-1)
        error = [
            np.square(line - d @ np.linalg.lstsq(d, line, rcond=None)[0]).sum() for d in design
        ]
        best = candidates[int(np.argmin(error))]
        candidates = np.linspace(best - step, best + step, 21)
        step /= 8
    return 1 / best


def measuring(trained: Camera, seen: np.ndarray, period: float = 1.5):
    """A perfect network for the training camera: how far is a wall whose waves are that long?"""

    def network(picture: np.ndarray) -> np.ndarray:
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        inside = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        across = trained.fx * period / period_of(inside[..., 0].mean(axis=0))
        down = trained.fy * period / period_of(inside[..., 1].mean(axis=1))
        return np.full(picture.shape[:2], math.sqrt(across * down))

    return network


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("name", CAMERAS)
def test_a_wall_is_as_far_as_it_is(pipeline, monkeypatch, name, fit):
    camera, trained = CAMERAS[name], pipeline.bundle.manifest.camera
    # About twenty pixels of the network's picture for a wave, whatever the camera.
    share = min(SIZE[0] / camera.width, SIZE[1] / camera.height)
    distance = 1.5 * camera.fx * (share if fit == "pad" else max(share, 0.5)) / 14
    pipeline.fit = fit
    visible = ~np.isnan(pipeline.process(wall(camera, distance), 0, camera=camera).depth)
    answering(pipeline, monkeypatch, measuring(trained, visible))
    depth = pipeline.process(wall(camera, distance), 1, camera=camera).depth
    np.testing.assert_allclose(depth[visible], distance, rtol=0.01)
    padded = fit == "pad" and name in ("4:3", "4:3, off centre", "16:9", "a panorama")
    assert visible.all() == (not padded)


# -- a network that knows every pixel --------------------------------------------------------------


def pixels_of(camera: Camera) -> np.ndarray:
    """(2, H, W): u and v of every pixel."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(float)
    return np.stack([u, v])


def street(camera: Camera, places: np.ndarray) -> np.ndarray:
    """Exact depth at (2, ...) places of a camera's image, in its pixels.

    A road 1.6 m below, houses at both sides, a wall 60 m ahead, a ball.
    """
    x, y = (places[0] - camera.cx) / camera.fx, (places[1] - camera.cy) / camera.fy
    with np.errstate(divide="ignore"):
        road = np.where(y > 0, 1.6 / y, np.inf)
        houses = np.where(x > 0, 5.0 / x, np.where(x < 0, -7.0 / x, np.inf))
    centre, radius = np.array([1.0, 0.4, 9.0]), 1.2
    a = x * x + y * y + 1
    b = x * centre[0] + y * centre[1] + centre[2]
    inside = b * b - a * (centre @ centre - radius**2)
    ball = np.where(inside >= 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    return np.minimum.reduce([road, houses, ball, np.full(x.shape, 60.0)])


NEAREST = np.array([1.0, 4.0, 16.0])  # metres at which red, green and blue are full


def painted(depth: np.ndarray) -> np.ndarray:
    """A picture whose colours are inverse depth, three times, each finer than the one before."""
    return (255 * np.minimum(NEAREST / depth[..., None], 1)).round().astype(np.uint8)


def read_off(picture: np.ndarray) -> np.ndarray:
    """Depth from the finest colour that is not full."""
    usable = picture < 0.96
    finest = 2 - np.argmax(usable[..., ::-1], axis=-1)
    value = np.take_along_axis(picture, finest[..., None], axis=-1)[..., 0]
    return NEAREST[finest] / np.maximum(value, 1e-3)


def focal_of_window(camera: Camera, fit: str) -> float:
    """By hand: the camera's focal length in pixels of the network's picture, both axes' mean."""
    aspect = SIZE[0] / SIZE[1]
    if abs(camera.width / camera.height / aspect - 1) <= 0.05:
        sx, sy = SIZE[0] / camera.width, SIZE[1] / camera.height
    else:
        sides = (SIZE[0] / camera.width, SIZE[1] / camera.height)
        sx = sy = max(sides) if fit == "crop" else min(sides)
    return math.sqrt(camera.fx * sx * camera.fy * sy)


@pytest.mark.parametrize("output", ["model", "input", (240, 90)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("name", CAMERAS)
def test_every_pixel_is_as_far_as_it_is(pipeline, monkeypatch, name, fit, output):
    camera, trained = CAMERAS[name], pipeline.bundle.manifest.camera
    apparent = math.sqrt(trained.fx * trained.fy) / focal_of_window(camera, fit)
    answering(pipeline, monkeypatch, lambda picture: read_off(picture) * apparent)
    pipeline.fit, pipeline.output_size = fit, output
    result = pipeline.process(painted(street(camera, pixels_of(camera))), 0, camera=camera)
    height, width = result.depth.shape
    window = result.region
    scale = np.reshape([window.width / width, window.height / height], (2, 1, 1))
    corner = np.reshape([window.x, window.y], (2, 1, 1))
    # Pixels are squares around whole numbers.
    places = corner + (pixels_of(result.camera) + 0.5) * scale - 0.5
    exact = street(camera, places)
    x, y = places
    beyond = np.maximum.reduce(
        [-0.5 - x, x - (camera.width - 0.5), -0.5 - y, y - (camera.height - 0.5)]
    )
    # What is known is decided for pixels of the network.
    slack = 0 if output == "model" else 0.5 * camera.fx / focal_of_window(camera, fit) + 1e-6
    known = np.isfinite(result.depth)
    assert known.mean() > 0.1
    assert not known[beyond > slack].any(), "depth of what no camera has seen"
    if fit == "pad":
        assert known[beyond < -slack].all()
    elif output != "input":
        assert known.all()

    error = np.log(result.depth[known] / exact[known])
    # 8 bits of colour; at a few edges depth is between two things.
    assert abs(np.median(error)) < 0.004
    assert np.median(np.abs(error)) < 0.006
    assert np.quantile(np.abs(error), 0.9) < 0.03


def test_the_camera_matters(pipeline, monkeypatch):
    """The same picture from a lens twice as long shows the same things twice as far away."""
    trained = pipeline.bundle.manifest.camera
    answering(pipeline, monkeypatch, read_off)
    picture = painted(street(trained, pixels_of(trained)))
    near = pipeline.process(picture, 0, camera=trained).depth
    long = Camera(2 * trained.fx, 2 * trained.fy, trained.cx, trained.cy, *SIZE)
    np.testing.assert_allclose(pipeline.process(picture, 1, camera=long).depth, 2 * near, rtol=1e-5)
