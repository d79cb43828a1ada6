"""What odometry has said so far, and from it the motion at a frame. Knows no ROS.

The node and whoever goes through a recording without it ask the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.motion.gate import Motion, Source
from depth_prior_ros.motion.odometry import CameraMount, OdometryReading, Trajectory, arc

_NANOSECONDS = 1_000_000_000
_STILL = 1e-9  # metres, and the same of a rotation's entries: nothing moved at all


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
    stands = pose is not None and not np.abs(pose - np.eye(4)).max() > _STILL
    if speed.course is not None and (pose is None or (stands and speed.value)):
        along = _along(speed.course, seconds, max_age)
        pose = None if along is None else mount.step(along, before)
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


def _along(
    course: tuple[float, float], seconds: float, longest: float
) -> NDArray[np.float64] | None:
    """The way (4, 4) at constant speed and yaw rate; None over more than ``longest`` seconds."""
    return arc(*course, seconds) if 0 < seconds <= longest else None
