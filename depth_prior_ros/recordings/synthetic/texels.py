"""Looks textures up in numpy: coarser copies of every layer, as a GPU keeps them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.synthetic.textures import SIZE, TextureBank

_Floats = NDArray[np.floating]


class Texels:
    """Every layer of a bank at 256, 128, ... 1 pixels."""

    def __init__(self, bank: TextureBank) -> None:
        level = np.ascontiguousarray(bank.pixels)
        levels = [level]
        while level.shape[1] > 1:
            quarter = level.reshape(len(level), level.shape[1] // 2, 2, level.shape[2] // 2, 2, 4)
            level = ((quarter.sum((2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)
            levels.append(level)
        self._flat = np.concatenate([one.reshape(-1, 4) for one in levels]).view(np.uint32)[:, 0]
        sizes = np.array([one.shape[1] for one in levels])
        self._sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes**2 * len(bank.pixels))[:-1]])

    def level(self, footprint: _Floats) -> NDArray[np.int64]:
        """The copy whose pixels are about as large as an image's pixel: footprint in tiles."""
        size = np.log2(np.maximum(footprint * SIZE, 1.0))
        return np.minimum(np.rint(size), len(self._sizes) - 1).astype(np.int64)

    def nearest(
        self, layer: NDArray[np.int64], uv: _Floats, level: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """(N, 4) uint8 RGBA of the closest texel; uv (N, 2) in tiles, wrapped."""
        size = self._sizes[level]
        x, y = (np.floor(uv[:, i] * size).astype(np.int64) & (size - 1) for i in range(2))
        return self._at(layer, x, y, size, level)

    def smooth(
        self, layer: NDArray[np.int64], uv: _Floats, level: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(N, 3) float32 RGB in [0, 1] between the four closest texels."""
        size = self._sizes[level]
        place = uv * size[:, None] - 0.5
        corner = np.floor(place)
        share = (place - corner).astype(np.float32)
        x, y = corner[:, 0].astype(np.int64), corner[:, 1].astype(np.int64)
        total = np.zeros((len(uv), 3), np.float32)
        for i in (0, 1):
            for j in (0, 1):
                weight = np.abs(1 - j - share[:, 0]) * np.abs(1 - i - share[:, 1])
                texel = self._at(layer, (x + j) & (size - 1), (y + i) & (size - 1), size, level)
                total += weight[:, None] * texel[:, :3]
        return total * np.float32(1 / 255)

    def _at(
        self,
        layer: NDArray[np.int64],
        x: NDArray[np.int64],
        y: NDArray[np.int64],
        size: NDArray[np.int64],
        level: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        index = self._starts[level] + (layer * size + y) * size + x
        return self._flat[index].view(np.uint8).reshape(-1, 4)
