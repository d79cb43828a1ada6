"""What networks that look at several frames have in common: `MultiFrameNet` (MISM) and
`CostVolumeNet` (ManyDepth).

Their interface; the parts without weights: hypotheses, cost volume, regression (MISM, arXiv
2304.12685, sections on the M-DepthNet and on PADS), written with operations that export to ONNX:
4-D sampling, no indexing by tensors; and where they look for depth: the PADS map, a range tracked
over the data set, and the parallax that such a range spans.

Map and range learn from what training sees, not by gradients, and do not depend on how many images
a step has nor on how many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depth_prior_ros.geometry.warping import Pose, project, rays, scale_intrinsics, warp
from depth_prior_ros.models.trunk import check_image

#: The cost volume has this fraction of the input's resolution.
STRIDE = 4
#: (b, ...) of this process -> all processes' (processes * b, ...), in the global batch's order.
Gather = Callable[[Tensor], Tensor]


class Features(NamedTuple):
    """Features of one frame.

    Attributes:
        matching: (B, C, H / 4, W / 4), compared between frames.
        context: what only the current frame's is used of; its shape is the network's affair
            (`feature_shapes`).
    """

    matching: Tensor
    context: Tensor


class Lookup(NamedTuple):
    """Another frame to compare with, past or future.

    Attributes:
        matching: its features (B, C, H / 4, W / 4).
        lookup_from_current: motion (B, 4, 4), translation in network units.
        valid: (B,) boolean, False where the frame is missing; None: there for all samples.
    """

    matching: Tensor
    lookup_from_current: Pose
    valid: Tensor | None = None


class MultiFrameDepth(Protocol):
    """What any of these networks returns, at least; depth in network units."""

    @property
    def depth(self) -> Tensor:
        """(B, 1, H, W)."""

    @property
    def depth_quarter(self) -> Tensor:
        """(B, 1, H / 4, W / 4)."""

    @property
    def confidence(self) -> Tensor:
        """(B, 1, H / 4, W / 4) in [0, 1]; not calibrated."""

    @property
    def hypotheses(self) -> Tensor:
        """(B, D, H / 4, W / 4) depths that were compared."""

    @property
    def best(self) -> Tensor:
        """(B, 1, H / 4, W / 4) index of the best matching hypothesis; at 0 or D - 1 the range is
        too narrow."""

    @property
    def parallax(self) -> Tensor:
        """(B, 1, H / 4, W / 4) pixels of the input that the range spans in the other frames."""

    @property
    def matched(self) -> Tensor:
        """(B, 1, H, W) by matching alone, before anything is blended."""

    @property
    def depths(self) -> dict[int, Tensor]:
        """scale -> depth (B, 1, H / 2**scale, W / 2**scale), of the scales that were asked for."""


class MultiFrameNetwork(nn.Module):
    """A network that refines a single-frame depth by comparing frames.

    A vehicle calls `features` and `match`; training calls `match_many` and, where it learns,
    `observe`; RPrDepth's reference pixels are read by `features_at`.

    Attributes:
        size: (H, W) of the input.
        architecture: what `build_multi_frame` builds it again from.
        training_buffers: names in the state dict that training needs to go on and a bundle does
            not keep.
        feature_channels: stride -> channels of the features that `features_at` returns.
        uses_single_depth: whether hypotheses lie around the single-frame depth.
        lookup_gradient: whether lookup frames' features learn; where not, compute them under
            `torch.no_grad()`.
    """

    size: tuple[int, int]
    architecture: dict[str, Any]
    training_buffers: tuple[str, ...] = ()
    feature_channels: Mapping[int, int]
    uses_single_depth: bool
    lookup_gradient: bool
    #: What binds it to its size beside its layers, in the words of an error.
    _BOUND = ""

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that `match_many` can return."""
        raise NotImplementedError

    def feature_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """(C, h, w) of `Features.matching` and of `Features.context`."""
        raise NotImplementedError

    def features(self, image: Tensor) -> Features:
        """Features of one frame (B, 3, H, W), RGB in [0, 1]; keep them for the next frame.

        Raises:
            ValueError: an image of another size than the network was built for.
        """
        check_image(image)
        if not torch.jit.is_tracing() and tuple(image.shape[2:]) != self.size:
            height, width = self.size
            raise ValueError(
                f"image is {image.shape[3]}x{image.shape[2]}: this multi-frame network{self._BOUND}"
                f" was built for {width}x{height} (width x height)"
            )
        return self._features(image)

    def _features(self, image: Tensor) -> Features:
        """Features of a frame whose size is right."""
        raise NotImplementedError

    def forward(
        self,
        current: Features,
        previous: Features,
        previous_from_current: Pose,
        K: Tensor,
        single_depth: Tensor,
    ) -> MultiFrameDepth:
        """Depth of the current frame from the one before.

        Args:
            current: features of the current frame.
            previous: features of the frame before; its context is not used.
            previous_from_current: motion (B, 4, 4), translation in network units; its gradient is
                cut here, as the pose network learns from the photometric loss only.
            K: intrinsics (B, 3, 3) in pixels of the full input.
            single_depth: (B, 1, H, W) of the single-frame network, network units; gradient cut.
        """
        return self.match(current, previous.matching, previous_from_current.matrix, K, single_depth)

    def match(
        self,
        current: Features,
        previous_matching: Tensor,
        previous_from_current: Tensor,
        K: Tensor,
        single_depth: Tensor,
    ) -> MultiFrameDepth:
        """As `forward`, from bare tensors: previous matching features and motion (B, 4, 4)."""
        lookup = Lookup(previous_matching, Pose(previous_from_current))
        return self.match_many(current, [lookup], K, single_depth)

    def match_many(
        self,
        current: Features,
        lookups: Sequence[Lookup],
        K: Tensor,
        single_depth: Tensor,
        scales: Sequence[int] = (0,),
    ) -> MultiFrameDepth:
        """Depth from several frames, past or future, each present or missing for each sample.

        Args:
            current: features of the current frame.
            lookups: the other frames; each may be missing for some samples.
            K: intrinsics (B, 3, 3) in pixels of the full input.
            single_depth: (B, 1, H, W) of the single-frame network, network units.
            scales: which of `scales` to return; 0 must be among them.

        Raises:
            ValueError: scales without 0, or that the network has not; no frame where it needs one.
        """
        raise NotImplementedError

    def features_at(self, current: Features, output: Any, stride: int = STRIDE) -> Tensor:
        """Features (B, C, H / stride, W / stride) of the current frame, C of `feature_channels`.

        Raises:
            ValueError: another stride than those of `feature_channels`.
        """
        raise NotImplementedError

    def load_image_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights by timm's names. Raises ValueError where they do not fit."""
        raise NotImplementedError

    def observe(
        self, multi_depth: Tensor, single_depth: Tensor, gather: Gather | None = None
    ) -> None:
        """After a training step: let the range of hypotheses follow. Nothing in eval mode."""
        raise NotImplementedError


def check_stride(stride: int, feature_channels: Mapping[int, int]) -> None:
    """Raise ValueError for a stride at which a teacher has no features."""
    if stride not in feature_channels:
        raise ValueError(
            f"this teacher has no features at stride {stride}: choose one of "
            f"{sorted(feature_channels)}"
        )


# Pixels of a hypothesis behind the previous camera are sampled here, far outside, and get zeros.
_OUTSIDE = -1e4
_MIN_Z = 1e-3


def quarter(x: Tensor) -> Tensor:
    """Every fourth pixel, (B, C, H, W) -> (B, C, H / 4, W / 4): nearest, as features are centred.

    Two 5x5 convolutions of stride 2 with padding 2 centre output pixel i on input pixel 4 i, so the
    intrinsics of the quarter image are those of the full one divided by four, without a shift.
    """
    return x[..., ::STRIDE, ::STRIDE]


def quarter_intrinsics(K: Tensor) -> Tensor:
    """Intrinsics (B, 3, 3) of the image that `quarter` makes."""
    return scale_intrinsics(K, 1 / STRIDE, 1 / STRIDE)


def depth_hypotheses(single_depth: Tensor, delta: Tensor, count: int) -> Tensor:
    """Depth hypotheses around a single-frame depth (PADS).

    Args:
        single_depth: (B, 1, h, w), positive.
        delta: (1, 1, h, w) relative search width; from depth / (1 + delta) to depth * (1 + delta).
        count: number of hypotheses, at least 2.

    Returns:
        (B, count, h, w), uniform in inverse depth, both ends included, the farthest first.
    """
    widest = 1 + delta
    steps = torch.linspace(0, 1, count, dtype=delta.dtype, device=delta.device).view(1, -1, 1, 1)
    # Inverse depth relative to the single-frame one, from 1 / (1 + delta) to 1 + delta.
    relative = (1 / widest) * (1 - steps) + widest * steps
    return single_depth / relative


def hypothesis_pixels(hypotheses: Tensor, K: Tensor, lookup_from_current: Pose) -> Tensor:
    """Where each hypothesis of the current frame lies in the lookup frame.

    Args:
        hypotheses: depth (B, D, h, w) of the current frame.
        K: intrinsics (B, 3, 3) of the features' grid.
        lookup_from_current: motion (B, 4, 4) in the unit of the depth.

    Returns:
        pixels (B, 2, h, w * D), hypotheses folded into the width so that one 4-D sampling serves
        them all; far outside where a point lies behind the camera.
    """
    batch, count, height, width = hypotheses.shape
    directions = rays(K, height, width).reshape(batch, 3, height * width, 1)
    points = directions * hypotheses.permute(0, 2, 3, 1).reshape(batch, 1, height * width, count)
    moved = lookup_from_current.transform(points.reshape(batch, 3, -1))
    pixels, z = project(moved.reshape(batch, 3, height, width * count), K)
    return torch.where(z > _MIN_Z, pixels, torch.full_like(pixels, _OUTSIDE))


def sample_hypotheses(matching: Tensor, pixels: Tensor) -> Tensor:
    """Features (B, C, h, w) at the pixels of `hypothesis_pixels`: (B, C, h, w, D), zero outside."""
    batch, channels, height, width = matching.shape
    return warp(matching, pixels, padding="zeros").reshape(batch, channels, height, width, -1)


def within(pixels: Tensor, height: int, width: int, low: float, high: float) -> Tensor:
    """Which pixels of `hypothesis_pixels` lie in the lookup frame, (B, 1, h, w, D), boolean.

    Args:
        pixels: (B, 2, h, w * D).
        height: of the features' grid.
        width: of the features' grid.
        low: the least coordinate that counts.
        high: coordinates up to `width` (`height`) less this count.
    """
    x, y = pixels[:, :1], pixels[:, 1:]
    inside = (x >= low) & (x <= width - high) & (y >= low) & (y <= height - high)
    return inside.reshape(pixels.shape[0], 1, height, width, -1)


def group_correlation(current: Tensor, warped: Tensor, groups: int) -> Tensor:
    """Mean product over groups of channels; channel c belongs to group c mod `groups`.

    Args:
        current: (B, C, h, w); C is a multiple of `groups`.
        warped: (B, C, h, w, D).
        groups: number of groups.

    Returns:
        (B, groups, h, w, D).
    """
    batch, channels, height, width, count = warped.shape
    product = warped * current.unsqueeze(-1)
    return product.reshape(batch, channels // groups, groups, height, width, count).mean(dim=1)


def local_max_regression(probability: Tensor, hypotheses: Tensor) -> tuple[Tensor, Tensor]:
    """Expected depth over the likeliest hypothesis and its neighbours, and their probability.

    The window of three is clamped to the range: at an end it holds two hypotheses.

    Args:
        probability: (B, D, h, w), sums to one over D.
        hypotheses: depth (B, D, h, w).

    Returns:
        depth (B, 1, h, w) and the window's probability mass (B, 1, h, w) in [0, 1].
    """
    count = probability.shape[1]
    bins = torch.arange(count, device=probability.device).view(1, -1, 1, 1)
    best = probability.argmax(dim=1, keepdim=True)
    window = ((bins - best).abs() <= 1).to(probability.dtype)
    weights = probability * window
    mass = weights.sum(dim=1, keepdim=True)
    depth = (weights * hypotheses).sum(dim=1, keepdim=True) / mass.clamp(min=1e-12)
    return depth, mass


def convex_upsample(depth: Tensor, mask: Tensor, factor: int = STRIDE) -> Tensor:
    """Upsample by convex combinations of the 3x3 neighbours (RAFT, section 3.3).

    Args:
        depth: (B, 1, h, w).
        mask: logits (B, 9 * factor**2, h, w); softmax runs over the nine neighbours.
        factor: how many times larger.

    Returns:
        (B, 1, factor h, factor w). Borders are repeated, so a constant stays constant.
    """
    batch, _, height, width = depth.shape
    weights = torch.softmax(mask.reshape(batch, 9, factor**2, height, width), dim=1)
    padded = F.pad(depth, (1, 1, 1, 1), mode="replicate")
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    neighbours = torch.stack(shifted, dim=1)
    return F.pixel_shuffle((weights * neighbours).sum(dim=1), factor)


#: Bounds of the search width delta: never closed, never beyond five times the depth.
DELTA_RANGE = (0.05, 4.0)
#: Images that one step of the running averages stands for: the batch of MISM and of ManyDepth.
WINDOW = 12
#: Pixels of parallax from which matching is trusted; fitted by benchmarks/parallax.py.
PARALLAX = 2.0
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
    """A threshold of `parallax_weight`, or 0 for none. Raises ValueError for any other number."""
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"parallax {threshold}: must be a finite number of pixels, 0 or more")
    return float(threshold)


def parallax_weight(parallax: Tensor, threshold: float) -> Tensor:
    """What parallax lets be trusted of matching, 0 to 1: nothing below half of ``threshold``
    pixels, all above it."""
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
