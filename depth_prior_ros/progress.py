"""How far long work has got: a bar on a terminal, a line every half minute in a log file."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

_BETWEEN_LINES = 30.0  # seconds, where the output is a file or a pipe
_AT_FIRST = "opening"
_ROUGH = 30.0  # seconds for which an estimate of the time left is called rough


class Progress(Protocol):
    """Told in words what is being done, and how much of it is done."""

    def __call__(self, what: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """`done` of `total` steps of `what`; 0 of 0 where that is not known."""


def quiet(what: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """A `Progress` that says nothing."""


class ProgressBar:
    """A `Progress` on standard error, as a context.

    Without a terminal a thread of its own speaks, so that a step of minutes is no silence.

    Args:
        console: where to write; default: standard error.
        ends: also write a line at the first and at the last step.
    """

    def __init__(self, console: Console | None = None, ends: bool = False) -> None:
        self._given, self._ends = console, ends
        self._bar: RichProgress | None = None
        self._stop = threading.Event()
        self._latest = (_AT_FIRST, 0, 0, "")
        self._began = (0.0, 0)  # when the latest `what` was first told, and how much was done

    def __enter__(self) -> ProgressBar:
        from rich.console import Console

        self._console = self._given or Console(stderr=True)
        if self._console.is_terminal:
            self._start_bar()
        else:
            threading.Thread(target=self._speak, daemon=True, name="progress").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Show `done` of `total` steps of `what`; 0 of 0 where that is not known."""
        fresh = what != self._latest[0]
        if fresh:
            self._began = time.monotonic(), done
        first = self._latest[1] == self._began[1] < done
        self._latest = what, done, total, note
        if self._bar is not None:
            task = self._bar.tasks[0]
            if fresh:
                self._bar.reset(task.id, description=what, completed=done)
            self._bar.update(task.id, completed=done, total=total or None, note=note)
        elif self._ends and (first or done == total > 0):
            self._print()

    def _start_bar(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=not self._ends,
        )
        self._bar.start()
        self._bar.add_task(_AT_FIRST, total=None, note="")

    def _speak(self) -> None:
        while not self._stop.wait(_BETWEEN_LINES):
            self._print()

    def _print(self) -> None:
        what, done, total, note = self._latest
        counted = f"{what} {done} of {total}" if total else what
        text = ", ".join(part for part in (counted, note, self._left(done, total)) if part)
        self._console.print(text, markup=False, highlight=False)

    def _left(self, done: int, total: int) -> str:
        """The time until all is done, in words; empty where nothing can be said."""
        start, before = self._began
        passed = time.monotonic() - start
        if not before < done <= total:
            return ""
        left = duration(passed / (done - before) * (total - done))
        return f"{left} left" if passed > _ROUGH or done == total else f"roughly {left} left"


def duration(seconds: float) -> str:
    """A time for people: ``1:02:03`` hours, or ``4:05`` minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
