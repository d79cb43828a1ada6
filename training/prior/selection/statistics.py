"""How much of a student's attention falls on each reference pixel (RPrDepth, W_avg).

The matrix of queries x references is never there: a first pass over the references finds every
query's log-sum-exp, a second one sums the columns of exp(score - log-sum-exp). Scores are float32,
in powers of two (exp2 costs a third of exp), and their shift is one more channel of the matrix
product: what remains per score is exp2 and one addition.

Threads of one core each take whole chunks of references, and keep their blocks of scores in their
own cache; two threads inside every small operation would wait for one another hundreds of thousands
of times.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior, PriorFusion
from depth_prior_ros.progress import Progress
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.prior.reference.set import ReferenceSet
    from training.prior.selection.selection import OwnPrior

# Reads a chunk of references, given the number of references before it; returns what is merged.
Worker = Callable[[int, Prior], Any]
# Rows of a chunk: a few megabytes as float32, and enough chunks for several threads.
CHUNK = 16_384


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
    """A reference set as chunks of ``size`` rows, which can be gone through again and again."""

    references: ReferenceSet | OwnPrior
    size: int = CHUNK

    def __iter__(self) -> Iterator[Prior]:
        return self.references.chunks(self.size)


def split(prior: Prior, size: int = CHUNK) -> list[Prior]:
    """A prior in memory as chunks of ``size`` rows (views)."""
    parts = zip(prior.features.split(size), prior.inverse_depth.split(size), strict=True)
    return [Prior(features, inverse) for features, inverse in parts]


def rows_of(chunks: Iterable[Prior]) -> int:
    """Number of references where that is known without reading them, else 0."""
    if isinstance(chunks, ReferenceChunks):
        return len(chunks.references)
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


# References and queries (of all heads together) of a block of scores: 2 MiB is small enough for the
# caches and large enough for the calls not to count; an accelerator wants much larger ones.
_COLUMNS, _ROWS = 512, 1024
_DEVICE_COLUMNS, _DEVICE_ROWS = 8192, 4096
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Queries:
    """The queries of all images for each branch that is on.

    Attributes:
        branches: pixel-wise (1, Q, d) and depth hint (heads, Q, d'), float32, scores in powers of
            two; None where a branch is off.
        share: (Q,) float64, what each query counts in the mean over images; sums to 1.
    """

    branches: tuple[Tensor | None, Tensor | None]
    share: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, fusion: PriorFusion, query_maps: Iterable[Tensor]) -> Queries:
        """Project feature maps, (C, h, w) or (B, C, h, w) each.

        Raises:
            TrainingError: there are none, or they are not finite.
        """
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        counts: list[int] = []
        for maps in query_maps:
            maps = maps if maps.dim() == 4 else maps[None]
            counts += [maps[0, 0].numel()] * len(maps)
            for part, queries in zip(parts, fusion.scaled_queries(maps), strict=True):
                if queries is not None:  # (B, heads, Q, d)
                    part.append(queries.float().transpose(0, 1).flatten(1, 2) * _LOG2_E)
        if not counts:
            raise TrainingError("no validation image: attention needs at least one to look at")
        pixel_wise, hint = (torch.cat(part, dim=1) if part else None for part in parts)
        for queries in (pixel_wise, hint):
            if queries is not None and not bool(queries.isfinite().all()):
                raise TrainingError("the student's features of a validation image are not finite")
        share = torch.tensor([1 / (n * len(counts)) for n in counts], dtype=torch.float64)
        return cls((pixel_wise, hint), share.repeat_interleave(torch.tensor(counts)))

    @property
    def operations(self) -> float:
        """Operations of one pass per reference: two per channel of every score."""
        return float(sum(2 * branch.numel() for branch in self.branches if branch is not None))


class Branch:
    """One branch in one thread: its queries with a last channel that is added to the scores."""

    def __init__(self, queries: Tensor, last: Tensor | float = 0.0) -> None:
        heads, count, width = queries.shape
        self.queries = queries.new_empty(heads, count, width + 1)
        self.queries[..., :width] = queries
        self.queries[..., width] = last
        self._rows = max(1, _sizes(queries.device)[1] // heads)
        self._buffer = queries.new_empty(0)

    def scores(self, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (heads, q, n) of scores of keys (heads, d + 1, n); the buffer is used again."""
        heads, count, _ = self.queries.shape
        for start in range(0, count, self._rows):
            rows = slice(start, min(start + self._rows, count))
            size = heads * (rows.stop - start) * keys.shape[2]
            if self._buffer.numel() < size:
                self._buffer = keys.new_empty(size)
            block = self._buffer[:size].view(heads, rows.stop - start, keys.shape[2])
            yield rows, torch.bmm(self.queries[:, rows], keys, out=block)


def pieces(
    fusion: PriorFusion, chunk: Prior
) -> Iterator[tuple[int, tuple[Tensor | None, Tensor | None]]]:
    """Keys of a chunk, a block's width at a time: (heads, d + 1, n), the last channel one."""
    device = next(fusion.parameters()).device
    start = 0
    for features in chunk.features.to(device).split(_sizes(device)[0]):
        pixel_wise, hint = (_keys(keys) for keys in fusion.project_keys(features))
        yield start, (pixel_wise, hint)
        start += len(features)


def _keys(keys: Tensor | None) -> Tensor | None:
    if keys is None:
        return None
    heads, count, width = keys.shape
    out = keys.new_ones(heads, width + 1, count, dtype=torch.float32)
    out[:, :width] = keys.transpose(1, 2)
    return out


def _sizes(device: torch.device) -> tuple[int, int]:
    """References, and queries of all heads together, of a block of scores."""
    return (_COLUMNS, _ROWS) if device.type == "cpu" else (_DEVICE_COLUMNS, _DEVICE_ROWS)


# exp2 of less is zero.
_LOWEST = -200.0
_ONCE = "the references have to be chunks that can be gone through again, such as ReferenceChunks"


@dataclass(frozen=True)
class PriorUsage:
    """What a student looks up in a prior, over the queries of some images.

    Attributes:
        pixel_wise: (N,) float64, mean weight of each reference in the affinity; sums to 1. None
            where the fusion has no such branch.
        hint: the same of the depth-hint attention, mean over its heads.
        pixel_wise_neighbours: (Q,) float64, effective number of neighbours of each query: exp of
            the entropy of its weights, between 1 and N.
        hint_neighbours: (heads, Q), the same of each head.
    """

    pixel_wise: Tensor | None
    hint: Tensor | None
    pixel_wise_neighbours: Tensor | None
    hint_neighbours: Tensor | None

    @property
    def weights(self) -> Tensor:
        """(N,) W_avg: the sum over the branches."""
        found = [weights for weights in (self.pixel_wise, self.hint) if weights is not None]
        return torch.stack(found).sum(0)

    @property
    def neighbours(self) -> float:
        """Effective number of neighbours, mean over queries, of the branches together."""
        found = (self.pixel_wise_neighbours, self.hint_neighbours)
        return float(np.mean([float(n.mean()) for n in found if n is not None]))

    def unused(self, below: float = 0.01) -> float:
        """Share of references with less than ``below`` times the mean weight."""
        weights = self.weights
        return float((weights < below * weights.mean()).double().mean())


def mean_weights(
    fusion: PriorFusion,
    query_maps: Iterable[Tensor],
    references: Iterable[Prior],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """W_avg of RPrDepth's attention-guided feature selection.

    The mean over images of affinity plus attention weights (mean over heads) of each reference,
    mean over the queries of an image. Exact up to float32 scores.

    Args:
        fusion: `PriorFusion`; either branch may be switched off.
        query_maps: the student's features at the fusion's stride, (C, h, w) or (B, C, h, w) each,
            of any sizes; all queries are kept, projected.
        references: chunks of the reference set; gone through twice.
        threads: cores to use; default: as many as PyTorch may.
        progress: is told of every chunk.

    Returns:
        (N,) float64 on the CPU, non-negative; sums to the number of branches.

    Raises:
        TrainingError: no image, no reference, or a value that is not finite.
    """
    found = _statistics(fusion, query_maps, references, threads, progress, entropy=False)
    return torch.stack([weights for weights, _ in found if weights is not None]).sum(0)


def prior_usage(
    fusion: PriorFusion,
    query_maps: Iterable[Tensor],
    references: Iterable[Prior],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PriorUsage:
    """As `mean_weights`, by branch, with the effective number of neighbours of every query."""
    found = _statistics(fusion, query_maps, references, threads, progress, entropy=True)
    (pixel_wise, near), (hint, hint_near) = found
    return PriorUsage(pixel_wise, hint, None if near is None else near[0], hint_near)


_Logs = list[tuple[Tensor, Tensor | None] | None]


class _LogSums:
    """First pass, one thread: log2 of the sums of 2 ** score of a chunk, and the mean score.

    Scores are shifted by what is the query's largest among the first references; the shift is
    raised only where a sum overflows, so that no block needs a maximum of its own.
    """

    def __init__(
        self, fusion: PriorFusion, queries: Queries, shifts: Sequence[Tensor | None], entropy: bool
    ) -> None:
        self._fusion = fusion
        self._shifts = shifts
        self._entropy = entropy
        self._branches = [None if q is None else Branch(q) for q in queries.branches]

    def __call__(self, offset: int, chunk: Prior) -> _Logs:
        sums: list[Tensor | None] = []
        for branch, shift in zip(self._branches, self._shifts, strict=True):
            if branch is None or shift is None:
                sums.append(None)
                continue
            branch.queries[..., -1] = -shift
            sums.append(shift.new_zeros(1 + self._entropy, *shift.shape, dtype=torch.float64))
        for _, keys in pieces(self._fusion, chunk):
            for branch, total, key in zip(self._branches, sums, keys, strict=True):
                if branch is not None and total is not None and key is not None:
                    self._add(branch, total, key)
        return [
            None if branch is None or total is None else self._logs(branch, total)
            for branch, total in zip(self._branches, sums, strict=True)
        ]

    def _add(self, branch: Branch, total: Tensor, keys: Tensor) -> None:
        found = self._sum(branch, keys)
        if not bool(found.isfinite().all()):
            self._raise_shift(branch, total, keys)
            found = self._sum(branch, keys)
        total += found

    def _sum(self, branch: Branch, keys: Tensor) -> Tensor:
        """Sums of 2 ** shifted score (heads, Q), and of that times the shifted score."""
        heads, count, _ = branch.queries.shape
        found = keys.new_empty(1 + self._entropy, heads, count)
        for rows, scores in branch.scores(keys):
            if self._entropy:
                weights = scores.exp2()
                # What is zero counts nothing, however far below the shift.
                torch.sum(weights * scores.clamp_(min=_LOWEST), -1, out=found[1, :, rows])
            else:
                weights = scores.exp2_()
            torch.sum(weights, -1, out=found[0, :, rows])
        return found

    def _raise_shift(self, branch: Branch, total: Tensor, keys: Tensor) -> None:
        """Shift so that no score of these keys is above zero."""
        for rows, scores in branch.scores(keys):
            rise = scores.amax(-1).clamp(min=0)
            branch.queries[:, rows, -1] -= rise
            old, rise = total[:, :, rows], rise.double()
            if self._entropy:
                old[1] -= rise * old[0]
            old *= torch.exp2(-rise)

    def _logs(self, branch: Branch, total: Tensor) -> tuple[Tensor, Tensor | None]:
        shift = -branch.queries[..., -1].double()
        log = shift + total[0].log2()
        if not self._entropy:
            return log, None
        # Where all is far below the shift there is no mean, and it counts nothing.
        return log, torch.where(total[0] == 0, 0.0, shift + total[1] / total[0])


def _largest_scores(fusion: PriorFusion, queries: Queries, chunk: Prior) -> list[Tensor | None]:
    """By branch: the largest score of each query (heads, Q) among the first references."""
    _, keys = next(pieces(fusion, chunk))
    found: list[Tensor | None] = []
    for q, key in zip(queries.branches, keys, strict=True):
        if q is None or key is None:
            found.append(None)
            continue
        largest = q.new_empty(q.shape[:2])
        for rows, scores in Branch(q).scores(key):
            largest[:, rows] = scores.amax(-1)
        found.append(largest)
    return found


def _both(
    a: tuple[Tensor, Tensor | None] | None, b: tuple[Tensor, Tensor | None] | None
) -> tuple[Tensor, Tensor | None] | None:
    """Log-sum-exp of two parts of the references, in powers of two, and the mean score."""
    if a is None or b is None:
        return None
    log = torch.logaddexp2(a[0], b[0])
    if a[1] is None or b[1] is None:
        return log, None
    return log, torch.exp2(a[0] - log) * a[1] + torch.exp2(b[0] - log) * b[1]


class _Columns:
    """Second pass, one thread: sums over queries of 2 ** (score - log-sum-exp), times share."""

    def __init__(
        self, fusion: PriorFusion, queries: Queries, logs: Sequence[Tensor | None], out: Tensor
    ) -> None:
        self._fusion = fusion
        self._out = out  # (branches, N) float64 on the CPU
        self._branches: list[Branch | None] = []
        for q, log in zip(queries.branches, logs, strict=True):
            if q is None or log is None:
                self._branches.append(None)
                continue
            share = queries.share.to(log.device).log2() - math.log2(len(q))
            self._branches.append(Branch(q, (share - log).float()))

    def __call__(self, offset: int, chunk: Prior) -> None:
        for start, keys in pieces(self._fusion, chunk):
            for branch, key, out in zip(self._branches, keys, self._out, strict=True):
                if branch is None or key is None:
                    continue
                sums = self._sum(branch, key).cpu()
                out[offset + start : offset + start + len(sums)] = sums

    def _sum(self, branch: Branch, keys: Tensor) -> Tensor:
        """(n,) float64: blocks of queries are summed in float32, and those sums in float64."""
        parts = []
        for _, scores in branch.scores(keys):
            parts.append(scores.exp2_().flatten(0, 1).sum(0))
        return torch.stack(parts).sum(0, dtype=torch.float64)


_Found = tuple[Tensor | None, Tensor | None]


@torch.no_grad()
def _statistics(
    fusion: PriorFusion,
    query_maps: Iterable[Tensor],
    references: Iterable[Prior],
    threads: int | None,
    progress: Progress | None,
    entropy: bool,
) -> list[_Found]:
    """By branch: mean weights (N,), and (heads, Q) exp of the entropy."""
    queries = Queries.of(fusion, query_maps)
    device = next(fusion.parameters()).device
    count = (threads or torch.get_num_threads()) if device.type == "cpu" else 1
    operations = queries.operations
    if isinstance(references, Sequence):  # in memory: small enough for every thread to get some
        references = [part for chunk in references for part in split(chunk)]

    chunk = next(iter(references), None)
    if chunk is None:
        raise TrainingError("the reference set is empty")
    shifts = _largest_scores(fusion, queries, chunk)
    merged: _Logs = []

    def merge(logs: _Logs) -> None:
        merged[:] = map(_both, merged, logs) if merged else logs

    rows = sweep(
        "attention, pass 1 of 2",
        references,
        [_LogSums(fusion, queries, shifts, entropy) for _ in range(count)],
        merge=merge,
        operations=operations,
        progress=progress,
    )
    if not rows:
        raise TrainingError(_ONCE)
    logs = [None if found is None else found[0] for found in merged]
    if not all(bool(log.isfinite().all()) for log in logs if log is not None):
        raise TrainingError(
            "attention on the reference set is not finite: its features hold NaN, or the student's "
            "fusion does; check the set (`ReferenceSet.open(..., verify=True)`) and the bundle"
        )
    out = torch.zeros(2, rows, dtype=torch.float64)
    second = [_Columns(fusion, queries, logs, out) for _ in range(count)]
    again = sweep(
        "attention, pass 2 of 2", references, second, operations=operations, progress=progress
    )
    if again != rows:
        raise TrainingError(_ONCE)
    return [
        (None, None)
        if found is None
        # Entropy is log-sum-exp less the mean score.
        else (weights, None if found[1] is None else torch.exp2(found[0] - found[1]).cpu())
        for found, weights in zip(merged, out, strict=True)
    ]
