"""How a stage tells of itself: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from depth_prior_ros.atomic_files import write_text
from training.errors import TrainingError


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
                write_text(self._path, "".join(line + "\n" for line in kept))
        _quieten_writer_threads()
        with self._writing():
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


def _quieten_writer_threads() -> None:
    """Leave out the traceback of TensorBoard's thread on a full disk.

    The thread keeps what it met and raises it at the next write, where it becomes one line.
    """
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        writer = type(failure.thread).__module__.startswith("tensorboard.")
        if not (writer and issubclass(failure.exc_type, OSError)):
            before(failure)

    hook.told = True  # type: ignore[attr-defined]
    if not hasattr(before, "told"):
        threading.excepthook = hook


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
