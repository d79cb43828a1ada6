"""Image-independent depth maps: by hand, and on the real data as measured before."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle
from kitti_files import TEST_DRIVE, TRAINING_DRIVE, write_drive
from tiny_trunk import TINY_TRUNK
from torch import nn

from depth_prior_ros.bundle import Bundle, BundleError, load_bundle
from depth_prior_ros.bundle.baselines import (
    LIDAR_PIXEL,
    LIDAR_ROW,
    OWN_MEAN,
    add_baselines,
    as_depth,
    read_baselines,
)
from depth_prior_ros.evaluation.evaluate import evaluate
from depth_prior_ros.evaluation.predictors import ImageIndependentMap
from training.evaluation import baselines
from training.evaluation.sets import EvaluationError
from training.stages.validation import cached_frames


def test_means_of_log_depth_by_hand():
    """Three rows of four pixels; row 0 has no return, pixels (1, 2) and (2, 0) have."""
    first, second = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)
    first[1, 2], second[1, 2] = 2.0, 8.0  # geometric mean 4
    first[2, 0], first[2, 3] = 3.0, 27.0  # geometric mean of the row 9
    means = baselines.lidar_means([first, second], spread=0)
    np.testing.assert_allclose(np.exp(means.row), [4, 4, 9], rtol=1e-6)
    expected = [[4, 4, 4, 4], [4, 4, 4, 4], [3, 9, 9, 27]]
    np.testing.assert_allclose(np.exp(means.pixel), expected, rtol=1e-6)
    assert means.frames == 2


def test_every_return_weighs_the_same_per_row():
    """Not every pixel: three returns of one pixel count three times."""
    maps = np.zeros((3, 1, 2), np.float32)
    maps[:, 0, 0] = 2.0
    maps[0, 0, 1] = 32.0
    means = baselines.lidar_means(maps, spread=0)
    np.testing.assert_allclose(np.exp(means.row), [4.0], rtol=1e-6)  # (2 * 2 * 2 * 32) ** (1 / 4)


def test_spreading_keeps_a_constant_and_fills_by_rows_far_away():
    depth = np.zeros((60, 200), np.float32)
    depth[30, 20], depth[50, 20] = 7.0, 11.0
    means = baselines.lidar_means([depth], spread=2.0)
    np.testing.assert_allclose(np.exp(means.pixel[28:33, 18:23]), 7.0, rtol=1e-5)
    np.testing.assert_allclose(np.exp(means.pixel[:40, 150]), 7.0, rtol=1e-5)
    np.testing.assert_allclose(np.exp(means.pixel[59, 150]), 11.0, rtol=1e-5)


def test_nothing_to_average_is_an_error():
    with pytest.raises(EvaluationError, match="no LiDAR depth"):
        baselines.lidar_means([np.zeros((3, 4), np.float32)])
    with pytest.raises(EvaluationError, match="no LiDAR depth"):
        baselines.lidar_means([])
    with pytest.raises(EvaluationError, match="cannot be averaged"):
        baselines.lidar_means([np.ones((3, 4), np.float32), np.ones((4, 4), np.float32)])


def test_a_damaged_lidar_frame_is_left_out_and_named(tmp_path: Path):
    drive = write_drive(tmp_path, TRAINING_DRIVE, range(3), depth=10.0)
    broken = drive / "proj_depth" / "velodyne_raw" / "image_02" / f"{1:010d}.png"
    broken.write_bytes(broken.read_bytes()[:40])
    means = baselines.kitti_lidar_means(tmp_path)
    assert means is not None and means.frames == 2
    assert len(means.skipped) == 1 and broken.name in means.skipped[0]


class Brightness(nn.Module):
    """Disparity = mean brightness of the image: 0 gives 0.01, 1 gives 10 of inverse depth."""

    def forward(self, image: torch.Tensor, prior: object = None) -> SimpleNamespace:
        return SimpleNamespace(disparity={0: image.mean(1, keepdim=True)})


def fake_bundle(data: dict | None = None) -> SimpleNamespace:
    provenance = SimpleNamespace(recipe={"data": data} if data is not None else {})
    manifest = SimpleNamespace(input_size=(96, 32), provenance=provenance)
    return SimpleNamespace(manifest=manifest, student=Brightness, has=lambda part: False)


class Plain:
    """A recording of flat grey images."""

    def __init__(self, *greys: int) -> None:
        self.frames = [SimpleNamespace(image=lambda g=g: np.full((37, 124, 3), g)) for g in greys]
        for frame in self.frames:
            frame.image = lambda load=frame.image: load().astype(np.uint8)
        self.skipped: list = []


def test_own_mean_is_the_mean_inverse_depth_of_every_strided_frame():
    recordings = [Plain(0, 255, 51), Plain(102)]
    mean = baselines.own_mean(fake_bundle(), recordings, stride=2)
    # Frames 0 and 2 of the first, 0 of the second: disparity 0, 0.2 and 0.4.
    assert mean.shape == (32, 96) and mean.dtype == np.float32
    np.testing.assert_allclose(mean, 0.01 + 9.99 * 0.2, rtol=1e-5)


def test_own_mean_without_frames_is_an_error():
    with pytest.raises(EvaluationError, match="no training frame"):
        baselines.own_mean(fake_bundle(), [])


def test_training_drives_come_from_the_bundles_own_recipe(tmp_path: Path):
    write_drive(tmp_path, TRAINING_DRIVE, range(2))
    other = write_drive(tmp_path, "2011_09_28_drive_0001_sync", range(2))
    (other / "calib_cam_to_cam.txt").write_text("P_rect_02: 240 0 203 0 0 240 57 0 0 0 1 0\n")
    drives = [{"path": str(other.relative_to(tmp_path))}, {"path": "not/there"}]
    named = baselines.training_recordings(tmp_path, fake_bundle({"drives": drives}))
    assert [r.name for r in named] == [other.name]
    usual = baselines.training_recordings(tmp_path, fake_bundle())
    assert [r.name for r in usual] == [TRAINING_DRIVE]


@pytest.mark.slow
def test_maps_travel_with_the_bundle(tmp_path: Path):
    """Written at input size, verified, listed with their hash, and read back."""
    made = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
    assert read_baselines(made) == {}
    write_drive(tmp_path, TRAINING_DRIVE, range(3), depth=12.5)
    write_drive(tmp_path, TEST_DRIVE, range(1), depth=70.0)  # must not matter
    written = baselines.write_baselines(made.path, tmp_path, stride=1)
    assert "baselines.safetensors" in written.manifest.files
    maps = read_baselines(load_bundle(made.path))
    assert set(maps) == {OWN_MEAN, LIDAR_ROW, LIDAR_PIXEL}
    assert maps[OWN_MEAN].shape == maps[LIDAR_PIXEL].shape == (32, 96)
    np.testing.assert_allclose(np.exp(maps[LIDAR_ROW]), np.full(32, 12.5), rtol=2e-3)
    np.testing.assert_allclose(as_depth(LIDAR_PIXEL, maps[LIDAR_PIXEL], 96), 12.5, rtol=2e-3)
    assert as_depth(LIDAR_ROW, maps[LIDAR_ROW], 96).shape == (32, 96)
    recordings = baselines.training_recordings(tmp_path)
    np.testing.assert_allclose(maps[OWN_MEAN], baselines.own_mean(made, recordings, 1), rtol=2e-3)
    # The weights are as they were, and nothing is left beside the bundle.
    assert (
        written.manifest.files["student.safetensors"] == made.manifest.files["student.safetensors"]
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_maps_that_take_the_place_of_others_do_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill between the maps and the manifest that lists them would leave a damaged bundle."""
    made = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
    add_baselines(made, {OWN_MEAN: np.full((32, 96), 0.5, np.float32)})
    (made.path / "note.txt").write_text("mine")
    places: list[Path] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        if Path(target) == made.path or Path(target).parent == made.path:
            places.append(Path(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    monkeypatch.setattr(Path, "replace", watched)
    add_baselines(load_bundle(made.path), {OWN_MEAN: np.full((32, 96), 0.25, np.float32)})
    monkeypatch.undo()
    assert places == [made.path]
    assert (read_baselines(load_bundle(made.path))[OWN_MEAN] == 0.25).all()
    assert (made.path / "note.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_maps_on_a_full_disk_leave_the_bundle_as_it_was(tmp_path: Path):
    """Files may grow to a hundred thousand bytes only."""
    made = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        with pytest.raises(BundleError, match=r"baselines\.safetensors: cannot be written"):
            add_baselines(made, {OWN_MEAN: np.full((32, 96), 0.5, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert load_bundle(made.path).manifest == made.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_altered_maps_are_refused(tmp_path: Path):
    made = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
    add_baselines(made, {OWN_MEAN: np.full((32, 96), 0.5, np.float32)})
    path = made.path / "baselines.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"baselines\.safetensors.*altered"):
        load_bundle(made.path)


@pytest.mark.parametrize(
    ("name", "values", "cause"),
    [
        ("mean", np.ones((32, 96)), "unknown map mean"),
        (OWN_MEAN, np.ones((96, 32)), "shape"),
        (LIDAR_ROW, np.ones((32, 96)), "shape"),
        (LIDAR_PIXEL, np.full((32, 96), np.nan), "not finite"),
        (OWN_MEAN, np.full((32, 96), 1e6), "not finite"),
    ],
)
def test_maps_that_no_bundle_can_have_change_nothing(bundle: Bundle, name, values, cause):
    with pytest.raises(BundleError, match=cause):
        add_baselines(bundle, {name: values})
    assert load_bundle(bundle.path).manifest == bundle.manifest


@pytest.mark.data
@pytest.mark.slow
def test_lidar_means_reproduce_what_was_measured_before(data_dir: Path):
    """AbsRel after median scaling: per row, per pixel and constant, on both sets."""
    means = baselines.kitti_lidar_means(data_dir)
    assert means is not None and means.frames == 58
    height, width = means.pixel.shape
    maps = {
        "row": np.exp(np.repeat(means.row[:, None], width, axis=1)),
        "pixel": np.exp(means.pixel),
        "constant": np.ones((height, width), np.float32),
    }
    measured: dict[str, dict[str, float]] = {name: {} for name in maps}
    for one in ("kitti2015", "0052"):
        protocol, frames = cached_frames(one, data_dir, (320, 96))
        for name, depth in maps.items():
            found = evaluate(ImageIndependentMap(depth), frames, protocol)
            measured[name][one] = float(np.mean([frame.errors.abs_rel for frame in found]))
    expected = {
        "row": {"kitti2015": 0.242, "0052": 0.390},
        "pixel": {"kitti2015": 0.280, "0052": 0.302},
        "constant": {"kitti2015": 0.428, "0052": 0.348},
    }
    for name, figures in expected.items():
        assert measured[name] == pytest.approx(figures, abs=0.003)
