"""From odometry to the camera's motion between two frames. Numpy only.

Frames as in REP-103 and REP-105: a vehicle's x points ahead, y to the left, z up; a camera's
optical frame has x to the right, y down, z ahead. A motion is `previous_from_current`, (4, 4): it
takes points of the current frame to where they were in the previous one.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from depth_prior_ros.geometry.poses import rigid_inverse

Transform = npt.NDArray[np.float64]
_Pose = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]  # stamp, place, quaternion

# Columns: the optical frame's x, y, z axes in the frame of a camera body that looks along x.
_BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class CameraMount:
    """Where the camera sits in the odometry's child frame (usually base_link).

    x, y, z in metres; roll, pitch, yaw in radians about the fixed axes x, y, z, in this order
    (REP-103). All zeros is a camera at the origin that looks straight ahead; a positive pitch looks
    down. Raises ValueError for values that are not finite.
    """

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    roll: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0

    def __post_init__(self) -> None:
        values = (self.x, self.y, self.z, self.roll, self.pitch, self.yaw)
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"the camera's mount must be finite, got {values}")

    def matrix(self) -> Transform:
        """base_from_optical, (4, 4)."""
        result = np.eye(4)
        result[:3, :3] = _rotation(self.roll, self.pitch, self.yaw) @ _BODY_FROM_OPTICAL
        result[:3, 3] = (self.x, self.y, self.z)
        return result

    def step(self, base_step: Transform) -> Transform:
        """The camera's motion (optical frame) of the vehicle's motion; previous_from_current."""
        mount = self.matrix()
        return rigid_inverse(mount) @ base_step @ mount


class Trajectory:
    """The vehicle's recent poses in a fixed frame, and its motion between two stamps.

    Poses may be added from one thread while another asks. seconds_kept: how far back they go.
    """

    def __init__(self, seconds_kept: float = 10.0) -> None:
        self._kept_ns = int(seconds_kept * 1e9)
        self._poses: deque[_Pose] = deque()
        self._lock = threading.Lock()

    def add(self, stamp_ns: int, position: npt.ArrayLike, quaternion: npt.ArrayLike) -> bool:
        """Add a pose: position (3,) in metres, quaternion (4,) as x, y, z, w.

        A stamp before the newest one ends the trajectory and begins another (a bag that starts
        again); with the newest one's stamp, the pose takes its place (a simulator whose clock is
        slower than its odometry). False, and nothing added, for numbers that are not finite or a
        quaternion without length.
        """
        place = np.asarray(position, dtype=np.float64)
        turn = np.asarray(quaternion, dtype=np.float64)
        if not (np.isfinite(place).all() and np.isfinite(turn).all()):
            return False
        length = float(np.linalg.norm(turn))
        # Messages that were never filled in have four zeros.
        if not 0.5 < length < 2.0:
            return False
        with self._lock:
            if self._poses and stamp_ns < self._poses[-1][0]:
                self._poses.clear()
            elif self._poses and stamp_ns == self._poses[-1][0]:
                self._poses.pop()
            self._poses.append((stamp_ns, place, turn / length))
            while self._poses[-1][0] - self._poses[0][0] > self._kept_ns:
                self._poses.popleft()
        return True

    def clear(self) -> None:
        """Forget all poses."""
        with self._lock:
            self._poses.clear()

    def speed(self, over: float = 0.5) -> float | None:
        """Metres per second over the newest ``over`` seconds of poses; None where they span less
        than a tenth of a second."""
        with self._lock:
            if not self._poses:
                return None
            newest = self._poses[-1]
            recent = takewhile(lambda p: newest[0] - p[0] <= over * 1e9, reversed(self._poses))
            *_, oldest = recent
        seconds = (newest[0] - oldest[0]) * 1e-9
        if seconds < 0.1:
            return None
        return float(np.linalg.norm(newest[1] - oldest[1])) / seconds

    def step(self, previous_ns: int, current_ns: int, max_age: float = 0.5) -> Transform | None:
        """The vehicle's motion between two stamps, previous_from_current (4, 4), in its own frame.

        Between poses it is interpolated; beyond the newest one it goes on as over the last while,
        as long as that which lies ahead. None where both poses used lie more than `max_age` seconds
        from a stamp, where they are more than twice that apart, or all poses lie after it.
        """
        if current_ns <= previous_ns:
            return None
        with self._lock:
            poses = list(self._poses)
        before = _pose_at(poses, previous_ns, int(max_age * 1e9))
        after = _pose_at(poses, current_ns, int(max_age * 1e9))
        if before is None or after is None:
            return None
        return rigid_inverse(before) @ after


def arc(speed: float, yaw_rate: float, seconds: float) -> Transform:
    """The motion previous_from_current (4, 4) of a vehicle with constant speed and yaw rate.

    speed in m/s along x, negative when reversing; yaw_rate in rad/s, positive to the left.
    """
    angle = yaw_rate * seconds
    result = np.eye(4)
    result[:3, :3] = _rotation(0.0, 0.0, angle)
    # sin(a)/a and (1 - cos(a))/a without the division by zero of a straight road.
    half = angle / 2
    chord = speed * seconds * float(np.sinc(half / math.pi))
    result[:2, 3] = (chord * math.cos(half), chord * math.sin(half))
    return result


def _pose_at(poses: list[_Pose], stamp: int, reach: int) -> Transform | None:
    """world_from_base at a stamp, from the two poses around it, or two of the newest."""
    if len(poses) < 2 or stamp < poses[0][0]:
        return None
    place = bisect_left(poses, stamp, key=itemgetter(0))
    if place < len(poses):
        first, second = poses[max(place - 1, 0)], poses[max(place, 1)]
    else:
        first, second = _behind(poses, stamp - poses[-1][0], reach), poses[-1]
    (t0, p0, q0), (t1, p1, q1) = first, second
    if stamp - t1 > reach or t1 - t0 > 2 * reach:
        return None
    share = (stamp - t0) / (t1 - t0)
    result = np.eye(4)
    result[:3, :3] = _matrix(_slerp(q0, q1, share))
    result[:3, 3] = p0 + share * (p1 - p0)
    return result


def _behind(poses: list[_Pose], ahead: int, reach: int) -> _Pose:
    """Where to extrapolate from: as far before the newest pose as the stamp lies ahead of it.

    Two poses that lie close together tell little of the speed, and going on over many times their
    distance multiplies what is wrong with them. `ahead` and `reach` (at most) in nanoseconds.
    """
    newest, found = poses[-1][0], poses[-2]
    for pose in reversed(poses[:-1]):
        if newest - pose[0] > reach:
            break
        found = pose
        if newest - pose[0] >= ahead:
            break
    return found


def _slerp(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], share: float
) -> npt.NDArray[np.float64]:
    """From unit quaternion a to b at constant angular speed, the short way; also beyond b."""
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    angle = math.acos(min(cosine, 1.0))
    if angle < 1e-9:
        mixed = a + share * (b - a)
    else:
        mixed = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    result: npt.NDArray[np.float64] = mixed / np.linalg.norm(mixed)
    return result


def _matrix(quaternion: npt.NDArray[np.float64]) -> Transform:
    """The rotation (3, 3) of a unit quaternion x, y, z, w."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _rotation(roll: float, pitch: float, yaw: float) -> Transform:
    """R_z(yaw) R_y(pitch) R_x(roll), (3, 3)."""
    (cr, sr), (cp, sp), (cy, sy) = ((math.cos(a), math.sin(a)) for a in (roll, pitch, yaw))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
