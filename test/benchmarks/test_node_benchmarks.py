"""What the node's benchmarks compute from their measurements."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from instant_networks import InstantBackend
from node_load import Load, growth, percentile
from node_overhead import PARTS, Times


def memory(minutes: float, resident: list[float]) -> list[dict[str, float]]:
    """Samples at equal distances."""
    at = np.linspace(0, 60 * minutes, len(resident))
    return [
        {"at": float(t), "resident": r, "own": r / 2} for t, r in zip(at, resident, strict=True)
    ]


def test_growth_is_from_minute_two_to_the_end():
    # A step in minute 1 (buffers that fill) does not count, a slow leak of 1 MiB a minute does.
    series = [100.0 + (50.0 if t >= 60 else 0.0) + t / 60 for t in range(601)]
    grown = growth(memory(10, series), 10)
    # From the middle of [2:00, 2:30) to that of the last half minute.
    assert grown["resident"] == pytest.approx((585 - 134.5) / 60, abs=0.02)
    assert grown["own"] == pytest.approx(grown["resident"] / 2)


def test_growth_of_a_short_soak():
    series = [100.0] * 12 + [200.0] * 49
    assert growth(memory(1, series), 1)["resident"] == 0.0


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 3.0), (95, 5.0), (100, 5.0)])
def test_percentile(percent, value):
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], percent) == value


def test_percentile_of_nothing_is_no_number():
    assert np.isnan(percentile([], 50))


def test_shares_and_rates_of_a_load():
    counts = {"received": 90, "inferred": 45, "dropped_stale": 40, "refused": 0, "message_lost": 10}
    infer = {"p50": 100.0, "p95": 120.0}
    ages = [100.0, 150.0, 200.0]
    load = Load("default", 10.0, 100, 0, "single_frame x", counts, infer, ages, {"a": [1.0]})
    assert load.inferred_per_second == 4.5
    assert load.lost_share == pytest.approx(0.1)
    assert load.dropped_share == pytest.approx(40 / 90)
    assert load.age_in_inferences(95) == pytest.approx(200 / 120)
    assert load.calls_of("a", "b") == [1.0]


def test_times_are_kept_by_part():
    times = Times()
    with times(PARTS[0]):
        pass
    assert 0 <= times.percentile(PARTS[0], 50) < 1000


def test_instant_networks_answer_as_the_real_ones_did_once():
    import torch

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Sigmoid())
    example = np.ones((1, 3, 8, 16), np.float32)
    run = InstantBackend().compile(net, (example,))
    (answer,) = run(np.zeros_like(example))
    with torch.no_grad():
        expected = net(torch.from_numpy(example)).numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-6)
