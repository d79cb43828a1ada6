"""`depth_train experiment`: all runs that a table needs, several at a time, and then the table.

A run that is finished is left alone and one that was interrupted goes on, so the same command may
be given until the table is there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from rich.console import Console

from depth_prior_ros import strict_yaml
from depth_prior_ros.bundle import MANIFEST_NAME
from depth_prior_ros.untrusted import printable
from training.errors import TrainingError
from training.evaluation.sets import DATA_VARIABLE
from training.recipes.base import RecipeError, Strict
from training.recipes.files import load_recipe

if TYPE_CHECKING:
    from training.comparison.rows import Listing
    from training.recipes.recipe import Recipe


class Series(Strict):
    """One recipe, run once per seed."""

    recipe: str = Field(description="relative to the experiment's file")
    seeds: tuple[int, ...] = Field((1,), min_length=1)
    set: tuple[str, ...] = Field(
        (), description="key=value; {NAME} is the folder of that series' run with the same seed"
    )


class Table(Strict):
    """What `depth_train compare` is told."""

    rows: tuple[str, ...] = Field(
        min_length=1,
        description="NAME=SERIES, or NAME=SERIES/FOLDER for a bundle inside its runs, every seed "
        "of the series; or NAME=PATH@SEED,... for bundles of other runs",
    )
    against: str | None = None
    pairs: tuple[str, ...] = ()
    synthetic: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    sets: list[str] | None = None
    cost: bool = Field(False, description="also time and size of every row")


class Experiment(Strict):
    """Runs by name, and the table that compares them."""

    runs: dict[str, Series] = Field(min_length=1)
    compare: Table | None = None


_BETWEEN_LINES = 30.0  # seconds
# A series in braces; YAML's own braces hold more than a name.
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Job:
    """One run of one series."""

    name: str
    seed: int
    folder: Path
    recipe: Path
    overrides: tuple[str, ...]
    needs: frozenset[Path]

    @property
    def finished(self) -> bool:
        """Whether its bundle is written."""
        return (self.folder / "bundle" / MANIFEST_NAME).is_file()


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's YAML file.

    Raises:
        RecipeError: not readable, an unknown key, or a wrong type; names file and key.
    """
    try:
        return Experiment.model_validate(strict_yaml.read(path))
    except OSError as error:
        problem = strict_yaml.problem_of(error)
        raise RecipeError(f"experiment {path} cannot be read: {problem}") from error
    except strict_yaml.YamlError as error:
        raise RecipeError(f"experiment {path} cannot be read: {error}") from error
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"experiment {path} is not valid: {printable(words)}") from error


def plan(experiment: Experiment, path: Path, out: Path) -> tuple[list[Job], Table | None]:
    """All jobs of an experiment read from ``path`` with run folders below ``out``, and its table
    with bundles in place of series.

    Raises:
        RecipeError: a series that is not there is named.
    """
    jobs = []
    for name, series in experiment.runs.items():
        for seed in series.seeds:
            known = _Folders(experiment, out, seed)
            overrides = tuple(_fill(text, known, f"runs.{name}.set") for text in series.set)
            folder = run_folder(out, name, seed)
            recipe = path.parent / series.recipe
            needs = frozenset(known.used - {folder})
            jobs.append(Job(name, seed, folder, recipe, (f"seed={seed}", *overrides), needs))
    table = experiment.compare
    if table is not None:
        rows = tuple(_row(text, experiment, out) for text in table.rows)
        table = table.model_copy(update={"rows": rows})
    return jobs, table


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where the run of a series with a seed lies."""
    return out / f"{name}_seed{seed}"


class _Folders(dict[str, str]):
    """Run folders by name of series, and which of them were asked for."""

    def __init__(self, experiment: Experiment, out: Path, seed: int) -> None:
        super().__init__()
        self.used: set[Path] = set()
        self._all = {
            name: run_folder(out, name, seed if seed in s.seeds else s.seeds[0])
            for name, s in experiment.runs.items()
        }

    def __missing__(self, name: str) -> str:
        folder = self._all[name]
        self.used.add(folder)
        return str(folder)


def _fill(text: str, folders: _Folders, place: str) -> str:
    try:
        return _NAME.sub(lambda name: folders[name[1]], text)
    except KeyError as error:
        raise RecipeError(
            f"{place}: '{text}' names a series that is not there ({error})"
        ) from error


def _row(text: str, experiment: Experiment, out: Path) -> str:
    """``S:M=teacher`` as `depth_train compare` wants it: a bundle for each seed."""
    label, sign, name = text.partition("=")
    series, inner, inside = name.partition("/")
    if sign and inner and series not in experiment.runs:  # other bundles, as compare takes them
        return text
    if not sign or series not in experiment.runs:
        raise RecipeError(
            f"compare.rows: '{text}' is not NAME=SERIES, NAME=SERIES/FOLDER or NAME=PATH@SEED,..."
        )
    bundles = (
        f"{run_folder(out, series, seed) / (inside or 'bundle')}@{seed}"
        for seed in experiment.runs[series].seeds
    )
    return f"{label}={','.join(bundles)}"


@dataclass(frozen=True)
class Place:
    """What a job computes with: processor cores, and one CUDA device where there are some."""

    cores: frozenset[int]
    device: str | None = None

    def environment(self) -> dict[str, str]:
        """Of a process there."""
        there = os.environ | {"OMP_NUM_THREADS": str(len(self.cores))}
        return there if self.device is None else there | {"CUDA_VISIBLE_DEVICES": self.device}


def places(workers: int, cores: Sequence[int], devices: Sequence[str]) -> list[Place]:
    """One for each of ``workers`` jobs at a time: their share of cores, and devices in turn."""
    shares = [cores[i::workers] or [cores[i % len(cores)]] for i in range(workers)]
    return [
        Place(frozenset(share), devices[i % len(devices)] if devices else None)
        for i, share in enumerate(shares)
    ]


def _devices() -> list[str]:
    """The CUDA devices that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names) if torch.cuda.is_available() else []


@dataclass
class Runner:
    """Carries out jobs, ``workers`` at a time, each on its share of the machine."""

    workers: int
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self, jobs: list[Job]) -> None:
        """Run what is not finished, in the order of their needs.

        Raises:
            TrainingError: a run failed; the message names its log. Others are finished first.
        """
        done = {job.folder for job in jobs if job.finished}
        waiting = [job for job in jobs if job.folder not in done]
        self.console.print(f"{len(jobs)} runs, {len(done)} finished already")
        free = places(self.workers, sorted(os.sched_getaffinity(0)), _devices())
        failed: list[str] = []
        running: dict[Future[str | None], tuple[Job, Place]] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            while waiting or running:
                ready = [job for job in waiting if job.needs <= done][: len(free)]
                if failed and not running:
                    break
                for job in [] if failed else ready:
                    waiting.remove(job)
                    place = free.pop()
                    running[pool.submit(self._carry_out, job, place)] = (job, place)
                if not running:
                    names = ", ".join(sorted(job.folder.name for job in waiting))
                    raise RecipeError(f"runs that need each other: {names}")
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    job, place = running.pop(ended)
                    free.append(place)
                    problem = ended.result()
                    if problem is None:
                        done.add(job.folder)
                    else:
                        failed.append(problem)
        if failed:
            raise TrainingError("; ".join(failed))

    def _carry_out(self, job: Job, place: Place) -> str | None:
        """Run one job; what went wrong, or None."""
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        log = job.folder.with_suffix(".log")
        command = [sys.executable, "-m", "training.commands.cli", "run", str(job.recipe)]
        command += [*job.overrides, "--out", str(job.folder)]
        started = time.monotonic()
        self.console.print(f"{job.folder.name}: started, see {log}")
        with log.open("a") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=place.environment()
            )
            with suppress(ProcessLookupError):  # it may have ended already
                os.sched_setaffinity(process.pid, place.cores)
            stop = threading.Event()
            told = threading.Thread(target=self._tell, args=(job, stop), daemon=True)
            told.start()
            code = process.wait()
            stop.set()
        minutes = (time.monotonic() - started) / 60
        if code:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            said = f" ({last[0]})" if last else ""
            return f"{job.folder.name} failed with status {code}, see {log}{said}"
        self.console.print(f"{job.folder.name}: finished in {minutes:.1f} minutes")
        return None

    def _tell(self, job: Job, stop: threading.Event) -> None:
        """Say from time to time how far a run is."""
        while not stop.wait(_BETWEEN_LINES):
            line = _last_line(job.folder) or "begins"
            self.console.print(f"{job.folder.name}: {line}", markup=False, highlight=False)


def _last_line(folder: Path) -> str | None:
    """Stage, step and loss of a run's newest line of metrics."""
    logs = sorted(folder.glob("*/metrics.jsonl"), key=lambda p: p.stat().st_mtime)
    for line in reversed(list(_lines(logs[-1])) if logs else []):
        if "loss" in line:
            return f"{logs[-1].parent.name} step {line['step']}, loss {line['loss']:.4f}"
    return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except ValueError:  # being written
            continue


def is_of_another_recipe(job: Job, recipe: Recipe) -> bool:
    """Whether a finished run was made by another recipe than the one it would have now."""
    if not job.finished:
        return False
    try:
        return load_recipe(job.folder / "recipe.yaml").model_dump() != recipe.model_dump()
    except RecipeError:  # of another version
        return True


def run_experiment(path: Path, out: Path, workers: int, data: Path | None = None) -> Listing | None:
    """Carry out what is missing of an experiment; returns what is to be compared.

    Args:
        path: the experiment's file.
        out: its run folders lie below.
        workers: runs at a time.
        data: the data root, where a recipe does not say; default: $DEPTH_PRIOR_DATA.

    Raises:
        RecipeError: the experiment or one of its recipes is not valid.
        TrainingError: a run failed.
    """
    from training.comparison.rows import Listing, check_listing, parse_spec

    if workers < 1:
        raise RecipeError(f"{workers} jobs at a time: at least one is needed")
    if data is not None:
        os.environ[DATA_VARIABLE] = str(data)
    jobs, table = plan(read_experiment(path), path, out)
    runner = Runner(workers)
    for job in jobs:  # a typo in the last one is told before the first is trained
        if is_of_another_recipe(job, load_recipe(job.recipe, list(job.overrides))):
            runner.console.print(
                f"{job.folder.name}: finished with another recipe or other overrides than now (see "
                "recipe.yaml there), and kept as it is; remove the folder to train it anew",
                markup=False,
                highlight=False,
            )
    listing = None
    if table is not None:
        specs = [parse_spec(text) for text in table.rows]
        synthetic = [Path(bag) for bag in table.synthetic]
        pairs = list(table.pairs)
        recordings = [Path(recording) for recording in table.recordings]
        listing = Listing(
            specs, table.against, pairs, synthetic, table.sets, table.cost, recordings
        )
        check_listing(listing)
    runner.run(jobs)
    return listing
