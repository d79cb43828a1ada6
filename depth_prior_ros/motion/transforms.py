"""One buffer of coordinate frames (tf), for bags and the live node: static ones and moving ones.

As in tf2, every frame has one parent and a transform to it; between two stamps of a moving one it
is interpolated. What is missing, loops or has two parents is said in words. Messages are
duck-typed: `tf2_msgs/TFMessage` of rclpy and of a bag.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_prior_ros.motion.odometry import Trajectory, Transform, rigid_inverse

MAX_AGE = 0.5
"""Seconds by which a moving transform may be older than what is asked for."""


class TransformError(LookupError):
    """Two frames are not connected at that time; the message says which link is missing."""


class TransformBuffer:
    """Transforms by child frame. They may be added from one thread while another asks.

    Args:
        seconds_kept: how far back moving ones go.
    """

    def __init__(self, seconds_kept: float = 10.0) -> None:
        self._kept = seconds_kept
        self._parents: dict[str, str] = {}
        self._static: dict[str, Transform] = {}
        self._moving: dict[str, Trajectory] = {}
        self._doubts: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(
        self,
        parent: str,
        child: str,
        translation: npt.ArrayLike,
        quaternion: npt.ArrayLike,
        stamp_ns: int | None = None,
    ) -> bool:
        """Add parent_from_child: metres, and x, y, z, w. stamp_ns: None for a static one.

        False, and nothing added, for numbers that are not finite, a quaternion without length, or
        a frame that is its own parent.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")  # ROS 1 writes a slash
        track = Trajectory(self._kept)
        if parent == child or not track.add(stamp_ns or 0, translation, quaternion):
            return False
        with self._lock:
            before = self._parents.get(child)
            if before not in (None, parent):
                self._doubts[child] = f"frame {child} has two parents, {before} and {parent}"
                self._moving.pop(child, None)
            self._parents[child] = parent
            if stamp_ns is None:
                static = track.pose(0)
                assert static is not None
                self._static[child] = static
                self._moving.pop(child, None)
            else:
                self._static.pop(child, None)
                self._moving.setdefault(child, track).add(stamp_ns, translation, quaternion)
        return True

    def add_message(self, message: Any, static: bool) -> None:
        """Add all transforms of a TFMessage; ones without a sensible rotation are doubted.

        static: whether it is of `/tf_static`.
        """
        for one in message.transforms:
            t, q = one.transform.translation, one.transform.rotation
            stamp = int(one.header.stamp.sec) * 10**9 + int(one.header.stamp.nanosec)
            parent, child = one.header.frame_id, one.child_frame_id
            added = self.add(
                parent,
                child,
                (t.x, t.y, t.z),
                (q.x, q.y, q.z, q.w),
                None if static else stamp,
            )
            if not added:
                with self._lock:
                    self._doubts[child] = f"the transform from {child} to {parent} makes no sense"

    @property
    def doubts(self) -> list[str]:
        """What is wrong with the frames, in words."""
        with self._lock:
            return list(self._doubts.values())

    def frames(self) -> set[str]:
        """All frames that were named."""
        with self._lock:
            return {*self._parents, *self._parents.values()}

    def lookup(
        self, target: str, source: str, stamp_ns: int, source_stamp_ns: int | None = None
    ) -> Transform:
        """target_from_source (4, 4) at a stamp, along the parents that they have in common.

        source_stamp_ns: where the source was seen at another time, what moved in between is
        taken into account through the outermost frame, as far as that is known.

        Raises:
            TransformError: a frame that nobody named, two that are not connected, frames that
                loop, or a moving transform that is not known at that time.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._lock:
            up_target, up_source = self._way_up(target), self._way_up(source)
            common = next((frame for frame in up_source if frame in up_target), None)
            if common is None:
                raise TransformError(self._why_apart(target, source, up_target, up_source))
            if source_stamp_ns not in (None, stamp_ns):
                with suppress(TransformError):  # no pose of the vehicle at one of the two times
                    outer = self._along(up_target[:-1], stamp_ns)
                    assert source_stamp_ns is not None
                    return rigid_inverse(outer) @ self._along(up_source[:-1], source_stamp_ns)
            ends = [
                self._along(way[: way.index(common)], stamp_ns) for way in (up_target, up_source)
            ]
        return rigid_inverse(ends[0]) @ ends[1]

    def _way_up(self, frame: str) -> list[str]:
        way = [frame]
        while (parent := self._parents.get(way[-1])) is not None:
            if parent in way:
                loop = " -> ".join([*way[way.index(parent) :], parent])
                raise TransformError(f"the frames loop: {loop}")
            way.append(parent)
        return way

    def _along(self, frames: list[str], stamp_ns: int) -> Transform:
        """The last frame's parent from the first frame; one without frames."""
        result = np.eye(4)
        for frame in frames:
            step = self._static.get(frame)
            if step is None:
                step = self._moving[frame].pose(stamp_ns, MAX_AGE)
            if step is None:
                span = self._moving[frame].span_ns or (0, 0)
                raise TransformError(
                    f"where {frame} is in {self._parents[frame]} is known from "
                    f"{span[0] * 1e-9:.3f} to {span[1] * 1e-9:.3f} s, not at {stamp_ns * 1e-9:.3f}"
                )
            result = step @ result
        return result

    def _why_apart(
        self, target: str, source: str, up_target: list[str], up_source: list[str]
    ) -> str:
        known = {*self._parents, *self._parents.values()}
        for frame in (target, source):
            if frame not in known:
                names = ", ".join(sorted(known)) or "none at all"
                return f"there is no frame {frame}; there are {names}"
        return (
            f"{source} and {target} are not connected: {source} ends at {up_source[-1]}, {target} "
            f"at {up_target[-1]}; a transform between those is missing"
        )
