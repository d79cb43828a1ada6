"""The benchmark of training steps: it builds a recipe's stage, counts it and times it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_recipe_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("step", ROOT / "benchmarks/training_step.py")
    assert spec is not None
    assert spec.loader is not None
    step = sys.modules["step"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step)
    recipe = ROOT / "config/training/kitti_monodepth2.yaml"
    (row,) = step.measure(recipe, "cpu", 1, ["size=[64, 64]", "networks.pose=small"])
    assert (row.recipe, row.recipe_batch, row.batch) == ("kitti_monodepth2", 12, 1)
    assert row.seconds > 0
    # ResNet-18 and its decoder: 8.013 GMAC at 640x192; three times that, forward and backward.
    student = 3 * 2 * 8.013e9 * 64 * 64 / (640 * 192)
    assert student < row.operations < 1.3 * student
    assert row.kept_bytes > 64 * 64 * 3 * 4
    step.report([row], 1e12)
    printed = capsys.readouterr().out
    assert "ESTIMATES" in printed
    assert f"figure training_step_seconds_kitti_monodepth2 {row.seconds:.3f}" in printed
    estimate = row.operations * 12 / 1e12
    assert f"figure training_step_gpu_estimate_seconds_kitti_monodepth2 {estimate:.3f}" in printed
