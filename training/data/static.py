"""Triplets of a standing camera: nothing to learn from, the views do not differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.motion.gate import ImageMotion
from depth_prior_ros.recordings.base import CorruptFrameError, Frame
from training.recipes.data import Static

Triplet = tuple[int, int, int]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class StaticRule:
    """When the camera stands between two frames.

    speed: m/s, by recorded poses or speeds; motion: pixels of 160x48 between the two frames, by
    image motion. Where a rule knows nothing of two frames, they are kept.
    """

    kind: Static = "none"
    speed: float = 0.5
    motion: float = 0.12


@dataclass(frozen=True)
class Travel:
    """Metres between frames of one recording, from poses where there are any, else from speeds."""

    frames: Sequence[Frame]

    def metres(self, a: int, b: int) -> float:
        """Travel from position ``a`` to ``b`` >= a; NaN where it was not recorded."""
        first, last = self.frames[a].pose, self.frames[b].pose
        if first is not None and last is not None:
            return float(np.linalg.norm(last[:3, 3] - first[:3, 3]))
        speeds = [self.frames[i].speed for i in range(a, b + 1)]
        known = np.array([np.nan if speed is None else speed for speed in speeds])
        seconds = np.array([self.frames[i].stamp_ns - self.frames[a].stamp_ns for i in range(a, b)])
        seconds = np.append(seconds, self.frames[b].stamp_ns - self.frames[a].stamp_ns) * 1e-9
        way = np.sum((known[1:] + known[:-1]) / 2 * np.diff(seconds))
        return float(abs(way)) if np.isfinite(way) else float("nan")

    def speed(self, a: int, b: int) -> float:
        """Mean speed between two positions in m/s; NaN where it was not recorded."""
        seconds = (self.frames[b].stamp_ns - self.frames[a].stamp_ns) * 1e-9
        return self.metres(a, b) / seconds if seconds > 0 else float("nan")


def moving_triplets(
    triplets: Sequence[Triplet],
    travel: Travel,
    picture: Callable[[int], Picture],
    rule: StaticRule,
) -> list[Triplet]:
    """The triplets whose camera moves both before and after the middle frame.

    ``picture`` reads a frame by position; one that cannot be read says nothing.
    """
    if rule.kind == "none":
        return list(triplets)
    motions = _ImageMotions(picture)

    def stands(a: int, b: int) -> bool:
        speed = float("nan") if rule.kind == "image" else travel.speed(a, b)
        if rule.kind == "speed" or not np.isnan(speed):
            return speed < rule.speed
        motion = motions.between(a, b)
        return motion is not None and motion < rule.motion

    kept = []
    for before, now, after in triplets:
        motions.forget(before)
        if not (stands(before, now) or stands(now, after)):
            kept.append((before, now, after))
    return kept


class _ImageMotions:
    """Image motion between frames; what was read or measured is kept while it may be needed."""

    def __init__(self, picture: Callable[[int], Picture]) -> None:
        self._picture = picture
        self._measure = ImageMotion()
        self._grey: dict[int, Picture | None] = {}
        self._known: dict[tuple[int, int], float | None] = {}

    def between(self, a: int, b: int) -> float | None:
        if (a, b) not in self._known:
            first, second = self._prepared(a), self._prepared(b)
            if first is None or second is None:
                self._known[a, b] = None
            else:
                self._known[a, b] = self._measure.measure(first, second)
        return self._known[a, b]

    def forget(self, before: int) -> None:
        """Triplets come in order: what lies before this position is not asked for again."""
        self._grey = {i: grey for i, grey in self._grey.items() if i >= before}
        self._known = {pair: value for pair, value in self._known.items() if pair[0] >= before}

    def _prepared(self, position: int) -> Picture | None:
        if position not in self._grey:
            try:
                self._grey[position] = ImageMotion.prepare(self._picture(position))
            except CorruptFrameError:
                self._grey[position] = None
        return self._grey[position]
