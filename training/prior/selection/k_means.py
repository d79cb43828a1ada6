"""Mini-batch k-means over reference pixels: a control for the selection by attention.

The member nearest to each centre stands for its cluster. The clustering is scikit-learn's
`MiniBatchKMeans` (Sculley, "Web-scale k-means clustering", WWW 2010), given one sample of each
reference on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior
from training.errors import TrainingError
from training.prior.selection.sweep import ChunkedSet, Meter, Progress

# Samples of a step, and references read at a time.
BATCH = 32_768
_LEAST_STEPS = 12
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

    def __call__(self, prior: Prior) -> NDArray[np.float32]:
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
        return np.ascontiguousarray(points.numpy())


def _raw(prior: Prior) -> Tensor:
    depth = prior.inverse_depth.float().clamp(min=_MIN_INVERSE_DEPTH).log()
    return torch.cat([prior.features.float(), depth[:, None]], dim=1)


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

    Centres start at random references; centres that get few samples are moved, as
    `MiniBatchKMeans` does it.

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
        TrainingError: a reference is not finite, or scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise TrainingError(
            f"selection by k-means needs scikit-learn ({error}): "
            "pip install 'depth-prior-ros[k-means]'"
        ) from error
    count = len(references)
    rng = np.random.default_rng([seed, keep])
    points = Points.of(references.sample(rng, _STATISTICS))
    start = points(references.sample(rng, keep))
    batch = min(batch, count)
    steps = max(_LEAST_STEPS, math.ceil(count / batch))
    operations = 2.0 * keep * start.shape[1]
    model = MiniBatchKMeans(keep, init=start, n_init=1, random_state=int(rng.integers(2**31)))
    with threadpool_limits(threads or torch.get_num_threads()):
        meter = Meter("k-means", steps * batch, operations, progress)
        for _ in range(steps):
            model.partial_fit(points(references.sample(rng, batch)))
            meter.add(batch)
        meter = Meter("nearest members", count, operations, progress)
        labels, distances = [], []
        for chunk in references.chunks(batch):
            found = points(chunk)
            labels.append(model.predict(found).astype(np.int64))
            away = found - model.cluster_centers_[labels[-1]]
            distances.append(np.einsum("nc,nc->n", away, away))
            meter.add(len(found))
    return nearest_members(np.concatenate(labels), np.concatenate(distances), keep)


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
