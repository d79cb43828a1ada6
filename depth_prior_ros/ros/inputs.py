"""What the worker takes its frames from: the newest image, the camera, the motion at its stamp.

The subscription callbacks store here and return; the worker waits here. Stamps are header stamps in
nanoseconds, arrivals are ``time.monotonic`` seconds. Nothing here knows rclpy.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import check_calibration
from depth_prior_ros.motion.gate import Motion, Source
from depth_prior_ros.motion.odometry import (
    CameraMount,
    OdometryReading,
    Speed,
    Trajectory,
    motion_with,
    nearest_speed,
    with_speed_of_poses,
)

NANOSECONDS = 1_000_000_000

SIZES_KEPT = 8
"""Image sizes whose calibration is kept."""

_PAIRED = 3  # two clocks of different rates meet now and then, but not three times in a row

Calibrations = dict[tuple[int, int], Calibration]
"""By the size (width, height) that they say, the newest last."""


def stamp_ns(stamp: Any) -> int:
    """A ``builtin_interfaces/Time`` as nanoseconds."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


@dataclass(frozen=True)
class ImageArrival:
    """An image message and when it arrived."""

    message: Any
    arrived: float

    @property
    def stamp(self) -> int:
        """Header stamp in nanoseconds."""
        return stamp_ns(self.message.header.stamp)


class Inputs:
    """A latest-frame mailbox with the newest ``camera_info`` and a short history of the motion.

    Args:
        on_overwritten: called for every image that a newer one replaces before it was taken.
        history: speeds kept; a bag that loops brings old stamps back, so they are kept by arrival,
            not by stamp.
        info_topic: what the topic of ``camera_info`` is called, to be told where none comes.
        calibrations: known from an earlier activation; what arrives is kept there.
        rectifies: whether images are rectified, so that distortion has to make sense.

    Attributes:
        guessed: whether the newest image's calibration was a guess of the field of view.
    """

    def __init__(
        self,
        on_overwritten: Callable[[], None],
        history: int = 512,
        info_topic: str = "camera_info",
        calibrations: Calibrations | None = None,
        rectifies: Callable[[], bool] = lambda: True,
    ) -> None:
        self._changed = threading.Condition()
        self._on_overwritten = on_overwritten
        self._info_topic = info_topic
        self._image: ImageArrival | None = None
        self._calibrations = {} if calibrations is None else calibrations
        self._rectifies = rectifies
        self._speeds: deque[Speed] = deque(maxlen=history)
        self._trajectory = Trajectory()
        self._odometry_silent = False
        self._paired = _PAIRED  # frames in a row that had odometry with their very stamp
        self._closed = False
        self.guessed = False

    def put_image(self, message: Any) -> None:
        """Store an image; one that still waits is overwritten."""
        with self._changed:
            overwritten = self._image is not None
            self._image = ImageArrival(message, time.monotonic())
            self._changed.notify_all()
        if overwritten:
            self._on_overwritten()

    def put_camera_info(self, message: Any) -> None:
        """Store a calibration; of every image size the newest is kept, for a few sizes.

        Raises:
            MessageError: as `check_calibration`, for one that no image could be used
                with; it is not stored, so that it does not replace a good one.
        """
        calibration = Calibration.from_message(message)
        size = calibration.width, calibration.height
        if next(reversed(self._calibrations.values()), None) == calibration:
            return  # a camera says the same with every image
        check_calibration(calibration, self._rectifies())
        with self._changed:
            self._calibrations.pop(size, None)  # the newest goes last
            self._calibrations[size] = calibration
            if len(self._calibrations) > SIZES_KEPT:
                del self._calibrations[next(iter(self._calibrations))]
            self._changed.notify_all()

    def put_speed(
        self,
        stamp: int,
        speed: float,
        source: Source = "odometry",
        course: tuple[float, float] | None = None,
    ) -> bool:
        """Store a speed in m/s; False (and not stored) when it is not a number.

        Args:
            stamp: header stamp in nanoseconds.
            speed: its size, m/s.
            source: who says so.
            course: forward speed in m/s and yaw rate in rad/s, for the way between two frames
                where nobody sends poses.
        """
        if not all(map(math.isfinite, (speed, *(course or ())))):
            return False
        with self._changed:
            self._speeds.append(Speed(stamp, speed, source, course))
            self._odometry_silent = False
            self._changed.notify_all()
        return True

    def put_pose(
        self,
        stamp: int,
        position: tuple[float, float, float],
        quaternion: tuple[float, float, float, float],
    ) -> bool:
        """Store a pose of the vehicle: metres, and x, y, z, w; False when it is none."""
        return self._trajectory.add(stamp, position, quaternion)

    def with_speed_of_poses(
        self, reading: OdometryReading, twist_is_filled: bool
    ) -> OdometryReading:
        """The reading with the speed of the newest poses, where no twist was ever filled in."""
        return with_speed_of_poses(reading, twist_is_filled, self._trajectory)

    def close(self) -> None:
        """Wake everybody who waits; from now on :meth:`take_image` returns None."""
        with self._changed:
            self._closed = True
            self._image = None
            self._changed.notify_all()

    def take_image(self) -> ImageArrival | None:
        """The newest image, waiting for one; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._image is not None)
            arrival, self._image = self._image, None
            return arrival

    def calibration(
        self, width: int, height: int, wait: float, fov_guess_deg: float = 0.0
    ) -> Calibration:
        """The newest calibration that fits the size, waiting up to ``wait`` seconds for one.

        Topics are not ordered among each other: the first image, or the first of a new size, may
        well arrive before its calibration.

        Raises:
            MessageError: ``no_camera_info`` when none ever arrived and there is no guess of the
                horizontal field of view (degrees) to go by; where none fits, the newest is
                returned as it is, for the conversion to refuse.
        """
        with self._changed:
            if self.guessed and fov_guess_deg > 0:
                wait = 0.0  # the first image has waited
            self._changed.wait_for(lambda: self._closed or self._fitting(width, height), wait)
            self.guessed = not self._calibrations and fov_guess_deg > 0
            if self.guessed:
                return Calibration.from_camera(Camera.of_view(width, height, fov_guess_deg))
            if not self._calibrations:
                raise MessageError(
                    "no_camera_info",
                    f"no calibration on {self._info_topic} yet, and no metres without it",
                )
            return self._fitting(width, height) or list(self._calibrations.values())[-1]

    def motion_at(
        self,
        stamp: int,
        max_age: float,
        wait: float,
        previous: int | None = None,
        mount: CameraMount | None = None,
        mount_before: CameraMount | None = None,
    ) -> Motion | None:
        """How the vehicle moves at ``stamp``: the nearest speed, and the way since a frame before.

        Odometry older than the image is gone on from at once: waiting for newer would cost every
        frame more than it gains. Only where every image has odometry with its very stamp, up to
        ``wait`` seconds are given to that, as topics are not ordered among each other; and where
        there is none within ``max_age``. Once that was in vain nothing is waited for until odometry
        comes again: a vehicle without odometry pays once, not with every frame.

        Args:
            stamp: of the image, nanoseconds.
            max_age: seconds; None is returned where the nearest speed is further away.
            wait: seconds.
            previous: stamp of the frame before; None: the way is not asked for.
            mount: where the camera sits, for the way.
            mount_before: where it sat at the frame before, if elsewhere.
        """
        speed = self._speed_at(stamp, max_age, wait)
        if speed is None:
            return None
        mount = mount or CameraMount()
        return motion_with(speed, self._trajectory, stamp, previous, mount, max_age, mount_before)

    def _speed_at(self, stamp: int, max_age: float, wait: float) -> Speed | None:
        with self._changed:
            if not self._odometry_silent and self._worth_waiting(stamp, max_age):
                reached = self._changed.wait_for(
                    lambda: self._closed or self._has_reached(stamp, max_age), wait
                )
                self._odometry_silent = not reached
            has_its_own = any(speed.stamp == stamp for speed in self._speeds)
            self._paired = self._paired + 1 if has_its_own else 0
            return nearest_speed(reversed(self._speeds), stamp, max_age)

    def _worth_waiting(self, stamp: int, max_age: float) -> bool:
        """Whether odometry that serves is still to come."""
        if self._paired >= _PAIRED:
            return True
        oldest = stamp - int(max_age * NANOSECONDS)
        return not any(speed.stamp >= oldest for speed in self._speeds)

    def _fitting(self, width: int, height: int) -> Calibration | None:
        """The newest calibration of that size, or else one that can be scaled to it; or None."""
        exact = self._calibrations.get((width, height))
        if exact is not None:
            return exact
        newest_first = reversed(self._calibrations.values())
        return next((c for c in newest_first if _fits(c, width, height)), None)

    def _has_reached(self, stamp: int, max_age: float) -> bool:
        newest = stamp + int(max_age * NANOSECONDS)
        return any(stamp <= speed.stamp <= newest for speed in self._speeds)


def _fits(calibration: Calibration, width: int, height: int) -> bool:
    try:
        calibration.camera(width, height)
    except MessageError:
        return False
    return True
