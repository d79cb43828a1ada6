"""Around a single-frame network that was made elsewhere: what it is shown, what its answer means.

Whatever kind of depth it returns becomes positive inverse depth here, so that nothing else needs
to know. Of affine-invariant inverse depth, which is right up to a gain and a shift of each
picture, that is a gauge: neither of them changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.export import single_frame_confidence

DepthKind = Literal["metric", "scale_invariant", "disparity", "affine_invariant"]
"""`metric`: metres. `scale_invariant`: depth up to a factor. `disparity`: inverse depth up to a
factor. `affine_invariant`: inverse depth up to a factor and a shift."""
DEPTH_KINDS: tuple[DepthKind, ...] = get_args(DepthKind)

GAUGE_SHIFT = -0.98
"""What makes a gauge inverse depth where nothing is known: its farthest is nearly at infinity."""
GAUGE_METRES = 5.0
"""Where a search for metres per unit of a gauge begins: nearest things are some metres away."""

_FAR, _NEAR = 0.02, 0.9  # shares of the pixels beyond the gauge's 1, and below its 2
_SAMPLE = 4096  # pixels that the gauge is read off
_SMALLEST = 1e-3


class Preparation(nn.Module):
    """image (B, 3, H, W), RGB in [0, 1] -> what a network is shown, (B, 3, h, w).

    Args:
        size: (w, h) of its input.
        mean, std: of red, green and blue, at values of 0 to `largest`.
        largest: what white is.
        bgr: whether it is shown blue first.
    """

    gain: Tensor
    offset: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        largest: float = 1.0,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.bgr = (size[1], size[0]), bgr
        self.plain = largest == 1 and not any(mean) and all(value == 1 for value in std)
        gain = torch.tensor([largest / value for value in std])
        offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)])
        self.register_buffer("gain", gain[:, None, None], persistent=False)
        self.register_buffer("offset", offset[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Resize, order and normalise."""
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False)
        if not self.plain:
            image = image * self.gain - self.offset
        return image[:, [2, 1, 0]] if self.bgr else image


class Reading(nn.Module):
    """A network's answer -> inverse depth and confidence, (B, 1, H, W) each.

    Args:
        kind: of its depth.
        size: (W, H) that is wanted.
    """

    def __init__(self, kind: DepthKind, size: tuple[int, int]) -> None:
        super().__init__()
        self.kind, self.size = kind, (size[1], size[0])

    def forward(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Of an answer (B, 1, h, w) or (B, h, w). Raises ValueError for one that is no map."""
        if answer.dim() not in (3, 4) or (answer.dim() == 4 and answer.shape[1] != 1):
            raise ValueError(f"the network's answer is no map of depth: {tuple(answer.shape)}")
        values = answer.float().reshape(answer.shape[0], 1, *answer.shape[-2:])
        if self.kind in ("metric", "scale_invariant"):
            values = values.reciprocal()
        elif self.kind == "disparity":  # exactly zero: as far as can be, not unknown
            values = torch.where(values == 0, torch.full_like(values, 1e-6), values)
        if tuple(values.shape[-2:]) != self.size:
            values = F.interpolate(values, self.size, mode="bilinear", align_corners=False)
        if self.kind == "affine_invariant":
            values = gauge(values)
            return values, single_frame_confidence((values + GAUGE_SHIFT).clamp_min(_SMALLEST))
        return values, single_frame_confidence(values)


class ImportedRunner(nn.Module):
    """image (B, 3, H, W) -> inverse depth and confidence, of a network between the two above."""

    def __init__(self, prepare: Preparation, network: nn.Module, read: Reading) -> None:
        super().__init__()
        self.prepare, self.network, self.read = prepare, network.eval(), read

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run it; RGB in [0, 1]."""
        found: tuple[Tensor, Tensor] = self.read(self.network(self.prepare(image)))
        return found


def gauge(values: Tensor) -> Tensor:
    """Affine-invariant inverse depth (B, 1, H, W) in a form that no gain or shift changes.

    1 is as far as the farthest 2 % of the picture, 2 as near as all but the nearest 10 %. Never
    below 0.1. A picture without any relief is not finite.
    """
    height, width = (int(side) for side in values.shape[-2:])  # numbers, also while it is traced
    step = max(1, round((height * width / _SAMPLE) ** 0.5))
    some = values[..., ::step, ::step].flatten(1).sort(dim=1).values
    last = int(some.shape[1]) - 1
    far, near = some[:, round(_FAR * last)], some[:, round(_NEAR * last)]
    relief = (near - far)[:, None, None, None]
    found = 1 + (values - far[:, None, None, None]) / relief
    return found.clamp_min(0.1)
