"""Triplets of a standing camera are left out, by speed or by image motion, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import texture
from training_files import SMALL, TRAINING_NAMES, write_moving_drive, write_speeds

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import CorruptFrameError, Frame
from training.data.sources import load_data
from training.data.static import StaticRule, Travel, moving_triplets
from training.data.triplets import TripletSource
from training.recipes.base import RecipeError
from training.recipes.data import Data

DRIVE = f"kitti_raw/2011_09_26/{TRAINING_NAMES[0]}"
STOPS = {0: 5.0, 1: 5.0, 2: 5.0, 3: 0.05, 4: 0.0, 5: 0.0, 6: 0.0, 7: 5.0, 8: 5.0, 9: 5.0}


def load(root: Path, **values: Any) -> TripletSource:
    data = Data.model_validate({"drives": [{"path": DRIVE}], **values})
    return load_data(root, data, SMALL, 10.0).training


def middles(source: TripletSource) -> list[int]:
    return [t[1] for sequence in source.sequences for t in sequence.triplets]


def frame(i: int, speed: float | None = None, z: float | None = None, dt: float = 0.1) -> Frame:
    pose = None
    if z is not None:
        pose = np.eye(4)
        pose[2, 3] = z
    camera = Camera(50, 50, 48, 16, *SMALL)
    return Frame(i, round(i * dt * 1e9), camera, lambda: np.zeros(0, np.uint8), None, pose, speed)


def test_nothing_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    write_speeds(write_moving_drive(tmp_path, numbers=range(10), pixels=0), STOPS)
    assert middles(load(tmp_path)) == list(range(1, 9))


@pytest.mark.parametrize("rule", ["speed", "auto"])
def test_by_speed(tmp_path: Path, rule: str) -> None:
    # The picture stands still: only the speed can tell.
    write_speeds(write_moving_drive(tmp_path, numbers=range(10), pixels=0), STOPS)
    source = load(tmp_path, drop_static=rule)
    assert middles(source) == [1, 2, 7, 8]
    (line,) = source.skipped
    assert line.endswith("the camera stands in 4 of 8 triplets")


def test_by_image_motion(tmp_path: Path) -> None:
    drive = write_moving_drive(tmp_path, numbers=range(12))
    pictures = drive / "image_02" / "data"
    for number in range(5, 9):  # frames 4 to 8 show the same
        (pictures / f"{number:010d}.png").write_bytes((pictures / f"{4:010d}.png").read_bytes())
    # What the speed says does not count; without it, auto goes by the image as well.
    assert middles(load(tmp_path, drop_static="auto")) == [1, 2, 3, 9, 10]
    write_speeds(drive, dict.fromkeys(range(12), 0.0))
    assert middles(load(tmp_path, drop_static="image")) == [1, 2, 3, 9, 10]
    assert middles(load(tmp_path, drop_static="image", memory=0)) == [1, 2, 3, 9, 10]
    with pytest.raises(RecipeError, match="the camera stands in 10 of 10 triplets"):
        load(tmp_path, drop_static="auto")


def test_the_threshold_of_image_motion_is_the_recipes(tmp_path: Path) -> None:
    write_moving_drive(tmp_path, numbers=range(5), pixels=1)  # 1.3 pixels of 160
    assert middles(load(tmp_path, drop_static="image", static_motion=0.9)) == [1, 2, 3]
    with pytest.raises(RecipeError, match="stands in 3 of 3"):
        load(tmp_path, drop_static="image", static_motion=1.8)


def test_a_drive_may_say_otherwise(tmp_path: Path) -> None:
    write_speeds(write_moving_drive(tmp_path, numbers=range(10)), STOPS)
    drives = [{"path": DRIVE, "drop_static": "none"}, {"path": DRIVE}]
    sequences = load(tmp_path, drives=drives, drop_static="speed").sequences
    assert [len(s.triplets) for s in sequences] == [8, 4]


def test_a_stride_sums_small_steps_up(tmp_path: Path) -> None:
    """30 frames a second at 1 m/s: no neighbours move far, frames 6 apart do."""
    write_moving_drive(tmp_path, numbers=range(14), pixels=0.25)
    motion = {"drop_static": "image", "static_motion": 0.3}
    with pytest.raises(RecipeError, match="the camera stands"):
        load(tmp_path, **motion)
    assert middles(load(tmp_path, **motion, drives=[{"path": DRIVE, "stride": 6}])) == [6, 7]


def test_unknown_motion_leaves_nothing_out() -> None:
    frames = [frame(i) for i in range(5)]
    triplets = [(0, 1, 2), (1, 2, 3)]

    def unreadable(_: int) -> np.ndarray:
        raise CorruptFrameError("x")

    for kind in ("speed", "image", "auto"):
        found = moving_triplets(triplets, Travel(frames), unreadable, StaticRule(kind))
        assert found == triplets
    flat = np.full((*SMALL[::-1], 3), 90, np.uint8)  # no texture: nothing can be said
    found = moving_triplets(triplets, Travel(frames), lambda _: flat, StaticRule("image"))
    assert found == triplets


def test_each_frame_is_read_once(tmp_path: Path) -> None:
    asked: list[int] = []
    wide = texture(96, 32)

    def picture(i: int) -> np.ndarray:
        asked.append(i)
        return cv2.resize(wide[64:96, 64 + i : 160 + i], SMALL)

    triplets = [(i - 2, i, i + 2) for i in range(2, 18)]
    travel = Travel([frame(i) for i in range(20)])
    assert moving_triplets(triplets, travel, picture, StaticRule("image")) == triplets
    assert sorted(asked) == list(range(20))


# --- travel ---------------------------------------------------------------------------------------


def test_travel_from_speeds_is_their_integral() -> None:
    travel = Travel([frame(i, speed) for i, speed in enumerate([4.0, 8.0, 8.0, None, -2.0, -2.0])])
    np.testing.assert_allclose(travel.metres(0, 2), 0.1 * (6 + 8))
    np.testing.assert_allclose(travel.speed(0, 2), 7.0)
    np.testing.assert_allclose(travel.metres(4, 5), 0.2)  # a length, also in reverse
    assert np.isnan(travel.metres(2, 4))
    assert np.isnan(Travel([frame(0, 5.0), frame(1, np.nan)]).metres(0, 1))


def test_poses_go_before_speeds() -> None:
    travel = Travel([frame(i, 99.0, z) for i, z in enumerate([0.0, 0.5, 1.5])])
    assert travel.metres(0, 2) == 1.5
    np.testing.assert_allclose(travel.speed(1, 2), 10.0)
    assert np.isnan(Travel([frame(0, None, 0.0), frame(1)]).metres(0, 1))
