"""The factor of a network that is told nothing of its camera."""

from __future__ import annotations

import math

import pytest

from depth_prior_ros.adaptation.factor import fit_factor
from depth_prior_ros.adaptation.keyframes import AdaptationError


def test_half_of_the_keyframes_may_be_wrong() -> None:
    assert fit_factor([2.9, 3.0, 3.1, 500.0, math.nan, math.inf]) == pytest.approx(
        math.sqrt(3.0 * 3.1)
    )
    # Twice too large and twice too small are equally wrong.
    assert fit_factor([1.0, 4.0]) == pytest.approx(2.0)


def test_without_a_positive_number_there_is_none() -> None:
    with pytest.raises(AdaptationError, match="nowhere a positive number"):
        fit_factor([math.nan, 0.0])
