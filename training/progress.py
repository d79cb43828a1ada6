"""How a stage tells of itself: metrics.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, float], None]

# Seconds between two lines where the output is a file or a pipe.
_BETWEEN_LINES = 30.0


class StageLog:
    """metrics.jsonl and TensorBoard events; what was written after `step` is dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        if self._path.is_file():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            temporary = self._path.with_suffix(".partial")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(self._path)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of figures."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8, to TensorBoard only."""
        for name, image in pictures.items():
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        self._board.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return 1 << 62


@contextmanager
def show_progress(console: Console, name: str, start: int, total: int) -> Iterator[Report]:
    """A function to call with step and loss: moves a bar, or writes a line now and then.

    The bar is for terminals; a log file gets the first step, the last one, and a line about every
    half minute in between.
    """
    if not console.is_terminal:
        yield _lines(console, name, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=start, loss=math.nan)
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)


def _lines(console: Console, name: str, total: int) -> Report:
    last = -math.inf

    def report(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if step == total or now - last >= _BETWEEN_LINES:
            last = now
            console.print(f"{name}: step {step} of {total}, loss {loss:.4f}", highlight=False)

    return report
