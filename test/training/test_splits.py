"""Who trains, who validates, who tests: split files, the Eigen drives, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from training_files import SMALL, TEST_NAME, TRAINING_NAMES, write_moving_drive

from training.data.sources import LoadedData, load_data, plan_data
from training.data.splits import (
    CameraView,
    drive_of,
    eigen_test,
    hold_out,
    read_drives,
    read_split,
)
from training.data.triplets import TripletSource
from training.recipes.base import RecipeError
from training.recipes.data import Data

LINE = "2011_09_26/2011_09_26_drive_0001_sync"
KITTI = {"kitti_raw": {"cameras": [2, 3]}}


def load(root: Path, **values: Any) -> LoadedData:
    return load_data(root, Data.model_validate(values), SMALL, 10.0)


def names(loaded: LoadedData) -> list[str]:
    return [sequence.name for sequence in loaded.training.sequences]


def split_file(folder: Path, *lines: str, name: str = "train.txt") -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def lines_of(frames: Mapping[CameraView, Iterable[int]]) -> list[str]:
    return [
        f"{view.date}/{view.date}_drive_{view.number}_sync {frame} {'01lr'[view.camera]}"
        for view in sorted(frames)
        for frame in frames[view]
    ]


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """Two training drives of two cameras and a test drive."""
    write_moving_drive(tmp_path, TRAINING_NAMES[0], range(9), cameras=(2, 3), speed=8.0)
    write_moving_drive(tmp_path, TRAINING_NAMES[1], range(6), cameras=(2,), speed=8.0)
    write_moving_drive(tmp_path, TEST_NAME, range(6), cameras=(2, 3), speed=8.0)
    return tmp_path


# --- split files ----------------------------------------------------------------------------------


def test_the_peers_lines_are_read(tmp_path: Path) -> None:
    path = split_file(tmp_path, f"{LINE} 12 l", f"{LINE} 0000000013 r", "", "# note", f"{LINE} 7 l")
    assert read_split(Path(path)) == {
        CameraView("2011_09_26", "0001", 2): {7, 12},
        CameraView("2011_09_26", "0001", 3): {13},
    }
    assert read_drives(Path(path)) == {("2011_09_26", "0001")}


numbers = st.integers(0, 9999).map("{:04d}".format)
views = st.builds(CameraView, st.just("2011_09_26"), numbers, st.integers(0, 3))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(views, st.frozensets(st.integers(0, 9999), min_size=1), min_size=1))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, frames: dict[CameraView, frozenset[int]]
) -> None:
    folder = tmp_path_factory.mktemp("split")
    assert read_split(Path(split_file(folder, *lines_of(frames)))) == frames


@pytest.mark.parametrize(
    "line", ["drive 12 l", f"{LINE} 12", f"{LINE} 12 x", f"{LINE} -1 l", f"{LINE} 12 l 4"]
)
def test_another_form_is_quoted_with_its_line(tmp_path: Path, line: str) -> None:
    path = Path(split_file(tmp_path, f"{LINE} 1 l", line))
    with pytest.raises(RecipeError, match=r"train\.txt, line 2: "):
        read_split(path)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_split_is_refused(tmp_path: Path, kitti: Path, text: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(RecipeError, match="is empty"):
        load(kitti, **KITTI, split={"train": str(tmp_path / "train.txt")})


def test_a_missing_split_file_is_named(kitti: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.split\.train: no file zhuo"):
        load(kitti, **KITTI, split={"train": "zhuo"})
    with pytest.raises(RecipeError, match=r"data\.split\.test: no file eigne"):
        load(kitti, drives=[{"path": f"kitti_raw/{LINE}"}], split={"test": "eigne"})


def test_the_eigen_drives_are_28_with_697_frames() -> None:
    frames = eigen_test()
    assert len({view.drive for view in frames}) == 28
    assert sum(map(len, frames.values())) == 697


# --- which drive a path is of ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "drive"),
    [
        (f"kitti_raw/2011_09_26/{TEST_NAME}", ("2011_09_26", "0052")),
        (f"kitti_raw/2011_09_26/{TEST_NAME}/image_02/data", ("2011_09_26", "0052")),
        ("2011_09_26_drive_0052_extract", ("2011_09_26", "0052")),
        ("kitti_odometry/sequences/07", ("2011_09_30", "0027")),
        ("kitti_odometry/sequences/07/image_2", ("2011_09_30", "0027")),
        ("kitti_odometry/sequences/11", None),
        ("drives/07", None),
        ("street.mcap", None),
    ],
)
def test_a_path_tells_its_drive(path: str, drive: tuple[str, str] | None) -> None:
    assert drive_of(Path("/data") / path) == drive


def test_four_odometry_sequences_are_eigen_test_drives() -> None:
    test = {view.drive for view in eigen_test()}
    found = [n for n in range(11) if drive_of(Path(f"/d/sequences/{n:02d}")) in test]
    assert found == [0, 4, 5, 7]


# --- what is refused ------------------------------------------------------------------------------


def test_a_test_drive_is_refused_unless_allowed(kitti: Path) -> None:
    drive = {"path": f"kitti_raw/2011_09_26/{TEST_NAME}"}
    with pytest.raises(RecipeError, match=r"data\.drives\.1.*test data.*2011_09_26_drive_0052"):
        load(kitti, drives=[{"path": f"kitti_raw/{LINE}"}, drive])
    assert names(load(kitti, drives=[drive], split={"allow_leak": True})) == [TEST_NAME]
    assert names(load(kitti, drives=[drive], split={"test": "none"})) == [TEST_NAME]


def test_an_odometry_sequence_of_a_test_drive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sequences" / "07").mkdir(parents=True)
    data = Data.model_validate({"drives": [{"path": "sequences/07"}]})
    with pytest.raises(RecipeError, match="2011_09_30_drive_0027"):
        plan_data(tmp_path, data)


def test_textures_of_a_test_drive_are_refused(kitti: Path) -> None:
    synthetic = {"folder": "pairs", "textures": [f"kitti_raw/2011_09_26/{TEST_NAME}"]}
    with pytest.raises(RecipeError, match=r"data\.synthetic\.textures\.0: .*drive_0052"):
        plan_data(kitti, Data.model_validate({"synthetic": synthetic}))


def test_own_test_drives_come_from_a_file(kitti: Path) -> None:
    test = split_file(kitti, "2011_09_26_drive_0001_sync", name="test.txt")
    with pytest.raises(RecipeError, match="drive_0001"):
        load(kitti, drives=[{"path": f"kitti_raw/{LINE}"}], split={"test": test})


def test_a_split_file_with_test_drives_is_refused_with_their_names(kitti: Path) -> None:
    train = split_file(kitti, f"{LINE} 1 l", f"2011_09_26/{TEST_NAME} 1 l")
    with pytest.raises(RecipeError, match=r"split\.train holds test drives.*: .*drive_0052"):
        load(kitti, **KITTI, split={"train": train})
    val = split_file(kitti, f"2011_09_26/{TEST_NAME} 1 l", name="val.txt")
    with pytest.raises(RecipeError, match=r"split\.validation holds test drives"):
        load(kitti, **KITTI, split={"validation": val})


def test_a_frame_in_train_and_validation_is_refused(kitti: Path) -> None:
    train = split_file(kitti, f"{LINE} 1 l", f"{LINE} 2 l", f"{LINE} 4 r")
    val = split_file(kitti, f"{LINE} 2 l", f"{LINE} 3 r", name="val.txt")
    with pytest.raises(RecipeError, match=r"1 frames are in train and .*: .*drive_0001"):
        load(kitti, **KITTI, split={"train": train, "validation": val})


def test_a_drive_that_is_held_out_cannot_be_named(kitti: Path) -> None:
    val = split_file(kitti, f"{LINE} 2 l", name="val.txt")
    with pytest.raises(RecipeError, match=r"in data\.drives and held out: .*drive_0001"):
        load(kitti, **KITTI, drives=[{"path": f"kitti_raw/{LINE}"}], split={"validation": val})


def test_a_split_without_kitti_raw_is_refused(kitti: Path) -> None:
    train = split_file(kitti, f"{LINE} 1 l")
    with pytest.raises(RecipeError, match=r"data\.kitti_raw, which is not set"):
        load(kitti, drives=[{"path": f"kitti_raw/{LINE}"}], split={"train": train})


def test_nothing_there_is_said_before_anything_is_read(kitti: Path) -> None:
    for values, message in (
        ({"kitti_raw": {"folder": "nowhere"}}, "nowhere does not exist"),
        ({"kitti_raw": {"cameras": [1]}}, "images of camera 1"),
        ({"drives": [{"path": "nowhere"}]}, r"data\.drives\.0\.path: .*nowhere does not exist"),
        ({"drives": [{"path": "kitti_raw/*/nothing*"}]}, r"data\.drives\.0\.path: nothing below"),
        ({"drives": [{"path": "kitti_raw/*/*0052*"}]}, "only test drives fit"),
    ):
        with pytest.raises(RecipeError, match=message):
            plan_data(kitti, Data.model_validate(values))


def test_a_key_with_a_typo_is_refused() -> None:
    for values in ({"split": {"tset": "eigen"}}, {"kitti_raw": {"camera": [2]}}, {"cahce": "x"}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            Data.model_validate(values)


# --- what is taken --------------------------------------------------------------------------------


def test_split_files_choose_the_middle_frames(kitti: Path) -> None:
    train = split_file(kitti, f"{LINE} 1 l", f"{LINE} 5 l", f"{LINE} 4 r", f"{LINE} 8 l")
    val = split_file(kitti, f"{LINE} 3 l", f"2011_09_26/{TRAINING_NAMES[1]} 2 l", name="val.txt")
    loaded = load(kitti, **KITTI, split={"train": train, "validation": val})
    assert [s.triplets for s in loaded.training.sequences] == [[(0, 1, 2), (4, 5, 6)], [(3, 4, 5)]]
    assert loaded.validation is not None
    assert [s.triplets for s in loaded.validation.sequences] == [[(2, 3, 4)], [(1, 2, 3)]]


def test_what_a_split_names_and_is_not_there_is_counted(kitti: Path) -> None:
    gone = "2011_09_26/2011_09_26_drive_0011_sync"
    train = split_file(kitti, f"{LINE} 1 l", f"{gone} 1 l", f"{gone} 2 l")
    loaded = load(kitti, **KITTI, split={"train": train})
    assert any("2 frames are not there" in s and "0011" in s for s in loaded.training.skipped)
    train = split_file(kitti, f"{gone} 1 l")
    with pytest.raises(RecipeError, match="nothing is left of this split"):
        load(kitti, **KITTI, split={"train": train})


def test_the_rule_takes_all_but_test_and_held_out_drives(kitti: Path) -> None:
    loaded = load(kitti, **KITTI, split={"validation_share": 0.0})
    assert names(loaded) == [TRAINING_NAMES[0]] * 2 + [TRAINING_NAMES[1]]
    assert loaded.validation is None
    assert "data.kitti_raw: 1 test drives left out" in loaded.training.skipped
    loaded = load(kitti, **KITTI, split={"validation_share": 0.3})
    assert loaded.validation is not None
    held = {s.name for s in loaded.validation.sequences}
    assert held and not held & set(names(loaded))
    assert held | set(names(loaded)) == set(TRAINING_NAMES)
    assert any("held out" in line for line in loaded.training.skipped)


def test_frames_are_drawn_alike_from_long_and_short_drives(kitti: Path) -> None:
    values = {"split": {"validation_share": 0.0}, "drop_static": "none"}
    loaded = load(kitti, **KITTI, **values, drives=[{"path": "kitti_raw/*/*", "weight": 3.0}])
    weights = [s.weight for s in loaded.training.sequences]
    np.testing.assert_allclose(weights, [3 * 7 / 11, 3 * 4 / 11, 7 / 18, 7 / 18, 4 / 18])


def test_a_pattern_leaves_test_drives_out_and_says_so(kitti: Path) -> None:
    loaded = load(kitti, drives=[{"path": "kitti_raw/*/*_sync"}])
    assert names(loaded) == sorted(TRAINING_NAMES)
    assert any(
        "data.drives.0: test drives 2011_09_26_drive_0052" in s for s in loaded.training.skipped
    )
    loaded = load(kitti, drives=[{"path": "kitti_raw/*/*_sync"}], split={"allow_leak": True})
    assert TEST_NAME in names(loaded)


def test_a_broken_drive_is_named_but_stops_only_who_named_it(kitti: Path) -> None:
    broken = kitti / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0011_sync"
    (broken / "image_02").mkdir(parents=True)
    (broken / "image_02" / "0000000000.png").write_bytes(b"")
    for values in (KITTI, {"drives": [{"path": "kitti_raw/*/*_sync"}]}):
        loaded = load(kitti, **values)
        assert any("drive_0011" in line for line in loaded.training.skipped)
    with pytest.raises(RecipeError, match=r"drive_0011_sync.*no usable image"):
        load(kitti, drives=[{"path": str(broken.relative_to(kitti))}])


def test_drives_that_are_named_are_not_held_out(kitti: Path) -> None:
    drives = [{"path": f"kitti_raw/2011_09_26/{name}"} for name in TRAINING_NAMES]
    assert load(kitti, **KITTI, drives=drives, split={"validation_share": 0.5}).validation is None


def frames_of(source: TripletSource) -> dict[CameraView, set[int]]:
    """The middle frames of a source's triplets, by drive and camera, as their files tell."""
    found: dict[CameraView, set[int]] = {}
    for sequence in source.sequences:
        for _, middle, _ in sequence.triplets:
            frame = sequence.travel.frames[middle]
            assert frame.file is not None
            drive = drive_of(frame.file)
            camera = next(p for p in frame.file.parts if p.startswith("image_0"))
            assert drive is not None
            found.setdefault(CameraView(*drive, int(camera[-1])), set()).add(frame.index)
    return found


def test_the_split_by_rule_and_the_same_from_files_are_alike(kitti: Path, tmp_path: Path) -> None:
    by_rule = load(kitti, **KITTI, split={"validation_share": 0.3})
    assert by_rule.validation is not None
    train, val = frames_of(by_rule.training), frames_of(by_rule.validation)
    for one, other in itertools.combinations((train, val, eigen_test()), 2):
        assert not {view.drive for view in one} & {view.drive for view in other}
    files = {
        "train": split_file(tmp_path, *lines_of(train)),
        "validation": split_file(tmp_path, *lines_of(val), name="val.txt"),
    }
    again = load(kitti, **KITTI, split=files)
    assert names(again) == names(by_rule)
    assert len(again.training) == len(by_rule.training) == 7 + 7
    assert again.validation is not None
    assert len(again.validation) == len(by_rule.validation) == 4


# --- holding out ----------------------------------------------------------------------------------


@given(
    st.dictionaries(st.integers(0, 9999), st.integers(1, 50), min_size=1, max_size=40),
    st.floats(0, 0.9),
)
@settings(deadline=None)
def test_whole_drives_of_about_the_share_are_held_out(counts: dict[int, int], share: float) -> None:
    drives = {("2011_09_26", f"{number:04d}"): count for number, count in counts.items()}
    held = hold_out(drives, share)
    assert held < set(drives)
    assert hold_out(dict(reversed(drives.items())), share) == held
    gap = share * sum(drives.values()) - sum(drives[key] for key in held)
    assert gap >= -max(drives.values()) / 2
    assert gap <= max(drives.values())
    assert not hold_out(drives, 0.0)
