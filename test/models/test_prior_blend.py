"""The looked-up depth in the student's output: by what weight, in which mean, whether it counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.prior_fusion import FusionConfig, FusionOutput, Prior, blend_disparity
from depth_prior_ros.models.student import Student


def _prior(count: int = 40, seed: int = 0) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator)
    return Prior(features, torch.rand(count, generator=generator) * 4 + 0.05)


def _student(blend: float = 0.5, stride: int = 8) -> Student:
    torch.manual_seed(2)
    config = FusionConfig(stride=stride, reference_channels=8, width=16, heads=2, blend=blend)
    return Student("hrnet_w18_small", "light", config).eval()


def _image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mean_is_of_log_inverse_depth(weight: float) -> None:
    disparity = torch.rand(1, 1, 8, 12)
    looked_up = torch.full((1, 1, 2, 3), 0.7)
    fused = FusionOutput(torch.zeros(1), looked_up, None, torch.full((1, 1, 2, 3), weight))
    mixed = disparity_to_depth(blend_disparity(disparity, fused))[0].double().numpy()
    own = disparity_to_depth(disparity.double())[0].numpy()
    expected = np.exp((1 - weight) * np.log(own) + weight * np.log(0.7))
    np.testing.assert_allclose(mixed, expected, rtol=1e-4)


def test_it_begins_with_the_weight_of_the_recipe() -> None:
    student, prior = _student(0.3), _prior()
    weight = student(_image(), prior).prior_weight
    assert weight is not None
    torch.testing.assert_close(weight, torch.full_like(weight, 0.3))


@torch.no_grad()
def test_another_depth_in_the_prior_is_another_depth_in_the_output() -> None:
    student, prior = _student(), _prior()
    twice = Prior(prior.features, 2 * prior.inverse_depth)
    before, after = (
        disparity_to_depth(student(_image(), p, scales=(0,)).disparity[0])[0]
        for p in (prior, twice)
    )
    # Weight one half of twice the inverse depth: a factor of sqrt(2) everywhere.
    torch.testing.assert_close(after, before * math.sqrt(2), rtol=1e-3, atol=0)


def test_every_scale_is_mixed_and_the_loss_reaches_the_affinity() -> None:
    student, prior = _student(), _prior()
    student.train()
    output = student(_image(), prior)
    assert set(output.disparity) == set(student.scales)
    output.disparity[2].mean().backward()
    fusion = student.fusion
    assert fusion is not None
    for layer in (fusion.query, fusion.key, fusion.weigh):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_the_runner_mixes_as_the_network_does() -> None:
    student, prior, image = _student(0.4), _prior(), _image()
    inverse, _ = StudentRunner(student, prior)(image)
    expected, _ = disparity_to_depth(student(image, prior, scales=(0,)).disparity[0])
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_range_of_the_disparity_is_that_of_the_bundle() -> None:
    """What is looked up is mixed in as depth, whatever depths the disparity stands for."""
    student, image, limits = _student(0.5), _image(), (1.0, 50.0)
    prior = Prior(_prior().features, _prior().inverse_depth / 20)
    twice = Prior(prior.features, 2 * prior.inverse_depth)
    before, after = (StudentRunner(student, p, *limits)(image)[0] for p in (prior, twice))
    torch.testing.assert_close(after, before * math.sqrt(2), rtol=1e-3, atol=0)
    seen = student(image, prior, scales=(0,), depth_range=limits).disparity[0]
    torch.testing.assert_close(disparity_to_depth(seen, *limits)[0], before)


def test_without_it_there_is_no_weight_and_nothing_is_mixed() -> None:
    student = _student(0.0)
    output = student(_image(), _prior())
    assert output.prior_weight is None
    plain = student(_image())
    # A fresh fusion adds nothing to the features either.
    torch.testing.assert_close(output.disparity[0], plain.disparity[0])


@pytest.mark.parametrize("settings", [{"blend": 1.0}, {"blend": -0.1}])
def test_weights_that_cannot_be_learned_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="blend"):
        FusionConfig(**settings)  # type: ignore[arg-type]


def test_there_must_be_a_depth_to_mix_in() -> None:
    with pytest.raises(ValueError, match="pixel_wise"):
        FusionConfig(blend=0.5, pixel_wise=False)


def test_rows_of_a_prior_are_those_asked_for() -> None:
    prior = _prior()
    some = prior.rows(np.array([7, 3]))
    assert torch.equal(some.features, prior.features[[7, 3]])
    assert torch.equal(some.inverse_depth, prior.inverse_depth[[7, 3]])
