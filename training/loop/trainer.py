"""The training loop: one stage from its last checkpoint to its last step.

Everything random in a step is a function of (seed, stage, step), so a run that was killed and
started again ends with the same numbers as one that was not (same machine, CPU, f32).

Stopping between two steps: Ctrl-C, and the SIGTERM of schedulers, containers and torchrun.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from depth_prior_ros.progress import ProgressBar
from training.errors import TrainingError
from training.loop.checkpoint import (
    FAILED_BATCH,
    LAST,
    load_checkpoint,
    save_batch,
    save_checkpoint,
)
from training.loop.distributed import SINGLE_PROCESS, ProcessGroup, map_tensors
from training.loop.progress import Health, StageLog
from training.loop.weight_average import WeightAverage, mix_weights

if TYPE_CHECKING:
    from training.stages.base import TrainingConfig

__all__ = ["LAST", "Trainer", "TrainerConfig", "TrainingError", "TrainingStage"]

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


# It leaves out an update where the device finds it not finite; on a CPU since PyTorch 2.4.
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_FUSED = torch.cuda.is_available() or _VERSION >= (2, 4)

Figures = Mapping[str, Tensor | float]


class TrainingStage(Protocol):
    """What the trainer asks of a stage.

    A stage may have besides:

    * ``at_step(step)``: called before the loss of each step, for what changes with time (a freeze);
    * ``last_batch``: the tensors of the last batch by name, saved when it makes training fail;
    * ``logged()``: figures of the last loss that cost too much for every step, asked for where a
      step is logged.

    On several processes, a stage draws the global batch and takes its share, and its loss is such
    that the mean over processes is the loss of the global batch (``training/loop/distributed.py``).
    """

    name: str

    @property
    def config(self) -> TrainingConfig:
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

    def draw_batch(self, rng: np.random.Generator) -> Any:
        """This process's share of a batch, in memory of the host: tensors, or dataclasses of them.

        Called in a thread of its own, while the step before is computed.
        """
        ...

    def loss(self, batch: Any) -> tuple[Tensor, Figures]:
        """The loss of a batch, shape (), and what to log of it; tensors of shape () stay where
        they are, so that no step waits for the device."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on data that is not trained on; the first process alone is asked."""
        ...

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for people; the first process alone is asked."""
        ...


@dataclass(frozen=True)
class TrainerConfig:
    """How a stage is run; see the recipe's fields of the same names."""

    seed: int
    stage_number: int
    checkpoint_every: int
    validate_every: int
    log_every: int


@dataclass
class Trainer:
    """Runs one stage in ``folder``, resuming where an earlier run of it stopped.

    All processes need to see the folder; the first one writes.
    """

    stage: TrainingStage
    folder: Path
    settings: TrainerConfig
    console: Console = field(default_factory=lambda: Console(stderr=True))
    processes: ProcessGroup = SINGLE_PROCESS
    average: WeightAverage | None = field(default=None, init=False)
    _start_weights: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def run(self) -> dict[str, Any]:
        """Train to the last step and return the progress (step, loss, validation figures).

        Raises:
            TrainingError: loss or gradient is not finite; the message names the step and the file
                with the batch. Or the log cannot be written.
            CheckpointError: the folder's checkpoint is damaged, or a new one cannot be written.
            KeyboardInterrupt: after a checkpoint was written, on Ctrl-C or SIGTERM; a second
                Ctrl-C does not wait for it.
        """
        if self.processes.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.console = Console(quiet=True)
        self.processes.barrier()
        optimiser = torch.optim.Adam(
            _groups(self.stage), lr=self.stage.config.learning_rate, fused=_FUSED
        )
        if (decay := self.stage.config.ema) is not None:
            self.average = WeightAverage(self.stage.networks, decay)
        if self.stage.config.keep_start:  # before a checkpoint of this stage is read
            student = self.stage.networks["student"]
            self._start_weights = {n: t.clone() for n, t in student.state_dict().items()}
        progress = self._resume(optimiser)
        if progress["step"] < self.stage.config.steps:
            self._train(optimiser, progress)
        return progress

    def _train(self, optimiser: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
        start, steps, settings = progress["step"], self.stage.config.steps, self.settings
        keep, start_weights = self.stage.config.keep_start, self._start_weights
        health, main = Health(progress.get("health")), self.processes.is_main_process
        self._diverged = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64)
        with (
            closing(StageLog(self.folder if main else None, start)) as log,
            interrupts(patient=self.processes.count > 1) as interrupted,
            closing(BatchesAhead(self._draw, steps)) as batches,
            ProgressBar(self.console, ends=True) as bar,
        ):
            what = f"{self.stage.name}: step"
            bar(what, start, steps)
            for step in range(start, steps):
                started = time.perf_counter()
                values, stop = self._step(step, batches.of(step), optimiser, interrupted)
                done = step + 1 == steps
                logs = step % settings.log_every == 0 or done
                validates = (step + 1) % settings.validate_every == 0 or done
                saves = (step + 1) % settings.checkpoint_every == 0 or done or stop
                progress["step"] = step + 1
                if logs or validates or saves or _known_bad(values):
                    figures = self._read(step, values)
                    progress["loss"] = figures["loss"]
                if logs:
                    figures = self.processes.mean_values(figures | self._logged())
                    figures["seconds"] = time.perf_counter() - started
                    log.scalars(step + 1, figures)
                    self._warn(step + 1, health, figures, log)
                    progress["health"] = health.state
                if self.average is not None:
                    self.average.update(step)
                    if done:  # the average is what the stage leaves
                        self.average.swap()
                if done and start_weights is not None:
                    mix_weights(self.stage.networks["student"], start_weights, keep)
                if validates:
                    with nullcontext() if self.average is None or done else self.average.applied():
                        progress["validation"] = self._validate(step + 1, log)
                if saves:
                    self._save(optimiser, progress)
                bar(what, step + 1, steps, f"loss {progress['loss']:.4f}")
                if stop and not done:
                    raise KeyboardInterrupt(
                        f"stopped after step {step + 1}; the same command goes on from there"
                    )

    def _key(self, step: int) -> list[int]:
        """What everything random in a step is a function of."""
        return [self.settings.seed, self.settings.stage_number, step]

    def _draw(self, step: int) -> Any:
        batch = self.stage.draw_batch(np.random.default_rng(self._key(step)))
        cuda = self.processes.device.type == "cuda"
        return map_tensors(batch, Tensor.pin_memory) if cuda else batch

    def _resume(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        path = self.folder / LAST
        if not path.is_file():
            return {"step": 0, "loss": math.nan}
        progress = load_checkpoint(path, self.stage.networks, optimiser, self.average)
        done = progress["step"] >= self.stage.config.steps
        state = "done before" if done else f"going on after step {progress['step']}"
        self.console.print(f"{self.stage.name}: {state}")
        return progress

    def _step(
        self,
        step: int,
        batch: Any,
        optimiser: torch.optim.Optimizer,
        interrupted: Callable[[], bool],
    ) -> tuple[dict[str, Tensor | float], bool]:
        """One step: its figures, and whether to stop after it."""
        stage, several = self.stage, self.processes.count > 1
        for group in optimiser.param_groups:
            group["lr"] = stage.config.rate(step) * group.get("factor", 1.0)
        optimiser.zero_grad(set_to_none=True)
        own, values = self._loss(step, batch)
        # Of NaN, sampling has no derivative on a CPU and may even crash.
        if not self.processes.any_of([_known_bad({"loss": own})])[0]:
            own.backward()
        loss, stop = self.processes.average_step(stage.trained, own, several and interrupted())
        norm = nn.utils.clip_grad_norm_(stage.trained, stage.config.clip)
        self._update(step, optimiser, loss, norm.to(loss.device))
        rate = optimiser.param_groups[0]["lr"]
        figures = {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
        # Alone, whoever asks during the step is heard at once; several have to agree.
        return figures | dict(values), stop if several else interrupted()

    def _loss(self, step: int, batch: Any) -> tuple[Tensor, Figures]:
        torch.manual_seed(int(np.random.SeedSequence(self._key(step)).generate_state(1)[0]))
        for network in self.stage.networks.values():
            network.train()
        if (at_step := getattr(self.stage, "at_step", None)) is not None:
            at_step(step)
        return self.stage.loss(batch)

    def _update(
        self, step: int, optimiser: torch.optim.Optimizer, loss: Tensor, norm: Tensor
    ) -> None:
        """Change the weights, unless loss or gradient of this or an earlier step is not finite.

        That is decided on the device; `_read` tells it where figures are read anyway.
        """
        bad = ~(loss.isfinite() & norm.isfinite())
        now = torch.stack([torch.full_like(loss, step), loss, norm.to(loss)]).double()
        before = self._diverged.to(loss.device, non_blocking=True)
        self._diverged = torch.where(bad & (before[0] < 0), now, before)
        optimiser.found_inf = (self._diverged[0] >= 0).float()  # type: ignore[attr-defined]
        optimiser.step()

    def _read(self, step: int, values: dict[str, Tensor | float]) -> dict[str, float]:
        """The figures of a step as numbers, in one read of the device.

        Raises:
            TrainingError: this or an earlier step was not finite.
        """
        tensors = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor)}
        device = self._diverged.device
        row = [v.to(device, torch.float64).reshape(()) for v in tensors.values()]
        bad_step, loss, norm, *numbers = torch.stack([*self._diverged, *row]).tolist()
        if bad_step >= 0:
            finite = math.isfinite(loss)
            cause, value = ("gradient norm", norm) if finite else ("loss", loss)
            raise self._divergence(int(bad_step), cause, value, int(bad_step) == step)
        read = dict(zip(tensors, numbers, strict=True))
        return {name: read.get(name, v) for name, v in values.items()}

    def _logged(self) -> dict[str, float]:
        """What the stage says of a step that is logged alone."""
        logged = getattr(self.stage, "logged", None)
        return {} if logged is None else {name: float(v) for name, v in logged().items()}

    def _divergence(self, step: int, what: str, value: float, drawn: bool) -> TrainingError:
        """The error of a step that was not finite; its batch is kept, ``drawn`` anew if needed."""
        processes = self.processes
        path = self.folder / FAILED_BATCH
        if not processes.is_main_process:  # each its own: any of them may hold the cause
            path = path.with_stem(f"{path.stem}_of_process_{processes.rank}")
        if not drawn:  # the weights are still those of that step
            with torch.no_grad():
                self._loss(step, self._draw(step))
        about = {"stage": self.stage.name, "step": step, "seed": self.settings.seed, "cause": what}
        batch = getattr(self.stage, "last_batch", None)
        kept = save_batch(path, batch, about) + "; " if batch else ""
        processes.barrier()  # torchrun ends all processes with the first
        return TrainingError(
            f"{self.stage.name}: {what} is {value} at step {step}; {kept}the checkpoint "
            "before is kept. Lower learning_rate or set precision: f32, and give --out another "
            "folder (this run would come to the same step again)"
        )

    def _warn(self, step: int, health: Health, values: dict[str, float], log: StageLog) -> None:
        for finding in health.look(values):
            log.event(step, finding.event())
            self._say(f"{self.stage.name}: warning at step {step}: {finding.text}")

    def _validate(self, step: int, log: StageLog) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.processes.is_main_process:
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

    def _save(self, optimiser: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
        self.processes.check_alike(self.stage.networks)
        if self.processes.is_main_process:
            path = self.folder / LAST
            save_checkpoint(path, self.stage.networks, optimiser, progress, self.average)
        self.processes.barrier()  # the next stage begins with reading it

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def _groups(stage: TrainingStage) -> list[dict[str, Any]]:
    """What learns, with a ``factor`` of the learning rate where the stage asks for one."""
    groups: list[dict[str, Any]] | None = getattr(stage, "parameter_groups", None)
    return [{"params": stage.trained}] if groups is None else groups


def _known_bad(values: Figures) -> bool:
    """Whether loss or gradient is not finite, where a CPU knows it without waiting."""
    numbers = (values[name] for name in ("loss", "gradient_norm") if name in values)
    return any(
        isinstance(v, Tensor) and v.device.type == "cpu" and not np.isfinite(v.detach().numpy())
        for v in numbers
    )


class BatchesAhead:
    """Draws the batch of the next step in a thread of its own, while a step is computed.

    Args:
        draw: makes the batch of a step; called for each step once, in their order.
        end: there is no such step any more.
    """

    def __init__(self, draw: Callable[[int], Any], end: int) -> None:
        self._draw, self._end = draw, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: tuple[int, Future[Any]] | None = None

    def of(self, step: int) -> Any:
        """The batch of a step, waited for where necessary; the next one is begun.

        Raises what ``draw`` raised.
        """
        number, future = self._coming or (step, self._thread.submit(self._draw, step))
        assert number == step
        batch = future.result()
        if step + 1 < self._end:
            self._coming = step + 1, self._thread.submit(self._draw, step + 1)
        return batch

    def close(self) -> None:
        """Wait for what is being drawn; nothing is begun any more."""
        self._thread.shutdown(cancel_futures=True)
