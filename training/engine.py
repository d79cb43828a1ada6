"""The training loop: one stage from its last checkpoint to its last step.

Everything random in a step is a function of (seed, stage, step), so a run that was killed and
started again ends with the same numbers as one that was not (same machine, CPU, fp32).
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Schedule

LAST = "last.safetensors"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class TrainingStage(Protocol):
    """What the engine asks of a stage."""

    name: str

    @property
    def schedule(self) -> Schedule:
        """Length and learning rate."""
        ...

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks, by name: what a checkpoint holds."""
        ...

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn, in a fixed order."""
        ...

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a batch and return its loss and what to log of it."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on data that is not trained on."""
        ...

    def pictures(self, folder: Path, step: int) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for people."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a stage is run; see the recipe's fields of the same names."""

    seed: int
    stage_number: int
    device: torch.device
    precision: str
    checkpoint_every: int
    validate_every: int
    log_every: int


@dataclass
class Engine:
    """Runs one stage in ``folder``, resuming where an earlier run of it stopped."""

    stage: TrainingStage
    folder: Path
    settings: Settings
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self) -> dict[str, Any]:
        """Train to the last step and return the progress (step, loss, validation figures).

        Raises:
            TrainingError: loss or gradient is not finite (the step can be repeated: its number is
                named); another recipe's checkpoint lies in the folder.
            KeyboardInterrupt: after a checkpoint was written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        schedule = self.stage.schedule
        optimiser = torch.optim.Adam(self.stage.trained, lr=schedule.learning_rate)
        progress = self._resume(optimiser)
        log = _Log(self.folder, progress["step"])
        with self._interrupts() as interrupted, self._bar(progress["step"]) as bar:
            while progress["step"] < schedule.steps:
                step = progress["step"]
                started = time.perf_counter()
                values = self._step(step, optimiser)
                progress |= {"step": step + 1, "loss": values["loss"]}
                done = step + 1 == schedule.steps
                if step % self.settings.log_every == 0 or done:
                    values["seconds"] = time.perf_counter() - started
                    log.scalars(step + 1, values)
                if (step + 1) % self.settings.validate_every == 0 or done:
                    progress["validation"] = self._validate(step + 1, log)
                if (step + 1) % self.settings.checkpoint_every == 0 or done or interrupted():
                    save_checkpoint(self.folder / LAST, self.stage.networks, optimiser, progress)
                bar(step + 1, values["loss"])
                if interrupted() and not done:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1}; the same command goes on from there"
                    )
        log.close()
        return progress

    def _resume(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        path = self.folder / LAST
        if not path.is_file():
            return {"step": 0, "loss": math.nan}
        progress = load_checkpoint(path, self.stage.networks, optimiser)
        self.console.print(f"{self.stage.name}: going on after step {progress['step']}")
        return progress

    def _step(self, step: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        settings, schedule = self.settings, self.stage.schedule
        key = [settings.seed, settings.stage_number, step]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        for network in self.stage.networks.values():
            network.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, step)
        optimiser.zero_grad(set_to_none=True)
        loss, values = self.stage.loss(np.random.default_rng(key))
        if not torch.isfinite(loss):
            raise TrainingError(f"{self.stage.name}: loss is {loss.item()} at step {step}")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.stage.trained, schedule.clip)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"{self.stage.name}: gradient norm is {norm.item()} at step {step}; "
                "lower learning_rate or set precision: fp32"
            )
        optimiser.step()
        return {"loss": loss.item(), "gradient_norm": norm.item(), **values}

    def _validate(self, step: int, log: _Log) -> dict[str, float]:
        for network in self.stage.networks.values():
            network.eval()
        with torch.no_grad():
            figures = self.stage.validate()
            pictures = self.stage.pictures(self.folder, step)
        log.scalars(step, {f"validation/{k}": v for k, v in figures.items()})
        log.pictures(step, pictures)
        if figures:
            text = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
            self.console.print(f"{self.stage.name} step {step}: {text}")
        return figures

    @contextmanager
    def _interrupts(self) -> Iterator[Any]:
        caught: list[int] = []
        before = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
        except ValueError:  # not the main thread: leave signals to whoever runs it
            yield lambda: False
            return
        try:
            yield lambda: bool(caught)
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def _bar(self, start: int) -> Iterator[Any]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(
                self.stage.name, total=self.stage.schedule.steps, completed=start, loss=math.nan
            )
            yield lambda step, loss: progress.update(task, completed=step, loss=loss)


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then a half cosine down to ``final`` times the learning rate."""
    if step < schedule.warm_up:
        return schedule.learning_rate * (step + 1) / schedule.warm_up
    share = (step - schedule.warm_up) / max(schedule.steps - schedule.warm_up, 1)
    low = schedule.final
    return schedule.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))


class _Log:
    """metrics.jsonl and TensorBoard events; lines after the resumed step are dropped."""

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
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        for name, image in pictures.items():
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return 1 << 62
