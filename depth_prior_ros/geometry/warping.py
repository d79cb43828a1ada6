"""Differentiable camera geometry.

One convention throughout: pixel centres lie at whole numbers, sampling coordinates are normalised
by (W - 1, H - 1), and ``align_corners=True`` is passed explicitly. Camera frames are optical frames
(REP-103): x right, y down, z forward. ``b_from_a`` maps coordinates of frame a into frame b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DEPTH = 0.1
MAX_DEPTH = 100.0
# Points closer than this to the image plane are not projected (avoids dividing by zero).
_MIN_Z = 1e-5


def _check(tensor: Tensor, shape: str, *sizes: int | None) -> None:
    """Raise unless ``tensor`` has the given sizes (None = any)."""
    if tensor.ndim != len(sizes) or any(
        want is not None and got != want for got, want in zip(tensor.shape, sizes, strict=True)
    ):
        raise ValueError(f"expected {shape}, got {tuple(tensor.shape)}")


@dataclass(frozen=True)
class Pose:
    """A rigid motion: ``matrix`` (..., 4, 4) maps homogeneous points of one frame into another."""

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.shape[-2:] != (4, 4):
            raise ValueError(f"a pose is (..., 4, 4), got {tuple(self.matrix.shape)}")

    @classmethod
    def identity(cls, batch: int = 1, *, like: Tensor | None = None) -> Pose:
        """The motion that changes nothing, (batch, 4, 4)."""
        options: dict[str, Any] = (
            {} if like is None else {"dtype": like.dtype, "device": like.device}
        )
        return cls(torch.eye(4, **options).expand(batch, 4, 4))

    @classmethod
    def from_rotation_translation(cls, rotation: Tensor, translation: Tensor) -> Pose:
        """From rotation matrices (..., 3, 3) and translations (..., 3)."""
        top = torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)
        # Built by slicing constants, not by item assignment: gradients and exporters follow it.
        last = torch.zeros_like(top[..., :1, :]) + top.new_tensor([0.0, 0.0, 0.0, 1.0])
        return cls(torch.cat([top, last], dim=-2))

    @classmethod
    def from_axis_angle(cls, axis_angle: Tensor, translation: Tensor) -> Pose:
        """Rodrigues' formula: rotation vectors (B, 3) in radians, translations (B, 3).

        Uses sinc forms, so value and gradient are right at the zero rotation, too.
        """
        _check(axis_angle, "axis_angle (B, 3)", None, 3)
        _check(translation, "translation (B, 3)", None, 3)
        squared = (axis_angle * axis_angle).sum(-1)[..., None, None]
        small = squared < 1e-8
        safe = torch.where(small, torch.ones_like(squared), squared)
        angle = safe.sqrt()
        a = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
        b = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
        x, y, z = axis_angle.unbind(-1)
        o = torch.zeros_like(x)
        skew = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(-1, 3, 3)
        eye = torch.eye(3, dtype=skew.dtype, device=skew.device)
        return cls.from_rotation_translation(eye + a * skew + b * (skew @ skew), translation)

    @property
    def rotation(self) -> Tensor:
        """(..., 3, 3)."""
        return self.matrix[..., :3, :3]

    @property
    def translation(self) -> Tensor:
        """(..., 3), in the unit of the pose."""
        return self.matrix[..., :3, 3]

    def inverse(self) -> Pose:
        """The motion back, from the transposed rotation."""
        back = self.rotation.transpose(-1, -2)
        shift = -(back @ self.translation.unsqueeze(-1)).squeeze(-1)
        return Pose.from_rotation_translation(back, shift)

    def __matmul__(self, other: Pose) -> Pose:
        """``c_from_b @ b_from_a`` is ``c_from_a``."""
        return Pose(self.matrix @ other.matrix)

    def transform(self, points: Tensor) -> Tensor:
        """Move points (..., 3, N) into the target frame."""
        return self.rotation @ points + self.translation.unsqueeze(-1)

    def detach(self) -> Pose:
        """The same motion without gradient."""
        return Pose(self.matrix.detach())


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Homogeneous pixel coordinates (x, y, 1), (3, H, W), pixel centres at whole numbers."""
    ys = torch.arange(height, dtype=like.dtype, device=like.device)
    xs = torch.arange(width, dtype=like.dtype, device=like.device)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


def intrinsics_inverse(K: Tensor) -> Tensor:
    """Closed inverse of upper triangular intrinsics without skew, (B, 3, 3)."""
    _check(K, "K (B, 3, 3)", None, 3, 3)
    fx, fy, cx, cy = K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]
    o, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [1 / fx, o, -cx / fx, o, 1 / fy, -cy / fy, o, o, one]
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def scale_intrinsics(K: Tensor, x: float, y: float) -> Tensor:
    """Intrinsics (B, 3, 3) of the image resized by the factors ``x`` and ``y``."""
    return K * K.new_tensor([[x], [y], [1.0]])


def rays(K: Tensor, height: int, width: int) -> Tensor:
    """Viewing rays with z = 1 through every pixel, (B, 3, H, W)."""
    grid = pixel_grid(height, width, K).reshape(3, -1)
    return (intrinsics_inverse(K) @ grid).reshape(-1, 3, height, width)


def backproject(depth: Tensor, K: Tensor) -> Tensor:
    """Points (B, 3, H, W) in the camera frame, from depth (B, 1, H, W) and K (B, 3, 3)."""
    _check(depth, "depth (B, 1, H, W)", None, 1, None, None)
    return depth * rays(K, depth.shape[-2], depth.shape[-1])


def project(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, 2, H, W) and z (B, 1, H, W) of points (B, 3, H, W) in the camera frame.

    z keeps its sign; the division uses at least 1e-5, so pixels of points behind the camera mean
    nothing and must be masked by z.
    """
    _check(points, "points (B, 3, H, W)", None, 3, None, None)
    b, _, h, w = points.shape
    image = (K @ points.reshape(b, 3, -1)).reshape(b, 3, h, w)
    z = image[:, 2:3]
    return image[:, :2] / z.clamp(min=_MIN_Z), z


def normalise_pixels(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pixels (B, 2, h, w) of an image of ``height`` x ``width`` as (B, h, w, 2) in [-1, 1]."""
    scale = pixels.new_tensor([2.0 / max(width - 1, 1), 2.0 / max(height - 1, 1)])
    return pixels.permute(0, 2, 3, 1) * scale - 1


def warp(image: Tensor, pixels: Tensor, padding: str = "border") -> Tensor:
    """Sample ``image`` (B, C, H, W) bilinearly at ``pixels`` (B, 2, h, w): (B, C, h, w).

    ``padding``: "border" repeats the edge, "zeros" fills with zero.
    """
    grid = normalise_pixels(pixels, image.shape[-2], image.shape[-1])
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def inside(pixels: Tensor, z: Tensor, height: int, width: int) -> Tensor:
    """Mask (B, 1, h, w): in front of the camera and within the image."""
    x, y = pixels[:, :1], pixels[:, 1:]
    within = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return within & (z > _MIN_Z)


def view_synthesis(
    source: Tensor, depth: Tensor, K: Tensor, source_from_target: Pose, padding: str = "border"
) -> tuple[Tensor, Tensor]:
    """The target view rebuilt from a source image (monodepth2, section 3.1).

    Args:
        source: image (B, C, H, W).
        depth: depth of the target view (B, 1, H, W), in the unit of the pose.
        K: intrinsics of both views in pixels (B, 3, 3).
        source_from_target: motion (B, 4, 4).
        padding: as in :func:`warp`.

    Returns:
        The warped image (B, C, H, W) and the mask (B, 1, H, W) of pixels seen by the source.
    """
    points = backproject(depth, K)
    b, _, h, w = points.shape
    moved = source_from_target.transform(points.reshape(b, 3, -1)).reshape(b, 3, h, w)
    pixels, z = project(moved, K)
    return warp(source, pixels, padding), inside(pixels, z, source.shape[-2], source.shape[-1])


def disparity_to_depth(
    disparity: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH
) -> tuple[Tensor, Tensor]:
    """Network output in [0, 1] to (inverse depth, depth) in network units (monodepth2, 3.1).

    0 is ``max_depth`` and 1 is ``min_depth``; inverse depth is linear in between.
    """
    low, high = 1 / max_depth, 1 / min_depth
    inverse = low + (high - low) * disparity
    return inverse, 1 / inverse


def depth_to_disparity(
    depth: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH
) -> Tensor:
    """The inverse of :func:`disparity_to_depth`."""
    low, high = 1 / max_depth, 1 / min_depth
    return (1 / depth - low) / (high - low)
