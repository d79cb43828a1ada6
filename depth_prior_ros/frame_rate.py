"""How often a camera sends images: what a frame may cost at most."""

from __future__ import annotations

import threading
from collections import deque
from itertools import pairwise
from statistics import median

_WINDOW = 30
_ENOUGH = 5
_SET_BACK_NS = 2_000_000_000  # before the oldest stamp that is known; less than this is just late
_MISLED = 5  # late ones in a row: it was the newest stamp that was wrong


class FrameRate:
    """The median interval between the stamps of a camera's images.

    Told of every image that arrives, it knows the camera's rate; told only of those that were
    processed, as in a replay that waits, it knows theirs. Any thread may tell and ask.
    """

    def __init__(self) -> None:
        self._stamps: deque[int] = deque(maxlen=_WINDOW)
        self._late = 0
        self._lock = threading.Lock()

    def saw(self, stamp_ns: int) -> None:
        """An image with this stamp came; the same stamp again counts once."""
        with self._lock:
            if stamp_ns in self._stamps:
                return
            if self._stamps and stamp_ns < self._stamps[0] - _SET_BACK_NS:
                self._stamps.clear()  # the clock was set back, or a bag began again
            if self._stamps and stamp_ns < self._stamps[-1]:
                self._late += 1  # its place in the sequence was another
                if self._late < _MISLED:
                    return
                self._stamps.clear()
            self._late = 0
            self._stamps.append(stamp_ns)

    @property
    def interval_ms(self) -> float | None:
        """Median milliseconds between two images; None before there are enough."""
        with self._lock:
            steps = [(b - a) * 1e-6 for a, b in pairwise(self._stamps)]
        return median(steps) if len(steps) >= _ENOUGH else None

    def reset(self) -> None:
        """Forget all stamps."""
        with self._lock:
            self._stamps.clear()
            self._late = 0
