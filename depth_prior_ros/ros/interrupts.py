"""SIGINT and SIGTERM of the node's process: the first one ends it, the next do not disturb the end.

Service managers signal every process of a service, and launch hands the signal on that it got
itself: most nodes hear two within milliseconds. Imports nothing that takes time.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

TOGETHER = 1.0
"""Seconds within which a further signal means the same as the one before."""


class _Interrupt:
    """A handler that raises KeyboardInterrupt for the first of several signals."""

    def __init__(self) -> None:
        self._before = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before, self._before = self._before, time.monotonic()
        if self._before - before > TOGETHER:
            raise KeyboardInterrupt


def listen() -> None:
    """From now on either signal raises KeyboardInterrupt in the main thread."""
    handler = _Interrupt()
    for number in SIGNALS:
        signal.signal(number, handler)


def ignore() -> None:
    """From now on neither does anything, until the process has ended. In the main thread only."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
