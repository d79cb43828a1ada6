"""Photometric reconstruction: SSIM + L1, minimum reprojection, auto-masking (monodepth2, 3.2).

Value and gradient of the photometric error, written out by hand.

Automatic differentiation keeps some forty maps of the size of the image and passes over memory for
each. Here the images are worked through in pieces that stay in the processor's cache, and one pass
leaves three maps for the way back. Everything is plain PyTorch, on any device.

With sums over 3x3 windows s(.) instead of means, SSIM of x and y is n1 n2 / (d1 d2), where

    n1 = 2 s(x) s(y) + c1         n2 = 18 s(pq) - 2 s(p) s(q) + c2
    d1 = s(x)^2 + s(y)^2 + c1     d2 = 9 s(p^2) - s(p)^2 + 9 s(q^2) - s(q)^2 + c2

with p = x - m and q = y - m, m being the mean of y (a shift changes no variance, and smaller
numbers cancel less); the constants are 81 times the usual ones. The derivatives of SSIM by s(p),
s(p^2) and s(pq) are the three maps; the transposed window sum brings them back to the pixels.

Beside it stand the edge-aware smoothness of inverse depth (monodepth2) and the metric scale from
the vehicle's speed (PackNet).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.losses.masked import masked_mean

SSIM_WEIGHT = 0.85
C1 = 81 * 0.01**2
C2 = 81 * 0.03**2

# Numbers in one map of a piece on a CPU; some ten maps are in use at a time. Much smaller pieces
# cost calls, whole large images cost cache (1024x320 in one piece: a quarter slower).
_PIECE = 160_000


@dataclass(frozen=True)
class Piece:
    """Rows ``top`` to ``bottom`` of the images ``views``, which show the ``targets``."""

    views: slice
    targets: slice
    top: int
    bottom: int
    height: int

    @property
    def rows(self) -> slice:
        """The rows of the piece."""
        return slice(self.top, self.bottom)

    @property
    def around(self) -> slice:
        """The rows whose windows reach into the piece."""
        return slice(max(self.top - 1, 0), min(self.bottom + 1, self.height))

    @property
    def inner(self) -> slice:
        """Where ``around`` lies in a buffer with one row more than the piece at each end."""
        return slice(self.around.start - self.top + 1, self.around.stop - self.top + 1)

    @property
    def first(self) -> bool:
        """Whether the piece holds the first row of the image."""
        return self.top == 0

    @property
    def last(self) -> bool:
        """Whether the piece holds the last row of the image."""
        return self.bottom == self.height


def pieces(views: Tensor, targets: int) -> Iterator[Piece]:
    """Cut ``views`` (S x B, C, H, W) of B ``targets``; the batch runs fastest.

    On a CPU a piece is a band of one image, elsewhere all images of one source.
    """
    count, channels, height, width = views.shape
    on_cpu = views.device.type == "cpu"
    step = 1 if on_cpu else targets
    bands = max(1, round(channels * height * width / _PIECE)) if on_cpu else 1
    bands = max(1, min(bands, height // 2))  # reflection needs two rows
    for i in range(0, count, step):
        j = i % targets
        for k in range(bands):
            top, bottom = k * height // bands, (k + 1) * height // bands
            yield Piece(slice(i, i + step), slice(j, j + step), top, bottom, height)


def _sum_rows(x: Tensor) -> Tensor:
    """Sums of three rows, (..., R + 2, W) to (..., R, W)."""
    return (x[..., :-2, :] + x[..., 2:, :]).add_(x[..., 1:-1, :])


def _sum_columns(x: Tensor) -> Tensor:
    """Sums of three columns of a contiguous tensor; wrong in the first and the last column."""
    out = torch.empty_like(x)
    # One long row: neighbours across the ends of rows are what the caller puts right.
    flat, sums = x.view(-1), out.view(-1)
    torch.add(flat[:-2], flat[2:], out=sums[1:-1])
    sums[1:-1] += flat[1:-1]
    return out


def window_sum(x: Tensor, piece: Piece) -> Tensor:
    """Sums over 3x3 windows with reflected borders of the image.

    Args:
        x: (..., R + 2, W), the piece's R rows between their neighbours. Where there is none, the
            row is filled in.
        piece: tells where the image ends.

    Returns:
        (..., R, W).
    """
    if piece.first:
        x[..., 0, :] = x[..., 2, :]
    if piece.last:
        x[..., -1, :] = x[..., -3, :]
    rows = _sum_rows(x)
    out = _sum_columns(rows)
    out[..., 0] = rows[..., 0] + 2 * rows[..., 1]
    out[..., -1] = rows[..., -1] + 2 * rows[..., -2]
    return out


def window_sum_transposed(x: Tensor, piece: Piece) -> Tensor:
    """The transposed :func:`window_sum`, of the same shapes: it spreads what came from windows."""
    if piece.first:
        x[..., 0, :] = 0
    if piece.last:
        x[..., -1, :] = 0
    rows = _sum_rows(x)
    # The second row was read once more, by the window at the border; and so with columns.
    if piece.first:
        rows[..., 1, :] += x[..., 1, :]
    if piece.last:
        rows[..., -2, :] += x[..., -2, :]
    out = _sum_columns(rows)
    out[..., 0] = rows[..., 0] + rows[..., 1]
    out[..., -1] = rows[..., -1] + rows[..., -2]
    out[..., 1] += rows[..., 0]
    out[..., -2] += rows[..., -1]
    return out


def _buffer(maps: int, piece: Piece, like: Tensor) -> Tensor:
    """Room for ``maps`` of the piece with one more row at each end."""
    n, c, w = piece.views.stop - piece.views.start, like.shape[1], like.shape[3]
    return like.new_empty(maps, n, c, piece.bottom - piece.top + 2, w)


@dataclass(frozen=True)
class Statistics:
    """What the error needs of the target image, all (B, C, H, W); names as in the module's text.

    image: y. centre: m, (B, C, 1, 1). centred: q. double: 2 s(y). double_centred: 2 s(q).
    d1: s(y)^2 + c1. d2: 9 s(q^2) - s(q)^2 + c2.
    """

    image: Tensor
    centre: Tensor
    centred: Tensor
    double: Tensor
    double_centred: Tensor
    d1: Tensor
    d2: Tensor

    @classmethod
    def of(cls, image: Tensor) -> Statistics:
        """From an image (B, C, H, W)."""
        image = image.detach().contiguous()
        centre = image.mean((2, 3), keepdim=True)
        centred = image - centre
        sums, squares = torch.empty_like(image), torch.empty_like(image)
        for piece in pieces(image, image.shape[0]):
            buffer = _buffer(2, piece, image)
            q = centred[piece.views, :, piece.around]
            buffer[0, :, :, piece.inner] = q
            torch.mul(q, q, out=buffer[1, :, :, piece.inner])
            total = window_sum(buffer, piece)
            sums[piece.views, :, piece.rows] = total[0]
            squares[piece.views, :, piece.rows] = total[1]
        d2 = (9 * squares).addcmul_(sums, sums, value=-1).add_(C2)
        full = sums + 9 * centre
        return cls(image, centre, centred, 2 * full, 2 * sums, full * full + C1, d2)


class PhotometricError(torch.autograd.Function):
    """Error (S x B, 1, H, W) of views (S x B, C, H, W); gradients flow to the views alone."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, target: Statistics) -> Tensor:
        """0.85 (1 - SSIM) / 2 + 0.15 |x - y|, averaged over channels."""
        count, channels, height, width = views.shape
        error = views.new_empty(count, 1, height, width)
        maps = None
        if ctx.needs_input_grad[0]:
            maps = views.new_empty(3, *views.shape)
        for piece in pieces(views, target.image.shape[0]):
            here = None if maps is None else maps[:, piece.views, :, piece.rows]
            ssim = _ssim(views, target, piece, here)
            x = views[piece.views, :, piece.rows]
            l1 = (x - target.image[piece.targets, :, piece.rows]).abs_()
            l1.mul_((1 - SSIM_WEIGHT) / channels).sub_(ssim, alpha=SSIM_WEIGHT / 2 / channels)
            out = error[piece.views, :, piece.rows]
            torch.sum(l1, 1, keepdim=True, out=out)
            out += SSIM_WEIGHT / 2
        ctx.save_for_backward(views, maps)
        ctx.target = target
        return error.clamp_(min=0)  # rounding

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The transposed window sums of the maps, weighted with the gradient."""
        views, maps = ctx.saved_tensors
        target: Statistics = ctx.target
        channels = views.shape[1]
        out = torch.empty_like(views)
        ssim_weight = gradient * (-SSIM_WEIGHT / 2 / channels)
        l1_weight = gradient * ((1 - SSIM_WEIGHT) / channels)
        for piece in pieces(views, target.image.shape[0]):
            weighted = _buffer(3, piece, views)
            torch.mul(
                maps[:, piece.views, :, piece.around],
                ssim_weight[piece.views, :, piece.around],
                out=weighted[:, :, :, piece.inner],
            )
            by_sum, by_square, by_product = window_sum_transposed(weighted, piece)
            x = views[piece.views, :, piece.rows]
            part = (x - target.image[piece.targets, :, piece.rows]).sign_()
            part.mul_(l1_weight[piece.views, :, piece.rows]).add_(by_sum)
            part.addcmul_(by_square, x - target.centre[piece.targets], value=-18)
            part.addcmul_(by_product, target.centred[piece.targets, :, piece.rows], value=18)
            out[piece.views, :, piece.rows] = part
        return out, None


def _ssim(views: Tensor, target: Statistics, piece: Piece, maps: Tensor | None) -> Tensor:
    """SSIM of a piece, (n, C, R, W); fills ``maps`` (3, n, C, R, W) with its derivatives.

    They are those by s(p), by -9 s(p^2) and by 18 s(pq).
    """
    buffer = _buffer(3, piece, views)
    p, pp, pq = buffer[:, :, :, piece.inner]
    centre = target.centre[piece.targets]
    torch.sub(views[piece.views, :, piece.around], centre, out=p)
    torch.mul(p, p, out=pp)
    torch.mul(p, target.centred[piece.targets, :, piece.around], out=pq)
    sums, squares, products = window_sum(buffer, piece)
    full = sums + 9 * centre

    rows = (piece.targets, slice(None), piece.rows)
    double, double_centred = target.double[rows], target.double_centred[rows]
    n1 = (full * double).add_(C1)
    n2 = products.mul_(18).addcmul_(sums, double_centred, value=-1).add_(C2)
    d1 = torch.addcmul(target.d1[rows], full, full)
    d2 = torch.add(target.d2[rows], squares, alpha=9).addcmul_(sums, sums, value=-1)
    inverse = torch.mul(d1, d2).reciprocal_()
    if maps is None:
        return n1.mul_(n2).mul_(inverse)
    by_sum, by_square, by_product = maps
    torch.mul(n1, inverse, out=by_product)
    ssim = torch.mul(by_product, n2, out=squares)
    torch.mul(ssim, d1, out=by_square).mul_(inverse)
    numerator = n2.mul_(double).addcmul_(n1, double_centred, value=-1)
    denominator = sums.mul_(d1).addcmul_(full, d2, value=-1).mul_(ssim)
    torch.mul(numerator.add_(denominator, alpha=2), inverse, out=by_sum)
    return ssim


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


@dataclass(frozen=True)
class Edges:
    """How much a change of depth between neighbours counts: (B, 1, H - 1, W), (B, 1, H, W - 1)."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, image: Tensor) -> Edges:
        """From an image (B, 3, H, W) in [0, 1]: little where its colours change."""
        rows, columns = (
            torch.exp(-torch.diff(image.detach(), dim=dim).abs().mean(1, keepdim=True))
            for dim in (2, 3)
        )
        return cls(rows, columns)


def edge_aware_smoothness(inverse_depth: Tensor, image: Tensor | Edges) -> Tensor:
    """First differences of mean-normalised inverse depth, weak at image edges (monodepth2, eq. 3).

    Args:
        inverse_depth: (B, 1, H, W), positive.
        image: (B, 3, H, W) of the same size; or its edges, computed once for several depth maps.

    Returns:
        A scalar; the same for ``inverse_depth`` times any positive number per image.
    """
    edges = image if isinstance(image, Edges) else Edges.of(image)
    # Dividing the sums by the mean of the image is dividing each pixel, but for the passes.
    mean = inverse_depth.mean((1, 2, 3)) + 1e-7
    rows = (torch.diff(inverse_depth, dim=2).abs() * edges.rows).mean((1, 2, 3))
    columns = (torch.diff(inverse_depth, dim=3).abs() * edges.columns).mean((1, 2, 3))
    return ((rows + columns) / mean).mean()


def velocity_loss(translation: Tensor, driven: Tensor, metres_per_unit: float = 1.0) -> Tensor:
    """| |t| - driven | in metres: predicted motion is as long as the way driven.

    It makes the pose network's unit, and with it that of depth, ``metres_per_unit`` metres
    (PackNet, velocity supervision). The mean is over all images; one of unknown way adds zero.

    Args:
        translation: motion between two frames (B, 3), network units.
        driven: metres between the frames (B,), either direction; NaN where that is not known, which
            has no influence.
        metres_per_unit: length of the network's unit.
    """
    # The root has no derivative at no motion: there it gets none.
    squared = translation.square().sum(1)
    moved = squared > 0
    length = torch.where(moved, squared, torch.ones_like(squared)).sqrt()
    length = torch.where(moved, length, torch.zeros_like(length)) * metres_per_unit
    error = (length - driven.nan_to_num().abs().to(length)).abs()
    return torch.where(driven.isfinite(), error, torch.zeros_like(error)).mean()
