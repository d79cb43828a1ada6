"""What the node counts, and what it says about it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from depth_prior_ros.ros.diagnostics import (
    ERROR,
    OK,
    STALE,
    WARN,
    PercentileWindow,
    Statistics,
    to_message,
)

ACTIVE = {"state": "active"}


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


def test_lost_messages_name_their_cure():
    statistics = Statistics()
    statistics.received()
    statistics.message_lost(3)
    report = statistics.report(ACTIVE)
    assert report.level == WARN
    assert "fastdds_large_images.xml" in report.message
    assert report.values["message_lost"] == "3"


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
