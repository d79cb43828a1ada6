"""The training loop on a stage of one weight: what it logs, when it stops, how it goes on."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from device_reads import CountReads
from rich.console import Console
from safetensors import safe_open
from torch import Tensor, nn

from training.loop import checkpoint
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.distributed import ProcessGroup
from training.loop.trainer import LAST, BatchesAhead, Trainer, TrainerConfig, TrainingError
from training.recipes.recipe import RecipeError
from training.stages.base import TrainingConfig

STEPS = 10


class OneWeight:
    """Fits y = 3 x; `before` is called with the number of each loss."""

    name = "one weight"

    def __init__(self, steps: int = STEPS, before: Callable[[int], None] | None = None) -> None:
        torch.manual_seed(0)
        self.config = TrainingConfig(kind="test", steps=steps, learning_rate=0.1, warm_up=2)
        self.net = nn.Linear(1, 1)
        self.networks: dict[str, nn.Module] = {"net": self.net}
        self.trained = list(self.net.parameters())
        self.factor = 1.0
        self._before = before or (lambda _: None)
        self.calls = 0

    def draw_batch(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal((4, 1), dtype=np.float32))

    def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        self._before(self.calls)
        self.calls += 1
        return self.factor * (self.net(x) - 3 * x).square().mean(), {"extra": 1.0}

    def validate(self) -> dict[str, float]:
        return {"weight": self.net.weight.item()}

    def pictures(self) -> dict[str, np.ndarray]:
        return {"black": np.zeros((4, 6, 3), np.uint8)}


def trainer(stage: OneWeight, folder: Path, output: io.StringIO | None = None) -> Trainer:
    console = Console(file=output or io.StringIO(), width=200)
    settings = TrainerConfig(
        seed=1, stage_number=0, checkpoint_every=4, validate_every=5, log_every=1
    )
    return Trainer(stage, folder, settings, console)


def interrupt(number: signal.Signals) -> None:
    """What Python does where a signal has arrived (test_distributed.py sends real ones).

    Not sent in earnest: whatever else in this process has to do with signals would hear it, too.
    """
    handler = signal.getsignal(number)
    assert callable(handler), f"nobody listens to {number.name}"
    handler(number, None)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_is_logged(tmp_path: Path) -> None:
    done = trainer(OneWeight(), tmp_path).run()
    lines = logged(tmp_path)
    assert [v["step"] for v in lines if "loss" in v] == list(range(1, STEPS + 1))
    assert [v["step"] for v in lines if "validation/weight" in v] == [5, 10]
    assert {"loss", "gradient_norm", "learning_rate", "seconds", "extra"} <= set(lines[0])
    assert lines[0]["learning_rate"] == pytest.approx(0.05)
    assert done["step"] == STEPS and done["validation"]["weight"] == lines[-1]["validation/weight"]
    assert done["loss"] == [v for v in lines if "loss" in v][-1]["loss"]


def test_tensorboard_has_figures_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(OneWeight(), tmp_path).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate", "validation/weight", "extra"} <= set(tags["scalars"])
    assert tags["images"] == ["black"]


def test_a_log_file_gets_the_first_and_the_last_step(tmp_path: Path) -> None:
    output = io.StringIO()
    trainer(OneWeight(), tmp_path, output).run()
    steps = [line for line in output.getvalue().splitlines() if "loss" in line]
    assert [line.split(",")[0] for line in steps] == [
        "one weight: step 1 of 10",
        "one weight: step 10 of 10",
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(
    tmp_path: Path, bad: float
) -> None:
    stage = OneWeight()

    def spoil(call: int) -> None:
        stage.factor = bad if call == 6 else 1.0

    stage._before = spoil
    with pytest.raises(TrainingError, match=r"step 6.*learning_rate") as caught:
        trainer(stage, tmp_path).run()
    assert str(bad) in str(caught.value)
    assert all(torch.isfinite(p).all() for p in stage.trained)
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4


def test_a_loss_that_is_not_finite_is_not_derived(tmp_path: Path) -> None:
    """Sampling an image at places that are NaN ends the process there."""

    class Crashes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * math.nan

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise AssertionError("the gradient of NaN was asked for")

    class Spoiled(OneWeight):
        def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
            loss, values = super().loss(x)
            return Crashes.apply(loss), values

    with pytest.raises(TrainingError, match=r"loss is nan at step 0"):
        trainer(Spoiled(), tmp_path).run()


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    stage = OneWeight()
    stage.net.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match="gradient norm is nan at step 0"):
        trainer(stage, tmp_path).run()
    assert all(torch.isfinite(p).all() for p in stage.trained)


@pytest.mark.parametrize("cause", ["loss", "gradient norm"])
def test_the_batch_that_failed_is_kept(tmp_path: Path, cause: str) -> None:
    class KeepsBatch(OneWeight):
        last_batch: ClassVar[dict[str, Tensor]] = {}

        def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
            loss, values = super().loss(x)
            # Views of one memory are what batches are made of, and safetensors refuses them.
            x = torch.full((2, 3), float(self.calls))
            KeepsBatch.last_batch = {"images": x, "first": x[:1], "turned": x.T}
            return (loss * math.nan if cause == "loss" and self.calls == 7 else loss), values

    stage = KeepsBatch()
    if cause == "gradient norm":
        stage.net.weight.register_hook(lambda g: g * math.inf if stage.calls == 7 else g)
    with pytest.raises(
        TrainingError, match=rf"{cause} is .* at step 6; the batch is kept"
    ) as error:
        trainer(stage, tmp_path).run()
    path = tmp_path / "failed_batch.safetensors"
    assert str(path) in str(error.value)
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == {
            "stage": "one weight",
            "step": "6",
            "seed": "1",
            "cause": cause,
        }
        assert file.get_tensor("turned").tolist() == [[7.0, 7.0]] * 3


def test_a_batch_that_cannot_be_kept_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = OneWeight()
    stage.factor, stage.last_batch = math.nan, {"x": torch.zeros(1)}  # type: ignore[attr-defined]
    monkeypatch.setattr(checkpoint, "write_safetensors", full_disk)
    with pytest.raises(TrainingError, match=r"loss is nan.* could not be kept: .*No space left"):
        trainer(stage, tmp_path).run()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sparse(stage: OneWeight, folder: Path) -> Trainer:
    """Log and checkpoint at every fifth step only."""
    run = trainer(stage, folder)
    run.settings = TrainerConfig(
        seed=1, stage_number=0, checkpoint_every=5, validate_every=50, log_every=5
    )
    return run


def test_between_steps_that_log_nothing_is_read_from_the_device(tmp_path: Path) -> None:
    reads: list[int] = []
    counter = CountReads()
    with counter:
        sparse(OneWeight(before=lambda _: reads.append(counter.reads)), tmp_path).run()
    reads.append(counter.reads)
    each = np.diff(reads)
    quiet = [step for step in range(STEPS) if step % 5 and (step + 1) % 5]
    assert each[quiet].tolist() == [0] * len(quiet), each


@pytest.mark.parametrize("cause", ["loss", "gradient norm"])
def test_what_a_device_finds_not_finite_is_told_later_and_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """On a GPU nobody looks between steps that log; here, a CPU is told not to."""
    monkeypatch.setattr("training.loop.trainer._known_bad", lambda _: False)
    weights: list[float] = []

    class Fails(OneWeight):
        last_batch: ClassVar[dict[str, Tensor]] = {}

        def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
            weights.append(self.net.weight.item())
            self.last_batch["x"] = x
            loss, values = super().loss(x)
            return (loss * math.nan if cause == "loss" and self.calls == 7 else loss), values

    stage = Fails()
    if cause == "gradient norm":
        stage.net.weight.register_hook(lambda g: g * math.inf if stage.calls == 7 else g)
    with pytest.raises(TrainingError, match=rf"{cause} is .* at step 6; the batch is kept"):
        sparse(stage, tmp_path).run()
    assert stage.calls == STEPS + 1, "read at the last step; then the batch was drawn again"
    assert weights[5] != weights[6] == weights[7] == weights[-1] == stage.net.weight.item()
    with safe_open(str(tmp_path / "failed_batch.safetensors"), framework="pt") as file:
        drawn = stage.draw_batch(np.random.default_rng([1, 0, 6]))
        assert torch.equal(file.get_tensor("x"), drawn)
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 5


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for(tmp_path: Path) -> None:
    device = torch.device("cuda")

    class OnGpu(OneWeight):
        def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
            quiet = self.calls % 5 and (self.calls + 1) % 5
            torch.cuda.set_sync_debug_mode("error" if quiet else "default")
            return super().loss(x.to(device, non_blocking=True))

    stage = OnGpu()
    stage.net.to(device)
    run = sparse(stage, tmp_path)
    run.processes = ProcessGroup(device=device)
    try:
        assert run.run()["step"] == STEPS
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_are_drawn_ahead_in_their_order() -> None:
    main, drawn, may_go = threading.current_thread(), [], threading.Event()

    def draw(step: int) -> int:
        assert threading.current_thread() is not main
        drawn.append(step)
        if step == 2:
            assert may_go.wait(10)
        return 10 * step

    with closing(BatchesAhead(draw, 4)) as batches:
        assert [batches.of(0), batches.of(1)] == [0, 10]
        may_go.set()  # the third one was begun, and the second given without waiting for it
        assert [batches.of(2), batches.of(3)] == [20, 30]
    assert drawn == [0, 1, 2, 3]


def test_a_batch_that_cannot_be_drawn_stops_the_run_at_its_step(tmp_path: Path) -> None:
    class Broken(OneWeight):
        def draw_batch(self, rng: np.random.Generator) -> Tensor:
            if rng.bit_generator.seed_seq.entropy[-1] == 6:
                raise RecipeError("no frame left")
            return super().draw_batch(rng)

    stage = Broken()
    with pytest.raises(RecipeError, match="no frame left"):
        trainer(stage, tmp_path).run()
    assert stage.calls == 6


def test_collapse_is_told_and_logged_once(tmp_path: Path) -> None:
    class Collapses(OneWeight):
        def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
            return super().loss(x)[0], {"auto_mask_share": 0.0}

    output = io.StringIO()
    trainer(Collapses(), tmp_path, output).run()
    (event,) = [line for line in logged(tmp_path) if "event" in line]
    assert event["step"] == 5 and event["kind"] == "auto_mask_keeps_little"
    assert output.getvalue().count("warning at step 5: auto_mask_share is 0, below 0.05") == 1
    whole = logged(tmp_path)
    (tmp_path / LAST).rename(tmp_path / "kept")
    trainer(Collapses(), tmp_path).run()  # from the beginning: the log is written anew
    assert [v for v in logged(tmp_path) if "event" in v] == [v for v in whole if "event" in v]


def test_a_stage_may_change_with_time(tmp_path: Path) -> None:
    """A freeze from step 5 on holds in a run that goes on, too."""

    class Freezes(OneWeight):
        def at_step(self, step: int) -> None:
            self.net.bias.requires_grad_(step < 5)

    def press(call: int) -> None:
        if call == 6:
            interrupt(signal.SIGINT)

    whole = trainer(Freezes(), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        trainer(Freezes(before=press), tmp_path / "broken").run()
    assert trainer(Freezes(), tmp_path / "broken").run() == whole
    assert whole != trainer(OneWeight(), tmp_path / "free").run()


def test_sigterm_stops_like_ctrl_c(tmp_path: Path) -> None:
    def terminate(call: int) -> None:
        if call == 5:
            interrupt(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="after step 6"):
        trainer(OneWeight(before=terminate), tmp_path).run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 6


def test_interrupted_training_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    def press(call: int) -> None:
        if call == 5:
            interrupt(signal.SIGINT)

    whole = trainer(OneWeight(), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt, match="after step 6"):
        trainer(OneWeight(before=press), tmp_path / "broken").run()
    output = io.StringIO()
    assert trainer(OneWeight(), tmp_path / "broken", output).run() == whole
    assert "going on after step 6" in output.getvalue()
    figures = [
        {k: v for k, v in line.items() if k != "seconds"}
        for folder in ("whole", "broken")
        for line in logged(tmp_path / folder)
    ]
    assert figures[: len(figures) // 2] == figures[len(figures) // 2 :]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal gives it: a shell's job in the background inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def press_twice(call: int) -> None:
        if call == 5:
            for _ in range(2):
                interrupt(signal.SIGINT)

    stage = OneWeight(before=press_twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(stage, tmp_path).run()
    assert stage.calls == 5, "the step was not finished"
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first = trainer(OneWeight(), tmp_path).run()
    stage, output = OneWeight(), io.StringIO()
    assert trainer(stage, tmp_path, output).run() == first
    assert stage.calls == 0 and "done before" in output.getvalue()
    assert stage.net.weight.item() == first["validation"]["weight"]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, log_every: int) -> None:
    """Files may grow to a hundred bytes only, from the second checkpoint on."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(call: int) -> None:
        if call == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))

    run = trainer(OneWeight(before=fill), tmp_path)
    run.settings = TrainerConfig(
        seed=1, stage_number=0, checkpoint_every=4, validate_every=50, log_every=log_every
    )
    # Whatever is written first meets the full disk: the log, or the checkpoint.
    expected, words = (TrainingError, "") if log_every == 1 else (CheckpointError, r"last\.sa.* ")
    try:
        with pytest.raises(expected, match=words + "cannot be written") as caught:
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "goes on" in str(caught.value)
    assert not list(tmp_path.glob("*.partial"))
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4
    assert trainer(OneWeight(), tmp_path).run()["step"] == STEPS
