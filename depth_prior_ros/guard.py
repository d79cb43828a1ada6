"""When the multi-frame network is left out for a while: failures, memory, time budget."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Literal

Obstacle = Literal["model_failed", "memory", "budget"]

_WINDOW = 20
_ENOUGH = 5


class MultiFrameGuard:
    """Counts frames. After a failure or too slow a median, multi-frame pauses, then tries again.

    failure_pause, budget_pause: frames to leave it out. A pause after the budget is the longer one:
    a machine that was too slow will hardly be faster a few seconds later.
    """

    def __init__(self, failure_pause: int = 30, budget_pause: int = 100) -> None:
        self._pauses: dict[Obstacle, int] = {
            "model_failed": failure_pause,
            "memory": failure_pause,
            "budget": budget_pause,
        }
        self._obstacle: Obstacle | None = None
        self._remaining = 0
        self._times: deque[float] = deque(maxlen=_WINDOW)

    def obstacle(self) -> Obstacle | None:
        """Why multi-frame must not run on this frame; to be asked once per frame."""
        if self._obstacle is None:
            return None
        if self._remaining <= 0:
            self._obstacle = None
            return None
        self._remaining -= 1
        return self._obstacle

    def failed(self, obstacle: Obstacle) -> None:
        """Multi-frame has failed on this frame."""
        self._obstacle, self._remaining = obstacle, self._pauses[obstacle]

    def took(self, milliseconds: float, budget_ms: float | None) -> None:
        """A whole frame with multi-frame took that long."""
        self._times.append(milliseconds)
        if budget_ms is None or len(self._times) < _ENOUGH:
            return
        if median(self._times) > budget_ms:
            self.failed("budget")
            self._times.clear()

    @property
    def median_ms(self) -> float | None:
        """The median over the recent multi-frame frames; None before there are any."""
        return median(self._times) if self._times else None

    def reset(self) -> None:
        """Forget failures and times."""
        self._obstacle, self._remaining = None, 0
        self._times.clear()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whichever library, means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "not enough memory", "bad_alloc"))
