"""The drive of the package: a stop, smooth motion, poses that fit the pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import Recording
from depth_prior_ros.recordings.synthetic.drive import (
    STREETS,
    DriveSpec,
    SyntheticDrive,
    street_drive,
)
from rosbag_tools.cli import main
from rosbag_tools.make import write_bag


@pytest.fixture(scope="module")
def drive() -> SyntheticDrive:
    return street_drive(size=(160, 48))


def test_is_a_recording(drive: SyntheticDrive) -> None:
    assert isinstance(drive, Recording)
    assert len(drive.frames) == 80 and drive.depth_source == "exact"
    steps = np.diff([f.stamp_ns for f in drive.frames])
    assert (steps == 100_000_000).all()
    assert not any(drive.gap_before(i) for i in range(80))


def test_stands_still_for_more_than_two_seconds(drive: SyntheticDrive) -> None:
    speed = np.array([f.speed for f in drive.frames], float)
    standing = np.nonzero(speed == 0)[0]
    assert len(standing) >= 24 and (np.diff(standing) == 1).all()
    assert standing[0] > 10 and standing[-1] < 75
    assert speed[0] > 5 and speed[-1] > 4
    poses = np.stack([drive.frames[i].pose for i in standing])
    assert np.abs(poses - poses[0]).max() < 1e-9
    # Nothing jerks: no more than a firm braking between two frames.
    assert np.abs(np.diff(speed)).max() < 0.65


def test_speed_fits_the_poses(drive: SyntheticDrive) -> None:
    speed = np.array([f.speed for f in drive.frames], float)
    position = np.stack([f.pose[:3, 3] for f in drive.frames])
    between = np.linalg.norm(np.diff(position, axis=0), axis=1) * 10
    np.testing.assert_allclose(between, (speed[1:] + speed[:-1]) / 2, atol=0.05)
    forward = np.stack([f.pose[:3, 2] for f in drive.frames])
    assert (np.sum(np.diff(position, axis=0) * forward[:-1], 1) > -1e-9).all()


def test_travel_is_the_integral_of_speed() -> None:
    spec = DriveSpec()
    ticks = np.arange(0, 8, 1e-4)
    driven = np.concatenate([[0.0], np.cumsum(spec.speed(ticks + 5e-5))]) * 1e-4
    for time in (0.5, 1.6, 2.7, 3.5, 5.0, 5.9, 7.0, 7.9):
        assert abs(spec.travel(time) - driven[round(time * 1e4)]) < 1e-3


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="brake_at < stop_at"):
        DriveSpec(brake_at=4.0)
    with pytest.raises(ValueError, match="frames"):
        DriveSpec(frames=0)


@pytest.mark.slow
def test_same_seed_same_pictures(drive: SyntheticDrive) -> None:
    again = street_drive(size=(160, 48))
    for i in (3, 50):
        assert np.array_equal(drive.frames[i].image(), again.frames[i].image())
        assert np.array_equal(drive.frames[i].depth(), again.frames[i].depth())
    again.close()


def test_others_move_while_it_stands(drive: SyntheticDrive) -> None:
    standing = [f.index for f in drive.frames if f.speed == 0]
    changed = []
    for a, b in zip(standing[:-1:4], standing[1::4], strict=False):
        first, second = drive.frames[a].depth(), drive.frames[b].depth()
        assert first is not None and second is not None
        changed.append(float((first != second).mean()))
    assert max(changed) > 0.02  # somebody crosses
    assert np.median(changed) < 0.4  # most of the picture stands still


def test_depth_image_and_pose_agree(drive: SyntheticDrive) -> None:
    """The previous picture, fetched by exact depth and pose, is the current one."""
    K = drive.camera.matrix()
    before, after = drive.frames[8], drive.frames[9]
    depth = after.depth()
    assert depth is not None and before.pose is not None and after.pose is not None
    v, u = np.nonzero((depth > 0) & (depth < 50))
    points = np.linalg.inv(K) @ np.stack([u, v, np.ones(len(u))]) * depth[v, u]
    pose = np.linalg.inv(before.pose) @ after.pose
    seen = K @ (pose[:3, :3] @ points + pose[:3, 3:])
    x, y = np.rint(seen[:2] / seen[2]).astype(int)
    good = (x >= 0) & (y >= 0) & (x < 160) & (y < 48)
    first, second = before.image().astype(float).mean(-1), after.image().astype(float).mean(-1)
    warped = np.median(np.abs(first[y[good], x[good]] - second[v[good], u[good]]))
    unmoved = np.median(np.abs(first[v[good], u[good]] - second[v[good], u[good]]))
    assert warped < 6 and warped < 0.75 * unmoved


def test_depth_beyond_a_16_bit_png_is_none(drive: SyntheticDrive) -> None:
    depth = drive.frames[0].depth()
    assert depth is not None and depth.max() * 256 < 65535 and (depth == 0).any()


def test_another_seed_is_another_street(drive: SyntheticDrive) -> None:
    other = street_drive(seed=3, size=(160, 48))
    ours, theirs = drive.world.drawing.mesh.vertices, other.world.drawing.mesh.vertices
    assert ours.shape != theirs.shape or not np.array_equal(ours, theirs)


def test_a_camera_mounted_otherwise_sees_the_road_where_it_lies(tmp_path: Path) -> None:
    out = tmp_path / "low.mcap"
    mount = ["--camera-height", "1.1", "--camera-pitch-deg", "4"]
    assert main(["render", "--out", str(out), "--frames", "1", "--size", "160x48", *mount]) == 0
    frame = open_recording(out).frames[0]
    depth, camera = frame.depth(), frame.camera
    assert depth is not None
    below = math.atan2(47 - camera.cy, camera.fy)  # the bottom row, under the optical axis
    expected = 1.1 * math.cos(below) / math.sin(below + math.radians(4))
    assert np.median(depth[-1]) == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_a_camera_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibration = tmp_path / "camera.yaml"
    P = [150.0, 0, 70, 0, 0, 152.0, 30, 0, 0, 0, 1, 0]
    K = [160.0, 0, 71, 0, 161.0, 31, 0, 0, 1]
    lens = {"distortion_model": "plumb_bob", "image_width": 160, "image_height": 48}
    for name, data in (
        ("camera_matrix", K),
        ("distortion_coefficients", [-0.2, 0.05, 0.0, 0.0, 0.0]),
        ("rectification_matrix", np.eye(3).ravel().tolist()),
        ("projection_matrix", P),
    ):
        lens[name] = {"data": data}
    calibration.write_text(json.dumps(lens))
    render = ["render", "--frames", "1", "--intrinsics"]
    for said, expected in (
        ([str(calibration)], Camera(150, 152, 70, 30, 160, 48)),
        ([str(calibration), "--size", "80x24"], Camera(75, 76, 35, 15, 80, 24)),
        (["75,76,35,15", "--size", "80x24"], Camera(75, 76, 35, 15, 80, 24)),
    ):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.mcap"
        assert main([*render, *said, "--out", str(out)]) == 0
        frame = open_recording(out).frames[0]
        assert frame.camera == expected
        assert frame.depth().shape == (expected.height, expected.width)  # type: ignore[union-attr]
    for said, words in (
        (["75,76,35,15"], "say of images of which --size"),
        ([str(calibration), "--size", "80x48"], "camera.yaml"),
    ):
        assert main([*render, *said, "--out", str(tmp_path / "x.mcap")]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_what_changes_while_the_car_stands_is_masked(drive: SyntheticDrive) -> None:
    standing = [f for f in drive.frames if f.speed == 0]
    for a, b in zip(standing[:-1:6], standing[1::6], strict=False):
        changed = np.abs(np.log(np.maximum(a.depth(), 1) / np.maximum(b.depth(), 1))) > 0.1
        masks = np.maximum(a.moving(), b.moving())
        assert (changed & ~masks).mean() < 0.002
    assert np.mean([f.moving().mean() for f in standing[::6]]) > 0.01


def test_a_car_that_waits_is_not_masked(drive: SyntheticDrive) -> None:
    waiting = next(m for m in drive.world.movers if m.speed == 0 and m.side_speed == 0)
    alone, _ = drive.world.moving(4.0, (-30.0, 200.0))
    whole = sum(len(m.mesh.indices) for m in drive.world.movers)
    assert not waiting.moves(4.0)
    assert len(alone.indices) <= whole - len(waiting.mesh.indices)


def test_masks_go_into_a_bag_where_asked_for(tmp_path: Path) -> None:
    drive = street_drive(frames=2, size=(160, 48), supersample=1)
    write_bag(drive, tmp_path / "with.mcap", moving=True)
    write_bag(drive, tmp_path / "without.mcap")
    stored = open_recording(tmp_path / "with.mcap")
    for ours, read in zip(drive.frames, stored.frames, strict=True):
        mask = read.moving()
        assert mask is not None and mask.any() and np.array_equal(mask, ours.moving())
    assert open_recording(tmp_path / "without.mcap").frames[0].moving() is None
    drive.close()


def test_without_a_stop_it_never_stands() -> None:
    drive = street_drive(seed=5, frames=60, size=(64, 32), stop=False, street="country")
    speed = np.array([f.speed for f in drive.frames], float)
    assert speed.min() > 5 and np.ptp(speed) < 1.0
    image, depth = drive.frames[59].image(), drive.frames[59].depth()
    assert image.std() > 10 and depth is not None and (depth > 0).mean() > 0.4
    drive.close()
    assert drive.world.course.end >= 20 + drive.spec.travel(6.0) + 150


@pytest.mark.slow
@pytest.mark.parametrize("street", STREETS)
def test_every_street_can_be_driven(street: str) -> None:
    drive = street_drive(seed=3, frames=3, size=(64, 32), supersample=1, street=street)
    first = drive.frames[2].image()
    depth = drive.frames[2].depth()
    assert first.std() > 10 and depth is not None and (depth > 0).mean() > 0.4
    drive.close()
    again = street_drive(seed=3, frames=3, size=(64, 32), supersample=1, street=street)
    assert [f.index for f in again.frames] == [0, 1, 2]
    again.frames[0].image()  # the pictures do not depend on which is read first
    assert np.array_equal(again.frames[2].image(), first)
    again.close()


def test_dense_traffic_stays_a_few_metres_ahead() -> None:
    drive = street_drive(seed=11, size=(64, 32), traffic="dense")
    assert max(f.speed or 0.0 for f in drive.frames) <= 3.0
    for time in (0.0, 2.0, 4.5, 7.9):
        own = 20 + drive.spec.travel(time)
        lane = drive.world.lane_offset(0)
        rears = sorted(
            m.along(time) - m.length / 2 for m in drive.world.movers if abs(m.d - lane) < 1.0
        )
        assert 3.5 < rears[0] - own < 16, time
        assert (np.diff(rears) > 3.0).all()


def test_streets_and_traffic_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="street 'beach' is not one of embedded, town"):
        street_drive(frames=1, street="beach")
    with pytest.raises(ValueError, match="traffic 'jam' is not one of mixed, dense"):
        street_drive(frames=1, traffic="jam")
