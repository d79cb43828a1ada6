"""Pose networks: counts, rigid output, refusals."""

import pytest
import torch

from depth_prior_ros.models.pose import PairResNet18, PoseNet, build_pose


def test_counts() -> None:
    counts = {v: sum(p.numel() for p in PoseNet(v).parameters()) for v in ("resnet18", "small")}
    print(f"PoseNet: {counts['resnet18']:,} parameters; small: {counts['small']:,}")
    assert counts["resnet18"] == pytest.approx(12_500_000, rel=0.005)
    assert counts["small"] < 1_000_000


@pytest.mark.parametrize("variant", ["resnet18", "small"])
def test_poses_are_rigid_and_start_small(variant: str) -> None:
    torch.manual_seed(0)
    net = PoseNet(variant)
    with torch.autocast("cpu", torch.bfloat16):  # wide enough for it: docs/training.md
        pose = net(torch.rand(4, 3, 64, 128), torch.rand(4, 3, 64, 128))
    assert pose.matrix.shape == (4, 4, 4)
    assert pose.matrix.dtype == torch.float32
    rotation = pose.rotation
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(4), atol=1e-5)
    assert torch.equal(pose.matrix[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(4, 4))
    assert pose.translation.norm(dim=1).max() < 0.1


@pytest.mark.parametrize("variant", ["resnet18", "small"])
def test_order_matters_and_everything_learns(variant: str) -> None:
    torch.manual_seed(1)
    net = PoseNet(variant)
    a, b = torch.rand(4, 3, 64, 64), torch.rand(4, 3, 64, 64)
    net(a, b).matrix[:, :3].pow(2).sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert silent == []
    net.eval()
    with torch.no_grad():
        assert not torch.allclose(net(a, b).matrix, net(b, a).matrix, atol=1e-7)


def test_image_weights_are_doubled_and_halved() -> None:
    torch.manual_seed(2)
    net = PairResNet18()
    state = dict(net.state_dict())
    first = torch.randn(64, 3, 7, 7)
    state["conv1.weight"] = first
    state["fc.weight"] = torch.zeros(1000, 512)
    net.load_weights(state)
    image = torch.rand(1, 3, 32, 32)
    found = net.conv1(torch.cat([image, image], dim=1))
    expected = torch.nn.functional.conv2d(image, first, stride=2, padding=3)
    assert torch.allclose(found, expected, atol=1e-4)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1"):
        net.load_weights(state)


def test_refusals() -> None:
    net = PoseNet("small").eval()
    with pytest.raises(ValueError, match="second image"):
        net(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 33, 32))
    with pytest.raises(ValueError, match="differ"):
        net(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 64, 32))
    with pytest.raises(ValueError, match="variant"):
        PoseNet("huge")
    with pytest.raises(ValueError, match="unknown pose settings"):
        build_pose({"variant": "small", "size": 3})


@pytest.mark.parametrize("variant", ["small", "resnet18"])
@torch.no_grad()
def test_another_unit_and_focal_length(variant: str) -> None:
    """Depth 6 times as far, as a focal length twice as long in units a third as large has it.

    A picture then moves alike where sideways translation over depth is halved and forward
    translation over depth is kept.
    """
    torch.manual_seed(0)
    net = PoseNet(variant).eval()
    pair = torch.rand(2, 1, 3, 64, 96)
    before = net(*pair).matrix[0]
    net.rescale(3.0, 2.0)
    after = net(*pair).matrix[0]
    torch.testing.assert_close(after[:3, 3], before[:3, 3] * torch.tensor([3.0, 3.0, 6.0]))
    turned = [[m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]] for m in (before, after)]
    expected = torch.tensor(turned[0]) / torch.tensor([2.0, 2.0, 1.0])
    torch.testing.assert_close(torch.tensor(turned[1]), expected, rtol=1e-2, atol=1e-6)
