"""Trunks: names, counts and shapes of timm's, and what they refuse."""

import pytest
import torch

from depth_prior_ros.models.hrnet import HRNet, hrnet_w18, hrnet_w18_small
from depth_prior_ros.models.trunk import SIDE_MULTIPLE, TRUNKS, check_size


@pytest.fixture(scope="module")
def w18() -> HRNet:
    return hrnet_w18().eval()


def test_w18_has_the_keys_and_parameters_of_timm(w18: HRNet) -> None:
    parameters = sum(p.numel() for p in w18.parameters())
    keys = len(w18.state_dict())
    print(f"HRNet-W18 trunk: {parameters:,} parameters, {keys} state-dict keys")
    assert parameters == 9_562_260
    assert keys == 1830


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (64, 3, 3, 3)),
        ("bn2.running_var", (64,)),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("layer1.3.conv3.weight", (256, 64, 1, 1)),
        ("transition1.0.0.weight", (18, 256, 3, 3)),
        ("transition1.1.0.0.weight", (36, 256, 3, 3)),
        ("transition2.2.0.0.weight", (72, 36, 3, 3)),
        ("transition3.3.0.1.bias", (144,)),
        ("stage2.0.branches.1.3.conv2.weight", (36, 36, 3, 3)),
        ("stage2.0.fuse_layers.0.1.0.weight", (18, 36, 1, 1)),
        ("stage3.3.fuse_layers.2.0.0.0.weight", (18, 18, 3, 3)),
        ("stage3.3.fuse_layers.2.0.1.0.weight", (72, 18, 3, 3)),
        ("stage4.2.fuse_layers.3.2.0.1.running_mean", (144,)),
        ("stage4.2.branches.3.0.bn1.num_batches_tracked", ()),
    ],
)
def test_w18_names_and_shapes(w18: HRNet, name: str, shape: tuple[int, ...]) -> None:
    assert tuple(w18.state_dict()[name].shape) == shape


def test_nothing_of_the_classifier_remains(w18: HRNet) -> None:
    tops = {key.split(".")[0] for key in w18.state_dict()}
    expected = {"conv1", "bn1", "conv2", "bn2", "layer1"}
    expected |= {f"transition{i}" for i in (1, 2, 3)} | {f"stage{i}" for i in (2, 3, 4)}
    assert tops == expected


def test_fuse_layers_upsample_nearest(w18: HRNet) -> None:
    modes = {m.mode for m in w18.modules() if isinstance(m, torch.nn.Upsample)}
    assert modes == {"nearest"}


@pytest.mark.parametrize(
    ("trunk", "channels"),
    [
        (
            hrnet_w18,
            {2: [64], 4: [64, 18, 18, 18], 8: [36, 36, 36], 16: [72, 72], 32: [144]},
        ),
        (
            hrnet_w18_small,
            {2: [64], 4: [64, 16, 16, 16], 8: [32, 32, 32], 16: [64, 64], 32: [128]},
        ),
    ],
)
def test_features_are_as_promised(trunk, channels) -> None:
    net = trunk().eval()
    print(f"{trunk.__name__}: {sum(p.numel() for p in net.parameters()):,} parameters")
    assert net.channels == channels
    with torch.no_grad():
        features = net(torch.rand(1, 3, 64, 96))
    shapes = {s: [tuple(t.shape) for t in ts] for s, ts in features.items()}
    assert shapes == {s: [(1, c, 64 // s, 96 // s) for c in cs] for s, cs in channels.items()}


@pytest.mark.parametrize("shape", [(1, 3, 65, 96), (1, 3, 64, 90), (1, 3, 16, 96), (1, 3, 0, 32)])
def test_other_sides_are_refused(w18: HRNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        w18(torch.zeros(shape))


def test_other_channels_are_refused(w18: HRNet) -> None:
    with pytest.raises(ValueError, match="1 channels: expected 3"):
        w18(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="expected"):
        w18(torch.zeros(3, 64, 64))


def test_check_size_takes_exactly_the_multiples() -> None:
    for side in range(-SIDE_MULTIPLE, 4 * SIDE_MULTIPLE):
        if side > 0 and side % SIDE_MULTIPLE == 0:
            check_size(side, 64)
        else:
            with pytest.raises(ValueError, match="multiples"):
                check_size(64, side)


def test_unknown_trunk() -> None:
    with pytest.raises(ValueError, match="hrnet_w18_small"):
        TRUNKS["resnet50"]


def test_weights_load_and_classifier_keys_are_left_out() -> None:
    torch.manual_seed(0)
    source, target = hrnet_w18_small(), hrnet_w18_small()
    state = dict(source.state_dict())
    state["classifier.weight"] = torch.zeros(1000, 2048)
    state["incre_modules.0.0.conv1.weight"] = torch.zeros(32, 16, 1, 1)
    target.load_weights(state)
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    del state["conv1.weight"]
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        target.load_weights(state)


def test_one_seed_gives_one_trunk() -> None:
    torch.manual_seed(3)
    first = hrnet_w18_small().state_dict()
    torch.manual_seed(3)
    second = hrnet_w18_small().state_dict()
    torch.manual_seed(4)
    third = hrnet_w18_small().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], third["conv1.weight"])
