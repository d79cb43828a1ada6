"""Smoothness and the losses against exact depth, motion and speed, held against float64 twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_twins import (
    assert_equals_twin,
    assert_mean_of_images,
    assert_zero_without_gradient,
    random,
)
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from training.losses.photometric import Edges, edge_aware_smoothness, velocity_loss
from training.losses.supervised import log_depth_loss, log_gradient_loss, pose_loss


def twin_smoothness(inverse: Tensor, image: Tensor) -> Tensor:
    """Neighbour by neighbour."""
    batch, _, height, width = inverse.shape
    rows, columns = [], []
    for b in range(batch):
        d = inverse[b, 0] / (inverse[b].mean() + 1e-7)
        for y in range(height):
            for x in range(width):
                for dy, dx, out in ((1, 0, rows), (0, 1, columns)):
                    if y + dy < height and x + dx < width:
                        colour = image[b, :, y + dy, x + dx] - image[b, :, y, x]
                        change = (d[y + dy, x + dx] - d[y, x]).abs()
                        out.append(change * torch.exp(-colour.abs().mean()))
    return sum(rows) / len(rows) + sum(columns) / len(columns)


def twin_log_depth(depth: Tensor, truth: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for d, t in zip(depth.flatten(), truth.flatten(), strict=True):
        if t > 0:
            total = total + (torch.log(d) - math.log(t)).abs()
        elif d < 15:
            total = total + 0.5 * (math.log(15) - torch.log(d))
    return total / depth.numel()


def twin_log_gradient(depth: Tensor, truth: Tensor) -> Tensor:
    """Pair by pair, at steps of 1, 2 and 4 pixels."""
    total = torch.zeros((), dtype=torch.float64)
    batch, _, height, width = depth.shape
    for step in (1, 2, 4):
        for dy, dx in ((step, 0), (0, step)):
            pairs = []
            for b in range(batch):
                for y in range(0, height - dy, step):
                    for x in range(0, width - dx, step):
                        ends = [(b, 0, y, x), (b, 0, y + dy, x + dx)]
                        e, f = (
                            depth[i].log() - math.log(truth[i]) if truth[i] > 0 else None
                            for i in ends
                        )
                        pairs.append(
                            0 * depth[ends[0]] if e is None or f is None else (f - e).abs()
                        )
            total = total + sum(pairs) / len(pairs)
    return total / 3


def twin_pose(pose: Tensor, truth: Tensor) -> Tensor:
    """Over the entries of the matrices (B, 4, 4)."""
    shift, turn = [], []
    for a, b in zip(pose, truth, strict=True):
        shift += [(a[i, 3] - b[i, 3]).abs() for i in range(3)]
        turn += [(a[i, j] - b[i, j]).abs() for i in range(3) for j in range(3)]
    return sum(shift) / len(shift) + 5 * sum(turn) / len(turn)


def _truth(seed: int, *shape: int) -> Tensor:
    """Depth 1 to 10, a third of it unknown."""
    depth = random(seed, *shape, low=1, high=10)
    return torch.where(random(seed + 1, *shape) < 0.33, torch.zeros_like(depth), depth)


def test_smoothness_equals_its_twin() -> None:
    inverse, image = random(10, 2, 1, 4, 5, low=0.1), random(11, 2, 3, 4, 5)
    assert_equals_twin(
        lambda d: edge_aware_smoothness(d, image.to(d)),
        lambda d: twin_smoothness(d, image),
        inverse,
    )
    once = edge_aware_smoothness(inverse, Edges.of(image))
    torch.testing.assert_close(once, edge_aware_smoothness(inverse, image))
    assert_mean_of_images(edge_aware_smoothness, inverse, image)


@given(scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_smoothness_does_not_depend_on_scale(scale: float) -> None:
    inverse, image = random(10, 2, 1, 6, 8) + 0.1, random(11, 2, 3, 6, 8)
    # Each image by a factor of its own.
    factors = torch.tensor([scale, 1 / scale]).reshape(2, 1, 1, 1)
    a, b = edge_aware_smoothness(inverse, image), edge_aware_smoothness(factors * inverse, image)
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


def test_supervised_losses_equal_their_twins() -> None:
    depth, truth = random(20, 2, 1, 8, 9, low=1, high=20), _truth(21, 2, 1, 8, 9)
    for loss, twin in ((log_depth_loss, twin_log_depth), (log_gradient_loss, twin_log_gradient)):
        assert_equals_twin(
            lambda d, f=loss: f(d, truth.to(d)),  # type: ignore[misc]
            lambda d, f=twin: f(d, truth),  # type: ignore[misc]
            depth,
        )
        assert_mean_of_images(loss, depth, truth)


@pytest.mark.parametrize("loss", [log_depth_loss, log_gradient_loss])
def test_supervised_losses_are_safe_without_truth(loss) -> None:  # type: ignore[no-untyped-def]
    truth = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    assert_zero_without_gradient(lambda d: loss(d, truth.to(d)), random(12, 1, 1, 8, 8) + 20)


def test_log_gradient_loss_ignores_scale_and_sees_blur() -> None:
    truth = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    truth[..., 4:] = 3.0
    assert float(log_gradient_loss(5 * truth, truth)) == pytest.approx(0, abs=1e-12)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1, count_include_pad=False)
    assert log_gradient_loss(blurred, truth) > 0.01


def test_pose_loss_equals_its_twin() -> None:
    pose, truth = random(30, 3, 4, 4), random(31, 3, 4, 4)
    assert_equals_twin(
        lambda p: pose_loss(Pose(p), Pose(truth.to(p))), lambda p: twin_pose(p, truth), pose
    )
    known = torch.tensor([True, False, True])
    assert_equals_twin(
        lambda p: pose_loss(Pose(p), Pose(truth.to(p)), known=known),
        lambda p: twin_pose(p[known], truth[known]) * 2 / 3,
        pose,
    )
    assert_mean_of_images(lambda p, t, k: pose_loss(Pose(p), Pose(t), known=k), pose, truth, known)
    assert_zero_without_gradient(
        lambda p: pose_loss(Pose(p), Pose(truth.to(p) * math.nan), known=known & False), pose
    )


def test_pose_loss_takes_several_sources() -> None:
    pose, truth, known = random(32, 2, 3, 4, 4), random(33, 2, 3, 4, 4), torch.tensor([1, 0, 1]) > 0
    each = [pose_loss(Pose(p), Pose(t), known=known) for p, t in zip(pose, truth, strict=True)]
    together = pose_loss(Pose(pose), Pose(truth), known=known)
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_pose_loss_is_zero_at_the_truth_only() -> None:
    pose = Pose.from_axis_angle(random(14, 2, 3), random(15, 2, 3))
    other = Pose.from_axis_angle(random(14, 2, 3) + 0.01, random(15, 2, 3))
    assert pose_loss(pose, pose) == 0
    assert pose_loss(other, pose) > 1e-3


def test_velocity_loss_equals_its_twin() -> None:
    translation, driven = random(40, 4, 3, low=-1), random(41, 4, low=-3, high=3)
    driven[2] = math.nan

    def twin(t: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in (0, 1, 3):
            length = sum(t[i, k] ** 2 for k in range(3)) ** 0.5
            total = total + (5.4 * length - abs(float(driven[i]))).abs()
        return total / 4

    def loss(t: Tensor) -> Tensor:
        return velocity_loss(t, driven.to(t), metres_per_unit=5.4)

    assert_equals_twin(loss, twin, translation)
    assert_mean_of_images(velocity_loss, translation, driven)


def test_velocity_loss_by_hand_and_where_nothing_is_known() -> None:
    forward = torch.tensor([[0.0, 0.0, 2.0]])
    metre = torch.tensor([1.0])
    assert float(velocity_loss(forward, metre)) == pytest.approx(1)  # 2 m, not 1 m
    assert float(velocity_loss(forward, metre, metres_per_unit=0.5)) == pytest.approx(0)
    assert float(velocity_loss(-forward, -metre)) == pytest.approx(1)
    nan = torch.tensor([math.nan, math.nan])
    assert_zero_without_gradient(lambda t: velocity_loss(t, nan), random(43, 2, 3))
    still = torch.zeros(1, 3, requires_grad=True)
    velocity_loss(still, metre).backward()
    assert still.grad is not None
    assert torch.isfinite(still.grad).all()
