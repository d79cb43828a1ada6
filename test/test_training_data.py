"""Triplets out of recordings: gaps, kept-out frames, mirroring, reproducible draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry import Pose, backproject, project
from depth_prior_ros.recordings import open_recording
from training.config import Drive
from training.data.augmentation import colour_matrix, jitter, mirror_intrinsics, mirror_pose
from training.data.triplets import find_triplets, load_triplets


def write_drive(folder: Path, numbers: list[int], size: tuple[int, int] = (124, 38)) -> Path:
    """A KITTI raw drive of small pictures whose brightness tells the frame number."""
    images = folder / "2011_09_26" / "2011_09_26_drive_0001_sync" / "image_02"
    images.mkdir(parents=True)
    for number in numbers:
        picture = np.full((size[1], size[0], 3), number, np.uint8)
        cv2.imwrite(str(images / f"{number:010d}.png"), picture)
    K = f"721.5 0 {size[0] / 2} 0 721.5 {size[1] / 2} 0 0 1".split()
    P = f"721.5 0 {size[0] / 2} 0 0 721.5 {size[1] / 2} 0 0 0 1 0".split()
    lines = []
    for camera in ("00", "02"):
        lines += [
            f"S_rect_{camera}: {size[0]} {size[1]}",
            f"K_{camera}: " + " ".join(K),
            f"P_rect_{camera}: " + " ".join(P),
        ]
    (folder / "2011_09_26" / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    return images.parent


def test_no_triplet_bridges_a_gap(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0, 1, 2, 3, 7, 8, 9, 10])
    recording = open_recording(drive)
    usable = [True] * 8
    assert find_triplets(recording, 1, usable) == [(0, 1, 2), (1, 2, 3), (4, 5, 6), (5, 6, 7)]
    assert find_triplets(recording, 2, usable) == []
    usable[2] = False
    assert find_triplets(recording, 1, usable) == [(4, 5, 6), (5, 6, 7)]


def test_corrupt_frames_are_left_out_and_named(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, list(range(9)))
    bad = drive / "image_02" / f"{4:010d}.png"
    bad.write_bytes(bad.read_bytes()[:60])
    path = str(drive.relative_to(tmp_path))
    source = load_triplets(tmp_path, [Drive(path=path)], (64, 32), 10.0)
    assert len(source) == 4
    assert any(f"{4:010d}" in line for line in source.skipped)


def test_nothing_to_train_on_says_why(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, [0, 5, 9])
    with pytest.raises(ValueError, match="no three frames follow each other"):
        load_triplets(tmp_path, [Drive(path=str(drive.relative_to(tmp_path)))], (64, 32), 10.0)


def test_draws_are_a_function_of_the_seed(tmp_path: Path) -> None:
    drive = write_drive(tmp_path, list(range(12)))
    source = load_triplets(tmp_path, [Drive(path=str(drive.relative_to(tmp_path)))], (64, 32), 10.0)
    draws = [source.batch(4, np.random.default_rng([1, 2, step])) for step in (3, 3, 4)]
    assert torch.equal(draws[0].inputs, draws[1].inputs)
    assert not torch.equal(draws[0].inputs, draws[2].inputs)
    means = (draws[0].images.mean((2, 3, 4)) * 255).round()
    assert torch.equal(means.diff(dim=1), torch.ones(4, 2)), "order is previous, current, next"


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_mirrored_motion_moves_mirrored_points(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    # Bounded, so that no point comes behind the camera, where pixels mean nothing.
    turn, shift = 2 * torch.rand(2, 1, 3, **options) - 1
    pose = Pose.from_axis_angle(0.3 * turn, shift)
    K = torch.tensor([[[40.0, 0, 13.0], [0, 42.0, 9.0], [0, 0, 1]]], dtype=torch.float64)
    depth = 5 + torch.rand(1, 1, 16, 32, **options)
    pixels, _ = project(_moved(backproject(depth, K), pose), K)
    flipped_K = mirror_intrinsics(K, 32)
    mirrored, _ = project(
        _moved(backproject(depth.flip(-1), flipped_K), mirror_pose(pose)), flipped_K
    )
    torch.testing.assert_close(mirrored[:, 0].flip(-1), 31 - pixels[:, 0])
    torch.testing.assert_close(mirrored[:, 1].flip(-1), pixels[:, 1])


def _moved(points: torch.Tensor, pose: Pose) -> torch.Tensor:
    return pose.transform(points.flatten(2)).reshape(points.shape)


def test_jitter_keeps_grey_grey_and_changes_all_frames_alike() -> None:
    image = torch.rand(1, 1, 3, 4, 4).mean(2, keepdim=True).expand(2, 3, 3, 4, 4)
    out = jitter(image, np.random.default_rng(0), probability=1.0)
    torch.testing.assert_close(out[:, :, 0], out[:, :, 2], atol=2e-3, rtol=0)
    torch.testing.assert_close(out[:, 0], out[:, 2])
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out, image)


def test_colour_matrix_without_change_is_the_identity() -> None:
    class Still:
        def uniform(self, low: float, high: float, size: int | None = None) -> np.ndarray | float:
            middle = (low + high) / 2
            return np.full(size, middle) if size else middle

    matrix = colour_matrix(Still())  # type: ignore[arg-type]
    np.testing.assert_allclose(matrix, np.eye(3, 4), atol=2e-2)
