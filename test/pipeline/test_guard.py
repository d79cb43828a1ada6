from __future__ import annotations

import weakref

import pytest

from depth_prior_ros.pipeline.guard import MultiFrameGuard, is_out_of_memory, release_references


def test_obstacles_have_words_while_they_last() -> None:
    guard = MultiFrameGuard(failure_pause=2)
    assert guard.detail is None
    guard.failed("memory", "no room")
    assert [guard.fault(), guard.detail] == ["memory", "no room"]
    assert [guard.fault(), guard.detail] == ["memory", "no room"]
    assert [guard.fault(), guard.detail] == [None, None]


def test_the_budget_in_words() -> None:
    guard = MultiFrameGuard(budget_pause=1)
    for milliseconds in (120, 80, 130, 125, 127):
        assert guard.fault() is None
        guard.record_duration(milliseconds, 100.0)
    assert guard.fault() == "budget"
    assert guard.detail == "125 ms a frame (median), budget 100 ms"
    assert guard.median_ms is None  # a new attempt is measured by its own frames


def pause_after(guard: MultiFrameGuard, milliseconds: float) -> int:
    """Frames without multi-frame after five with it that took so long."""
    for _ in range(5):
        assert guard.fault() is None
        guard.record_duration(milliseconds, 100.0)
    count = 0
    while guard.fault() is not None:
        count += 1
    return count


def test_each_vain_trial_doubles_the_pause() -> None:
    guard = MultiFrameGuard(budget_pause=10)
    found = [pause_after(guard, 120) for _ in range(7)]
    assert found == [10, 20, 40, 80, 160, 160, 160]
    assert pause_after(guard, 80) == 0
    assert [pause_after(guard, 300) for _ in range(2)] == [10, 20]
    for forget in (guard.reset, lambda: guard.end_pause("budget")):
        forget()
        assert pause_after(guard, 300) == 10


def test_a_few_slow_frames_do_not_count() -> None:
    guard = MultiFrameGuard()
    for milliseconds in (80, 500, 80, 500, 80, 80):
        guard.record_duration(milliseconds, 100.0)
    assert guard.fault() is None
    assert guard.median_ms == 80


def test_no_budget() -> None:
    guard = MultiFrameGuard()
    for _ in range(10):
        guard.record_duration(1e6, None)
    assert guard.fault() is None


@pytest.mark.parametrize(("ended", "left"), [("budget", None), ("memory", "budget")])
def test_the_end_of_a_pause_ends_only_its_own(ended: str, left: str | None) -> None:
    guard = MultiFrameGuard()
    guard.failed("budget", "slow")
    guard.end_pause(ended)  # type: ignore[arg-type]
    assert guard.fault() == left


def test_pauses_may_be_changed() -> None:
    guard = MultiFrameGuard(failure_pause=5)
    guard.failure_pause = 1
    guard.failed("model_failed")
    assert [guard.fault() for _ in range(2)] == ["model_failed", None]


def test_reset() -> None:
    guard = MultiFrameGuard()
    guard.failed("memory", "no room")
    guard.reset()
    assert guard.fault() is None
    assert guard.detail is None


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory: you tried to"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 4096"), True),
        (RuntimeError("OpenCV(5.0.0) error: (-4:Insufficient memory) Failed to allocate"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("memory"), False),
    ],
)
def test_what_counts_as_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory


class Block:
    """Memory that a network has taken."""


def test_letting_go_of_what_an_exception_holds() -> None:
    held: list[weakref.ref[Block]] = []

    def take() -> None:
        block = Block()
        held.append(weakref.ref(block))
        raise MemoryError

    def convert() -> None:
        try:
            take()
        except MemoryError as error:
            block = Block()
            held.append(weakref.ref(block))
            raise RuntimeError("out of memory") from error

    try:
        convert()
    except RuntimeError as error:
        assert [block() is None for block in held] == [False, False]
        release_references(error)
        assert [block() is None for block in held] == [True, True]
        assert str(error) == "out of memory"
