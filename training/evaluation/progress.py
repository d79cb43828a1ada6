"""How far an evaluation has got: a bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# Seconds between two lines of a log file.
_QUIET = 30.0


class ProgressBar:
    """A `Progress` on standard error, as a context; `done` of `total` of the latest `what`."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            console = Console(stderr=True)
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._bar.add_task("opening", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show `done` of `total` steps of `what`; 0 of 0 where that is not known."""
        if self._bar is not None:
            task = self._bar.tasks[0]
            if task.description != what:
                self._bar.reset(task.id, description=what)
            self._bar.update(task.id, completed=done, total=total or None)
        elif time.monotonic() - self._last_line > _QUIET:
            self._last_line = time.monotonic()
            print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)
