"""Triplets out of recordings: gaps, kept-out frames, mirroring, reproducible draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_files import SMALL, TRAINING_NAMES, write_moving_drive

from depth_prior_ros.geometry.warping import Pose, backproject, project
from depth_prior_ros.recordings import open_recording
from training.data.augmentation import (
    Colours,
    colour_matrix,
    mirror_intrinsics,
    mirror_pose,
    write_planes,
)
from training.data.sources import load_data
from training.data.triplets import TripletBatch, TripletSource, find_triplets, load_triplets
from training.recipes.base import RecipeError
from training.recipes.data import Data, Drive

ROOT = Path(__file__).resolve().parents[2]


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


def exact(colours: Colours, pictures: np.ndarray) -> np.ndarray:
    """What a change of colours makes of pictures (N, H, W, 3) uint8: (N, 3, H, W) in [0, 1]."""
    matrix = colours.matrix
    changed = pictures / 255 @ matrix[:, :3].T + matrix[:, 3]
    return changed.clip(1e-4, 1).transpose(0, 3, 1, 2) ** colours.gamma


def test_colours_keep_grey_grey_and_change_all() -> None:
    grey = np.repeat(np.arange(0, 256, 5, dtype=np.uint8), 3).reshape(1, 1, -1, 3)
    colours = Colours.draw(np.random.default_rng(0), probability=1.0)
    assert colours is not None
    out = exact(colours, grey)
    np.testing.assert_allclose(out[:, 0], out[:, 2], atol=2e-3)
    assert np.abs(out - grey.transpose(0, 3, 1, 2) / 255).max() > 0.01


def test_colour_matrix_without_change_is_the_identity() -> None:
    class Still:
        def uniform(self, low: float, high: float, size: int | None = None) -> np.ndarray | float:
            middle = (low + high) / 2
            return np.full(size, middle) if size else middle

    matrix = colour_matrix(Still())  # type: ignore[arg-type]
    np.testing.assert_allclose(matrix, np.eye(3, 4), atol=2e-2)


# --- colours on bytes -----------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_colours_on_bytes_are_exact_within_rounding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    colours = Colours.draw(np.random.default_rng(seed), probability=1.0)
    assert colours is not None
    expected = exact(colours, pictures)
    out = np.empty((2, 3, 8, 16), np.float32)
    for picture, planes in zip(pictures, out, strict=True):
        write_planes(picture, planes, colours)
    # One grey value (rounding, and OpenCV's fixed point), as the power enlarges it towards black.
    low = (expected ** (1 / colours.gamma) - 1 / 255).clip(1e-4, 1) ** colours.gamma
    high = (expected ** (1 / colours.gamma) + 1 / 255).clip(1e-4, 1) ** colours.gamma
    assert (out >= low - 1e-5).all()
    assert (out <= high + 1e-5).all()
    assert np.abs(out - expected).mean() < 0.5 / 255


def test_planes_without_a_change_are_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    out = np.empty((3, 8, 16), np.float32)
    write_planes(picture[:, ::-1], out)
    expected = torch.from_numpy(picture.copy()).permute(2, 0, 1).flip(-1).float() / 255
    torch.testing.assert_close(torch.from_numpy(out), expected)


def test_networks_see_changed_colours_and_losses_the_recorded_ones(tmp_path: Path) -> None:
    source = moving(tmp_path)
    batch = source.batch(16, np.random.default_rng(0))
    same = [torch.equal(a, b) for a, b in zip(batch.images, batch.inputs, strict=True)]
    assert 0 < sum(same) < 16
    recorded = {tuple(source.sequences[0].picture(i)[5, 5] / np.float32(255)) for i in range(6)}
    for images, cx in zip(batch.images, batch.K[:, 0, 2], strict=True):
        mirrored = abs(float(cx) - 61 * SMALL[0] / 124) > 1e-3
        pixel = images[1, :, 5, SMALL[0] - 6 if mirrored else 5]
        assert any(np.allclose(pixel.numpy(), value) for value in recorded)


# --- batches --------------------------------------------------------------------------------------


def moving(root: Path, name: str = TRAINING_NAMES[0], **values: object) -> TripletSource:
    """Triplets of a drive that is written first."""
    drive = write_moving_drive(root, name, speed=values.pop("speed", None))  # type: ignore[arg-type]
    data = Data.model_validate({"drives": [{"path": str(drive.relative_to(root)), **values}]})
    return load_data(root, data, SMALL, 10.0).training


def test_a_part_of_a_batch_is_that_part(tmp_path: Path) -> None:
    source = moving(tmp_path)
    whole = source.batch(6, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    part = source.batch(6, rng, slice(1, 6, 2))
    for name in ("images", "inputs", "K", "poses", "known"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1::2]), name
    other = np.random.default_rng(5)
    source.batch(6, other)
    assert rng.random() == other.random(), "all processes go on with the same generator"


def test_travel_is_metres_between_the_frames(tmp_path: Path) -> None:
    batch = moving(tmp_path, speed=8.0).batch(5, np.random.default_rng(0))
    torch.testing.assert_close(batch.travel, torch.full((5, 2), 0.8))
    assert not batch.known.any()
    batch = moving(tmp_path, speed=8.0, stride=2).batch(5, np.random.default_rng(0))
    torch.testing.assert_close(batch.travel, torch.full((5, 2), 1.6))
    # Another drive, because speeds of the first stay on the disk.
    batch = moving(tmp_path, TRAINING_NAMES[1]).batch(5, np.random.default_rng(0))
    assert batch.travel.shape == (5, 2)
    assert batch.travel.isnan().all()


def test_a_batch_made_without_travel_does_not_know_it() -> None:
    images = torch.zeros(3, 3, 3, 2, 2)
    known = torch.zeros(3, dtype=torch.bool)
    batch = TripletBatch(images, images, torch.zeros(3, 3, 3), torch.zeros(3, 2, 4, 4), known)
    assert batch.travel.shape == (3, 2)
    assert batch.travel.isnan().all()


# --- every kind of recording ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("camera", range(4))
def test_any_camera_of_kitti_raw(tmp_path: Path, camera: int, suffix: str) -> None:
    drive = write_moving_drive(tmp_path, cameras=(camera,), suffix=suffix)
    entry = {"path": str(drive.relative_to(tmp_path)), "camera": f"image_{camera:02d}"}
    data = Data.model_validate({"drives": [entry]})
    assert len(load_data(tmp_path, data, SMALL, 10.0).training) == 4
    data = Data.model_validate({"drives": [entry | {"camera": f"image_{(camera + 1) % 4:02d}"}]})
    with pytest.raises(RecipeError, match="no images in"):
        load_data(tmp_path, data, SMALL, 10.0)


def test_an_odometry_sequence_gives_poses_and_travel(tmp_path: Path) -> None:
    sequence = tmp_path / "sequences" / "03"
    (sequence / "image_2").mkdir(parents=True)
    (tmp_path / "poses").mkdir()
    P = "72.15 0 61 0 0 72.15 17 0 0 0 1 0"
    (sequence / "calib.txt").write_text("".join(f"P{i}: {P}\n" for i in range(4)))
    lines = [f"1 0 0 0 0 1 0 0 0 0 1 {0.7 * i}" for i in range(5)]
    (tmp_path / "poses" / "03.txt").write_text("\n".join(lines))
    for i in range(5):
        picture = np.full((38, 124, 3), i, np.uint8)
        cv2.imwrite(str(sequence / "image_2" / f"{i:06d}.png"), picture)
    data = Data.model_validate({"drives": [{"path": "sequences/03"}], "drop_static": "auto"})
    batch = load_data(tmp_path, data, SMALL, 10.0).training.batch(4, np.random.default_rng(0))
    assert batch.known.all()
    torch.testing.assert_close(batch.travel, torch.full((4, 2), 0.7))
    expected = torch.tensor([0.07, -0.07]).expand(4, 2)
    torch.testing.assert_close(batch.poses[:, :, 2, 3], expected)


def test_a_bag_gives_poses_and_travel_at_any_size() -> None:
    data = Data.model_validate({"drives": [{"path": "street.mcap", "crop": [0, 0, 0, 0.1]}]})
    source = load_data(ROOT / "drives", data, SMALL, 10.0).training
    batch = source.batch(2, np.random.default_rng(0))
    assert batch.images.shape == (2, 3, 3, SMALL[1], SMALL[0])
    assert batch.known.all()
    torch.testing.assert_close(batch.travel, batch.poses[..., :3, 3].norm(dim=-1) * 10)


def test_a_recording_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(RecipeError, match=r"drive notes: .*neither .* nor a KITTI raw drive"):
        load_triplets(tmp_path, [Drive(path="notes")], SMALL, 10.0)


@pytest.mark.data
def test_the_real_drives_are_read_lazily(data_dir: Path) -> None:
    entry = {"path": "kitti_raw/2011_09_26/2011_09_26_drive_0039_sync", "keep_out": "depth"}
    data = Data.model_validate({"drives": [entry], "memory": 0, "workers": 2})
    source = load_data(data_dir, data, (64, 32), 10.0).training
    assert any("frame 23" in line for line in source.skipped)
    (sequence,) = source.sequences
    numbers = [[sequence.travel.frames[i].index for i in t] for t in sequence.triplets]
    assert all(b - a == c - b == 1 and 23 not in (a, b, c) for a, b, c in numbers)
    assert source.batch(2, np.random.default_rng(0)).images.std() > 0.05
