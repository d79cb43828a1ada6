from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depth_prior_ros.motion.gate import FrameRate

MS = 1_000_000


def seen(stamps_ms: list[float]) -> float | None:
    rate = FrameRate()
    for stamp in stamps_ms:
        rate.saw(round(stamp * MS))
    return rate.interval_ms


def test_the_median_interval() -> None:
    assert seen([0, 100, 200, 300, 400, 500]) == pytest.approx(100)
    # A pause, or one frame that got lost, changes nothing.
    assert seen([0, 33, 66, 99, 200, 233, 266, 5000, 5033, 5066]) == pytest.approx(33)


def test_too_few_images() -> None:
    assert seen([]) is None
    assert seen([0, 100, 200, 300, 400]) is None


def test_the_same_image_counts_once() -> None:
    assert seen([0, 0, 100, 100, 200, 0, 300, 300, 400, 500]) == pytest.approx(100)


def test_told_of_arrivals_and_of_frames() -> None:
    """Arrivals run ahead of the frame that is being processed."""
    rate = FrameRate()
    for i in range(20):
        rate.saw(i * 50 * MS)
        if i >= 5 and i % 3 == 0:
            rate.saw((i - 2) * 50 * MS)
            rate.saw((i - 2) * 50 * MS - MS)  # one that was never announced: too late to count
    assert rate.interval_ms == pytest.approx(50)


def test_a_clock_that_is_set_back() -> None:
    assert seen([10_000, 10_100, 10_200, 10_300, 10_400, 10_500, 0, 50, 100, 150, 200]) is None
    back = [10_000 + 100 * i for i in range(8)] + [50 * i for i in range(8)]
    assert seen([float(stamp) for stamp in back]) == pytest.approx(50)


def test_a_frame_that_took_longer_than_the_window() -> None:
    """At 30 Hz thirty images are a second, which a slow network may well take."""
    rate = FrameRate()
    for i in range(40):
        rate.saw(i * 33 * MS)
    rate.saw(2 * 33 * MS)
    assert rate.interval_ms == pytest.approx(33)


def test_another_rate_is_taken_up() -> None:
    slow = [100.0 * i for i in range(40)]
    fast = [slow[-1] + 33.0 * (i + 1) for i in range(31)]
    assert seen(slow + fast) == pytest.approx(33)


def test_reset() -> None:
    rate = FrameRate()
    for i in range(9):
        rate.saw(i * MS)
    rate.reset()
    assert rate.interval_ms is None


@given(st.lists(st.integers(-(10**12), 10**12), max_size=60))
def test_any_stamps(stamps: list[int]) -> None:
    rate = FrameRate()
    for stamp in stamps:
        rate.saw(stamp)
        assert rate.interval_ms is None or rate.interval_ms > 0


def test_two_threads() -> None:
    rate = FrameRate()
    errors: list[BaseException] = []

    def tell(start: int) -> None:
        try:
            for i in range(3000):
                rate.saw((start + 2 * i) * MS)
                _ = rate.interval_ms
        except BaseException as error:  # deque changed size while it was read
            errors.append(error)

    threads = [threading.Thread(target=tell, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_stamp_from_the_future_is_got_over() -> None:
    """One image with a wrong stamp, first or later, must not end the measuring."""
    hour = 3_600_000.0
    assert seen([hour, *[100.0 * i for i in range(20)]]) == pytest.approx(100)
    steady = [100.0 * i for i in range(12)]
    later = [steady[-1] + 33.0 * (i + 1) for i in range(30)]
    assert seen([*steady, hour, *later]) == pytest.approx(33)
