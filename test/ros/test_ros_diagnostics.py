"""What the node counts, and what it says about it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from depth_prior_ros.ros.diagnostics import (
    ERROR,
    LATENCY_PARTS,
    OK,
    SILENCE,
    STALE,
    STUCK,
    WARN,
    HealthLog,
    PercentileWindow,
    Report,
    Statistics,
    known_share,
    to_message,
)
from depth_prior_ros.share import large_images_environment

ACTIVE = {"state": "active"}


def test_a_paused_node_is_well_whatever_the_camera_does():
    now = [0.0]
    statistics = Statistics(clock=lambda: now[0])
    statistics.received()
    now[0] = STUCK + 1
    paused = {**ACTIVE, "enabled": "false", "publishers.image": "0"}
    report = statistics.report(paused)
    assert report.level == OK
    assert "~/enable" in report.message
    assert statistics.report({**paused, "enabled": "true"}).level == STALE


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=60), st.integers(1, 30))
def test_percentiles_are_of_the_newest_values(values, size):
    window = PercentileWindow(size)
    for value in values:
        window.add(value)
    assert window.percentile(95) == pytest.approx(np.percentile(values[-size:], 95))


def test_an_empty_window_has_no_percentile():
    assert PercentileWindow().percentile(50) is None


def test_counts_from_several_threads_are_complete():
    statistics = Statistics()

    def work() -> None:
        for _ in range(500):
            statistics.received()
            statistics.refused("truncated", "too short")
            statistics.inferred({"total": 1.0})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = statistics.report(ACTIVE).values
    assert values["received"] == values["inferred"] == values["refused.truncated"] == "2000"


def test_level_and_words_follow_what_happened_since_the_last_report():
    statistics = Statistics()
    assert statistics.report({"state": "inactive"}).level == OK
    assert statistics.report(ACTIVE).level == STALE
    statistics.received()
    statistics.inferred({"total": 20.0, "infer": 15.0})
    assert statistics.report(ACTIVE).level == OK
    statistics.inferred({"total": 20.0})
    statistics.refused("unknown_encoding", "encoding 'yuv9' is not known")
    report = statistics.report(ACTIVE)
    assert report.level == WARN
    assert "yuv9" in report.message
    statistics.refused("unknown_encoding", "encoding 'yuv9' is not known")
    assert statistics.report(ACTIVE).level == ERROR, "nothing but refused frames"
    statistics.received()
    assert statistics.report(ACTIVE).level == OK, "what is over is over"


@pytest.mark.parametrize("size", [0, 1242 * 375 * 3, 491_520])
def test_lost_images_name_their_cure(size):
    """Also where none ever arrived, so that nobody knows how large they are."""
    statistics = Statistics()
    if size:
        statistics.received(size)
    statistics.message_lost(3)
    report = statistics.report(ACTIVE)
    assert report.level == WARN
    assert "shared-memory segment" in report.message
    (profile,) = large_images_environment().values()
    assert Path(profile).is_file()
    assert f"_DEFAULT_PROFILES_FILE={profile}" in report.message
    assert report.values["message_lost"] == "3"


def test_small_images_are_not_lost_for_want_of_shared_memory():
    statistics = Statistics()
    statistics.received(100_000)
    statistics.message_lost(3)
    report = statistics.report(ACTIVE)
    assert report.level == WARN
    assert "fastdds" not in report.message
    assert "image_reliability" in report.message


def test_another_middleware_has_another_cure():
    statistics = Statistics(fast_dds=False)
    statistics.received(1242 * 375 * 3)
    statistics.message_lost(3)
    report = statistics.report(ACTIVE)
    assert "fastdds" not in report.message
    assert "net.core.rmem_max" in report.message


def test_where_only_calibration_comes_through_large_images_are_suspected():
    """As on distributions whose Python does not report lost messages."""
    statistics = Statistics()
    state = {**ACTIVE, "publishers.image": "1"}
    statistics.camera_info(1242, 375)
    report = statistics.report(state)
    assert report.level == STALE
    assert "fastdds_large_images.xml" in report.message
    assert "fastdds" not in statistics.report(state).message, "neither comes: the camera is off"


class Watch:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def test_motion_that_cannot_be_used_does_not_condemn_the_images():
    """Odometry of NaN, and a machine that takes longer for a frame than from report to report."""
    statistics = Statistics()
    statistics.received()
    statistics.refused("bad_odometry", "the speed of odometry is nan", frame=False)
    report = statistics.report(ACTIVE)
    assert report.level == WARN
    assert "bad_odometry" in report.message


def test_motion_that_cannot_be_used_does_not_hide_that_the_camera_is_missing():
    statistics = Statistics()
    statistics.refused("bad_odometry", "the speed of odometry is nan", frame=False)
    report = statistics.report({**ACTIVE, "publishers.image": "0"})
    assert report.level == STALE
    assert "nobody publishes the image topic" in report.message
    assert "bad_odometry" in report.message


def test_a_slow_camera_is_no_silent_one():
    """One image in one and a half seconds, and reports in between."""
    watch = Watch()
    statistics = Statistics(clock=watch)
    for _ in range(4):
        statistics.received()
        statistics.inferred({"total": 20.0})
        for _ in range(3):
            assert statistics.report(ACTIVE).level == OK
            watch.now += 0.25 * SILENCE
    watch.now += SILENCE
    assert statistics.report(ACTIVE).level == STALE


def test_images_of_which_nothing_becomes_are_an_error_in_words():
    watch = Watch()
    statistics = Statistics(clock=watch)
    levels = []
    for _ in range(4):
        statistics.received()
        report = statistics.report(ACTIVE)
        levels.append(report.level)
        watch.now += 0.6 * STUCK
    assert levels == [OK, OK, ERROR, ERROR]
    assert "none has become depth" in report.message
    statistics.inferred({"total": 20.0})
    statistics.received()
    assert statistics.report(ACTIVE).level == OK


@pytest.mark.parametrize("between", [{"state": "inactive"}, {**ACTIVE, "publishers.image": "0"}])
def test_an_image_that_was_given_up_is_not_waited_for(between):
    """The node was deactivated, or its camera went away, before the image's turn."""
    watch = Watch()
    statistics = Statistics(clock=watch)
    statistics.received()
    statistics.report(ACTIVE)
    watch.now += 2 * STUCK
    statistics.report(between)
    statistics.received()
    assert statistics.report(ACTIVE).level == OK


def test_remarks_are_said_whatever_happens():
    statistics = Statistics()
    remark = "depth is relative, not metres"
    assert statistics.report({"state": "inactive"}, [remark]).message.endswith(f"; {remark}")
    statistics.refused("truncated", "too short")
    message = statistics.report(ACTIVE, [remark]).message
    assert "truncated" in message
    assert remark in message


def test_a_backend_that_could_not_be_had_is_a_warning():
    statistics = Statistics()
    statistics.received()
    statistics.inferred({"total": 1.0})
    report = statistics.report({**ACTIVE, "backend_fell_back": "true"}, ["runs on torch on cpu"])
    assert report.level == WARN
    assert report.message == "1 depth image since the last report; runs on torch on cpu"


def test_refused_frames_are_counted_apart_from_other_messages():
    statistics = Statistics()
    statistics.refused("bad_odometry", "nan", frame=False)
    statistics.refused("truncated", "too short")
    values = statistics.report(ACTIVE).values
    assert (values["refused"], values["refused_frames"]) == ("2", "1")


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_latencies_are_split_and_given_as_three_percentiles(values):
    statistics = Statistics()
    for value in values:
        statistics.inferred({part: value * (i + 1) for i, part in enumerate(LATENCY_PARTS)})
    reported = statistics.report(ACTIVE).values
    for i, part in enumerate(LATENCY_PARTS):
        for percent in (50, 95, 99):
            expected = np.percentile(np.array(values) * (i + 1), percent)
            assert float(reported[f"latency_ms.{part}.p{percent}"]) == pytest.approx(
                expected, abs=0.051
            )


def test_the_message_holds_every_value_with_the_last_text_of_each_cause():
    statistics = Statistics()
    statistics.refused("truncated", "first")
    statistics.refused("truncated", "second")
    statistics.inferred({"total": 10.0, "infer": 5.0, "publish": 1.0, "wait": 0.0, "decode": 0.1})
    report = statistics.report({"state": "active", "backend": "openvino"})
    status = to_message(report, "depth_node: depth", "lite").status[0]
    values = {pair.key: pair.value for pair in status.values}
    assert values["backend"] == "openvino"
    assert values["refused.truncated"] == "2"
    assert values["refused.truncated.last"] == "second"
    assert values["latency_ms.total.p95"] == "10.0"
    assert (status.name, status.hardware_id) == ("depth_node: depth", "lite")
    assert status.level == bytes([report.level])


@pytest.mark.parametrize(
    ("known", "share"), [(0, "0"), (1, "0.0001"), (5_000, "0.5000"), (10_000, "1.0000")]
)
def test_depth_without_a_known_pixel_is_told(known, share):
    depth = np.full(10_000, np.inf, np.float32)
    depth[1::2] = np.nan
    depth[:known] = 7.0
    assert known_share(depth.reshape(100, 100)) == share
    statistics = Statistics()
    statistics.received()
    statistics.inferred({"total": 1.0})
    report = statistics.report({**ACTIVE, "known_share": share})
    assert report.level == (WARN if known == 0 else OK)
    assert ("max_depth_m" in report.message) is (known == 0)


class Log:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def info(self, text):
        self.lines.append(f"info {text}")

    def warning(self, text):
        self.lines.append(f"warning {text}")


@pytest.mark.parametrize(
    ("levels", "lines"),
    [
        ([OK, OK, OK, OK], []),
        ([WARN, OK, WARN, OK, WARN, WARN, WARN, OK], []),
        ([WARN, WARN, WARN, WARN, WARN], ["warning 3"]),
        ([STALE] * 4 + [OK] * 5, ["warning 3", "info well again: 7"]),
        ([STALE] * 4 + [WARN] + [STALE] * 5, ["warning 3"]),
        ([ERROR] * 4 + [WARN] * 4 + [OK], ["warning 3", "warning 7"]),
    ],
)
def test_a_level_that_lasts_is_logged_once(levels, lines):
    log = Log()
    times = iter(range(-1, 100))
    health = HealthLog(lambda: log, clock=lambda: next(times))
    for number, level in enumerate(levels):
        health.take(Report(level, str(number), {}))
    assert log.lines == lines
