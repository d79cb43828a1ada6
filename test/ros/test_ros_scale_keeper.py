"""The measured factor from one run of the node to the next."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.ros.loading import ScaleKeeper
from depth_prior_ros.scale import ScaleSight, make_scale

CAMERA = Camera(220.0, 220.0, 192.0, 64.0, 384, 128)
OTHER_CAMERA = Camera(400.0, 400.0, 192.0, 64.0, 384, 128)


class Log:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)

    warning = info


def pipeline(mode: str = "odometry", digest: str = "a") -> Any:
    """What the keeper knows of a pipeline: its scale and its bundle's digest."""
    scale = make_scale(mode, fixed=20.0, source="made up")
    return SimpleNamespace(scale=scale, bundle=SimpleNamespace(digest=digest))


def drive(scale: Any, factor: float) -> None:
    """Twenty seconds at 10 Hz and 5 m/s, seen by networks of this factor."""
    for k in range(200):
        scale.observe(
            ScaleSight(
                stamp_ns=k * 10**8,
                inverse_units=None,
                camera=CAMERA,
                moving=True,
                units_travelled=0.5 / factor,
                metres_travelled=0.5,
                seconds=0.1,
            )
        )


def kept(path: Path, factor: float = 30.0, mode: str = "odometry") -> float:
    """Drive, end, and return the factor that was stored."""
    driven = pipeline(mode)
    keeper = ScaleKeeper(str(path), Log())
    keeper.begin(driven, CAMERA)
    drive(driven.scale, factor)
    keeper.end(driven)
    return driven.scale.metres_per_unit


@pytest.mark.parametrize("mode", ["odometry", "auto"])
def test_the_next_run_begins_where_the_last_one_ended(tmp_path, mode):
    path = tmp_path / "folder" / "scale.yaml"
    factor = kept(path, mode=mode)
    assert factor == pytest.approx(30.0, rel=0.01)
    log, following = Log(), pipeline(mode)
    ScaleKeeper(str(path), log).begin(following, CAMERA)
    assert following.scale.metres_per_unit == pytest.approx(factor)
    assert str(path) in log.said[0]


@pytest.mark.parametrize(
    ("digest", "camera", "word"),
    [("b", CAMERA, "another bundle"), ("a", OTHER_CAMERA, "another camera")],
)
def test_the_file_of_another_bundle_or_camera_is_left_alone(tmp_path, digest, camera, word):
    path = tmp_path / "scale.yaml"
    kept(path)
    log, other = Log(), pipeline(digest=digest)
    ScaleKeeper(str(path), log).begin(other, camera)
    assert other.scale.metres_per_unit == 20.0
    assert word in log.said[0]


def test_a_damaged_file_is_named_and_does_no_harm(tmp_path):
    path = tmp_path / "scale.yaml"
    path.write_text("metres_per_unit: [")
    log, following = Log(), pipeline()
    ScaleKeeper(str(path), log).begin(following, CAMERA)
    assert following.scale.metres_per_unit == 20.0
    assert str(path) in log.said[0]


@pytest.mark.parametrize("path", ["~nosuchuser/scale.yaml", "/proc/none/x.yaml", "fifo"])
def test_a_place_for_no_file_costs_a_warning(path, tmp_path):
    if path == "fifo":
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
    log, measured = Log(), pipeline()
    keeper = ScaleKeeper(path, log)
    keeper.begin(measured, CAMERA)
    drive(measured.scale, 30.0)
    keeper.end(measured)
    assert measured.scale.metres_per_unit == pytest.approx(30.0, rel=0.01)
    assert path in log.said[-1]
    assert "not stored" in log.said[-1]


@pytest.mark.parametrize("text", ["[" * 3000, "x: 2001-99-99", "a: &a 1\nb: *a", "GOOD9"])
def test_a_file_that_is_odd_does_no_harm(tmp_path, text):
    path = tmp_path / "scale.yaml"
    kept(path)
    good = path.read_text()
    digits = re.sub("metres_per_unit: .*", "metres_per_unit: " + "9" * 400, good)
    path.write_text(digits if text == "GOOD9" else good + text)
    log, following = Log(), pipeline()
    ScaleKeeper(str(path), log).begin(following, CAMERA)
    assert following.scale.metres_per_unit == 20.0
    assert "not taken up" in log.said[0]


def test_nothing_is_written_before_something_was_measured(tmp_path):
    path = tmp_path / "scale.yaml"
    log = Log()
    for mode in ("auto", "odometry", "fixed", "none"):
        keeper, idle = ScaleKeeper(str(path), log), pipeline(mode)
        keeper.begin(idle, CAMERA)
        keeper.end(idle)
    assert not path.exists()
    assert not log.said, "a first run is nothing to complain about"


def test_a_measurement_in_hand_is_worth_more_than_the_file(tmp_path):
    path = tmp_path / "scale.yaml"
    kept(path)
    running = pipeline()
    drive(running.scale, 25.0)
    ScaleKeeper(str(path), Log()).begin(running, CAMERA)
    assert running.scale.metres_per_unit == pytest.approx(25.0, rel=0.01)


def test_an_activation_without_a_frame_does_not_loosen_the_file_from_its_camera(tmp_path):
    path = tmp_path / "scale.yaml"
    driven = pipeline()
    first = ScaleKeeper(str(path), Log())
    first.begin(driven, CAMERA)
    drive(driven.scale, 30.0)
    first.end(driven)
    ScaleKeeper(str(path), Log()).end(driven)  # activated again, and no camera there
    log, other = Log(), pipeline()
    ScaleKeeper(str(path), log).begin(other, OTHER_CAMERA)
    assert other.scale.metres_per_unit == 20.0
    assert "another camera" in log.said[0]


def test_without_a_file_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keeper, driven = ScaleKeeper("", Log()), pipeline()
    keeper.begin(driven, CAMERA)
    drive(driven.scale, 30.0)
    keeper.end(driven)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    log, driven = Log(), pipeline()
    keeper = ScaleKeeper(str(tmp_path / "file" / "scale.yaml"), log)
    drive(driven.scale, 30.0)
    keeper.begin(driven, CAMERA)
    keeper.end(driven)
    assert "scale not stored" in log.said[0]


def test_a_factor_stays_with_the_camera_that_it_was_measured_with(tmp_path):
    """Another camera comes last: the file is the first one's, and the other begins anew."""
    path = tmp_path / "scale.yaml"
    driven = pipeline()
    keeper = ScaleKeeper(str(path), Log())
    keeper.begin(driven, CAMERA)
    drive(driven.scale, 30.0)
    keeper.begin(driven, CAMERA.scaled(192, 64))
    assert driven.scale.metres_per_unit == pytest.approx(30.0, rel=0.01), "the same view"
    keeper.begin(driven, OTHER_CAMERA)
    assert driven.scale.metres_per_unit == 20.0
    keeper.end(driven)
    following = pipeline()
    ScaleKeeper(str(path), Log()).begin(following, CAMERA)
    assert following.scale.metres_per_unit == pytest.approx(30.0, rel=0.01)
