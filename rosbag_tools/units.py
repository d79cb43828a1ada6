"""Work on many recordings: each is a unit, several are done side by side.

By processes of this machine, or by the workers of a cluster.

A unit must be able to go on where it was (`work`), since what a lost process had in hand is given
to another one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from depth_prior_ros.progress import ProgressBar, duration
from depth_prior_ros.recording_options import recording_options
from rosbag_tools.remote import Place, below, local_copies, name_of

if TYPE_CHECKING:
    from depth_prior_ros.recordings import StoredRecording
    from rosbag_tools.extract import Extracted
    from rosbag_tools.process import Processed

T = TypeVar("T")
R = TypeVar("R")

_TRIES = 3  # of a unit whose process was lost
_BETWEEN_TELLING = 0.2  # seconds
_BETWEEN_LINES = 30.0  # seconds, where the output is a file or a pipe

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Unit(Generic[T]):
    """A piece of work with a name that people know."""

    name: str
    work: T


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What came of a unit: its result, or why there is none, in words."""

    name: str
    result: R | None = None
    error: str = ""


def run_units(
    do: Callable[[T, Told], R],
    units: Sequence[Unit[T]],
    jobs: int = 1,
    expected: Callable[[Exception], bool] = lambda error: isinstance(error, OSError),
) -> list[Outcome[R]]:
    """Do all units, `jobs` at a time, and give back what came of each, in their order.

    Args:
        do: a function of a module, given the work and whom to tell of (done, total) steps.
        units: what to do.
        jobs: processes; with 1, or with one unit, all is done in this one.
        expected: errors whose words say all; others of a unit end everything.
    """
    if jobs <= 1 or len(units) <= 1:
        return [_here(do, unit, expected) for unit in units]
    outcomes: dict[str, Outcome[R]] = {}
    with _progress_bars([unit.name for unit in units]) as told:
        outcomes |= _side_by_side(do, units, jobs, told, expected)
        for _ in range(_TRIES - 1):
            # A process that dies takes those beside it along: from now on a pool for each unit.
            left = [[unit] for unit in units if unit.name not in outcomes]
            with ThreadPoolExecutor(jobs) as lanes:
                for found in lanes.map(lambda u: _side_by_side(do, u, 1, told, expected), left):
                    outcomes |= found
    lost = "its process was lost three times (out of memory?)"
    return [outcomes.get(unit.name, Outcome(unit.name, error=lost)) for unit in units]


def run_on_ray(
    do: Callable[[T, Told], R],
    units: Sequence[Unit[T]],
    address: str,
    expected: Callable[[Exception], bool] = lambda error: isinstance(error, OSError),
    jobs: int | None = None,
) -> list[Outcome[R]]:
    """`run_units` on a cluster of Ray, which has every unit done again whose worker was lost.

    address: of the cluster, `HOST:PORT` or `ray://HOST:PORT`; `auto`: the one that this machine
    belongs to, or where there is none, one of this machine alone. A unit asks for two processors,
    or for its share of all, where `jobs` says how many are done at a time.

    Raises:
        OSError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
        from ray.util.queue import Queue
    except ImportError as error:
        raise OSError(
            f"a cluster needs Ray ({error}): python3 -m pip install 'depth_prior_ros[cluster]'"
        ) from error
    try:
        if address == "auto":
            ray.init(include_dashboard=False)
        else:
            ray.init(address=address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OSError(f"--ray {address}: {error}") from error
    outcomes = []
    try:
        machines = [m["Resources"].get("CPU", 0.0) for m in ray.nodes() if m["Alive"]]
        # A unit has to fit one machine of the cluster, or it would wait for ever.
        share = 2.0 if jobs is None else max(1.0, sum(machines) // jobs)
        processors = max(1.0, min(share, max(machines, default=1.0)))
        work = ray.remote(num_cpus=processors, max_retries=_TRIES)(_there)
        told = Queue(actor_options={"num_cpus": 0})
        with _progress_bars([unit.name for unit in units], told):
            futures = [work.remote(do, unit, told) for unit in units]
            for unit, future in zip(units, futures, strict=True):
                try:
                    outcomes.append(Outcome(unit.name, ray.get(future)))
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    if not expected(cause):
                        raise
                    outcomes.append(Outcome(unit.name, error=str(cause)))
                except ray.exceptions.RayError as error:
                    lost = f"its worker was lost again and again ({type(error).__name__})"
                    outcomes.append(Outcome(unit.name, error=lost))
    finally:
        ray.shutdown()
    return outcomes


def usual_jobs(units: int) -> int:
    """Two processors a process: one for the networks, one for decoding and encoding."""
    return max(1, min(units, (os.cpu_count() or 2) // 2))


def _here(
    do: Callable[[T, Told], R], unit: Unit[T], expected: Callable[[Exception], bool]
) -> Outcome[R]:
    with ProgressBar() as bar:
        try:
            return Outcome(unit.name, do(unit.work, lambda i, n: bar(unit.name, i, n)))
        except Exception as error:
            if not expected(error):
                raise
            return Outcome(unit.name, error=str(error))


def _side_by_side(
    do: Callable[[T, Told], R],
    units: Sequence[Unit[T]],
    jobs: int,
    told: Any,
    expected: Callable[[Exception], bool],
) -> dict[str, Outcome[R]]:
    """The outcomes by name; of units whose process was lost there is none."""
    found: dict[str, Outcome[R]] = {}
    context = multiprocessing.get_context("spawn")  # a fork would share OpenVINO's threads
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(_there, do, unit, told): unit.name for unit in units}
        for future in as_completed(futures):
            name = futures[future]
            try:
                found[name] = Outcome(name, future.result())
            except BrokenProcessPool:
                continue
            except Exception as error:
                if not expected(error):
                    pool.shutdown(cancel_futures=True)
                    raise
                found[name] = Outcome(name, error=str(error))
    return found


def _there(do: Callable[[T, Told], R], unit: Unit[T], told: Any) -> R:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > _BETWEEN_TELLING:
            last = now
            told.put((unit.name, done, total))

    return do(unit.work, tell)


@contextmanager
def _progress_bars(names: Sequence[str], told: Any = None) -> Iterator[Any]:
    """A queue of (name, done, total), shown as a bar for each name, or as lines of a log.

    told: a queue that reaches other machines; default: one of this machine's processes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    console, stop = Console(stderr=True), threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with (
        multiprocessing.Manager() if told is None else nullcontext() as manager,
        Progress(*columns, console=console, disable=not console.is_terminal) as bars,
    ):
        told = told if manager is None else manager.Queue()
        tasks = {name: bars.add_task(name, total=None) for name in names}

        def show() -> None:
            began = spoken = time.monotonic()
            latest: dict[str, tuple[int, int]] = {}
            while not stop.is_set():
                try:
                    name, done, total = told.get(timeout=0.2)
                except queue.Empty:
                    pass
                else:
                    latest[name] = done, total
                    bars.update(tasks[name], completed=done, total=total)
                if not console.is_terminal and time.monotonic() - spoken > _BETWEEN_LINES:
                    spoken = time.monotonic()
                    words = ", ".join(f"{k} {i} of {n}" for k, (i, n) in latest.items() if i < n)
                    text = f"{words or 'working'} after {duration(spoken - began)}"
                    console.print(text, markup=False, highlight=False)

        thread = threading.Thread(target=show, name="progress", daemon=True)
        thread.start()
        try:
            yield told
        finally:
            stop.set()
            thread.join(5)


# -- recordings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A recording to open, and what to do with it; goes to other processes.

    options: `ProcessOptions` or `ExtractOptions`. command: as it was typed, for the report.
    """

    source: Place
    out: Place
    reading: argparse.Namespace
    options: Any
    command: str = ""

    def open(self, path: Path) -> StoredRecording:
        """The recording, of which `path` is the source or its local copy, read as options say."""
        from depth_prior_ros.recordings import open_recording

        return open_recording(path, **recording_options(path, self.reading))


def places(recordings: Sequence[Place], out: Place, alone: bool = True) -> list[Place]:
    """Where results go: folders by the recordings' names; `out` itself for one, where alone."""
    if alone and len(recordings) == 1:
        return [out]
    names: list[str] = []
    for where in recordings:
        name = name_of(where)
        if name in names:
            above = where.rstrip("/").rpartition("/")[0] if isinstance(where, str) else where
            parent = above if isinstance(above, str) else above.resolve().parent
            name = f"{PurePosixPath(parent).name}_{name}"
        while name in names:
            name = f"{name}_2"
        names.append(name)
    return [below(out, name) for name in names]


def process_job(job: Job, told: Any) -> Processed:
    """Open a job's recording and make its depth."""
    from rosbag_tools.process import MANIFEST, process

    with local_copies(job.source, job.out, MANIFEST) as (source, out):
        found = process(source, job.open(source), out, job.options, job.command, told)
    return replace(found, out=job.out)


def extract_job(job: Job, told: Any) -> Extracted:
    """Open a job's recording and write its data set."""
    from rosbag_tools.extract import MANIFEST, extract

    with local_copies(job.source, job.out, MANIFEST) as (source, out):
        found = extract(source, job.open(source), out, job.options, told)
    return replace(found, out=job.out)
