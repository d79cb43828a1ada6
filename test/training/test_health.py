"""Collapse is told in words: once, early, and not for one odd batch."""

from __future__ import annotations

import json

import pytest

from training.loop.progress import RULES, WINDOW, Health

HEALTHY = {
    "loss": 0.1,
    "depth_mean": 3.0,
    "disparity_mean": 0.05,
    "disparity_spread": 0.6,
    "translation": 0.08,
    "auto_mask_share": 0.7,
    "multi/delta_mean": 0.4,
    "multi/at_clip": 0.02,
    "multi/at_range_end": 0.1,
    "distil/mask_share": 0.6,
}


def kinds(lines: list[dict[str, float]], health: Health | None = None) -> list[str]:
    health = health or Health()
    return [finding.kind for line in lines for finding in health.look(HEALTHY | line)]


def test_healthy_training_is_left_in_peace() -> None:
    assert kinds([{}] * 50) == []


@pytest.mark.parametrize(
    ("kind", "figure", "value"),
    [
        ("depth_far", "depth_mean", 99.0),
        ("depth_near", "depth_mean", 0.11),
        ("depth_far", "multi/depth_mean", 99.0),
        ("disparity_far", "disparity_mean", 1e-5),
        ("disparity_near", "disparity_mean", 0.99),
        ("depth_flat", "disparity_spread", 1e-4),
        ("motion_none", "translation", 1e-6),
        ("motion_exploded", "translation", 50.0),
        ("auto_mask_keeps_little", "auto_mask_share", 0.02),
        ("auto_mask_keeps_all", "auto_mask_share", 0.9999),
        ("stereo_other_side", "stereo_side", 0.3),
        ("map_at_clip", "multi/at_clip", 0.9),
        ("map_wide", "multi/delta_mean", 4.0),
        ("best_at_range_end", "multi/at_range_end", 0.8),
        ("teacher_not_believed", "distil/mask_share", 0.01),
        ("teacher_always_believed", "distil/mask_share", 1.0),
    ],
)
def test_every_collapse_has_its_words(kind: str, figure: str, value: float) -> None:
    health = Health()
    findings = [f for _ in range(20) for f in health.look(HEALTHY | {figure: value})]
    (finding,) = findings
    assert (finding.kind, finding.name) == (kind, figure)
    assert finding.text.startswith(f"{figure} is ") and len(finding.text) > 80
    event = finding.event()
    assert event["event"] == "warning" and event["kind"] == kind
    assert json.loads(json.dumps(event)) == event


def test_all_rules_are_tested_above() -> None:
    tested = test_every_collapse_has_its_words.pytestmark[0].args[1]
    assert {rule.kind for rule in RULES} == {kind for kind, _, _ in tested}


def test_one_odd_batch_is_no_alarm() -> None:
    assert kinds([{}] * 10 + [{"auto_mask_share": 0.0}] + [{}] * 10) == []
    assert kinds([{"translation": 0.0}] * (WINDOW - 1)) == [], "the first lines"


def test_another_collapse_is_told_too() -> None:
    lines = [{"depth_mean": 99.0}] * 10 + [{"depth_mean": 0.1}] * 10
    assert kinds(lines) == ["depth_far", "depth_near"]


def test_a_run_that_goes_on_says_what_an_unbroken_one_says() -> None:
    lines = [{}] * 3 + [{"translation": 0.0}] * 20
    whole, told = Health(), []
    for number, line in enumerate(lines):
        told += [(number, f.kind) for f in whole.look(HEALTHY | line)]
    again: list[tuple[int, str]] = []
    health = Health()
    for number, line in enumerate(lines):
        health = Health(json.loads(json.dumps(health.state)))  # killed after every line
        again += [(number, f.kind) for f in health.look(HEALTHY | line)]
    assert again == told and len(told) == 1
    assert health.state == whole.state


def test_a_figure_that_is_not_a_number_is_passed_over() -> None:
    """The share of an empty mask; a loss that is not finite stops the trainer itself."""
    health = Health()
    assert kinds([{"distil/mask_share": float("nan")}] * 10, health) == []
    assert kinds([{"distil/mask_share": 0.0}] * WINDOW, health) == ["teacher_not_believed"]
