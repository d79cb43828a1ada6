"""Consistency, masked input and distillation against float64 twins, and their invariances."""

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
    random_mask,
)
from torch import Tensor

from training.losses.distillation import (
    Rectangle,
    distillation_mask,
    log_ratio_distillation,
    masked_input_consistency,
    reliable_matches,
    single_frame_consistency,
)
from training.losses.masked import masked_mean, mean_per_image

SHAPE = (3, 1, 6, 7)


def twin_log_ratio(student: Tensor, teacher: Tensor, mask: Tensor, lam: float) -> Tensor:
    """The formula as it stands, image by image and pixel by pixel."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t, m in zip(student, teacher, mask, strict=True):
        g = [
            torch.log(a) - math.log(b)
            for a, b, keep in zip(s.flatten(), t.flatten(), m.flatten(), strict=True)
            if keep
        ]
        if g:
            squares, mean = sum(x * x for x in g) / len(g), sum(g) / len(g)
            total = total + torch.sqrt(squares - lam * mean * mean)
    return total / len(student)


def _smooth_l1(difference: Tensor) -> Tensor:
    size = difference.abs()
    return 0.5 * size**2 if size < 1 else size - 0.5


# Masked means


def test_masked_mean_is_per_image_and_nothing_else_has_influence() -> None:
    values, mask = random(1, *SHAPE), random_mask(2, *SHAPE)
    mask[1] = False

    def twin(v: Tensor) -> Tensor:
        return sum((v[b][mask[b]].mean() for b in (0, 2)), torch.zeros(())) / 3

    assert_equals_twin(lambda v: masked_mean(v, mask), twin, values)
    assert_mean_of_images(masked_mean, values, mask)
    spoiled = torch.where(mask, values, torch.full_like(values, math.nan))
    torch.testing.assert_close(mean_per_image(spoiled, mask), mean_per_image(values, mask))
    spoiled.requires_grad_()
    gradient = torch.autograd.grad(masked_mean(spoiled, mask), spoiled)[0]
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    assert torch.isfinite(gradient).all()
    assert_zero_without_gradient(lambda v: masked_mean(v, mask & False), values)


# ManyDepth


def test_matches_within_a_factor_of_two_that_saw_all_hypotheses_are_reliable() -> None:
    single = torch.full((2, 1, 2, 4), 4.0)
    matched = torch.tensor([[[[1.9, 2.1, 7.9, 8.1], [4, 4, 4, 4]]]]).repeat(2, 1, 1, 1)
    seen = torch.tensor([[[[1, 1, 1, 1], [1, 0, 1, 0]]]]).repeat(2, 1, 1, 1)
    expected = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0]]).bool()
    mask = reliable_matches(matched, single, seen)
    assert mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], expected)
    mask = reliable_matches(matched, single, seen.bool(), torch.tensor([True, False]))
    assert not mask[0].any()
    assert torch.equal(mask[1, 0], expected)


def test_a_smaller_cost_volume_is_enlarged_to_the_nearest() -> None:
    single, matched = torch.full((1, 1, 4, 8), 4.0), torch.tensor([[[[4.0, 9.0]]]])
    mask = reliable_matches(matched, single, torch.ones(1, 1, 1, 2))
    assert mask.shape == single.shape
    assert mask[..., :4].all()
    assert not mask[..., 4:].any()


@given(factor=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_reliability_does_not_depend_on_the_unit(factor: float) -> None:
    single, matched = random(3, *SHAPE, low=1, high=5), random(4, *SHAPE, low=1, high=5)
    seen = random_mask(5, *SHAPE, share=0.8)
    mask = reliable_matches(matched, single, seen)
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(mask, reliable_matches(factor * matched, factor * single, seen))


def test_consistency_equals_its_twin() -> None:
    multi, single = random(6, *SHAPE, low=1, high=5), random(7, *SHAPE, low=1, high=5)
    reliable = random_mask(8, *SHAPE)

    def twin(m: Tensor) -> Tensor:
        values = zip(m.flatten(), single.flatten(), reliable.flatten(), strict=True)
        return sum((a - b).abs() for a, b, r in values if not r) / m.numel()

    def loss(m: Tensor) -> Tensor:
        return single_frame_consistency(m, single.to(m), reliable)

    assert_equals_twin(loss, twin, multi)
    assert_mean_of_images(single_frame_consistency, multi, single, reliable)
    assert_zero_without_gradient(
        lambda m: single_frame_consistency(m, single.to(m), reliable | True), multi
    )
    single.requires_grad_()
    assert not single_frame_consistency(multi, single, reliable).requires_grad


# MISM: masked input


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_rectangle_lies_within_the_image(height: int, width: int, seed: int) -> None:
    drawn = Rectangle.draw(height, width, np.random.default_rng(seed))
    assert (drawn.height, drawn.width) == (max(1, height // 3), max(1, width // 3))
    assert int(drawn.inside().sum()) == drawn.height * drawn.width
    assert drawn == Rectangle.draw(height, width, np.random.default_rng(seed))


def test_the_rectangle_reaches_all_of_the_image_and_hides_what_it_covers() -> None:
    rng = np.random.default_rng(0)
    covered = torch.stack([Rectangle.draw(9, 12, rng).inside() for _ in range(400)])
    assert covered.any(0).all()
    drawn, images = Rectangle(2, 3, 4, 5, (9, 12)), random(9, 2, 3, 9, 12, low=0.1)
    hidden = drawn.hide(images)
    assert (hidden[..., 2:6, 3:8] == 0).all()
    assert int((hidden == 0).sum()) == 2 * 3 * 20
    torch.testing.assert_close(hidden[..., ~drawn.inside()], images[..., ~drawn.inside()])
    with pytest.raises(ValueError, match="rectangle is for"):
        drawn.hide(images[..., :-1])


def test_masked_input_consistency_equals_its_twin() -> None:
    hidden, depth = random(10, *SHAPE, low=1, high=5), random(11, *SHAPE, low=1, high=5)
    rectangle = Rectangle(1, 2, 2, 3, SHAPE[2:])

    def twin(a: Tensor, b: Tensor) -> Tensor:
        outside = [
            _smooth_l1(a[i, 0, y, x] - b[i, 0, y, x])
            for i in range(SHAPE[0])
            for y in range(SHAPE[2])
            for x in range(SHAPE[3])
            if not (1 <= y < 3 and 2 <= x < 5)
        ]
        return sum(outside) / len(outside)

    assert_equals_twin(lambda a, b: masked_input_consistency(a, b, rectangle), twin, hidden, depth)
    assert_mean_of_images(lambda a, b: masked_input_consistency(a, b, rectangle), hidden, depth)
    changed = depth + 100 * rectangle.inside()
    assert masked_input_consistency(changed, depth, rectangle) == 0


# MISM: distillation


def test_the_mask_holds_where_the_teacher_explains_better() -> None:
    teacher = torch.tensor([0.1, 0.3, 0.2]).reshape(1, 1, 1, 3).requires_grad_()
    mask = distillation_mask(teacher, torch.tensor([0.2, 0.2, 0.2]).reshape(1, 1, 1, 3))
    assert mask.flatten().tolist() == [True, False, False]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.85, 1.0])
def test_log_ratio_equals_its_twin(lam: float) -> None:
    student, teacher = random(12, *SHAPE, low=1, high=9), random(13, *SHAPE, low=1, high=9)
    mask = random_mask(14, *SHAPE)
    mask[1] = False
    assert_equals_twin(
        lambda s: log_ratio_distillation(s, teacher.to(s), mask, lam),
        lambda s: twin_log_ratio(s, teacher, mask, lam),
        student,
    )
    assert_mean_of_images(
        lambda s, t, m: log_ratio_distillation(s, t, m, lam), student, teacher, mask
    )


@given(factor=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_log_ratio_does_not_depend_on_either_scale(factor: float) -> None:
    student, teacher = random(12, *SHAPE, low=1, high=9), random(13, *SHAPE, low=1, high=9)
    mask = random_mask(14, *SHAPE)
    expected = float(log_ratio_distillation(student, teacher, mask))
    assert float(log_ratio_distillation(factor * student, teacher, mask)) == pytest.approx(expected)
    assert float(log_ratio_distillation(student, factor * teacher, mask)) == pytest.approx(expected)
    with_scale = float(log_ratio_distillation(student, teacher, mask, lam=0.0))
    assert with_scale >= expected


def test_log_ratio_is_safe_where_nothing_is_kept_or_nothing_differs() -> None:
    student, teacher = random(12, *SHAPE, low=1, high=9), random(13, *SHAPE, low=1, high=9)
    mask = random_mask(14, *SHAPE)
    assert_zero_without_gradient(
        lambda s: log_ratio_distillation(s, teacher.to(s), mask & False), student
    )
    for factor in (1.0, 3.7):
        assert_zero_without_gradient(
            lambda s, f=factor: log_ratio_distillation(s, f * student.to(s), mask),  # type: ignore[misc]
            student,
        )
    one = torch.zeros_like(mask)
    one[:, :, 2, 3] = True  # a single pixel has no spread
    assert_zero_without_gradient(lambda s: log_ratio_distillation(s, teacher.to(s), one), student)


@given(spread=st.floats(1e-8, 1e-2))
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_log_ratio_stays_bounded_towards_no_spread(spread: float) -> None:
    teacher = random(13, *SHAPE, low=1, high=9).float()
    student = (teacher * (1 + spread * random(15, *SHAPE, low=-1).float())).requires_grad_()
    mask = torch.ones(SHAPE, dtype=torch.bool)
    loss = log_ratio_distillation(student, teacher, mask)
    gradient = torch.autograd.grad(loss, student)[0]
    # By g it is (g - mean) / (n spread), of length 1 / sqrt(n); depth is 1 at least.
    assert float(gradient.norm()) <= 1.01 / math.sqrt(SHAPE[2] * SHAPE[3])
    assert float(loss.detach()) <= 2 * spread + 1e-6


def test_what_the_mask_leaves_out_has_no_influence() -> None:
    student, teacher = random(12, *SHAPE, low=1, high=9), random(13, *SHAPE, low=1, high=9)
    mask = random_mask(14, *SHAPE)
    expected = log_ratio_distillation(student, teacher, mask)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        spoiled = torch.where(mask, student, torch.full_like(student, bad)).requires_grad_()
        wrong = torch.where(mask, teacher, torch.full_like(teacher, bad))
        got = log_ratio_distillation(spoiled, wrong, mask)
        torch.testing.assert_close(got, expected)
        gradient = torch.autograd.grad(got, spoiled)[0]
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
        assert torch.isfinite(gradient).all()


def test_log_ratio_refuses_a_weight_out_of_range() -> None:
    ones = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="lam must be 0 to 1"):
        log_ratio_distillation(ones, ones, ones > 0, lam=1.5)
