"""The benchmark of the metres prints table and figures, and keeps what is asked of exact depth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import ScaleSight

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "metric_scale.py"
CAMERA = Camera(185.9, 184.7, 157.0, 44.25, 320, 96)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_scale_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def figures(text: str) -> dict[str, float]:
    lines = [line.split() for line in text.splitlines() if line.startswith("figure ")]
    return {name: float(value) for _, name, value in lines}


@pytest.mark.slow
def test_exact_depth_is_found(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--parts", "exact", "--seeds", "1", "--streets", "embedded"]
    assert benchmark.main(arguments) == 0
    found = figures(capsys.readouterr().out)
    assert 0 < found["metric_scale_exact_camera_height_worst_percent"] < 5
    assert 0 < found["metric_scale_exact_odometry_worst_percent"] < 3


def test_without_data_it_says_so(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    assert benchmark.main(["--parts", "odometry", "lidar"]) == 0
    assert "left out" in capsys.readouterr().out


def test_every_mode_is_evaluated_by_its_own_factor(benchmark: ModuleType) -> None:
    """Depth that is right under the factor of the camera's height, 12, and not under 10."""
    scales = benchmark.SeveralScales(10.0, 1.65, None)
    found = benchmark.ScaleErrors(scales)
    rows = np.mgrid[:96, :320][0]
    metres = 1.65 * 184.7 / np.maximum(rows - 44.25, 1.65 * 184.7 / 60)
    for i in range(60):
        sight = ScaleSight(i, 12.0 / metres, CAMERA, True, 0.1, 1.0, 0.1)
        scales.observe(sight)
        for mode, scale in scales.by_mode.items():
            found.factors[mode].append(scale.metres_per_unit)
        found.add((10.0 * metres / 12.0).astype(np.float32), metres, "synthetic")
    assert found.metric["camera_height"][-1].abs_rel == pytest.approx(0.0, abs=0.01)
    assert found.metric["fixed"][-1].abs_rel == pytest.approx(1 / 6, abs=0.01)
    assert found.scaled[-1].abs_rel == pytest.approx(0.0, abs=0.01)
    assert benchmark.factor_error(found, "fixed") == pytest.approx(10 / 12 - 1, abs=0.01)
    assert scales.travel == [(1.0, 0.1)] * 60
    assert np.median(scales.heights) == pytest.approx(1.65 / 12, rel=0.01)
