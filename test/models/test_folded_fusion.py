"""The folded fusion equals the paper's textbook form, and holds no matrix of all weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from depth_prior_ros.models.export import FoldedFusion
from depth_prior_ros.models.prior_fusion import (
    FusionConfig,
    Prior,
    PriorFusion,
    attend,
    attend_in_blocks,
)

CHANNELS, SIZE = 12, (5, 7)


class Textbook(nn.Module):
    """RPrDepth's fusion as written: alignment, all biases, explicit softmax, concatenation."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        c, width = config.reference_channels, config.width
        self.config = config
        self.query = nn.Conv2d(CHANNELS, width, 1)
        self.align = nn.Linear(c, width)
        self.reduce = nn.Conv2d(CHANNELS, width, 1)
        self.attention = nn.MultiheadAttention(
            width, config.heads, kdim=c, vdim=c, batch_first=True
        )
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)
        self.log_temperature = nn.Parameter(torch.tensor(0.4))
        self.merge = nn.Conv2d(CHANNELS + c + width + 1, width, 3, padding=1)
        self.out = nn.Conv2d(width, CHANNELS, 3, padding=1)

    def forward(self, features: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
        batch, _, height, width = features.shape
        scale = self.log_temperature.exp() / math.sqrt(self.config.width)
        q = self.query(features).flatten(2).transpose(1, 2)
        scores = q @ self.align(prior.features).T * scale
        affinity = torch.softmax(scores, dim=-1)
        reference = (affinity @ prior.features).transpose(1, 2).unflatten(2, (height, width))
        depth = (affinity @ prior.inverse_depth[:, None]).transpose(1, 2)
        depth = depth.unflatten(2, (height, width))
        queries = self.reduce(features).flatten(2).transpose(1, 2)
        references = prior.features.expand(batch, -1, -1)
        hint, _ = self.attention(queries, references, references)
        hint = hint.transpose(1, 2).unflatten(2, (height, width))
        merged = self.merge(torch.cat([features, reference, hint, depth.log()], 1))
        return features + self.out(torch.relu(merged)), depth


def fold(textbook: Textbook, prior: Prior) -> tuple[PriorFusion, FoldedFusion]:
    """Ours with the textbook's weights.

    Key biases vanish in the softmax; the output projection goes into the convolution behind it. Its
    bias and the values' become a constant of the values, as weights sum up to one. (In the bias of
    the convolution they would be wrong at the border, where its padding has no hint.)
    """
    config, attention = textbook.config, textbook.attention
    c, width = config.reference_channels, config.width
    fusion = PriorFusion(CHANNELS, config).to(textbook.merge.weight)
    output, output_bias = attention.out_proj.weight, attention.out_proj.bias
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    fusion.query.load_state_dict(textbook.query.state_dict())
    fusion.key.weight.copy_(textbook.align.weight)
    fusion.log_temperature.copy_(textbook.log_temperature)
    if attention.in_proj_weight is not None:  # of equal channels, PyTorch keeps them in one
        w_query, w_key, w_value = attention.in_proj_weight.chunk(3)
    else:
        w_query, w_key = attention.q_proj_weight, attention.k_proj_weight
        w_value = attention.v_proj_weight
    reduce = textbook.reduce.weight[:, :, 0, 0]
    fusion.hint_query.weight.copy_((w_query @ reduce)[:, :, None, None])
    fusion.hint_query.bias.copy_(w_query @ textbook.reduce.bias + query_bias)
    fusion.hint_key.weight.copy_(w_key)
    fusion.hint_value.weight.copy_(w_value)
    fusion.merge.load_state_dict(textbook.merge.state_dict())
    part = slice(CHANNELS + c, CHANNELS + c + width)
    seen = torch.einsum("okyx,ki->oiyx", fusion.merge.weight[:, part], output)
    fusion.merge.weight[:, part] = seen
    fusion.out.load_state_dict(textbook.out.state_dict())
    folded = FoldedFusion(fusion, prior)
    constant = value_bias + torch.linalg.solve(output.double(), output_bias.double())
    folded.hint_values += constant.reshape(1, config.heads, 1, -1).to(folded.hint_values)
    return fusion, folded


def _prior(n: int, channels: int) -> Prior:
    return Prior(torch.randn(n, channels).relu(), torch.rand(n) * 5 + 0.01)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.mark.parametrize("channels", [7, 32, 64])
@pytest.mark.parametrize(("width", "heads"), [(16, 1), (64, 4)])
@torch.no_grad()
def test_equals_the_textbook_form(channels: int, width: int, heads: int) -> None:
    torch.manual_seed(0)
    config = FusionConfig(reference_channels=channels, width=width, heads=heads)
    textbook, prior = Textbook(config).eval(), _prior(101, channels)
    features = torch.randn(2, CHANNELS, *SIZE)
    exact = Textbook(config).double().eval()
    exact.load_state_dict(textbook.state_dict())
    wide = Prior(prior.features.double(), prior.inverse_depth.double())
    truth, depth = exact(features.double(), wide)

    found = fold(textbook, prior)[1](features)
    assert _relative(found.features, truth) < 1e-5
    assert _relative(found.inverse_depth, depth) < 1e-5
    found = fold(exact, wide)[1](features.double())
    assert _relative(found.features, truth) < 1e-11
    assert _relative(found.inverse_depth, depth) < 1e-11


@torch.no_grad()
def test_the_constant_matters_at_the_border() -> None:
    torch.manual_seed(0)
    config = FusionConfig(reference_channels=7, width=16)
    textbook, prior = Textbook(config).double(), _prior(30, 7)
    prior = Prior(prior.features.double(), prior.inverse_depth.double())
    fusion, folded = fold(textbook, prior)
    features = torch.randn(1, CHANNELS, *SIZE).double()
    without = FoldedFusion(fusion, prior)(features).features
    assert _relative(without, folded(features).features) > 1e-3


@pytest.mark.parametrize("depth_input", ["log", "inverse", "none"])
@pytest.mark.parametrize("branches", [(True, True), (True, False), (False, True)])
@torch.no_grad()
def test_folded_equals_unfolded(branches: tuple[bool, bool], depth_input: str) -> None:
    torch.manual_seed(1)
    config = FusionConfig(
        temperature=0.5, depth_input=depth_input, pixel_wise=branches[0], depth_hint=branches[1]
    )
    fusion, prior = PriorFusion(CHANNELS, config).eval(), _prior(50, 32)
    nn.init.normal_(fusion.out.weight)
    features = torch.randn(2, CHANNELS, *SIZE)
    expected, found = fusion(features, prior), FoldedFusion(fusion, prior)(features)
    assert _relative(found.features, expected.features) < 1e-6
    assert (found.inverse_depth is None) == (not branches[0])
    if expected.inverse_depth is not None:
        assert _relative(found.inverse_depth, expected.inverse_depth) < 1e-6


class _Largest(TorchDispatchMode):
    """The most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("form", ["training", "f32", "bf16"])
@pytest.mark.parametrize("channels", [32, 64, 7])
def test_no_matrix_of_queries_and_references(form: str, channels: int) -> None:
    torch.manual_seed(2)
    config = FusionConfig(reference_channels=channels)
    fusion, prior = PriorFusion(CHANNELS, config), _prior(2000, channels)
    features = torch.randn(1, CHANNELS, 16, 40, requires_grad=form == "training")
    queries = 16 * 40
    with _Largest() as largest:
        if form == "training":
            fusion(features, prior).features.sum().backward()
        else:
            with torch.no_grad():
                FoldedFusion(fusion, prior, form)(features)
    assert largest.elements < queries * 2000 / 4

    with _Largest() as explicit:  # the test sees what it should
        torch.softmax(torch.randn(queries, 8) @ torch.randn(8, 2000), -1)
    assert explicit.elements == queries * 2000


@torch.no_grad()
def test_bfloat16_is_close_and_gains_by_centred_keys() -> None:
    torch.manual_seed(3)
    fusion, prior = PriorFusion(CHANNELS, FusionConfig(depth_hint=False)).eval(), _prior(400, 32)
    fusion.query.weight.mul_(10)  # peaked, as after training
    far = Prior(prior.features + 20, prior.inverse_depth)
    features = torch.randn(1, CHANNELS, *SIZE)
    expected = fusion(features, far).inverse_depth
    found = FoldedFusion(fusion, far, "bf16")(features)
    assert found.inverse_depth.dtype == found.features.dtype == torch.float32
    assert _relative(found.inverse_depth, expected) < 3e-2
    net = FoldedFusion(fusion, far)
    queries, _ = net.scaled_queries(features)
    bare = attend(queries, net.keys.bfloat16(), net.values.bfloat16())[0, 0, :, 32]
    assert _relative(bare, expected.flatten()) > 2 * _relative(found.inverse_depth, expected)


@torch.no_grad()
def test_scores_beyond_float16_are_computed_in_float32() -> None:
    torch.manual_seed(5)
    fusion, prior = PriorFusion(CHANNELS, FusionConfig(depth_hint=False)).eval(), _prior(400, 32)
    fusion.query.weight.mul_(1e6)
    net, features = FoldedFusion(fusion, prior), torch.randn(1, CHANNELS, *SIZE).half()
    queries, _ = net.scaled_queries(features.float())
    assert (queries @ net.keys.mT).abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        found = net(features)
    expected = net(features.float())
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.inverse_depth, expected.inverse_depth)


@pytest.mark.parametrize("block", [1, 3, 64])
@torch.no_grad()
def test_blocks_change_nothing(block: int) -> None:
    torch.manual_seed(4)
    queries, keys, values = (
        torch.randn(2, 3, 10, 8),
        torch.randn(2, 3, 20, 8),
        torch.randn(2, 3, 20, 8),
    )
    found = attend_in_blocks(queries, keys, values, block)
    assert torch.allclose(found, attend(queries, keys, values), atol=1e-6)


@torch.no_grad()
def test_unknown_precision_is_refused() -> None:
    fusion = PriorFusion(CHANNELS, FusionConfig())
    with pytest.raises(ValueError, match="precision"):
        FoldedFusion(fusion, _prior(5, 32), "int8")
