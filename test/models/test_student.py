"""The student: counts, bit equality with a fresh fusion, refusals."""

import functools

import pytest
import torch
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.models.decoder import DECODERS
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import Student, build_student
from depth_prior_ros.models.trunk import TRUNKS

# Of `bundles/lite`: means of disparity, reference inverse depth, entropy.
BEFORE = [0.16194981167670144, 0.963772269586722, 0.510985498277781]


def _count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _prior(n: int = 40, seed: int = 1) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 32, generator=generator)
    return Prior(features, torch.rand(n, generator=generator) + 0.05)


def test_the_full_student_has_the_measured_count() -> None:
    count = _count(Student("hrnet_w18", "diffnet"))
    print(f"DIFFNet-W18 student without fusion: {count:,} parameters")
    assert count == 10_869_100


def test_lite_student_is_small() -> None:
    plain = _count(Student("hrnet_w18_small", "light"))
    fused = _count(Student("hrnet_w18_small", "light", FusionConfig()))
    print(f"lite student: {plain:,} parameters, {fused:,} with prior fusion")
    assert plain < 2_100_000
    assert fused < 2_300_000


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [8, 16])
def test_fresh_fusion_changes_no_bit(training: bool, stride: int) -> None:
    torch.manual_seed(5)
    plain = Student("hrnet_w18_small", "light").train(training)
    torch.manual_seed(5)
    fused = Student("hrnet_w18_small", "light", FusionConfig(stride=stride)).train(training)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected, found = plain(image), fused(image, _prior())
    for scale, disparity in expected.disparity.items():
        assert torch.equal(found.disparity[scale], disparity), scale
    assert found.prior_inverse_depth is not None


def test_fresh_fusion_changes_no_bit_of_the_full_student() -> None:
    torch.manual_seed(6)
    plain = Student("hrnet_w18", "diffnet").eval()
    fused = Student("hrnet_w18", "diffnet", FusionConfig()).eval()
    fused.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(image).disparity[0], fused(image, _prior()).disparity[0])


def test_without_a_prior_a_fused_student_is_the_plain_one() -> None:
    torch.manual_seed(7)
    fused = Student("hrnet_w18_small", "light", FusionConfig()).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        output = fused(image)
        assert torch.equal(output.disparity[0], fused(image, _prior()).disparity[0])
    assert output.prior_inverse_depth is None
    assert output.entropy is None


@pytest.mark.slow
def test_fusion_learns_and_then_the_prior_matters() -> None:
    torch.manual_seed(8)
    net = Student("hrnet_w18_small", "light", FusionConfig(activation="elu"))  # ReLU may die
    image, target = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

    def backward() -> None:
        optimiser.zero_grad()
        ((net(image, _prior()).disparity[0] - target) ** 2).mean().backward()

    for _ in range(4):
        backward()
        optimiser.step()
    backward()
    assert net.fusion is not None
    silent = [
        n for n, p in net.fusion.named_parameters() if p.grad is None or not p.grad.abs().any()
    ]
    assert silent == []
    net.eval()
    with torch.no_grad():
        one, other = net(image, _prior()), net(image, _prior(seed=2))
    assert not torch.equal(one.disparity[0], other.disparity[0])
    assert (one.disparity[0] - other.disparity[0]).abs().max() > 1e-6


def test_channels_last_and_bfloat16_keep_the_result_close() -> None:
    torch.manual_seed(9)
    net = Student("hrnet_w18_small", "light", FusionConfig()).train()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(image, _prior()).disparity[0]
        net = net.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(image, _prior()).disparity
    assert all(d.dtype == torch.float32 for d in found.values())
    assert (found[0] - expected).abs().mean() < 0.05 * expected.mean()


@functools.cache
def _strides(trunk: str) -> frozenset[int]:
    return frozenset(TRUNKS[trunk]().channels)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize(
    ("trunk", "decoder"), [(t, d) for t in sorted(set(TRUNKS) - {TINY_TRUNK}) for d in DECODERS]
)
def test_every_stride_works_with_every_trunk_and_decoder(
    trunk: str, decoder: str, stride: int
) -> None:
    torch.manual_seed(10)
    config = FusionConfig(stride=stride, width=16, heads=2)
    if stride not in _strides(trunk):
        with pytest.raises(ValueError, match=f"no features at stride {stride}"):
            Student(trunk, decoder, config)
        return
    net = Student(trunk, decoder, config).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = net.fusion_features(image)
        assert features.shape == (1, sum(net.trunk.channels[stride]), 64 // stride, 64 // stride)
        plain = net(image, scales=(0,)).disparity[0]
        assert torch.equal(net(image, _prior(), scales=(0,)).disparity[0], plain)
    net.requires_grad_(False)
    torch.nn.init.normal_(net.fusion.out.weight, std=0.05).requires_grad_(True)
    # Without batch statistics random deep networks saturate; a gradient says that it arrives.
    net.train()(image.repeat(2, 1, 1, 1), _prior(), scales=(0,)).disparity[0].sum().backward()
    net.eval()
    assert net.fusion.out.weight.grad.abs().max() > 0
    with torch.no_grad():
        folded = StudentRunner(net, _prior())(image)[0]
        output = net(image, _prior(), scales=(0,))
    assert output.prior_inverse_depth.shape == (1, 1, 64 // stride, 64 // stride)
    assert torch.allclose(folded, 0.01 + 9.99 * output.disparity[0], rtol=1e-4)


def test_a_bundle_from_before_gives_the_same() -> None:
    """Means of the shipped student's output as they were when it was shipped."""
    net, prior = load_bundle("lite").student(), load_bundle("lite").prior()
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    image = torch.stack([y, x, (6 * x * y).sin().abs()])[None]
    with torch.no_grad():
        output = net(image, prior, entropy=True)
    found = [
        float(t.double().mean())
        for t in (output.disparity[0], output.prior_inverse_depth, output.entropy)
    ]
    assert found == pytest.approx(BEFORE, rel=1e-6)


def test_reproducible_by_seed() -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(11)
        net = Student("hrnet_w18_small", "light", FusionConfig()).eval()
        with torch.no_grad():
            outputs.append(net(torch.rand(1, 3, 32, 32), _prior()).disparity[0])
    assert torch.equal(*outputs)


def test_refusals() -> None:
    plain = Student("hrnet_w18_small", "light").eval()
    with pytest.raises(ValueError, match="no prior fusion"):
        plain(torch.rand(1, 3, 32, 32), _prior())
    with pytest.raises(ValueError, match="no prior fusion"):
        plain.fusion_features(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="multiples of 32"):
        plain(torch.rand(1, 3, 48, 32))
    with pytest.raises(ValueError, match="unknown decoder"):
        Student("hrnet_w18", "heavy")
    with pytest.raises(ValueError, match="unknown student settings"):
        build_student({"trunk": "hrnet_w18", "depth": 3})


def test_built_from_its_own_description() -> None:
    net = Student("hrnet_w18_small", "light", FusionConfig(heads=2))
    again = build_student(net.architecture)
    assert again.architecture == net.architecture
    again.load_state_dict(net.state_dict())
