"""Where a multi-frame network looks for depth: the PADS map, a range tracked over the data set, and
the parallax that such a range spans.

Map and range learn from what training sees, not by gradients, and do not depend on how many images
a step has nor on how many processes share them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.models.matching import STRIDE, Gather, quarter, within

#: Bounds of the search width delta: never closed, never beyond five times the depth.
DELTA_RANGE = (0.05, 4.0)
#: Images that one step of the running averages stands for: the batch of MISM and of ManyDepth.
WINDOW = 12
#: Pixels of parallax from which matching is trusted entirely; fitted by benchmarks/parallax.py.
PARALLAX = 4.0
_MOMENTUM = 0.99
_MARGIN = 1.2
_NEAREST = 0.1


def search_parallax(pixels: Tensor, height: int, width: int) -> Tensor:
    """How far a point moves in the lookup frame between both ends of its search range.

    Zero where neither end lies in the lookup frame: there is nothing to match either.

    Args:
        pixels: (B, 2, h, w * D) of `matching.hypothesis_pixels`, ends first and last.
        height: h of the features' grid.
        width: w of the features' grid.

    Returns:
        (B, 1, h, w) in pixels of the network's input.
    """
    batch, count = pixels.shape[0], pixels.shape[3] // width
    ends = pixels.reshape(batch, 2, height, width, count)[..., :: count - 1]
    first, last = ends[..., 0], ends[..., 1]
    length = STRIDE * (last - first).square().sum(dim=1, keepdim=True).sqrt()
    seen = within(ends.reshape(batch, 2, height, -1), height, width, low=-1, high=0)
    return torch.where(seen[..., 0] | seen[..., 1], length, torch.zeros_like(length))


def check_parallax(threshold: float) -> float:
    """A threshold of `matching_weight`, or 0 for none. Raises ValueError for any other number."""
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"parallax {threshold}: must be a finite number of pixels, 0 or more")
    return float(threshold)


def matching_weight(parallax: Tensor, threshold: float) -> Tensor:
    """Trust in matching, 0 to 1: none below half of ``threshold`` pixels of parallax, all above."""
    half = threshold / 2
    return ((parallax - half) / half).clamp(0, 1)


def blend_depth(single: Tensor, matched: Tensor, weight: Tensor) -> Tensor:
    """From single-frame (weight 0, exactly) to matched depth (weight 1), linear in log depth."""
    return single * torch.exp(weight * torch.log(matched / single))


class PadsMap(nn.Module):
    """The map of MISM's PADS, as a base class so that its buffers keep their names.

    `delta` (1, 1, h, w) says how far around the single-frame depth hypotheses reach, per pixel
    position, for all images. MISM takes the largest disagreement in a batch of 12; a smaller batch
    has a smaller largest one, and the map would close. So the largest of `window` images is
    collected over as many steps as it takes (`window_max`, `window_seen`: in checkpoints, not in
    bundles), and then the average makes one step.

    Args:
        size: (H, W) of the input.
        init: delta at the beginning.
        mode: "adaptive", or "fixed": delta stays what it is.
        window: images whose largest disagreement makes one step.

    Raises:
        ValueError: an unknown mode, or a value out of range.
    """

    delta: Tensor
    window_max: Tensor
    window_seen: Tensor
    training_buffers: tuple[str, ...] = ("window_max", "window_seen")

    def __init__(
        self, size: tuple[int, int], init: float = 1.0, mode: str = "adaptive", window: int = WINDOW
    ) -> None:
        super().__init__()
        low, high = DELTA_RANGE
        if not low <= init <= high:
            raise ValueError(f"delta_init {init}: must lie in [{low}, {high}]")
        if mode not in ("adaptive", "fixed"):
            raise ValueError(f"unknown delta_mode {mode!r}: choose 'adaptive' or 'fixed'")
        if window < 1:
            raise ValueError(f"window {window}: at least one image makes a step")
        self.delta_init, self.delta_mode, self.window = init, mode, window
        shape = (1, 1, size[0] // STRIDE, size[1] // STRIDE)
        self.register_buffer("delta", torch.full(shape, float(init)))
        self.register_buffer("window_max", torch.zeros(shape))
        self.register_buffer("window_seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update_delta(
        self, multi_depth: Tensor, single_depth: Tensor, gather: Gather | None = None
    ) -> None:
        """Let `delta` follow the disagreement of both depths (MISM, PADS); nothing in eval mode.

        After every `window` images: delta <- 0.99 delta + 0.01 * 1.2 * (r - 1), r the largest ratio
        of both depths (or its reciprocal) among them, then clipped to [0.05, 4]. Images count in
        their order in the batch. A ratio that is not finite does not count; where none is, delta
        stays.

        Args:
            multi_depth: (B, 1, H, W) of the multi-frame network, reduced bilinearly to a quarter.
            single_depth: (B, 1, H, W) of the single-frame network, every fourth pixel.
            gather: (B, 1, h, w) of this process -> of all processes, (P * B, 1, h, w).
        """
        if not self.training or self.delta_mode == "fixed":
            return
        reduced = F.interpolate(
            multi_depth.float(), size=self.delta.shape[2:], mode="bilinear", align_corners=False
        )
        single = quarter(single_depth.float())
        ratio = torch.maximum(reduced / single, single / reduced)
        # Ratios are at least one: zero is "none".
        ratio = torch.where(ratio.isfinite(), ratio, torch.zeros_like(ratio))
        self._collect(ratio if gather is None else gather(ratio))

    def _collect(self, ratio: Tensor) -> None:
        # Image by image, without asking the device how many there were.
        for image in ratio.split(1):
            self.window_max.copy_(torch.maximum(self.window_max, image))
            self.window_seen += 1
            full = self.window_seen == self.window
            updated = _MOMENTUM * self.delta + (1 - _MOMENTUM) * _MARGIN * (self.window_max - 1)
            updated = torch.where(self.window_max > 0, updated, self.delta).clamp(*DELTA_RANGE)
            self.delta.copy_(torch.where(full, updated, self.delta))
            self.window_max.mul_(~full)
            self.window_seen.mul_(~full)


class TrackedRange(nn.Module):
    """Nearest and farthest depth of a data set, followed while training (ManyDepth, section 3.3).

    Args:
        near: `min_depth` at the beginning, network units.
        far: `max_depth` at the beginning.
        window: images that one step of 0.99 to 0.01 stands for; n images weigh 0.99**(n / window).

    Raises:
        ValueError: an empty range.
    """

    min_depth: Tensor
    max_depth: Tensor

    def __init__(self, near: float = _NEAREST, far: float = 10.0, window: int = WINDOW) -> None:
        super().__init__()
        if not 0 < near < far:
            raise ValueError(f"depth range from {near} to {far}: must be positive and not empty")
        if window < 1:
            raise ValueError(f"window {window}: at least one image makes a step")
        self.window = window
        self.register_buffer("min_depth", torch.tensor(float(near)))
        self.register_buffer("max_depth", torch.tensor(float(far)))

    @torch.no_grad()
    def update(self, single_depth: Tensor, gather: Gather | None = None) -> None:
        """Follow the single-frame depth (B, 1, H, W); nothing in eval mode.

        The mean over the batch of each image's least depth times 0.9 (at least 0.1) and of its
        largest times 1.1 enter the averages. Images with a depth that is not finite do not count.
        """
        if not self.training:
            return
        flat = single_depth.detach().float().flatten(1)
        ends = torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1)
        ends = ends if gather is None else gather(ends)
        good = ends.isfinite().all(dim=1)
        count = good.sum()
        mean = torch.where(good[:, None], ends, torch.zeros_like(ends)).sum(dim=0) / count.clamp(1)
        keep = _MOMENTUM ** (count / self.window)  # one where no image is good
        near, far = (0.9 * mean[0]).clamp(min=_NEAREST), 1.1 * mean[1]
        self.min_depth.copy_(keep * self.min_depth + (1 - keep) * near)
        self.max_depth.copy_(keep * self.max_depth + (1 - keep) * far)

    def linear(self, count: int) -> Tensor:
        """`count` depths from the nearest to the farthest, uniform in depth, (1, count, 1, 1)."""
        steps = torch.linspace(0, 1, count, device=self.min_depth.device).view(1, -1, 1, 1)
        return self.min_depth * (1 - steps) + self.max_depth * steps

    def inverse(self, count: int) -> Tensor:
        """`count` depths from the farthest to the nearest, uniform in inverse depth."""
        steps = torch.linspace(0, 1, count, device=self.min_depth.device).view(1, -1, 1, 1)
        return 1 / ((1 - steps) / self.max_depth + steps / self.min_depth)
