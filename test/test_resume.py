"""A run that is killed and started again ends with the numbers of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from test_training_data import write_drive
from torch import nn

from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import RecipeError, Schedule
from training.engine import learning_rate
from training.run import run_recipe

STEPS = 12


def recipe(folder: Path) -> Path:
    """A run of two stages on twelve small textured frames."""
    drive = write_drive(folder / "data", list(range(12)))
    texture = np.random.default_rng(0).integers(0, 255, (20, 80, 3), np.uint8)
    texture = cv2.resize(texture, (200, 38), interpolation=cv2.INTER_CUBIC)
    for number in range(12):
        path = drive / "image_02" / f"{number:010d}.png"
        cv2.imwrite(str(path), texture[:, 3 * number : 3 * number + 124])
    stage = {"batch": 2, "synthetic_batch": 0, "warm_up": 2}
    values = {
        "size": [64, 32],
        "data": {"root": str(folder / "data"), "drives": [{"path": str(drive)}]},
        "stages": [
            {"kind": "self_supervised", "steps": STEPS} | stage,
            {"kind": "prior", "steps": 3, "references": 32, "per_image": 4} | stage,
        ],
        "output": {"name": "tiny", "licence": "Apache-2.0"},
        "checkpoint_every": 2,
        "validate_every": 100,
        "log_every": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines(run: Path, stage: str = "0_self_supervised") -> list[dict]:
    path = run / stage / "metrics.jsonl"
    return [json.loads(s) for s in path.read_text().splitlines()] if path.is_file() else []


def losses(run: Path, stage: str) -> dict[int, float]:
    return {v["step"]: v["loss"] for v in lines(run, stage) if "loss" in v}


def start(path: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "training.cli", "run", str(path), "--out", str(out)]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_at_step(process: subprocess.Popen, run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(v["step"] >= step for v in lines(run) if v):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.005)
    raise AssertionError("training ended before it could be killed")


@pytest.mark.slow
def test_killed_training_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(path, whole).wait() == 0
    step = random.SystemRandom().randrange(3, STEPS - 2)
    print(f"killed at step {step}")
    kill_at_step(start(path, broken), broken, step)
    assert not (broken / "bundle").exists()
    again = start(path, broken)
    _, errors = again.communicate()
    assert again.returncode == 0, errors.decode()
    assert b"going on after step" in errors
    for stage in ("0_self_supervised", "1_prior"):
        assert losses(broken, stage) == losses(whole, stage)
    files = {f.name: f.read_bytes() for f in (whole / "bundle").iterdir()}
    assert "baselines.safetensors" in files
    for name in files.keys() - {"bundle.yaml"}:
        assert files[name] == (broken / "bundle" / name).read_bytes(), name
    assert start(path, whole).wait() == 0
    assert {f.name: f.read_bytes() for f in (whole / "bundle").iterdir()} == files, "left alone"


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("seed: 9\n")
    with pytest.raises(RecipeError, match="another recipe"):
        run_recipe(path, [], out)


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
    schedule = Schedule(steps=100, learning_rate=1.0, warm_up=10, final=0.1)
    rates = [learning_rate(schedule, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)
