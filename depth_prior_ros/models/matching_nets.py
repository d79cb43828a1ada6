"""The parts of MISM's multi-frame network that learn: its feature pyramid and its 3-D U-Net."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.residual import initialise_convolutions
from depth_prior_ros.models.teacher import Features

FEATURE_CHANNELS = 32


def _conv2d(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _conv2d(inputs, outputs, kernel=5, stride=2),
        _conv2d(outputs, outputs),
        _conv2d(outputs, outputs),
    )


class FeatureNet(nn.Module):
    """Feature pyramid from scratch: 0.186 M parameters (MISM, M-DepthNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_conv2d(3, 8), _conv2d(8, 8))
        self.conv1 = _down(8, 16)
        self.conv2 = _down(16, FEATURE_CHANNELS)
        self.conv3 = _down(FEATURE_CHANNELS, 64)
        self.lateral = nn.Conv2d(FEATURE_CHANNELS, 64, 1)
        self.out = nn.Conv2d(64, FEATURE_CHANNELS, 3, padding=1, bias=False)
        initialise_convolutions(self)

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W), RGB in [0, 1] -> features at (H / 4, W / 4)."""
        context = self.conv2(self.conv1(self.conv0(image)))
        deep = F.interpolate(
            self.conv3(context), scale_factor=2.0, mode="bilinear", align_corners=True
        )
        return Features(self.out(self.lateral(context) + deep), context)


def _conv3d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


def _up3d(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class Regulariser(nn.Module):
    """3-D U-Net over the cost volume: 1.170 M parameters (MISM, M-DepthNet).

    Hypotheses are the last dimension: with them first, PyTorch's heuristics take a slow kernel for
    a batch of one on a CPU (measured: 8.5 times as slow at 640x192).
    """

    def __init__(self, groups: int, base: int = 16) -> None:
        super().__init__()
        self.conv0 = _conv3d(groups, base)
        self.down1 = nn.Sequential(_conv3d(base, 2 * base, 2), _conv3d(2 * base, 2 * base))
        self.down2 = nn.Sequential(_conv3d(2 * base, 4 * base, 2), _conv3d(4 * base, 4 * base))
        self.down3 = nn.Sequential(_conv3d(4 * base, 8 * base, 2), _conv3d(8 * base, 8 * base))
        self.up3 = _up3d(8 * base, 4 * base)
        self.up2 = _up3d(4 * base, 2 * base)
        self.up1 = _up3d(2 * base, base)
        self.logits = nn.Conv3d(base, 1, 3, padding=1, bias=False)

    def forward(self, cost: Tensor) -> Tensor:
        """(B, groups, h, w, D), h, w and D multiples of eight -> logits (B, D, h, w)."""
        x0 = self.conv0(cost)
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        x = self.up3(self.down3(x2)) + x2
        x = self.up2(x) + x1
        x = self.up1(x) + x0
        return self.logits(x).squeeze(1).permute(0, 3, 1, 2)
