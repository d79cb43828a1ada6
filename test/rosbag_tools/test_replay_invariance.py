"""What must change no figure of a replay: the metric factor, after scaling by medians."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depth_prior_ros.bundle import Bundle, load_bundle, rewrite_manifest
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.share import demo_bag
from rosbag_tools.replaying.session import ReplayOptions, replay

#: The ends of what is promised; between them lies nothing else.
FACTORS = (0.5, 4.0)
FRAMES = 6
SCALED = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


def with_factor(folder: Path, factor: float, max_metres: float) -> Bundle:
    """A copy of the shipped bundle that says `factor` times as many metres a unit."""
    bundle = load_bundle("lite")
    shutil.copytree(bundle.path, folder)
    depth = bundle.manifest.depth
    metres = depth.metres_per_unit * factor
    changed = depth.model_copy(update={"metres_per_unit": metres, "max_metres": max_metres})
    return rewrite_manifest(load_bundle(folder), depth=changed)


def drive() -> StoredRecording:
    """The beginning of the embedded drive without its odometry, whose metres fix the motion."""
    recording = open_recording(demo_bag())
    recording.frames = [
        replace(frame, pose=None, speed=None) for frame in recording.frames[:FRAMES]
    ]
    return recording


def figures(folder: Path, factor: float, max_metres: float) -> dict[str, Any]:
    bundle = with_factor(folder / "bundle", factor, max_metres)
    replay(drive(), folder / "out", ReplayOptions(bundle=str(bundle.path)), "test")
    return json.loads((folder / "out" / "metrics.json").read_text())["depth"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_metric_factor_changes_no_figure_of_a_replay(tmp_path: Path) -> None:
    first, *others = (figures(tmp_path / str(f), f, 1e6) for f in FACTORS)
    for found in others:
        assert found["all"]["pixels_beyond_range"] == first["all"]["pixels_beyond_range"] == 0
        for row in ("all", "single_frame", "multi_frame"):
            for name in SCALED:
                assert found[row][name] == pytest.approx(first[row][name], abs=1e-5), (row, name)
    cut = figures(tmp_path / "cut", 4.0, 80.0)["all"]
    assert cut["pixels_beyond_range"] > 0  # and then the page says how many
