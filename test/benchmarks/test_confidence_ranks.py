"""The confidence of the shipped bundle ranks its errors, on rendered and on real roads."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.share import demo_bag

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "confidence.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("confidence_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_sparsification_by_hand(benchmark: ModuleType) -> None:
    ause, sparsification = benchmark.ause, benchmark.sparsification
    error = np.arange(100, dtype=float)
    perfect = sparsification(error, -error)
    assert np.allclose(perfect, [(100 * (1 - k / 20) - 1) / 2 for k in range(20)])
    worst = sparsification(error, error)
    assert np.allclose(worst, [99 - (100 * (1 - k / 20) - 1) / 2 for k in range(20)])
    assert ause(error, -error) == 0
    assert ause(error, error) > ause(error, np.random.default_rng(0).random(100)) > 0


def test_maps_are_read_where_the_truth_is(benchmark: ModuleType) -> None:
    Pixels = benchmark.Pixels
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    pixels = Pixels(np.zeros(2), np.ones(2, bool), np.array([1, 11]), (3, 4))
    assert pixels.at(values).tolist() == [1, 11]
    assert Pixels(*(np.zeros(1),) * 2, np.array([0]), (6, 8)).at(values)[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "protocol"),
    [("street", "synthetic"), pytest.param("0052", "eigen", marks=pytest.mark.data)],
)
def test_better_than_chance(benchmark: ModuleType, name: str, protocol: str) -> None:
    path = (
        demo_bag() if name == "street" else Path(os.environ["DEPTH_PRIOR_DATA"]) / benchmark.DRIVE
    )
    found = benchmark.columns(
        benchmark.drive(path, 8), benchmark.Looker("lite", "torch"), PROTOCOLS[protocol]
    )
    for model in ("single_frame", "multi_frame"):
        assert len(found[model].errors) >= 6
        assert found[model].ratio() < 0.75
