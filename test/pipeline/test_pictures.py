"""One picture at a time: every way to hand one over is the same picture, and nothing is kept."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import texture

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import to_points
from depth_prior_ros.motion import Motion
from depth_prior_ros.pipeline import DepthPipeline, InvalidFrameError, colourise
from depth_prior_ros.recordings import CorruptFrameError
from depth_prior_ros.scale import make_scale

PICTURE = texture(192, 64, margin=0)
CAMERA = Camera(0.6 * 192, 1.9 * 64, 96.0, 32.0, 192, 64)


def test_every_way_to_hand_a_picture_over_is_the_same(
    pipeline: DepthPipeline, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (extra `dev`)")
    expected = pipeline.infer(PICTURE, order="rgb").depth
    blue_first = np.ascontiguousarray(PICTURE[..., ::-1])
    file = tmp_path / "picture.png"
    cv2.imwrite(str(file), blue_first)
    for given, order in (
        (blue_first, "bgr"),
        (file, None),
        (str(file), None),
        (image.fromarray(PICTURE), None),
        (image.fromarray(PICTURE).convert("RGBA"), None),
    ):
        np.testing.assert_array_equal(pipeline.infer(given, order=order).depth, expected)
    wrong = pipeline.infer(blue_first, order="rgb").depth
    assert np.abs(wrong / expected - 1).max() > 1e-3  # so the order matters


def test_grey_has_no_order(pipeline: DepthPipeline) -> None:
    grey = PICTURE[..., 1]
    expected = pipeline.infer(np.stack([grey] * 3, axis=2), order="rgb").depth
    np.testing.assert_array_equal(pipeline.infer(grey).depth, expected)


def test_it_is_the_first_frame_of_a_drive(pipeline: DepthPipeline) -> None:
    alone = pipeline.infer(PICTURE, order="rgb", camera=CAMERA, confidence=True)
    first = pipeline.process(PICTURE, 1, camera=CAMERA, confidence=True)
    assert alone.active_model == first.active_model == "single_frame first_frame"
    for name in ("depth", "confidence", "rgb"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(first, name))
    assert (alone.camera, alone.region, alone.scale) == (first.camera, first.region, first.scale)


def test_nothing_of_it_is_kept(pipeline: DepthPipeline) -> None:
    """A picture between two frames of a drive changes neither frame nor scale."""
    pipeline.scale = make_scale("camera_height", fixed=20.0, source="given", camera_height=1.5)
    before = pipeline.scale.status
    results = []
    for asked in (False, True):
        pipeline.reset()
        for i in range(3):
            if asked:
                pipeline.infer(np.roll(PICTURE, 9, axis=1), order="rgb")
            result = pipeline.process(
                PICTURE, (i + 1) * 10**8, Motion(0.0, "odometry"), camera=CAMERA
            )
        results.append((result.active_model, result.depth))
    assert results[0][0] == results[1][0] == "single_frame stationary"
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert pipeline.scale.status.samples == before.samples == 0


@pytest.mark.parametrize(
    ("given", "order", "error", "words"),
    [
        (PICTURE, None, TypeError, "order='rgb'"),
        (PICTURE, "gbr", ValueError, "'rgb' or 'bgr'"),
        (PICTURE[..., 0], "rgb", TypeError, "three channels"),
        (PICTURE[..., :2], "rgb", InvalidFrameError, "3 channels"),
        (PICTURE.astype(np.float32), "rgb", InvalidFrameError, "uint8"),
        (PICTURE[0, 0], None, InvalidFrameError, r"\(H, W, 3\)"),
        (7, None, TypeError, "not int"),
        ("nowhere.png", None, CorruptFrameError, "nowhere.png"),
    ],
)
def test_what_is_no_picture_is_named(
    pipeline: DepthPipeline, given: object, order: str | None, error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        pipeline.infer(given, order=order)  # type: ignore[arg-type]


def test_colours_run_from_red_to_blue() -> None:
    shown = colourise(np.array([[3.0, 80.0, np.nan, np.inf, 15.5]], np.float32)).astype(int)
    near, far, unknown, beyond, middle = shown[0]
    assert near[0] > 2 * near[2] and far[2] > 2 * far[0]
    assert middle[1] > 150  # turbo is green in the middle, and sqrt(3 * 80) is 15.5
    assert unknown.tolist() == [96, 96, 96] and beyond.max() < 40
    with pytest.raises(ValueError, match="from 5"):
        colourise(np.ones((2, 2)), near=5, far=5)


def test_points_project_to_their_pixels() -> None:
    depth = np.random.default_rng(0).uniform(1, 60, (64, 192)).astype(np.float32)
    depth[:4], depth[4, :3] = np.inf, (np.nan, 0, -1)
    points = to_points(depth, CAMERA).astype(np.float64)
    pixels = points @ CAMERA.matrix().T
    u, v = np.rint(pixels[:, 0] / pixels[:, 2]), np.rint(pixels[:, 1] / pixels[:, 2])
    assert len(points) == 60 * 192 - 3
    np.testing.assert_array_equal(depth[v.astype(int), u.astype(int)], points[:, 2])
    assert len(set(zip(u, v, strict=True))) == len(points)
    organised = to_points(depth, CAMERA, organised=True)
    assert organised.shape == (64, 192, 3) and np.isnan(organised[:4]).all()
    np.testing.assert_array_equal(organised[np.isfinite(organised[..., 0])], points)
    with pytest.raises(ValueError, match="192x64"):
        to_points(depth[:, :100], CAMERA)
