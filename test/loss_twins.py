"""What the tests of losses share: how a loss is held against its float64 twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


def random(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float64 numbers that float32 holds exactly, so that its rounding of them does not count."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator)).double()


def random_mask(seed: int, *shape: int, share: float = 0.6) -> Tensor:
    return random(seed, *shape) < share


def _value_and_gradients(loss: Loss, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [i.detach().clone().requires_grad_(i.is_floating_point()) for i in inputs]
    value = loss(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    # Per-pixel results are summed with weights, so that no pixel's gradient hides another's.
    weights = random(99, *value.shape, low=0.5, high=1.5).to(value)
    gradients = torch.autograd.grad((value * weights).sum(), wanted, allow_unused=True)
    filled = [
        torch.zeros_like(w) if g is None else g for g, w in zip(gradients, wanted, strict=True)
    ]
    return value.detach(), filled


def assert_equals_twin(loss: Loss, twin: Loss, *inputs: Tensor, gradcheck: bool = True) -> None:
    """Values within 1e-9 (float64) and 1e-6 (float32, relative), gradients within 1e-4 (float32).

    ``inputs`` are float64 or bool. All float inputs get a gradient, in the loss and in its twin:
    bind the others with a lambda.
    """
    value, gradients = _value_and_gradients(loss, inputs)
    expected, truth = _value_and_gradients(twin, inputs)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    for got, wanted in zip(gradients, truth, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
    single = [i.float() if i.is_floating_point() else i for i in inputs]
    value, gradients = _value_and_gradients(loss, single)
    assert value.dtype == torch.float32
    assert (value - expected).norm() <= 1e-6 * expected.norm()
    for got, wanted in zip(gradients, truth, strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
    if gradcheck:
        leaves = [i.detach().clone().requires_grad_(i.is_floating_point()) for i in inputs]
        assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def assert_mean_of_images(loss: Loss, *inputs: Tensor, dim: int | Sequence[int] = 0) -> None:
    """The loss of a batch is the mean of the losses of its images.

    So it does not matter over how many processes a batch is spread. ``dim``: where the inputs
    count images, one for all or one for each.
    """
    dims = [dim] * len(inputs) if isinstance(dim, int) else list(dim)
    size = inputs[0].shape[dims[0]]
    assert size > 1
    alone = [
        loss(*(t.narrow(d, i, 1) for t, d in zip(inputs, dims, strict=True))) for i in range(size)
    ]
    torch.testing.assert_close(loss(*inputs), torch.stack(alone).mean(), rtol=1e-9, atol=1e-12)


def assert_zero_without_gradient(loss: Loss, *inputs: Tensor) -> None:
    """Value and all gradients are zero (and so finite), in both precisions."""
    for dtype in (torch.float64, torch.float32):
        cast = [i.to(dtype) if i.is_floating_point() else i for i in inputs]
        value, gradients = _value_and_gradients(loss, cast)
        assert value == 0
        for gradient in gradients:
            assert torch.equal(gradient, torch.zeros_like(gradient))
