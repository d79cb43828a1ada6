"""Ego-motion between two frames: ResNet-18 with six channels (monodepth2), and a small network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.resnet import (
    RESNET18_CHANNELS,
    ResNet18Body,
    initialise_convolutions,
    normalise_image,
)
from depth_prior_ros.models.trunk import check_image

# Keeps the first poses close to the identity, where warps still find their targets.
_OUTPUT_SCALE = 0.01


class PairResNet18(ResNet18Body):
    """ResNet-18 without its classifier, for two RGB images; timm's parameter names."""

    def __init__(self) -> None:
        super().__init__(inputs=6)

    def forward(self, pair: Tensor) -> Tensor:
        """Normalised pair (B, 6, H, W) -> (B, 512, H / 32, W / 32)."""
        _, quarter = self.shallow(pair)
        return self.deep(quarter)[-1]


def _resnet_head() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(RESNET18_CHANNELS[32], 256, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 6, 1),
    )


def _small_encoder() -> nn.Sequential:
    """Six strided convolutions with batch norm, 0.78 M parameters."""
    widths = (6, 16, 32, 64, 128, 192, 256)
    kernels = (7, 5, 3, 3, 3, 3)
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in zip(widths[:-1], widths[1:], kernels, strict=True):
        conv = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    encoder = nn.Sequential(*layers)
    initialise_convolutions(encoder)
    return encoder


class PoseNet(nn.Module):
    """Relative pose of two frames of one camera, in network units.

    Args:
        variant: "resnet18" (12.50 M parameters) or "small" (0.78 M).

    Raises:
        ValueError: an unknown variant.
    """

    def __init__(self, variant: str = "resnet18") -> None:
        super().__init__()
        if variant not in ("resnet18", "small"):
            raise ValueError(f"unknown pose variant {variant!r}: choose 'resnet18' or 'small'")
        resnet = variant == "resnet18"
        self.encoder: nn.Module = PairResNet18() if resnet else _small_encoder()
        self.decoder: nn.Module = _resnet_head() if resnet else nn.Conv2d(256, 6, 1)
        self.architecture: dict[str, Any] = {"variant": variant}

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights of ResNet-18 by timm's names into the encoder.

        conv1 is doubled for the two images and halved (monodepth2).

        Raises:
            ValueError: they do not fit, or this is the small variant, which starts from scratch.
        """
        if not isinstance(self.encoder, PairResNet18):
            raise ValueError(
                "the small pose network has no ImageNet weights: choose the variant resnet18"
            )
        self.encoder.load_weights(state)

    @torch.no_grad()
    def rescale(self, unit: float, focal: float) -> None:
        """Answer in a `unit` times as small, at `focal` times the focal length, from now on.

        Another camera's picture moves alike by other motions.
        """
        head = self.decoder if isinstance(self.decoder, nn.Conv2d) else self.decoder[-1]  # type: ignore[index]
        factors = head.weight.new_tensor([1 / focal, 1 / focal, 1, unit, unit, unit * focal])
        head.weight *= factors[:, None, None, None]
        assert head.bias is not None
        head.bias *= factors

    def forward(self, first: Tensor, second: Tensor) -> Pose:
        """Pose `second_from_first` (B, 4, 4) of two images (B, 3, H, W), RGB in [0, 1].

        Always pass the frames in temporal order and invert the result where the other direction is
        wanted: the network then sees one kind of motion only.

        Raises:
            ValueError: wrong or different shapes, or a side that is no multiple of 32.
        """
        check_image(first, "first image")
        check_image(second, "second image")
        if not torch.jit.is_tracing() and first.shape != second.shape:
            raise ValueError(f"images differ: {tuple(first.shape)} and {tuple(second.shape)}")
        pair = normalise_image(torch.cat([first, second], dim=1))
        motion = self.decoder(self.encoder(pair)).float().mean(dim=(2, 3)) * _OUTPUT_SCALE
        with torch.autocast(device_type=motion.device.type, enabled=False):
            return Pose.from_axis_angle(motion[:, :3], motion[:, 3:])


def build_pose(architecture: Mapping[str, Any]) -> PoseNet:
    """Build a randomly initialised pose network from {"variant": ...}.

    Raises:
        ValueError: an unknown key or variant.
    """
    unknown = sorted(set(architecture) - {"variant"})
    if unknown:
        raise ValueError(f"unknown pose settings: {unknown}")
    return PoseNet(**architecture)
