"""Confidence: its range, direction and what lowers it; every cue against formulas written again."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from depth_prior_ros.models.export import single_frame_confidence
from depth_prior_ros.pipeline.results import CUE_WIDTH, WEIGHTS, combine, cues

EDGE_OF_IMAGE = 12  # blurs reach so far


def road(width: int = 64, height: int = 40) -> np.ndarray:
    """Inverse depth of a plane that falls away: linear in the row."""
    rows = np.linspace(0.05, 1.0, height, dtype=np.float32)[:, np.newaxis]
    return np.repeat(rows, width, axis=1)


def test_flat_depth_is_surer_than_rough_depth() -> None:
    inverse = np.full((40, 64), 0.5, dtype=np.float32)
    noisy = inverse * np.exp(np.random.default_rng(0).normal(0, 0.2, inverse.shape))
    assert (combine(inverse) > combine(noisy.astype(np.float32)) + 0.1).all()


def test_an_edge_lowers_it_and_only_nearby() -> None:
    inverse = np.full((40, 64), 0.5, dtype=np.float32)
    smooth = combine(inverse)
    inverse[:, 32:] = 0.4
    edged = combine(inverse)
    assert (edged[:, 31:33] < smooth[:, 31:33] - 0.2).all()
    far_from_it = np.abs(np.arange(64) - 32) > EDGE_OF_IMAGE
    nearer = slice(0, 20)  # the right half is further than before, so less sure anyway
    assert np.allclose(edged[:, nearer][:, far_from_it[nearer]], edged[0, 0], atol=1e-6)


def test_far_is_less_sure_than_near() -> None:
    sure = combine(road())[EDGE_OF_IMAGE:-EDGE_OF_IMAGE, 20]
    assert (np.diff(sure) > 0).all()


def test_disagreement_lowers_it_where_it_is() -> None:
    single = np.full((40, 64), 0.5, dtype=np.float32)
    multi = single.copy()
    agreed = combine(single, multi)
    single[5:15, 5:15] *= 1.5
    argued = combine(single, multi)
    assert (argued[8:12, 8:12] < agreed[8:12, 8:12] - 0.02).all()
    assert np.array_equal(argued[30:, 40:], agreed[30:, 40:])


def test_entropy_lowers_it() -> None:
    inverse = road()
    low = combine(inverse, entropy=np.full((5, 8), 0.2, dtype=np.float32))
    high = combine(inverse, entropy=np.full((5, 8), 0.9, dtype=np.float32))
    assert (high < low).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0, -1.0])
@pytest.mark.parametrize("multi", [False, True])
def test_unknown_depth_has_none_and_does_not_spread(broken: float, multi: bool) -> None:
    inverse = road()
    inverse[3, 4] = broken
    sure = combine(road(), inverse) if multi else combine(inverse)
    assert sure[3, 4] == 0
    assert (np.delete(sure.ravel(), 3 * 64 + 4) > 0).all()
    assert np.isfinite(sure).all()


def test_unknown_single_frame_depth_leaves_multi_frame_depth_its_confidence() -> None:
    assert (combine(np.full((40, 64), np.nan, np.float32), road()) > 0).all()


def test_nothing_known_is_zero() -> None:
    assert not combine(np.full((40, 64), np.nan, np.float32)).any()


@given(
    arrays(np.float32, (12, 20), elements=st.floats(-1, 1e6, width=32)),
    arrays(np.float32, (12, 20), elements=st.floats(allow_nan=True, width=32)),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_always_a_number_from_zero_to_one(
    single: np.ndarray, multi: np.ndarray, both: bool, entropy: bool
) -> None:
    spread = np.full((3, 5), 0.5, dtype=np.float32) if entropy else None
    sure = combine(single, multi if both else None, entropy=spread)
    assert sure.dtype == np.float32
    assert sure.shape == (12, 20)
    assert ((sure >= 0) & (sure <= 1)).all()


@given(st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_the_unit_does_not_matter(factor: float) -> None:
    inverse = road()
    multi = inverse * np.linspace(0.9, 1.1, inverse.shape[1], dtype=np.float32)
    expected = combine(inverse, multi)
    scaled = combine(inverse * np.float32(factor), multi * np.float32(factor))
    assert np.allclose(scaled, expected, atol=2e-3)


def test_cues_are_what_they_are_said_to_be() -> None:
    """Against loops over single pixels, away from the border."""
    rng = np.random.default_rng(3)
    multi = np.exp(rng.normal(0, 0.3, (40, 44))).astype(np.float32)
    single = (multi * np.exp(rng.normal(0, 0.1, multi.shape))).astype(np.float32)
    found = cues(single, multi)
    log = -np.log(multi.astype(np.float64))
    weights = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2.0**2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    residual = np.full(log.shape, np.nan)
    for y in range(8, 32):
        for x in range(8, 36):
            window = log[y - 8 : y + 9, x - 8 : x + 9]
            residual[y, x] = abs(log[y, x] - (kernel * window).sum())
    apart = np.abs(np.log(single.astype(np.float64) / multi))
    for y, x in [(14, 14), (20, 22), (25, 29)]:
        around = (slice(y - 4, y + 5), slice(x - 4, x + 5))
        assert math.isclose(
            found["roughness"][y, x], math.log(residual[around].mean() + 0.005), abs_tol=0.02
        )
        assert math.isclose(
            found["disagreement"][y, x], math.log(apart[around].mean() + 0.02), abs_tol=1e-3
        )
        side = (
            (log[y - 1, x + 1] - log[y - 1, x - 1])
            + 2 * (log[y, x + 1] - log[y, x - 1])
            + (log[y + 1, x + 1] - log[y + 1, x - 1])
        )
        assert math.isclose(found["slope"][y, x], math.log(abs(side) / 8 + 0.003), abs_tol=1e-3)
        assert math.isclose(found["distance"][y, x], log[y, x] - np.median(log), abs_tol=1e-4)


@pytest.mark.parametrize(("multi", "entropy"), list(WEIGHTS))
def test_the_logistic_model_is_what_it_is_said_to_be(multi: bool, entropy: bool) -> None:
    rng = np.random.default_rng(1)
    single = np.exp(rng.normal(0, 0.3, (20, 30))).astype(np.float32)
    other = (single * 1.1).astype(np.float32) if multi else None
    spread = rng.random((20, 30)).astype(np.float32) if entropy else None
    found = cues(single, other, spread)
    weights = WEIGHTS[multi, entropy]
    logit = weights.constant + sum(
        getattr(weights, name) * cue.astype(float) for name, cue in found.items()
    )
    assert len(found) == 3 + multi + entropy
    assert np.allclose(combine(single, other, entropy=spread), 1 / (1 + np.exp(-logit)), atol=1e-5)


def test_wide_depth_is_rated_at_one_width() -> None:
    """Twice the pixels of the same scene: the same confidence, as windows count in pixels."""
    inverse = road(CUE_WIDTH, 96)
    inverse[40:60, 100:140] = 2.0
    twice = inverse.repeat(2, axis=0).repeat(2, axis=1)
    small, large = combine(inverse), combine(twice)
    assert large.shape == (192, 640)
    assert np.abs(large[::2, ::2] - small).mean() < 0.01


def test_an_exported_network_calls_flat_sure_and_edges_not() -> None:
    inverse = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(single_frame_confidence(inverse), torch.ones_like(inverse))
    inverse[..., 4:] = 0.1
    found = single_frame_confidence(inverse)
    assert found[..., 3:5].max() < 0.2
    assert torch.equal(found[..., :3], torch.ones(1, 1, 8, 3))


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_an_exported_network_s_confidence_has_no_unit(factor: float) -> None:
    inverse = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.01
    found = single_frame_confidence(inverse)
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.allclose(found, single_frame_confidence(inverse * factor), atol=1e-5)
