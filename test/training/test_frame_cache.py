"""Resized frames: in memory, in a cache file, or decoded each time; corrupt ones are counted."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_files import SMALL, TRAINING_NAMES, damage, write_moving_drive

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.frames import FrameStores, LazyFrames, MemoryFrames, Window, open_cached
from training.data.sources import load_data
from training.data.triplets import TripletSource, load_triplets
from training.loop.trainer import BatchesAhead
from training.recipes.base import RecipeError
from training.recipes.data import Data, Drive

DRIVE = f"kitti_raw/2011_09_26/{TRAINING_NAMES[0]}"
STORES = {"memory": {}, "lazy": {"memory": 0}, "cache": {"cache": "frames"}}


def source(root: Path, **options: object) -> TripletSource:
    data = Data.model_validate({"drives": [{"path": DRIVE}], **options})
    return load_data(root, data, SMALL, 10.0).training


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, which is the data root too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", list(STORES))
def test_where_frames_are_kept_changes_no_batch(here: Path, kind: str, workers: int) -> None:
    write_moving_drive(here, numbers=range(9))
    first, other = source(here), source(here, workers=workers, **STORES[kind])
    assert isinstance(first.sequences[0].images, MemoryFrames)
    assert other.sequences[0].images.slow == (kind == "lazy")
    for step in range(3):
        a, b = (s.batch(4, np.random.default_rng([7, step])) for s in (first, other))
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.inputs, b.inputs)


def test_the_thread_that_trains_does_not_assemble_batches(here: Path) -> None:
    """12 triplets of 640x192: at most 5 ms of the main thread's own time."""
    write_moving_drive(here, numbers=range(9))
    large = load_triplets(here, [Drive(path=DRIVE)], (640, 192), 10.0)
    spent = []
    with closing(
        BatchesAhead(lambda step: large.batch(12, np.random.default_rng([0, step])), 8)
    ) as batches:
        for step in range(8):
            start = time.thread_time()
            batch = batches.of(step)
            spent.append(time.thread_time() - start)
            assert batch.images.shape == (12, 3, 3, 192, 640)
    print(f"main thread: {1e3 * np.median(spent):.2f} ms a batch")
    assert np.median(spent) < 5e-3


def test_memory_is_shared_out_until_it_is_used_up(tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path)
    frames = open_recording(folder).frames
    stores = FrameStores(SMALL, memory=8 * SMALL[0] * SMALL[1] * 3)
    assert isinstance(stores.open(folder, frames, range(6)), MemoryFrames)
    assert isinstance(stores.open(folder, frames, range(6)), LazyFrames)
    assert isinstance(stores.open(folder, frames, range(2)), MemoryFrames)


def test_a_cache_is_written_once_and_another_size_is_another_file(tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path)
    frames, cache = open_recording(folder).frames, tmp_path / "cache"
    stored = open_cached(cache, folder, frames, Window(SMALL))
    np.testing.assert_array_equal(stored[2], Window(SMALL).apply(frames[2].image()))
    (file,) = cache.glob("*.npy")
    written = file.stat().st_mtime_ns
    again = open_cached(cache, folder, frames, Window(SMALL))
    assert file.stat().st_mtime_ns == written
    assert isinstance(again.pictures, np.memmap)
    open_cached(cache, folder, frames, Window((64, 32)))
    open_cached(cache, folder, frames, Window(SMALL, (0.0, 0.2, 0.0, 0.0)))
    rectified = [replace(frame, processing="rectified") for frame in frames]
    open_cached(cache, folder, rectified, Window(SMALL))
    assert len(list(cache.glob("*.npy"))) == 4
    assert not list(cache.glob(".*"))


def test_a_changed_image_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path)
    cache = tmp_path / "cache"
    before = open_cached(cache, folder, open_recording(folder).frames, Window(SMALL))
    write_moving_drive(tmp_path, pixels=7)
    os.utime(folder / "image_02" / "data" / f"{1:010d}.png", (1, 1))
    after = open_cached(cache, folder, open_recording(folder).frames, Window(SMALL))
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("what", ["*.npy", "*.json"])
@pytest.mark.parametrize("keep", [0, 100])
def test_a_cut_off_cache_file_is_written_again(tmp_path: Path, what: str, keep: int) -> None:
    folder = write_moving_drive(tmp_path)
    frames, cache = open_recording(folder).frames, tmp_path / "cache"
    good = np.array(open_cached(cache, folder, frames, Window(SMALL)).pictures)
    (file,) = cache.glob(what)
    file.write_bytes(file.read_bytes()[: min(keep, file.stat().st_size - 1)])
    np.testing.assert_array_equal(open_cached(cache, folder, frames, Window(SMALL)).pictures, good)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path)
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(RecipeError, match=r"data\.cache: .*cannot be written.*leave data\.cache"):
        open_cached(tmp_path / "cache", folder, open_recording(folder).frames, Window(SMALL))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_moving_drive(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecipeError, match="No space left on device"):
        open_cached(tmp_path / "cache", folder, open_recording(folder).frames, Window(SMALL))
    assert not list((tmp_path / "cache").iterdir())


# --- frames that turn out to be corrupt -----------------------------------------------------------


@pytest.mark.parametrize("kind", list(STORES))
def test_a_corrupt_frame_is_named_and_never_shown(here: Path, kind: str) -> None:
    drive = write_moving_drive(here, numbers=range(12))
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    found = source(here, **STORES[kind])
    with pytest.raises(CorruptFrameError):
        open_recording(drive).frames[5].image()
    batches = [found.batch(8, np.random.default_rng(i)).images for i in range(4)]
    assert all(torch.isfinite(images).all() and images.std() > 0 for images in batches)
    assert len([line for line in found.skipped if f"{5:010d}" in line]) == 1
    assert len(found) == (10 if kind == "lazy" else 7)


def test_what_replaces_a_corrupt_triplet_depends_on_the_draw_alone(here: Path) -> None:
    drive = write_moving_drive(here, numbers=range(12))
    whole = source(here, memory=0)
    expected = [whole.batch(6, np.random.default_rng(i)) for i in range(4)]
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    first, second = source(here, memory=0), source(here, memory=0, workers=2)
    mine = [first.batch(6, np.random.default_rng(i)).inputs for i in range(4)]
    # The other process has begun later, and knows of no corrupt frame yet.
    for i in (3, 2):
        assert torch.equal(second.batch(6, np.random.default_rng(i)).inputs, mine[i])
    same = [
        torch.equal(a, b)
        for batch, inputs in zip(expected, mine, strict=True)
        for a, b in zip(batch.inputs, inputs, strict=True)
    ]
    assert 0 < sum(same) < len(same), "the other samples of a batch stay as they were"


@pytest.mark.parametrize("kind", list(STORES))
def test_many_corrupt_frames_are_an_error(here: Path, kind: str) -> None:
    drive = write_moving_drive(here, numbers=range(40), pixels=1)
    for number in range(3, 37, 3):
        damage(drive / "image_02" / "data" / f"{number:010d}.png")
    with pytest.raises(RecipeError, match="cannot be read, more than 5%"):
        found = source(here, **STORES[kind])
        for i in range(50):
            found.batch(8, np.random.default_rng(i))


def test_a_drive_without_a_readable_frame_ends_the_search(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(3))
    damage(drive / "image_02" / "data" / f"{1:010d}.png")
    found = source(tmp_path, memory=0)
    with pytest.raises(RecipeError, match="cannot be read"):
        found.batch(2, np.random.default_rng(0))


def test_crop_is_in_shares_and_moves_the_intrinsics(tmp_path: Path) -> None:
    write_moving_drive(tmp_path)
    crop = Drive(path=DRIVE, crop=(0.25, 0.0, 0.25, 0.5))
    data = Data(drives=(crop,))
    (sequence,) = load_data(tmp_path, data, (62, 38), 10.0).training.sequences
    np.testing.assert_allclose(sequence.K, [[72.15, 0, 30], [0, 144.3, 34], [0, 0, 1]])
    image = open_recording(tmp_path / DRIVE).frames[1].image()
    narrow = sequence.picture(1)
    np.testing.assert_allclose(narrow[0], image[0, 31:93], atol=20)
