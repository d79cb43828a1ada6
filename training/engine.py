"""The training loop: one stage from its last checkpoint to its last step.

Everything random in a step is a function of (seed, stage, step), so a run that was killed and
started again ends with the same numbers as one that was not (same machine, CPU, fp32).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Schedule
from training.progress import StageLog, show_progress

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

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for people."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a stage is run; see the recipe's fields of the same names."""

    seed: int
    stage_number: int
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
            TrainingError: loss or gradient is not finite; the message names the step.
            CheckpointError: the folder's checkpoint is damaged, or a new one cannot be written.
            KeyboardInterrupt: after a checkpoint was written; a second Ctrl-C does not wait for it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        schedule = self.stage.schedule
        optimiser = torch.optim.Adam(self.stage.trained, lr=schedule.learning_rate)
        progress = self._resume(optimiser)
        start = progress["step"]
        if start >= schedule.steps:
            return progress
        with (
            closing(StageLog(self.folder, start)) as log,
            self._interrupts() as interrupted,
            show_progress(self.console, self.stage.name, start, schedule.steps) as show,
        ):
            for step in range(start, schedule.steps):
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
                show(step + 1, values["loss"])
                if interrupted() and not done:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1}; the same command goes on from there"
                    )
        return progress

    def _resume(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        path = self.folder / LAST
        if not path.is_file():
            return {"step": 0, "loss": math.nan}
        progress = load_checkpoint(path, self.stage.networks, optimiser)
        done = progress["step"] >= self.stage.schedule.steps
        state = "done before" if done else f"going on after step {progress['step']}"
        self.console.print(f"{self.stage.name}: {state}")
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
            raise self._diverged("loss", loss, step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.stage.trained, schedule.clip)
        if not torch.isfinite(norm):
            raise self._diverged("gradient norm", norm, step)
        optimiser.step()
        rate = optimiser.param_groups[0]["lr"]
        figures = {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        return figures | values

    def _diverged(self, what: str, value: Tensor, step: int) -> TrainingError:
        return TrainingError(
            f"{self.stage.name}: {what} is {value.item()} at step {step}; the checkpoint before is "
            "kept. Lower learning_rate or set precision: fp32, and give --out another folder "
            "(this run would come to the same step again)"
        )

    def _validate(self, step: int, log: StageLog) -> dict[str, float]:
        for network in self.stage.networks.values():
            network.eval()
        with torch.no_grad():
            figures = self.stage.validate()
            pictures = self.stage.pictures()
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

        def catch(number: int, _frame: object) -> None:
            caught.append(number)
            signal.signal(signal.SIGINT, before)  # whoever presses twice does not want to wait

        try:
            signal.signal(signal.SIGINT, catch)
        except ValueError:  # not the main thread: leave signals to whoever runs it
            yield lambda: False
            return
        try:
            yield lambda: bool(caught)
        finally:
            signal.signal(signal.SIGINT, before)


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then a half cosine down to ``final`` times the learning rate."""
    if step < schedule.warm_up:
        return schedule.learning_rate * (step + 1) / schedule.warm_up
    share = (step - schedule.warm_up) / max(schedule.steps - schedule.warm_up, 1)
    low = schedule.final
    return schedule.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
