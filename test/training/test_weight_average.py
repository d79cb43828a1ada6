"""The running average of weights: by hand, through a run, over an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_trainer import STEPS, OneWeight, trainer
from torch import Tensor, nn

from training.loop.checkpoint import load_checkpoint
from training.loop.trainer import LAST
from training.loop.weight_average import WeightAverage
from training.stages.base import TrainingConfig

DECAY = 0.6


class Averaged(OneWeight):
    """Keeps the weight of before each step; stops once before the given loss."""

    def __init__(self, stop_before: int | None = None) -> None:
        super().__init__()
        self.config = TrainingConfig(
            kind="test", steps=STEPS, learning_rate=0.1, warm_up=2, ema=DECAY
        )
        self.seen: list[float] = []
        self.validated: list[float] = []
        self._stop_before = stop_before

    def loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        if len(self.seen) == self._stop_before:
            raise RuntimeError("power cut")
        self.seen.append(self.net.weight.item())
        return super().loss(x)

    def validate(self) -> dict[str, float]:
        self.validated.append(self.net.weight.item())
        return super().validate()


def average(weights: list[float]) -> float:
    """The average of the weights after each step, the first of which is that of the start."""
    value = weights[0]
    for step, weight in enumerate(weights[1:]):
        decay = min(DECAY, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * weight
    return value


def test_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    kept = WeightAverage({"net": net}, 0.9)
    for step, value in enumerate((2.0, 4.0)):
        nn.init.constant_(net.weight, value)
        kept.update(step)
    # decays 1/10 and 2/11: .1 * 1 + .9 * 2 = 1.9; 2/11 * 1.9 + 9/11 * 4 = 3.61818...
    with kept.applied():
        assert net.weight.item() == pytest.approx(2 / 11 * 1.9 + 9 / 11 * 4)
    assert net.weight.item() == 4.0


def test_the_stage_leaves_the_average_and_validates_it(tmp_path: Path) -> None:
    plain = OneWeight()
    trainer(plain, tmp_path / "plain").run()
    stage = Averaged()
    trainer(stage, tmp_path / "averaged").run()
    raw = [*stage.seen, plain.net.weight.item()]  # training itself goes on with the raw weights
    assert stage.net.weight.item() == pytest.approx(average(raw), rel=1e-5)
    assert stage.validated == pytest.approx([average(raw[:6]), average(raw)], rel=1e-5)
    again = nn.Linear(1, 1)
    load_checkpoint(tmp_path / "averaged" / LAST, {"net": again})
    assert torch.equal(again.weight, stage.net.weight)


def test_an_interrupted_run_ends_with_the_same_average(tmp_path: Path) -> None:
    whole = Averaged()
    trainer(whole, tmp_path / "whole").run()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(Averaged(stop_before=6), tmp_path / "cut").run()  # the checkpoint is of step 4
    rest = Averaged()
    trainer(rest, tmp_path / "cut").run()
    assert len(rest.seen) == STEPS - 4
    assert torch.equal(rest.net.weight, whole.net.weight)


def test_a_share_of_the_start_is_kept(tmp_path: Path) -> None:
    """The student alone moves back; also over an interruption, which must not move the start."""

    class Kept(Averaged):
        def __init__(self, stop_before: int | None = None) -> None:
            super().__init__(stop_before)
            values = self.config.model_dump() | {"ema": None, "keep_start": 0.25}
            self.config = TrainingConfig.model_validate(values)
            self.networks = {"student": self.net}

    plain = OneWeight()
    start = plain.net.weight.item()
    trainer(plain, tmp_path / "plain").run()
    whole = Kept()
    trainer(whole, tmp_path / "whole").run()
    expected = 0.75 * plain.net.weight.item() + 0.25 * start
    assert whole.net.weight.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(Kept(stop_before=6), tmp_path / "cut").run()
    rest = Kept()
    trainer(rest, tmp_path / "cut").run()
    assert torch.equal(rest.net.weight, whole.net.weight)
