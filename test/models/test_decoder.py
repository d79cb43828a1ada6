"""Decoders: counts, shapes, the far start, precision."""

import pytest
import torch

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.decoder import (
    ChannelAttention,
    DiffNetDecoder,
    DisparityHead,
    LightDecoder,
)
from depth_prior_ros.models.hrnet import hrnet_w18, hrnet_w18_small

W18 = {2: [64], 4: [64, 18, 18, 18], 8: [36, 36, 36], 16: [72, 72], 32: [144]}
OTHER = {2: [8], 4: [8, 4], 8: [6], 16: [10, 10, 2], 32: [12]}


def _features(channels: dict[int, list[int]]) -> dict[int, list[torch.Tensor]]:
    return {s: [torch.rand(2, c, 64 // s, 96 // s) for c in cs] for s, cs in channels.items()}


def test_diffnet_decoder_has_the_measured_count() -> None:
    count = sum(p.numel() for p in DiffNetDecoder(W18).parameters())
    print(f"DIFFNet decoder: {count:,} parameters")
    assert count == 1_306_840


def test_light_decoder_is_lighter() -> None:
    channels = hrnet_w18_small().channels
    light = sum(p.numel() for p in LightDecoder(channels).parameters())
    full = sum(p.numel() for p in DiffNetDecoder(channels).parameters())
    print(f"light decoder on hrnet_w18_small: {light:,} parameters (DIFFNet's: {full:,})")
    assert light < full / 2


@pytest.mark.parametrize("decoder", [DiffNetDecoder, LightDecoder])
@pytest.mark.parametrize("channels", [W18, OTHER])
def test_decoders_take_any_trunk_and_give_four_scales(decoder, channels) -> None:
    net = decoder(channels)
    output = net(_features(channels))
    shapes = {scale: tuple(d.shape) for scale, d in output.items()}
    assert shapes == {s: (2, 1, 64 // 2**s, 96 // 2**s) for s in range(4)}
    for disparity in output.values():
        assert ((disparity > 0) & (disparity < 1)).all()


@pytest.mark.parametrize("decoder", [DiffNetDecoder, LightDecoder])
def test_one_scale_alone_is_the_same(decoder) -> None:
    net = decoder(OTHER).eval()
    features = _features(OTHER)
    alone = net(features, scales=(0,))
    assert list(alone) == [0]
    assert torch.equal(alone[0], net(features)[0])


@pytest.mark.parametrize("decoder", [DiffNetDecoder, LightDecoder])
def test_every_parameter_gets_gradient(decoder) -> None:
    torch.manual_seed(0)
    net = decoder(W18)
    sum(d.mean() for d in net(_features(W18)).values()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []


@pytest.mark.parametrize("decoder", [DiffNetDecoder, LightDecoder])
def test_the_start_is_far_away(decoder) -> None:
    torch.manual_seed(0)
    trunk = hrnet_w18()
    with torch.no_grad():
        disparity = decoder(trunk.channels)(trunk(torch.rand(2, 3, 64, 96)))[0]
    _, depth = disparity_to_depth(disparity)
    assert 1.0 < depth.median() < 4.0
    biased = decoder(trunk.channels, far_bias=-6.0)
    assert all(float(head.conv.bias.detach()) == -6.0 for head in biased.heads)


def test_heads_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = DisparityHead(8)
    x = torch.rand(1, 8, 8, 8).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = head(x)
    assert reduced.dtype == torch.float32
    assert torch.equal(reduced, head(x.float()))


def test_other_features_are_refused() -> None:
    net = LightDecoder(OTHER)
    with pytest.raises(ValueError, match="built for"):
        net(_features(W18))
    with pytest.raises(ValueError, match="strides"):
        LightDecoder({2: [8], 4: [8], 8: [8]})


def test_channel_attention_weighs_channels_only() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 32, 6, 5) + 0.1
    ratio = ChannelAttention(32)(x) / x
    expected = ratio[:, :, :1, :1].expand_as(ratio)
    assert torch.allclose(ratio, expected, rtol=1e-5)
    assert ((ratio > 0) & (ratio < 1)).all()
