"""Predicted depth in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def colour_inverse_depth(inverse: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Inverse depth (H, W) in turbo, near = red, (H, W, 3) uint8 RGB; black where unknown.

    Spread from zero to the 98th percentile, so that pictures of any unit compare.
    """
    known = np.isfinite(inverse)
    top = float(np.percentile(inverse[known], 98)) if known.any() else 1.0
    grey = np.where(known, np.clip(inverse / max(top, 1e-9), 0, 1) * 255, 0).astype(np.uint8)
    colour = cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[..., ::-1].copy()
    colour[~known] = 0
    return colour


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H, W, 3) under a temporary name, then rename it."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise OSError(f"{path}: the picture could not be encoded")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data.tobytes())
    temporary.replace(path)
