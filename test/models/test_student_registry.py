"""Every trunk with every decoder: published counts, scales, gradients, image weights."""

from __future__ import annotations

import pytest
import torch
from tiny_trunk import TINY_TRUNK
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from depth_prior_ros.models.decoder import (
    DECODERS,
    ConvBlock,
    Monodepth2Decoder,
    RADepthDecoder,
    _Lift,
)
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.resnet import ResNet18, normalise_image, resnet18
from depth_prior_ros.models.student import Student, build_student
from depth_prior_ros.models.trunk import TRUNKS, recognise

SMALL = "hrnet_w18_small"
OTHER = {2: [8], 4: [8, 4], 8: [6], 16: [10, 10, 2], 32: [12]}


def _count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _gmac(trunk: str, decoder: str, width: int = 640, height: int = 192) -> float:
    with FakeTensorMode():  # counts without computing
        net = Student(trunk, decoder).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, height, width))
    return counter.get_total_flops() / 2e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "decoder", "parameters", "gmac"),
    [
        ("hrnet_w18", "diffnet", 10_869_100, 11.84),
        ("hrnet_w18", "ra_depth", 9_978_849, 10.66),
        ("resnet18", "monodepth2", 14_329_236, 8.01),
    ],
)
def test_the_published_counts(trunk: str, decoder: str, parameters: int, gmac: float) -> None:
    count, found = _count(Student(trunk, decoder)), _gmac(trunk, decoder)
    print(f"{trunk} + {decoder}: {count:,} parameters, {found:.3f} GMAC at 640x192")
    assert count == parameters
    # RA-Depth's 1x1 convolutions run before the upsampling here: 0.097 GMAC less, same values.
    saved = 0.0965 if decoder == "ra_depth" else 0.0
    assert found + saved == pytest.approx(gmac, abs=0.005)


@pytest.mark.slow
def test_the_high_resolution_count() -> None:
    assert _gmac("resnet18", "monodepth2", 1024, 320) == pytest.approx(21.37, abs=0.02)


@pytest.mark.parametrize("trunk", sorted(set(TRUNKS) - {TINY_TRUNK}))
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_any_trunk_with_any_decoder(trunk: str, decoder: str) -> None:
    torch.manual_seed(0)
    net = build_student({"trunk": trunk, "decoder": decoder, "far_bias": -4.0}).eval()
    with torch.no_grad():
        output = net(torch.rand(1, 3, 64, 96)).disparity
    expected = (0,) if decoder == "ra_depth" else (0, 1, 2, 3)
    assert net.scales == tuple(output) == expected
    for scale, disparity in output.items():
        assert disparity.shape == (1, 1, 64 // 2**scale, 96 // 2**scale)
        assert disparity.dtype == torch.float32
        assert ((disparity >= 0) & (disparity <= 1)).all()
    assert all(float(head.conv.bias.detach()) == -4.0 for head in net.decoder.heads)
    again = build_student(net.architecture)
    again.load_state_dict(net.state_dict())


@pytest.mark.parametrize(("trunk", "decoder"), [("resnet18", "monodepth2"), (SMALL, "ra_depth")])
def test_every_parameter_gets_gradient(trunk: str, decoder: str) -> None:
    torch.manual_seed(0)
    net = Student(trunk, decoder)
    output = net(torch.rand(2, 3, 64, 64)).disparity
    sum((d * torch.rand_like(d)).mean() for d in output.values()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []


def test_scales_that_a_decoder_lacks_are_refused() -> None:
    net = Student(SMALL, "ra_depth").eval()
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"scales \[1, 3\] were asked for: this decoder has \[0\]"):
        net(image, scales=(0, 1, 3))
    with pytest.raises(ValueError, match="scales"):
        Student(SMALL, "light").eval()(image, scales=(4,))


@pytest.mark.parametrize("decoder", ["ra_depth", "monodepth2"])
def test_an_image_too_small_for_reflection_is_refused(decoder: str) -> None:
    with pytest.raises(ValueError, match="at least 64"):
        Student(SMALL, decoder).eval()(torch.rand(1, 3, 32, 64))


@pytest.mark.parametrize("decoder", [Monodepth2Decoder, RADepthDecoder])
def test_decoders_take_any_trunk_and_refuse_other_features(decoder) -> None:
    net = decoder(OTHER)
    features = {s: [torch.rand(2, c, 64 // s, 96 // s) for c in cs] for s, cs in OTHER.items()}
    assert net(features)[0].shape == (2, 1, 64, 96)
    assert torch.equal(net(features, (0,))[0], net(features)[0])
    with pytest.raises(ValueError, match="built for"):
        net({**features, 8: [torch.rand(2, 7, 8, 12)]})
    with pytest.raises(ValueError, match="strides"):
        decoder({2: [8], 4: [8], 8: [8]})


def test_lifting_commutes_with_upsampling() -> None:
    torch.manual_seed(0)
    lift, x = _Lift(5, 3, 2), torch.rand(1, 5, 4, 6)
    up = torch.nn.functional.interpolate(x, scale_factor=4.0, mode="nearest")
    late = torch.nn.functional.elu(lift.conv(up))
    assert torch.allclose(lift(x), late, atol=1e-6)


def test_monodepth2_decoder_against_its_description() -> None:
    """Level 0 written out by hand: reduce, upsample, merge without a skip."""
    torch.manual_seed(0)
    net = Monodepth2Decoder(OTHER)
    features = {s: [torch.rand(1, c, 64 // s, 96 // s) for c in cs] for s, cs in OTHER.items()}
    maps = net._maps(features)
    assert [maps[scale].shape[1] for scale in range(4)] == [16, 32, 64, 128]
    blocks = [m for m in net.modules() if isinstance(m, ConvBlock)]
    assert [(b.conv.in_channels, b.conv.out_channels) for b in blocks] == [
        (12, 256),
        (256 + 22, 256),
        (256, 128),
        (128 + 6, 128),
        (128, 64),
        (64 + 12, 64),
        (64, 32),
        (32 + 8, 32),
        (32, 16),
        (16, 16),
    ]
    pad, conv = torch.nn.functional.pad, torch.nn.functional.conv2d

    def block(x: torch.Tensor, module: ConvBlock) -> torch.Tensor:
        padded = pad(x, (1, 1, 1, 1), mode="reflect")
        return torch.nn.functional.elu(conv(padded, module.conv.weight, module.conv.bias))

    reduced = block(maps[1], blocks[-2]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(block(reduced, blocks[-1]), maps[0], atol=1e-6)


def test_resnet18_trunk_is_timms() -> None:
    net = resnet18()
    state = net.state_dict()
    print(f"ResNet-18 trunk: {_count(net):,} parameters, {len(state)} state-dict keys")
    assert _count(net) == 11_176_512
    assert len(state) == 120  # timm's resnet18 has 122, two of them the classifier's
    assert {name.split(".")[0] for name in state} == {"conv1", "bn1"} | {
        f"layer{i}" for i in (1, 2, 3, 4)
    }
    assert tuple(state["layer2.0.downsample.0.weight"].shape) == (128, 64, 1, 1)
    assert tuple(state["layer4.1.bn2.running_var"].shape) == (512,)
    features = net.eval()(torch.rand(1, 3, 64, 96))
    shapes = {s: [tuple(t.shape[1:]) for t in ts] for s, ts in features.items()}
    assert shapes == {
        2: [(64, 32, 48)],
        4: [(64, 16, 24)],
        8: [(128, 8, 12)],
        16: [(256, 4, 6)],
        32: [(512, 2, 3)],
    }


def test_only_the_resnet_normalises_its_image() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32)
    resnet, hrnet = resnet18().eval(), TRUNKS[SMALL]().eval()
    with torch.no_grad():
        expected = resnet.relu(resnet.bn1(resnet.conv1((image - 0.45) / 0.225)))
        assert torch.allclose(resnet(image)[2][0], expected, atol=1e-5)
        plain = hrnet.relu(hrnet.bn1(hrnet.conv1(image)))
        assert torch.allclose(hrnet(image)[2][0], plain, atol=1e-6)
    assert normalise_image(torch.tensor(0.45)) == 0


@pytest.mark.parametrize("decoder", ["ra_depth", "monodepth2"])
def test_prior_fusion_works_with_all_decoders(decoder: str) -> None:
    torch.manual_seed(0)
    net = Student("resnet18", decoder, FusionConfig()).eval()
    image = torch.rand(1, 3, 64, 64)
    prior = Prior(torch.randn(20, 32), torch.rand(20) + 0.05)
    with torch.no_grad():
        plain = net(image).disparity[0]
        assert torch.equal(plain, net(image, prior).disparity[0])
        assert net.fusion is not None
        torch.nn.init.normal_(net.fusion.out.weight, std=0.05)
        assert not torch.allclose(plain, net(image, prior).disparity[0], atol=1e-6)


@pytest.mark.parametrize("trunk", sorted(set(TRUNKS) - {TINY_TRUNK}))
def test_image_weights_load_into_the_trunk_alone(trunk: str) -> None:
    torch.manual_seed(0)
    source = TRUNKS[trunk]().state_dict()
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t for name, t in source.items()
    }
    classifier = "fc.weight" if trunk == "resnet18" else "classifier.weight"
    net = Student(trunk, "light")
    before = {k: v.clone() for k, v in net.decoder.state_dict().items()}
    net.load_image_weights({**state, classifier: torch.zeros(1000, 5)})
    assert all(torch.equal(v, state[k]) for k, v in net.trunk.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in net.decoder.state_dict().items())


def test_weights_that_do_not_fit_are_explained_and_change_nothing() -> None:
    net = Student(SMALL, "light")
    before = {k: v.clone() for k, v in net.trunk.state_dict().items()}
    with pytest.raises(ValueError, match=r"1404 unexpected \(layer1.*seem to be of hrnet_w18$"):
        net.load_image_weights(TRUNKS["hrnet_w18"]().state_dict())
    with pytest.raises(ValueError, match=r"do not fit hrnet_w18_small.*seem to be of resnet18"):
        net.load_image_weights(resnet18().state_dict())
    state = dict(before)
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    state["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unexpected \(extra\).*1 misshapen \(conv1.weight has"):
        net.load_image_weights(state)
    assert all(torch.equal(v, before[k]) for k, v in net.trunk.state_dict().items())


def test_networks_are_recognised() -> None:
    for name, build in TRUNKS.items():
        # The two paddings of MobileNetV2 have the same tensors.
        assert recognise(build().state_dict()) == name.removesuffix("_symmetric")
    assert "empty" in recognise({})
    assert "unknown here (its first tensors are a" in recognise({"a": torch.zeros(1)})


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="resnet18"):
        Student("resnet50")
    with pytest.raises(ValueError, match="ra_depth"):
        Student(SMALL, "heavy")
    assert isinstance(Student("resnet18", "light").trunk, ResNet18)
