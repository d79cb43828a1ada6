"""What real frames lend to the rendered ones: patches for surfaces, and their grey levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

SIZE = 256  # side of a texture layer, pixels
_REAL_LAYERS = 30
_REAL_GROUND_LAYERS = 6


def opaque(rgb: np.ndarray) -> np.ndarray:
    """A layer (SIZE, SIZE, 4) uint8 without holes from colours in [0, 1]."""
    out = np.empty((SIZE, SIZE, 4), np.uint8)
    out[..., :3] = np.clip(rgb * 255.0, 0, 255)
    out[..., 3] = 255
    return out


def is_green(patch: np.ndarray) -> bool:
    """Whether a patch is foliage: greenish and busy."""
    mean = patch[..., :3].reshape(-1, 3).mean(0)
    fine = np.abs(np.diff(patch[..., 1].astype(np.float32), axis=0)).mean()
    return bool(mean[1] > 1.04 * mean[2] and mean[1] >= 0.97 * mean[0] and fine > 5.0)


def real_patches(
    rng: np.random.Generator, images: Sequence[Path], ground: bool = False
) -> list[np.ndarray]:
    """Square patches from the sides (or the road) of real frames, mirrored so that they tile."""
    patches: list[np.ndarray] = []
    attempts = 0
    wanted = _REAL_GROUND_LAYERS if ground else _REAL_LAYERS
    while images and len(patches) < wanted and attempts < 4 * wanted:
        attempts += 1
        frame = cv2.imread(str(images[int(rng.integers(len(images)))]), cv2.IMREAD_COLOR)
        if frame is None:
            continue
        height, width = frame.shape[:2]
        side = int(rng.uniform(0.2, 0.55) * height)
        x = int(rng.uniform(0, 0.3) * width)
        x = x if rng.random() < 0.5 else width - side - x
        y = int(rng.uniform(0.05, 0.6) * height)
        if ground:
            side = int(rng.uniform(0.15, 0.25) * height)
            x, y = int(rng.uniform(0.25, 0.7) * width), height - side - 1
        crop = cv2.cvtColor(frame[y : y + side, x : x + side], cv2.COLOR_BGR2RGB)
        # Neither sky nor black shadow, nor a stretch that is half of each.
        if not 15 < crop.mean() < 190 or (crop.min(-1) > 235).mean() > 0.15:
            continue
        crop = cv2.resize(crop, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
        crop = crop.astype(np.float32) / 255.0
        crop *= (0.42 / crop.mean()) ** (1.0 if ground else 0.7)
        half = np.concatenate([crop, crop[:, ::-1]], 1)
        patches.append(opaque(np.concatenate([half, half[::-1]], 0)))
    return patches


def tone_quantiles(
    rng: np.random.Generator, images: Sequence[Path], count: int, knots: int = 33
) -> np.ndarray:
    """Grey-level quantiles per channel of random real frames, (up to count, knots, 3) float32."""
    share = np.linspace(0, 1, knots)
    found = []
    for _ in range(count if images else 0):
        frame = cv2.imread(str(images[int(rng.integers(len(images)))]), cv2.IMREAD_COLOR)
        if frame is not None:
            pixels = frame[::4, ::4, ::-1].reshape(-1, 3)
            found.append(np.quantile(pixels, share, axis=0))
    return np.asarray(found, np.float32).reshape(-1, knots, 3)
