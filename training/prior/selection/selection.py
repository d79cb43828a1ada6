"""The reference pixels that a student keeps: attention-guided feature selection (RPrDepth).

The paper keeps the 25,000 references that validation images pay most attention to. Random ones and
the members nearest to the centres of k-means, as many, are the controls; "all" keeps the whole set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import TrainingError
from training.prior.selection.k_means import k_means
from training.prior.selection.statistics import mean_weights
from training.prior.selection.sweep import Progress, ReferenceChunks

if TYPE_CHECKING:
    from depth_prior_ros.models.student import Student
    from training.prior.reference.set import ReferenceSet

Method = Literal["attention", "random", "k_means", "all"]
METHODS: tuple[Method, ...] = get_args(Method)


class SelectionError(TrainingError):
    """A selection that cannot be made; the message says why and what to do."""


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


def select(
    student: Student,
    references: ReferenceSet,
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
            f"keep {keep}: the reference set has {count} pixels only; keep fewer, or extract more"
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
