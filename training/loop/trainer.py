"""The training loop: one stage from its last checkpoint to its last step.

Everything random in a step is a function of (seed, stage, step), so a run that was killed and
started again ends with the same numbers as one that was not (same machine, CPU, fp32).

Stopping between two steps: Ctrl-C, and the SIGTERM of schedulers, containers and torchrun.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from training.errors import TrainingError
from training.loop.checkpoint import (
    BEST,
    FAILED_BATCH,
    LAST,
    load_checkpoint,
    save_batch,
    save_checkpoint,
)
from training.loop.distributed import ALONE, Processes
from training.loop.health import Health
from training.loop.progress import NoLog, StageLog, show_progress

if TYPE_CHECKING:
    from training.stages.base import TrainingConfig

__all__ = ["BEST", "LAST", "Engine", "Settings", "TrainingError", "TrainingStage"]

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


class TrainingStage(Protocol):
    """What the engine asks of a stage.

    A stage may have besides:

    * ``at_step(step)``: called before the loss of each step, for what changes with time (a freeze);
    * ``last_batch``: the tensors of the last batch by name, saved when it makes training fail;
    * ``chosen_by``: the name of a validation figure; the networks are kept in ``best.safetensors``
      where it was lowest. Never one of a test set.

    On several processes, a stage draws the global batch and takes its share, and its loss is such
    that the mean over processes is the loss of the global batch (``training/loop/distributed.py``).
    """

    name: str

    @property
    def schedule(self) -> TrainingConfig:
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
        """Figures on data that is not trained on; the first process alone is asked."""
        ...

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for people; the first process alone is asked."""
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
    """Runs one stage in ``folder``, resuming where an earlier run of it stopped.

    All processes need to see the folder; the first one writes.
    """

    stage: TrainingStage
    folder: Path
    settings: Settings
    console: Console = field(default_factory=lambda: Console(stderr=True))
    processes: Processes = ALONE

    def run(self) -> dict[str, Any]:
        """Train to the last step and return the progress (step, loss, validation figures).

        Raises:
            TrainingError: loss or gradient is not finite; the message names the step and the file
                with the batch. Or the log cannot be written.
            CheckpointError: the folder's checkpoint is damaged, or a new one cannot be written.
            KeyboardInterrupt: after a checkpoint was written, on Ctrl-C or SIGTERM; a second
                Ctrl-C does not wait for it.
        """
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.console = Console(quiet=True)
        self.processes.barrier()
        optimiser = torch.optim.Adam(_groups(self.stage), lr=self.stage.schedule.learning_rate)
        progress = self._resume(optimiser)
        if progress["step"] < self.stage.schedule.steps:
            self._train(optimiser, progress)
        return progress

    def _train(self, optimiser: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
        start, steps, settings = progress["step"], self.stage.schedule.steps, self.settings
        health = Health(progress.get("health"))
        with (
            closing(StageLog(self.folder, start) if self.processes.is_first else NoLog()) as log,
            interrupts(patient=self.processes.count > 1) as interrupted,
            show_progress(self.console, self.stage.name, start, steps) as show,
        ):
            for step in range(start, steps):
                started = time.perf_counter()
                values, stop = self._step(step, optimiser, interrupted)
                progress |= {"step": step + 1, "loss": values["loss"]}
                done = step + 1 == steps
                if step % settings.log_every == 0 or done:
                    values = self.processes.mean_values(values)
                    values["seconds"] = time.perf_counter() - started
                    log.scalars(step + 1, values)
                    self._warn(step + 1, health, values, log)
                    progress["health"] = health.state
                if (step + 1) % settings.validate_every == 0 or done:
                    progress["validation"] = self._validate(step + 1, log)
                    self._keep_best(progress)
                if (step + 1) % settings.checkpoint_every == 0 or done or stop:
                    self._save(LAST, optimiser, progress)
                show(step + 1, values["loss"])
                if stop and not done:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1}; the same command goes on from there"
                    )

    def _resume(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        path = self.folder / LAST
        if not path.is_file():
            return {"step": 0, "loss": math.nan}
        progress = load_checkpoint(path, self.stage.networks, optimiser)
        done = progress["step"] >= self.stage.schedule.steps
        state = "done before" if done else f"going on after step {progress['step']}"
        self.console.print(f"{self.stage.name}: {state}")
        return progress

    def _step(
        self, step: int, optimiser: torch.optim.Optimizer, interrupted: Callable[[], bool]
    ) -> tuple[dict[str, float], bool]:
        """One step: its figures, and whether to stop after it."""
        settings, stage = self.settings, self.stage
        key = [settings.seed, settings.stage_number, step]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        for network in stage.networks.values():
            network.train()
        for group in optimiser.param_groups:
            group["lr"] = stage.schedule.rate(step) * group.get("factor", 1.0)
        optimiser.zero_grad(set_to_none=True)
        if (at_step := getattr(stage, "at_step", None)) is not None:
            at_step(step)
        own, values = stage.loss(np.random.default_rng(key))
        if torch.isfinite(own):  # of NaN, sampling has no derivative and may even crash
            own.backward()
        several = self.processes.count > 1
        loss, stop = self.processes.average_step(
            stage.trained, list(stage.networks.values()), own, several and interrupted()
        )
        if not torch.isfinite(loss):
            raise self._diverged("loss", loss, step)
        norm = nn.utils.clip_grad_norm_(stage.trained, stage.schedule.clip)
        if not torch.isfinite(norm):
            raise self._diverged("gradient norm", norm, step)
        optimiser.step()
        rate = optimiser.param_groups[0]["lr"]
        figures = {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        # Alone, whoever asks during the step is heard at once; several have to agree.
        return figures | values, stop if several else interrupted()

    def _diverged(self, what: str, value: Tensor, step: int) -> TrainingError:
        processes, settings = self.processes, self.settings
        path = self.folder / FAILED_BATCH
        if not processes.is_first:  # each its own: any of them may hold the cause
            path = path.with_stem(f"{path.stem}_of_process_{processes.rank}")
        about = {"stage": self.stage.name, "step": step, "seed": settings.seed, "cause": what}
        batch = getattr(self.stage, "last_batch", None)
        kept = save_batch(path, batch, about) + "; " if batch else ""
        processes.barrier()  # torchrun ends all processes with the first
        return TrainingError(
            f"{self.stage.name}: {what} is {value.item()} at step {step}; {kept}the checkpoint "
            "before is kept. Lower learning_rate or set precision: fp32, and give --out another "
            "folder (this run would come to the same step again)"
        )

    def _warn(self, step: int, health: Health, values: dict[str, float], log: StageLog) -> None:
        for finding in health.look(values):
            log.event(step, finding.event())
            self._say(f"{self.stage.name}: warning at step {step}: {finding.text}")

    def _validate(self, step: int, log: StageLog) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.processes.is_first:
            for network in self.stage.networks.values():
                network.eval()
            with torch.no_grad():
                figures = self.stage.validate()
                pictures = self.stage.pictures()
            log.scalars(step, {f"validation/{k}": v for k, v in figures.items()})
            log.pictures(step, pictures)
        figures = self.processes.broadcast(figures)
        if figures:
            self._say(
                f"{self.stage.name} step {step}: "
                + "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
            )
        return figures

    def _keep_best(self, progress: dict[str, Any]) -> None:
        """Keep the networks if the figure that the stage chooses by was never lower."""
        name = getattr(self.stage, "chosen_by", None)
        if name is None:
            return
        figure = progress["validation"].get(name)
        if figure is None or not math.isfinite(figure):
            if "best" not in progress:
                progress["best"] = None  # said once
                self._say(
                    f"{self.stage.name}: no figure {name} (are its frames missing?), so no {BEST}"
                )
            return
        best = progress.get("best")
        if best is None or figure < best["figure"]:
            progress["best"] = {"step": progress["step"], "name": name, "figure": figure}
            self._save(BEST, None, progress)

    def _save(
        self, name: str, optimiser: torch.optim.Optimizer | None, progress: dict[str, Any]
    ) -> None:
        self.processes.check_alike(self.stage.networks)
        if self.processes.is_first:
            save_checkpoint(self.folder / name, self.stage.networks, optimiser, progress)
        self.processes.barrier()  # the next stage begins with reading it

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def _groups(stage: TrainingStage) -> list[dict[str, Any]]:
    """What learns, with a ``factor`` of the learning rate where the stage asks for one."""
    groups: list[dict[str, Any]] | None = getattr(stage, "parameter_groups", None)
    return [{"params": stage.trained}] if groups is None else groups
