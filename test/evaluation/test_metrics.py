from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depth_prior_ros.evaluation.metrics import (
    LEAST_PART,
    DepthErrors,
    NoValidPixelsError,
    mean_errors,
    part_errors,
    resize_depth,
    summary,
)
from depth_prior_ros.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    cityscapes_mask,
    garg_mask,
)

SIZE = (37, 122)


def depth_errors(prediction: NDArray, truth: NDArray, **values: Any) -> DepthErrors:
    return Protocol("", **values).errors(prediction, truth)


# rows and columns of SIZE that each crop keeps: first, behind the last, first, behind the last
WINDOWS = {
    None: None,
    "garg": (
        int(0.40810811 * SIZE[0]),
        int(0.99189189 * SIZE[0]),
        int(0.03594771 * SIZE[1]),
        int(0.96405229 * SIZE[1]),
    ),
    "cityscapes": (12, 37, 11, 111),  # a third of 37; 192 and 1856 of 2048, of 122
}


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[NDArray, NDArray]:
    """A prediction and a sparse truth."""
    random = np.random.default_rng(seed)
    truth = random.uniform(1.0, 100.0, size).astype(np.float32)
    truth[random.random(size) < 0.7] = 0.0
    prediction = random.uniform(0.5, 60.0, (32, 96)).astype(np.float32)
    return prediction, truth


def by_hand(
    prediction: NDArray,
    truth: NDArray,
    low: float,
    high: float,
    window: tuple[float, float, float, float] | None,
    scale: bool,
    cap_truth: bool = True,
) -> dict[str, float]:
    """The same metrics, written down once more, pixel by pixel."""
    height, width = truth.shape
    inverse = cv2.resize(1.0 / prediction.astype(np.float64), (width, height))
    pairs = []
    for y in range(height):
        for x in range(width):
            if window and not (window[0] <= y < window[1] and window[2] <= x < window[3]):
                continue
            if low < truth[y, x] < (high if cap_truth else math.inf):
                pairs.append((1.0 / inverse[y, x], float(truth[y, x])))
    ratio = np.median([g for _, g in pairs]) / np.median([p for p, _ in pairs]) if scale else 1.0
    pairs = [(min(max(p * ratio, low), high), g) for p, g in pairs]
    count = len(pairs)
    return {
        "abs_rel": sum(abs(p - g) / g for p, g in pairs) / count,
        "sq_rel": sum((p - g) ** 2 / g for p, g in pairs) / count,
        "rmse": math.sqrt(sum((p - g) ** 2 for p, g in pairs) / count),
        "rmse_log": math.sqrt(sum((math.log(p) - math.log(g)) ** 2 for p, g in pairs) / count),
        "d1": sum(max(p / g, g / p) < 1.25 for p, g in pairs) / count,
        "d2": sum(max(p / g, g / p) < 1.25**2 for p, g in pairs) / count,
        "d3": sum(max(p / g, g / p) < 1.25**3 for p, g in pairs) / count,
    }


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
@pytest.mark.parametrize("seed", range(3))
def test_protocols_agree_with_a_second_implementation(name: str, seed: int) -> None:
    protocol = PROTOCOLS[name]
    prediction, truth = scene(seed)
    errors = protocol.errors(prediction, truth)
    expected = by_hand(
        prediction,
        truth,
        protocol.min_depth,
        protocol.max_depth,
        WINDOWS[protocol.crop],
        protocol.scaling == "median",
        protocol.cap_truth,
    )
    for key, value in expected.items():
        assert getattr(errors, key) == pytest.approx(value, rel=1e-9), key
    assert errors.coverage == 1.0


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_median_scaling_makes_scale_irrelevant(factor: float, seed: int) -> None:
    prediction, truth = scene(seed)
    plain = depth_errors(prediction, truth)
    scaled = depth_errors(prediction.astype(np.float64) * factor, truth)
    assert scaled.abs_rel == pytest.approx(plain.abs_rel, rel=1e-6)
    assert scaled.rmse == pytest.approx(plain.rmse, rel=1e-6)
    assert scaled.ratio * factor == pytest.approx(plain.ratio, rel=1e-6)


def test_without_scaling_scale_matters() -> None:
    _, truth = scene(0)
    truth = np.where(truth > 0, np.minimum(truth, 30), 0)
    errors = depth_errors(np.full(SIZE, 1.0), np.where(truth > 0, 2.0, 0), scaling="none")
    assert errors.abs_rel == pytest.approx(0.5)
    assert errors.ratio == pytest.approx(2.0)


def test_a_perfect_prediction_has_no_error() -> None:
    truth = np.random.default_rng(0).uniform(1, 70, SIZE)
    errors = depth_errors(truth, truth)
    assert errors.abs_rel == pytest.approx(0, abs=1e-12)
    assert errors.d1 == errors.d2 == errors.d3 == 1.0
    assert errors.ratio == pytest.approx(1.0)


def test_infinite_depth_is_clamped_to_the_range() -> None:
    truth = np.full((8, 8), 40.0)
    prediction = np.full((8, 8), 40.0)
    prediction[0] = np.inf
    errors = depth_errors(prediction, truth, max_depth=80.0)
    assert errors.abs_rel == pytest.approx(1 / 8)
    everywhere = depth_errors(np.full((8, 8), np.inf), truth, max_depth=80.0)
    assert everywhere.abs_rel == pytest.approx(1.0)


def test_unknown_pixels_are_left_out_and_told() -> None:
    truth = np.full((8, 8), 40.0)
    prediction = np.full((8, 8), 40.0)
    prediction[:4] = np.nan
    prediction[4, 0] = 0.0
    errors = depth_errors(prediction, truth)
    assert errors.abs_rel == pytest.approx(0, abs=1e-12)
    assert errors.coverage == pytest.approx(31 / 64)


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        (np.ones(SIZE), np.zeros(SIZE)),
        (np.full(SIZE, np.nan), np.ones(SIZE)),
        (np.ones(SIZE), np.full(SIZE, 200.0)),
    ],
)
def test_nothing_to_compare(prediction: NDArray, truth: NDArray) -> None:
    with pytest.raises(NoValidPixelsError, match="nothing to compare"):
        depth_errors(prediction, truth)


def test_axes_are_checked() -> None:
    with pytest.raises(ValueError, match="two axes"):
        depth_errors(np.ones((1, 4, 4)), np.ones((4, 4)))


def test_resizing_interpolates_inverse_depth() -> None:
    resized = resize_depth(np.array([[1.0, 3.0]]), 1, 4)
    inverse = cv2.resize(np.array([[1.0, 1 / 3]]), (4, 1))
    np.testing.assert_allclose(resized, 1 / inverse)
    half_unknown = resize_depth(np.array([[1.0, np.nan]]), 1, 4)
    assert np.isfinite(half_unknown[0, 0])
    assert np.isnan(half_unknown[0, 1:]).all()


def test_garg_crop_of_kitti() -> None:
    rows, columns = np.nonzero(garg_mask(375, 1242))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (153, 371, 44, 1197)


def test_cityscapes_crop_is_that_of_manydepth() -> None:
    rows, columns = np.nonzero(cityscapes_mask(768, 2048))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (256, 768, 192, 1856)


def test_protocols_are_those_of_the_papers() -> None:
    values = {
        n: (p.crop, p.max_depth, p.cap_truth, p.stretch, p.log10) for n, p in PROTOCOLS.items()
    }
    assert values["eigen"] == ("garg", 80.0, True, False, False)
    assert values["eigen_improved"] == (None, 80.0, False, False, False)
    assert values["kitti2015"] == (None, 80.0, True, False, False)
    assert values["make3d"] == (None, 70.0, True, True, True)
    assert values["cityscapes"] == ("cityscapes", 80.0, True, True, False)
    assert values["nuscenes"] == (None, 80.0, True, False, False)
    assert {p.scaling for _, p in PROTOCOLS.items()} == {"median"}


def test_decimal_and_natural_logarithm() -> None:
    errors = depth_errors(np.full((4, 4), 10.0), np.full((4, 4), 1.0), scaling="none")
    assert errors.rmse_log == pytest.approx(math.log(10))
    assert errors.rmse_log10 == pytest.approx(1)


def test_truth_beyond_the_cap_counts_where_the_protocol_says_so() -> None:
    truth = np.array([[40.0, 40.0, 100.0]])
    prediction = np.array([[40.0, 40.0, 100.0]])
    assert PROTOCOLS["eigen_improved"].errors(prediction, truth).abs_rel == pytest.approx(0.2 / 3)
    assert PROTOCOLS["kitti2015"].errors(prediction, truth).abs_rel == pytest.approx(0)


def test_parts_are_scaled_like_the_whole() -> None:
    truth = np.repeat([5.0, 15.0, 30.0, 60.0], 40)[None, :].repeat(8, 0)
    prediction = truth / 2
    prediction[:, :40] *= 1.5  # the nearest quarter is wrong; the median is not in it
    moving = np.zeros(truth.shape, bool)
    moving[:, 20:60] = True
    pixels = PROTOCOLS["synthetic"].pixels(prediction, truth)
    parts = part_errors(pixels, "median", moving)
    found = {name: errors.abs_rel for name, errors in parts.items()}
    expected = {"0-10": 0.5, "10-20": 0, "20-40": 0, "40-80": 0, "moving": 0.25}
    assert found == pytest.approx(expected | {"static": 1 / 12}, abs=1e-9)
    assert {e.ratio for e in parts.values()} == {2.0}
    assert parts["0-10"].d1 == 0 and parts["moving"].d1 == 0.5
    assert "moving" not in part_errors(pixels, "median")
    moving[:] = False
    moving[0, : LEAST_PART - 1] = True
    assert "moving" not in part_errors(pixels, "median", moving)


def test_mean_and_summary() -> None:
    first = DepthErrors(0.1, 1.0, 4.0, 0.2, 0.9, 0.95, 0.98, 1.0)
    second = DepthErrors(0.3, 3.0, 6.0, 0.4, 0.7, 0.85, 0.96, 3.0, 0.5)
    mean = mean_errors([first, second])
    assert mean.abs_rel == pytest.approx(0.2)
    assert mean.coverage == pytest.approx(0.75)
    entry = summary([first, second])
    assert entry["frames"] == 2
    assert entry["d1"] == pytest.approx(0.8)
    assert entry["ratio_median"] == 2.0
    assert entry["ratio_spread"] == pytest.approx(0.5)
    assert summary([])["frames"] == 0
    assert summary([])["abs_rel"] is None
    with pytest.raises(ValueError, match="no images"):
        mean_errors([])


@pytest.mark.slow
@pytest.mark.data
def test_constant_depth_on_real_lidar() -> None:
    """The figures of a constant predictor on the real data are known."""
    data = Path(os.environ["DEPTH_PRIOR_DATA"])

    def constant(paths: list[Path], measure: Callable) -> float:
        truths = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 256.0 for path in paths]
        ones = np.ones((4, 4))
        return mean_errors([measure(ones, truth) for truth in truths]).abs_rel

    stereo = sorted((data / "kitti_2015" / "depth_stereo").glob("*.png"))
    assert constant(stereo, PROTOCOLS["kitti2015"].errors) == pytest.approx(0.428, abs=0.001)
    drive = (
        data / "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync/proj_depth/velodyne_raw/image_02"
    )
    lidar = sorted(drive.glob("*.png"))
    assert constant(lidar, PROTOCOLS["eigen"].errors) == pytest.approx(0.348, abs=0.001)
