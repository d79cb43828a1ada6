"""The colours of pages and their pictures: depth, errors and weights."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

INK, DIM, BACK, CARD, LINE = "#e8eaf0", "#9aa3b5", "#12141c", "#1b1f2b", "#2c3243"
BLUE, ORANGE, GREEN, RED = "#7aa2ff", "#f0a94b", "#4cd7a5", "#ff7d8f"

UNKNOWN, BEYOND = (96, 96, 96), (18, 20, 32)
_STEPS = 24  # of a gradient


def colour_depth(depth: NDArray[Any], near: float, far: float) -> NDArray[np.uint8]:
    """Depth (...) in metres as RGB (..., 3): turbo over log depth, near is red, far is blue.

    NaN and 0 (unknown) are grey, +inf (beyond range) is nearly black.
    """
    known = depth > 0
    position = np.zeros(depth.shape)
    finite = known & np.isfinite(depth)
    position[finite] = np.log(depth[finite] / near) / np.log(far / near)
    # The ends of turbo, nearly black, are left out.
    coloured = _mapped(cv2.COLORMAP_TURBO, 20 + 215 * (1 - np.clip(position, 0, 1)))
    coloured[np.isposinf(depth)] = BEYOND
    coloured[~known] = UNKNOWN
    return coloured


def colour_heat(position: NDArray[Any]) -> NDArray[np.uint8]:
    """0..1 (...), NaN as 0, to RGB (..., 3) from dark blue over red to pale yellow (inferno)."""
    return _mapped(cv2.COLORMAP_INFERNO, 30 + 225 * np.clip(np.nan_to_num(position), 0, 1))


def _mapped(colour_map: int, levels: NDArray[Any]) -> NDArray[np.uint8]:
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colour_map)[:, 0, ::-1]
    return np.ascontiguousarray(table[np.rint(levels).astype(np.uint8)])


def depth_gradient(near: float, far: float) -> str:
    """The colours of `colour_depth` from near to far, as a CSS background."""
    return _gradient(colour_depth(np.geomspace(near, far, _STEPS), near, far))


def depth_gradient_pixels(near: float, far: float, steps: int = 120) -> NDArray[np.uint8]:
    """The colours of `colour_depth` from near to far, (steps, 3) RGB."""
    return colour_depth(np.geomspace(near, far, steps), near, far)


def heat_gradient() -> str:
    """The colours of `colour_heat` from 0 to 1, as a CSS background."""
    return _gradient(colour_heat(np.linspace(0, 1, _STEPS)))


def css(colour: NDArray[np.uint8]) -> str:
    """An RGB colour (3,) for a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, colour))


def _gradient(colours: NDArray[np.uint8]) -> str:
    return f"linear-gradient(90deg,{','.join(map(css, colours))})"


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
