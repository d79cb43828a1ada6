"""Photometric reconstruction: SSIM + L1, minimum reprojection, auto-masking (monodepth2, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.masked import masked_mean
from training.losses.photometric_kernel import PhotometricError, Statistics


def box3(x: Tensor) -> Tensor:
    """Mean over 3x3 windows with reflected borders, (B, C, H, W) to the same size.

    Sums of shifted slices: about twice as fast on a CPU as ``avg_pool2d``, forward and backward.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


@dataclass(frozen=True)
class Target:
    """The image to be explained and its window statistics, computed once for all sources."""

    statistics: Statistics

    @classmethod
    def of(cls, image: Tensor) -> Target:
        """From an image (B, C, H, W) in [0, 1], to which no gradient flows."""
        if image.ndim != 4 or min(image.shape[2:]) < 2:
            raise ValueError(f"expected an image (B, C, H, W), 2x2 at least, got {image.shape}")
        return cls(Statistics.of(image))

    @property
    def image(self) -> Tensor:
        """(B, C, H, W)."""
        return self.statistics.image


def photometric_error(image: Tensor, target: Target) -> Tensor:
    """0.85 (1 - SSIM) / 2 + 0.15 L1, averaged over channels (monodepth2, 3.1).

    SSIM takes 3x3 windows, reflected at the borders.

    Args:
        image: (B, C, H, W) in [0, 1], or several views of each target at once, (S x B, C, H, W),
            those from the first source first.
        target: B images.

    Returns:
        (B, 1, H, W) or (S x B, 1, H, W).
    """
    count, *size = image.shape
    batch, *wanted = target.image.shape
    if size != wanted or count % batch:
        raise ValueError(
            f"views {tuple(image.shape)} do not belong to targets {tuple(target.image.shape)}"
        )
    error: Tensor = PhotometricError.apply(image, target.statistics)
    return error


def view_errors(views: Tensor, target: Target) -> Tensor:
    """:func:`photometric_error` of views (S, B, C, H, W) from S sources: (S, B, 1, H, W)."""
    return photometric_error(views.flatten(0, 1), target).unflatten(0, views.shape[:2])


def identity_error(sources: Tensor, target: Target, noise: torch.Generator | Tensor) -> Tensor:
    """Error of the unwarped sources (S, B, C, H, W), smallest over S: (B, 1, H, W).

    A little noise breaks ties with an equally good reprojection (monodepth2's code). It does not
    depend on depth: compute it once for all scales.

    Args:
        sources: the images.
        target: the target image.
        noise: standard normal numbers (S, B, 1, H, W), or where to draw them from.
    """
    errors = view_errors(sources, target)
    if isinstance(noise, torch.Generator):
        noise = torch.randn(errors.shape, generator=noise)
    return (errors + noise.to(errors) * 1e-5).amin(0)


def minimum_error(warped: Tensor, target: Target, identity: Tensor | None = None) -> Tensor:
    """The smallest error of each pixel over the sources (monodepth2, eq. 4): (B, 1, H, W).

    Args:
        warped: target view rebuilt from S sources, (S, B, C, H, W).
        target: the target image.
        identity: smallest error of the unwarped sources (B, 1, H, W), which then counts as one
            more source (the student's error in MISM's distillation mask).
    """
    errors = view_errors(warped, target)
    # A chain of two-way minima: their gradient goes to one of them without a search.
    smallest = errors[0]
    for other in errors[1:]:
        smallest = torch.minimum(smallest, other)
    return smallest if identity is None else torch.minimum(smallest, identity)


def minimum_reprojection(
    warped: Tensor,
    target: Target,
    identity: Tensor | None,
    mean: Literal["all", "kept"] = "all",
) -> tuple[Tensor, Tensor]:
    """The auto-masked minimum reprojection loss (monodepth2, eq. 4 and 5).

    Args:
        warped: target view rebuilt from S sources, (S, B, C, H, W).
        target: the target image.
        identity: smallest error of the unwarped sources (B, 1, H, W), or None for no auto-mask.
        mean: "all" averages over all pixels the smallest error, identity included (monodepth2);
            "kept" averages the reprojection's over the pixels it explains best, image by image,
            and an image without any adds zero (ManyDepth's and MISM's code).

    Returns:
        The loss, and the mask (B, 1, H, W) of pixels that a reprojection explains best.
    """
    errors = minimum_error(warped, target)
    if identity is None:
        return errors.mean(), torch.ones_like(errors, dtype=torch.bool)
    kept = errors < identity
    if mean == "kept":
        return masked_mean(errors, kept), kept
    return torch.minimum(errors, identity).mean(), kept
