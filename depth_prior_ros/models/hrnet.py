"""HRNet trunks that keep the output of every stage, as DIFFNet's internal feature fusion needs.

Parameter names equal those of timm's `hrnet_w18` and `hrnet_w18_small` without their classification
heads, so that weights in that naming load directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from depth_prior_ros.models.resnet import BasicBlock, Bottleneck, initialise_convolutions
from depth_prior_ros.models.trunk import TRUNKS, Features, Trunk, check_image, fit_weights

# What timm's classifiers have on top of the trunk; such keys are left out when weights are loaded.
_CLASSIFIER_PREFIXES = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")


@dataclass(frozen=True)
class StageSpec:
    """One HRNet stage: exchange modules, basic blocks per branch, and channels per branch."""

    modules: int
    blocks: int
    channels: tuple[int, ...]


@dataclass(frozen=True)
class HRNetSpec:
    """Size of a trunk: bottlenecks of layer1 and their planes, then stages 2 to 4."""

    bottlenecks: int
    planes: int
    stages: tuple[StageSpec, StageSpec, StageSpec]
    stem: int = 64


HRNET_W18 = HRNetSpec(
    bottlenecks=4,
    planes=64,
    stages=(
        StageSpec(1, 4, (18, 36)),
        StageSpec(4, 4, (18, 36, 72)),
        StageSpec(3, 4, (18, 36, 72, 144)),
    ),
)
HRNET_W18_SMALL = HRNetSpec(
    bottlenecks=1,
    planes=32,
    stages=(
        StageSpec(1, 2, (16, 32)),
        StageSpec(1, 2, (16, 32, 64)),
        StageSpec(1, 2, (16, 32, 64, 128)),
    ),
)


def _conv_norm(inputs: int, outputs: int, *, stride: int, relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _fuse_path(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """What brings branch `source` to the resolution and channels of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(channels[source], channels[target], 1, bias=False),
            nn.BatchNorm2d(channels[target]),
            nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest"),
        )
    steps = [
        _conv_norm(channels[source], channels[source], stride=2, relu=True)
        for _ in range(target - source - 1)
    ]
    steps.append(_conv_norm(channels[source], channels[target], stride=2, relu=False))
    return nn.Sequential(*steps)


class ExchangeModule(nn.Module):
    """Parallel branches of basic blocks, then the sum over branches at every resolution."""

    def __init__(self, blocks: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_path(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=False)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Take and return one (B, C_i, H / s_i, W / s_i) tensor per branch."""
        branches = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for paths in self.fuse_layers:
            assert isinstance(paths, nn.ModuleList)
            total = paths[0](branches[0])
            for path, branch in zip(list(paths)[1:], branches[1:], strict=True):
                total = total + path(branch)
            outputs.append(self.relu(total))
        return outputs


class HRNet(Trunk):
    """HRNet trunk. `channels` says what `forward` returns, so that decoders can ask.

    Attributes:
        channels: stride -> channels of each tensor at that stride, in the order of `forward`; for
            W18 {2: [64], 4: [64, 18, 18, 18], 8: [36, 36, 36], 16: [72, 72], 32: [144]}.
    """

    def __init__(self, spec: HRNetSpec, name: str = "this HRNet trunk") -> None:
        super().__init__()
        self.name = name
        stem = spec.stem
        self.conv1 = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        widened = spec.planes * Bottleneck.expansion
        self.layer1 = nn.Sequential(
            Bottleneck(stem, spec.planes),
            *(Bottleneck(widened, spec.planes) for _ in range(spec.bottlenecks - 1)),
        )
        before: tuple[int, ...] = (widened,)
        for number, stage in enumerate(spec.stages, start=1):
            setattr(self, f"transition{number}", _transition(before, stage.channels))
            modules = (ExchangeModule(stage.blocks, stage.channels) for _ in range(stage.modules))
            setattr(self, f"stage{number + 1}", nn.Sequential(*modules))
            before = stage.channels
        self.channels = _feature_channels(spec)
        initialise_convolutions(self)

    def forward(self, image: Tensor) -> Features:
        """Return the features of `image` (B, 3, H, W), RGB in [0, 1], as stride -> tensors.

        The image is not normalised by mean and deviation (DIFFNet's encoder isn't either).

        Raises:
            ValueError: not (B, 3, H, W), or a side that is no multiple of 32.
        """
        check_image(image)
        first = self.relu(self.bn1(self.conv1(image)))
        second = self.relu(self.bn2(self.conv2(first)))
        features: Features = {2: [first], 4: [second]}
        branches = [self.layer1(second)]
        for number in (1, 2, 3):
            branches = _advance(getattr(self, f"transition{number}"), branches)
            for module in getattr(self, f"stage{number + 1}"):
                branches = module(branches)
            for level, branch in enumerate(branches):
                features.setdefault(4 * 2**level, []).append(branch)
        return features

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load weights with timm's names; a classifier's own keys are ignored.

        Raises:
            ValueError: a key of the trunk is missing, unknown, or has another shape.
        """
        fit_weights(self, state, self.name, ignored=_CLASSIFIER_PREFIXES)


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Adapt channels where they differ, and open new branches from the lowest existing one."""
    paths: list[nn.Module] = []
    for index, width in enumerate(after):
        if index < len(before):
            same = before[index] == width
            paths.append(
                nn.Identity() if same else _conv_norm(before[index], width, stride=1, relu=True)
            )
        else:
            # One stride-2 step per level below the lowest branch; always one in these networks.
            paths.append(nn.Sequential(_conv_norm(before[-1], width, stride=2, relu=True)))
    return nn.ModuleList(paths)


def _advance(paths: nn.ModuleList, branches: list[Tensor]) -> list[Tensor]:
    last = len(branches) - 1
    return [path(branches[min(index, last)]) for index, path in enumerate(paths)]


def _feature_channels(spec: HRNetSpec) -> dict[int, list[int]]:
    channels: dict[int, list[int]] = {2: [spec.stem], 4: [spec.stem]}
    for stage in spec.stages:
        for level, width in enumerate(stage.channels):
            channels.setdefault(4 * 2**level, []).append(width)
    return channels


@TRUNKS.register("hrnet_w18")
def hrnet_w18() -> HRNet:
    """HRNet-W18, the trunk of DIFFNet: 9,562,260 parameters."""
    return HRNet(HRNET_W18, "hrnet_w18")


@TRUNKS.register("hrnet_w18_small")
def hrnet_w18_small() -> HRNet:
    """HRNet-W18-small (timm's `hrnet_w18_small`), the trunk of the bundle `lite`."""
    return HRNet(HRNET_W18_SMALL, "hrnet_w18_small")
