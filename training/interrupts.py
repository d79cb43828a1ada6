"""Stopping between two steps: Ctrl-C, and the SIGTERM of schedulers, containers and torchrun."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """A function that says whether somebody asked to stop.

    Args:
        patient: repeated signals are ignored, because ``torchrun`` passes on what the terminal has
            sent to its processes already. Otherwise the second one does not wait for the step.
    """
    caught: list[int] = []
    # None: set by a library in C, which Python cannot set again.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, _frame: object) -> None:
        caught.append(number)
        if not patient:  # whoever presses twice does not want to wait
            restore()

    try:
        for number in _SIGNALS:
            signal.signal(number, catch)
    except ValueError:  # not the main thread: leave signals to whoever runs it
        yield lambda: False
        return
    try:
        yield lambda: bool(caught)
    finally:
        restore()
