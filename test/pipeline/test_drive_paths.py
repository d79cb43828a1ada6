"""Where a recipe's drives lie: below the data root, else below the working directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_files import SMALL, TEST_NAME, TRAINING_NAMES, write_moving_drive

from training.data.drives import drive_path
from training.data.sources import load_data, plan_data
from training.data.splits import drive_of
from training.data.triplets import TripletSource, load_triplets
from training.recipes.base import RecipeError
from training.recipes.data import Data

STREET = Path(__file__).resolve().parents[2] / "drives" / "street.mcap"
DRIVE = f"kitti_raw/2011_09_26/{TRAINING_NAMES[0]}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside the data root."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def load(root: Path, path: str, **values: Any) -> TripletSource:
    data = Data.model_validate({"drives": [{"path": path, **values}]})
    return load_data(root, data, SMALL, 10.0).training


def test_the_data_root_comes_first(root: Path, here: Path) -> None:
    write_moving_drive(root, numbers=range(6))
    assert len(load(root, DRIVE)) == 4
    write_moving_drive(here, numbers=range(9))
    assert len(load(root, DRIVE)) == 4
    shutil.rmtree(root / "kitti_raw")
    assert len(load(root, DRIVE)) == 7
    assert len(load_triplets(root, plan_drives(DRIVE), SMALL, 10.0)) == 7


def plan_drives(path: str) -> Any:
    return Data.model_validate({"drives": [{"path": path}]}).drives


def test_an_absolute_path_is_what_it_is(root: Path, here: Path, tmp_path: Path) -> None:
    folder = write_moving_drive(tmp_path / "elsewhere")
    assert len(load(root, str(folder))) == 4
    assert drive_path(root, str(folder)) == folder
    missing = tmp_path / "elsewhere" / "nothing"
    with pytest.raises(RecipeError) as caught:
        load(root, str(missing))
    assert str(caught.value) == f"data.drives.0.path: {missing} does not exist"


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_pattern_finds_drives_in_the_working_directory(root: Path, here: Path, kind: str) -> None:
    for name in TRAINING_NAMES:
        write_moving_drive(here, name)
    pattern = "kitti_raw/*/*_sync"
    pattern = str(here / pattern) if kind == "absolute" else pattern
    found = load(root, pattern)
    assert [sequence.name for sequence in found.sequences] == list(TRAINING_NAMES)
    write_moving_drive(root, TRAINING_NAMES[1])
    expected = TRAINING_NAMES if kind == "absolute" else TRAINING_NAMES[1:]
    assert [s.name for s in load(root, pattern).sequences] == list(expected)


@pytest.mark.parametrize("path", ["runs/prior/drive_201.mcap", "runs/prior/drive_*.mcap"])
def test_what_lies_nowhere_is_said_with_both_places(root: Path, here: Path, path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_data(root, Data.model_validate({"drives": [{"path": path}]}))
    for place in ("data.drives.0.path", str(root), str(here), "drive_"):
        assert place in str(caught.value)


@pytest.mark.parametrize("path", ["named", "pattern"])
def test_test_drives_are_refused_wherever_they_lie(root: Path, here: Path, path: str) -> None:
    write_moving_drive(here, TEST_NAME)
    write_moving_drive(here, TRAINING_NAMES[0])
    if path == "named":
        with pytest.raises(RecipeError, match="is test data"):
            load(root, f"kitti_raw/2011_09_26/{TEST_NAME}")
    else:
        found = load(root, "kitti_raw/*/*_sync")
        assert [sequence.name for sequence in found.sequences] == [TRAINING_NAMES[0]]
        assert any(TEST_NAME[:21] in line for line in found.skipped)


# --- rendered bags --------------------------------------------------------------------------------


def test_a_rendered_bag_of_the_working_directory_trains_with_its_motions(
    root: Path, here: Path
) -> None:
    """Its frames have exact depth, and are to be trained on all the same."""
    bag = here / "runs" / "prior" / "drive_201.mcap"
    bag.parent.mkdir(parents=True)
    bag.symlink_to(STREET)
    assert drive_of(bag) is None
    for path in ("runs/prior/drive_201.mcap", "runs/prior/drive_*.mcap"):
        data = Data.model_validate({"drives": [{"path": path}], "memory": 0})
        assert len(plan_data(root, data).training) == 1
    source = load_data(root, data, SMALL, 10.0).training
    (sequence,) = source.sequences
    assert all(frame.has_depth for frame in sequence.travel.frames)
    assert len(source) == len(sequence.travel.frames) - 2
    assert not source.skipped
    batch = source.batch(4, np.random.default_rng(0))
    assert batch.known.all()
    assert batch.travel.isfinite().all()
    moved = batch.poses[..., :3, 3].norm(dim=-1) * 10
    torch.testing.assert_close(moved, batch.travel, rtol=1e-4, atol=1e-5)


def test_a_bag_and_a_folder_of_different_sizes_make_one_batch(root: Path, here: Path) -> None:
    write_moving_drive(root)
    (here / "street.mcap").symlink_to(STREET)
    drives = [{"path": DRIVE}, {"path": "street.mcap", "stride": 2}]
    data = Data.model_validate({"drives": drives, "memory": 0})
    source = load_data(root, data, SMALL, 10.0, (120, 48)).training
    batch = source.batch(12, np.random.default_rng(0))
    assert batch.teacher_images is not None
    assert batch.teacher_images.shape == (12, 3, 3, 48, 120)
    assert torch.equal(batch.known, batch.drive == 1)
    assert {0, 1} == set(batch.drive.tolist())
