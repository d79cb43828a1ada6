"""The reference pixels that a student keeps: attention-guided feature selection (RPrDepth).

The paper keeps the 25,000 references that validation images pay most attention to. Random ones and
the members nearest to the centres of k-means, as many, are the controls; "all" keeps the whole set.

The clustering is scikit-learn's `MiniBatchKMeans` (Sculley, "Web-scale k-means clustering", WWW
2010), given one sample of each reference on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.bundle.prior import PriorSources
from depth_prior_ros.models.prior_fusion import Prior
from training.errors import TrainingError
from training.prior.selection.statistics import (
    Meter,
    Progress,
    ReferenceChunks,
    mean_weights,
    split,
)

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.bundle.manifest import TeacherIdentity
    from depth_prior_ros.models.student import Student
    from training.prior.reference.set import ReferenceSet

Method = Literal["attention", "random", "k_means", "all"]
METHODS: tuple[Method, ...] = get_args(Method)


class SelectionError(TrainingError):
    """A selection that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class OwnPrior:
    """The prior that a bundle has, where a smaller one is chosen of it: as a `ReferenceSet`."""

    bundle: Bundle
    prior: Prior

    @classmethod
    def of(cls, bundle: Bundle) -> OwnPrior:
        """Raises SelectionError for a bundle without."""
        if not bundle.has("prior"):
            raise SelectionError(f"{bundle.path} has no prior to choose of: give --reference DIR")
        return cls(bundle, bundle.prior())

    def __len__(self) -> int:
        return len(self.prior.features)

    @property
    def channels(self) -> int:
        """Width of the features."""
        return int(self.prior.features.shape[1])

    @property
    def identity(self) -> TeacherIdentity | None:
        """The teacher, where the bundle names it."""
        spec = self.bundle.manifest.prior
        return None if spec is None else spec.teacher

    @property
    def note(self) -> str:
        """What the bundle says of it."""
        spec = self.bundle.manifest.prior
        return "" if spec is None else spec.note

    @property
    def chosen_of(self) -> dict[str, Any] | None:
        """How it was chosen itself, if it was."""
        spec = self.bundle.manifest.prior
        return None if spec is None else spec.selection

    def rows(self, indices: NDArray[np.int64]) -> Prior:
        """Some rows, in the order asked for."""
        chosen = torch.from_numpy(indices)
        return Prior(self.prior.features[chosen], self.prior.inverse_depth[chosen])

    def sample(self, rng: np.random.Generator, count: int) -> Prior:
        """``count`` random rows, in ascending order; all, if it has no more."""
        if count >= len(self):
            return self.prior
        return self.rows(np.sort(rng.choice(len(self), count, replace=False, shuffle=False)))

    def chunks(self, size: int) -> Iterator[Prior]:
        """All rows in order, ``size`` at a time."""
        return iter(split(self.prior, size))

    def require(self, channels: int) -> None:
        """Raises SelectionError where a student reads features of another width."""
        if channels != self.channels:
            raise SelectionError(
                f"the prior of {self.bundle.path} has {self.channels} channels, {channels} are "
                "needed"
            )

    def sources(self, indices: NDArray[np.int64]) -> PriorSources | None:
        """Where rows come from; None where the bundle does not say."""
        known = self.bundle.prior_sources()
        if known is None:
            return None
        return PriorSources(known.image[indices], known.pixel[indices], known.images)


@dataclass(frozen=True)
class Selection:
    """What was chosen out of N references.

    Attributes:
        indices: (K,) int64, ascending.
        weights: (N,) float64, W_avg of every reference; None where attention was not asked.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float64] | None

    @property
    def share(self) -> float | None:
        """Share of the whole set's attention that falls on what was chosen."""
        if self.weights is None:
            return None
        return float(self.weights[self.indices].sum() / self.weights.sum())

    def about(
        self, references: ReferenceSet | OwnPrior, method: Method, images: int, seed: int
    ) -> dict[str, Any]:
        """What a bundle's `PriorSpec.selection` says of it; ``images`` were looked at."""
        return {
            "method": method,
            "kept": len(self.indices),
            "out_of": len(references),
            "images": images,
            "seed": seed,
        }


def select(
    student: Student,
    references: ReferenceSet | OwnPrior,
    images: Iterable[Tensor],
    *,
    keep: int = 25_000,
    method: Method = "attention",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Choose ``keep`` references out of a set.

    Args:
        student: with a fusion of the set's width; looks at the images in evaluation mode.
        references: the set.
        images: validation images (3, H, W), RGB in [0, 1]; read by "attention" only.
        keep: how many; ignored by "all".
        method: "attention": those with the largest W_avg, ties by index; "random"; "k_means";
            "all".
        seed: of "random" and "k_means".
        threads: cores to use; default: as many as PyTorch may.
        progress: is told how far it has got.

    Raises:
        SelectionError: `keep` is below 1 or above the size of the set, the method is unknown, or
            the student has no fusion of that width.
        TrainingError: there is no image, or a value that is not finite.
    """
    count = len(references)
    check(count, keep, method)
    if method == "all":
        return Selection(np.arange(count, dtype=np.int64), None)
    if method == "random":
        chosen = np.random.default_rng([seed, count]).choice(count, keep, replace=False)
        return Selection(np.sort(chosen).astype(np.int64), None)
    if method == "k_means":
        found = k_means(references, keep, seed, threads=threads, progress=progress)
        return Selection(found, None)
    fusion = student.fusion
    if fusion is None:
        raise SelectionError("this student has no prior fusion, so it pays attention to nothing")
    references.require(channels=fusion.config.reference_channels)
    weights = mean_weights(
        fusion,
        feature_maps(student, images),
        ReferenceChunks(references),
        threads=threads,
        progress=progress,
    ).numpy()
    return Selection(largest(weights, keep), weights)


def check(count: int, keep: int, method: Method) -> None:
    """Raise SelectionError where ``keep`` of ``count`` references cannot be chosen."""
    if method not in METHODS:
        raise SelectionError(f"method {method!r} is none of {', '.join(METHODS)}")
    if method == "all":
        return
    if keep < 1:
        raise SelectionError(f"keep {keep}: at least one reference pixel must be kept")
    if keep > count:
        raise SelectionError(
            f"keep {keep}: there are {count} reference pixels only; keep fewer, or extract more"
        )


def largest(weights: NDArray[np.float64], keep: int) -> NDArray[np.int64]:
    """The ``keep`` largest of (N,), ascending indices; of equal ones the first."""
    return np.sort(np.argsort(-weights, kind="stable")[:keep]).astype(np.int64)


def feature_maps(student: Student, images: Iterable[Tensor]) -> Iterator[Tensor]:
    """The student's features F_s (1, C, h, w) of each image (3, H, W), in evaluation mode."""
    device = next(student.parameters()).device
    training = student.training
    student.eval()
    try:
        for image in images:
            with torch.no_grad():
                features = student.fusion_features(image[None].to(device))
            yield features
    finally:
        student.train(training)


# -- k-means, a control ---------------------------------------------------------------------------


# Samples of a step, and references read at a time.
BATCH = 32_768
_LEAST_STEPS = 12
_STATISTICS = 65_536  # references that mean and spread are estimated from
_MIN_INVERSE_DEPTH = 1e-6


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
    references: ReferenceSet | OwnPrior,
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
