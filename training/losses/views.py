"""View synthesis for several depth maps of the same images (monodepth2, section 3.1).

:func:`depth_prior_ros.geometry.warping.view_synthesis` does everything for one depth map. In
training a batch is rebuilt from several sources at several scales with the same motion. The rays,
turned into the sources' frames and projected, are then the same for all scales and computed once,
here; and all sources are sampled in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from depth_prior_ros.geometry.warping import intrinsics_inverse

# As geometry.project: points closer to the image plane than this are projected from there.
_MIN_Z = 1e-5


class _SamplingGrid(torch.autograd.Function):
    """Where to sample the sources: (S x B, 2, H, W), x and y in [-1, 1] within the image.

    A point at depth d is projected to d r + t, with its turned and projected ray r and the
    projected translation t. Forward and backward go image by image, in the processor's cache.
    """

    @staticmethod
    def forward(
        ctx: Any, depth: Tensor, turn: Tensor, shift: Tensor, rays: Tensor, pixels: Tensor
    ) -> Tensor:
        """From depth (B, 1, H x W), turn (S x B, 3, 3), shift (S x B, 3, 1) and rays.

        ``rays`` (S x B, 3, H x W) is ``turn @ pixels``, ``pixels`` (3, H x W).
        """
        grid = depth.new_empty(len(turn), 2, depth.shape[2])
        inverse_z = depth.new_empty(len(turn), 1, depth.shape[2])
        start = depth.new_full((1,), -1.0)
        for i, j in _parts(turn, depth):
            points = torch.addcmul(shift[i], rays[i], depth[j])
            z = points[:, 2:].clamp_(min=_MIN_Z)
            torch.addcdiv(start, points[:, :2], z, out=grid[i])
            torch.reciprocal(z, out=inverse_z[i])
        ctx.save_for_backward(depth, turn, rays, pixels, grid, inverse_z)
        return grid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """To depth, turn and shift."""
        depth, turn, rays, pixels, grid, inverse_z = ctx.saved_tensors
        to_depth, to_turn = torch.zeros_like(depth), torch.empty_like(turn)
        to_shift = turn.new_empty(len(turn), 3, 1)
        for i, j in _parts(turn, depth):
            inverse = inverse_z[i]
            to_points = torch.empty_like(rays[i])
            xy = torch.mul(gradient[i], inverse, out=to_points[:, :2])
            z = torch.sum((grid[i] + 1).mul_(xy), 1, keepdim=True, out=to_points[:, 2:])
            z.neg_().masked_fill_(inverse * _MIN_Z > 1 - 1e-6, 0)  # where z was held
            torch.sum(to_points, 2, keepdim=True, out=to_shift[i])
            torch.matmul(to_points * depth[j], pixels.T, out=to_turn[i])
            to_depth[j] += to_points.mul_(rays[i]).sum(1, keepdim=True)
        return to_depth, to_turn, to_shift, None, None


def _parts(turn: Tensor, depth: Tensor) -> list[tuple[slice, slice]]:
    """Which views to compute together, and their depth maps."""
    step = 1 if depth.device.type == "cpu" else len(depth)
    starts = range(0, len(turn), step)
    return [(slice(i, i + step), slice(i % len(depth), i % len(depth) + step)) for i in starts]


@dataclass(frozen=True)
class Views:
    """S sources of B target images, and what of their projection does not depend on depth.

    sources: (S, B, C, H, W). pixels: of the target, normalised and homogeneous (3, H x W). turn
    (S x B, 3, 3) and shift (S x B, 3, 1) project a target's pixel at depth 1 and the camera's
    motion into the sources, in units of half their size. rays: ``turn @ pixels``.
    """

    sources: Tensor
    pixels: Tensor
    turn: Tensor
    shift: Tensor
    rays: Tensor

    @classmethod
    def of(cls, sources: Tensor, K: Tensor, poses: Tensor, source_K: Tensor | None = None) -> Views:
        """Prepare images of one size.

        Args:
            sources: images (S, B, C, H, W), to which no gradient flows.
            K: intrinsics of the targets in pixels (B, 3, 3).
            poses: source_from_target (S, B, 4, 4), in the unit of depth.
            source_K: intrinsics of the sources in pixels (S, B, 3, 3); default: the targets'.

        Raises:
            ValueError: the shapes do not belong together.
        """
        count, batch, _, height, width = sources.shape
        if K.shape != (batch, 3, 3) or poses.shape != (count, batch, 4, 4):
            raise ValueError(
                f"sources {tuple(sources.shape)}, K {tuple(K.shape)} and poses "
                f"{tuple(poses.shape)} are not (S, B, C, H, W), (B, 3, 3) and (S, B, 4, 4)"
            )
        # In double precision, as it is next to no work: a pixel's place is sensitive to it.
        exact, motion = K.double(), poses.flatten(0, 1).double()
        half = exact.new_tensor([(max(width, 2) - 1) / 2, (max(height, 2) - 1) / 2])
        through = exact.repeat(count, 1, 1)
        if source_K is not None:
            through = source_K.flatten(0, 1).double()
        project = through / torch.cat([half, half.new_ones(1)])[:, None]
        pixel_from_normalised = torch.diag(torch.cat([half, half.new_ones(1)]))
        pixel_from_normalised[:2, 2] = half
        back = (intrinsics_inverse(exact) @ pixel_from_normalised).repeat(count, 1, 1)
        turn = (project @ motion[:, :3, :3] @ back).to(sources.dtype)
        shift = (project @ motion[:, :3, 3:]).to(sources.dtype)
        pixels = _normalised_pixels(height, width, sources)
        rays = torch.matmul(turn.detach(), pixels)
        return cls(sources.detach(), pixels, turn, shift, rays)

    def rebuild(self, depth: Tensor) -> Tensor:
        """The targets as the sources show them: (S, B, C, H, W), edges repeated.

        Gradients flow to depth and to the poses.

        Args:
            depth: of the targets (B, 1, H, W), in the unit of the poses.
        """
        sampled = F.grid_sample(
            self.sources.flatten(0, 1),
            self.places(depth),
            padding_mode="border",
            align_corners=True,
        )
        return sampled.unflatten(0, self.sources.shape[:2])

    def places(self, depth: Tensor) -> Tensor:
        """Where the sources show the target's pixels: (S x B, H, W, 2), [-1, 1] in the image.

        ``depth`` as in :meth:`rebuild`. Points behind a source are projected as geometry does it.
        """
        batch, size = self.sources.shape[1], self.sources.shape[3:]
        if depth.shape != (batch, 1, *size):
            raise ValueError(f"expected depth {(batch, 1, *size)}, got {tuple(depth.shape)}")
        grid: Tensor = _SamplingGrid.apply(
            depth.flatten(2), self.turn, self.shift, self.rays, self.pixels
        )
        # Bilinear sampling reads coordinates stored plane by plane just as fast.
        return grid.unflatten(2, size).permute(0, 2, 3, 1)


def _normalised_pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel centres with x and y in [-1, 1], (3, H x W)."""
    ys, xs = (
        torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in (height, width)
    )
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1)
