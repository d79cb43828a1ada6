"""The losses of a frozen teacher against float64 twins, and what they must not depend on."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

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
    auxiliary_loss,
    gradient_consistency,
    gradient_map,
    gradient_mask,
    resize_depth,
    value_consistency,
)

SHAPE, SMALL = (3, 1, 6, 7), (3, 1, 2, 3)
SIZE = (6, 7)
QUANTITIES = ("inverse", "depth", "log")


def values(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return random(seed, *shape, low=0.5, high=4.0)


# --- twins: pixel by pixel, in float64 ------------------------------------------------------------


def counts(mask: Tensor, b: int, y: int, x: int) -> bool:
    """A gradient counts with the pixels it is made of."""
    height, width = mask.shape[-2:]
    others = [(y, x)]
    others += [(y, x + 1)] if x + 1 < width else []
    others += [(y + 1, x)] if y + 1 < height else []
    return all(bool(mask[b, 0, i, j]) for i, j in others)


def twin_map(image: Tensor, mask: Tensor, b: int) -> dict[tuple[int, int], Tensor]:
    """Normalised gradients of one image by pixel, where they count."""
    height, width = image.shape[-2:]
    found, total, kept = {}, torch.zeros((), dtype=torch.float64), []
    for y in range(height):
        for x in range(width):
            value = image[b, 0, y, x]
            if mask[b, 0, y, x]:
                kept.append(value)
            if not counts(mask, b, y, x):
                continue
            step = torch.zeros((), dtype=torch.float64)
            if x < width - 1:
                step = step + (image[b, 0, y, x + 1] - value).abs()
            if y < height - 1:
                step = step + (image[b, 0, y + 1, x] - value).abs()
            found[y, x] = step
            total = total + step
    if not found:
        return {}
    mean = total / len(found) + 1e-4 * sum(kept) / len(kept) + 1e-12
    return {place: step / mean for place, step in found.items()}


def twin_gradients(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(student)):
        mine, theirs = twin_map(student, mask, b), twin_map(teacher, mask, b)
        if mine:
            total = total + sum((mine[p] - theirs[p]).abs() for p in mine) / len(mine)
    return total / len(student)


def divided_by_median(image: Tensor, mask: Tensor) -> list[Tensor]:
    kept = [v for v, keep in zip(image.flatten(), mask.flatten(), strict=True) if keep]
    middle = sorted(kept, key=lambda v: float(v.detach()))[(len(kept) - 1) // 2] if kept else 1
    return [v / middle for v in kept]


def twin_values(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t, m in zip(student, teacher, mask, strict=True):
        mine, theirs = divided_by_median(s, m), divided_by_median(t, m)
        if mine:
            total = total + sum((a - b).abs() for a, b in zip(mine, theirs, strict=True)) / len(
                mine
            )
    return total / len(student)


def twin_enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, with pixel corners kept in place."""
    rows = []
    for y in range(height):
        for x in range(width):
            v, u = (
                min(max((p + 0.5) * small / large - 0.5, 0), small - 1)
                for p, small, large in ((y, image.shape[0], height), (x, image.shape[1], width))
            )
            i, j = math.floor(v), math.floor(u)
            total = torch.zeros((), dtype=torch.float64)
            for a, wa in ((i, 1 - (v - i)), (i + 1, v - i)):
                for b, wb in ((j, 1 - (u - j)), (j + 1, u - j)):
                    if wa * wb > 0:
                        total = total + wa * wb * image[a, b]
            rows.append(total)
    return torch.stack(rows).reshape(height, width)


def twin_auxiliary(prior: Tensor, teacher: Tensor, mask: Tensor, on: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    change = {"inverse": lambda v: v, "depth": lambda v: 1 / v, "log": lambda v: v.log()}[on]
    for p, t, m in zip(prior, teacher, mask, strict=True):
        mine = divided_by_median(twin_enlarged(p[0], *t.shape[-2:]), m[0])
        theirs = divided_by_median(1 / t, m)
        if mine:
            pairs = zip(mine, theirs, strict=True)
            total = total + sum((change(a) - change(b)).abs() for a, b in pairs) / len(mine)
    return total / len(prior)


# --- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.8, 1.1])
def test_losses_equal_their_twins(share: float) -> None:
    student, teacher, mask = values(1), values(2), random_mask(3, *SHAPE, share=share)
    if share < 1:
        mask[1] = False
    given = mask if share < 1 else None
    for loss, twin in (
        (gradient_consistency, twin_gradients),
        (value_consistency, twin_values),
    ):
        assert_equals_twin(
            lambda s, f=loss: f(s, teacher.to(s), given),
            lambda s, f=twin: f(s, teacher, mask),
            student,
        )


@pytest.mark.parametrize("on", QUANTITIES)
@pytest.mark.parametrize("share", [0.8, 1.1])
def test_the_auxiliary_loss_equals_its_twin(on: Any, share: float) -> None:
    prior, teacher, mask = values(4, SMALL), values(5), random_mask(6, *SHAPE, share=share)
    assert_equals_twin(
        lambda p: auxiliary_loss(p, teacher.to(p), on, mask if share < 1 else None),
        lambda p: twin_auxiliary(p, teacher, mask, on),
        prior,
    )


def test_the_map_equals_its_twin() -> None:
    image, mask = values(7), random_mask(8, *SHAPE, share=0.85)

    def twin(v: Tensor) -> Tensor:
        out = torch.zeros(SHAPE, dtype=torch.float64)
        for b in range(len(v)):
            for (y, x), value in twin_map(v, mask, b).items():
                out = out.index_put(tuple(torch.tensor(i) for i in (b, 0, y, x)), value)
        return out

    assert_equals_twin(lambda v: gradient_map(v, mask), twin, image)
    expected = [[[[counts(mask, b, y, x) for x in range(7)] for y in range(6)]] for b in range(3)]
    assert gradient_mask(mask).tolist() == expected


def test_the_map_of_a_ramp_is_flat_and_of_a_step_is_the_edge() -> None:
    ramp = torch.arange(1.0, 9.0).expand(1, 1, 8, 8)
    found = gradient_map(ramp)
    assert torch.equal(found[..., -1], torch.zeros(1, 1, 8))
    torch.testing.assert_close(found[..., :-1], torch.full((1, 1, 8, 7), 8 / 7), rtol=1e-3, atol=0)
    step = torch.ones(1, 1, 4, 4)
    step[..., 2:] = 5
    found = gradient_map(step)
    assert torch.equal(found > 0, torch.tensor([False, True, False, False]).expand(1, 1, 4, 4))
    assert 0.999 < found.mean() < 1


def test_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher, mask = values(1), values(2), random_mask(3, *SHAPE, share=0.8)
    mask[2] = False
    for loss in (gradient_consistency, value_consistency):
        assert_mean_of_images(loss, student, teacher, mask)
    for on in QUANTITIES:
        assert_mean_of_images(
            lambda p, t, m, on=on: auxiliary_loss(p, t, on, m), values(4, SMALL), teacher, mask
        )


@pytest.mark.parametrize(
    "loss",
    [gradient_consistency, value_consistency, *(partial(auxiliary_loss, on=q) for q in QUANTITIES)],
)
def test_the_teacher_gets_no_gradient_and_equals_itself(loss: Any) -> None:
    student = values(1).requires_grad_()
    teacher = values(2).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    same = values(2)
    if isinstance(loss, partial):  # the prior's is inverse depth
        same = 1 / same
    torch.testing.assert_close(loss(same, teacher), torch.zeros((), dtype=torch.float64))


# --- invariances ----------------------------------------------------------------------------------

factors = st.floats(1e-3, 1e3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), factors, factors, st.booleans(), st.booleans())
def test_no_scale_counts(seed: int, mine: float, theirs: float, masked: bool, single: bool) -> None:
    student, teacher, prior = values(seed), values(seed + 1), values(seed + 2, SMALL)
    mask = random_mask(seed + 3, *SHAPE, share=0.8) if masked else None
    if single:
        student, teacher, prior = student.float(), teacher.float(), prior.float()
    rtol = 1e-4 if single else 1e-9
    close = partial(torch.testing.assert_close, rtol=rtol, atol=rtol)
    close(gradient_map(mine * student, mask), gradient_map(student, mask))
    for loss in (gradient_consistency, value_consistency):
        close(loss(mine * student, theirs * teacher, mask), loss(student, teacher, mask))
    for on in QUANTITIES:
        found = auxiliary_loss(mine * prior, theirs * teacher, on, mask)  # type: ignore[arg-type]
        close(found, auxiliary_loss(prior, teacher, on, mask))  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_no_gradient_along_the_scale(seed: int, masked: bool) -> None:
    """What does not depend on a factor has no derivative by it."""
    mask = random_mask(seed + 3, *SHAPE, share=0.8) if masked else None
    for loss in (gradient_consistency, value_consistency, partial(auxiliary_loss, on="depth")):
        student = values(seed).requires_grad_()
        found = loss(student, values(seed + 1), mask=mask)
        (gradient,) = torch.autograd.grad(found, student)
        along = (gradient * student.detach()).flatten(1).sum(1)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_gradients_do_not_see_an_offset_of_disparity_values_do(seed: int) -> None:
    student = values(seed)
    shifted = student + 0.3
    torch.testing.assert_close(
        gradient_consistency(shifted, student),
        torch.zeros((), dtype=torch.float64),
        atol=1e-3,
        rtol=0,
    )
    assert value_consistency(shifted, student) > 1e-3


def test_rows_and_columns_count_alike() -> None:
    student, teacher = values(1, (2, 1, 6, 6)), values(2, (2, 1, 6, 6))
    torch.testing.assert_close(
        gradient_consistency(student.mT, teacher.mT), gradient_consistency(student, teacher)
    )


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 0.0, -1.0, 1e30])
@pytest.mark.parametrize("single", [False, True])
def test_what_a_mask_leaves_out_has_no_influence(spoil: float, single: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    student, teacher = values(1).to(dtype), values(2).to(dtype)
    mask = random_mask(3, *SHAPE, share=0.8)
    mask[1] = False
    spoiled = torch.where(mask, student, torch.full_like(student, spoil))
    wrong = torch.where(mask, teacher, torch.full_like(teacher, spoil))
    for loss in (gradient_consistency, value_consistency):
        leaf = spoiled.clone().requires_grad_()
        found = loss(leaf, wrong, mask)
        torch.testing.assert_close(found, loss(student, teacher, mask), rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(found, leaf)
        assert gradient.isfinite().all()
        assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    prior = values(4, SMALL).to(dtype)
    for on in QUANTITIES:
        leaf = prior.clone().requires_grad_()
        found = auxiliary_loss(leaf, wrong, on, mask)  # type: ignore[arg-type]
        expected = auxiliary_loss(prior, teacher, on, mask)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert torch.autograd.grad(found, leaf)[0].isfinite().all()


def test_an_empty_mask_is_zero_without_gradient() -> None:
    teacher, nothing = values(2), torch.zeros(SHAPE, dtype=torch.bool)
    for loss in (gradient_consistency, value_consistency):
        assert_zero_without_gradient(lambda s, f=loss: f(s, teacher.to(s), nothing), values(1))
    for on in QUANTITIES:
        assert_zero_without_gradient(
            lambda p, on=on: auxiliary_loss(p, teacher.to(p), on, nothing), values(4, SMALL)
        )


def test_a_wrong_teacher_pixel_moves_the_others_only_where_it_is_not_masked() -> None:
    student, teacher = values(1), values(2)
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, :, 2, 3] = False
    wrong = teacher.clone()
    wrong[:, :, 2, 3] *= 50
    for loss in (gradient_consistency, value_consistency):
        assert loss(student, wrong, mask) == loss(student, teacher, mask)
        assert loss(student, wrong) > 1.05 * loss(student, teacher)


# --- flat depth, half precision, sizes ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [1e-3, 1.0, 100.0])
def test_flat_depth_has_finite_gradients(dtype: torch.dtype, level: float) -> None:
    teacher = values(2).to(dtype)
    flat = torch.full(SHAPE, level, dtype=dtype)
    assert torch.equal(gradient_map(flat), torch.zeros_like(flat))
    for student, other in ((flat, teacher), (teacher, flat), (flat, flat)):
        for loss in (gradient_consistency, value_consistency, auxiliary_loss):
            leaf = student.clone().requires_grad_()
            found = loss(leaf, other)
            (gradient,) = torch.autograd.grad(found, leaf)
            assert found.isfinite()
            assert gradient.isfinite().all()


def test_rounding_does_not_become_an_edge() -> None:
    """Of a flat picture with noise of float32's rounding the map stays near zero."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 32, 64)))
    assert gradient_map((7 + 7e-7 * noise).float()).max() < 0.05


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_full(half: torch.dtype) -> None:
    student, teacher, prior = (
        v.to(half)
        for v in (values(1, (2, 1, 32, 64)), values(2, (2, 1, 32, 64)), values(3, (2, 1, 4, 8)))
    )
    calls = [
        lambda s, t, p: gradient_map(s),
        lambda s, t, p: gradient_consistency(s, t),
        lambda s, t, p: value_consistency(s, t),
        lambda s, t, p: auxiliary_loss(p, t),
        lambda s, t, p: resize_depth(s, (50, 60)),
    ]
    for call in calls:
        expected = call(student.float(), teacher.float(), prior.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = call(student, teacher, prior)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    leaf = student.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gradient_consistency(leaf, teacher).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == half
    assert leaf.grad.isfinite().all()


def test_depth_is_resized_as_inverse_depth() -> None:
    depth = values(9, (2, 1, 3, 4))
    found = resize_depth(depth, (6, 7))
    for b in range(2):
        torch.testing.assert_close(found[b, 0], 1 / twin_enlarged(1 / depth[b, 0], 6, 7))
    torch.testing.assert_close(resize_depth(depth, (3, 4)), depth)
    # A plane's inverse depth is linear in the image: enlarged, it is that plane, but at the border.
    x = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    plane = 1 / (0.1 + x).expand(1, 1, 4, 8)
    fine = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    torch.testing.assert_close(
        resize_depth(plane, (8, 16))[..., 1:-1], 1 / (0.1 + fine[1:-1]).expand(1, 1, 8, 14)
    )


def test_sizes_and_quantities_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 7\).*\(5, 7\)"):
        gradient_consistency(values(1), values(2, (3, 1, 5, 7)))
    with pytest.raises(ValueError, match=r"\(6, 7\).*\(1, 1\)"):
        value_consistency(values(1), values(2, (3, 1, 1, 1)))
    with pytest.raises(ValueError, match="inverse, depth or log, got speed"):
        auxiliary_loss(values(1), values(2), "speed")  # type: ignore[arg-type]
