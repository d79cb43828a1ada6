"""Which triangle does each pixel's ray meet first: exact, in numpy, without a GPU.

A corner is given in homogeneous pixels (u * w, v * w, w): w is its depth in a perspective view and
1 in a parallel one. With the corners as the columns of a matrix A, the point that the ray of pixel
(u, v) meets in the triangle's plane has barycentric weights inv(A) (u, v, 1) * w, and it lies in
the triangle where all three are positive. So weights / w, and with them 1 / w, are linear in the
image, and no triangle needs clipping, also none that reaches behind the camera. Instead of a tree
through which rays search triangles, each triangle names the pixels of its rows that it covers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_SLACK = 1e-9  # pixels; a ray through the common edge of two triangles must meet one of them
_EMPTY = np.int64(-1)
_BLOCK = 1 << 15  # rays
Solid = Callable[[_Ints, _Ints, _Ints], NDArray[np.bool_]]
"""(rows of `Triangles`, x, y) to whether the triangle has no hole there."""


@dataclass(frozen=True)
class Triangles:
    """The triangles that may cover a pixel centre of an image.

    number (T,): their rows in the mesh. planes (T, 3, 3): rows are the linear functions of
    (u, v, 1) that give barycentric weight / w. key (T, 3): the linear function by which the first
    hit is found, greatest first. box (T, 4): x0, y0, x1, y1, inclusive.
    """

    number: _Ints
    planes: _Floats
    key: _Floats
    box: _Ints

    def total(self) -> _Floats:
        """(T, 3) the linear function that gives 1 / w."""
        return self.planes[:, 0] + self.planes[:, 1] + self.planes[:, 2]


def project(corners: _Floats, keys: _Floats, size: tuple[int, int], near: float) -> Triangles:
    """Triangles (N, 3, 3) as homogeneous pixels with the key of each corner (N, 3), times w.

    keys: what is interpolated for the order: 1 gives 1 / w (perspective).
    """
    box = _boxes(corners, size, near)
    number = np.flatnonzero((box[:, 0] <= box[:, 2]) & (box[:, 1] <= box[:, 3]))
    planes, regular = _inverse(corners[number])
    number, planes = number[regular], planes[regular]
    return Triangles(number, planes, np.einsum("ti,tij->tj", keys[number], planes), box[number])


def _inverse(corners: _Floats) -> tuple[_Floats, NDArray[np.bool_]]:
    """Inverses of the matrices whose columns are the corners, and which of them exist."""
    a, b, c = (corners[:, i].T for i in range(3))
    rows = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)  # (3, 3, T)
    determinant = a[0] * rows[0, 0] + a[1] * rows[1, 0] + a[2] * rows[2, 0]
    regular = np.abs(determinant) > 1e-12
    rows /= np.where(regular, determinant, 1.0)
    return np.ascontiguousarray(np.moveaxis(rows, 2, 0).transpose(0, 2, 1)), regular


def _cross(a: _Floats, b: _Floats) -> _Floats:
    return np.stack(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


def _boxes(corners: _Floats, size: tuple[int, int], near: float) -> _Ints:
    """Pixels (N, 4) that each triangle can cover: x0, y0, x1, y1, inclusive."""
    w = corners[..., 2]
    ahead = w > near
    count = ahead[:, 0].astype(int) + ahead[:, 1] + ahead[:, 2]  # reductions of 3 are slow
    low = np.full((len(corners), 2), np.inf)
    high = -low
    whole = count == 3
    first, second, third = (corners[whole, i, :2] / w[whole, i, None] for i in range(3))
    low[whole] = np.minimum(np.minimum(first, second), third)
    high[whole] = np.maximum(np.maximum(first, second), third)
    cut = np.flatnonzero((count > 0) & (count < 3))
    low[cut], high[cut] = _clipped(corners[cut], ahead[cut], near)
    limit = np.array(size) - 1
    low = np.ceil(np.clip(low - _SLACK, 0, limit + 1))
    high = np.floor(np.clip(high + _SLACK, -1, limit))
    return np.concatenate([low, high], 1).astype(np.int64)


def _clipped(corners: _Floats, ahead: NDArray[np.bool_], near: float) -> tuple[_Floats, _Floats]:
    """Extent in the image of the part of each triangle that lies beyond the near plane."""
    low = np.full((len(corners), 2), np.inf)
    high = -low
    for i in range(3):
        j = (i + 1) % 3
        a, b = corners[:, i], corners[:, j]
        crossing = ahead[:, i] != ahead[:, j]
        run = np.where(crossing, b[:, 2] - a[:, 2], 1.0)
        at = a[:, :2] + ((near - a[:, 2]) / run)[:, None] * (b[:, :2] - a[:, :2])
        own = a[:, :2] / np.where(ahead[:, i], a[:, 2], 1.0)[:, None]
        for points, valid in ((at / near, crossing), (own, ahead[:, i])):
            low = np.where(valid[:, None], np.minimum(low, points), low)
            high = np.where(valid[:, None], np.maximum(high, points), high)
    return low, high


class HitMap:
    """The first hit of every ray so far: a key and a triangle for each pixel."""

    def __init__(self, size: tuple[int, int], limits: tuple[float, float]) -> None:
        """size: (width, height). limits: hits whose key lies outside are none."""
        self.size = size
        self._limits = limits
        self._best = np.full(size[0] * size[1], _EMPTY)

    def copy(self) -> HitMap:
        """A map of its own with the same hits."""
        other = HitMap(self.size, self._limits)
        other._best = self._best.copy()
        return other

    def keys(self) -> NDArray[np.float32]:
        """(H, W) float32 keys; 0 where nothing was hit."""
        keys = (np.maximum(self._best, 0) >> 32).astype(np.uint32).view(np.float32)
        return keys.reshape(self.size[1], self.size[0])

    def triangles(self) -> _Ints:
        """(H, W) numbers of the triangles hit first, -1 = none."""
        hit = np.where(self._best == _EMPTY, -1, self._best & 0xFFFFFFFF)
        return hit.reshape(self.size[1], self.size[0])

    def add(self, triangles: Triangles, solid: Solid | None = None, offset: int = 0) -> None:
        """Enter triangles under their number + offset; `solid` says where they have no hole."""
        which, y, x0, x1 = _spans(triangles)
        if not len(which):
            return
        # A block at a time, so that what is computed for it stays in the processor's cache.
        block = np.cumsum(x1 - x0 + 1) // _BLOCK
        starts = np.flatnonzero(np.diff(block)) + 1
        for first, last in itertools.pairwise([0, *starts.tolist(), len(which)]):
            part = slice(first, last)
            self._add_spans(triangles, which[part], y[part], x0[part], x1[part], solid, offset)

    def _add_spans(
        self,
        triangles: Triangles,
        which: _Ints,
        y: _Ints,
        x0: _Ints,
        x1: _Ints,
        solid: Solid | None,
        offset: int,
    ) -> None:
        width = self.size[0]
        key = triangles.key[which]
        base, slope = key[:, 0] * x0 + key[:, 1] * y + key[:, 2], key[:, 0]
        length = x1 - x0 + 1
        start = np.cumsum(length) - length
        count = int(length.sum())
        step = np.arange(count) - np.repeat(start, length)
        value = np.repeat(base, length) + np.repeat(slope, length) * step
        pixel = np.repeat(y * width + x0, length) + step
        owner = np.repeat(which, length)
        low, high = self._limits
        kept = (value > low) & (value < high)
        if not kept.all():
            value, pixel, owner = value[kept], pixel[kept], owner[kept]
        entry = value.astype(np.float32).view(np.uint32).astype(np.int64) << 32
        if solid is not None:
            kept = entry > self._best[pixel]
            entry, pixel, owner = entry[kept], pixel[kept], owner[kept]
            kept = solid(owner, pixel % width, pixel // width)
            entry, pixel, owner = entry[kept], pixel[kept], owner[kept]
        np.maximum.at(self._best, pixel, entry | (triangles.number[owner] + offset))


def _spans(triangles: Triangles) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Rows of pixels that the triangles cover: triangle, y, first x, last x."""
    x0, y0, x1, y1 = triangles.box.T
    rows = y1 - y0 + 1
    start = np.cumsum(rows) - rows
    which = np.repeat(np.arange(len(rows)), rows)
    y = np.arange(len(which)) - np.repeat(start - y0, rows)
    left, right = x0[which].astype(float), x1[which].astype(float)
    for i in range(3):
        a, b, c = triangles.planes[:, i].T
        slope = a[which]
        rest = b[which] * y + c[which]
        with np.errstate(divide="ignore", invalid="ignore"):
            edge = -rest / slope
        left = np.where(slope > 0, np.maximum(left, edge), left)
        right = np.where(slope < 0, np.minimum(right, edge), right)
        right = np.where((slope == 0) & (rest < 0), -1.0, right)
    first = np.ceil(left - _SLACK).astype(np.int64)
    last = np.floor(right + _SLACK).astype(np.int64)
    covered = first <= last
    return which[covered], y[covered], first[covered], last[covered]
