"""Passes over all chunks of a reference set, by several threads of one core each.

Threads that each take whole chunks keep their blocks of scores in their own cache; two threads
inside every small operation would wait for one another hundreds of thousands of times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from depth_prior_ros.models.prior_fusion import Prior
from depth_prior_ros.progress import Progress

# Reads a chunk of references, given the number of references before it; returns what is merged.
Worker = Callable[[int, Prior], Any]
# Rows of a chunk: a few megabytes as float32, and enough chunks for several threads.
CHUNK = 16_384


class ChunkedSet(Protocol):
    """What a reference set offers here."""

    def __len__(self) -> int:
        """Number of references."""

    def chunks(self, size: int) -> Iterator[Prior]:
        """All rows in order, ``size`` at a time."""


class Meter:
    """Counts what is done and tells `Progress` of it, with the rate; one thread at a time."""

    def __init__(self, what: str, total: int, operations: float, progress: Progress | None) -> None:
        self.done = 0
        self._what, self._total = what, total
        self._operations, self._progress = operations, progress
        self._start = time.perf_counter()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self._progress is not None:
            rate = self._operations * self.done / (time.perf_counter() - self._start)
            self._progress(self._what, self.done, self._total, f"{rate / 1e9:.1f} GFLOP/s")


@dataclass(frozen=True)
class ReferenceChunks:
    """A reference set as chunks that can be gone through again and again.

    Attributes:
        references: the set.
        size: references of a chunk.
    """

    references: ChunkedSet
    size: int = CHUNK

    def __iter__(self) -> Iterator[Prior]:
        return self.references.chunks(self.size)

    @property
    def rows(self) -> int:
        """Number of references."""
        return len(self.references)


def split(prior: Prior, size: int = CHUNK) -> list[Prior]:
    """A prior in memory as chunks of ``size`` rows (views)."""
    parts = zip(prior.features.split(size), prior.inverse_depth.split(size), strict=True)
    return [Prior(features, inverse) for features, inverse in parts]


def rows_of(chunks: Iterable[Prior]) -> int:
    """Number of references where that is known without reading them, else 0."""
    if isinstance(chunks, ReferenceChunks):
        return chunks.rows
    if isinstance(chunks, Sequence):
        return sum(len(chunk.features) for chunk in chunks)
    return 0


def sweep(
    what: str,
    chunks: Iterable[Prior],
    workers: Sequence[Worker],
    *,
    merge: Callable[[Any], None] | None = None,
    operations: float = 0.0,
    progress: Progress | None = None,
) -> int:
    """Give every chunk to one of the workers, each in its own thread, without gradient.

    An error in a worker ends the pass and is raised here. Which worker gets a chunk depends on the
    clock; what is merged, and in which order, does not.

    Args:
        what: name of the pass, for ``progress``.
        chunks: read under a lock, in order.
        workers: each is called by one thread only.
        merge: is given the results in the order of the chunks, by one thread at a time.
        operations: operations per reference, for ``progress``.
        progress: is told of every chunk.

    Returns:
        The number of references.
    """
    source = enumerate(chunks)
    meter = Meter(what, rows_of(chunks), operations, progress)
    lock = threading.Lock()
    waiting: dict[int, Any] = {}  # results of chunks after one that is not done
    taken = merged = 0
    stop = False

    def take() -> tuple[int, int, Prior] | None:
        nonlocal taken
        with lock:
            found = None if stop else next(source, None)
            if found is None:
                return None
            number, chunk = found
            taken += len(chunk.features)
            return number, taken - len(chunk.features), chunk

    def finish(number: int, result: Any, count: int) -> None:
        nonlocal merged
        with lock:
            waiting[number] = result
            while merged in waiting:
                first = waiting.pop(merged)
                merged += 1
                if merge is not None:
                    merge(first)
            meter.add(count)

    def work(worker: Worker) -> None:
        nonlocal stop
        try:
            with torch.no_grad():
                while (item := take()) is not None:
                    number, offset, chunk = item
                    finish(number, worker(offset, chunk), len(chunk.features))
        except BaseException:
            stop = True
            raise

    with one_core_each(), ThreadPoolExecutor(len(workers)) as pool:
        try:
            for future in [pool.submit(work, worker) for worker in workers]:
                future.result()
        finally:
            stop = True
    return meter.done


@contextmanager
def one_core_each() -> Iterator[None]:
    """Operations inside use one thread; new threads take this over from the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
