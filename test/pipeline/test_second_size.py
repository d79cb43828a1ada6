"""A second, larger picture of every frame: the same frames and draws, nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_files import SMALL, TRAINING_NAMES, damage, write_moving_drive

from depth_prior_ros.recordings.base import CorruptFrameError, Frame
from training.data.drives import add_teacher_images
from training.data.frames import FrameStores, LastImage, LazyFrames, MemoryFrames, Window
from training.data.sources import LoadedData, load_data
from training.data.triplets import TripletBatch, TripletSource, load_triplets
from training.losses.views import Views
from training.recipes.base import RecipeError
from training.recipes.data import Data, Drive

ROOT = Path(__file__).resolve().parents[2]
DRIVES = tuple(f"kitti_raw/2011_09_26/{name}" for name in TRAINING_NAMES)
LARGE = (2 * SMALL[0], 2 * SMALL[1])
STORES: dict[str, dict[str, Any]] = {
    "memory": {},
    "lazy": {"memory": 0},
    "cache": {"cache": "frames"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, which is the data root too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(
    root: Path, large: tuple[int, int] | None = LARGE, drives: int = 1, **options: Any
) -> TripletSource:
    entries = [{"path": path} for path in DRIVES[:drives]]
    data = Data.model_validate({"drives": entries, **options})
    return load_data(root, data, SMALL, 10.0, large).training


def write_two(root: Path) -> None:
    write_moving_drive(root, TRAINING_NAMES[0], range(9))
    write_moving_drive(root, TRAINING_NAMES[1], range(7))


def assert_same(a: TripletBatch, b: TripletBatch) -> None:
    for name, value in vars(a).items():
        if value is None:
            assert getattr(b, name) is None or name in ("teacher_images", "teacher_K"), name
        elif name not in ("teacher_images", "teacher_K", "travel"):
            assert torch.equal(value, getattr(b, name)), name
    torch.testing.assert_close(a.travel, b.travel, equal_nan=True)


def assert_teacher_images_fit(batch: TripletBatch) -> None:
    """Both sizes show the same frames in the same order, mirrored alike."""
    assert batch.teacher_images is not None
    smaller = F.avg_pool2d(batch.teacher_images.flatten(0, 1), 2)
    assert (smaller - batch.images.flatten(0, 1)).abs().max() < 2.5 / 255


def recorded(source: TripletSource, batch: TripletBatch, size: tuple[int, int]) -> torch.Tensor:
    """What a batch should show by its numbers, from the recordings."""
    rows = []
    for drive, triplet, mirrored in zip(
        batch.drive.tolist(), batch.triplet.tolist(), batch.mirrored.tolist(), strict=True
    ):
        sequence = source.sequences[drive]
        pictures = [
            Window(size).apply(sequence.travel.frames[i].image())[:, :: -1 if mirrored else 1]
            for i in sequence.triplets[triplet]
        ]
        rows.append(np.stack(pictures).astype(np.float32) / np.float32(255))
    return torch.from_numpy(np.stack(rows)).permute(0, 1, 4, 2, 3)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", list(STORES))
def test_a_second_size_changes_no_draw_and_shows_the_same(
    here: Path, kind: str, workers: int
) -> None:
    write_two(here)
    plain = load(here, None, drives=2)
    both = load(here, drives=2, workers=workers, **STORES[kind])
    for step in range(3):
        one, other = (np.random.default_rng([7, step]) for _ in range(2))
        a, b = plain.batch(6, one), both.batch(6, other)
        assert one.random() == other.random()
        assert_same(a, b)
        assert a.teacher_images is None
        assert a.teacher_K is None
        assert b.teacher_images is not None
        torch.testing.assert_close(b.images, recorded(both, b, SMALL))
        torch.testing.assert_close(b.teacher_images, recorded(both, b, LARGE))
    assert b.mirrored.any()
    assert not b.mirrored.all()
    assert set(b.drive.tolist()) == {0, 1}


def test_second_intrinsics_are_those_of_its_pixels(tmp_path: Path) -> None:
    write_two(tmp_path)
    batch = load(tmp_path, (150, 90), drives=2).batch(12, np.random.default_rng(0))
    assert batch.teacher_K is not None
    scale = torch.tensor([[150 / 124], [90 / 38], [1]])
    K = scale * torch.tensor([[72.15, 0, 61], [0, 72.15, 17], [0, 0, 1]])
    mirrored = K.clone()
    mirrored[0, 2] = 149 - K[0, 2]
    for flipped, found in zip(batch.mirrored, batch.teacher_K, strict=True):
        torch.testing.assert_close(found, mirrored if flipped else K)


def test_crop_is_of_both_sizes(tmp_path: Path) -> None:
    write_moving_drive(tmp_path)
    crop = Drive(path=DRIVES[0], crop=(0.25, 0.0, 0.25, 0.5))
    source = load_triplets(tmp_path, [crop], (31, 19), 10.0, (62, 38))
    batch = source.batch(4, np.random.default_rng(1))
    assert_teacher_images_fit(batch)
    (sequence,) = source.sequences
    np.testing.assert_allclose(sequence.teacher_K, [[72.15, 0, 30], [0, 144.3, 34], [0, 0, 1]])


def test_a_part_and_a_batch_elsewhere_are_whole(tmp_path: Path) -> None:
    write_moving_drive(tmp_path)
    source = load(tmp_path)
    whole = source.batch(6, np.random.default_rng(5))
    part = source.batch(6, np.random.default_rng(5), slice(1, 6, 2))
    told = {name: value for name, value in vars(part).items() if value is not None}
    for name, value in told.items():
        expected = getattr(whole, name)[1::2]
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
    moved = whole.to(torch.device("meta"))
    assert all(getattr(moved, name).device.type == "meta" for name in told)
    plain = load(tmp_path, None).batch(2, np.random.default_rng(5)).to(torch.device("meta"))
    assert plain.teacher_images is None
    assert plain.drive.device.type == "meta"


def test_a_batch_made_by_hand_names_no_triplet() -> None:
    images = torch.zeros(3, 3, 3, 2, 2)
    known = torch.zeros(3, dtype=torch.bool)
    batch = TripletBatch(images, images, torch.zeros(3, 3, 3), torch.zeros(3, 2, 4, 4), known)
    assert batch.drive.tolist() == batch.triplet.tolist() == [-1, -1, -1]
    assert batch.drive.dtype == batch.triplet.dtype == torch.int64
    assert batch.mirrored.tolist() == [False, False, False]
    assert batch.teacher_images is None


# --- single triplets ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(STORES))
def test_every_triplet_by_its_number_is_as_recorded(here: Path, kind: str) -> None:
    write_two(here)
    source = load(here, drives=2, **STORES[kind])
    assert source.index == [(0, i) for i in range(7)] + [(1, i) for i in range(5)]
    for drive, triplet in source.index:
        one = source.triplet(drive, triplet)
        assert (one.drive.item(), one.triplet.item(), one.mirrored.item()) == (drive, triplet, 0)
        assert one.teacher_images is not None
        torch.testing.assert_close(one.images, recorded(source, one, SMALL))
        torch.testing.assert_close(one.teacher_images, recorded(source, one, LARGE))
        assert torch.equal(one.inputs, one.images)


def test_a_drawn_sample_is_the_triplet_that_it_names(tmp_path: Path) -> None:
    write_moving_drive(tmp_path, speed=8.0)
    source = load(tmp_path)
    batch = source.batch(8, np.random.default_rng(2))
    for i in range(8):
        one = source.triplet(int(batch.drive[i]), int(batch.triplet[i]))
        flip = (lambda t: t.flip(-1)) if batch.mirrored[i] else (lambda t: t)
        assert torch.equal(batch.images[i], flip(one.images[0]))
        assert torch.equal(batch.travel[i], one.travel[0])


def test_without_the_second_size_nothing_of_it_is_read(tmp_path: Path) -> None:
    write_moving_drive(tmp_path)
    source = load(tmp_path, memory=0)
    light = source.without_teacher_images()
    store = source.sequences[0].teacher_images
    assert isinstance(store, LazyFrames)
    store.read = lambda position: pytest.fail("read")
    batch = light.batch(4, np.random.default_rng(3))
    assert batch.teacher_images is None
    assert light.index == source.index
    assert not light.has_teacher_images
    assert source.has_teacher_images


# --- where the pictures are kept ------------------------------------------------------------------


def test_an_image_is_decoded_once_for_both_sizes(tmp_path: Path) -> None:
    write_moving_drive(tmp_path, numbers=range(9))
    frames = load(tmp_path).sequences[0].travel.frames
    asked: list[int] = []
    once = LastImage().decode_once([_counting(frame, asked) for frame in frames])
    for window in (Window(SMALL), Window(LARGE), Window(SMALL)):
        expected = window.apply(frames[3].image())
        np.testing.assert_array_equal(window.apply(once[3].image()), expected)
    assert asked == [3]
    once[4].image()
    once[3].image()
    assert asked == [3, 4, 3]


def _counting(frame: Frame, asked: list[int]) -> Frame:
    def image() -> np.ndarray:
        asked.append(frame.index)
        return frame.image()

    return Frame(frame.index, frame.stamp_ns, frame.camera, image)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_both_sizes_decodes_a_frame_once(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depth_prior_ros.recordings import image_files

    asked: list[Path] = []
    read = image_files.read_image

    def counted(path: Path, *rest: Any) -> np.ndarray:
        asked.append(path)
        return read(path, *rest)

    monkeypatch.setattr(image_files, "read_image", counted)
    write_moving_drive(tmp_path, numbers=range(9))
    source = load(tmp_path, memory=0, workers=workers)
    assert not asked
    source.batch(1, np.random.default_rng(4))
    assert len(asked) == 3


def test_the_second_size_gets_the_memory_that_is_left(tmp_path: Path) -> None:
    write_two(tmp_path)
    large = (620, 190)  # 9 frames: 3 MiB; 7 frames: 2.4 MiB
    for memory, first, second in ((8, True, True), (4, True, False), (1, False, False)):
        source = load(tmp_path, large, drives=2, memory=memory)
        assert all(isinstance(s.images, MemoryFrames) for s in source.sequences)
        found = [isinstance(s.teacher_images, MemoryFrames) for s in source.sequences]
        assert found == [first, second]


def test_both_sizes_have_their_file_in_the_cache(here: Path) -> None:
    write_moving_drive(here)
    load(here, cache="frames")
    files = {file.name.split("_")[-2] for file in (here / "frames").glob("*.npy")}
    assert files == {"96x32", "192x64"}
    written = {file: file.stat().st_mtime_ns for file in (here / "frames").iterdir()}
    load(here, cache="frames")
    assert written == {file: file.stat().st_mtime_ns for file in (here / "frames").iterdir()}


def test_the_same_size_twice_is_one_store(tmp_path: Path) -> None:
    write_moving_drive(tmp_path)
    source = load(tmp_path, SMALL)
    assert source.sequences[0].teacher_images is source.sequences[0].images
    batch = source.batch(3, np.random.default_rng(0))
    assert batch.teacher_images is not None
    assert torch.equal(batch.teacher_images, batch.images)


def test_held_out_triplets_have_one_size(tmp_path: Path) -> None:
    write_two(tmp_path)
    data = Data.model_validate(
        {"kitti_raw": {"cameras": [2], "drop_static": "none"}, "split": {"validation_share": 0.4}}
    )
    loaded: LoadedData = load_data(tmp_path, data, SMALL, 10.0, LARGE)
    assert loaded.training.has_teacher_images
    assert loaded.validation is not None
    assert loaded.validation.batch(2, np.random.default_rng(0)).teacher_images is None


# --- corrupt frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", list(STORES))
def test_what_replaces_a_corrupt_triplet_is_the_same_in_both_sizes(
    here: Path, kind: str, workers: int
) -> None:
    drive = write_moving_drive(here, numbers=range(12))
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    plain = load(here, None, **STORES[kind])
    both = load(here, workers=workers, **STORES[kind])
    for step in range(4):
        batch = both.batch(8, np.random.default_rng(step))
        assert_same(plain.batch(8, np.random.default_rng(step)), batch)
        assert_teacher_images_fit(batch)
        torch.testing.assert_close(batch.images, recorded(both, batch, SMALL))
        shown = {i for n in batch.triplet.tolist() for i in both.sequences[0].triplets[n]}
        assert 5 not in shown
    assert len([line for line in both.skipped if f"{5:010d}" in line]) == 1


def test_a_frame_that_only_the_second_size_cannot_read_is_replaced_in_both(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(12))
    source = load(tmp_path, (620, 190), memory=1)
    assert isinstance(source.sequences[0].images, MemoryFrames)
    assert isinstance(source.sequences[0].teacher_images, LazyFrames)
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    expected = load(tmp_path, None, memory=0)
    for step in range(4):
        batch = source.batch(8, np.random.default_rng(step))
        assert_same(expected.batch(8, np.random.default_rng(step)), batch)
    assert len([line for line in source.skipped if f"{5:010d}" in line]) == 1


def test_frames_found_corrupt_while_the_second_size_is_read_lose_their_triplets(
    here: Path,
) -> None:
    drive = write_moving_drive(here, numbers=range(12))
    data = Data.model_validate({"drives": [{"path": DRIVES[0]}]})
    source = load_data(here, data, SMALL, 10.0).training
    (sequence,) = source.sequences
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    left_out = add_teacher_images(sequence, data.drives[0], FrameStores(LARGE))
    assert len(left_out) == 1
    assert f"{5:010d}" in left_out[0]
    assert len(sequence.triplets) == 7
    assert all(5 not in triplet for triplet in sequence.triplets)


def test_a_corrupt_triplet_is_named_and_not_replaced_by_number(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(12))
    damage(drive / "image_02" / "data" / f"{5:010d}.png")
    source = load(tmp_path, memory=0)
    readable = 0
    for drive_number, triplet in source.index:
        try:
            readable += len(source.triplet(drive_number, triplet).images)
        except CorruptFrameError as error:
            assert f"{5:010d}" in str(error)
    assert readable == 7
    assert len([line for line in source.skipped if f"{5:010d}" in line]) == 1


def test_many_frames_that_the_second_size_cannot_read_are_an_error(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(40), pixels=1)
    source = load(tmp_path, (620, 190), memory=1)
    for number in range(3, 37, 3):
        damage(drive / "image_02" / "data" / f"{number:010d}.png")
    with pytest.raises(RecipeError, match="cannot be read, more than 5%"):
        for i in range(50):
            source.batch(8, np.random.default_rng(i))


# --- synthetic drives and real ones ---------------------------------------------------------------


def test_poses_and_intrinsics_of_a_rendered_bag_fit_its_exact_depth() -> None:
    """With the true depth, the neighbours rebuild the frame at either size."""
    data = Data.model_validate({"drives": [{"path": "drives/street.mcap"}], "memory": 0})
    source = load_data(ROOT, data, (160, 48), 10.0, (320, 96)).training
    (street,) = source.sequences
    far = [street.travels(frames)[0] for frames in street.triplets]
    batch = source.triplet(0, int(np.argmax(far)))  # where the camera moves most
    assert batch.known.all()
    assert batch.teacher_images is not None
    assert batch.teacher_K is not None
    middle = street.triplets[int(batch.triplet)][1]
    truth = torch.from_numpy(street.travel.frames[middle].depth())[None, None] / 10.0
    for images, K in ((batch.images, batch.K), (batch.teacher_images, batch.teacher_K)):
        depth = F.interpolate(truth, images.shape[-2:], mode="nearest-exact")
        before, target, after = images.unbind(1)
        sources, seen = torch.stack([before, after]), (depth > 0).expand_as(target)
        views = Views.of(sources, K, batch.poses.transpose(0, 1))
        rebuilt = views.rebuild(torch.where(depth > 0, depth, torch.full_like(depth, 100.0)))
        error = (rebuilt - target).abs().amin(0)[seen].mean()
        still = (sources - target).abs().amin(0)[seen].mean()
        assert error < 0.5 * still


@pytest.mark.data
def test_real_frames_at_two_sizes(data_dir: Path) -> None:
    entry = {"path": "kitti_raw/2011_09_26/2011_09_26_drive_0039_sync"}
    data = Data.model_validate({"drives": [entry], "memory": 0, "workers": 2})
    source = load_data(data_dir, data, SMALL, 10.0, LARGE).training
    batch = source.batch(3, np.random.default_rng(0))
    assert_teacher_images_fit(batch)
    assert batch.teacher_K is not None
    plain = ~batch.mirrored
    torch.testing.assert_close(batch.teacher_K[plain, :2], 2 * batch.K[plain, :2])
