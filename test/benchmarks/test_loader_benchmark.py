"""The benchmark of the loader compares the same frames, and its baseline does what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow, with which the benchmark compares")

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "loader.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loader_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DEPTH_PRIOR_DATA", raising=False)
        found, _ = benchmark.find_frames(1, tmp_path_factory.mktemp("frames"))
    return found


def test_both_loaders_show_the_same_picture(benchmark: ModuleType, files: list[Path]) -> None:
    plain, changed = benchmark.ours(files, 0.0, 0)(0)
    levels, changed_levels = benchmark.usual(files, 0.0, 0)(0)
    shapes = [(3, 375, 1242), (3, 192, 640), (3, 96, 320), (3, 48, 160), (3, 24, 80)]
    assert [tuple(level.shape) for level in levels] == shapes
    assert [tuple(level.shape) for level in changed_levels] == shapes
    assert (plain - levels[1]).abs().mean() < 0.01  # area against Lanczos
    assert torch.equal(plain, changed)
    assert torch.equal(levels[1], changed_levels[1])


def test_both_loaders_change_colours_alike(benchmark: ModuleType, files: list[Path]) -> None:
    differences = []
    for seed in range(4):
        plain, changed = benchmark.ours(files, 1.0, seed)(0)
        levels, changed_levels = benchmark.usual(files, 1.0, seed)(0)
        differences.append((changed - plain).abs().mean())
        differences.append((changed_levels[0] - levels[0]).abs().mean())
    assert all(0.005 < d < 0.3 for d in differences)


def test_hue_turns_all_the_way_round(benchmark: ModuleType) -> None:
    red = benchmark.Image.new("RGB", (2, 2), (200, 10, 10))
    third = np.asarray(benchmark.turn_hue(red, 1 / 3))
    np.testing.assert_allclose(third[0, 0], [10, 200, 10], atol=4)
    np.testing.assert_allclose(np.asarray(benchmark.turn_hue(red, 0.0)), np.asarray(red), atol=2)


def test_the_last_line_is_the_figure(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loader.py", "--rounds", "1", "--frames", "1"])
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    name, figure, value = capsys.readouterr().out.splitlines()[-1].split()
    assert (name, figure) == ("figure", "loader_ratio")
    assert float(value) > 1
