"""Is the vehicle moving? Hysteresis over speed, or over image motion where there is no speed.

Image motion is measured over a time, not from frame to frame: the same vehicle is moving at 10 and
at 30 frames a second.

Two frames taken from the same place have no parallax, so a multi-frame network has nothing to
match. The gate answers once per frame; its thresholds differ for starting and stopping, and both
must hold for a while, so that noise never makes the output flicker between two networks.

How often a camera sends images: what a frame may cost at most.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_WINDOW = 30
_ENOUGH = 5
_SET_BACK_NS = 2_000_000_000  # before the oldest stamp that is known; less than this is just late
_MISLED = 5  # late ones in a row: it was the newest stamp that was wrong


class FrameRate:
    """The median interval between the stamps of a camera's images.

    Told of every image that arrives, it knows the camera's rate; told only of those that were
    processed, as in a replay that waits, it knows theirs. Any thread may tell and ask.
    """

    def __init__(self) -> None:
        self._stamps: deque[int] = deque(maxlen=_WINDOW)
        self._late = 0
        self._lock = threading.Lock()

    def saw(self, stamp_ns: int) -> None:
        """An image with this stamp came; the same stamp again counts once."""
        with self._lock:
            if stamp_ns in self._stamps:
                return
            if self._stamps and stamp_ns < self._stamps[0] - _SET_BACK_NS:
                self._stamps.clear()  # the clock was set back, or a bag began again
            if self._stamps and stamp_ns < self._stamps[-1]:
                self._late += 1  # its place in the sequence was another
                if self._late < _MISLED:
                    return
                self._stamps.clear()
            self._late = 0
            self._stamps.append(stamp_ns)

    @property
    def interval_ms(self) -> float | None:
        """Median milliseconds between two images; None before there are enough."""
        with self._lock:
            steps = [(b - a) * 1e-6 for a, b in pairwise(self._stamps)]
        return median(steps) if len(steps) >= _ENOUGH else None

    def reset(self) -> None:
        """Forget all stamps."""
        with self._lock:
            self._stamps.clear()
            self._late = 0


State = Literal["unknown", "stationary", "moving"]
Source = Literal["odometry", "twist", "twist_with_covariance"]

MOTION_SIZE = (160, 48)
"""Width and height at which image motion is measured; its unit is a pixel of this size."""

FLOW_SECONDS = 0.2
"""Over which image motion is measured: the flow of start_flow is then half a metre a second."""

_PICTURES = 32  # are kept at most: a camera of 160 frames a second
_JITTER = 0.05  # of FLOW_SECONDS by which a stamp may be early
_CELL = 8  # pixels; 20 x 6 cells at MOTION_SIZE
_MIN_CELLS = 12  # a tenth of them: with less texture nothing can be said
_QUANTILE = 0.3
STILL = 1e-9  # metres, and the same of a rotation's entries: nothing moved at all
_MIN_CONTRAST = 2.0  # grey levels (standard deviation) in a cell; below, flow is a guess


class RelativeMotion(NamedTuple):
    """How the camera came from the frame before: `previous_from_current` (4, 4) in metres, and how
    far that was; each None where unknown."""

    pose: NDArray[np.float64] | None = None
    metres: float | None = None


@dataclass(frozen=True)
class Motion:
    """What is known about the vehicle's own motion at a frame.

    speed: m/s, of either sign, None or not finite where unknown; source: who said so.
    pose: how the camera moved since a frame before, `previous_from_current` (4, 4) of its optical
    frame in metres (see `odometry.CameraMount` and `Trajectory`), None where unknown.
    pose_since_ns: the stamp of that frame. A pose that leads back to another frame than the one
    that was processed before is not used; None: it is the one before.
    """

    speed: float | None = None
    source: Source | None = None
    pose: NDArray[np.float64] | None = field(default=None, compare=False)
    pose_since_ns: int | None = None

    @property
    def known_speed(self) -> float | None:
        """The absolute speed in m/s; None where it is missing or not finite."""
        if self.speed is None or not math.isfinite(self.speed):
            return None
        return abs(self.speed)

    def pose_since(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """The pose, where it is finite and leads back to the frame of that stamp.

        One that has not moved at all while there is a speed is none: odometry that knows nothing
        but speeds leaves its poses at the origin.
        """
        if self.pose is None or self.pose_since_ns not in (None, stamp_ns):
            return None
        pose = np.asarray(self.pose, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            return None
        still = bool(np.abs(pose - np.eye(4)).max() <= STILL)
        return None if still and self.known_speed else pose

    def way(self, previous_ns: int, stamp_ns: int) -> RelativeMotion:
        """The way since the frame with stamp `previous_ns`, by the pose, else by the speed."""
        seconds = (stamp_ns - previous_ns) * 1e-9
        if seconds <= 0:
            return RelativeMotion()
        pose, speed = self.pose_since(previous_ns), self.known_speed
        if pose is not None:
            return RelativeMotion(pose, float(np.linalg.norm(pose[:3, 3])))
        return RelativeMotion(None, None if speed is None else speed * seconds)


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of `MotionGate`.

    start_speed, stop_speed: m/s. Wheel odometry of a standing car stays below 0.1 m/s; at
    0.5 m/s two frames are 5 cm apart, below which matching gains nothing.
    start_flow, stop_flow: image motion in pixels at MOTION_SIZE over FLOW_SECONDS, at any frame
    rate. Sensor noise and JPEG leave a standing camera below 0.04; driving off, 0.12 is reached at
    about 0.5 m/s.
    hold_start, hold_stop: seconds. Three frames in favour of moving, four against: a single
    wrong reading changes nothing, and a stop is seen before the vehicle has stood half a second.
    max_gap: seconds without a frame after which the state is unknown again.
    """

    start_speed: float = 0.5
    stop_speed: float = 0.2
    start_flow: float = 0.12
    stop_flow: float = 0.06
    hold_start: float = 0.2
    hold_stop: float = 0.3
    max_gap: float = 1.0

    def __post_init__(self) -> None:
        for start, stop, what in (
            (self.start_speed, self.stop_speed, "speed"),
            (self.start_flow, self.stop_flow, "flow"),
        ):
            if not (math.isfinite(start) and 0 <= stop <= start):
                raise ValueError(
                    f"0 <= stop_{what} <= start_{what} must hold, got {stop} and {start}"
                )
        holds = (self.hold_start, self.hold_stop)
        if not all(math.isfinite(hold) and hold >= 0 for hold in holds):
            raise ValueError(f"hold times must be finite and not negative, got {holds}")
        if not self.max_gap > max(holds):
            raise ValueError(f"max_gap ({self.max_gap} s) must exceed the hold times {holds}")


class MotionGate:
    """Decides between stationary and moving, once per frame, from stamps and readings.

    It starts as unknown, and the first reading decides at once: moving above the start
    threshold, stationary otherwise. From then on the state changes only after readings beyond the
    other threshold have lasted for the hold time without a contrary one. A frame without a
    reading neither confirms nor contradicts. A gap or a stamp that runs backwards makes the state
    unknown again; a stamp that stands still is ignored.
    """

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        self._state: State = "unknown"
        self._last_ns: int | None = None
        self._since_ns: int | None = None

    @property
    def state(self) -> State:
        """The state after the latest update."""
        return self._state

    def reset(self) -> None:
        """Forget everything: unknown, as at the start."""
        self._state, self._last_ns, self._since_ns = "unknown", None, None

    def snapshot(self) -> list[Any]:
        """The state with what leads to the next one, as plain data."""
        return [self._state, self._last_ns, self._since_ns]

    def restore(self, snapshot: Sequence[Any]) -> None:
        """Go on from a `snapshot`."""
        self._state, self._last_ns, self._since_ns = snapshot

    def update(
        self, stamp_ns: int, speed: float | None = None, image_motion: float | None = None
    ) -> State:
        """Take one frame's reading and return the state.

        speed in m/s goes before image_motion (pixels at MOTION_SIZE over FLOW_SECONDS); None or NaN
        is no reading.
        """
        if self._last_ns is not None:
            elapsed = stamp_ns - self._last_ns
            if elapsed == 0:
                return self._state
            if elapsed < 0 or elapsed > self.settings.max_gap * 1e9:
                self.reset()
        self._last_ns = stamp_ns
        evidence = self._evidence(speed, image_motion)
        if evidence is not None:
            self._apply(evidence, stamp_ns)
        return self._state

    def _evidence(self, speed: float | None, flow: float | None) -> float | None:
        """+1 for moving, -1 for stationary, 0 between the thresholds, None without a reading."""
        s = self.settings
        if speed is not None and not math.isnan(speed):
            value, start, stop = abs(speed), s.start_speed, s.stop_speed
        elif flow is not None and not math.isnan(flow):
            value, start, stop = flow, s.start_flow, s.stop_flow
        else:
            return None
        if value > start:
            return 1.0
        return -1.0 if value < stop else 0.0

    def _apply(self, evidence: float, stamp_ns: int) -> None:
        if self._state == "unknown":
            # Between the thresholds the safe answer is the network that needs no parallax.
            self._state = "moving" if evidence > 0 else "stationary"
            return
        against = evidence < 0 if self._state == "moving" else evidence > 0
        if not against:
            self._since_ns = None
            return
        if self._since_ns is None:
            self._since_ns = stamp_ns
        hold = self.settings.hold_stop if self._state == "moving" else self.settings.hold_start
        # Stamps of 10 Hz jitter by nanoseconds: 299 999 999 ns is 0.3 s.
        if stamp_ns - self._since_ns >= hold * 1e9 - 1e6:
            self._state = "stationary" if self._state == "moving" else "moving"
            self._since_ns = None


class ImageMotion:
    """Measures how far the picture moved between two frames.

    The answer is a low quantile, over the cells of a grid that have texture, of each cell's median
    optical flow magnitude, in pixels at MOTION_SIZE. When the camera moves, nearly everything does;
    when it stands, other vehicles may cover more than half of the textured picture (a bus at a
    crossing does) without counting.
    """

    def __init__(self) -> None:
        # OpenCV's stubs leave this function out.
        create: Any = vars(cv2)["DISOpticalFlow_create"]
        self._flow = create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(0)

    @staticmethod
    def prepare(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Shrink an RGB image (H, W, 3) to the grey picture (48, 160) that `measure` takes."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, MOTION_SIZE, interpolation=cv2.INTER_AREA)

    def measure(
        self,
        previous: NDArray[np.uint8],
        current: NDArray[np.uint8],
        outside: NDArray[np.bool_] | None = None,
    ) -> float | None:
        """Motion from one prepared picture to the next; None without enough texture.

        outside: (H, W) of any size, True where the pictures show nothing (`NetworkInput.outside`):
        what fills a border has texture, but no motion of its own.
        """
        flow = self._flow.calc(previous, current, None)
        magnitude = _cells(np.hypot(flow[..., 0], flow[..., 1]))
        textured = _cells(previous.astype(np.float32)).std(axis=1) > _MIN_CONTRAST
        if outside is not None:
            filled = outside.astype(np.float32)
            filled = cv2.resize(filled, MOTION_SIZE, interpolation=cv2.INTER_AREA)
            textured &= _cells(filled).max(axis=1) == 0
        if int(textured.sum()) < _MIN_CELLS:
            return None
        return float(np.quantile(np.median(magnitude[textured], axis=1), _QUANTILE))


class RecentPictures:
    """Image motion over `FLOW_SECONDS`, whatever the camera's rate."""

    def __init__(self) -> None:
        self._motion = ImageMotion()
        self._kept: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=_PICTURES)

    def clear(self) -> None:
        """Forget the pictures."""
        self._kept.clear()

    def snapshot(self) -> list[Any]:
        """The pictures with their stamps."""
        return [list(entry) for entry in self._kept]

    def restore(self, snapshot: Sequence[Any]) -> None:
        """Go on from a `snapshot`."""
        self._kept.clear()
        self._kept.extend((stamp, picture) for stamp, picture in snapshot)

    def motion(
        self,
        stamp_ns: int,
        image: NDArray[np.uint8],
        settings: GateSettings,
        outside: NDArray[np.bool_] | None = None,
    ) -> float | None:
        """Motion (pixels at MOTION_SIZE) since the newest picture that is old enough.

        None where that cannot be said: without texture, without a picture not older than the
        gate's max_gap, or where all are too young and the motion since the oldest is not yet enough
        to be moving. image: (H, W, 3) RGB. outside: as in `ImageMotion.measure`.
        """
        picture, kept = ImageMotion.prepare(image), self._kept
        old_enough = stamp_ns - int(FLOW_SECONDS * (1 - _JITTER) * 1e9)
        while len(kept) > 1 and kept[1][0] <= old_enough:
            kept.popleft()
        if kept and not 0 < stamp_ns - kept[0][0] <= settings.max_gap * 1e9:
            kept.clear()
        flow = None
        if kept:
            since, before = kept[0]
            flow = self._motion.measure(before, picture, outside)
            if flow is not None and since > old_enough and flow <= settings.start_flow:
                flow = None
        kept.append((stamp_ns, picture))
        return flow


def _cells(picture: NDArray[Any]) -> NDArray[Any]:
    """(48, 160) to (cells, pixels of a cell)."""
    height, width = picture.shape
    grid = picture.reshape(height // _CELL, _CELL, width // _CELL, _CELL)
    return grid.transpose(0, 2, 1, 3).reshape(-1, _CELL * _CELL)
