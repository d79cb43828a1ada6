"""A run that is killed and started again ends with the numbers of one that was not."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pytest
import torch
import yaml
from forked_process import ForkedProcess
from test_training_data import write_drive
from tiny_trunk import TINY_TRUNK
from torch import nn

from training.loop.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.recipes.recipe import RecipeError
from training.runs.run import run_recipe
from training.stages.base import TrainingConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kill_and_resume
from kill_and_resume import Command, compare, differences

STEPS = 8


def recipe(folder: Path) -> Path:
    """All stages on real frames, twelve small textured ones, with a checkpoint every two steps."""
    drive = write_drive(folder / "data", list(range(12)))
    texture = np.random.default_rng(0).integers(0, 255, (20, 80, 3), np.uint8)
    texture = cv2.resize(texture, (200, 38), interpolation=cv2.INTER_CUBIC)
    for number in range(12):
        path = drive / "image_02" / f"{number:010d}.png"
        cv2.imwrite(str(path), texture[:, 3 * number : 3 * number + 124])
    stage = {"batch": 2, "synthetic_batch": 0, "warm_up": 2}
    values = {
        "size": [64, 32],
        "networks": {"trunk": TINY_TRUNK},
        "data": {"root": str(folder / "data"), "drives": [{"path": str(drive)}]},
        "stages": [
            {"kind": "teacher", "steps": STEPS, "multi_batch": 1} | stage,
            {"kind": "mutual", "steps": STEPS, "rounds": 2} | stage,
            {"kind": "prior", "steps": STEPS, "references": 32, "per_image": 4} | stage,
        ],
        "output": {"name": "tiny", "licence": "Apache-2.0"},
        "checkpoint_every": 2,
        "validate_every": 100,
        "log_every": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def check_killed_run_equals_unbroken(recipe: Path, folder: Path, kills: int = 1) -> None:
    """Carry out ``recipe`` below ``folder``, unbroken and killed ``kills`` times in every stage."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed of the kills: {seed}")
    _, different = compare(recipe, [], folder, kills, seed)
    assert different.keys() >= {"bundle"} and not any(different.values()), different


def forked(arguments: list[str], errors: IO[str], env: dict[str, str]) -> ForkedProcess:
    """`depth_train`, with the small trunk, in a process that need not import PyTorch."""
    return ForkedProcess(["-m", "tiny_trunk", *arguments], errors, Path.cwd(), env)


@pytest.mark.slow
def test_killed_training_ends_like_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_and_resume, "launch", forked)
    path = recipe(tmp_path)
    check_killed_run_equals_unbroken(path, tmp_path)
    whole = tmp_path / "whole" / "bundle"
    files = {f.name: f.read_bytes() for f in whole.iterdir()}
    assert "baselines.safetensors" in files
    again = Command(path, [], tmp_path / "whole")
    again.start()
    again.end()
    assert "finished already" in again.said[0]
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == files, "left alone"


def test_a_difference_is_found(tmp_path: Path) -> None:
    for run, value in (("a", 1.0), ("b", 1.0 + 1e-7)):
        stage = tmp_path / run / "0_stage"
        stage.mkdir(parents=True)
        (tmp_path / run / "bundle").mkdir()
        (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
        network = nn.Linear(1, 1)
        nn.init.constant_(network.weight, value)
        nn.init.zeros_(network.bias)
        save_checkpoint(stage / "last.safetensors", {"net": network}, None, {"step": 1})
    assert not any(differences(tmp_path / "a", tmp_path / "a").values())
    wrong = differences(tmp_path / "a", tmp_path / "b")
    assert wrong == {"0_stage": ["last.safetensors: net.net.weight"], "bundle": []}
    (tmp_path / "b" / "0_stage" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    assert "metrics.jsonl" in differences(tmp_path / "a", tmp_path / "b")["0_stage"]


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    (out / "0_teacher").mkdir(parents=True)
    (out / "0_teacher" / "last.safetensors").touch()
    (out / "recipe.yaml").write_text("seed: 9\n")
    with pytest.raises(RecipeError, match="another recipe"):
        run_recipe(path, [], out)


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    for start in ("nowhere.safetensors", "elsewhere.safetensors"):
        with pytest.raises(RecipeError, match=f"start: {start} is not a checkpoint"):
            run_recipe(path, [f"start={start}"], out)


class _Nets:
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.networks: dict[str, nn.Module] = {"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(2)}
        parameters = [p for n in self.networks.values() for p in n.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=0.1)

    def step(self, seed: int) -> float:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        loss = (
            self.networks["b"](self.networks["a"](x)).square().sum() + self.networks["a"](x).sum()
        )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


def test_checkpoint_restores_networks_and_optimiser_exactly(tmp_path: Path) -> None:
    first, second = _Nets(0), _Nets(1)
    for seed in range(3):
        first.step(seed)
    save_checkpoint(tmp_path / "c", first.networks, first.optimiser, {"step": 3})
    assert load_checkpoint(tmp_path / "c", second.networks, second.optimiser) == {"step": 3}
    assert [first.step(s) for s in (7, 8)] == [second.step(s) for s in (7, 8)]


def test_an_optimiser_goes_on_whatever_the_order_of_the_weights_in_memory(tmp_path: Path) -> None:
    """Channels last, as the student's convolutions are; a fused step does not look at strides."""

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net, torch.optim.Adam(net.parameters(), lr=0.01, fused=True)

    def step(net: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()

    (whole, first), (rest, second) = made(), made()
    step(whole, first, 0)
    save_checkpoint(tmp_path / "c", {"net": whole}, first, {})
    load_checkpoint(tmp_path / "c", {"net": rest}, second)
    for seed in (1, 2):
        step(whole, first, seed)
        step(rest, second, seed)
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    nets, path = _Nets(0), tmp_path / "last.safetensors"
    save_checkpoint(path, nets.networks, nets.optimiser, {"step": 3})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        load_checkpoint(path, nets.networks)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    nets = _Nets(0)
    save_checkpoint(tmp_path / "c", nets.networks, None, {})
    with pytest.raises(CheckpointError, match="another 'a'"):
        load_checkpoint(tmp_path / "c", {"a": nn.Linear(4, 2)})


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(kind="test", steps=100, learning_rate=1.0, warm_up=10, final=0.1)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)
