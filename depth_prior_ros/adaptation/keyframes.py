"""Keyframes of a drive: small pictures, and what is known of their depth.

Where a sensor knows depth (LiDAR, a renderer) a keyframe has it. Elsewhere it is the multi-frame
network's, at the cells where the search range spans enough parallax, so that it is matched and not
taken over from the single-frame network. Its unit is that of the step between the two frames:
odometry's length of that step makes it metres, or the road, which lies a known height below the
camera. Where there is no multi-frame network it is that of points which are followed from picture
to picture, in metres by odometry.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import NetworkInput
from depth_prior_ros.pipeline.results import MatchedFrame
from depth_prior_ros.scale import (
    BASELINE,
    NothingMeasuredError,
    Points,
    PointTracker,
    RoadSettings,
    ScaleSight,
    same_view,
)
from depth_prior_ros.scale.road import NoRoadError, fit_road

CELL = 8
"""Pixels of the network's input between two places with depth, each way."""

NEAREST, FARTHEST = 0.5, 80.0
"""Metres; depth outside is not used."""

MOST_BYTES = 100_000_000
MOST = 128
"""Bytes and keyframes that a `DriveMemory` holds at most."""

PARALLAX = 4.0
"""Pixels from which depth by matching alone counts: twice the bundle's threshold where that is less
(a network for small pictures), the threshold itself where it is more."""

_SPACING_METRES, _SPACING_SECONDS = 3.0, 0.5
_LEAST_CELLS = 0.1  # of a keyframe's cells that must have depth
_LEAST_POINTS = 25  # cells, where only corners of the picture have any
_MIN_STEP = 0.1  # metres; the length of shorter steps is mostly noise
_OFF = math.log(1.3)  # from the median: a step or a road that was measured wrong


class AdaptationError(Exception):
    """A bundle cannot be fitted to a drive; the message says why, and what to do."""


@dataclass(frozen=True)
class Keyframe:
    """A picture with some depth.

    pixels: (h, w, 3) uint8 RGB at the network's size, of `camera`. depth: (h / 8, w / 8) float32
    at the centres of cells, 0 = unknown; metres, or units before `in_metres`.
    """

    stamp_ns: int
    pixels: NDArray[np.uint8]
    camera: Camera
    depth: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.pixels.nbytes + self.depth.nbytes

    def planes(self) -> NDArray[np.float32]:
        """The picture as networks are shown it, (3, h, w) in [0, 1]."""
        planes = np.ascontiguousarray(self.pixels.transpose(2, 0, 1))
        return planes.astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class MatchedKeyframe(Keyframe):
    """A keyframe with matched depth, in units.

    metres, units: length of the step that was matched with, by odometry or speed, and in units;
    road: height of the camera above the road in units; None where unknown.
    """

    metres: float | None = None
    units: float = 0.0
    road: float | None = None


def measured_keyframe(
    stamp_ns: int, framed: NetworkInput, depth: NDArray[np.float32]
) -> Keyframe | None:
    """A keyframe of a picture whose depth (H, W) in metres, 0 = none, a sensor knows.

    None where too little of it lies in the picture.
    """
    cells = depth_at_cells(depth, framed)
    if (cells > 0).mean() < _LEAST_CELLS:
        return None
    return Keyframe(stamp_ns, framed.pixels, framed.camera, cells)


def depth_at_cells(depth: NDArray[np.float32], framed: NetworkInput) -> NDArray[np.float32]:
    """Known depth (H, W) at the cells of a framed picture, see `_at_cells`."""
    # Depth may be coarser than the picture.
    scale_x = framed.source_size[0] / depth.shape[1]
    scale_y = framed.source_size[1] / depth.shape[0]
    rows, columns = np.nonzero((depth > NEAREST) & (depth < FARTHEST))
    region = framed.region
    y = ((rows + 0.5) * scale_y - region.y) / region.height
    x = ((columns + 0.5) * scale_x - region.x) / region.width
    return _at_cells(x, y, depth[rows, columns], framed.camera)


def _at_cells(
    x: NDArray[np.floating], y: NDArray[np.floating], depth: NDArray[np.floating], camera: Camera
) -> NDArray[np.float32]:
    """Of points the one nearest to the centre of each cell, within a quarter of it; 0 = unknown.

    x, y: (n,) places in widths and heights of the picture. depth: (n,) metres. (h / 8, w / 8) of
    the camera's picture.
    """
    height, width = camera.height // CELL, camera.width // CELL
    cells = np.zeros((height, width), np.float32)
    y, x = y * height, x * width
    away = np.maximum(np.abs(y - np.floor(y) - 0.5), np.abs(x - np.floor(x) - 0.5))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (away < 0.25)
    order = np.argsort(-away[inside])  # the nearest last, which stays
    cell = y[inside][order].astype(int), x[inside][order].astype(int)
    cells[cell] = depth[inside][order]
    return cells


def followed_keyframe(points: Points, sight: ScaleSight) -> MatchedKeyframe | None:
    """A keyframe of a frame's points; None where too few are near, and near a cell's centre."""
    assert sight.picture is not None  # in which they were followed
    try:
        points = points.near()
    except NothingMeasuredError:
        return None
    camera, depth = sight.camera, 1 / points.inverse
    known = (depth > NEAREST) & (depth < FARTHEST)
    x, y = ((points.place[known] + 0.5) / (camera.width, camera.height)).T
    cells = _at_cells(x, y, depth[known], camera)
    if np.count_nonzero(cells) < _LEAST_POINTS:
        return None
    # Its unit is the metre, whatever the length of the step.
    return MatchedKeyframe(sight.stamp_ns, sight.picture, camera, cells, BASELINE, BASELINE)


def matched_keyframe(
    matched: MatchedFrame, parallax: float, road: RoadSettings | None
) -> MatchedKeyframe | None:
    """A keyframe of a frame that was matched; None where too little of it has parallax.

    Args:
        matched: what the pipeline found.
        parallax: the bundle's threshold in pixels, see `PARALLAX`; 0: every cell counts.
        road: how the road is looked for; None: it is not.
    """
    height, width = matched.inverse.shape
    rows, columns = height // CELL, width // CELL
    finer = matched.parallax.reshape(rows, matched.parallax.shape[0] // rows, columns, -1)
    trusted = finer.min(axis=(1, 3)) >= max(parallax, min(2 * parallax, PARALLAX))
    inverse = matched.matched[CELL // 2 :: CELL, CELL // 2 :: CELL]
    trusted &= np.isfinite(inverse) & (inverse > 0)
    if trusted.mean() < _LEAST_CELLS:
        return None
    depth = np.zeros((rows, columns), np.float32)
    np.divide(np.float32(matched.stretch), inverse, out=depth, where=trusted)
    framed, above = matched.framed, None
    if road is not None:
        with suppress(NoRoadError):
            real = matched.inverse / np.float32(matched.stretch)
            above = fit_road(real, framed.camera, road).height
    return MatchedKeyframe(
        matched.stamp_ns,
        framed.pixels,
        framed.camera,
        depth,
        matched.metres,
        matched.units,
        above,
    )


def in_metres(
    keyframes: Iterable[MatchedKeyframe], camera_height: float | None = None
) -> list[Keyframe]:
    """The keyframes whose metres are known, their depth in metres.

    Args:
        keyframes: with depth in units.
        camera_height: metres from the road to the camera: used in place of odometry.

    Raises:
        AdaptationError: none of them has metres.
    """
    found = [(frame, _factor(frame, camera_height)) for frame in keyframes]
    known = [(frame, factor) for frame, factor in found if factor is not None]
    if not known:
        raise AdaptationError(_nothing(len(found), camera_height))
    middle = float(np.median([math.log(factor) for _, factor in known]))
    result = []
    for frame, factor in known:
        if abs(math.log(factor) - middle) > _OFF:
            continue
        depth = frame.depth * np.float32(factor)
        depth[(depth < NEAREST) | (depth > FARTHEST)] = 0
        result.append(Keyframe(frame.stamp_ns, frame.pixels, frame.camera, depth))
    return result


def _factor(frame: MatchedKeyframe, camera_height: float | None) -> float | None:
    """Metres per unit of one keyframe; None where nobody knows."""
    if camera_height is not None:
        return None if frame.road is None else camera_height / frame.road
    if frame.metres is None or frame.metres < _MIN_STEP or frame.units <= 0:
        return None
    return frame.metres / frame.units


def _nothing(count: int, camera_height: float | None) -> str:
    if not count:
        return "no keyframe with depth: drive on; pictures have to move by some pixels between two"
    if camera_height is not None:
        return (
            f"no flat road is seen in any of {count} keyframes, so the camera's height gives no "
            "metres: check the camera's pitch and the share of the picture that shows the vehicle"
        )
    return (
        f"{count} keyframes, but nothing says how far the vehicle went: metres need odometry or a "
        "speed, or the camera's height above the road"
    )


class DriveMemory:
    """The keyframes of the last minutes, spaced by distance, or by time where none is known.

    Any thread may look while another fills it. What is kept is bounded: where there are too many,
    every second one goes, and the spacing doubles.

    Args:
        seconds: how far back they go.
        parallax: the bundle's threshold in pixels, 0: none, see `PARALLAX`.
        road: how the road is looked for; None: it is not.
    """

    def __init__(
        self,
        seconds: float = math.inf,
        parallax: float = 0.0,
        road: RoadSettings | None = None,
    ) -> None:
        self.seconds, self.parallax, self.road = seconds, parallax or PARALLAX, road
        self._lock = threading.Lock()
        self._tracker = PointTracker()
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept: list[MatchedKeyframe] = []
            self._spacing = 1.0
            self._metres: float | None = None  # since the newest one
            self._last_ns = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(frame.nbytes for frame in self.keyframes())

    def keyframes(self) -> list[MatchedKeyframe]:
        """All of them, the oldest first."""
        with self._lock:
            return list(self._kept)

    def saw(self, seen: MatchedFrame | ScaleSight) -> None:
        """Keep a frame, where it is far enough from the one before.

        Its depth is matched, or that of points which are followed from frame to frame.
        """
        if isinstance(seen, MatchedFrame):
            wanted = self._wanted(seen.stamp_ns, seen.travelled)
            frame = matched_keyframe(seen, self.parallax, self.road) if wanted else None
        else:
            frame = self._follow(seen, self._wanted(seen.stamp_ns, seen.metres_travelled))
        if frame is None:
            return
        with self._lock:
            if self._kept and not same_view(self._kept[-1].camera, frame.camera):
                self._kept.clear()  # of another camera
            # The pixels may be a view of what the camera's message holds.
            self._kept.append(replace(frame, pixels=frame.pixels.copy()))
            self._metres, self._last_ns = 0.0, frame.stamp_ns
            self._bound(frame.stamp_ns)

    def _follow(self, sight: ScaleSight, wanted: bool) -> MatchedKeyframe | None:
        try:
            points = self._tracker.see(sight, wanted=wanted)
        except NothingMeasuredError:
            return None
        return None if points is None else followed_keyframe(points, sight)

    def _wanted(self, stamp_ns: int, travelled: float | None) -> bool:
        with self._lock:
            if not self._kept or stamp_ns < self._last_ns:
                return True
            if travelled is None or self._metres is None:
                self._metres = None  # until the next one that is kept
                seconds = (stamp_ns - self._last_ns) * 1e-9
                return seconds >= self._spacing * _SPACING_SECONDS
            self._metres += abs(travelled)
            return self._metres >= self._spacing * _SPACING_METRES

    def _bound(self, now_ns: int) -> None:
        if self._kept[0].stamp_ns > now_ns:  # the clock was set back
            del self._kept[:-1]
        while now_ns - self._kept[0].stamp_ns > self.seconds * 1e9:
            self._kept.pop(0)
        size = self._kept[-1].nbytes
        if len(self._kept) > min(MOST, max(1, MOST_BYTES // size)):
            del self._kept[1::2]
            self._spacing *= 2
        elif len(self._kept) < MOST // 4:
            self._spacing = max(1.0, self._spacing / 2)


def spaced(frames: Sequence[Keyframe], count: int) -> list[Keyframe]:
    """``count`` of the frames, evenly spaced; all, where there are not more."""
    count = min(len(frames), count)
    return [frames[n * len(frames) // count + len(frames) // (2 * count)] for n in range(count)]
