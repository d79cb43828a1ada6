"""Which earlier frame the multi-frame network compares with: far enough away to see parallax.

Between two frames of a slow vehicle the whole search range spans a fraction of a pixel. A frame
about a metre back, some of them later, is the same to the network and shows what to match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.motion.gate import RelativeMotion
from depth_prior_ros.pipeline.framing import NetworkInput
from depth_prior_ros.pipeline.multi_frame_step import ObservedFrame, turned

KEYFRAME_METRES = 1.0
"""How far back the frame to match lies; the previous frame where the vehicle is faster."""

MAX_GAP = 0.5
"""Seconds between two frames beyond which the earlier one is of no use."""

KEYFRAME_SECONDS = 2.0
"""How old it may be: what moves by itself has moved by then, and light changes."""

ENOUGH_PARALLAX = 4.0
"""Median pixels of parallax that make a nearer frame far enough (indoors, in a car park)."""

KEYFRAME_UNIT = 10.0
"""Metres that a unit counts as where nobody else knows how far it went: about what bundles are
trained to, whatever their metric factor, which must not decide what is matched."""

LIMIT = 6
"""Frames that are kept, the previous one among them."""

_SPACING = 0.25  # of the wanted distance: nearer to each other, one of two frames is enough
_OVERLAP = 0.7  # of the horizontal field of view that a turn leaves in common
_SMOOTH = 0.2  # of a new measurement of parallax per metre


@dataclass
class Candidate:
    """An earlier frame, and the way from it to the newest one.

    pose: candidate_from_newest (4, 4) in metres; told: length of the way by odometry or speed; each
    None where a step of it is not known. metres: the length as well as it can be guessed. step:
    candidate_from_newest (4, 4) in the networks' world and units, as matching used it.
    """

    shown: ObservedFrame
    pose: NDArray[np.float64] | None
    step: NDArray[np.float64] | None
    told: float | None = 0.0
    metres: float = 0.0

    def advance(self, way: RelativeMotion, metres: float) -> None:
        """Go on by a step; metres: its length as guessed."""
        self.metres += metres
        self.told = None if self.told is None or way.metres is None else self.told + way.metres
        self.pose = None if self.pose is None or way.pose is None else self.pose @ way.pose


class Keyframes:
    """The last frames of a drive, a few of them, the newest last.

    metres: how far back the frame to match ought to lie; 0: always the previous frame, as in MISM
    and ManyDepth. May be changed between two frames.
    """

    def __init__(self, metres: float = KEYFRAME_METRES) -> None:
        self.metres = metres
        self._frames: list[Candidate] = []
        self._speed: float | None = None  # m/s by the pose network, where nobody else knows
        self._latest: tuple[NDArray[np.float64], float] | None = None  # last step, its seconds
        self._moved: NDArray[np.float64] | None = None  # the step to the frame that is processed
        self._density: float | None = None  # pixels of parallax per metre

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def previous(self) -> ObservedFrame | None:
        """The newest frame."""
        return self._frames[-1].shown if self._frames else None

    def clear(self) -> None:
        """Forget all frames and what was measured between them."""
        self._frames.clear()
        self._speed = self._density = self._latest = self._moved = None

    def release(self) -> None:
        """Give the kept features back; they are computed again where they are needed."""
        for frame in self._frames:
            frame.shown.features = None

    def state(self) -> dict[str, Any]:
        """What is kept, as plain data and arrays; what networks made of the frames is left out."""
        frames = [
            {
                "stamp_ns": frame.shown.stamp_ns,
                "framed": frame.shown.framed.state(),
                "pose": frame.pose,
                "step": frame.step,
                "told": frame.told,
                "metres": frame.metres,
            }
            for frame in self._frames
        ]
        latest = list(self._latest) if self._latest else None
        rest = {"speed": self._speed, "density": self._density, "latest": latest}
        return {"frames": frames, **rest}

    def restore(
        self, state: Mapping[str, Any], show: Callable[[int, NetworkInput], ObservedFrame]
    ) -> None:
        """Go on from a `state`; show: gives a frame of (stamp, input) to the networks."""
        self.clear()
        self._speed, self._density = state["speed"], state["density"]
        self._latest = tuple(state["latest"]) if state["latest"] else None
        for entry in state["frames"]:
            shown = show(entry["stamp_ns"], NetworkInput.from_state(entry["framed"]))
            way = (entry[name] for name in ("pose", "step", "told", "metres"))
            self._frames.append(Candidate(shown, *way))

    def advance(self, way: RelativeMotion, seconds: float, *, standing: bool) -> None:
        """Tell the way from the newest frame to the one that is about to be processed.

        Where nobody knows its length, and neither did the pose network before, only the newest
        frame stays.
        """
        metres = way.metres
        if standing:
            self._speed = None
        if metres is None:
            metres = 0.0 if standing else self._length(seconds)
        if metres is None:
            del self._frames[:-1]
        for frame in self._frames:
            frame.advance(way, metres or 0.0)

    def choose(self, stamp_ns: int, width: int, fx: float) -> list[Candidate]:
        """The frames to try for an image of that stamp, the best one first, the previous one last.

        The nearest of those that are far enough, or else the farthest; not one that is too old or
        that a turn has left too little in common with (``width`` and ``fx`` in pixels).
        """
        *earlier, previous = self._frames
        most = (1 - _OVERLAP) * 2 * math.atan(width / (2 * fx))
        usable = [
            frame
            for frame in earlier
            if self.metres > 0
            and stamp_ns - frame.shown.stamp_ns <= KEYFRAME_SECONDS * 1e9
            and (frame.pose is None or turned(frame.pose) <= most)
        ]
        wanted = self._wanted()
        if not usable or previous.metres >= wanted:
            return [previous]
        far = [frame for frame in usable if frame.metres >= wanted]
        best = far[-1] if far else max(usable, key=lambda frame: frame.metres)
        return [best, previous] if best.metres > previous.metres else [previous]

    def add(self, shown: ObservedFrame) -> None:
        """The frame that was processed is the newest now."""
        moved, self._moved = self._moved, None
        for frame in self._frames:
            frame.step = None if frame.step is None or moved is None else frame.step @ moved
        if moved is None:
            self._latest = None
        frames, wanted = self._frames, self._wanted()
        oldest = shown.stamp_ns - KEYFRAME_SECONDS * 1e9
        while len(frames) > 1 and (
            frames[0].shown.stamp_ns < oldest or frames[1].metres >= wanted or len(frames) >= LIMIT
        ):
            frames.pop(0)
        if len(frames) > 1 and frames[-2].metres - frames[-1].metres < _SPACING * wanted:
            frames.pop()
        for frame in frames:
            if frame.shown.features is not None:
                frame.shown.features = frame.shown.features[:1]  # what is matched
        frames.append(Candidate(shown, np.eye(4), np.eye(4)))

    def guess(self, candidate: Candidate, stamp_ns: int) -> NDArray[np.float64] | None:
        """candidate_from_current (4, 4), units, if the camera goes on as in the step before."""
        if candidate.step is None or self._latest is None:
            return None
        step, took = self._latest
        seconds = (stamp_ns - self._frames[-1].shown.stamp_ns) * 1e-9
        return candidate.step @ scaled_step(step, seconds / took)

    def saw(
        self,
        candidate: Candidate,
        stamp_ns: int,
        step: NDArray[np.float64],
        metres: float | None,
        parallax: float,
    ) -> None:
        """What the frame that is processed was matched with, and what came of it.

        step: candidate_from_current (4, 4) in units; metres: its length where it is known;
        parallax: median pixels.
        """
        if candidate.step is not None:
            # To this frame from the newest; every match corrects it, so that it does not drift.
            last = np.asarray(np.linalg.solve(candidate.step, step), np.float64)
            self._latest = last, (stamp_ns - self._frames[-1].shown.stamp_ns) * 1e-9
            self._moved = last
        if not (metres and metres > 0 and math.isfinite(metres) and math.isfinite(parallax)):
            return
        if candidate.told is None:
            candidate.metres = metres
        self._speed = metres / ((stamp_ns - candidate.shown.stamp_ns) * 1e-9)
        found = parallax / metres
        before = found if self._density is None else self._density
        self._density = before + _SMOOTH * (found - before)

    def _length(self, seconds: float) -> float | None:
        return None if self._speed is None else self._speed * seconds

    def _wanted(self) -> float:
        if not self._density:
            return self.metres
        return min(self.metres, ENOUGH_PARALLAX / self._density)


def scaled_step(step: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A share of a motion (4, 4), at constant speed and rate of turn."""
    result = np.eye(4)
    result[:3, :3] = cv2.Rodrigues(cv2.Rodrigues(step[:3, :3])[0] * share)[0]
    result[:3, 3] = step[:3, 3] * share
    return result
