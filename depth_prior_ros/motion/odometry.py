"""From odometry to the camera's motion: what it has said so far, and the motion at a frame.

Frames as in REP-103 and REP-105: a vehicle's x points ahead, y to the left, z up; a camera's
optical frame has x to the right, y down, z ahead. A motion is `previous_from_current`, (4, 4): it
takes points of the current frame to where they were in the previous one.

Knows no ROS: the node and whoever goes through a recording without it ask the same functions.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL, rigid_inverse, rotation_of
from depth_prior_ros.motion.gate import STILL, Motion, Source

Transform = npt.NDArray[np.float64]
_Pose = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]  # stamp, place, quaternion

UNKNOWN = -1.0
"""First element of a covariance that says: there is no such value (as in sensor_msgs/Imu)."""

FORWARD = 0.9
"""Share of a speed that must be along an axis for something that moves forward along it."""

_LATE_NS = 1_000_000_000  # no message is on its way for longer
_SET_BACK = 5  # late poses in a row
_FAR_AHEAD_NS = 2_000_000_000
_SEEN_METRES = 0.3  # in half a second: less says little about the direction

_TURN = BODY_FROM_OPTICAL[:3, :3]


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

    @classmethod
    def of(cls, base_from_optical: Transform) -> CameraMount:
        """The mount whose `matrix` this is."""
        m = base_from_optical[:3, :3] @ _TURN.T
        pitch = math.asin(float(np.clip(-m[2, 0], -1.0, 1.0)))
        roll, yaw = math.atan2(m[2, 1], m[2, 2]), math.atan2(m[1, 0], m[0, 0])
        x, y, z = (float(v) for v in base_from_optical[:3, 3])
        return cls(x, y, z, roll, pitch, yaw)

    def matrix(self) -> Transform:
        """base_from_optical, (4, 4)."""
        result = np.eye(4)
        result[:3, :3] = _rotation(self.roll, self.pitch, self.yaw) @ _TURN
        result[:3, 3] = (self.x, self.y, self.z)
        return result

    def step(self, base_step: Transform, before: CameraMount | None = None) -> Transform:
        """The camera's motion (optical frame) of the vehicle's motion; previous_from_current.

        before: the mount at the previous frame, of a camera that moves on its vehicle.
        """
        mount = self.matrix()
        earlier = mount if before is None else before.matrix()
        return rigid_inverse(earlier) @ base_step @ mount


class Trajectory:
    """The vehicle's recent poses in a fixed frame, and its motion between two stamps.

    Poses may come late and out of order: each goes to its place. What cannot be explained by a
    message's way is another clock: a run of poses that all lie further back than that (a bag that
    starts again) begins the trajectory anew, and a single one far ahead of the others is left out.
    Poses may be added from one thread while another asks. seconds_kept: how far back they go.
    """

    def __init__(self, seconds_kept: float = 10.0) -> None:
        self._kept_ns = None if math.isinf(seconds_kept) else int(seconds_kept * 1e9)
        self._poses: list[_Pose] = []
        self._late: list[_Pose] = []  # in a row
        self._ahead: _Pose | None = None
        self._forward = [0, 0]  # how often the vehicle was seen to go along its x and its z axis
        self._lock = threading.Lock()

    def add(self, stamp_ns: int, position: npt.ArrayLike, quaternion: npt.ArrayLike) -> bool:
        """Add a pose: position (3,) in metres, quaternion (4,) as x, y, z, w.

        With the stamp of another pose it takes its place (a simulator whose clock is slower than
        its odometry). False, and nothing added, for numbers that are not finite or a quaternion
        without length.
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
            self._put((stamp_ns, place, turn / length))
        return True

    def _put(self, pose: _Pose) -> None:
        newest = self._poses[-1][0] if self._poses else pose[0]
        if pose[0] < newest:
            self._put_late(pose, newest)
            return
        self._late.clear()
        ahead, self._ahead = self._ahead, None
        if pose[0] - newest > _FAR_AHEAD_NS:
            # Believed once another one follows it.
            if ahead is None or not 0 < pose[0] - ahead[0] <= _FAR_AHEAD_NS:
                self._ahead = pose
                return
            self._poses.append(ahead)
        self._insert(pose)
        self._see_forward()
        if self._kept_ns is not None:
            oldest = self._poses[-1][0] - self._kept_ns
            self._poses = self._poses[bisect_left(self._poses, oldest, key=itemgetter(0)) :]

    def _put_late(self, pose: _Pose, newest: int) -> None:
        self._late.append(pose)
        far = newest - pose[0] > _LATE_NS
        if not far:
            self._insert(pose)
        ascending = all(a[0] < b[0] for a, b in pairwise(self._late))
        if not ascending:
            self._late = [pose]
        elif len(self._late) >= _SET_BACK and (
            far or self._late[-1][0] - self._late[0][0] >= _LATE_NS // 2
        ):
            self._poses, self._late, self._ahead = self._late, [], None

    def _insert(self, pose: _Pose) -> None:
        place = bisect_left(self._poses, pose[0], key=itemgetter(0))
        same = place < len(self._poses) and self._poses[place][0] == pose[0]
        self._poses[place : place + same] = [pose]

    def _see_forward(self) -> None:
        newest = self._poses[-1]
        before = _behind(self._poses, _LATE_NS // 2, _LATE_NS) if len(self._poses) > 1 else newest
        way = rotation_of(newest[2]).T @ (newest[1] - before[1])
        length = float(np.linalg.norm(way))
        if length > _SEEN_METRES:
            self._forward[0] += abs(way[0]) >= FORWARD * length
            self._forward[1] += abs(way[2]) >= FORWARD * length

    @property
    def is_optical(self) -> bool:
        """Whether the poses are those of a camera's optical frame: what moves goes along its z.

        A vehicle's go along x (REP-103).
        """
        return self._forward[1] > max(3, self._forward[0])

    def clear(self) -> None:
        """Forget all poses."""
        with self._lock:
            self._poses, self._late, self._ahead, self._forward = [], [], None, [0, 0]

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """Stamps of the oldest and the newest pose; None where there is none."""
        with self._lock:
            return (self._poses[0][0], self._poses[-1][0]) if self._poses else None

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

    def pose(self, stamp_ns: int, max_age: float = 0.5) -> Transform | None:
        """fixed_from_vehicle (4, 4) at a stamp; see :meth:`step` for what is between poses."""
        with self._lock:
            return _pose_at(self._poses, stamp_ns, int(max_age * 1e9))

    def step(self, previous_ns: int, current_ns: int, max_age: float = 0.5) -> Transform | None:
        """The vehicle's motion between two stamps, previous_from_current (4, 4), in its own frame.

        Between poses it is interpolated; beyond the newest one it goes on as over the last while,
        as long as that which lies ahead. None where both poses used lie more than `max_age` seconds
        from a stamp, where they are more than twice that apart, or all poses lie after it.
        """
        if current_ns <= previous_ns:
            return None
        before, after = self.pose(previous_ns, max_age), self.pose(current_ns, max_age)
        if before is None or after is None:
            return None
        return rigid_inverse(before) @ after

    def camera_step(
        self,
        previous_ns: int,
        current_ns: int,
        mount: CameraMount,
        max_age: float = 0.5,
        before: CameraMount | None = None,
    ) -> Transform | None:
        """The camera's motion between two stamps; as :meth:`step`, in the optical frame.

        mount, before: at the current stamp and, where that was another one, at the previous stamp.
        """
        step = self.step(previous_ns, current_ns, max_age)
        return step if step is None or self.is_optical else mount.step(step, before)


@dataclass(frozen=True)
class OdometryReading:
    """What one message of odometry, or of a twist, says.

    position (3) in metres and quaternion (x, y, z, w) of the child frame, None where the message
    has no pose or says that it is unknown. speed: m/s, negative when reversing, None where unknown;
    it may be not finite, as the message is. course: forward speed in m/s and yaw rate in rad/s,
    positive to the left; None where the twist is not along one axis.
    """

    position: tuple[float, float, float] | None = None
    quaternion: tuple[float, float, float, float] | None = None
    speed: float | None = None
    course: tuple[float, float] | None = None


def read_odometry(message: Any) -> OdometryReading:
    """Of an Odometry, a TwistStamped, a TwistWithCovarianceStamped or a stamped pose."""
    position = quaternion = speed = course = None
    pose: Any = getattr(message, "pose", None)
    if hasattr(pose, "covariance"):
        pose = None if pose.covariance[0] == UNKNOWN else pose.pose
    if pose is not None:
        p, q = pose.position, pose.orientation
        position = float(p.x), float(p.y), float(p.z)
        quaternion = float(q.x), float(q.y), float(q.z), float(q.w)
    twist: Any = getattr(message, "twist", None)
    if hasattr(twist, "covariance"):
        twist = None if twist.covariance[0] == UNKNOWN else twist.twist
    if twist is not None:
        speed, course = speed_of_twist(
            (float(twist.linear.x), float(twist.linear.y), float(twist.linear.z)),
            (float(twist.angular.x), float(twist.angular.y), float(twist.angular.z)),
        )
    return OdometryReading(position, quaternion, speed, course)


def speed_of_twist(
    linear: tuple[float, float, float], angular: tuple[float, float, float]
) -> tuple[float, tuple[float, float] | None]:
    """Speed in m/s, negative when reversing, and the course (forward speed, yaw rate to the left).

    A twist along x is of a vehicle's frame (REP-103), one along z of a camera's optical frame,
    whose y points down. Along neither it has no course.
    """
    size = math.hypot(*linear)
    ahead, left = linear[0], angular[2]
    if abs(linear[2]) > abs(linear[0]):
        ahead, left = linear[2], -angular[1]
    course = (ahead, left) if abs(ahead) >= FORWARD * size > 0 else None
    return math.copysign(size, ahead), course


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
    place = bisect_left(poses, stamp, key=itemgetter(0))
    if place < len(poses) and poses[place][0] == stamp:
        return _transform(*poses[place][1:])
    if len(poses) < 2 or stamp < poses[0][0]:
        return None
    if place < len(poses):
        first, second = poses[max(place - 1, 0)], poses[max(place, 1)]
    else:
        first, second = _behind(poses, stamp - poses[-1][0], reach), poses[-1]
    (t0, p0, q0), (t1, p1, q1) = first, second
    if stamp - t1 > reach or t1 - t0 > 2 * reach:
        return None
    share = (stamp - t0) / (t1 - t0)
    return _transform(p0 + share * (p1 - p0), _slerp(q0, q1, share))


def _transform(place: npt.NDArray[np.float64], quaternion: npt.NDArray[np.float64]) -> Transform:
    result = np.eye(4)
    result[:3, :3] = rotation_of(quaternion)
    result[:3, 3] = place
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


_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Speed:
    """A speed in m/s, the header stamp in nanoseconds that it belongs to, and who said so.

    course: (speed along the vehicle's x axis, yaw rate in rad/s) where both are known.
    """

    stamp: int
    value: float
    source: Source
    course: tuple[float, float] | None = None


def nearest_speed(newest_first: Iterable[Speed], stamp: int, max_age: float) -> Speed | None:
    """The speed nearest to a stamp; None where it is more than `max_age` seconds away.

    Of two equally near ones (a bag that loops) the one that arrived later counts.
    """
    nearest = min(newest_first, key=lambda s: abs(s.stamp - stamp), default=None)
    if nearest is None or abs(nearest.stamp - stamp) > max_age * _NANOSECONDS:
        return None
    return nearest


def motion_with(
    speed: Speed,
    trajectory: Trajectory,
    stamp: int,
    previous: int | None,
    mount: CameraMount,
    max_age: float,
    before: CameraMount | None = None,
) -> Motion:
    """A speed with the way since the frame before, from the poses or else from the course.

    Args:
        speed: at the frame.
        trajectory: the vehicle's poses.
        stamp: of the frame, nanoseconds.
        previous: of the frame before; None: the way is not asked for.
        mount: where the camera sits.
        max_age: seconds between a stamp and the poses that tell of it.
        before: where it sat at the frame before, if elsewhere.
    """
    if previous is None:
        return Motion(speed.value, speed.source)
    pose = trajectory.camera_step(previous, stamp, mount, max_age, before)
    seconds = (stamp - previous) / _NANOSECONDS
    # Odometry of speeds alone may leave its poses at the origin.
    stands = pose is not None and not np.abs(pose - np.eye(4)).max() > STILL
    if speed.course is not None and (pose is None or (stands and speed.value)):
        known = 0 < seconds <= max_age  # at constant speed and yaw rate, no longer than that
        pose = mount.step(arc(*speed.course, seconds), before) if known else None
    if pose is None:
        return Motion(speed.value, speed.source)
    return Motion(speed.value, speed.source, pose, previous)


def with_speed_of_poses(
    reading: OdometryReading, twist_is_filled: bool, trajectory: Trajectory
) -> OdometryReading:
    """The reading with the speed that the poses show, where no twist was ever filled in.

    Many a visual odometry fills the pose only; a twist of zeros is then no speed.
    """
    speed = None if twist_is_filled else trajectory.speed()
    return reading if speed is None else replace(reading, speed=speed, course=None)


class MotionHistory:
    """Odometry of a recording, taken in frame by frame as the node takes its topic in.

    max_age: seconds between an image and odometry that tells of it, as the node's parameter.
    """

    def __init__(self, max_age: float = 0.5) -> None:
        self._trajectory = Trajectory()
        self._speeds: list[Speed] = []
        self._twist_is_filled = False
        self._max_age = max_age

    def add(self, stamp: int, reading: OdometryReading) -> None:
        """Take in one message of odometry with its stamp in nanoseconds."""
        if reading.position is not None and reading.quaternion is not None:
            self._trajectory.add(stamp, reading.position, reading.quaternion)
        self._twist_is_filled |= bool(reading.speed)
        reading = with_speed_of_poses(reading, self._twist_is_filled, self._trajectory)
        if reading.speed is None or not np.isfinite([reading.speed, *(reading.course or ())]).all():
            return
        self._speeds = self._speeds[-7:]  # the nearest of a growing time is among the last
        self._speeds.append(Speed(stamp, abs(reading.speed), "odometry", reading.course))

    def motion_at(self, stamp: int, previous: int | None) -> Motion | None:
        """How the vehicle moves at a stamp, and since the frame before; None where unknown."""
        speed = nearest_speed(reversed(self._speeds), stamp, self._max_age)
        if speed is None:
            return None
        return motion_with(speed, self._trajectory, stamp, previous, CameraMount(), self._max_age)
