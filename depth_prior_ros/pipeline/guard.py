"""When the multi-frame network is left out for a while: failures, memory, time budget."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

from depth_prior_ros.backends.base import BackendError

Fault = Literal["model_failed", "memory", "budget"]


class ModelFailedError(BackendError):
    """The single-frame network's answer is of no use: there is no depth of this frame."""


FAILURE_PAUSE = 30
"""Frames."""

_WINDOW = 20
_ENOUGH = 5
_LONGEST = 16  # times budget_pause


class MultiFrameGuard:
    """Counts frames. After a failure or too slow a median, multi-frame pauses, then tries again.

    failure_pause, budget_pause: frames to leave it out; may be changed between two frames. A pause
    after the budget is the longer one, and doubles each time that multi-frame is still too slow,
    up to 16 times: a machine that was too slow will hardly be faster a few seconds later, and
    every trial makes frames late.
    """

    def __init__(self, failure_pause: int = FAILURE_PAUSE, budget_pause: int = 100) -> None:
        self.failure_pause = failure_pause
        self.budget_pause = budget_pause
        self._fault: Fault | None = None
        self._detail: str | None = None
        self._remaining = 0
        self._patience = 1
        self._times: deque[float] = deque(maxlen=_WINDOW)

    def fault(self) -> Fault | None:
        """Why multi-frame must not run on this frame; to be asked once per frame."""
        if self._fault is None:
            return None
        if self._remaining <= 0:
            self._fault = self._detail = None
            return None
        self._remaining -= 1
        return self._fault

    @property
    def detail(self) -> str | None:
        """The fault in words; None without one."""
        return self._detail

    def failed(self, fault: Fault, detail: str | None = None) -> None:
        """Multi-frame has failed on this frame; `detail` in words."""
        self._fault, self._detail = fault, detail
        budget = fault == "budget"
        self._remaining = self._patience * self.budget_pause if budget else self.failure_pause

    def record_duration(self, milliseconds: float, budget_ms: float | None) -> None:
        """A whole frame with multi-frame took that long."""
        self._times.append(milliseconds)
        if budget_ms is None or len(self._times) < _ENOUGH:
            return
        usual = median(self._times)
        if usual <= budget_ms:
            self._patience = 1
            return
        self.failed("budget", f"{usual:.0f} ms a frame (median), budget {budget_ms:.0f} ms")
        self._patience = min(2 * self._patience, _LONGEST)
        self._times.clear()

    def end_pause(self, fault: Fault) -> None:
        """End a pause of this kind, as its cause is gone."""
        if fault == "budget":
            self._patience = 1
        if self._fault == fault:
            self._fault, self._detail, self._remaining = None, None, 0

    @property
    def median_ms(self) -> float | None:
        """The median over the recent multi-frame frames; None before there are any."""
        return median(self._times) if self._times else None

    def state(self) -> dict[str, Any]:
        """The pause, as plain data; measured times are left out."""
        names = ("fault", "detail", "remaining", "patience")
        return {name: getattr(self, f"_{name}") for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.reset()
        for name, value in state.items():
            setattr(self, f"_{name}", value)

    def reset(self) -> None:
        """Forget failures and times."""
        self._fault, self._detail, self._remaining, self._patience = None, None, 0, 1
        self._times.clear()


# As PyTorch, CUDA's libraries, ONNX Runtime, OpenVINO, OpenCV and C++ put it.
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "insufficient memory",
    "allocate memory",
    "alloc_failed",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whichever library, means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(sign in text for sign in _NO_MEMORY)


def release_references(error: BaseException) -> None:
    """Drop what the frames that an exception came through still hold.

    As long as it is being handled, its traceback keeps their variables, and with them the very
    tensors that filled the memory.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
