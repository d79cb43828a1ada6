"""Prior fusion: exact against an explicit softmax, projection, entropy, refusals."""

import math

import pytest
import torch

from depth_prior_ros.models.prior_fusion import FusionConfig, Prior, PriorFusion


def _prior(n: int, channels: int, seed: int = 0) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, channels, generator=generator)
    return Prior(features, torch.rand(n, generator=generator) * 5 + 0.01)


def _fusion(channels: int = 12, **settings) -> PriorFusion:
    torch.manual_seed(1)
    net = PriorFusion(channels, FusionConfig(**settings)).eval()
    with torch.no_grad():
        net.log_temperature.fill_(0.7)
    return net


@pytest.mark.parametrize("reference_channels", [7, 32, 64, 80])
@pytest.mark.parametrize("width", [8, 64])
@torch.no_grad()
def test_padded_attention_equals_explicit_softmax(reference_channels: int, width: int) -> None:
    net = _fusion(reference_channels=reference_channels, width=width)
    prior = _prior(57, reference_channels)
    features = torch.randn(2, 12, 3, 5)
    queries = net.lookup_queries(net.scaled_queries(features)[0])
    reference, inverse_depth = net._pixel_wise(queries, net.project(prior), features.shape[2:])

    weight, bias = net.query.weight[:, :, 0, 0].double(), net.query.bias.double()
    q = torch.einsum("bchw,kc->bhwk", features.double(), weight) + bias
    k = prior.features.double() @ net.key.weight.double().T
    scores = torch.einsum("bhwk,nk->bhwn", q, k) * math.exp(0.7) / math.sqrt(width)
    affinity = torch.softmax(scores, dim=-1)
    expected = torch.einsum("bhwn,nc->bchw", affinity, prior.features.double())
    expected_depth = torch.einsum("bhwn,n->bhw", affinity, prior.inverse_depth.double())[:, None]
    assert torch.allclose(reference.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(inverse_depth.double(), expected_depth, rtol=1e-5, atol=1e-5)

    entropy = net(features, prior, entropy=True).entropy
    explicit = -(affinity * affinity.log()).sum(-1)[:, None] / math.log(57)
    assert torch.allclose(entropy.double(), explicit, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@torch.no_grad()
def test_hint_equals_explicit_multi_head_attention(heads: int) -> None:
    net = _fusion(heads=heads, width=16)
    prior = _prior(33, 32)
    features = torch.randn(2, 12, 3, 5)
    found = net._hint(net.scaled_queries(features)[1], net.project(prior), features.shape[2:])
    q = net.hint_query(features).double()
    k = prior.features.double() @ net.hint_key.weight.double().T
    v = prior.features.double() @ net.hint_value.weight.double().T
    size = 16 // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bchw,nc->bhwn", q[:, part], k[:, part]) / math.sqrt(size)
        expected = torch.einsum("bhwn,nc->bchw", torch.softmax(scores, -1), v[:, part])
        assert torch.allclose(found[:, part].double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_projecting_once_is_the_same() -> None:
    net = _fusion()
    torch.nn.init.normal_(net.out.weight)
    prior, features = _prior(20, 32), torch.randn(1, 12, 4, 4)
    every_time, once = net(features, prior), net(features, net.project(prior))
    assert torch.equal(every_time.features, once.features)
    assert torch.equal(every_time.inverse_depth, once.inverse_depth)


@torch.no_grad()
def test_reference_depth_stays_within_the_prior() -> None:
    net, prior = _fusion(), _prior(20, 32)
    inverse_depth = net(torch.randn(2, 12, 4, 4) * 10, prior).inverse_depth
    assert inverse_depth.min() >= prior.inverse_depth.min() - 1e-5
    assert inverse_depth.max() <= prior.inverse_depth.max() + 1e-5


@torch.no_grad()
def test_order_of_reference_pixels_does_not_matter() -> None:
    net, prior = _fusion(), _prior(20, 32)
    torch.nn.init.normal_(net.out.weight)
    order = torch.randperm(20)
    shuffled = Prior(prior.features[order], prior.inverse_depth[order])
    features = torch.randn(1, 12, 4, 4)
    a, b = net(features, prior).features, net(features, shuffled).features
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("depth_input", "matters"), [("log", True), ("none", False)])
@torch.no_grad()
def test_reference_depth_is_an_input_where_wanted(depth_input: str, matters: bool) -> None:
    net, prior = _fusion(depth_input=depth_input), _prior(20, 32)
    torch.nn.init.normal_(net.out.weight)
    nearer = Prior(prior.features, prior.inverse_depth * 2)
    features = torch.randn(1, 12, 4, 4)
    same = torch.equal(net(features, prior).features, net(features, nearer).features)
    assert same != matters


def test_an_auxiliary_loss_alone_reaches_the_affinity() -> None:
    net, prior = _fusion(depth_input="none"), _prior(20, 32)
    net(torch.randn(1, 12, 4, 4), prior).inverse_depth.mean().backward()
    for parameter in (net.query.weight, net.query.bias, net.key.weight, net.log_temperature):
        assert parameter.grad is not None
        assert parameter.grad.abs().any()


@torch.no_grad()
def test_one_reference_pixel_is_enough() -> None:
    net, prior = _fusion(), _prior(1, 32)
    output = net(torch.randn(1, 12, 2, 2), prior, entropy=True)
    assert torch.allclose(output.inverse_depth, prior.inverse_depth.expand(1, 1, 2, 2))
    assert torch.equal(output.entropy, torch.zeros(1, 1, 2, 2))


@torch.no_grad()
def test_queries_and_keys_give_the_scores_of_both_branches() -> None:
    net, prior = _fusion(temperature=2.0, heads=2, width=16), _prior(33, 32)
    features = torch.randn(2, 12, 3, 5)
    queries, hint_queries = net.scaled_queries(features)
    keys, hint_keys = net.project_keys(prior.features)
    assert queries.shape == (2, 1, 15, 16)
    assert hint_queries.shape == (2, 2, 15, 8)
    assert keys.shape == (1, 33, 16)
    assert hint_keys.shape == (2, 33, 8)
    output = net(features, prior)
    weights = torch.softmax(queries[:, 0] @ keys[0].T, dim=-1)
    depth = (weights @ prior.inverse_depth).reshape(2, 1, 3, 5)
    assert torch.allclose(depth, output.inverse_depth, rtol=1e-5)
    weights = torch.softmax(hint_queries @ hint_keys.transpose(1, 2), dim=-1)
    values = net.hint_value(prior.features).reshape(33, 2, 8).transpose(0, 1)
    hint = (weights @ values).transpose(2, 3).reshape(2, 16, 3, 5)
    found = net._hint(hint_queries, net.project(prior), features.shape[2:])
    assert torch.allclose(hint, found, atol=1e-5)


@pytest.mark.parametrize(("pixel_wise", "depth_hint"), [(True, False), (False, True)])
def test_a_branch_can_be_off(pixel_wise: bool, depth_hint: bool) -> None:
    torch.manual_seed(0)
    net = PriorFusion(12, FusionConfig(pixel_wise=pixel_wise, depth_hint=depth_hint))
    torch.nn.init.normal_(net.out.weight)
    prior, features = _prior(20, 32), torch.randn(1, 12, 4, 4)
    queries, hint_queries = net.scaled_queries(features)
    assert ((queries is not None), (hint_queries is not None)) == (pixel_wise, depth_hint)
    keys, hint_keys = net.project_keys(prior.features)
    assert ((keys is not None), (hint_keys is not None)) == (pixel_wise, depth_hint)
    output = net(features, prior, entropy=True)
    assert (output.inverse_depth is not None) == pixel_wise
    assert (output.entropy is not None) == pixel_wise
    output.features.sum().backward()
    assert all(p.grad is not None and p.grad.abs().any() for p in net.parameters())
    names = {name.split(".")[0] for name, _ in net.named_parameters()}
    assert ("key" in names, "hint_key" in names) == (pixel_wise, depth_hint)
    assert not any(n.startswith("hint" if pixel_wise else "key") for n in net.state_dict())


@torch.no_grad()
def test_temperature_divides_the_scores() -> None:
    features, weights = torch.randn(1, 12, 4, 4), []
    for temperature in (1.0, 4.0):
        torch.manual_seed(1)
        net = PriorFusion(12, FusionConfig(temperature=temperature))
        weights.append(net.scaled_queries(features)[0])
    assert torch.allclose(weights[0], 4 * weights[1])


def test_temperature_stays_where_it_is_not_learned() -> None:
    fixed = PriorFusion(12, FusionConfig(temperature=0.5, learn_temperature=False))
    learned = PriorFusion(12, FusionConfig(temperature=0.5))
    fixed.requires_grad_(True)
    assert "log_temperature" not in dict(fixed.named_parameters())
    assert "log_temperature" in dict(learned.named_parameters())
    fixed.load_state_dict(learned.state_dict())
    assert fixed.log_temperature.item() == pytest.approx(math.log(2))


@torch.no_grad()
def test_alignment_hash_sees_what_reads_the_prior_and_half_precision_only() -> None:
    torch.manual_seed(0)
    net = PriorFusion(12, FusionConfig())
    before = net.alignment_hash()
    assert len(before) == 64
    state = {n: t.half().float() for n, t in net.state_dict().items()}
    again = PriorFusion(12, FusionConfig())
    assert again.alignment_hash() != before
    again.load_state_dict(state)
    assert again.alignment_hash() == before
    for name, parameter in net.named_parameters():
        old = parameter.clone()
        parameter.add_(0.1)
        assert (net.alignment_hash() != before) == (name in PriorFusion.READERS), name
        parameter.copy_(old)
    assert net.alignment_hash() == before


def test_alignment_hash_sees_settings_that_leave_no_trace_in_the_weights() -> None:
    def made(**settings) -> PriorFusion:
        torch.manual_seed(0)
        return PriorFusion(12, FusionConfig(**settings))

    plain = made()
    for settings, counts in (
        ({"heads": 2}, True),
        ({"normalise": True}, True),
        ({"depth_input": "inverse"}, False),  # what is done with what was read
        ({"activation": "elu"}, False),
    ):
        other = made(**settings)
        assert (other.alignment_hash() != plain.alignment_hash()) == counts, settings
        assert other.alignment_hash(layers_only=True) == plain.alignment_hash(layers_only=True)
    alone = {"depth_hint": False}  # no heads there
    assert made(**alone).alignment_hash() == made(**alone, heads=2).alignment_hash()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        FusionConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="stride"):
        FusionConfig(stride=2)
    with pytest.raises(ValueError, match="depth_input"):
        FusionConfig(depth_input="linear")
    with pytest.raises(ValueError, match="temperature"):
        FusionConfig(temperature=0.0)
    with pytest.raises(ValueError, match="neither"):
        FusionConfig(pixel_wise=False, depth_hint=False)
    with pytest.raises(ValueError, match="built for 32"):
        _fusion().project_keys(torch.zeros(5, 31))
    with pytest.raises(ValueError, match="unknown fusion settings"):
        FusionConfig.from_dict({"strides": 16})
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        Prior(torch.zeros(4, 3), torch.zeros(5))
    with pytest.raises(ValueError, match="not"):
        Prior(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="built for 32"):
        _fusion().project(_prior(5, 31))


def test_config_round_trip() -> None:
    config = FusionConfig(stride=8, heads=2, temperature=0.3, depth_hint=False)
    old = {"stride": 16, "reference_channels": 32, "width": 64, "heads": 4, "depth_input": "log"}
    assert FusionConfig.from_dict(old) == FusionConfig()
    assert FusionConfig.from_dict(config.to_dict()) == config


def test_normalised_references_are_not_looked_up_for_their_length() -> None:
    """The length and the mean of a reference's features change nothing, on either way in."""
    torch.manual_seed(0)
    fusion = PriorFusion(24, FusionConfig(reference_channels=8, width=16, normalise=True)).eval()
    torch.nn.init.normal_(fusion.out.weight)
    prior, features = _prior(30, 8), torch.randn(1, 24, 3, 5)
    factor, shift = torch.rand(30, 1) * 9 + 0.5, torch.randn(30, 1)
    scaled = Prior(prior.features * factor + shift, prior.inverse_depth)
    expected, found = (fusion(features, p) for p in (prior, scaled))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-4)
    for mine, other in zip(
        *(fusion.project_keys(p.features) for p in (prior, scaled)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    plain = PriorFusion(24, FusionConfig(reference_channels=8, width=16)).eval()
    plain.load_state_dict(fusion.state_dict())
    assert not torch.allclose(plain(features, prior).features, expected.features)


def test_elu_lets_a_prior_through_where_relu_is_dead() -> None:
    """With a bias far below zero every ReLU is shut, and no gradient opens it again."""
    for activation, alive in (("relu", False), ("elu", True)):
        torch.manual_seed(0)
        config = FusionConfig(reference_channels=8, width=16, activation=activation)
        fusion = PriorFusion(24, config)
        torch.nn.init.normal_(fusion.out.weight)
        torch.nn.init.constant_(fusion.merge.bias, -9.0)
        fusion(torch.randn(1, 24, 3, 5), _prior(30, 8)).features.square().sum().backward()
        assert fusion.merge.weight.grad is not None
        assert bool((fusion.merge.weight.grad != 0).any()) is alive
    with pytest.raises(ValueError, match="relu or elu"):
        FusionConfig(activation="tanh")
