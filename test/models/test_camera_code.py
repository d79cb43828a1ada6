"""What a student is told of its camera: the numbers, the pairs that bring them, the network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from depth_prior_ros.models.student import MIRROR, NUMBERS, Student, build_student, camera_code
from depth_prior_ros.recordings.synthetic.samples import Mount, random_camera
from training.data.pairs import PairSource

SIZE = (64, 32)


def intrinsics(focal: float = 1.0, row: float = 0.0) -> np.ndarray:
    width, height = SIZE
    fx, cy = 0.581 * width * focal, (0.461 + row) * height
    return np.array([[fx, 0, 30], [0, fx, cy], [0, 0, 1]], np.float32)


def test_the_numbers_of_known_cameras() -> None:
    kitti = camera_code(np.array([1.65, 0, 0], np.float32), intrinsics(), SIZE)
    np.testing.assert_allclose(kitti, np.zeros(5), atol=1e-6)
    mount = np.array([1.15, math.radians(5.8), math.radians(-1.1)], np.float32)
    other = camera_code(mount, intrinsics(1.35**2, 0.035), SIZE)
    np.testing.assert_allclose(other, [-1, 2, -1, 2, 1], atol=1e-5)


def test_a_drawn_mount_changes_a_camera() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mount, plain = Mount.draw(rng), random_camera(np.random.default_rng(seed), SIZE)
        camera = mount.of(plain)
        assert 0.9 <= mount.height <= 2.4 and abs(mount.pitch) <= math.radians(5)
        assert camera.fx / plain.fx == pytest.approx(mount.focal)
        assert camera.fy / plain.fy == pytest.approx(mount.focal)
        assert (camera.cy - plain.cy) / SIZE[1] == pytest.approx(mount.row, abs=1e-6)


def write_pairs(folder: Path, with_mount: bool) -> Path:
    """Four pairs with rolls of 1 to 4 units, the left half of the picture white."""
    width, height = SIZE
    shard = folder / "shard_00000"
    shard.mkdir(parents=True)
    images = np.zeros((4, 2, height, width, 3), np.uint8)
    images[:, :, :, : width // 2] = 255
    np.save(shard / "images.npy", images)
    np.save(shard / "depth.npy", np.full((4, 2, height, width), 10, np.float16))
    np.save(shard / "K.npy", np.stack([intrinsics()] * 4))
    np.save(shard / "previous_from_current.npy", np.stack([np.eye(4, dtype=np.float32)] * 4))
    if with_mount:
        rolls = np.radians(1.1) * np.arange(1, 5)
        mounts = np.stack([np.full(4, 1.65), np.zeros(4), rolls], 1)
        np.save(shard / "mount.npy", mounts.astype(np.float32))
    return folder


def test_mirrored_pairs_bring_mirrored_numbers(tmp_path: Path) -> None:
    batch = PairSource.open(write_pairs(tmp_path, True), 10.0).batch(16, np.random.default_rng(0))
    assert batch.code is not None and batch.code.shape == (16, NUMBERS)
    left, right = batch.inputs[:, 1].mean((1, 2)).chunk(2, dim=-1)
    mirrored = (right.mean(-1) > left.mean(-1)).numpy()
    assert 0 < mirrored.sum() < 16
    rolls = batch.code[:, 2].numpy()
    np.testing.assert_array_equal(rolls < 0, mirrored)
    np.testing.assert_allclose(np.abs(rolls), np.round(np.abs(rolls)), atol=1e-4)
    assert MIRROR[2] == -1 and sum(MIRROR) == NUMBERS - 2


def test_pairs_of_before_bring_none(tmp_path: Path) -> None:
    source = PairSource.open(write_pairs(tmp_path, False), 10.0)
    assert source.batch(2, np.random.default_rng(0)).code is None


def test_it_adds_nothing_at_first_and_then_what_it_is_told() -> None:
    torch.manual_seed(0)
    plain = Student("mobilenet_v2", "convex").eval()
    told = build_student({**plain.architecture, "camera_code": True}).eval()
    missing, unknown = told.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(name.startswith("camera_code.") for name in missing)
    image, code = torch.rand(2, 3, 64, 96), torch.randn(2, NUMBERS)
    with torch.no_grad():
        expected = plain(image).disparity[0]
        assert torch.equal(told(image, code=code).disparity[0], expected)
        assert told.camera_code is not None
        for layer in told.camera_code.added.values():
            torch.nn.init.normal_(layer.weight, 0, 1)
        silent = told(image).disparity[0]
        assert torch.equal(told(image, code=torch.zeros(2, NUMBERS)).disparity[0], silent)
        changed = told(image, code=torch.stack([torch.zeros(NUMBERS), code[1]])).disparity[0]
    assert torch.allclose(changed[0], silent[0], atol=1e-6)
    assert not torch.allclose(changed[1], silent[1], rtol=1e-3)
    with pytest.raises(ValueError, match="not told its camera"):
        plain(image, code=code)
