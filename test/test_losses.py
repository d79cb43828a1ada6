"""Losses against float64 twins written from the formulas, gradcheck and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_prior_ros.geometry import Pose
from training.losses.photometric import (
    Target,
    box3,
    identity_error,
    minimum_reprojection,
    photometric_error,
)
from training.losses.smoothness import edge_aware_smoothness
from training.losses.supervised import log_depth_loss, log_gradient_loss, pose_loss


def _images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reflect(i: int, size: int) -> int:
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def twin_photometric(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixel by pixel from the definition of SSIM; a, b (C, H, W), result (H, W)."""
    channels, height, width = a.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            total = 0.0
            for c in range(channels):
                window = [
                    (_reflect(y + i, height), _reflect(x + j, width))
                    for i in (-1, 0, 1)
                    for j in (-1, 0, 1)
                ]
                p = np.array([a[c, i, j] for i, j in window])
                q = np.array([b[c, i, j] for i, j in window])
                covariance = (p * q).mean() - p.mean() * q.mean()
                ssim = (2 * p.mean() * q.mean() + 1e-4) * (2 * covariance + 9e-4)
                ssim /= (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
                total += 0.85 * min(max((1 - ssim) / 2, 0), 1) + 0.15 * abs(a[c, y, x] - b[c, y, x])
            out[y, x] = total / channels
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_photometric_error_equals_the_definition(seed: int) -> None:
    a, b = _images(seed, 1, 3, 5, 7), _images(seed + 10, 1, 3, 5, 7)
    got = photometric_error(a, Target.of(b))[0, 0].numpy()
    np.testing.assert_allclose(got, twin_photometric(a[0].numpy(), b[0].numpy()), atol=1e-12)


def test_photometric_error_of_equal_images_is_zero_and_it_is_symmetric() -> None:
    a, b = _images(3, 2, 3, 6, 8), _images(4, 2, 3, 6, 8)
    assert photometric_error(a, Target.of(a)).abs().max() < 1e-12
    there, back = photometric_error(a, Target.of(b)), photometric_error(b, Target.of(a))
    torch.testing.assert_close(there, back)


def test_box3_equals_average_pooling() -> None:
    x = _images(5, 2, 3, 6, 9)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    torch.testing.assert_close(box3(x), torch.nn.functional.avg_pool2d(padded, 3, 1))


def test_photometric_gradient() -> None:
    a, target = _images(6, 1, 2, 4, 5).requires_grad_(), Target.of(_images(7, 1, 2, 4, 5))
    assert torch.autograd.gradcheck(lambda x: photometric_error(x, target), (a,))


def test_minimum_reprojection_takes_the_smaller_error_of_each_pixel() -> None:
    target = _images(8, 1, 3, 6, 6)
    left, right = target.clone(), target.clone()
    left[..., 3:] = 0.0
    right[..., :3] = 1.0
    warped = torch.stack([left, right])
    alone = minimum_reprojection(warped[:1], Target.of(target), None)[0]
    both, mask = minimum_reprojection(warped, Target.of(target), None)
    errors = [photometric_error(w, Target.of(target)) for w in warped]
    torch.testing.assert_close(both, torch.minimum(*errors).mean())
    assert both < alone
    assert mask.all()


def test_auto_mask_leaves_out_what_stands_still() -> None:
    target = _images(9, 1, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    identity = identity_error(torch.stack([target, target]), Target.of(target), generator)
    wrong = torch.stack([1 - target, 1 - target]).requires_grad_()
    loss, mask = minimum_reprojection(wrong, Target.of(target), identity)
    loss.backward()
    assert not mask.any()
    assert wrong.grad is not None
    assert wrong.grad.abs().max() == 0


@given(scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_smoothness_does_not_depend_on_scale(scale: float) -> None:
    inverse, image = _images(10, 2, 1, 6, 8) + 0.1, _images(11, 2, 3, 6, 8)
    a, b = edge_aware_smoothness(inverse, image), edge_aware_smoothness(scale * inverse, image)
    assert float(a) == pytest.approx(float(b), rel=1e-4)


def test_smoothness_is_zero_on_a_plane_of_equal_depth_and_weaker_at_edges() -> None:
    image = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
    step = torch.ones(1, 1, 6, 8, dtype=torch.float64)
    assert edge_aware_smoothness(step, image) == 0
    step[..., 4:] = 2.0
    edged = image.clone()
    edged[..., 4:] = 1.0
    assert edge_aware_smoothness(step, edged) < 0.5 * edge_aware_smoothness(step, image)


def test_log_depth_loss_by_hand() -> None:
    truth = torch.tensor([[[[2.0, 0.0], [0.0, 8.0]]]], dtype=torch.float64)
    depth = torch.tensor([[[[4.0, 30.0], [7.5, 8.0]]]], dtype=torch.float64)
    expected = (np.log(2) + 0.5 * np.log(2)) / 4  # one wrong depth, one sky pixel at half of 15
    assert float(log_depth_loss(depth, truth)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [log_depth_loss, log_gradient_loss])
def test_supervised_losses_are_safe_without_truth(loss) -> None:  # type: ignore[no-untyped-def]
    depth = (_images(12, 1, 1, 8, 8) + 20).requires_grad_()
    value = loss(depth, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    value.backward()
    assert value == 0
    assert depth.grad is not None
    assert torch.isfinite(depth.grad).all()


def test_log_gradient_loss_ignores_scale_and_sees_blur() -> None:
    truth = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    truth[..., 4:] = 3.0
    assert float(log_gradient_loss(5 * truth, truth)) == pytest.approx(0, abs=1e-12)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1, count_include_pad=False)
    assert log_gradient_loss(blurred, truth) > 0.01
    assert torch.autograd.gradcheck(
        lambda d: log_gradient_loss(d, truth),
        (truth * 1.1 + _images(13, 1, 1, 8, 8)).requires_grad_(),
    )


def test_pose_loss_is_zero_at_the_truth_only() -> None:
    pose = Pose.from_axis_angle(_images(14, 2, 3), _images(15, 2, 3))
    other = Pose.from_axis_angle(_images(14, 2, 3) + 0.01, _images(15, 2, 3))
    assert pose_loss(pose, pose) == 0
    assert pose_loss(other, pose) > 1e-3
