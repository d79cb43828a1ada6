"""What benchmarks/backends.py and benchmarks/pose_source.py compute, on a tiny bundle."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers import make_tiny_bundle
from numpy.typing import NDArray
from pipeline_scenes import TENTH, view

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import Frame, StoredRecording

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import backends
import pose_source

CAMERA = Camera(110.0, 120.0, 96.0, 32.0, 192, 64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """HRNet, whose random depth is further from a wall than any rounding."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@dataclass
class Drive(StoredRecording):
    """Five frames of a wall that slides past, 10 m away."""

    name: str = "wall"
    frames: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i in range(5):
            pose = np.eye(4)
            pose[0, 3] = -0.1 * i
            self.frames.append(
                Frame(
                    i,
                    i * TENTH,
                    CAMERA,
                    lambda i=i: view(i),
                    lambda: np.full((64, 192), 10.0, np.float32),
                    pose,
                    1.0,
                )
            )


@pytest.mark.slow
def test_rows_and_figures(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    rows = backends.make_rows(bundle, 1, ["torch_bf16"])
    assert [row.name for row in rows] == ["torch_f32", "torch_bf16"]
    drive = Drive("wall", [])
    backends.time_rows(rows, drive.frames)  # the first three are for warming up
    assert backends.evaluate_rows(rows, drive, PROTOCOLS["synthetic"], 2) == 2
    for row in rows:
        assert {way: len(times) for way, times in row.milliseconds.items()} == dict.fromkeys(
            backends.WAYS, 2
        )
        for model in backends.MODELS:
            assert len(row.abs_rel[model]) == len(row.apart[model]) == 2
    first, second = rows
    assert first.apart == {"single_frame": [0.0, 0.0], "multi_frame": [0.0, 0.0]}
    assert all(0 < apart < 0.2 for apart in second.apart["single_frame"])
    # By hand: the published depth against a wall, median scaling.
    first.pipeline.reset()
    first.pipeline.force_model = "single_frame"
    depth = first.pipeline.process(view(1), TENTH, None, CAMERA).depth
    scaled = np.clip(depth * 10.0 / np.median(depth), 1e-3, 80)
    expected = np.mean(np.abs(scaled - 10) / 10)
    assert first.abs_rel["single_frame"][0] == pytest.approx(expected, rel=0.02)
    backends.report(rows)
    printed = capsys.readouterr().out
    assert "figure backend_torch_f32_single_apart 0.00e+00" in printed
    for row in rows:
        for what in ("ms", "absrel", "apart"):
            assert f"figure backend_{row.name}_multi_{what} " in printed


def test_ways_of_a_pair(bundle: Bundle) -> None:
    from depth_prior_ros.pipeline import DepthPipeline

    pipeline = DepthPipeline(bundle, "torch", "cpu")
    drive = Drive("wall", [])
    found = pose_source.evaluate_pair(pipeline, (drive.frames[0], drive.frames[1]), seed=1)
    assert set(found) >= {one.name for one in pose_source.sources()} | {"single_frame"}
    assert found["network by odometry"] == 0.0
    assert found["exact by odometry"] == 1.0
    assert found["exact"] != found["network"]


@pytest.mark.parametrize(
    ("quality", "length", "degrees"), [("noisy", 0.05, 0.1), ("bad", 0.3, 0.6)]
)
def test_disturbed_odometry_is_as_wrong_as_it_says(
    quality: str, length: float, degrees: float
) -> None:
    step = np.eye(4)
    step[2, 3] = 2.0
    rng = np.random.default_rng(0)

    def angle(rotation: NDArray[np.float64]) -> float:
        return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))

    steps = [pose_source.disturbed(step, quality, rng) for _ in range(400)]
    lengths = [np.linalg.norm(one[:3, 3]) / 2 - 1 for one in steps]
    assert np.std(lengths) == pytest.approx(length, rel=0.15)
    # Three axes: the root mean square angle is sqrt(3) times that of one.
    turns = [angle(one[:3, :3]) for one in steps]
    assert np.sqrt(np.mean(np.square(turns))) == pytest.approx(degrees * 3**0.5, rel=0.15)
    exact = pose_source.disturbed(step, "exact", rng)
    np.testing.assert_allclose(exact, step, atol=1e-12)
