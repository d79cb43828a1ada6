"""The multi-frame network and its PADS map."""

import numpy as np
import pytest
import torch

from depth_prior_ros.geometry import Pose
from depth_prior_ros.models.matching import (
    depth_hypotheses,
    group_correlation,
    warp_to_hypotheses,
)
from depth_prior_ros.models.multi_frame import (
    Features,
    MultiFrameNet,
    MultiFrameOutput,
    build_multi_frame,
)

H, W = 32, 64


def _inputs(batch: int = 2) -> tuple[Pose, torch.Tensor, torch.Tensor]:
    pose = Pose.from_axis_angle(torch.zeros(batch, 3), torch.full((batch, 3), 0.1))
    K = torch.tensor([[[40.0, 0, 31.5], [0, 40.0, 15.5], [0, 0, 1]]]).expand(batch, 3, 3)
    return pose, K, torch.rand(batch, 1, H, W) * 5 + 1


def _run(net: MultiFrameNet, batch: int = 2) -> MultiFrameOutput:
    images = torch.rand(2, batch, 3, H, W)
    return net(net.features(images[0]), net.features(images[1]), *_inputs(batch))


def test_counts() -> None:
    net = MultiFrameNet((H, W))
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in [
            ("features", net.feature_net),
            ("regulariser", net.regulariser),
            ("upsampling", net.mask),
        ]
    }
    total = sum(p.numel() for p in net.parameters())
    print(f"multi-frame network: {total:,} parameters {parts}")
    assert total == pytest.approx(1_380_000, rel=0.005)
    assert parts["features"] == pytest.approx(186_000, rel=0.005)
    assert parts["regulariser"] == pytest.approx(1_170_000, rel=0.005)
    assert parts["upsampling"] == pytest.approx(28_000, rel=0.01)


def test_shapes_and_ranges() -> None:
    torch.manual_seed(0)
    output = _run(MultiFrameNet((H, W)))
    assert output.depth.shape == (2, 1, H, W)
    assert output.depth_quarter.shape == output.confidence.shape == (2, 1, H // 4, W // 4)
    assert output.probability.shape == output.hypotheses.shape == (2, 16, H // 4, W // 4)
    assert torch.allclose(output.probability.sum(1), torch.ones(2, H // 4, W // 4), atol=1e-5)
    assert ((output.confidence >= 0) & (output.confidence <= 1 + 1e-6)).all()
    low, high = output.hypotheses.amin(1, True), output.hypotheses.amax(1, True)
    assert ((output.depth_quarter >= low - 1e-4) & (output.depth_quarter <= high + 1e-4)).all()
    # The single-frame depth lies within the hypotheses of its pixel.
    assert (low > 0).all()


def test_every_parameter_learns_and_inputs_from_other_networks_do_not() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W))
    pose, K, single = _inputs()
    single.requires_grad_()
    matrix = pose.matrix.clone().requires_grad_()
    images = torch.rand(2, 2, 3, H, W)
    output = net(net.features(images[0]), net.features(images[1]), Pose(matrix), K, single)
    (output.depth * torch.rand_like(output.depth)).mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []
    assert single.grad is None
    assert matrix.grad is None


def test_the_previous_frame_matters() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    pose, K, single = _inputs(1)
    with torch.no_grad():
        a, b, c = (net.features(torch.rand(1, 3, H, W)) for _ in range(3))
        assert not torch.equal(net(a, b, pose, K, single).depth, net(a, c, pose, K, single).depth)
        swapped = Features(b.matching, c.context)
        assert torch.equal(net(a, b, pose, K, single).depth, net(a, swapped, pose, K, single).depth)


@torch.no_grad()
def test_the_volume_is_sampled_with_quarter_intrinsics_and_depth() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    net.delta.uniform_(0.1, 2)
    a, b = net.features(torch.rand(2, 3, H, W)), net.features(torch.rand(2, 3, H, W))
    pose, K, single = _inputs()
    small = K * torch.tensor([[0.25], [0.25], [1.0]])
    hypotheses = depth_hypotheses(single[..., ::4, ::4], net.delta, 16)
    warped = warp_to_hypotheses(b.matching, hypotheses, small, pose)
    logits = net.regulariser(group_correlation(a.matching, warped, 16))
    output = net(a, b, pose, K, single)
    assert torch.allclose(output.hypotheses, hypotheses)
    assert torch.allclose(output.probability, torch.softmax(logits, dim=1), atol=1e-6)


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W))
    with torch.autocast("cpu", torch.bfloat16):
        output = _run(net)
    assert all(tensor.dtype == torch.float32 for tensor in output)
    assert output.depth.isfinite().all()


def _twin_delta(delta, multi, single):
    """PADS update in float64 numpy; bilinear reduction by four averages the four middle pixels."""
    b, _, h, w = multi.shape
    middle = multi.reshape(b, h // 4, 4, w // 4, 4)[:, :, 1:3, :, 1:3].mean(axis=(2, 4))
    picked = single[:, 0, ::4, ::4]
    ratio = np.maximum(middle / picked, picked / middle).max(axis=0)
    return np.clip(0.99 * delta + 0.01 * 1.2 * (ratio - 1), 0.05, 4.0)


def test_delta_follows_its_float64_twin() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).train()
    twin = np.ones((H // 4, W // 4))
    for _ in range(20):
        multi, single = torch.rand(3, 1, H, W) * 20 + 0.5, torch.rand(3, 1, H, W) * 20 + 0.5
        net.update_delta(multi, single)
        twin = _twin_delta(twin, multi.double().numpy(), single.double().numpy())
    assert net.delta[0, 0].numpy() == pytest.approx(twin, rel=1e-5)
    assert abs(twin - 1).max() > 0.05, "the map did not move"


def test_delta_is_clipped_and_survives_bad_depth() -> None:
    net = MultiFrameNet((H, W)).train()
    one = torch.ones(1, 1, H, W)
    for _ in range(400):
        net.update_delta(one, one)
    assert torch.allclose(net.delta, torch.full_like(net.delta, 0.05))
    net.update_delta(one * 1e6, one)
    assert torch.equal(net.delta, torch.full_like(net.delta, 4.0))
    bad = one.clone()
    bad[..., :4, :4] = float("nan")
    net.update_delta(bad, one)
    assert net.delta.isfinite().all()
    assert net.delta[0, 0, 0, 0] == 4.0
    assert (net.delta[0, 0, 1:, 1:] < 4.0).all()


def test_delta_rests_in_eval_mode_and_is_saved() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    multi, single = torch.rand(1, 1, H, W) + 1, torch.rand(1, 1, H, W) + 5
    net.update_delta(multi, single)
    assert torch.equal(net.delta, torch.ones_like(net.delta))
    net.train().update_delta(multi, single)
    assert not torch.equal(net.delta, torch.ones_like(net.delta))
    assert not net.delta.requires_grad
    other = MultiFrameNet((H, W))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.delta, net.delta)
    assert "delta" in net.state_dict()


def test_delta_steers_the_hypotheses() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    with torch.no_grad():
        net.delta.fill_(0.05)
        output = _run(net)
    spread = output.hypotheses[:, :1] / output.hypotheses[:, -1:]
    assert torch.allclose(spread, torch.full_like(spread, 1.05**2), rtol=1e-4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        MultiFrameNet((33, 64))
    with pytest.raises(ValueError, match="groups"):
        MultiFrameNet((H, W), groups=5)
    with pytest.raises(ValueError, match="hypotheses"):
        MultiFrameNet((H, W), hypotheses=12)
    net = MultiFrameNet((H, W)).eval()
    with pytest.raises(ValueError, match="was built for 64x32"):
        net.features(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="multiples of 32"):
        net.features(torch.rand(1, 3, 30, 64))
    with pytest.raises(ValueError, match="input size"):
        build_multi_frame({"groups": 16})
    with pytest.raises(ValueError, match="unknown multi-frame settings"):
        build_multi_frame({"size": [32, 32], "bins": 3})


def test_built_from_its_own_description_and_by_seed() -> None:
    torch.manual_seed(2)
    net = MultiFrameNet((H, W), hypotheses=8, groups=8)
    torch.manual_seed(2)
    again = build_multi_frame(net.architecture)
    assert again.architecture == net.architecture
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
