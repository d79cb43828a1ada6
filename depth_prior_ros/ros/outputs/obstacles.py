"""Obstacles of a depth image as messages: `sensor_msgs/PointCloud2` and `LaserScan`.

Both rest on the road of the same frame, which is fitted once. Where none is in sight, such as right
behind a lorry, the newest one serves for a while, or the road as the camera is mounted over it.
Without any nothing is made, because an empty cloud would say that the way is free.
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import LaserScan, PointCloud2
from std_msgs.msg import Header

from depth_prior_ros.ros.outputs.clouds import cloud_message
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
