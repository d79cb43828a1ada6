"""Speed and exactness of the photometric loss against its textbook form.

    python benchmarks/photometric_loss.py [--rounds N] [--size WxH] [--batch N] [--seed N]

Both compute the same loss of monodepth2, forward and backward, from disparities at four scales and
the motion to two sources: each scale enlarged to full size, both sources warped, SSIM + L1, the
smallest error of warped and unwarped sources, edge-aware smoothness. The textbook form, written
here from the formulas, does for each scale and each source what they say. One thread, one process,
rounds of the one and the other in turn; the figure is the median of the rounds' ratios.

Exactness is measured against the textbook form in double precision. The loss has kinks: where a
sample falls on a pixel's centre, where two sources are equally good, where a colour is hit exactly.
There the smallest rounding turns a gradient into another, in either form. Gradients of single
precision are therefore also compared by depth away from kinks (both counts are printed).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from machine import processor
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from training.losses.photometric import (
    Edges,
    Target,
    edge_aware_smoothness,
    identity_error,
    minimum_reprojection,
)
from training.losses.views import Views

SCALES = 4
SOURCES = 2
SMOOTHNESS = 1e-3
NOISE_SEED = 1
# Nearer to a kink, in pixels or in error and colour, single precision may fall either way.
NEAR_PIXEL, NEAR_ERROR = 1e-3, 3e-6


@dataclass(frozen=True)
class Inputs:
    """Images (B, 3, H, W), (S, B, 3, H, W), K (B, 3, 3), motion twice (S x B, 3), disparities."""

    target: Tensor
    sources: Tensor
    K: Tensor
    turn: Tensor
    shift: Tensor
    disparity: tuple[Tensor, ...]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.disparity, self.turn, self.shift]

    def double(self) -> Inputs:
        """The same numbers in double precision."""
        leaf = {f.name: getattr(self, f.name) for f in fields(self)}
        disparity = tuple(d.detach().double().requires_grad_() for d in leaf.pop("disparity"))
        exact = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            for name, value in leaf.items()
        }
        return replace(self, **exact, disparity=disparity)

    def poses(self) -> Tensor:
        """source_from_target (S, B, 4, 4)."""
        return Pose.from_axis_angle(self.turn, self.shift).matrix.unflatten(0, (SOURCES, -1))


def make_inputs(width: int, height: int, batch: int, seed: int) -> Inputs:
    """Waves of colour seen from moving cameras, disparities like those of streets with noise."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.zeros((SOURCES + 1) * batch, 3, height, width)
    for length in (160, 80, 40, 20, 10):
        angle, phase = 6.3 * rand(*image.shape[:2], 1, 1), 6.3 * rand(*image.shape[:2], 1, 1)
        along = (angle.cos() * x + angle.sin() * y) * (6.3 / length)
        image += torch.sin(along + phase) * length**0.5
    image = (image / image.abs().amax((2, 3), keepdim=True) + 1) / 2
    target, *sources = image.split(batch)
    K = torch.tensor([[0.58 * width, 0, 0.5 * width], [0, 1.92 * height, 0.5 * height], [0, 0, 1]])
    low = [rand(batch, 1, height >> (s + 3), width >> (s + 3)) for s in range(SCALES)]
    disparity = tuple(
        (0.01 + 0.1 * F.interpolate(d, (height >> s, width >> s), mode="bicubic").clamp(0, 1))
        .contiguous()
        .requires_grad_()
        for s, d in enumerate(low)
    )
    turn = (0.02 * (rand(SOURCES * batch, 3) - 0.5)).requires_grad_()
    shift = (0.1 * (rand(SOURCES * batch, 3) - 0.5)).requires_grad_()
    return Inputs(target, torch.stack(sources), K.repeat(batch, 1, 1), turn, shift, disparity)


def tie_noise(inputs: Inputs) -> Tensor:
    """What tells equal errors apart; the same each time."""
    shape = (*inputs.sources.shape[:2], 1, *inputs.sources.shape[3:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    return noise.to(inputs.sources) * 1e-5


def textbook_ssim(x: Tensor, y: Tensor) -> Tensor:
    x, y = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (x, y))
    mean_x, mean_y = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
    variance_x = F.avg_pool2d(x * x, 3, 1) - mean_x**2
    variance_y = F.avg_pool2d(y * y, 3, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, 3, 1) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    denominator = (mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2)
    return ((1 - numerator / denominator) / 2).clamp(0, 1)


def textbook_error(x: Tensor, y: Tensor) -> Tensor:
    l1 = (x - y).abs().mean(1, keepdim=True)
    return 0.85 * textbook_ssim(x, y).mean(1, keepdim=True) + 0.15 * l1


def textbook_pixels(depth: Tensor, K: Tensor, pose: Tensor) -> Tensor:
    """Where the pixels of the target lie in a source, (B, 2, H, W)."""
    batch, _, height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)]).to(depth).reshape(1, 3, -1)
    points = depth.reshape(batch, 1, -1) * (torch.linalg.inv(K) @ grid)
    points = K @ (pose[:, :3, :3] @ points + pose[:, :3, 3:])
    return (points[:, :2] / points[:, 2:].clamp(min=1e-5)).reshape(batch, 2, height, width)


def textbook_warp(image: Tensor, pixels: Tensor) -> Tensor:
    height, width = image.shape[2:]
    size = pixels.new_tensor([width - 1, height - 1])
    grid = (pixels.permute(0, 2, 3, 1) / size - 0.5) * 2
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def textbook_smoothness(inverse: Tensor, image: Tensor) -> Tensor:
    inverse = inverse / (inverse.mean((2, 3), keepdim=True) + 1e-7)
    total = inverse.new_zeros(())
    for dim in (2, 3):
        edge = torch.exp(-torch.diff(image, dim=dim).abs().mean(1, keepdim=True))
        total = total + (torch.diff(inverse, dim=dim).abs() * edge).mean()
    return total


def enlarge(inputs: Inputs, scale: int) -> tuple[Tensor, Tensor]:
    """Inverse depth and depth of a scale at full size."""
    size = inputs.target.shape[2:]
    full = F.interpolate(inputs.disparity[scale], size, mode="bilinear", align_corners=False)
    return disparity_to_depth(full)


def textbook(inputs: Inputs, depths: list[Tensor] | None = None) -> Tensor:
    """The loss as the formulas are read. Depth maps are added to ``depths``."""
    poses = inputs.poses()
    total = inputs.target.new_zeros(())
    for scale in range(SCALES):
        inverse, depth = enlarge(inputs, scale)
        if depths is not None:
            depths.append(depth)
        errors = []
        for source, pose in zip(inputs.sources, poses, strict=True):
            warped = textbook_warp(source, textbook_pixels(depth, inputs.K, pose))
            errors.append(textbook_error(warped, inputs.target))
        noise = tie_noise(inputs)
        for source, extra in zip(inputs.sources, noise, strict=True):
            errors.append(textbook_error(source, inputs.target) + extra)
        smallest = torch.cat(errors, 1).min(1).values
        smooth = textbook_smoothness(inverse, inputs.target) / 2**scale
        total = total + (smallest.mean() + SMOOTHNESS * smooth) / SCALES
    return total


def ours(inputs: Inputs, depths: list[Tensor] | None = None) -> Tensor:
    """The same loss by the functions that training uses."""
    target, edges = Target.of(inputs.target), Edges.of(inputs.target)
    views = Views.of(inputs.sources, inputs.K, inputs.poses())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(NOISE_SEED)
        identity = identity_error(inputs.sources, target, generator)
    total = inputs.target.new_zeros(())
    for scale in range(SCALES):
        inverse, depth = enlarge(inputs, scale)
        if depths is not None:
            depths.append(depth)
        error, _ = minimum_reprojection(views.rebuild(depth), target, identity)
        smooth = edge_aware_smoothness(inverse, edges) / 2**scale
        total = total + (error + SMOOTHNESS * smooth) / SCALES
    return total


Loss = Callable[..., Tensor]


def timed(loss: Loss, inputs: Inputs) -> float:
    """Milliseconds of one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(loss(inputs), inputs.leaves)
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Result:
    """Loss; gradients by disparities and motion; gradients by depth at full size, by scale."""

    value: float
    gradient: Tensor
    by_depth: Tensor

    @classmethod
    def of(cls, loss: Loss, inputs: Inputs) -> Result:
        depths: list[Tensor] = []
        value = loss(inputs, depths)
        gradients = torch.autograd.grad(value, [*inputs.leaves, *depths])
        rest, by_depth = gradients[: len(inputs.leaves)], gradients[len(inputs.leaves) :]
        flat = torch.cat([g.flatten() for g in rest]).double()
        return cls(value.item(), flat, torch.stack(by_depth).double())


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def kinks(inputs: Inputs) -> Tensor:
    """Pixels too near to a kink of the loss, by scale (4, B, 1, H, W); inputs in double."""
    poses, masks = inputs.poses(), []
    identity = [
        textbook_error(s, inputs.target) + n
        for s, n in zip(inputs.sources, tie_noise(inputs), strict=True)
    ]
    for scale in range(SCALES):
        inverse, depth = enlarge(inputs, scale)
        near = torch.zeros_like(depth, dtype=torch.bool)
        errors = list(identity)
        for source, pose in zip(inputs.sources, poses, strict=True):
            pixels = textbook_pixels(depth, inputs.K, pose)
            near |= ((pixels - pixels.round()).abs() < NEAR_PIXEL).any(1, keepdim=True)
            warped = textbook_warp(source, pixels)
            near |= ((warped - inputs.target).abs() < NEAR_ERROR).any(1, keepdim=True)
            errors.append(textbook_error(warped, inputs.target))
        first, second = torch.cat(errors, 1).topk(2, 1, largest=False).values.split(1, 1)
        tie = (second - first < NEAR_ERROR).float()
        near |= F.max_pool2d(tie, 3, 1, 1) > 0  # windows spread it
        for dim in (2, 3):  # the kink of smoothness
            flat = (torch.diff(inverse, dim=dim).abs() < 1e-5).float()
            pad = (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0)
            kernel = (2, 1) if dim == 2 else (1, 2)
            near |= F.max_pool2d(F.pad(flat, pad), kernel, 1) > 0
        masks.append(near)
    return torch.stack(masks)


def compare(inputs: Inputs) -> None:
    """Print how far both forms are from the textbook form in double precision."""
    exact = inputs.double()
    truth = Result.of(textbook, exact)
    smooth = ~kinks(exact)
    print(f"\nloss, textbook form in double precision: {truth.value:.12f}")
    print(f"pixels away from kinks: {smooth.double().mean():.1%} (away: gradient by their depth)")
    print(f"\n{'relative difference from it':32} {'value':>10} {'gradient':>10} {'away':>10}")
    rows: list[tuple[str, Loss, Inputs]] = [
        ("ours, double", ours, exact),
        ("ours, single", ours, inputs),
        ("textbook, single", textbook, inputs),
    ]
    for name, loss, data in rows:
        got = Result.of(loss, data)
        value = abs(got.value - truth.value) / truth.value
        gradient = relative(got.gradient, truth.gradient)
        away = relative(got.by_depth[smooth], truth.by_depth[smooth])
        print(f"{name:32} {value:10.1e} {gradient:10.1e} {away:10.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The photometric loss against its textbook form.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="640x192", help="width x height, multiples of 64")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, height = (int(n) for n in options.size.split("x"))
    inputs = make_inputs(width, height, options.batch, options.seed)
    print(
        f"{width}x{height}, batch {options.batch}, {SOURCES} sources, {SCALES} scales; "
        f"seed {options.seed}; PyTorch {torch.__version__}, {torch.get_num_threads()} thread, "
        f"{processor()}"
    )
    compare(inputs)
    for loss in (textbook, ours):
        timed(loss, inputs)
    times = [(timed(textbook, inputs), timed(ours, inputs)) for _ in range(options.rounds)]
    ratios = sorted(a / b for a, b in times)
    ratio = statistics.median(ratios)
    print(f"\n{'forward and backward':32} {'median ms':>10} {'best ms':>10}")
    for name, column in zip(("textbook", "ours"), zip(*times, strict=True), strict=True):
        print(f"{name:32} {statistics.median(column):10.0f} {min(column):10.0f}")
    print(f"ratio by round: median {ratio:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"figure photometric_loss_ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
