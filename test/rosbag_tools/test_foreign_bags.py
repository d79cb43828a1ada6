"""Bags of other writers go through the tools; what wrote them is in test/foreign_bags/README.md."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import make_tiny_bundle, make_told_bundle

from depth_prior_ros.adaptation import camera_code
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.recordings.bag import BagTopics, open_bag
from rosbag_tools.cli import main
from training.commands.cli import main as train

FOLDER = Path(__file__).parents[1] / "foreign_bags"
BAGS = {"ros1": FOLDER / "debian_rosbag.bag", "mcap": FOLDER / "mcap_package.mcap"}
DEPTH = ("--depth-topic", "/front/depth")
DEBIAN = Path("/usr/bin/python3")


def opened(bag: Path) -> StoredRecording:
    return open_bag(bag, topics=BagTopics(depth="/front/depth"))


def check_drive(recording: StoredRecording) -> None:
    """What `write_scene.py` put in: 12 frames, 8 m away, 2 m a second."""
    assert len(recording.frames) == 12 and not recording.skipped
    for i, frame in enumerate(recording.frames):
        assert frame.stamp_ns == 1_700_000_000_000_000_000 + i * 100_000_000
        assert (frame.camera.fx, frame.camera.cx, frame.camera.size) == (60.0, 48.0, (96, 32))
        assert frame.image().shape == (32, 96, 3)
        depth = frame.depth()
        assert depth is not None
        np.testing.assert_array_equal(depth[4:], 8.0)
        assert not depth[:4].any()
        assert frame.speed == pytest.approx(2.0)
        assert frame.pose is not None
    steps = [f.pose[:3, 3] for f in recording.frames if f.pose is not None]
    assert np.linalg.norm(steps[-1] - steps[0]) == pytest.approx(11 * 0.2)


@pytest.mark.parametrize("writer", BAGS)
def test_a_bag_of_another_writer_is_read(writer: str) -> None:
    assert BAGS[writer].stat().st_size < 50_000
    check_drive(opened(BAGS[writer]))


@pytest.mark.slow
@pytest.mark.parametrize("writer", BAGS)
def test_it_goes_through_the_tools(
    writer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # How well it fits is not asked here.
    short = functools.partial(camera_code.fit_camera_code, steps=2)
    monkeypatch.setattr(camera_code, "fit_camera_code", short)
    bag, bundle = str(BAGS[writer]), str(make_tiny_bundle(tmp_path / "tiny").path)
    assert main(["info", bag, *DEPTH]) == 0
    said = capsys.readouterr().out
    assert "12 frames of 96x32" in said and "depth: in 12 frames" in said
    out = tmp_path / "out"
    run = ["process", bag, *DEPTH, "--bundle", bundle, "--backend", "torch", "--no-forced"]
    assert main([*run, "--npy", "--bag", "--out", str(out)]) == 0
    assert len(list(out.glob("npy/*.npy"))) == 12
    assert json.loads((out / "metrics.json").read_text())["depth"]["all"]["frames"] == 12
    # Its own topics beside the depth:
    assert len(open_recording(out / "depth.mcap").frames) == 12
    again = tmp_path / "again"
    assert main([*run, "--png", "--video", "--out", str(again)]) == 0
    page = tmp_path / "comparison.html"
    assert main(["report", str(out)]) == 0
    assert main(["report", str(out), str(again), "--out", str(page)]) == 0
    assert "Nothing can be told of 12 frames" in capsys.readouterr().out and page.is_file()
    baseline = ["--against", str(tmp_path / "baseline.json")]
    assert main(["check", str(out), *baseline, "--accept"]) == 0
    assert main(["check", str(again), *baseline]) == 0
    assert main(["extract", bag, *DEPTH, "--out", str(tmp_path / "set")]) == 0
    check_drive(open_recording(tmp_path / "set" / BAGS[writer].stem))
    copy = shutil.copy(bag, tmp_path)
    Path(f"{copy}.topics.yaml").write_text("depth: /front/depth\n")
    table = ["compare", "--rows", f"tiny={bundle}", "--recordings", copy, "--backend", "torch"]
    assert train([*table, "--out", str(tmp_path / "table")]) == 0
    assert "tiny" in (tmp_path / "table" / "comparison.md").read_text()
    told = str(make_told_bundle(tmp_path / "told").path)
    capsys.readouterr()
    assert train(["adapt", told, "--bag", copy, "--out", str(tmp_path / "adapted")]) in (0, 1)
    assert "recorded depth (" in capsys.readouterr().out
    assert train(["tune", bundle, "--bag", copy, "--out", str(tmp_path / "tuned")]) == 1
    assert "12 frames; 32 that follow each other are needed" in capsys.readouterr().err
    command = ["evaluate", bundle, "--protocol", "drive", "--data", bag, *DEPTH]
    figures = tmp_path / "figures.json"
    command += ["--model", "single_frame", "--backend", "torch", "--json", str(figures)]
    assert train(command) == 0
    assert '"frames": 11' in figures.read_text()  # those that follow another one


def test_the_writers_of_today_write_the_same(tmp_path: Path) -> None:
    """Debian's rosbag and the package mcap, where they are installed."""
    scene = tmp_path / "scene"
    subprocess.run([sys.executable, FOLDER / "write_scene.py", scene], check=True)
    has_rosbag = (
        DEBIAN.exists()
        and not subprocess.run(
            [DEBIAN, "-c", "import rosbag, sensor_msgs.msg, nav_msgs.msg"],
            capture_output=True,
            check=False,
        ).returncode
    )
    has_mcap = all(importlib.util.find_spec(name) for name in ("mcap", "rclpy"))
    if not has_rosbag and not has_mcap:
        pytest.skip("needs Debian's python3-rosbag, or the package mcap and rclpy")
    if has_rosbag:
        bag = tmp_path / "new.bag"
        subprocess.run([DEBIAN, FOLDER / "write_ros1.py", scene, bag], check=True, env={})
        check_drive(opened(bag))
    if has_mcap:
        bag = tmp_path / "new.mcap"
        subprocess.run([sys.executable, FOLDER / "write_mcap.py", scene, bag], check=True)
        check_drive(opened(bag))
