from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depth_prior_ros.scale import FixedScale, focal_ratio

FOCAL = st.floats(1.0, 1e4)


@given(st.one_of(st.floats(max_value=0.0), st.just(math.nan), st.just(math.inf)))
def test_a_factor_that_cannot_be(factor: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        FixedScale(factor)


def test_fixed_scale_says_where_it_is_from() -> None:
    scale = FixedScale(21.5, "fitted on a drive")
    assert (scale.metres_per_unit, scale.source) == (21.5, "fitted on a drive")


@given(fx=FOCAL, fy=FOCAL, zoom=st.floats(0.1, 10.0))
def test_focal_ratio_is_the_zoom(fx: float, fy: float, zoom: float) -> None:
    assert focal_ratio(fx * zoom, fy * zoom, fx, fy) == pytest.approx(zoom)
    assert focal_ratio(fx, fy, fx * zoom, fy * zoom) == pytest.approx(1 / zoom)
