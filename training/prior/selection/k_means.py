"""Mini-batch k-means over reference pixels: a control for the selection by attention.

The member nearest to each of 25,000 centres stands for its cluster. Of 1.7 million references, both
the training (one sample of each on average) and the final assignment are one product of references
and centres, in blocks that fit a core's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior
from training.errors import TrainingError
from training.prior.selection.sweep import ChunkedSet, Meter, Progress, one_core_each

# Samples of a step, and references read at a time.
BATCH = 32_768
# Blocks of the product: rows by centres.
_ROWS, _CENTRES = 512, 512
_PART = 4096  # rows that one thread takes at a time
_LEAST_STEPS = 12
# Share of the mean number of samples below which a centre is moved elsewhere.
_IDLE = 0.1
_STATISTICS = 65_536  # references that mean and spread are estimated from
_MIN_INVERSE_DEPTH = 1e-6


class References(ChunkedSet, Protocol):
    """What a reference set offers here."""

    def sample(self, rng: np.random.Generator, count: int) -> Prior:
        """Random rows without replacement."""


@dataclass(frozen=True)
class Points:
    """How references become points: channels and log inverse depth, each of unit variance."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, prior: Prior) -> Points:
        """By the statistics of some references; a channel that is constant stays at zero."""
        raw = _raw(prior)
        return cls(raw.mean(0), raw.std(0, unbiased=False).clamp(min=1e-6))

    def __call__(self, prior: Prior) -> Tensor:
        """(n, C + 1).

        Raises:
            TrainingError: a feature or depth is not finite.
        """
        points = (_raw(prior) - self.mean) / self.spread
        if not bool(points.isfinite().all()):
            raise TrainingError(
                "the reference set has features or depths that are not finite: check it by "
                "`ReferenceSet.open(..., verify=True)` and extract it again"
            )
        return points


def _raw(prior: Prior) -> Tensor:
    depth = prior.inverse_depth.float().clamp(min=_MIN_INVERSE_DEPTH).log()
    return torch.cat([prior.features.float(), depth[:, None]], dim=1)


@torch.no_grad()
def k_means(
    references: References,
    keep: int,
    seed: int,
    *,
    batch: int = BATCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """The members nearest to the centres of ``keep`` clusters.

    Centres start at random references. A batch moves them to the mean of about the last N samples,
    so that a batch of everything is Lloyd's algorithm. After every quarter of the steps, centres
    that got less than a tenth of the mean number of samples move to samples drawn by their squared
    distance.

    Args:
        references: the set, of N references.
        keep: number of clusters, 1 to N.
        seed: decides samples; the result does not depend on ``threads``.
        batch: samples of a step.
        threads: cores to use; default: as many as PyTorch may.
        progress: is told of every batch.

    Returns:
        ``keep`` distinct indices, ascending.

    Raises:
        TrainingError: a reference is not finite.
    """
    count = len(references)
    rng = np.random.default_rng([seed, keep])
    points = Points.of(references.sample(rng, _STATISTICS))
    centres = points(references.sample(rng, keep))
    batch = min(batch, count)
    steps = max(_LEAST_STEPS, math.ceil(count / batch))
    operations = 2.0 * keep * (centres.shape[1] + 1)
    workers = threads or torch.get_num_threads()  # before each of them is told to use one
    with one_core_each(), ThreadPoolExecutor(workers) as pool:
        meter = Meter("k-means", steps * batch, operations, progress)
        training = _Training(centres, 1 - batch / count, steps, rng)
        for _ in range(steps):
            training.step(points(references.sample(rng, batch)), pool)
            meter.add(batch)
        meter = Meter("nearest members", count, operations, progress)
        labels, distances = [], []
        for chunk in references.chunks(batch):
            label, distance = assign(points(chunk), training.centres, pool)
            labels.append(label)
            distances.append(distance)
            meter.add(len(label))
    return nearest_members(torch.cat(labels).numpy(), torch.cat(distances).numpy(), keep)


class _Training:
    """Centres (K, d) on their way."""

    def __init__(
        self, centres: Tensor, memory: float, steps: int, rng: np.random.Generator
    ) -> None:
        self.centres = centres.clone()
        self._memory = memory
        self._patience = -(-steps // 4)
        self._steps = steps
        self._rng = rng
        self._counts = torch.zeros(len(centres))
        self._since = torch.zeros(len(centres))  # samples since the last look for idle centres
        self._done = 0

    def step(self, points: Tensor, pool: ThreadPoolExecutor) -> None:
        """Move the centres by one batch."""
        labels, distances = assign(points, self.centres, pool)
        found = torch.bincount(labels, minlength=len(self.centres)).float()
        sums = torch.zeros_like(self.centres).index_add_(0, labels, points)
        kept = self._counts * self._memory
        hit = found > 0
        mean = (kept[:, None] * self.centres + sums) / (kept + found).clamp(min=1)[:, None]
        self.centres[hit] = mean[hit]
        self._counts = kept + found
        self._since += found
        self._done += 1
        if self._done % self._patience == 0 and self._done < self._steps:
            self._move_idle(points, distances)
            self._since.zero_()

    def _move_idle(self, points: Tensor, distances: Tensor) -> None:
        idle = torch.nonzero(self._since < _IDLE * self._since.mean()).flatten()[: len(points)]
        # Drawn without replacement: the largest of log(weight) plus Gumbel noise.
        noise = torch.from_numpy(self._rng.gumbel(size=len(points))).float()
        drawn = torch.argsort(distances.log() + noise, descending=True, stable=True)[: len(idle)]
        self.centres[idle] = points[drawn]
        self._counts[idle] = 0


def assign(points: Tensor, centres: Tensor, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point (n,) int64, and the squared distance to it (n,) float32."""
    # |x - c|^2 / 2 = |x|^2 / 2 - (x . c - |c|^2 / 2): the last term is one more channel.
    half = centres.square().sum(1, keepdim=True) / -2
    keys = torch.cat([centres, half], dim=1)
    blocks = [block.t().contiguous() for block in keys.split(_CENTRES)]
    ones = points.new_ones(len(points), 1)
    parts = torch.cat([points, ones], dim=1).split(_PART)
    found = list(pool.map(lambda part: _nearest(part, blocks), parts))
    scores = torch.cat([score for _, score in found])
    distances = (points.square().sum(1) - 2 * scores).clamp_(min=0)
    return torch.cat([label for label, _ in found]), distances


@torch.no_grad()
def _nearest(points: Tensor, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The column of the largest product with all blocks (d, k), and that product.

    A maximum without its place is fifteen times as fast as with it: first the best block of each
    point is found, then the place in it.
    """
    best = points.new_empty(len(blocks), len(points))
    buffer = points.new_empty(_ROWS * _CENTRES)
    for first, rows in _blocks(points):
        for n, block in enumerate(blocks):
            scores = buffer[: len(rows) * block.shape[1]].view(len(rows), -1)
            torch.mm(rows, block, out=scores)
            torch.amax(scores, 1, out=best[n, first : first + len(rows)])
    scores, which = best.max(0)
    labels = torch.empty_like(which)
    for n, block in enumerate(blocks):
        mine = torch.nonzero(which == n).flatten()
        if len(mine):
            labels[mine] = (points[mine] @ block).argmax(1) + n * _CENTRES
    return labels, scores


def _blocks(points: Tensor) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(points), _ROWS):
        yield first, points[first : first + _ROWS]


def nearest_members(
    labels: NDArray[np.int64], distances: NDArray[np.float32], keep: int
) -> NDArray[np.int64]:
    """Of every cluster the member nearest to its centre; ties by index.

    For clusters without a member stand those points, not chosen yet, that are farthest from their
    own centre.

    Args:
        labels: (N,) cluster of each point.
        distances: (N,) to its centre.
        keep: number of clusters, at most N.

    Returns:
        ``keep`` distinct indices, ascending.
    """
    order = np.lexsort((distances, labels))
    _, first = np.unique(labels[order], return_index=True)
    chosen = order[first]
    missing = keep - len(chosen)
    if missing > 0:
        free = np.ones(len(labels), bool)
        free[chosen] = False
        left = np.flatnonzero(free)
        far = left[np.argsort(-distances[left], kind="stable")[:missing]]
        chosen = np.concatenate([chosen, far])
    return np.sort(chosen).astype(np.int64)
