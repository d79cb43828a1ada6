from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import (
    SCALE_MODES,
    AutoScale,
    FilterSettings,
    FixedScale,
    OdometryScale,
    RoadSettings,
    Scale,
    ScaleSight,
    focal_ratio,
    make_scale,
)
from depth_prior_ros.scale import measured as filter_module
from depth_prior_ros.scale.measured import FactorFilter, weighted_median

FOCAL = st.floats(1.0, 1e4)
CAMERA = Camera(92.0, 90.0, 79.5, 22.0, 160, 48)


def step(metres: float | None = 1.0, units: float | None = 0.1, **values: Any) -> ScaleSight:
    """A step of the vehicle, by default a tenth of a second of driving at 10 m per unit."""
    known: dict[str, Any] = {"moving": True, "seconds": 0.1, **values}
    return ScaleSight(0, None, CAMERA, units_travelled=units, metres_travelled=metres, **known)


def odometry(**settings: Any) -> OdometryScale:
    return OdometryScale(FixedScale(10.0, "the bundle"), FilterSettings(**settings))


def drive(scale: Scale, factor: float, frames: int) -> list[float]:
    """The published factor after each of the frames, all of which measure `factor`."""
    published = []
    for _ in range(frames):
        scale.observe(step(units=1.0 / factor))
        published.append(scale.metres_per_unit)
    return published


# -- given factors ---------------------------------------------------------------------------------


@given(st.one_of(st.floats(max_value=0.0), st.just(math.nan), st.just(math.inf)))
def test_a_factor_that_cannot_be(factor: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        FixedScale(factor)


def test_fixed_scale_says_where_it_is_from() -> None:
    scale = FixedScale(21.5, "fitted on a drive")
    assert (scale.metres_per_unit, scale.source) == (21.5, "fitted on a drive")
    assert (scale.status.mode, scale.status.state) == ("fixed", "fixed")
    assert "fitted on a drive" in scale.status.text


@pytest.mark.parametrize("mode", ["fixed", "none"])
def test_given_factors_do_not_learn(mode: str) -> None:
    scale = make_scale(mode, fixed=10.0, source="given")
    before = scale.status
    drive(scale, 20.0, 100)
    scale.restore({"metres_per_unit": 3.0})
    scale.reset()
    assert scale.status == before and scale.metres_per_unit == 10.0
    assert not scale.needs_depth and not scale.needs_travel
    assert before.spread is None and before.state == mode


def test_without_metres_it_says_so() -> None:
    assert "not metres" in make_scale("none", fixed=10.0, source="given").status.text


@given(fx=FOCAL, fy=FOCAL, zoom=st.floats(0.1, 10.0))
def test_focal_ratio_is_the_zoom(fx: float, fy: float, zoom: float) -> None:
    assert focal_ratio(fx * zoom, fy * zoom, fx, fy) == pytest.approx(zoom)
    assert focal_ratio(fx, fy, fx * zoom, fy * zoom) == pytest.approx(1 / zoom)


def test_auto_is_the_given_factor_until_odometry_measures_another() -> None:
    scale = make_scale("auto", fixed=10.0, source="fitted on a drive")
    scale.observe(step(metres=None))
    assert (scale.status.state, scale.status.spread) == ("fixed", None)
    assert "fitted on a drive" in scale.status.text and not scale.status.unsure
    assert scale.status.preliminary
    drive(scale, 12.0, 1)
    assert scale.status.state == "searching" and scale.status.unsure
    drive(scale, 12.0, 100)
    assert scale.status.state == "measured" and not scale.status.preliminary
    assert scale.metres_per_unit == pytest.approx(12.0, rel=1e-3)
    scale.reset()
    assert scale.status.state == "fixed"


def test_frames_between_two_measurements_are_no_complaint() -> None:
    scale = odometry()
    drive(scale, 12.0, 20)
    known = scale.status
    scale.observe(step(units=None, looked=False))
    assert scale.status.text.count("(") == known.text.count("(")
    scale.observe(step(units=None))
    assert "saw no motion" in scale.status.text


def test_it_goes_on_exactly_from_a_snapshot() -> None:
    first, second = (make_scale("auto", fixed=10.0, source="given") for _ in range(2))
    assert isinstance(first, AutoScale) and isinstance(second, AutoScale)
    drive(first, 12.0, 30)
    second.resume(json.loads(json.dumps(first.snapshot())))
    assert second.status == first.status
    assert drive(second, 14.0, 30) == drive(first, 14.0, 30)


# -- making ----------------------------------------------------------------------------------------


def test_every_mode_can_be_made() -> None:
    for mode in SCALE_MODES:
        scale = make_scale(mode, fixed=10.0, source="given", camera_height=1.6)
        assert scale.status.mode == mode and scale.metres_per_unit == 10.0
        assert scale.needs_depth == (mode == "camera_height")
        assert scale.needs_travel == (mode in ("auto", "odometry"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "lidar"}, "auto, fixed, camera_height, odometry, none"),
        ({"mode": "camera_height"}, "needs the camera's height"),
        ({"mode": "camera_height", "camera_height": 0.0}, "camera_height must be"),
        ({"mode": "camera_height", "camera_height": math.nan}, "camera_height must be"),
        ({"mode": "odometry", "fixed": -1.0}, "metres_per_unit must be"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scale(**{"fixed": 10.0, "source": "given", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"window": 0.0},
        {"window": math.nan},
        {"rate": 0.0},
        {"rate": 0.5, "first_rate": 0.1},
        {"min_samples": 0},
        {"limit": 1.0},
        {"limit": math.inf},
    ],
)
def test_filter_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(values)):
        FilterSettings(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"pitch": 1.0},
        {"pitch": math.nan},
        {"tilt": 0.0},
        {"reach": math.inf},
        {"ignore_bottom": 0.5},
        {"min_share": 0.0},
    ],
)
def test_road_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        RoadSettings(**values)


# -- the filter ------------------------------------------------------------------------------------


def naive_median(values: list[float], weights: list[int]) -> float:
    return float(np.median(np.repeat(values, weights)))


@given(
    st.lists(st.tuples(st.integers(-20, 20).map(float), st.integers(1, 5)), min_size=1, max_size=20)
)
def test_weighted_median_is_that_of_repeated_values(pairs: list[tuple[float, int]]) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    found = weighted_median(np.array(values), np.array(weights, float))
    assert found == pytest.approx(naive_median(values, weights))


@given(
    factors=st.lists(st.one_of(st.none(), st.floats(1.1, 90.0)), min_size=1, max_size=60),
    seconds=st.floats(0.0, 5.0),
    first_rate=st.floats(0.05, 1.0),
)
def test_the_factor_never_jumps(
    factors: list[float | None], seconds: float, first_rate: float
) -> None:
    settings = FilterSettings(first_rate=first_rate)
    tested = FactorFilter(10.0, settings)
    for factor in factors:
        before, arrived = tested.factor, tested.arrived
        tested.advance(seconds, factor)
        rate = settings.rate if arrived else first_rate
        moved = abs(math.log(tested.factor / before))
        assert moved <= rate * min(seconds, 0.2) + 1e-9


def test_nearly_half_of_the_measurements_may_be_nonsense() -> None:
    tested = FactorFilter(10.0, FilterSettings())
    rng = np.random.default_rng(3)
    for i in range(400):
        wrong = i % 5 < 2
        tested.advance(0.1, 60.0 if wrong else 12.0 * math.exp(0.05 * rng.standard_normal()))
    assert tested.factor == pytest.approx(12.0, rel=0.08)


def test_a_wrong_step_counts_no_more_than_a_right_one() -> None:
    """Poses that jump make steps long, and long steps weigh more: two of five, eight times."""
    scale = odometry()
    for i in range(200):
        scale.observe(step(metres=8.0 if i % 5 < 2 else 1.0, units=1 / 12.0))
    assert scale.metres_per_unit == pytest.approx(12.0, rel=0.01)


def test_a_long_window_is_not_sorted_with_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    weighted, taken = filter_module._weighted, []

    def count(window: Any) -> tuple[float, float]:
        taken.append(len(window))
        return weighted(window)

    monkeypatch.setattr(filter_module, "_weighted", count)
    short, long = (
        FactorFilter(10.0, FilterSettings()),
        FactorFilter(10.0, FilterSettings(window=99)),
    )
    for _ in range(100):
        short.advance(0.1, 11.0)
    assert len(taken) == 96
    taken.clear()
    for i in range(3000):
        long.advance(1 / 30, 11.0 if i < 1500 else 12.0)
    assert len(taken) < 1300  # of 2996
    assert taken[-1] > 2900
    for _ in range(3000):
        long.advance(1 / 30, 12.0)
    assert long.factor == pytest.approx(12.0, rel=1e-3)


def test_the_window_is_seconds_of_driving() -> None:
    tested = FactorFilter(10.0, FilterSettings(window=2.0))
    for _ in range(50):
        tested.advance(0.1, 10.0)
    assert tested.samples in (20, 21)
    tested.advance(2.5, None)
    assert tested.samples == 0 and not tested.enough


# -- measuring while driving -----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [10.0 / 3, 5.0, 9.5, 20.0, 30.0])
def test_arrives_within_five_seconds(factor: float) -> None:
    scale = odometry()
    published = drive(scale, factor, 50)
    assert published[-1] == pytest.approx(factor, rel=0.01)
    status = scale.status
    assert status.state == "measured" and status.samples == 50
    assert status.spread == pytest.approx(0.0, abs=1e-9)
    steps = np.abs(np.diff(np.log([10.0, *published])))
    assert steps.max() <= 0.3 * 0.1 + 1e-9


def test_afterwards_it_follows_slowly() -> None:
    scale = odometry(window=1.0)
    drive(scale, 10.0, 20)
    assert scale.status.state == "measured"
    published = drive(scale, 14.0, 20)
    assert np.abs(np.diff(np.log(published))).max() <= 0.05 * 0.1 + 1e-9
    assert published[-1] == pytest.approx(10.0 * math.exp(0.05 * 1.5), rel=0.02)


def test_nothing_is_believed_before_there_is_enough() -> None:
    scale = odometry(min_samples=5)
    assert drive(scale, 20.0, 4) == [10.0] * 4
    assert scale.status.state == "searching" and scale.status.spread is None
    assert drive(scale, 20.0, 1)[0] > 10.0
    assert scale.status.state == "searching"  # on its way


def test_held_while_stationary() -> None:
    scale = odometry()
    drive(scale, 12.0, 50)
    before = scale.status
    for _ in range(600):  # a minute at a red light, with nonsense from the pose network
        scale.observe(step(metres=0.3, units=1.0, moving=False))
    held = scale.status
    assert held.state == "held" and "stands" in held.text
    assert held.metres_per_unit == before.metres_per_unit
    assert (held.spread, held.samples) == (before.spread, before.samples)
    scale.observe(step(units=1 / 12.0))
    assert scale.status.state == "measured"


def test_standing_from_the_start_is_searching() -> None:
    scale = odometry()
    scale.observe(step(moving=False))
    assert scale.status.state == "searching" and scale.metres_per_unit == 10.0


def test_held_where_nothing_is_measured_any_more() -> None:
    scale = odometry(window=3.0)
    drive(scale, 12.0, 50)
    factor, spread = scale.metres_per_unit, scale.status.spread
    for _ in range(60):
        scale.observe(step(metres=None))
    status = scale.status
    assert (status.state, status.samples) == ("held", 0)
    assert (status.metres_per_unit, status.spread) == (factor, spread)
    assert "no odometry" in status.text


@pytest.mark.parametrize(
    ("sight", "reason"),
    [
        (step(metres=None), "no odometry"),
        (step(metres=math.nan), "no odometry"),
        (step(units=None), "saw no motion"),
        (step(units=0.0), "saw no motion"),
        (step(units=math.inf), "saw no motion"),
        (step(metres=0.05, units=0.01), "too short"),
        (step(units=1e-6), "implausible"),
        (step(units=50.0), "implausible"),
        (step(metres=0.5, radians_turned=0.2), "turns"),
    ],
)
def test_steps_that_measure_nothing(sight: ScaleSight, reason: str) -> None:
    scale = odometry()
    for _ in range(30):
        scale.observe(sight)
    status = scale.status
    assert (status.samples, status.state, status.metres_per_unit) == (0, "searching", 10.0)
    assert reason in status.text


@pytest.mark.parametrize("seconds", [None, math.nan, -1.0, 0.0])
def test_frames_without_an_interval_move_nothing(seconds: float | None) -> None:
    scale = odometry()
    for _ in range(30):
        scale.observe(step(units=1 / 20.0, seconds=seconds))
    assert scale.metres_per_unit == 10.0


def test_a_pause_moves_the_factor_no_further_than_a_frame() -> None:
    scale = odometry()
    drive(scale, 20.0, 10)
    before = scale.metres_per_unit
    scale.observe(step(units=1 / 20.0, seconds=5.0))
    assert math.log(scale.metres_per_unit / before) <= 0.3 * 0.2 + 1e-9


def test_reversing_counts_like_driving() -> None:
    scale = odometry()
    for _ in range(50):
        scale.observe(step(metres=-1.0, units=1 / 15.0))
    assert scale.metres_per_unit == pytest.approx(15.0, rel=0.01)


def test_spread_is_the_standard_deviation_of_single_measurements() -> None:
    scale = odometry(window=60.0)
    rng = np.random.default_rng(1)
    for _ in range(600):
        scale.observe(step(units=0.1 * math.exp(0.07 * rng.standard_normal())))
    assert scale.status.spread == pytest.approx(0.07, rel=0.15)


def test_reset_begins_anew() -> None:
    scale = odometry()
    drive(scale, 20.0, 50)
    scale.reset()
    status = scale.status
    assert (status.state, status.metres_per_unit, status.samples) == ("searching", 10.0, 0)
    assert status.spread is None
    assert drive(scale, 20.0, 50)[-1] == pytest.approx(20.0, rel=0.01)


# -- storing ---------------------------------------------------------------------------------------


def test_a_stored_factor_is_taken_up_where_it_was() -> None:
    first, second = odometry(), odometry()
    drive(first, 16.0, 50)
    second.restore(first.store())
    status = second.status
    assert status.metres_per_unit == first.metres_per_unit
    assert (status.state, status.samples) == ("held", 0)
    assert status.spread == first.status.spread
    published = drive(second, 20.0, 20)  # from now on it follows slowly
    assert np.abs(np.diff(np.log([16.0, *published]))).max() <= 0.05 * 0.1 + 1e-2 * 0.1


def test_a_factor_that_was_not_measured_is_only_a_start() -> None:
    first, second = odometry(), odometry()
    drive(first, 20.0, 10)
    assert first.status.state == "searching"
    second.restore(first.store())
    assert second.metres_per_unit == first.metres_per_unit
    assert second.status.state == "searching"
    second.reset()
    assert second.metres_per_unit == 10.0


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"metres_per_unit": "12"},
        {"metres_per_unit": True},
        {"metres_per_unit": -3.0},
        {"metres_per_unit": math.nan},
        {"metres_per_unit": 12.0, "spread": -0.1, "state": "measured"},
        {"metres_per_unit": 12.0, "spread": "wide", "state": "measured"},
        {"metres_per_unit": 2000.0},
    ],
)
def test_what_cannot_have_been_stored(stored: dict[str, Any]) -> None:
    scale = odometry()
    before = scale.status
    with pytest.raises(ValueError, match=r"metres_per_unit|spread|off the given"):
        scale.restore(stored)
    assert scale.status == before


# -- documents -------------------------------------------------------------------------------------


def test_every_reason_for_measuring_nothing_is_explained() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "metres.md").read_text(encoding="utf-8")
    sources = [
        root / "depth_prior_ros" / "scale" / f"{n}.py"
        for n in ("measured", "road", "tracks", "affine")
    ]
    reasons = [
        reason
        for source in sources
        for reason in re.findall(
            r'(?:NothingMeasuredError|NoRoadError)\(\s*f?"([^"{:]+)',
            source.read_text(encoding="utf-8"),
        )
    ]
    assert len(reasons) >= 10
    explained = [text.strip(" .:") for text in re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)]
    known = [r for r in reasons if any(r.strip().startswith(text) for text in explained if text)]
    # These need a frame that the pipeline never shows.
    unseen = {
        "no depth of this frame",
        "the depth is not of the camera's size",
        "no picture of this frame",
    }
    shortened = {"steps below "}  # a number follows
    assert set(reasons) - set(known) <= unseen | shortened
