"""How much depth flickers: that of a frame, moved onto the next one, against what is said there.

A figure of its own beside accuracy: depth that is wrong by the same share in every frame does not
flicker, depth whose scale wanders does. Only what stands still and stays visible counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse

if TYPE_CHECKING:
    from depth_prior_ros.evaluation.frames import EvaluationFrame

_FARTHEST = 80.0  # metres
_EDGE = 1.15  # depth of neighbours that differs by more than this factor is an edge
_HIDDEN = 1.05  # what lies this much behind what is moved to the same place is hidden by it
_LONGEST_NS = 500_000_000
_LEAST = 64  # pixels
_NEAREST = 0.1  # metres


def flicker(
    previous: NDArray[Any],
    current: NDArray[Any],
    camera: Camera,
    current_from_previous: NDArray[np.float64],
    moving: Sequence[NDArray[np.bool_] | None] = (None, None),
) -> float | None:
    """Mean relative difference between depth moved onto the next frame and the depth there.

    previous, current: (h, w) metres, not finite or not positive = unknown. camera: of both.
    current_from_previous: (4, 4), metres. moving: (h, w) of both, what moves by itself. None where
    too few pixels can be compared: those that are known, nearer than 80 m, not at an edge of depth,
    and visible in both.
    """
    usable = [_inner(depth, mask) for depth, mask in zip((previous, current), moving, strict=True)]
    height, width = current.shape
    v, u = np.nonzero(usable[0])
    z = previous[v, u].astype(np.float64)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(z.size)])
    moved = current_from_previous[:3, :3] @ (rays * z) + current_from_previous[:3, 3:]
    moved = moved[:, moved[2] > _NEAREST]
    x = camera.fx * moved[0] / moved[2] + camera.cx
    y = camera.fy * moved[1] / moved[2] + camera.cy
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y, z = x[inside], y[inside], moved[2][inside]
    if z.size < _LEAST:
        return None
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    seen = usable[1][row, column] & (z <= _HIDDEN * _nearest(row, column, z, (height, width)))
    if seen.sum() < _LEAST:
        return None
    inverse = np.zeros(current.shape, np.float32)  # planes are flat in inverse depth
    np.divide(1.0, current, out=inverse, where=np.isfinite(current) & (current > 0))
    place = x[seen].astype(np.float32), y[seen].astype(np.float32)
    there = 1.0 / _sampled(inverse, *place)
    return float(np.mean(np.abs(there - z[seen]) / z[seen]))


def _inner(depth: NDArray[Any], moving: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(h, w): what is known, stands still, and has no edge of depth beside it."""
    known = np.isfinite(depth) & (depth > 0) & (depth < _FARTHEST)
    filled = np.where(known, depth, 1e6).astype(np.float32)
    square = np.ones((3, 3), np.uint8)
    smooth = cv2.dilate(filled, square) <= _EDGE * cv2.erode(filled, square)
    return known & smooth if moving is None else known & smooth & ~moving


def _nearest(
    row: NDArray[np.int64], column: NDArray[np.int64], z: NDArray[Any], shape: tuple[int, int]
) -> NDArray[Any]:
    """The nearest depth that is moved to the neighbourhood of each point's pixel."""
    nearest = np.full(shape, np.float32(1e6))
    np.minimum.at(nearest, (row, column), z.astype(np.float32))
    return cv2.erode(nearest, np.ones((3, 3), np.uint8))[row, column]


def _sampled(
    picture: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Values of (h, w) at places between pixels, bilinear; cv2.remap rounds places to 32nds."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right = np.minimum(left + 1, picture.shape[1] - 1)
    below = np.minimum(top + 1, picture.shape[0] - 1)
    across, down = (x - left).astype(np.float64), (y - top).astype(np.float64)
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[below, left] * (1 - across) + picture[below, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


@dataclass
class FlickerMeter:
    """Measures from frame to frame; keeps the frame before.

    Both depths of a pair are scaled by one factor, the mean of what the truth makes of each: so a
    wrong metric factor, which makes a step of the camera too long or too short, is no flicker.
    """

    _before: dict[str, Any] | None = None

    def add(self, frame: EvaluationFrame, depth: NDArray[Any], ratio: float) -> float | None:
        """The flicker from the frame before to this one; None where that cannot be said.

        depth: (h, w) of the frame's window. ratio: truth over depth, by medians.
        """
        before, self._before = self._before, None
        if frame.pose is None or frame.view is None or not (np.isfinite(ratio) and ratio > 0):
            return None
        size = depth.shape[1], depth.shape[0]
        moving = frame.moving
        if moving is not None:
            shrunk = cv2.resize(moving.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            moving = shrunk > 0
        self._before = now = {
            "index": frame.index,
            "stamp_ns": frame.stamp_ns,
            "pose": frame.pose,
            "depth": depth,
            "moving": moving,
            "ratio": ratio,
        }
        if before is None or before["depth"].shape != depth.shape:
            return None
        apart = now["stamp_ns"] - before["stamp_ns"]
        if now["index"] != before["index"] + 1 or not 0 < apart <= _LONGEST_NS:
            return None
        common = np.sqrt(before["ratio"] * ratio)
        return flicker(
            before["depth"] * common,
            depth * common,
            frame.view.scaled(*size),
            rigid_inverse(frame.pose) @ before["pose"],
            (before["moving"], moving),
        )

    def state(self) -> dict[str, Any] | None:
        """The frame before, as plain data and arrays."""
        return self._before

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state`."""
        self._before = None if state is None else dict(state)


def mean_flicker(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """`flicker`, the mean over pairs of frames, and `flicker_pairs`, their number."""
    known = [value for value in values if value is not None]
    return {"flicker": fmean(known) if known else None, "flicker_pairs": len(known)}
