"""Stereo bags of strangers: raw pictures of two lenses, mounted askew, which tf alone tells of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import texture
from numpy.typing import NDArray
from test_bag import START, header, raw_image
from test_bag_kinds import STEP, Topics, info, transform, write

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import RecordingError
from depth_prior_ros.recordings.bag import open_bag
from depth_prior_ros.recordings.stereo import open_pairs
from training.data.triplets import load_triplets
from training.losses.photometric import Target, view_errors
from training.recipes.data import Drive
from training.stages.system import motion_sources, views_of

CAMERA = Camera(200.0, 200.0, 158.0, 50.0, 320, 96)
LENSES = {"left": (-0.10, 0.02, 0.0, 0.0, 0.0), "right": (-0.08, 0.01, 0.001, 0.0, 0.0)}
# Half of what the two cameras are turned against each other (about x, y, z, radians): left by it,
# right against it. Both are rectified to look straight ahead then, whatever the method.
TURN = np.array([0.012, 0.025, 0.015])
BASELINE, DEPTH, UNIT = 0.5, 10.0, 10.0
PIXELS_PER_METRE = 20.0


def rotation(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.Rodrigues(vector)[0])


def photograph(side: str, wall: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a camera sees of a wall 10 m ahead of the rig: each pixel's ray, through its lens."""
    grid = np.stack(np.meshgrid(np.arange(320.0), np.arange(96.0)), -1).reshape(-1, 1, 2)
    rays = cv2.undistortPoints(grid, CAMERA.matrix(), np.array(LENSES[side]))[:, 0]
    turn = rotation(TURN if side == "left" else -TURN)  # rig_from_camera
    ahead = np.hstack([rays, np.ones((len(rays), 1))]) @ turn.T
    x = ahead[:, 0] / ahead[:, 2] * DEPTH + (BASELINE if side == "right" else 0.0)
    y = ahead[:, 1] / ahead[:, 2] * DEPTH
    height, width = wall.shape[:2]
    places = [x * PIXELS_PER_METRE + width / 2, y * PIXELS_PER_METRE + height / 2]
    maps = [place.reshape(96, 320).astype(np.float32) for place in places]
    return np.asarray(cv2.remap(wall, *maps, cv2.INTER_LINEAR), np.uint8)


def pair_topics(turn: NDArray[np.float64] = TURN) -> Topics:
    """Three raw pairs; P has no baseline; tf says that the cameras are turned by twice ``turn``."""
    topics: Topics = {}
    stamps = [START + i * STEP for i in range(3)]
    for side in ("left", "right"):
        infos, images = [], []
        for i, stamp in enumerate(stamps):
            top = replace(header(stamp), frame_id=side)
            told = info(stamp, CAMERA, d=np.array(LENSES[side]))
            infos.append((stamp, told | {"header": top}))
            picture = raw_image(stamp, photograph(side, texture(320, 160, seed=i)), "rgb8")
            images.append((stamp, picture | {"header": top}))
        topics[f"/{side}/camera_info"] = ("sensor_msgs/msg/CameraInfo", infos)
        topics[f"/{side}/image_raw"] = ("sensor_msgs/msg/Image", images)
    angle = 2 * float(np.linalg.norm(turn))
    axis = -turn / np.linalg.norm(turn) if angle else np.zeros(3)
    quaternion = (*(axis * np.sin(angle / 2)).tolist(), float(np.cos(angle / 2)))
    place = rotation(TURN).T @ [BASELINE, 0.0, 0.0]
    link = transform("left", "right", tuple(place.tolist()), quaternion)
    topics["/tf_static"] = ("tf2_msgs/msg/TFMessage", [(START, {"transforms": [link]})])
    return topics


def test_raw_pairs_are_rectified_together_by_the_turn_that_tf_tells(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag", pair_topics())
    pairs = open_pairs(bag, open_bag(bag))
    assert pairs.baseline == pytest.approx(BASELINE, abs=1e-6)
    assert all("rectified together" in " ".join(r.notes) for r in (pairs.recording, pairs.partner))
    # The wall is parallel to both rectified pictures: one disparity, whatever turn and lenses are.
    first, second = (r.frames[1] for r in (pairs.recording, pairs.partner))
    grey = [cv2.cvtColor(frame.image(), cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    columns, rows = np.meshgrid(np.arange(60.0, 260, 10), np.arange(20.0, 80, 6))
    points = np.stack([columns, rows], -1).reshape(-1, 1, 2).astype(np.float32)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(*grey, points, None)
    shifts = (moved - points)[found > 0]
    assert len(shifts) > 150
    expected = [-first.camera.fx * BASELINE / DEPTH, 0.0]
    np.testing.assert_allclose(np.median(shifts, 0), expected, atol=0.05)
    assert np.percentile(np.abs(shifts - expected), 80) < 0.2  # not their mean alone


def test_they_explain_each_other_in_training(tmp_path: Path) -> None:
    write(tmp_path / "bag", pair_topics())
    drives = [Drive(path="bag")]
    batch = load_triplets(tmp_path, drives, (320, 96), UNIT, mode="S").batch(
        4, np.random.default_rng(0)
    )
    assert batch.partner is not None
    none = batch.poses.transpose(0, 1)[:0]
    views = views_of(batch, batch.K, motion_sources(batch.images, "S"), none)
    rebuilt = views.rebuild(torch.full((4, 1, 96, 320), DEPTH / UNIT))
    target = Target.of(batch.images[:, 1])
    right, plain = view_errors(torch.stack([rebuilt[0], batch.partner]), target)
    inner = (..., slice(16, -16), slice(40, -40))
    assert right[inner].mean() < 0.2 * plain[inner].mean()


def test_a_turn_that_tf_does_not_tell_is_seen_in_the_pictures(tmp_path: Path) -> None:
    """The cameras are turned as above, but tf says that they look in one direction."""
    bag = write(tmp_path / "bag", pair_topics(turn=np.zeros(3)))
    with pytest.raises(RecordingError, match="not rectified") as caught:
        open_pairs(bag, open_bag(bag))
    assert "\n" not in str(caught.value)
