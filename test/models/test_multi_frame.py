"""The multi-frame network and its PADS map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.matching import (
    PARALLAX,
    Features,
    Lookup,
    TrackedRange,
    blend_depth,
    depth_hypotheses,
    group_correlation,
    hypothesis_pixels,
    local_max_regression,
    parallax_weight,
    sample_hypotheses,
)
from depth_prior_ros.models.mism import (
    MultiFrameNet,
    MultiFrameOutput,
    Regulariser,
    build_multi_frame,
)
from depth_prior_ros.pipeline import results

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
    warped = sample_hypotheses(b.matching, hypothesis_pixels(hypotheses, small, pose))
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


@pytest.mark.parametrize("hypotheses", [8, 16])
def test_the_regulariser_under_autocast_is_that_of_float32(hypotheses: int) -> None:
    """Eight hypotheses end in one: a case that PyTorch gets wrong in bfloat16 on some CPUs."""
    torch.manual_seed(0)
    regulariser = Regulariser(8).eval()
    cost = torch.randn(2, 8, 16, 48, hypotheses, requires_grad=True)
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = regulariser(cost)
        wanted = (cost, *regulariser.parameters())
        found.append([logits, *torch.autograd.grad(logits.float().square().sum(), wanted)])
    for exact, rounded in zip(*found, strict=True):
        assert (rounded - exact).norm() < 0.2 * exact.norm()


def _images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.rand(2, count, 1, H, W, generator=generator) * 20 + 0.5
    return both[0], both[1]


def _twin_delta(delta, multi, single):
    """PADS update in float64 numpy; bilinear reduction by four averages the four middle pixels."""
    b, _, h, w = multi.shape
    middle = multi.reshape(b, h // 4, 4, w // 4, 4)[:, :, 1:3, :, 1:3].mean(axis=(2, 4))
    picked = single[:, 0, ::4, ::4]
    ratio = np.maximum(middle / picked, picked / middle).max(axis=0)
    return np.clip(0.99 * delta + 0.01 * 1.2 * (ratio - 1), 0.05, 4.0)


@pytest.mark.parametrize("hypotheses", [8, 16, 24])
def test_the_logits_are_those_of_their_3d_convolution(hypotheses: int) -> None:
    torch.manual_seed(3)
    regulariser = Regulariser(4).double().eval()
    cost = torch.randn(2, 4, 8, 16, hypotheses, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    handle = regulariser.up1.register_forward_hook(lambda *call: seen.append(call[-1]))
    found = regulariser(cost)
    handle.remove()
    x = seen[0] + regulariser.conv0(cost)
    expected = regulariser.logits(x).squeeze(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = regulariser.logits.weight
    ways = [
        torch.autograd.grad(y.square().sum(), weight, retain_graph=True) for y in (found, expected)
    ]
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)


def test_delta_follows_its_float64_twin() -> None:
    net = MultiFrameNet((H, W)).train()
    twin = np.ones((H // 4, W // 4))
    for step in range(20):
        multi, single = _images(12, step)  # the papers' batch: one step of delta each
        net.update_delta(multi, single)
        twin = _twin_delta(twin, multi.double().numpy(), single.double().numpy())
    assert net.delta[0, 0].numpy() == pytest.approx(twin, rel=1e-5)
    assert abs(twin - 1).max() > 0.05, "the map did not move"


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 16, 60])
def test_delta_does_not_depend_on_the_batch(batch: int) -> None:
    multi, single = _images(60)
    whole, parts = MultiFrameNet((H, W)).train(), MultiFrameNet((H, W)).train()
    for start in range(0, 60, 12):
        whole.update_delta(multi[start : start + 12], single[start : start + 12])
    for start in range(0, 60, batch):
        parts.update_delta(multi[start : start + batch], single[start : start + batch])
    assert torch.equal(parts.delta, whole.delta)
    assert parts.window_seen == whole.window_seen == 0
    assert abs(whole.delta - 1).max() > 0.01


def test_delta_does_not_depend_on_the_number_of_processes() -> None:
    """Two processes with three images each against one with six."""
    multi, single = _images(24)
    alone = MultiFrameNet((H, W)).train()
    pair = [MultiFrameNet((H, W)).train() for _ in range(2)]
    for start in range(0, 24, 6):
        alone.update_delta(multi[start : start + 6], single[start : start + 6])
        shards = [slice(start, start + 3), slice(start + 3, start + 6)]
        kept: list[torch.Tensor] = []

        def keep(ratio: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(ratio)
            return ratio

        probe = MultiFrameNet((H, W)).train()
        for shard in shards:
            probe.update_delta(multi[shard], single[shard], keep)
        for net, shard in zip(pair, shards, strict=True):
            net.update_delta(multi[shard], single[shard], lambda _, kept=kept: torch.cat(kept))
    assert torch.equal(pair[0].delta, pair[1].delta)
    assert torch.equal(pair[0].delta, alone.delta)
    assert not torch.equal(alone.delta, torch.ones_like(alone.delta))


def test_a_small_batch_does_not_close_the_map() -> None:
    """The old rule, the largest of a batch of two, sinks; the window keeps the width of twelve."""
    torch.manual_seed(0)
    net, narrow = MultiFrameNet((H, W)).train(), MultiFrameNet((H, W), window=2).train()
    for _ in range(600):
        single = torch.ones(2, 1, H, W)
        multi = torch.exp(0.2 * torch.randn(2, 1, 1, 1)).expand(2, 1, H, W)
        net.update_delta(multi, single)
        narrow.update_delta(multi, single)
    assert net.delta.mean() > 1.4 * narrow.delta.mean()


def test_a_run_that_stops_within_a_window_goes_on_exactly() -> None:
    multi, single = _images(20)
    unbroken = MultiFrameNet((H, W)).train()
    unbroken.update_delta(multi, single)
    first = MultiFrameNet((H, W)).train()
    first.update_delta(multi[:7], single[:7])
    second = MultiFrameNet((H, W)).train()
    second.load_state_dict(first.state_dict())
    second.update_delta(multi[7:], single[7:])
    assert torch.equal(second.delta, unbroken.delta)
    assert torch.equal(second.window_max, unbroken.window_max)
    assert second.window_seen == unbroken.window_seen == 8
    assert {"delta", "window_max", "window_seen"} < set(second.state_dict())


def test_delta_is_clipped_and_survives_bad_depth() -> None:
    net = MultiFrameNet((H, W), window=1).train()
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


def test_delta_rests_in_eval_mode_and_where_it_is_fixed() -> None:
    multi, single = _images(12)
    net = MultiFrameNet((H, W)).eval()
    net.update_delta(multi, single)
    assert torch.equal(net.delta, torch.ones_like(net.delta))
    assert net.window_seen == 0
    net.train().update_delta(multi, single)
    assert not torch.equal(net.delta, torch.ones_like(net.delta))
    assert not net.delta.requires_grad
    fixed = MultiFrameNet((H, W), delta_mode="fixed", delta_init=2.0).train()
    fixed.observe(multi, single)
    assert torch.equal(fixed.delta, torch.full_like(fixed.delta, 2.0))


@pytest.mark.parametrize("init", [0.5, 1.0, 2.0])
def test_delta_starts_where_it_is_told(init: float) -> None:
    net = MultiFrameNet((H, W), delta_init=init)
    assert torch.equal(net.delta, torch.full_like(net.delta, init))
    assert build_multi_frame(net.architecture).delta_init == init


def test_delta_forgets_where_it_started() -> None:
    nets = [MultiFrameNet((H, W), delta_init=init, window=1).train() for init in (0.5, 2.0)]
    for _ in range(600):
        for net in nets:
            net.observe(torch.full((1, 1, H, W), 1.5), torch.ones(1, 1, H, W))
    assert (nets[0].delta - nets[1].delta).abs().max() < 0.01
    assert nets[0].delta.mean() == pytest.approx(0.6, abs=0.01)


def test_tracked_range_follows_the_data_set_and_not_the_single_frame_depth() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W), range_mode="tracked").train()
    assert net.range is not None
    single = torch.full((12, 1, H, W), 4.0)
    single[:, 0, 0, 0], single[:, 0, -1, -1] = 2.0, 8.0
    for _ in range(700):
        net.observe(torch.rand(12, 1, H, W), single)
    assert net.range.min_depth.item() == pytest.approx(1.8, abs=0.01)
    assert net.range.max_depth.item() == pytest.approx(8.8, abs=0.02)
    assert torch.equal(net.delta, torch.ones_like(net.delta))
    net.eval()
    output = _run(net)
    inverse = 1 / output.hypotheses[0, :, 3, 5]
    low, high = 1 / net.range.max_depth, 1 / net.range.min_depth
    assert torch.allclose(inverse, torch.linspace(float(low), float(high), 16), rtol=1e-4)
    assert torch.equal(output.hypotheses[0, :, 0, 0], output.hypotheses[1, :, 5, 9])
    again = build_multi_frame(net.architecture)
    again.load_state_dict(net.state_dict())
    assert again.range is not None
    assert torch.equal(again.range.max_depth, net.range.max_depth)


def test_tracked_range_does_not_depend_on_the_batch_and_skips_bad_images() -> None:
    depth = torch.full((24, 1, H, W), 3.0)
    depth[..., 0, 0], depth[..., 1, 1] = 0.05, 20.0
    ends = []
    for batch in (2, 12, 24):
        tracked = TrackedRange().train()
        for part in depth.split(batch):
            tracked.update(part)
        ends.append((tracked.min_depth.item(), tracked.max_depth.item()))
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert ends[2] == pytest.approx(ends[1], rel=1e-5)
    # Near the papers' 0.99 and 0.01 with a batch of twelve; never nearer than 0.1.
    assert ends[1] == pytest.approx((0.1, 0.99**2 * 10 + (1 - 0.99**2) * 22), rel=1e-5)
    tracked = TrackedRange().train()
    tracked.update(torch.full((2, 1, H, W), float("nan")))
    tracked.eval().update(depth)
    assert (tracked.min_depth.item(), tracked.max_depth.item()) == pytest.approx((0.1, 10.0))


@torch.no_grad()
def test_several_lookup_frames() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    a, b, c = (net.features(torch.rand(2, 3, H, W)) for _ in range(3))
    pose, K, single = _inputs()
    back = pose.inverse()
    one = net(a, b, pose, K, single).depth
    past, future = Lookup(b.matching, pose), Lookup(c.matching, back)
    assert torch.equal(net.match_many(a, [past], K, single).depth, one)
    twice = net.match_many(a, [past, past], K, single).depth
    assert torch.allclose(twice, one, atol=1e-5), "the average of a frame with itself is the frame"
    both = net.match_many(a, [past, future], K, single)
    assert not torch.allclose(both.depth, one, atol=1e-3)
    order = net.match_many(a, [future, past], K, single)
    assert torch.allclose(both.probability, order.probability, atol=1e-5)
    # The second sample has no future frame: it gets what the past alone gives.
    some = Lookup(c.matching, back, valid=torch.tensor([True, False]))
    mixed = net.match_many(a, [past, some], K, single).depth
    assert torch.allclose(mixed[0], both.depth[0], atol=1e-5)
    assert torch.allclose(mixed[1], one[1], atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        net.match_many(a, [], K, single)


def test_features_and_best() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    current = net.features(torch.rand(2, 3, H, W))
    output = _run(net)
    assert torch.equal(net.features_at(current, output, 4), current.matching)
    assert net.feature_shapes() == ((32, H // 4, W // 4), (32, H // 4, W // 4))
    assert output.best.shape == (2, 1, H // 4, W // 4)
    with pytest.raises(ValueError, match=r"stride 8: choose one of \[4\]"):
        net.features_at(current, output, 8)


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
    with pytest.raises(ValueError, match="range_mode"):
        MultiFrameNet((H, W), range_mode="wide")
    with pytest.raises(ValueError, match="delta_mode"):
        MultiFrameNet((H, W), delta_mode="free")
    with pytest.raises(ValueError, match="delta_init"):
        MultiFrameNet((H, W), delta_init=9.0)
    with pytest.raises(ValueError, match="window"):
        MultiFrameNet((H, W), window=0)


def test_built_from_its_own_description_and_by_seed() -> None:
    torch.manual_seed(2)
    net = MultiFrameNet((H, W), hypotheses=8, groups=8)
    torch.manual_seed(2)
    again = build_multi_frame(net.architecture)
    assert again.architecture == net.architecture
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


# -- parallax --------------------------------------------------------------------------------------

FX = 40.0
CENTRE = (31.5, 15.5)


def _moved(x: float = 0.0, z: float = 0.0) -> Pose:
    matrix = torch.eye(4)[None].clone()
    matrix[0, 0, 3], matrix[0, 2, 3] = x, z
    return Pose(matrix)


def _plane(
    pose: Pose, depth: float = 5.0, delta: float = 0.5, parallax: float = 4.0
) -> MultiFrameOutput:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W), delta_init=delta, parallax=parallax).eval()
    _, K, _ = _inputs(1)
    with torch.no_grad():
        a, b = (net.features(torch.rand(1, 3, H, W)) for _ in range(2))
        return net(a, b, pose, K, torch.full((1, 1, H, W), depth))


@pytest.mark.parametrize("slide", [0.05, -0.2, 0.4])
def test_parallax_of_a_plane_that_is_passed(slide: float) -> None:
    """Depth z moves by fx slide / z pixels; the range goes from 5 / 1.5 to 5 * 1.5."""
    found = _plane(_moved(x=slide)).parallax[0, 0].numpy()
    expected = FX * abs(slide) * (1.5 / 5 - 1 / (5 * 1.5))
    columns = np.arange(W // 4) * 4
    far, near = (columns + FX * slide / z for z in (7.5, 5 / 1.5))
    inside = [(x >= -4) & (x <= W) for x in (far, near)]  # a quarter pixel beyond fades to zero
    np.testing.assert_allclose(
        found, np.where(inside[0] | inside[1], expected, 0)[None] * np.ones((H // 4, 1)), rtol=1e-4
    )


@pytest.mark.parametrize("ahead", [0.2, 1.0])
def test_parallax_of_a_plane_that_is_approached(ahead: float) -> None:
    """A pixel at r from the centre was at r z / (z + ahead): none where the camera drives to."""
    found = _plane(_moved(z=ahead)).parallax[0, 0].numpy()
    rows, columns = np.mgrid[0:H:4, 0:W:4]
    radius = np.hypot(columns - CENTRE[0], rows - CENTRE[1])
    far, near = 7.5, 5 / 1.5
    expected = radius * (far / (far + ahead) - near / (near + ahead))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_without_motion_the_single_frame_depth_is_returned_exactly(seed: int) -> None:
    torch.manual_seed(seed)
    net = MultiFrameNet((H, W)).eval()
    _, K, single = _inputs()
    with torch.no_grad():
        a, b = net.features(torch.rand(2, 3, H, W)), net.features(torch.rand(2, 3, H, W))
        output = net(a, b, Pose(torch.eye(4).repeat(2, 1, 1)), K, single)
    assert torch.equal(output.depth, single)
    assert torch.equal(output.depth_quarter, single[..., ::4, ::4])
    assert not torch.allclose(output.matched, single, rtol=1e-2)
    assert output.trusted.isnan().all()


def test_a_threshold_of_zero_is_the_papers_form() -> None:
    pose = _moved(x=0.3, z=0.2)
    plain, blended = _plane(pose, parallax=0.0), _plane(pose)
    assert plain.weight is None
    for name in ("matched", "parallax", "probability", "confidence"):
        assert torch.equal(getattr(plain, name), getattr(blended, name))
    assert torch.equal(plain.depth, plain.matched)
    assert torch.equal(plain.trusted, plain.matched)
    expected, _ = local_max_regression(plain.probability, plain.hypotheses)
    assert torch.equal(plain.depth_quarter, expected)


@settings(max_examples=60, deadline=None)
@given(
    single=st.floats(0.1, 100),
    matched=st.floats(0.1, 100),
    parallax=st.floats(0, 50),
    threshold=st.floats(0.1, 20),
    unit=st.floats(0.1, 10),
)
def test_the_blend(
    single: float, matched: float, parallax: float, threshold: float, unit: float
) -> None:
    """Between both depths; either one at the ends; the same in any unit and with more parallax."""
    s, m, p = (torch.tensor([value], dtype=torch.float64) for value in (single, matched, parallax))
    weight = parallax_weight(p, threshold)
    depth = blend_depth(s, m, weight)
    low, high = sorted((single, matched))
    assert low * (1 - 1e-9) <= float(depth) <= high * (1 + 1e-9)
    if parallax <= threshold / 2:
        assert torch.equal(depth, s)
    if parallax >= threshold:
        assert float(depth) == pytest.approx(matched)
    assert float(blend_depth(unit * s, unit * m, weight)) == pytest.approx(unit * float(depth))
    assert float(parallax_weight(p + 0.1, threshold)) >= float(weight)
    assert float(depth) == pytest.approx(single ** (1 - float(weight)) * matched ** float(weight))


@torch.no_grad()
def test_what_is_matched_counts_as_far_as_it_is_confident() -> None:
    """In training all of it; numpy says the same of a frame as the network does."""
    torch.manual_seed(4)
    net = MultiFrameNet((H, W), parallax=1.0)
    _, K, single = _inputs(1)
    for training in (False, True):
        features = net.eval().features(torch.rand(2, 3, H, W))
        now, before = (Features(*(m[i : i + 1] for m in features)) for i in (0, 1))
        output = net.train(training)(now, before, _moved(x=0.3), K, single)
        trust = parallax_weight(output.parallax, 1.0) * (1 if training else output.confidence)
        expected = F.interpolate(trust, scale_factor=4.0, mode="bilinear")
        assert torch.equal(output.weight, expected)
        assert float(trust.mean()) > 0.1 and (training or float(trust.max()) < 1)
        if not training:
            parallax, sure = (t[0, 0].numpy() for t in (output.parallax, output.confidence))
            found = results.matching_weight(parallax, 1.0, sure)
            np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-6)


def test_parallax_and_depth_do_not_depend_on_the_unit() -> None:
    one, ten = _plane(_moved(x=0.3, z=0.1)), _plane(_moved(x=3.0, z=1.0), depth=50.0)
    assert torch.allclose(one.parallax, ten.parallax, rtol=1e-4, atol=1e-4)
    assert torch.allclose(10 * one.depth, ten.depth, rtol=1e-3)


@torch.no_grad()
def test_parallax_of_several_frames_is_that_of_the_best_that_is_there() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W)).eval()
    a, b = net.features(torch.rand(1, 3, H, W)), net.features(torch.rand(1, 3, H, W))
    _, K, single = _inputs(1)
    far, near = Lookup(b.matching, _moved(x=0.4)), Lookup(b.matching, _moved(x=0.1))
    alone = [net.match_many(a, [one], K, single).parallax for one in (far, near)]
    both = net.match_many(a, [near, far], K, single).parallax
    assert torch.equal(both, torch.maximum(*alone))
    missing = far._replace(valid=torch.tensor([False]))
    assert torch.equal(net.match_many(a, [near, missing], K, single).parallax, alone[1])


def test_gradients_know_the_blend() -> None:
    torch.manual_seed(0)
    net = MultiFrameNet((H, W))
    _, K, single = _inputs(1)
    images = torch.rand(2, 1, 3, H, W)
    for pose, learns in ((_moved(), False), (_moved(x=2.0), True)):
        net.zero_grad()
        net(*(net.features(image) for image in images), pose, K, single).depth.sum().backward()
        gradient = net.regulariser.logits.weight.grad
        assert bool(gradient is not None and gradient.abs().any()) == learns


def test_thresholds_that_cannot_be() -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="parallax"):
            MultiFrameNet((H, W), parallax=value)
    # Bundles from before there was the key blend as new ones do.
    assert build_multi_frame({"size": [H, W]}).parallax == PARALLAX
    assert build_multi_frame({"size": [H, W], "parallax": 0}).parallax == 0
