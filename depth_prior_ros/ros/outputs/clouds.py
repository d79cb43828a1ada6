"""Depth images as `sensor_msgs/PointCloud2` (xyz, xyzrgb), obstacles in them as `LaserScan`, too.

Obstacles rest on the road of the same frame, which is fitted once. Where none is in sight, such as
right behind a lorry, the newest one serves for a while, or the road as the camera is mounted over
it. Without any nothing is made, because an empty cloud would say that the way is free.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import check_size, rays
from depth_prior_ros.ros.messages import byte_array
from depth_prior_ros.scale import RoadSettings
from depth_prior_ros.scale.obstacles import (
    Obstacles,
    ObstacleSettings,
    bearings,
    depth_sigma,
    find_obstacles,
    road_of_depth,
)
from depth_prior_ros.scale.road import NoRoadError, Road, mounted_road

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthResult


FIELD_BYTES = 4


class CloudMaker:
    """Makes clouds of one camera after another, and keeps the rays of the newest."""

    def __init__(self) -> None:
        self._key: tuple[Camera, int] | None = None
        self._x = self._y = np.empty(0, dtype=np.float32)

    def message(
        self,
        header: Header,
        depth: NDArray[np.float32],
        camera: Camera,
        *,
        rgb: NDArray[np.uint8] | None = None,
        confidence: NDArray[np.float32] | None = None,
        min_confidence: float = 0.0,
        max_depth: float = 0.0,
        stride: int = 1,
        organized: bool = False,
    ) -> PointCloud2:
        """The cloud in the camera's optical frame (x right, y down, z forward).

        Args:
            header: taken over as it is.
            depth: (h, w) along the optical axis; pixels that are not finite have no point.
            camera: of the depth image.
            rgb: (H, W, 3) uint8 of the same view, at any size; None: no colours.
            confidence: (h, w) in [0, 1]; None: all points are kept.
            min_confidence: points below it are left out.
            max_depth: points beyond it are left out; 0: none is.
            stride: every n-th column and row is taken.
            organized: keep rows and columns, NaN where there is no point.

        Raises:
            ValueError: camera or confidence are of another size than the depth.
        """
        values, known = self._points(depth, camera, stride, 3 if rgb is None else 4)
        if confidence is not None and min_confidence > 0:
            if confidence.shape != depth.shape:
                raise ValueError(f"confidence is {confidence.shape}, depth {depth.shape}")
            known &= confidence[::stride, ::stride] >= min_confidence
        if max_depth > 0:
            known &= values[..., 2] <= max_depth
        if rgb is not None:
            fill_colours(values[..., 3:], rgb, depth.shape, stride)
        if organized:
            values[~known, :3] = np.nan
            return cloud_message(header, values)
        # Three times as fast as values[known].
        chosen = values.reshape(-1, values.shape[2]).take(np.flatnonzero(known), axis=0)
        return cloud_message(header, chosen[np.newaxis], dense=True)

    def _points(
        self, depth: NDArray[np.float32], camera: Camera, stride: int, fields: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(h, w, fields) float32 with x, y and z filled in, and where (h, w) depth is known."""
        check_size(depth, camera)
        if self._key != (camera, stride):
            self._key = (camera, stride)
            self._x, self._y = rays(camera, stride)
        z = depth[::stride, ::stride]
        known = np.isfinite(z)
        values = np.empty((*z.shape, fields), dtype=np.float32)
        with np.errstate(invalid="ignore"):  # the ray through the middle times infinity
            np.multiply(z, self._x, out=values[..., 0])
            np.multiply(z, self._y, out=values[..., 1])
        values[..., 2] = z
        return values, known


def fill_colours(
    out: NDArray[np.float32], rgb: NDArray[np.uint8], shape: Sequence[int], stride: int = 1
) -> None:
    """Write a picture as 0x00RRGGBB into the bytes of floats, as PCL and RViz read `rgb`.

    Args:
        out: (rows, columns, 1), a part of an array whose last dimension lies side by side.
        rgb: (H, W, 3), resized to `shape` where it differs.
        shape: (h, w, ...) of the depth image, of which every `stride`-th row and column is taken.
        stride: likewise.
    """
    height, width = shape[0], shape[1]
    if rgb.shape[:2] != (height, width):
        shrinks = rgb.shape[0] > height or rgb.shape[1] > width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        rgb = cv2.resize(rgb, (width, height), interpolation=how)
    packed = np.zeros((*out.shape[:2], 4), dtype=np.uint8)
    packed[..., 2::-1] = rgb[::stride, ::stride]  # blue in the lowest byte
    out.view(np.uint32)[..., 0] = packed.view("<u4")[..., 0]


def cloud_message(
    header: Header, values: NDArray[np.float32], *, dense: bool = False, fourth: str = "rgb"
) -> PointCloud2:
    """A message of points, packed without gaps.

    Args:
        header: taken over as it is.
        values: (rows, columns, 3 or 4) float32: x, y, z, and the bytes of `fill_colours`.
        dense: no point is NaN.
        fourth: name of the fourth field.
    """
    names = ("x", "y", "z", fourth)[: values.shape[2]]
    rows, columns = values.shape[:2]
    message = PointCloud2()
    message.header = header
    message.height, message.width = rows, columns
    message.fields = [
        PointField(name=name, offset=i * FIELD_BYTES, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(names)
    ]
    message.is_bigendian = sys.byteorder == "big"
    message.point_step = FIELD_BYTES * len(names)
    message.row_step = message.point_step * columns
    message.is_dense = dense
    message.data = byte_array(values.reshape(-1).view(np.uint8).data)
    return message


OPTICAL = "_optical"
"""What REP-103 appends to a camera's frame for the one that looks along z."""


@dataclass(frozen=True)
class RoadSight:
    """The road under a frame, in metres: None where there is none, and in words why, or how old."""

    road: Road | None
    text: str


class RoadWatch:
    """The road of one frame after another.

    Args:
        hold: seconds for which the newest one serves where none is in sight.

    Attributes:
        newest: of the last frame that was asked about.
    """

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self.newest = RoadSight(None, "nobody asked")
        self._result: DepthResult | None = None
        self._fitted: tuple[int, Road] | None = None

    def of(self, result: DepthResult, settings: RoadSettings, height: float = 0.0) -> RoadSight:
        """The road of a frame; asked again for the same one it is not fitted again.

        Args:
            result: in metres.
            settings: where it is looked for.
            height: of the camera over the road as it is mounted, metres; 0: not known.
        """
        if result is not self._result:  # cameras without a clock stamp all images zero
            self._result = result
            self.newest = self._look(result, settings, height)
        return self.newest

    def _look(self, result: DepthResult, settings: RoadSettings, height: float) -> RoadSight:
        if result.scale is not None and result.scale.relative:
            return RoadSight(None, "nobody knows the metres (scale.mode 'none')")
        # In `auto` the factor of the bundle serves while odometry's is on its way.
        if result.scale is not None and result.scale.unsure and result.scale.mode != "auto":
            return RoadSight(None, "depth is not metres yet: the factor is still searched for")
        try:
            road = road_of_depth(result.depth, result.camera, settings)
        except NoRoadError as error:
            if self._fitted is not None:
                age = (result.stamp_ns - self._fitted[0]) * 1e-9
                if 0 <= age <= self.hold:
                    return RoadSight(self._fitted[1], f"held for {age:.1f} s: {error}")
            if height > 0:
                return RoadSight(mounted_road(height, settings), f"as mounted: {error}")
            return RoadSight(None, str(error))
        self._fitted = (result.stamp_ns, road)
        return RoadSight(road, f"fitted, {road.share:.0%} of the region looked at belong to it")


def obstacles_of(result: DepthResult, road: Road, settings: ObstacleSettings) -> Obstacles:
    """The obstacles of a result."""
    return find_obstacles(result.depth, result.camera, road, settings)


def obstacle_cloud(
    header: Header,
    obstacles: Obstacles,
    confidence: NDArray[np.float32],
    spread: float | None,
) -> PointCloud2:
    """The cloud in the camera's optical frame; `intensity` is the depth's sigma in metres.

    Args:
        header: taken over as it is.
        obstacles: to be sent.
        confidence: (h, w) of the depth.
        spread: of the scale, relative; None where it was not measured.
    """
    sigma = depth_sigma(obstacles.z, confidence, spread or 0.0)
    points = obstacles.points(sigma)
    return cloud_message(header, points[np.newaxis], dense=True, fourth="intensity")


def scan_frame(optical: str, given: str) -> str:
    """The frame of the scan: what is given, else the camera's own (x forward, y left)."""
    return given or optical.replace(OPTICAL, "")


def obstacle_scan(header: Header, obstacles: Obstacles, frame: str) -> LaserScan:
    """A scan of the nearest obstacle in each direction, as depthimage_to_laserscan lays it out.

    Args:
        header: of the image; its stamp is taken over.
        obstacles: to be sent.
        frame: x forward, y left, at the camera's place.
    """
    first, last, step = bearings(obstacles.camera)
    message = LaserScan()
    message.header = Header(stamp=header.stamp, frame_id=frame)
    message.angle_min, message.angle_max, message.angle_increment = first, last, step
    message.range_min, message.range_max = 0.0, obstacles.max_range
    message.ranges = array.array("f", obstacles.ranges())
    return message
