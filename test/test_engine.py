"""The training loop on a stage of one weight: what it logs, when it stops, how it goes on."""

from __future__ import annotations

import io
import json
import math
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from training import progress
from training.checkpoint import CheckpointError, load_checkpoint
from training.config import Schedule
from training.engine import LAST, Engine, Settings, TrainingError

STEPS = 10


class OneWeight:
    """Fits y = 3 x; `before` is called with the number of each loss."""

    name = "one weight"

    def __init__(self, steps: int = STEPS, before: Callable[[int], None] | None = None) -> None:
        torch.manual_seed(0)
        self.schedule = Schedule(steps=steps, learning_rate=0.1, warm_up=2)
        self.net = nn.Linear(1, 1)
        self.networks: dict[str, nn.Module] = {"net": self.net}
        self.trained = list(self.net.parameters())
        self.factor = 1.0
        self._before = before or (lambda _: None)
        self.calls = 0

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        self._before(self.calls)
        self.calls += 1
        x = torch.from_numpy(rng.standard_normal((4, 1), dtype=np.float32))
        return self.factor * (self.net(x) - 3 * x).square().mean(), {"extra": 1.0}

    def validate(self) -> dict[str, float]:
        return {"weight": self.net.weight.item()}

    def pictures(self) -> dict[str, np.ndarray]:
        return {"black": np.zeros((4, 6, 3), np.uint8)}


def engine(stage: OneWeight, folder: Path, output: io.StringIO | None = None) -> Engine:
    console = Console(file=output or io.StringIO(), width=200)
    settings = Settings(seed=1, stage_number=0, checkpoint_every=4, validate_every=5, log_every=1)
    return Engine(stage, folder, settings, console)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_is_logged(tmp_path: Path) -> None:
    done = engine(OneWeight(), tmp_path).run()
    lines = logged(tmp_path)
    assert [v["step"] for v in lines if "loss" in v] == list(range(1, STEPS + 1))
    assert [v["step"] for v in lines if "validation/weight" in v] == [5, 10]
    assert {"loss", "gradient_norm", "learning_rate", "seconds", "extra"} <= set(lines[0])
    assert lines[0]["learning_rate"] == pytest.approx(0.05)
    assert done["step"] == STEPS and done["validation"]["weight"] == lines[-1]["validation/weight"]
    assert done["loss"] == [v for v in lines if "loss" in v][-1]["loss"]


def test_tensorboard_has_figures_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine(OneWeight(), tmp_path).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate", "validation/weight", "extra"} <= set(tags["scalars"])
    assert tags["images"] == ["black"]


def test_a_log_file_gets_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    engine(OneWeight(), tmp_path / "a", output).run()
    steps = [line for line in output.getvalue().splitlines() if "loss" in line]
    assert [line.split(",")[0] for line in steps] == [
        "one weight: step 1 of 10",
        "one weight: step 10 of 10",
    ]
    monkeypatch.setattr(progress, "_BETWEEN_LINES", 0.0)
    output = io.StringIO()
    engine(OneWeight(), tmp_path / "b", output).run()
    assert output.getvalue().count("loss") == STEPS


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    output = io.StringIO()
    run = engine(OneWeight(), tmp_path)
    run.console = Console(file=output, force_terminal=True, width=80)
    run.run()
    assert "10/10" in output.getvalue()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(
    tmp_path: Path, bad: float
) -> None:
    stage = OneWeight()

    def spoil(call: int) -> None:
        stage.factor = bad if call == 6 else 1.0

    stage._before = spoil
    with pytest.raises(TrainingError, match=r"step 6.*learning_rate") as caught:
        engine(stage, tmp_path).run()
    assert str(bad) in str(caught.value)
    assert all(torch.isfinite(p).all() for p in stage.trained)
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    stage = OneWeight()
    stage.net.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match="gradient norm is nan at step 0"):
        engine(stage, tmp_path).run()
    assert all(torch.isfinite(p).all() for p in stage.trained)


def test_interrupted_training_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    def press(call: int) -> None:
        if call == 5:
            signal.raise_signal(signal.SIGINT)

    whole = engine(OneWeight(), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt, match="after step 6"):
        engine(OneWeight(before=press), tmp_path / "broken").run()
    output = io.StringIO()
    assert engine(OneWeight(), tmp_path / "broken", output).run() == whole
    assert "going on after step 6" in output.getvalue()
    figures = [
        {k: v for k, v in line.items() if k != "seconds"}
        for folder in ("whole", "broken")
        for line in logged(tmp_path / folder)
    ]
    assert figures[: len(figures) // 2] == figures[len(figures) // 2 :]


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def press_twice(call: int) -> None:
        if call == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    stage = OneWeight(before=press_twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        engine(stage, tmp_path).run()
    assert stage.calls == 5, "the step was not finished"
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first = engine(OneWeight(), tmp_path).run()
    stage, output = OneWeight(), io.StringIO()
    assert engine(stage, tmp_path, output).run() == first
    assert stage.calls == 0 and "done before" in output.getvalue()
    assert stage.net.weight.item() == first["validation"]["weight"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """Files may grow to a hundred bytes only, from the second checkpoint on."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(call: int) -> None:
        if call == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))

    run = engine(OneWeight(before=fill), tmp_path)
    run.settings = Settings(
        seed=1, stage_number=0, checkpoint_every=4, validate_every=50, log_every=50
    )
    try:
        with pytest.raises(CheckpointError, match=r"last\.safetensors cannot be written") as caught:
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "goes on" in str(caught.value)
    assert not list(tmp_path.glob("*.partial"))
    assert load_checkpoint(tmp_path / LAST, OneWeight().networks)["step"] == 4
    assert engine(OneWeight(), tmp_path).run()["step"] == STEPS
