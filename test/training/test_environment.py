"""What a run was made with is written down, and again when it changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from training.runs import output
from training.runs.output import git_hash, keep_environment

CPU = torch.device("cpu")


def test_versions_commit_and_seed_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "git_hash", lambda: "0123456789ab")
    path = tmp_path / "environment.json"
    keep_environment(path, 7, CPU, "f32")
    (entry,) = json.loads(path.read_text())
    assert entry["seed"] == 7 and entry["device"] == "cpu" and entry["processes"] == 1
    # The build (+cpu, +cu130) is in the metadata of some wheels only.
    assert torch.__version__.startswith(entry["packages"]["torch"])
    assert any(name.startswith("opencv") for name in entry["packages"])
    assert entry["git"] == "0123456789ab"
    assert [p.name for p in tmp_path.iterdir()] == ["environment.json"]


def test_a_run_that_goes_on_elsewhere_adds_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "environment.json"
    commits = iter(["0123456789ab", "0123456789ab", "0123456789ab-dirty"])
    monkeypatch.setattr(output, "git_hash", lambda: next(commits))
    keep_environment(path, 7, CPU, "f32")
    keep_environment(path, 7, CPU, "f32")
    assert len(json.loads(path.read_text())) == 1
    keep_environment(path, 7, CPU, "f32")
    entries = json.loads(path.read_text())
    assert [e["git"] for e in entries] == ["0123456789ab", "0123456789ab-dirty"]


def test_a_damaged_note_does_not_stop_a_run(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text("[{")
    keep_environment(path, 7, CPU, "f32")
    assert len(json.loads(path.read_text())) == 1


def test_an_installed_package_is_not_in_the_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / ".venv" / "site-packages" / "training" / "runs" / "output.py"
    monkeypatch.setattr(output, "__file__", str(installed))
    assert git_hash() is None
