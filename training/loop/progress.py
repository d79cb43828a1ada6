"""How a stage tells of itself: metrics.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from training.errors import TrainingError
from training.evaluation.json import write_text

Report = Callable[[int, float], None]

# Seconds between two lines where the output is a file or a pipe.
_BETWEEN_LINES = 30.0


class StageLog:
    """metrics.jsonl and TensorBoard events; what was written after `step` is dropped.

    Raises:
        TrainingError: either cannot be written, on a full disk for example.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        if self._path.is_file():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with self._writing():
                write_text("".join(line + "\n" for line in kept), self._path)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of figures."""
        with self._writing():
            self._line(step, values)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def event(self, step: int, event: dict[str, Any]) -> None:
        """One line about something that happened, such as a warning with its ``text``."""
        with self._writing():
            self._line(step, event)
            self._board.add_text(event["kind"], event["text"], step)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8, to TensorBoard only."""
        with self._writing():
            for name, image in pictures.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events; silent on a full disk, which was or will be told by what matters."""
        with suppress(OSError):
            self._board.close()

    def _line(self, step: int, values: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._path.parent} cannot be written: {error}; once that is mended (a full "
                "disk?) the same command goes on from the last checkpoint"
            ) from error


class NoLog(StageLog):
    """What processes other than the first write: nothing."""

    def __init__(self) -> None:
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def event(self, step: int, event: dict[str, Any]) -> None:
        """Nothing."""

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


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
        yield _lines(console, name, start, total)
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


def _lines(console: Console, name: str, start: int, total: int) -> Report:
    began, last = time.monotonic(), -math.inf

    def report(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if step == total or now - last >= _BETWEEN_LINES:
            last = now
            left = (now - began) / (step - start) * (total - step)
            text = f"{name}: step {step} of {total}, loss {loss:.4f}, {duration(left)} left"
            console.print(text, highlight=False)

    return report


def duration(seconds: float) -> str:
    """A time for people: ``1:02:03`` hours, or ``4:05`` minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
