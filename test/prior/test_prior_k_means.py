from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior
from training.errors import TrainingError
from training.prior.selection.selection import Points, k_means, nearest_members


class InMemory:
    """A prior as a reference set."""

    def __init__(self, features: Tensor, inverse_depth: Tensor | None = None) -> None:
        depth = torch.ones(len(features)) if inverse_depth is None else inverse_depth
        self.prior = Prior(features, depth)

    def __len__(self) -> int:
        return len(self.prior.features)

    def rows(self, places: np.ndarray | slice) -> Prior:
        return Prior(self.prior.features[places], self.prior.inverse_depth[places])

    def sample(self, rng: np.random.Generator, count: int) -> Prior:
        if count >= len(self):
            return self.prior
        return self.rows(np.sort(rng.choice(len(self), count, replace=False)))

    def chunks(self, size: int) -> Iterator[Prior]:
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))


def blobs(count: int, clusters: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points close to far-away means, and which mean each belongs to."""
    rng = torch.Generator().manual_seed(seed)
    means = 20 * torch.randn(clusters, 6, generator=rng)
    which = torch.randint(clusters, (count,), generator=rng)
    return means[which] + 0.1 * torch.randn(count, 6, generator=rng), which


def spread(chosen: np.ndarray, references: InMemory) -> float:
    """Mean squared distance to the nearest chosen reference, of normalised points."""
    points = torch.from_numpy(Points.of(references.prior)(references.prior))
    return float(torch.cdist(points, points[chosen]).amin(1).square().mean())


@settings(max_examples=50, deadline=None)
@given(data=st.data(), keep=st.integers(1, 20), more=st.integers(0, 30))
def test_of_every_cluster_one_member_is_kept(data: st.DataObject, keep: int, more: int) -> None:
    count = keep + more
    whole = st.lists(st.integers(0, keep - 1), min_size=count, max_size=count)
    labels = np.array(data.draw(whole))
    distances = np.array(data.draw(whole), np.float32)  # with ties
    chosen = nearest_members(labels, distances, keep)
    assert chosen.dtype == np.int64
    assert len(chosen) == keep and (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        assert members[distances[members].argmin()] in chosen  # argmin: the first of equal ones


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [150, 10_000])
def test_it_covers_better_than_chance(batch: int) -> None:
    references = InMemory(torch.randn(1500, 3, generator=torch.Generator().manual_seed(0)))
    chosen = k_means(references, 60, seed=1, batch=batch)
    assert len(np.unique(chosen)) == 60 and (np.diff(chosen) > 0).all()
    rng = np.random.default_rng(0)
    random = [spread(rng.choice(1500, 60, replace=False), references) for _ in range(5)]
    assert spread(chosen, references) < 0.8 * min(random)


def test_centres_that_are_idle_move_where_they_are_needed() -> None:
    """All centres start in two of ten blobs, equal ones among them; the others are found."""
    features, which = blobs(600, 10)

    class Unlucky(InMemory):
        def sample(self, rng: np.random.Generator, count: int) -> Prior:
            if count == 40:
                return self.rows(np.flatnonzero(which.numpy() < 2)[:10].repeat(4))
            return super().sample(rng, count)

    chosen = k_means(Unlucky(features), 40, seed=0)
    assert len(np.unique(chosen)) == 40
    assert set(which[chosen].tolist()) == set(range(10))


def test_it_depends_on_the_seed_alone() -> None:
    references = InMemory(blobs(800, 12)[0], torch.rand(800) + 0.1)
    one = k_means(references, 40, seed=3, batch=100, threads=1)
    torch.manual_seed(99)
    assert (one == k_means(references, 40, seed=3, batch=100, threads=3)).all()
    assert (one != k_means(references, 40, seed=4, batch=100)).any()


@pytest.mark.parametrize("keep", [1, 7, 50])
def test_equal_points_still_give_as_many(keep: int) -> None:
    chosen = k_means(InMemory(torch.ones(50, 4)), keep, seed=0)
    assert len(np.unique(chosen)) == keep


def test_depth_counts() -> None:
    """Features that say nothing: the clusters are those of depth."""
    depth = torch.tensor([0.01, 0.1, 1.0]).repeat(40)
    chosen = k_means(InMemory(torch.zeros(120, 4), depth), 3, seed=5)
    assert len(set(depth[chosen].tolist())) == 3


def test_channels_weigh_the_same_whatever_their_unit() -> None:
    features = blobs(400, 8)[0]
    scale = 2.0 ** torch.arange(-6, 6, 2)  # exact
    plain = k_means(InMemory(features), 20, seed=0)
    assert (plain == k_means(InMemory(features * scale), 20, seed=0)).mean() > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    features = blobs(100, 3)[0]
    features[50, 2] = value
    with pytest.raises(TrainingError, match="not finite"):
        k_means(InMemory(features), 5, seed=0)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    k_means(
        InMemory(blobs(300, 3)[0]),
        5,
        seed=0,
        batch=100,
        progress=lambda what, done, total, rate: told.append((what, done, total)),
    )
    assert told[-1] == ("nearest members", 300, 300)
    assert ("k-means", 1200, 1200) in told


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(TrainingError, match=r"scikit-learn.*depth-prior-ros\[k-means\]"):
        k_means(InMemory(blobs(50, 3)[0]), 5, seed=0)
