"""Flicker on depth that is known exactly: a road between walls, seen from a camera that drives."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_prior_ros.evaluation.evaluate import evaluate, row_entry
from depth_prior_ros.evaluation.frames import read_evaluation_frames
from depth_prior_ros.evaluation.metrics import flicker
from depth_prior_ros.evaluation.predictors import StoredDepth
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.recordings import Frame, StoredRecording

CAMERA = Camera(120.0, 120.0, 95.5, 31.5, 192, 64)


def pose(number: int) -> NDArray[np.float64]:
    """world_from_camera: a metre a frame ahead, and a slow turn."""
    angle = 0.01 * number
    result = np.eye(4)
    result[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    result[:3, 3] = 0.05 * number, 0.0, 1.0 * number
    return result


def scene(number: int, post: bool = False) -> NDArray[np.float64]:
    """Exact depth: road 1.6 m below, walls 6 m to the sides and 70 m ahead; a post, if asked."""
    matrix = pose(number)
    v, u = np.mgrid[:64, :192].astype(float)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], -1)
    turned, start = rays @ matrix[:3, :3].T, matrix[:3, 3]
    planes = [(1, 1.6), (0, 6.0), (0, -6.0), (2, 70.0)]
    depth = np.full(u.shape, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for axis, at in planes:
            far = (at - start[axis]) / turned[..., axis]
            depth = np.where((far > 0) & (far < depth), far, depth)
        if post:
            far = (14.0 - start[2]) / turned[..., 2]
            x = start[0] + far * turned[..., 0]
            depth = np.where((np.abs(x - 1.5) < 0.4) & (far > 0) & (far < depth), far, depth)
    return depth


def step(number: int) -> NDArray[np.float64]:
    return rigid_inverse(pose(number + 1)) @ pose(number)


@pytest.mark.parametrize("post", [False, True])
def test_exact_depth_does_not_flicker(post: bool) -> None:
    found = flicker(scene(0, post), scene(1, post), CAMERA, step(0))
    assert found is not None
    assert found < 0.002
    assert flicker(scene(0, post), scene(1, post), CAMERA, np.eye(4)) > 0.01  # pose matters


def test_what_moves_does_not_count() -> None:
    before, now = scene(0), scene(1)
    moving = np.zeros(now.shape, bool)
    moving[20:50, 60:120] = True
    now[moving] *= 1.5
    assert flicker(before, now, CAMERA, step(0)) > 0.015
    assert flicker(before, now, CAMERA, step(0), (moving, moving)) < 0.002


def test_unknown_depth_is_no_flicker() -> None:
    before, now = scene(0), scene(1)
    now[:, ::7] = np.nan
    before[::9] = np.inf
    assert flicker(before, now, CAMERA, step(0)) < 0.002
    assert flicker(np.full_like(before, np.nan), now, CAMERA, step(0)) is None


def recording(count: int) -> StoredRecording:
    frames = [
        Frame(
            index=i,
            stamp_ns=10**9 + i * 10**8,
            camera=CAMERA,
            load_image=lambda: np.zeros((64, 192, 3), np.uint8),
            load_depth=lambda i=i: scene(i).astype(np.float32),  # type: ignore[misc]
            pose=pose(i),
        )
        for i in range(count)
    ]
    return StoredRecording("made", frames, depth_source="exact")


def judged(depths: list[NDArray[np.float64]]) -> dict[str, float]:
    protocol = PROTOCOLS["synthetic"]
    made = recording(len(depths))
    every = range(len(depths))
    frames = read_evaluation_frames(made, protocol, (192, 64), every, images=False)
    stored = StoredDepth(dict(enumerate(depths)))
    return row_entry(evaluate(stored, frames, protocol))


def test_five_per_cent_of_scale_a_frame_reads_five_per_cent_whatever_the_factor() -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 24)
    # Each frame's scale is 5 % above or below that of the frame before.
    scales = np.cumprod(1.0 + 0.05 * signs)
    found = judged([scene(i) * scale for i, scale in enumerate(scales)])
    assert found["flicker"] == pytest.approx(0.05, abs=0.005)
    assert found["flicker_pairs"] == 23
    exact = judged([scene(i) for i in range(6)])
    assert exact["flicker"] < 0.002
    halved = judged([scene(i) * 0.5 for i in range(6)])
    assert halved["flicker"] == pytest.approx(exact["flicker"], abs=1e-6)  # no flicker, just wrong
