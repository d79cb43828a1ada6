"""ResNet-18: a trunk, the encoder of the pose network, and that of the cost-volume network.

Parameter names equal those of timm's `resnet18` without its classifier, so that weights in that
naming load directly.

Residual blocks shared by the HRNet trunks and the ResNet-18 of the pose network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from depth_prior_ros.models.trunk import (
    TRUNKS,
    Features,
    Trunk,
    check_image,
    draw_weight,
    fit_weights,
)


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation (fan out) of every 2-D convolution; batch norms start as the identity."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            draw_weight(child, "fan_out")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The 1x1 projection of a block whose input and output differ; None where they agree."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, planes, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + kept)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, added to the input; four times wider out."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 * planes, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + kept)


_MEAN, _DEVIATION = 0.45, 0.225
#: Channels of the stem and of the four layers, and their strides.
RESNET18_CHANNELS = {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}


def normalise_image(image: Tensor) -> Tensor:
    """RGB in [0, 1] to about zero mean and unit deviation, as monodepth2's ResNets take it."""
    return (image - _MEAN) / _DEVIATION


def _layer(inputs: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, planes, stride), BasicBlock(planes, planes))


class ResNet18Body(nn.Module):
    """Stem and layers of ResNet-18 without pooling and classifier; for those who put them together.

    Args:
        inputs: channels of the input, 3 or 6.
    """

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(64, 64, 1)
        self.layer2 = _layer(64, 128, 2)
        self.layer3 = _layer(128, 256, 2)
        self.layer4 = _layer(256, 512, 2)
        self.inputs = inputs
        initialise_convolutions(self)

    def shallow(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) -> stem (B, 64, H / 2, W / 2) and layer1 (B, 64, H / 4, W / 4)."""
        stem = self.relu(self.bn1(self.conv1(normalised)))
        return stem, self.layer1(self.maxpool(stem))

    def deep(self, quarter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 64, H / 4, W / 4) -> layers 2, 3 and 4 at 1/8, 1/16 and 1/32."""
        eighth = self.layer2(quarter)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load image weights with timm's names; a classifier's own keys are ignored.

        A three-channel conv1 is doubled and halved for a pair of images (monodepth2).

        Raises:
            ValueError: a key is missing, unknown, or has another shape.
        """
        weights = dict(state)
        first = weights.get("conv1.weight")
        if self.inputs == 6 and first is not None and first.dim() == 4 and first.shape[1] == 3:
            weights["conv1.weight"] = torch.cat([first, first], dim=1) / 2
        fit_weights(self, weights, "resnet18", ignored=("fc.",))


class ResNet18(ResNet18Body, Trunk):
    """The trunk: 11,176,512 parameters.

    Attributes:
        channels: stride -> channels of each of its tensors, {2: [64], 4: [64], 8: [128], 16: [256],
            32: [512]}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.channels = {stride: [width] for stride, width in RESNET18_CHANNELS.items()}

    def forward(self, image: Tensor) -> Features:
        """Taps of `image` (B, 3, H, W), RGB in [0, 1], normalised here by .45 and .225.

        Raises:
            ValueError: a wrong shape, or a side that is no multiple of 32.
        """
        check_image(image)
        stem, quarter = self.shallow(normalise_image(image))
        maps = (stem, quarter, *self.deep(quarter))
        return {stride: [level] for stride, level in zip(RESNET18_CHANNELS, maps, strict=True)}


@TRUNKS.register("resnet18")
def resnet18() -> ResNet18:
    """The trunk of monodepth2."""
    return ResNet18()
