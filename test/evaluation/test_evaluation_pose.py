"""Ego-motion against known poses, by hand and end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import METRES_PER_UNIT, TINY_SIZE

from depth_prior_ros.bundle import Bundle, rewrite_manifest
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import StoredRecording
from depth_prior_ros.recordings.base import Frame
from training.commands import cli
from training.evaluation.pose import (
    drive_errors,
    evaluate_poses,
    evaluate_steps,
    pose_recordings,
    predict_steps,
    trajectory,
)
from training.evaluation.sets import EvaluationError


def step(x: float = 0.0, z: float = 1.0, yaw: float = 0.0) -> np.ndarray:
    """previous_from_current of a camera that turns about its y axis."""
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.0, yaw, 0.0]))[0]
    pose[:3, 3] = (x, 0.0, z)
    return pose


def drive(steps: list[np.ndarray], missing: tuple[int, ...] = ()) -> StoredRecording:
    """Frames with the poses of a way, seen from somewhere in the world."""
    world = step(3.0, -7.0, 1.0)
    camera = Camera(0.58 * 96, 1.92 * 32, 48, 16, *TINY_SIZE)
    frames = [
        Frame(i, i * 100_000_000, camera, lambda: np.zeros((32, 96, 3), np.uint8), pose=world @ p)
        for i, p in enumerate(trajectory(steps))
        if i not in missing
    ]
    return StoredRecording("way", frames)


def bend(count: int = 12) -> list[np.ndarray]:
    return [step(0.02 * i, 1.0 + 0.05 * i, 0.03 * i) for i in range(count)]


def test_perfect_steps_of_another_scale_have_no_error():
    true = bend()
    found = {i + 1: s @ np.diag([1, 1, 1, 1.0]) for i, s in enumerate(true)}
    for pose in found.values():
        pose[:3, 3] *= 0.25
    report = evaluate_steps(drive(true), found)
    assert report.snippets.snippets == 12 - 4 + 1
    assert report.snippets.ate_mean == pytest.approx(0, abs=1e-9)
    assert report.snippets.translation_percent == pytest.approx(0, abs=1e-6)
    assert report.snippets.rotation_deg == pytest.approx(0, abs=1e-5)
    assert report.drive.scale == pytest.approx(4)
    assert report.drive.scale_spread == pytest.approx(0, abs=1e-9)
    assert report.drive.translation_percent == pytest.approx(0, abs=1e-6)
    assert report.straight.ate_mean > 0.01 and report.straight.rotation_deg > 1


def test_snippet_errors_by_hand():
    """Four steps ahead by 1 m, predicted to the side at the last one."""
    true = [step() for _ in range(4)]
    found = {1: step(), 2: step(), 3: step(), 4: step(x=1.0, z=0.0)}
    report = evaluate_steps(drive(true), found)
    wanted = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4.0]])
    predicted = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 3.0]])
    scale = (wanted * predicted).sum() / (predicted**2).sum()
    error = scale * predicted - wanted
    assert report.snippets.snippets == 1
    assert report.snippets.ate_mean == pytest.approx(np.sqrt((error**2).sum()) / 5)
    assert report.snippets.ate_rmse == pytest.approx(np.sqrt((error**2).sum() / 5))
    assert report.snippets.translation_percent == pytest.approx(100 * np.linalg.norm(error[-1]) / 4)
    assert report.straight.ate_mean == pytest.approx(0, abs=1e-9)


def test_the_angle_at_a_snippets_end():
    true = [step() for _ in range(4)]
    found = {i: step(yaw=np.radians(0.5)) for i in range(1, 5)}
    report = evaluate_steps(drive(true), found)
    assert report.snippets.rotation_deg == pytest.approx(2.0)
    assert report.drive.rotation_deg_per_100m == pytest.approx(50.0)


def test_no_snippet_reaches_over_a_gap():
    true = [step() for _ in range(12)]
    found = {i: step() for i in range(1, 13)}
    assert evaluate_steps(drive(true), found).snippets.snippets == 9
    # Frame 6 is missing: 0 to 5 and 7 to 12, two and two.
    parted = drive(true, missing=(6,))
    assert evaluate_steps(parted, found).snippets.snippets == 4
    without = {i: s for i, s in found.items() if i not in (4, 8)}
    with pytest.raises(EvaluationError, match="no 5 frames with poses that follow"):
        evaluate_steps(drive(true[:9]), without)
    poseless = drive(true)
    poseless.frames = [replace(f, pose=None) for f in poseless.frames]
    with pytest.raises(EvaluationError, match="way: no 5 frames"):
        evaluate_steps(poseless, found)


def test_scale_is_the_median_and_its_wandering_is_told():
    true = [step(z=z) for z in (1.0, 2.0, 3.0, 0.01)]
    errors = drive_errors(true, [step(z=1.0)] * 4)
    assert errors.scale == pytest.approx(2) and errors.metres == pytest.approx(6.01)
    assert errors.scale_spread == pytest.approx(np.std([0.5, 1, 1.5]))
    standing = drive_errors([step(z=0.001)] * 4, [step()] * 4)
    assert standing.scale is None and standing.translation_percent is None


def write_sequence(root: Path, number: str, count: int = 7) -> Path:
    folder = root / "sequences" / number
    for i in range(count):
        (folder / "image_0").mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(i).integers(0, 255, (32, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "image_0" / f"{i:06d}.png"), picture)
    (folder / "calib.txt").write_text("P0: 111.36 0 48 0 0 122.88 16 0 0 0 1 0\n")
    lines = [" ".join(f"{v:.6e}" for v in pose[:3].ravel()) for pose in trajectory(bend(count - 1))]
    (root / "poses").mkdir(exist_ok=True)
    (root / "poses" / f"{number}.txt").write_text("\n".join(lines))
    return folder


def test_steps_are_the_networks_in_metres_of_the_camera(tmp_path: Path, bundle: Bundle):
    """The tiny pose network answers about 0.05 units straight ahead, whatever it sees."""
    from depth_prior_ros.pipeline import DepthPipeline

    recording = pose_recordings(write_sequence(tmp_path, "06"))[0]
    pipeline = DepthPipeline(bundle, "torch", "cpu")
    steps = predict_steps(pipeline, recording)
    assert sorted(steps) == list(range(1, 7))
    # Twice the trained focal length: the network's world is half as deep as the real one.
    ahead = steps[1][2, 3]
    assert ahead == pytest.approx(0.05 * METRES_PER_UNIT * 2, rel=0.02)
    (report,) = evaluate_poses(pipeline, [recording])
    assert report.snippets.ate_mean == pytest.approx(report.straight.ate_mean, rel=0.1)
    assert report.drive.scale == pytest.approx(
        np.median([np.linalg.norm(s[:3, 3]) for s in bend(6)]) / ahead, rel=0.05
    )


def test_one_command_evaluates_every_sequence(tmp_path: Path, bundle: Bundle, capsys):
    root = tmp_path / "kitti_odometry"
    write_sequence(root, "06")
    write_sequence(root, "09")
    (write_sequence(root, "11").parent.parent / "poses" / "11.txt").unlink()
    recipe = {"data": {"drives": [{"path": "kitti_odometry/sequences/09"}]}}
    provenance = bundle.manifest.provenance.model_dump() | {"recipe": recipe}
    rewrite_manifest(bundle, provenance=provenance)
    file = tmp_path / "out.json"
    command = ["evaluate", str(bundle.path), "--pose", "--data", str(tmp_path)]
    assert cli.main([*command, "--json", str(file), "--backend", "torch", "--device", "cpu"]) == 0
    content = json.loads(file.read_text())
    assert content["data_sets"] == {} and set(content["pose"]) == {"odometry_06", "odometry_09"}
    entry = content["pose"]["odometry_09"]
    assert entry["snippets"]["snippets"] == 3 and entry["frames"] == 7
    assert entry["drive"]["metres"] == pytest.approx(
        sum(np.linalg.norm(s[:3, 3]) for s in bend(6)), rel=1e-4
    )
    assert [note for note in entry["notes"] if "may have learned it" in note]
    assert not [n for n in content["pose"]["odometry_06"]["notes"] if "learned" in n]
    shown = capsys.readouterr().out
    assert "poses of 3 snippets" in shown and "straight ahead" in shown


def test_no_poses_is_a_plain_error(tmp_path: Path, bundle: Bundle, capsys):
    command = ["evaluate", str(bundle.path), "--pose", "--data", str(tmp_path)]
    assert cli.main(command) == 1
    assert "no recording with poses" in capsys.readouterr().err
