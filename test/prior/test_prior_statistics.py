from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depth_prior_ros.models.prior_fusion import FusionConfig, Prior, PriorFusion
from training.errors import TrainingError
from training.prior.selection import statistics
from training.prior.selection import statistics as score_blocks
from training.prior.selection.statistics import (
    Queries,
    ReferenceChunks,
    mean_weights,
    prior_usage,
    split,
    sweep,
)

CHANNELS = 12


def make_fusion(strength: float = 1.0, seed: int = 0, **changes: Any) -> PriorFusion:
    values = {"reference_channels": 10, "width": 16, "heads": 4} | changes
    torch.manual_seed(seed)
    fusion = PriorFusion(CHANNELS, FusionConfig(**values))
    for weights in fusion.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    for name in ("query", "hint_query"):
        if hasattr(fusion, name):  # a branch that is off has no layers
            getattr(fusion, name).weight.data *= strength
    return fusion.eval()


def make_prior(count: int = 300, seed: int = 1) -> Prior:
    rng = torch.Generator().manual_seed(seed)
    return Prior(torch.randn(count, 10, generator=rng), torch.rand(count, generator=rng) + 0.1)


def make_maps(*sizes: tuple[int, int], seed: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(CHANNELS, *size, generator=rng) for size in sizes or ((3, 5), (3, 5))]


@torch.no_grad()
def naive(
    fusion: PriorFusion, maps: list[Tensor], prior: Prior
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Mean weights and effective neighbours by branch: softmax of everything in double."""
    fusion = fusion.double()
    weights: list[Tensor | None] = [None, None]
    neighbours: list[Tensor | None] = [None, None]
    for branch, keys in enumerate(fusion.project_keys(prior.features.double())):
        if keys is None:
            continue
        total = torch.zeros(len(prior.features), dtype=torch.float64)
        found = []
        for features in maps:
            queries = fusion.scaled_queries(features[None].double())[branch]
            assert queries is not None
            attention = torch.softmax(queries[0] @ keys.transpose(1, 2), -1)
            total += attention.mean((0, 1)) / len(maps)
            entropy = torch.special.entr(attention).sum(-1)
            found.append(entropy.exp())
        weights[branch], neighbours[branch] = total, torch.cat(found, 1)
    fusion.float()
    return weights, neighbours


def w_avg(fusion: PriorFusion, maps: list[Tensor], prior: Prior) -> Tensor:
    return torch.stack([w for w in naive(fusion, maps, prior)[0] if w is not None]).sum(0)


# -- against softmax of the whole matrix -----------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(
    "changes",
    [{}, {"heads": 1}, {"heads": 8}, {"pixel_wise": False}, {"depth_hint": False}],
    ids=str,
)
def test_it_equals_the_naive_form(changes: dict[str, Any], strength: float) -> None:
    fusion, prior = make_fusion(strength, **changes), make_prior()
    maps = make_maps((3, 5), (3, 5), (2, 7))
    found = mean_weights(fusion, maps, split(prior, 70))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, w_avg(fusion, maps, prior), rtol=1e-5, atol=1e-7)
    branches = 2 - len({"pixel_wise", "depth_hint"} & set(changes))
    assert float(found.sum()) == pytest.approx(branches, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    chunk=st.integers(20, 320),
    columns=st.integers(9, 90),
    rows=st.integers(4, 60),
    threads=st.integers(1, 3),
)
def test_blocks_and_threads_change_nothing(
    chunk: int, columns: int, rows: int, threads: int
) -> None:
    fusion, prior, maps = make_fusion(2.0), make_prior(), make_maps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_blocks, "_COLUMNS", columns)
        patch.setattr(score_blocks, "_ROWS", rows)
        found = prior_usage(fusion, maps, split(prior, chunk), threads=threads)
        plain = mean_weights(fusion, maps, split(prior, chunk), threads=threads)
    (pixel_wise, hint), (near, hint_near) = naive(fusion, maps, prior)
    for mine, true in ((found.pixel_wise, pixel_wise), (found.hint, hint)):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(plain, found.weights, rtol=1e-6, atol=0)
    assert near is not None
    torch.testing.assert_close(found.pixel_wise_neighbours, near[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.hint_neighbours, hint_near, rtol=1e-4, atol=0)


def test_the_result_does_not_depend_on_threads() -> None:
    """Not by a single bit: what is selected must not depend on which thread was faster."""
    fusion, prior, maps = make_fusion(2.0), make_prior(2000), make_maps()
    one = mean_weights(fusion, maps, split(prior, 37), threads=1)
    for threads in (2, 3, 3):
        assert torch.equal(one, mean_weights(fusion, maps, split(prior, 37), threads=threads))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_references_and_images_does_not_matter(seed: int) -> None:
    fusion, prior, maps = make_fusion(2.0), make_prior(100), make_maps((2, 3), (4, 1), (1, 1))
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(100))
    mixed = Prior(prior.features[order], prior.inverse_depth[order])
    images = [maps[i] for i in rng.permutation(3)]
    found = mean_weights(fusion, images, split(mixed, 33))
    plain = mean_weights(fusion, maps, split(prior, 40))
    torch.testing.assert_close(found, plain[order], rtol=1e-5, atol=1e-9)


def test_every_image_counts_the_same_whatever_its_size() -> None:
    fusion, prior = make_fusion(2.0), make_prior()
    small, large = make_maps((1, 2), (6, 9))
    together = mean_weights(fusion, [small, large], split(prior))
    alone = [mean_weights(fusion, [image], split(prior)) for image in (small, large)]
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)
    batch = torch.stack([small, small + 1])
    pair = mean_weights(fusion, [batch], split(prior))
    torch.testing.assert_close(pair, mean_weights(fusion, list(batch), split(prior)))


# -- scores that overflow --------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rising", [True, False])
def test_scores_of_hundreds_do_not_overflow(rising: bool, threads: int) -> None:
    """exp of such scores is far beyond float32, and the largest may come last."""
    fusion, maps = make_fusion(1.0), make_maps()
    prior = make_prior(400)
    size = torch.linspace(0.0, 60.0, 400)
    features = prior.features * (size if rising else size.flip(0))[:, None]
    prior = Prior(features, prior.inverse_depth)
    with torch.no_grad():
        queries, keys = fusion.scaled_queries(maps[0][None])[0], fusion.project_keys(features)[0]
        assert queries is not None and keys is not None
        assert float((queries[0] @ keys.transpose(1, 2)).abs().max()) > 200
    found = prior_usage(fusion, maps, split(prior, 50), threads=threads)
    torch.testing.assert_close(found.weights, w_avg(fusion, maps, prior), rtol=1e-3, atol=1e-5)
    _, (near, hint_near) = naive(fusion, maps, prior)
    assert near is not None and found.pixel_wise_neighbours is not None
    torch.testing.assert_close(found.pixel_wise_neighbours, near[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(found.hint_neighbours, hint_near, rtol=1e-3, atol=0)


def test_a_shift_that_is_too_low_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for sums that overflow is taken, not only there."""
    calls = []
    raise_shift = statistics._LogSums._raise_shift

    def counted(*args: Any) -> None:
        calls.append(args)
        raise_shift(*args)

    monkeypatch.setattr(statistics._LogSums, "_raise_shift", counted)
    monkeypatch.setattr(score_blocks, "_COLUMNS", 10)
    fusion, maps, prior = make_fusion(1.0), make_maps(), make_prior(40)
    features = prior.features * torch.linspace(0.0, 100.0, 40)[:, None]
    mean_weights(fusion, maps, split(Prior(features, prior.inverse_depth), 10), threads=1)
    assert calls


# -- memory ----------------------------------------------------------------------------------------


def test_no_block_is_larger_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    bmm = torch.bmm

    def measured(*args: Any, out: Tensor) -> Tensor:
        sizes.append(out.numel())
        return bmm(*args, out=out)

    monkeypatch.setattr(torch, "bmm", measured)
    monkeypatch.setattr(score_blocks, "_COLUMNS", 32)
    monkeypatch.setattr(score_blocks, "_ROWS", 16)
    maps, prior = make_maps((10, 20)), make_prior(500)
    mean_weights(make_fusion(), maps, split(prior, 100))
    assert 0 < max(sizes) <= 32 * 16
    # Twice all scores, and those of the first references once more.
    assert sum(sizes) == 2 * (200 * 500 * 5) + 200 * 32 * 5


# -- usage -----------------------------------------------------------------------------------------


def test_even_attention_looks_up_everything() -> None:
    fusion = make_fusion(0.0)
    for layer in (fusion.query, fusion.hint_query):
        assert layer.bias is not None
        torch.nn.init.zeros_(layer.bias)
    usage = prior_usage(fusion, make_maps(), split(make_prior(50)))
    torch.testing.assert_close(usage.weights, torch.full((50,), 2 / 50, dtype=torch.float64))
    assert usage.neighbours == pytest.approx(50)
    assert usage.unused() == 0


def test_unused_references_are_counted() -> None:
    """Ten references that every query shuns, among ninety equal ones."""
    fusion = make_fusion(0.0)
    keys = torch.randn(10)
    with torch.no_grad():
        for query, key in ((fusion.query, fusion.key), (fusion.hint_query, fusion.hint_key)):
            assert query.bias is not None
            query.bias.fill_(1.0)
            key.weight.copy_(keys.expand_as(key.weight))
    prior = Prior(torch.zeros(100, 10), torch.ones(100))
    prior.features[:10] = -100 * keys
    usage = prior_usage(fusion, make_maps(), split(prior))
    assert usage.unused() == pytest.approx(0.1)
    assert usage.neighbours == pytest.approx(90, rel=1e-3)


def test_operations_are_those_of_the_scores() -> None:
    queries = Queries.of(make_fusion(), make_maps((3, 5), (2, 2)))
    assert queries.operations == 2 * 19 * (16 + 16)
    queries = Queries.of(make_fusion(pixel_wise=False), make_maps((3, 5)))
    assert queries.operations == 2 * 15 * 16


# -- what is refused -------------------------------------------------------------------------------


def test_no_image_is_refused() -> None:
    with pytest.raises(TrainingError, match="no validation image"):
        mean_weights(make_fusion(), [], split(make_prior()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    fusion, maps, prior = make_fusion(), make_maps(), make_prior()
    prior.features[200, 3] = value
    with pytest.raises(TrainingError, match="not finite"):
        mean_weights(fusion, maps, split(prior, 64))
    maps[1][0, 0, 0] = value
    with pytest.raises(TrainingError, match="validation image"):
        mean_weights(fusion, maps, split(make_prior()))


def test_chunks_have_to_last_for_two_passes() -> None:
    def once() -> Iterator[Prior]:
        yield make_prior()

    class Dwindling:
        def __init__(self) -> None:
            self.chunks = split(make_prior(), 30)

        def __iter__(self) -> Iterator[Prior]:
            found = [*self.chunks]
            self.chunks.pop()
            return iter(found)

    with pytest.raises(TrainingError, match="again"):
        mean_weights(make_fusion(), make_maps(), once())
    with pytest.raises(TrainingError, match="again"):
        mean_weights(make_fusion(), make_maps(), Dwindling())
    with pytest.raises(TrainingError, match="empty"):
        mean_weights(make_fusion(), make_maps(), [])


# -- the pass itself -------------------------------------------------------------------------------


def test_an_error_in_a_thread_ends_the_pass() -> None:
    seen = []

    def work(offset: int, chunk: Prior) -> None:
        seen.append(offset)
        if offset == 20:
            raise ValueError("this one")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="this one"):
        sweep("x", split(make_prior(1000), 10), [work, work])
    assert torch.get_num_threads() == before
    assert len(seen) < 100


def test_every_chunk_is_seen_once_and_told() -> None:
    told: list[tuple[str, int, int, float]] = []
    seen: list[tuple[int, int]] = []
    merged: list[int] = []

    def work(offset: int, chunk: Prior) -> int:
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        time.sleep(0.001 * (offset % 3))
        seen.append((offset, len(chunk.features)))
        return offset

    class Set:
        def __len__(self) -> int:
            return 105

        def chunks(self, size: int) -> Iterator[Prior]:
            yield from split(make_prior(105), size)

    rows = sweep(
        "x",
        ReferenceChunks(Set(), 10),
        [work] * 3,
        merge=merged.append,
        operations=7.0,
        progress=lambda *values: told.append(values),
    )
    assert rows == 105
    assert sorted(seen) == [(n, min(10, 105 - n)) for n in range(0, 105, 10)]
    assert merged == list(range(0, 105, 10))
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    assert told[-1][:3] == ("x", 105, 105)
    assert all(note for *_, note in told), "the rate"


@pytest.mark.gpu
def test_a_gpu_says_the_same() -> None:
    fusion, prior, maps = make_fusion(2.0), make_prior(5000), make_maps((12, 40))
    plain = mean_weights(fusion, maps, split(prior, 999))
    found = mean_weights(fusion.cuda(), [m.cuda() for m in maps], split(prior, 999))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-8)
