"""Five numbers that tell a student which camera it looks through, and how it is mounted.

From one image alone, height, pitch and focal length cannot be told apart from the size of things.
A student that is told them while it learns on rendered streets can have them fitted, as latent
numbers, on a recording of another camera afterwards, with all weights kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_prior_ros.models.trunk import Features

#: Height, pitch, roll, focal length, principal row; all are zero for KITTI's camera.
NUMBERS = 5
STRIDES = (16, 8)
#: The numbers of a camera whose picture is mirrored are these times its own.
MIRROR = (1.0, 1.0, -1.0, 1.0, 1.0)
_WIDTH = 64
# KITTI's camera: metres above the road; focal length in image widths; principal row in heights.
_HEIGHT, _FOCAL, _ROW = 1.65, 0.581, 0.461
# What counts as one: metres, radians, radians, log of a ratio, image heights.
_UNITS = (0.5, math.radians(2.9), math.radians(1.1), math.log(1.35), 0.035)


def camera_code(
    mount: NDArray[np.float32], K: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The numbers (5,) of a camera.

    Args:
        mount: height above the road in metres, pitch (up is positive) and roll in radians.
        K: (3, 3), pixels of the input.
        size: width and height of the input.
    """
    width, height = size
    values = (
        float(mount[0]) - _HEIGHT,
        float(mount[1]),
        float(mount[2]),
        math.log(float(K[0, 0]) / width / _FOCAL),
        float(K[1, 2]) / height - _ROW,
    )
    return (np.array(values) / np.array(_UNITS)).astype(np.float32)


class CameraCode(nn.Module):
    """Adds what the numbers and the place in the image say to features at strides 16 and 8.

    At first it adds nothing, so a student that was trained without it can go on with it.

    Args:
        channels: stride -> channels of the trunk's features there.
    """

    def __init__(self, channels: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.channels = {stride: list(channels[stride]) for stride in STRIDES}
        self.hidden, self.added = nn.ModuleDict(), nn.ModuleDict()
        for stride, widths in self.channels.items():
            inputs = sum(widths) + 3 + 2 * NUMBERS
            self.hidden[str(stride)] = nn.Conv2d(inputs, _WIDTH, 1)
            added = nn.Conv2d(_WIDTH, sum(widths), 1)
            nn.init.zeros_(added.weight)
            assert added.bias is not None
            nn.init.zeros_(added.bias)
            self.added[str(stride)] = added

    def forward(self, features: Features, code: Tensor) -> Features:
        """The trunk's features, those at strides 16 and 8 changed; `code` is (B, 5)."""
        result = dict(features)
        for stride, widths in self.channels.items():
            x = torch.cat(features[stride], dim=1)
            hidden = self.hidden[str(stride)](torch.cat([x, _place(x, code)], dim=1))
            changed = x + self.added[str(stride)](F.elu(hidden))
            result[stride] = list(changed.split(widths, dim=1))
        return result


def _place(x: Tensor, code: Tensor) -> Tensor:
    """Row, its square, column, the numbers, and the numbers times row: (B, 3 + 10, h, w)."""
    batch, _, height, width = x.shape
    rows = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device).view(1, 1, 1, -1)
    rows = rows.expand(batch, 1, height, width)
    columns = columns.expand(batch, 1, height, width)
    numbers = code.to(x.dtype)[:, :, None, None].expand(batch, NUMBERS, height, width)
    return torch.cat([rows, rows * rows, columns, numbers, numbers * rows], dim=1)
