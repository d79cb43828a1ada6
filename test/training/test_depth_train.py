"""The command line of `depth_train`: instant help, plain errors, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_tiny_bundle
from kitti_files import write_frame

from depth_prior_ros.bundle import Bundle
from training.commands import cli

HEAVY = ("torch", "cv2", "numpy", "openvino", "pydantic", "rich", "matplotlib", "rclpy", "yaml")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for number in (1, 2):
        write_frame(tmp_path / "kitti_2015", number, 20.0, name="{:06d}")
    return tmp_path


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from training.commands.cli import build_parser; build_parser().format_help();"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("command", ["run", "evaluate", "compare", "inspect"])
def test_every_command_has_help(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"depth_train {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["run"], ["evaluate", "--model", "all"]],
)
def test_wrong_usage(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: depth_train" in capsys.readouterr().err


def test_the_default_bundle_is_lite():
    parser = cli.build_parser()
    assert parser.parse_args(["evaluate", "--baselines"]).bundle == "lite"
    assert parser.parse_args(["inspect"]).bundle == "lite"


def test_names_are_those_of_the_libraries():
    from typing import get_args

    from depth_prior_ros.models import imported
    from depth_prior_ros.pipeline import pipeline
    from training.evaluation.evaluation import MODELS

    assert set(cli.MODEL_NAMES[1:]) == set(MODELS) == set(get_args(pipeline.Model))
    assert cli.DEPTH_KINDS == imported.DEPTH_KINDS


def test_inspect_prints_what_is_in_a_bundle(bundle: Bundle, capsys):
    assert cli.main(["inspect", str(bundle.path), "--full"]) == 0
    shown = capsys.readouterr().out
    for word in ("tiny", "96x32", "metres per unit", "made up", "random numbers, for tests"):
        assert word in shown


def test_a_missing_bundle_is_a_plain_error(capsys):
    assert cli.main(["inspect", "no/such/bundle"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("depth_train: error:") and "no/such/bundle" in captured.err
    assert "Traceback" not in captured.err


def test_an_altered_bundle_is_a_plain_error(tmp_path: Path, capsys):
    made = make_tiny_bundle(tmp_path / "tiny")
    file = made.path / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for command in ("inspect", "evaluate"):
        extra = ["--data", str(scenes_in(tmp_path))] if command == "evaluate" else []
        assert cli.main([command, str(made.path), *extra]) == 1
        error = capsys.readouterr().err
        assert "student.safetensors" in error and "truncated" in error


def scenes_in(folder: Path) -> Path:
    write_frame(folder / "kitti_2015", 1, 20.0, name="{:06d}")
    return folder


def test_no_data_is_a_plain_error(bundle: Bundle, monkeypatch, capsys):
    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    assert cli.main(["evaluate", str(bundle.path)]) == 1
    assert "--data DIR or set DEPTH_PRIOR_DATA" in capsys.readouterr().err


def test_a_missing_recipe_is_a_plain_error(capsys):
    assert cli.main(["run", "no/such/recipe.yaml"]) == 1
    assert "no/such/recipe.yaml" in capsys.readouterr().err


def test_run_hands_recipe_overrides_and_folder_on(monkeypatch, tmp_path: Path, capsys):
    import training.runs.run

    calls = []
    monkeypatch.setattr(
        training.runs.run, "run_recipe", lambda *given: calls.append(given) or tmp_path / "bundle"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 1")
    words = ["run", str(recipe), "seed=2", "stages.0.steps=9", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert calls == [(recipe, ["seed=2", "stages.0.steps=9"], tmp_path)]
    assert str(tmp_path / "bundle") in capsys.readouterr().out


def test_a_recipe_has_a_name_from_anywhere(monkeypatch, tmp_path: Path, capsys):
    import training.runs.run

    calls: list[Path] = []
    monkeypatch.setattr(training.runs.run, "run_recipe", lambda *given: calls.append(given[0]))
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).resolve().parents[2] / "config" / "training"
    for name in ("small_start", "small_start.yaml", "config/training/small_start.yaml"):
        assert cli.main(["run", name]) == 0
    assert calls == [shipped / "small_start.yaml"] * 3
    assert cli.main(["run", "smal_start"]) == 1
    assert f"{tmp_path / 'smal_start'} is no file" in (said := capsys.readouterr().err)
    assert "small_start" in said


def test_inspect_prints_what_a_person_wants_first(bundle: Bundle, capsys):
    assert cli.main(["inspect", str(bundle.path)]) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) < 25
    assert str(bundle.path) in first
    assert bundle.manifest.licence in first
    assert "--full" in first
    assert "sha256" not in first
    assert cli.main(["inspect", str(bundle.path), "--full"]) == 0
    assert next(iter(bundle.manifest.files.values()))[:16] in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(monkeypatch, bundle: Bundle):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("depth_prior_ros.bundle.describe", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", str(bundle.path)])


@pytest.mark.parametrize(
    ("said", "shown"),
    [((), "interrupted; the same command"), (("stopped after step 6",), "after step 6")],
)
def test_interrupting_is_not_a_failure_of_the_program(
    monkeypatch, bundle: Bundle, capsys, said: tuple[str, ...], shown: str
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt(*said)

    monkeypatch.setattr("depth_prior_ros.bundle.describe", interrupted)
    assert cli.main(["inspect", str(bundle.path)]) == 130
    assert shown in capsys.readouterr().err


def test_evaluate_prints_and_writes(bundle: Bundle, scenes: Path, monkeypatch, capsys):
    monkeypatch.setenv("DEPTH_PRIOR_DATA", str(scenes))
    file, pictures = scenes / "out.json", scenes / "pictures"
    arguments = ["evaluate", str(bundle.path), "--baselines", "--backend", "torch"]
    arguments += ["--device", "cpu", "--json", str(file), "--pictures", str(pictures)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "kitti_2015" in shown and "constant depth" in shown
    content = json.loads(file.read_text())
    assert content["depth"]["all"]["frames"] == 2
    assert [p.name for p in pictures.iterdir()] == ["kitti_2015_all.png"]
