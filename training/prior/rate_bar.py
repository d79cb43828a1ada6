"""How far a pass over a reference set has got, and how fast it is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# Seconds between two lines of a log file.
_QUIET = 30.0


class RateBar:
    """A `training.prior.selection.sweep.Progress` on standard error, as a context.

    A bar with the rate of operations on a terminal; elsewhere a line about every half minute.
    """

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> RateBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task("looking at images", total=None, rate="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0, rate: float = 0.0) -> None:
        """Show `done` of `total` references of pass `what`, at `rate` operations per second."""
        speed = f"{rate / 1e9:.1f} GFLOP/s" if rate else ""
        if self._bar is not None:
            task = self._bar.tasks[0]
            if task.description != what:
                self._bar.reset(task.id, description=what)
            self._bar.update(task.id, completed=done, total=total or None, rate=speed)
        elif time.monotonic() - self._last_line > _QUIET or (done == total and total > 0):
            self._last_line = time.monotonic()
            parts = [f"{what} {done}/{total}" if total else what, speed]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)
