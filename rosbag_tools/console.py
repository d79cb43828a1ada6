"""What the commands show: progress, tables, and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from depth_prior_ros.progress import ProgressBar
from depth_prior_ros.untrusted import printable, printable_lines


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields `update(done, total)`."""
    with ProgressBar() as bar:
        bar(text)
        yield lambda done, total: bar(text, done, total)


def show(*things: Any) -> None:
    """Print to stdout with rich's tables, without treating brackets in text as markup.

    Lines of text may name what strangers named: they are made printable. Cells of tables have to be
    by whoever fills them in.
    """
    from rich.console import Console

    # A file or a pipe has no width of its own; rich would take 80 columns and break tables.
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, soft_wrap=True, markup=False, width=width)
    for thing in things:
        console.print(printable_lines(thing) if isinstance(thing, str) else thing)


def show_skipped(skipped: list[Any], limit: int = 10) -> None:
    """Count and name what a recording left out."""
    if not skipped:
        return
    show(f"left out: {len(skipped)}")
    show(*(f"  {printable(entry)}" for entry in skipped[:limit]))
    if len(skipped) > limit:
        show(f"  and {len(skipped) - limit} more")


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
