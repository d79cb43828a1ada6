"""Hypotheses, cost volume, regression and upsampling against hand-written twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.matching import (
    convex_upsample,
    depth_hypotheses,
    group_correlation,
    hypothesis_pixels,
    local_max_regression,
    quarter,
    quarter_intrinsics,
    sample_hypotheses,
)


def _intrinsics(focal: float, width: int, height: int) -> torch.Tensor:
    cx, cy = (width - 1) / 2, (height - 1) / 2
    return torch.tensor([[[focal, 0, cx], [0, focal, cy], [0, 0, 1]]])


@settings(max_examples=40, deadline=None)
@given(
    depth=st.floats(0.1, 100),
    delta=st.floats(0.05, 4),
    count=st.sampled_from([8, 16, 32]),
)
def test_hypotheses_are_uniform_in_inverse_depth(depth: float, delta: float, count: int) -> None:
    single = torch.full((1, 1, 1, 1), depth, dtype=torch.float64)
    width = torch.full((1, 1, 1, 1), delta, dtype=torch.float64)
    inverse = 1 / depth_hypotheses(single, width, count).flatten()
    low, high = 1 / (depth * (1 + delta)), (1 + delta) / depth
    expected = [low + (high - low) * i / (count - 1) for i in range(count)]
    assert inverse.tolist() == pytest.approx(expected, rel=1e-9)


def test_hypotheses_reach_both_ends_per_pixel() -> None:
    torch.manual_seed(0)
    single, delta = torch.rand(2, 1, 3, 4) * 20 + 0.1, torch.rand(1, 1, 3, 4) * 3 + 0.05
    found = depth_hypotheses(single, delta, 16)
    assert found.shape == (2, 16, 3, 4)
    assert torch.allclose(found[:, :1], single * (1 + delta), rtol=1e-5)
    assert torch.allclose(found[:, -1:], single / (1 + delta), rtol=1e-5)
    assert (found[:, 1:] < found[:, :-1]).all()


@pytest.mark.parametrize("translation", [(0.4, 0.0, 0.0), (0.0, -0.3, 0.0), (0.1, 0.1, 0.8)])
def test_a_plane_is_matched_at_its_depth(translation: tuple[float, float, float]) -> None:
    """Features of a textured plane seen twice: the right hypothesis has the highest correlation."""
    torch.manual_seed(0)
    height, width, plane, true_bin = 32, 48, 4.0, 5
    K = _intrinsics(40.0, width, height)
    # The plane's texture: smooth random waves, the same function of the point seen by both frames.
    frequency, phase = torch.randn(32, 2) * 4, torch.rand(32) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    cx, cy = K[0, 0, 2], K[0, 1, 2]

    def look(tx: float, ty: float, tz: float) -> torch.Tensor:
        """Unit-length features of the plane at z = plane, in the frame of the first camera."""
        depth = plane + tz
        px, py = (x - cx) / 40 * depth - tx, (y - cy) / 40 * depth - ty
        waves = frequency[:, :1, None] * px + frequency[:, 1:, None] * py + phase[:, None, None]
        features = torch.sin(waves)
        return (features / features.norm(dim=0, keepdim=True))[None]

    current, previous = look(0, 0, 0), look(*translation)
    pose = Pose.from_axis_angle(torch.zeros(1, 3), torch.tensor([translation]))
    # Hypotheses around another single-frame depth, such that bin 5 is the plane's.
    delta = torch.ones(1, 1, height, width)
    relative = depth_hypotheses(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 16).flatten()
    single = torch.full((1, 1, height, width), plane / float(relative[true_bin]))
    hypotheses = depth_hypotheses(single, delta, 16)
    warped = sample_hypotheses(previous, hypothesis_pixels(hypotheses, K, pose))
    score = group_correlation(current, warped, 16).sum(dim=1)[0].permute(2, 0, 1)
    inner = score[:, 8:-8, 10:-10]
    assert int(inner.mean(dim=(1, 2)).argmax()) == true_bin
    if translation[2] == 0:  # a camera moving forward sees no parallax where it is heading
        assert (inner.argmax(dim=0) == true_bin).float().mean() > 0.95


def test_identity_motion_returns_the_features_at_every_hypothesis() -> None:
    torch.manual_seed(0)
    features, hypotheses = torch.rand(2, 4, 8, 12), torch.rand(2, 16, 8, 12) * 5 + 0.5
    K = _intrinsics(20.0, 12, 8).expand(2, 3, 3)
    warped = sample_hypotheses(features, hypothesis_pixels(hypotheses, K, Pose.identity(2)))
    assert warped.shape == (2, 4, 8, 12, 16)
    # Away from the edge, where rounding may fall outside and mix in the zero padding.
    expected = features[..., None].expand_as(warped)
    inner = (..., slice(1, -1), slice(1, -1), slice(None))
    assert torch.allclose(warped[inner], expected[inner], atol=1e-4)


def test_points_behind_the_camera_are_zero() -> None:
    features, hypotheses = torch.ones(1, 2, 8, 8), torch.full((1, 8, 8, 8), 2.0)
    back = Pose.from_axis_angle(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -5.0]]))
    warped = sample_hypotheses(
        features, hypothesis_pixels(hypotheses, _intrinsics(10.0, 8, 8), back)
    )
    assert torch.equal(warped, torch.zeros_like(warped))


def test_groups_pair_channel_c_with_c_plus_16() -> None:
    torch.manual_seed(0)
    current, warped = torch.rand(1, 32, 2, 3), torch.rand(1, 32, 2, 3, 4)
    found = group_correlation(current, warped, 16)
    for group in range(16):
        first = current[:, group, ..., None] * warped[:, group]
        second = current[:, group + 16, ..., None] * warped[:, group + 16]
        assert torch.allclose(found[:, group], (first + second) / 2)


def test_local_max_regression_equals_a_loop() -> None:
    torch.manual_seed(0)
    probability = torch.softmax(torch.randn(2, 16, 5, 7, dtype=torch.float64) * 3, dim=1)
    hypotheses = torch.rand(2, 16, 5, 7, dtype=torch.float64) * 50 + 0.1
    depth, mass = local_max_regression(probability, hypotheses)
    ends = 0
    for b in range(2):
        for y in range(5):
            for x in range(7):
                p, d = probability[b, :, y, x].tolist(), hypotheses[b, :, y, x].tolist()
                best = p.index(max(p))
                ends += best in (0, 15)
                window = range(max(best - 1, 0), min(best + 2, 16))
                total = sum(p[i] for i in window)
                expected = sum(p[i] * d[i] for i in window) / total
                assert float(depth[b, 0, y, x]) == pytest.approx(expected, rel=1e-12)
                assert float(mass[b, 0, y, x]) == pytest.approx(total, rel=1e-12)
    assert ends > 0, "no pixel tested the ends of the range"


def test_convex_upsampling_keeps_a_constant() -> None:
    torch.manual_seed(0)
    found = convex_upsample(torch.full((2, 1, 5, 6), 7.25), torch.randn(2, 144, 5, 6) * 5)
    assert found.shape == (2, 1, 20, 24)
    assert torch.allclose(found, torch.full_like(found, 7.25), rtol=1e-6)


def test_convex_upsampling_stays_within_the_neighbours() -> None:
    torch.manual_seed(0)
    depth, mask = torch.rand(1, 1, 5, 6) * 10, torch.randn(1, 144, 5, 6) * 3
    found = convex_upsample(depth, mask)
    for y in range(20):
        for x in range(24):
            cy, cx = y // 4, x // 4
            near = depth[0, 0, max(cy - 1, 0) : cy + 2, max(cx - 1, 0) : cx + 2]
            assert near.min() - 1e-5 <= found[0, 0, y, x] <= near.max() + 1e-5


def test_convex_upsampling_picks_the_neighbour_that_the_mask_names() -> None:
    torch.manual_seed(0)
    depth = torch.rand(1, 1, 4, 4)
    mask = torch.zeros(1, 9, 16, 4, 4)
    mask[:, 5] = 50.0  # the neighbour to the right
    found = convex_upsample(depth, mask.reshape(1, 144, 4, 4))
    right = torch.cat([depth[..., 1:], depth[..., -1:]], dim=-1)
    expected = right.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.allclose(found, expected, atol=1e-5)


def test_quarter_pixels_and_quarter_intrinsics_agree() -> None:
    """The ray through quarter pixel (i, j) is the ray through full pixel (4 i, 4 j)."""
    K = torch.tensor([[[50.0, 0, 31.7], [0, 48.0, 15.2], [0, 0, 1]]])
    full = torch.linalg.inv(K[0]) @ torch.tensor([4.0 * 3, 4.0 * 2, 1.0])
    small = torch.linalg.inv(quarter_intrinsics(K)[0]) @ torch.tensor([3.0, 2.0, 1.0])
    assert torch.allclose(full, small, atol=1e-6)
    x = torch.arange(8 * 12).reshape(1, 1, 8, 12)
    assert quarter(x)[0, 0, 1, 2] == x[0, 0, 4, 8]
