"""The metric factor on a drive past a textured wall whose distance is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from depth_prior_ros.geometry.warping import depth_to_disparity
from depth_prior_ros.recordings import open_recording
from training.data.drives import PartnerFrames, load_sequence
from training.recipes.data import Drive
from training.recipes.recipe import RecipeError
from training.runs.metric_scale import (
    check_scale_drive,
    fit_by_camera_height,
    fit_metres_per_unit,
    fit_on_frames,
)

SIZE = (128, 64)
FOCAL = 80.0


def drive_past_a_wall(folder: Path, distance: float, step: float) -> Path:
    """A KITTI odometry sequence: the camera moves ``step`` metres to the right each frame."""
    sequence = folder / "sequences" / "07"
    (sequence / "image_0").mkdir(parents=True)
    (folder / "poses").mkdir()
    coarse = np.random.default_rng(0).integers(0, 255, (16, 64), np.uint8)
    wall = cv2.resize(coarse, (256, 64), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    poses = []
    for number in range(8):
        shift = FOCAL * step * number / distance
        matrix = np.array([[1, 0, -shift - 20], [0, 1, 0]])
        image = cv2.warpAffine(wall, matrix, SIZE, flags=cv2.INTER_LINEAR)
        cv2.imwrite(str(sequence / "image_0" / f"{number:06d}.png"), image)
        poses.append(f"1 0 0 {step * number} 0 1 0 0 0 0 1 0")
    (folder / "poses" / "07.txt").write_text("\n".join(poses) + "\n")
    row = f"{FOCAL} 0 {SIZE[0] / 2} 0 0 {FOCAL} {SIZE[1] / 2} 0 0 0 1 0"
    (sequence / "calib.txt").write_text(f"P0: {row}\n")
    return sequence


def student_that_sees(units: float) -> SimpleNamespace:
    depth = torch.full((1, 1, SIZE[1], SIZE[0]), units)
    return SimpleNamespace(
        student=torch.nn.Identity(),
        device=torch.device("cpu"),
        single=lambda _image: {0: depth_to_disparity(depth)},
    )


@pytest.mark.parametrize(("distance", "units"), [(8.0, 1.0), (12.0, 1.0), (8.0, 2.0)])
def test_the_factor_is_distance_over_units(tmp_path: Path, distance: float, units: float) -> None:
    drive = drive_past_a_wall(tmp_path, distance, step=0.5)
    factor, spread = fit_metres_per_unit(student_that_sees(units), drive, SIZE, 6.0)  # type: ignore[arg-type]
    assert factor == pytest.approx(distance / units, rel=0.02)
    assert spread < 0.05


def test_stereo_baselines_give_the_factor_without_poses(tmp_path: Path) -> None:
    """The next frame stands half a metre to the right: the partner of a rig."""
    drive = drive_past_a_wall(tmp_path, 12.0, step=0.5)
    sequence, _ = load_sequence(open_recording(drive), Drive(path="07"), SIZE)
    sequence.poses.clear()
    partner_from_camera = np.eye(4)
    partner_from_camera[0, 3] = -0.5
    positions = {i: i + 1 for i in range(7)}
    sequence.partner = PartnerFrames(sequence.images, sequence.K, partner_from_camera, positions)
    factor, spread = fit_on_frames(student_that_sees(2.0), sequence, 10.0, "tune")  # type: ignore[arg-type]
    assert factor == pytest.approx(6.0, rel=0.02)
    assert spread < 0.05


@pytest.mark.parametrize("start", [0.6, 100.0])
def test_a_factor_far_from_the_unit_of_training_is_found(tmp_path: Path, start: float) -> None:
    """8 m a unit: close to both borders of 16 times."""
    drive = drive_past_a_wall(tmp_path, 8.0, step=0.5)
    factor, spread = fit_metres_per_unit(student_that_sees(1.0), drive, SIZE, start)  # type: ignore[arg-type]
    assert factor == pytest.approx(8.0, rel=0.02)
    assert 0 < spread < 0.05


def test_a_factor_at_the_border_is_refused(tmp_path: Path) -> None:
    """No factor, and no spread of 0 %, is made up; 8 m is 16 times 0.5 m."""
    start = 0.49
    drive = drive_past_a_wall(tmp_path, 8.0, step=0.5)
    with pytest.raises(RecipeError, match=r"cannot be fitted on .* 16 times the unit of training"):
        fit_metres_per_unit(student_that_sees(1.0), drive, SIZE, start)  # type: ignore[arg-type]


def test_a_drive_that_stands_still_is_refused(tmp_path: Path) -> None:
    drive = drive_past_a_wall(tmp_path, 8.0, step=0.01)
    with pytest.raises(RecipeError, match="apart"):
        check_scale_drive(drive)
    with pytest.raises(RecipeError, match="no neighbouring frames"):
        fit_metres_per_unit(student_that_sees(1.0), drive, SIZE, 8.0)  # type: ignore[arg-type]


def test_the_factor_by_the_height_of_the_camera(tmp_path: Path) -> None:
    """A road .2 units below the camera, 1.6 m in truth: 8 m a unit. Walls say nothing."""
    rows = torch.arange(SIZE[1], dtype=torch.float32)[:, None].expand(SIZE[1], SIZE[0])
    road = (0.2 * FOCAL / (rows - SIZE[1] / 2).clamp(min=1e-3)).clamp(0.1, 50)
    drive = drive_past_a_wall(tmp_path, 8.0, 0.5)
    drives = [(Drive(path=str(drive)), open_recording(drive))]

    def seeing(depth: torch.Tensor) -> SimpleNamespace:
        disparity = depth_to_disparity(depth[None, None])
        return SimpleNamespace(
            student=torch.nn.Identity(),
            device=torch.device("cpu"),
            single=lambda _image: {0: disparity},
        )

    factor, spread = fit_by_camera_height(seeing(road), drives, SIZE, 1.6)  # type: ignore[arg-type]
    assert factor == pytest.approx(8.0, rel=0.02) and spread == 0
    wall = torch.full((SIZE[1], SIZE[0]), 2.0)
    with pytest.raises(RecipeError, match="no drive shows a flat road"):
        fit_by_camera_height(seeing(wall), drives, SIZE, 1.6)  # type: ignore[arg-type]
