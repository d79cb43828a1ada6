"""A factor and a shift, from the road and from followed points, against exact depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import Frame
from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive, street_drive
from depth_prior_ros.scale import FilterSettings, Scale, ScaleSight, make_scale
from depth_prior_ros.scale.road import (
    NoRoadError,
    RoadSettings,
    fit_affine_road,
    fit_both,
    fit_line,
)

HEIGHT = 1.6
FAST = FilterSettings(first_rate=3.0, rate=0.5)  # 24 frames are no ten seconds


@pytest.fixture(scope="module")
def frames() -> Sequence[Frame]:
    drive = street_drive(12, 24, (416, 128), 1, street="town", stop=False)
    yield [(frame, frame.image(), frame.depth()) for frame in drive.frames]
    drive.close()


def gauged(depth: np.ndarray) -> np.ndarray:
    """Exact depth as an affine-invariant network's answer comes: 1 far, 2 near."""
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 0.1), 0)
    far, near = np.quantile(inverse, (0.02, 0.9))
    return (1 + (inverse - far) / (near - far)).astype(np.float32)


def drive_through(
    scale: Scale, frames: Sequence[tuple[Frame, np.ndarray, np.ndarray]], seconds: float = 0.1
) -> float:
    """Median of truth over depth of the last frame."""
    before = None
    for frame, image, depth in frames:
        metres = None
        if before is not None:
            metres = float(np.linalg.norm(frame.pose[:3, 3] - before.pose[:3, 3]))
        units = gauged(depth)
        scale.observe(
            ScaleSight(
                frame.stamp_ns,
                units,
                frame.camera,
                moving=True,
                metres_travelled=metres,
                seconds=None if before is None else seconds,
                picture=image,
            )
        )
        before = frame
    status = scale.status
    assert status.state == "measured", status.text
    found = status.metres_per_unit / np.maximum(units + status.shift, 1e-6)
    known = (depth > 0) & (depth < 60)
    return float(np.median(depth[known] / found[known]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["camera_height", "odometry"])
def test_factor_and_shift_are_found_on_exact_depth(frames: Sequence[Frame], mode: str) -> None:
    scale = make_scale(
        mode, fixed=5.0, source="x", camera_height=HEIGHT, shift=-0.98, settings=FAST
    )
    allowed = {"camera_height": 0.05, "odometry": 0.05}[mode]  # in 24 frames
    assert drive_through(scale, frames) == pytest.approx(1, abs=allowed)
    stored = scale.store()
    again = make_scale(mode, fixed=5.0, source="x", camera_height=HEIGHT, shift=-0.98)
    again.restore(stored)
    assert again.status.metres_per_unit == pytest.approx(scale.status.metres_per_unit)
    assert again.status.shift == pytest.approx(scale.status.shift)
    assert again.status.state == "searching", "another picture has another gain"
    with pytest.raises(ValueError, match="shift must be"):
        again.restore({**stored, "shift": -3.0})
    again.reset()
    assert again.status.state == "searching"


def test_a_plane_behind_a_shift_is_found() -> None:
    camera = Camera(240, 240, 207.5, 63.5, 416, 128)
    rows, _ = np.mgrid[:128, :416]
    y = (rows - camera.cy) / camera.fy
    pitch, gain, shift = 0.03, 4.0, -0.7
    inverse = (np.cos(pitch) * y + np.sin(pitch)) / 1.5  # 1/m of a road 1.5 m below
    units = gain * inverse - shift
    noise = np.random.default_rng(0).normal(0, 0.01, units.shape)
    units = units * (1 + noise * inverse.clip(0))
    line = fit_affine_road(units, camera, RoadSettings(pitch=pitch))
    assert line.gain == pytest.approx(1.5 / gain, rel=0.01)  # in camera heights
    assert line.offset / line.gain == pytest.approx(shift, abs=0.01)
    assert line.share > 0.95
    units[100:, 150:190] = np.nan  # a car on it, and what the bottom does not show
    units[80:100, 215:300] = 2.5
    line = fit_affine_road(units, camera, RoadSettings(pitch=pitch))
    assert line.offset / line.gain == pytest.approx(shift, abs=0.1)
    with pytest.raises(NoRoadError, match="no flat road in sight"):
        fit_affine_road(units[::-1], camera, RoadSettings(pitch=pitch))


def test_a_line_through_points_of_which_two_fifths_are_wrong() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 2, 300)
    y = 0.3 * x - 0.28 + rng.normal(0, 0.004, 300)
    y[:120] = rng.uniform(-0.2, 0.6, 120)
    line = fit_line(x, y, lambda gain, offset: np.full((1, 300), 0.015))
    assert line.gain == pytest.approx(0.3, rel=0.04)
    assert line.offset == pytest.approx(-0.28, abs=0.01)
    assert line.share > 0.5


def test_noise_on_both_sides_does_not_flatten_a_line() -> None:
    rng = np.random.default_rng(2)
    truth = rng.uniform(1, 2, 1000)
    x = truth + rng.normal(0, 0.1, 1000)
    y = 0.5 * truth + 0.3 + rng.normal(0, 0.05, 1000)  # as inexact, by its range
    line = fit_both(x, y, lambda at: np.full_like(at, 0.5))
    assert line.gain == pytest.approx(0.5, rel=0.03)
    assert line.offset == pytest.approx(0.3, abs=0.03)
    # Least squares see about the share of the variance in x that is no noise: 0.893.
    plain = fit_line(x, y, lambda gain, offset: np.full((1, 1000), 0.5))
    assert plain.gain == pytest.approx(0.5 * 0.893, rel=0.03)
    back = fit_both(y, x, lambda at: np.full_like(at, 0.5))
    assert back.gain == pytest.approx(1 / line.gain, rel=1e-6)


@pytest.mark.slow
def test_a_slow_robot_is_measured_by_odometry() -> None:
    """0.7 m/s at 5 Hz: a picture 0.8 m back is more than a second old."""
    spec = DriveSpec(frames=16, rate=5.0, cruise=0.7, stop=False)
    drive = SyntheticDrive(seed=12, size=(416, 128), supersample=1, spec=spec, street="town")
    frames = [(frame, frame.image(), frame.depth()) for frame in drive.frames]
    drive.close()
    scale = make_scale("odometry", fixed=5.0, source="x", shift=-0.98, settings=FAST)
    assert drive_through(scale, frames, seconds=0.2) == pytest.approx(1, abs=0.08)
