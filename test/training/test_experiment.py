"""Experiments: which runs, in which order, and the table that comes of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from depth_prior_ros.bundle import MANIFEST_NAME
from depth_prior_ros.share import share_dir
from training.comparison.experiment import (
    Job,
    Runner,
    is_of_another_recipe,
    places,
    plan,
    read_experiment,
)
from training.errors import TrainingError
from training.recipes.base import RecipeError
from training.recipes.files import load_recipe

RECIPE = share_dir() / "config" / "training" / "small_teacher.yaml"


def written(folder: Path, **content: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_series_has_a_run_for_each_seed_and_waits_for_what_it_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        runs={
            "one": {"recipe": str(RECIPE)},
            "two": {"recipe": str(RECIPE), "seeds": [3, 4], "set": ["start={one}/x.safetensors"]},
            "three": {"recipe": str(RECIPE), "seeds": [3, 4], "set": ["start={two}/y"]},
        },
        compare={"rows": ["A:B=two", "C:=three/0_teacher/bundle"]},
    )
    planned, table = plan(read_experiment(path), path, tmp_path)
    jobs = {job.folder.name: job for job in planned}
    assert list(jobs) == ["one_seed1", "two_seed3", "two_seed4", "three_seed3", "three_seed4"]
    assert jobs["two_seed4"].overrides == ("seed=4", f"start={tmp_path}/one_seed1/x.safetensors")
    assert jobs["three_seed4"].needs == {tmp_path / "two_seed4"}, "paired by seed"
    assert table is not None
    assert table.rows[0] == (f"A:B={tmp_path}/two_seed3/bundle@3,{tmp_path}/two_seed4/bundle@4")
    assert f"{tmp_path}/three_seed3/0_teacher/bundle@3" in table.rows[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"runs": {}}, "runs"),
        ({"runs": {"a": {"recipe": "r", "sed": 1}}}, r"runs\.a\.sed"),
        ({"runs": {"a": {"recipe": "r", "set": ["start={b}"]}}}, "'start={b}' names a series"),
        ({"runs": {"a": {"recipe": "r"}}, "compare": {"rows": ["X=b"]}}, "'X=b' is not"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: dict[str, object], words: str) -> None:
    path = written(tmp_path, **content)
    with pytest.raises(RecipeError, match=words):
        plan(read_experiment(path), path, tmp_path)


def finish(job: Job) -> None:
    (job.folder / "bundle").mkdir(parents=True)
    (job.folder / "bundle" / MANIFEST_NAME).touch()


def jobs(folder: Path) -> list[Job]:
    first = Job("a", 1, folder / "a_seed1", RECIPE, (), frozenset())
    return [first, Job("b", 1, folder / "b_seed1", RECIPE, (), frozenset({first.folder}))]


def test_needs_come_first_and_finished_runs_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Runner, "_carry_out", lambda self, job, core: ran.append(job.name))
    both = jobs(tmp_path)
    Runner(2).run(both[::-1])
    assert ran == ["a", "b"]
    for job in both:
        finish(job)
    ran.clear()
    Runner(2).run(both)
    assert ran == []


def test_jobs_share_the_machine() -> None:
    found = places(2, [0, 1, 4, 5, 6], ["0", "1", "2"])
    assert [(sorted(p.cores), p.device) for p in found] == [([0, 4, 6], "0"), ([1, 5], "1")]
    assert found[1].environment()["CUDA_VISIBLE_DEVICES"] == "1"
    assert found[0].environment()["OMP_NUM_THREADS"] == "3"
    many = places(3, [2, 3], [])
    assert [(sorted(p.cores), p.device) for p in many] == [([2], None), ([3], None), ([2], None)]


def test_a_job_runs_on_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that notes its cores stands for the run."""
    noted = tmp_path / "noted"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nsleep 0.5\necho $OMP_NUM_THREADS $(nproc) > {noted}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    Runner(1).run(jobs(tmp_path)[:1])
    cores = str(len(os.sched_getaffinity(0)))
    assert noted.read_text().split() == [cores, cores]


def test_a_finished_run_of_another_recipe_is_noticed(tmp_path: Path) -> None:
    job = jobs(tmp_path)[0]
    now = load_recipe(RECIPE)
    assert not is_of_another_recipe(job, now), "not finished: the run itself refuses"
    finish(job)
    kept = job.folder / "recipe.yaml"
    kept.write_text(yaml.safe_dump(now.model_dump(mode="json")))
    assert not is_of_another_recipe(job, now)
    assert is_of_another_recipe(job, load_recipe(RECIPE, ["stages.0.steps=9"]))
    kept.unlink()
    assert is_of_another_recipe(job, now)


def test_a_failed_run_names_its_log_and_stops_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match=r"a_seed1 failed with status 1, see .*a_seed1\.log"):
        Runner(1).run(jobs(tmp_path))


def test_runs_that_need_each_other_are_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    circle = [
        Job("a", 1, a, RECIPE, (), frozenset({b})),
        Job("b", 1, b, RECIPE, (), frozenset({a})),
    ]
    with pytest.raises(RecipeError, match="need each other: a, b"):
        Runner(1).run(circle)


def test_the_shipped_experiments_are_valid(tmp_path: Path) -> None:
    files = sorted((share_dir() / "config" / "training" / "experiments").glob("*.yaml"))
    assert files
    for file in files:
        for job in plan(read_experiment(file), file, tmp_path)[0]:
            load_recipe(job.recipe, list(job.overrides))
