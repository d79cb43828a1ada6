"""ManyDepth's network: counts, known planes, borders, missing frames, gradients, bundles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import cpu_backends, exporting_once, need_packages_of, tiny_manifest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from depth_prior_ros.backends import make_backend
from depth_prior_ros.bundle import Architecture, Bundle, build_network, load_bundle, save_bundle
from depth_prior_ros.geometry.warping import Pose, backproject, project, warp
from depth_prior_ros.models.manydepth import CostVolumeNet, CostVolumeOutput
from depth_prior_ros.models.matching import (
    Features,
    Lookup,
    MultiFrameNetwork,
    hypothesis_pixels,
    sample_hypotheses,
)
from depth_prior_ros.models.mism import MultiFrameNet, build_multi_frame
from depth_prior_ros.models.resnet import resnet18
from depth_prior_ros.pipeline.runtime import Networks

H, W = 64, 96
K = torch.tensor([[[60.0, 0, 47.5], [0, 60.0, 31.5], [0, 0, 1]]])


def _net(**settings: int) -> CostVolumeNet:
    torch.manual_seed(0)
    return CostVolumeNet((H, W), **settings).eval()


def _ahead(batch: int = 1, step: float = 0.3) -> Pose:
    return Pose.from_axis_angle(
        torch.zeros(batch, 3), torch.tensor([[0.5 * step, 0.1, -step]]).repeat(batch, 1)
    )


def _single(batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 1, H, W), 5.0)


@pytest.mark.slow
def test_published_counts() -> None:
    net = CostVolumeNet((192, 640))
    count = sum(p.numel() for p in net.parameters())
    encoder = sum(p.numel() for part in (net.encoder, net.fusion) for p in part.parameters())
    with FakeTensorMode():
        fake = CostVolumeNet((192, 640)).eval()
        images = torch.empty(2, 3, 192, 640)
        with FlopCounterMode(display=False) as counter:
            current, previous = fake.features(images[:1]), fake.features(images[1:])
            fake(
                current, previous, Pose.identity(), torch.eye(3)[None], torch.empty(1, 1, 192, 640)
            )
    gmac = counter.get_total_flops() / 2e9
    print(f"cost-volume network: {count:,} parameters, {gmac:.3f} GMAC at 640x192")
    assert encoder == pytest.approx(11.27e6, rel=0.001)
    assert count == pytest.approx(14.42e6, rel=0.001)
    # The published network has a 64 to 16 convolution it does not use (0.008 GMAC a frame).
    assert gmac == pytest.approx(10.16, abs=0.03)


def _plane(depth: float, pose: Pose, width: int, height: int, K: torch.Tensor) -> torch.Tensor:
    """The current frame's features for a random previous one, if everything lies at `depth`."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 64, height // 2, width // 2, generator=generator)
    previous = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    points = backproject(torch.full((1, 1, height, width), depth), K)
    moved = pose.transform(points.reshape(1, 3, -1)).reshape(1, 3, height, width)
    pixels, _ = project(moved, K)
    return torch.cat([previous, warp(previous, pixels)])


@pytest.mark.parametrize("index", [10, 40, 70])
def test_a_known_plane_is_found(index: int) -> None:
    net = _net()
    net.range.min_depth.fill_(3.0)
    net.range.max_depth.fill_(8.0)
    depth = float(torch.linspace(3, 8, 96)[index])
    pose = _ahead(step=0.6)
    small = K * torch.tensor([[0.25], [0.25], [1.0]])
    previous, current = _plane(depth, pose, W // 4, H // 4, small).split(1)
    with torch.no_grad():
        output = net.match(
            Features(current, torch.rand(1, 64, H // 2, W // 2)),
            previous,
            pose.matrix,
            K,
            _single(),
        )
    seen = output.confidence > 0
    assert seen.float().mean() > 0.2
    assert (output.best[seen] == index).float().mean() > 0.95
    assert output.lowest_cost[seen].median() == pytest.approx(depth, rel=1e-5)


def _twin_volume(current, previous, depths, K, pose):
    """ManyDepth's volume with loops over pixels and hypotheses, float64."""
    _, _, h, w = current.shape
    cost, seen = np.zeros((len(depths), h, w)), np.zeros((len(depths), h, w), dtype=bool)
    inverse = np.linalg.inv(K)
    for d, depth in enumerate(depths):
        for y in range(2, h - 2):
            for x in range(2, w - 2):
                point = pose[:3, :3] @ (inverse @ [x, y, 1]) * depth + pose[:3, 3]
                u, v, _ = K @ point / point[2]
                if point[2] <= 0 or not (2 <= u <= w - 2 and 2 <= v <= h - 2):
                    continue
                x0, y0 = int(np.floor(u)), int(np.floor(v))
                a, b = u - x0, v - y0
                found = sum(
                    weight * previous[0, :, y0 + j, x0 + i]
                    for j, i, weight in (
                        (0, 0, (1 - a) * (1 - b)),
                        (0, 1, a * (1 - b)),
                        (1, 0, (1 - a) * b),
                        (1, 1, a * b),
                    )
                    if weight > 0
                )
                cost[d, y, x] = np.abs(found - current[0, :, y, x]).mean()
                seen[d, y, x] = True
    return np.where(seen, cost, cost.max(axis=0)), seen.all(axis=0)


def test_the_volume_equals_its_twin() -> None:
    net = _net(hypotheses=20)
    net.range.min_depth.fill_(0.5)
    generator = torch.Generator().manual_seed(1)
    current, previous = torch.rand(2, 1, 64, H // 4, W // 4, generator=generator)
    pose = Pose.from_axis_angle(torch.tensor([[0.02, -0.05, 0.03]]), torch.tensor([[0.2, 0, -0.4]]))
    with torch.no_grad():
        context = torch.rand(1, 64, H // 2, W // 2)
        output = net.match(Features(current, context), previous, pose.matrix, K, _single())
    small = (K * torch.tensor([[0.25], [0.25], [1.0]]))[0].double().numpy()
    depths = np.linspace(0.5, 10, 20)
    cost, confidence = _twin_volume(
        current.double().numpy(),
        previous.double().numpy(),
        depths,
        small,
        pose.matrix[0].double().numpy(),
    )
    assert output.hypotheses[0, :, 3, 3].numpy() == pytest.approx(depths, rel=1e-6)
    assert output.cost[0].numpy() == pytest.approx(cost, abs=1e-5)
    assert (output.confidence[0, 0].numpy() == confidence).all()
    assert 0 < confidence.mean() < 1


@torch.no_grad()
def test_borders_are_not_compared() -> None:
    net = _net(hypotheses=8)
    a, b = (net.features(torch.rand(1, 3, H, W)) for _ in range(2))
    still = Pose.identity()
    output = net(a, b, still, K, _single())
    confidence = output.confidence[0, 0]
    border = torch.ones_like(confidence)
    border[2:-2, 2:-2] = 0
    assert not (confidence * border).any()
    assert confidence[3:-3, 3:-3].all()
    # The fused map sees costs only where it is confident: at the border it is as without a volume.
    assert not output.cost[0, :, 0, 0].any()


@torch.no_grad()
def test_missing_frames() -> None:
    net = _net(hypotheses=16)
    net.range.min_depth.fill_(2.0)
    a, b, c = (net.features(torch.rand(2, 3, H, W)) for _ in range(3))
    pose, both_K = _ahead(2), K.expand(2, 3, 3)
    none = net.match_many(a, [], both_K)
    assert not none.confidence.any()
    assert not none.cost.any()
    missing = Lookup(b.matching, pose, torch.tensor([False, True]))
    output = net.match_many(a, [missing], both_K)
    full = net.match(a, b.matching, pose.matrix, both_K, _single(2))
    assert torch.allclose(output.depth[0], none.depth[0], rtol=1e-5)
    assert torch.allclose(output.depth[1], full.depth[1], rtol=1e-5)
    assert not torch.allclose(full.depth[0], none.depth[0], rtol=1e-5)
    # The average over two lookup frames leaves out the missing one.
    future = Lookup(c.matching, pose.inverse())
    averaged = net.match_many(a, [missing, future], both_K)
    alone = net.match_many(a, [future], both_K)
    assert torch.allclose(averaged.cost[0], alone.cost[0], atol=1e-6)
    assert not torch.allclose(averaged.cost[1], alone.cost[1], atol=1e-3)


@torch.no_grad()
def test_costs_of_two_frames_are_averaged() -> None:
    net = _net(hypotheses=8)
    net.range.min_depth.fill_(3.0)
    a, b, c = (net.features(torch.rand(1, 3, H, W)) for _ in range(3))
    past, future = Lookup(b.matching, _ahead()), Lookup(c.matching, _ahead().inverse())
    both = net.match_many(a, [past, future], K)
    one, other = net.match_many(a, [past], K), net.match_many(a, [future], K)
    seen = (one.confidence * other.confidence) > 0
    assert seen.any()
    mean = (one.cost + other.cost) / 2
    assert torch.allclose(both.cost * seen, mean * seen, atol=1e-6)


def test_gradients_reach_the_current_frame_only() -> None:
    torch.manual_seed(0)
    net = CostVolumeNet((H, W), hypotheses=24).train()
    single = _single(2).requires_grad_()
    matrix = _ahead(2).matrix.clone().requires_grad_()
    images = torch.rand(2, 2, 3, H, W)
    current, previous = net.features(images[0]), net.features(images[1])
    previous.matching.retain_grad()
    output = net.match_many(
        current, [Lookup(previous.matching, Pose(matrix))], K.expand(2, 3, 3), single, (0, 1, 2, 3)
    )
    sum((d * torch.rand_like(d)).mean() for d in output.disparity.values()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []
    assert single.grad is None
    assert matrix.grad is None
    assert previous.matching.grad is None
    assert set(output.depths) == {0, 1, 2, 3}
    assert torch.equal(output.depths[0], output.depth)


def test_the_volume_itself_teaches_the_features_and_recomputing_changes_nothing() -> None:
    """The gradient of the cost, chunk by chunk recomputed, against one computed at once."""
    net = _net(hypotheses=40)
    net.range.min_depth.fill_(2.0)
    generator = torch.Generator().manual_seed(2)
    current, previous = torch.rand(2, 1, 64, H // 4, W // 4, generator=generator)
    current.requires_grad_()
    pose = _ahead()
    weights = torch.rand(1, 40, H // 4, W // 4, generator=generator)
    context = torch.zeros(1, 64, H // 2, W // 2)
    output = net.match(Features(current, context), previous, pose.matrix, K, _single())
    weights = weights * output.confidence
    (found,) = torch.autograd.grad((output.cost * weights).sum(), current)
    small = K * torch.tensor([[0.25], [0.25], [1.0]])
    pixels = hypothesis_pixels(output.hypotheses, small, pose)
    cost = (sample_hypotheses(previous, pixels) - current.unsqueeze(-1)).abs().mean(dim=1)
    (expected,) = torch.autograd.grad((cost.permute(0, 3, 1, 2) * weights).sum(), current)
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_range_follows_the_single_frame_depth_in_training() -> None:
    net = _net()
    assert (net.range.min_depth.item(), net.range.max_depth.item()) == pytest.approx((0.1, 10.0))
    depth = _single(12)
    depth[:, 0, 0, 0] = 30.0
    net.observe(depth, depth)
    assert net.range.max_depth.item() == pytest.approx(10.0)
    net.train().observe(depth, depth)
    assert net.range.max_depth.item() == pytest.approx(9.9 + 0.33, rel=1e-5)
    assert net.range.min_depth.item() == pytest.approx(0.099 + 0.045, rel=1e-5)


def test_float32_depth_under_autocast() -> None:
    net = _net(hypotheses=8).train()
    images = torch.rand(2, 2, 3, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = net.features(images[0]), net.features(images[1])
        output = net(a, b, _ahead(2), K.expand(2, 3, 3), _single(2))
    assert output.depth.dtype == output.cost.dtype == output.confidence.dtype == torch.float32
    assert output.depth.isfinite().all()


def test_shapes_strides_and_interface() -> None:
    net = _net(hypotheses=32)

    def is_teacher(teacher: MultiFrameNetwork) -> MultiFrameNetwork:
        return teacher

    assert is_teacher(net).scales == (0, 1, 2, 3)
    assert is_teacher(MultiFrameNet((H, W))).scales == (0,)
    image = torch.rand(2, 3, H, W)
    with torch.no_grad():
        a, b = net.features(image), net.features(image.flip(0))
        output = net(a, b, _ahead(2), K.expand(2, 3, 3), _single(2))
    assert isinstance(output, CostVolumeOutput)
    shapes = tuple(tuple(t.shape[1:]) for t in a)
    assert shapes == net.feature_shapes() == ((64, H // 4, W // 4), (64, H // 2, W // 2))
    assert output.depth.shape == (2, 1, H, W)
    assert output.depth_quarter.shape == output.confidence.shape == (2, 1, H // 4, W // 4)
    assert output.hypotheses.shape == output.cost.shape == (2, 32, H // 4, W // 4)
    for stride, channels in net.feature_channels.items():
        features = net.features_at(a, output, stride)
        assert features.shape == (2, channels, H // stride, W // stride)
    with pytest.raises(ValueError, match="stride 64"):
        net.features_at(a, output, 64)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        CostVolumeNet((32, 96))
    with pytest.raises(ValueError, match="multiples of 32"):
        CostVolumeNet((70, 96))
    with pytest.raises(ValueError, match="hypotheses"):
        CostVolumeNet((H, W), hypotheses=1)
    with pytest.raises(ValueError, match=r"kind 'cost_volume' has \['hypotheses', 'window'\]"):
        build_multi_frame({"kind": "cost_volume", "size": [H, W], "groups": 16})
    with pytest.raises(ValueError, match="choose one of"):
        build_multi_frame({"kind": "stereo", "size": [H, W]})
    net = _net()
    with pytest.raises(ValueError, match="was built for 96x64"):
        net.features(torch.rand(1, 3, 64, 64))
    features = net.features(torch.rand(1, 3, H, W))
    with pytest.raises(ValueError, match="lack 0"):
        net.match_many(features, [], K, scales=(1,))


def test_image_weights() -> None:
    torch.manual_seed(4)
    state = resnet18().state_dict()
    net = _net()
    net.load_image_weights({**state, "fc.bias": torch.zeros(1000)})
    assert torch.equal(net.encoder.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    with pytest.raises(ValueError, match="starts from scratch"):
        MultiFrameNet((H, W)).load_image_weights(state)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    manifest = tiny_manifest((W, H))
    architecture = Architecture(
        student={"trunk": "hrnet_w18_small", "decoder": "light", "fusion": None},
        multi_frame={"kind": "cost_volume", "hypotheses": 32},
        pose={"variant": "small"},
    )
    manifest = manifest.model_copy(update={"architecture": architecture, "prior": None})
    torch.manual_seed(0)
    nets = {part: build_network(manifest, part) for part in ("student", "multi_frame", "pose")}
    with torch.no_grad():
        nets["multi_frame"].train()  # batch statistics as after training
        for _ in range(5):
            nets["multi_frame"].features(torch.rand(2, 3, H, W))
        nets["multi_frame"].range.min_depth.fill_(3.0)
        nets["multi_frame"].range.max_depth.fill_(7.0)
    return save_bundle(tmp_path_factory.mktemp("cost") / "b", manifest, **nets)


def test_a_bundle_keeps_it(bundle: Bundle) -> None:
    net = load_bundle(bundle.path).multi_frame()
    assert isinstance(net, CostVolumeNet)
    assert net.range.max_depth.item() == 7.0
    assert net.architecture == {
        "kind": "cost_volume",
        "size": [H, W],
        "hypotheses": 32,
        "window": 12,
    }
    assert build_multi_frame(net.architecture).architecture == net.architecture


@pytest.fixture(scope="module")
def files() -> dict[type, bytes]:
    """The bundle's networks as files, for both backends."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in cpu_backends() if name != "torch"])
def test_backends_agree_with_torch(bundle: Bundle, name: str, files: dict[type, bytes]) -> None:
    need_packages_of(name)
    rng = np.random.default_rng(0)
    frames = [rng.random((1, 3, H, W), dtype=np.float32) for _ in range(2)]
    motion = _ahead().matrix[0].double().numpy()
    results = []
    for backend_name in ("torch", name):
        backend = make_backend(backend_name, "cpu", threads=1)
        with exporting_once(files):
            nets = Networks(bundle, backend)
        first, second = (nets.features(backend.to_native(f)) for f in frames)
        inverse, _ = nets.single(backend.to_native(frames[1]))
        outputs = nets.multi(second, first, motion, K[0].double().numpy(), inverse)
        results.append([backend.to_numpy(x) for x in (inverse, *outputs)])
    (inverse, depth, confidence, parallax, matched), other = results
    other_inverse, other_depth, other_confidence, other_parallax, other_matched = other
    np.testing.assert_array_equal(matched, depth)
    np.testing.assert_array_equal(other_matched, other_depth)
    np.testing.assert_allclose(other_parallax, parallax, rtol=1e-3, atol=1e-3)
    assert other_inverse == pytest.approx(inverse, rel=1e-3)
    assert (other_confidence == confidence).mean() > 0.999
    assert 0 < confidence.mean() < 1
    assert np.abs(other_depth / depth - 1).max() < 1e-3
