"""A scale from what the node's parameters and the bundle say."""

from __future__ import annotations

from depth_prior_ros.scale.filter import FilterSettings
from depth_prior_ros.scale.fixed import FixedScale, NoScale
from depth_prior_ros.scale.measured import CameraHeightScale, OdometryScale
from depth_prior_ros.scale.road import RoadSettings
from depth_prior_ros.scale.state import SCALE_MODES, Scale


def make_scale(
    mode: str,
    *,
    fixed: float,
    source: str,
    camera_height: float | None = None,
    settings: FilterSettings | None = None,
    road: RoadSettings | None = None,
) -> Scale:
    """The scale of a mode.

    mode: one of SCALE_MODES. fixed, source: the factor to use (mode `fixed`) or to begin with, and
    where it is from. camera_height: metres, for mode `camera_height`.

    Raises ValueError for an unknown mode, a missing camera height, and values out of range.
    """
    start = FixedScale(fixed, source)
    if mode == "fixed":
        return start
    if mode == "none":
        return NoScale(fixed, source)
    if mode == "odometry":
        return OdometryScale(start, settings)
    if mode == "camera_height":
        if camera_height is None:
            raise ValueError("scale mode camera_height needs the camera's height in metres")
        return CameraHeightScale(start, camera_height, settings, road)
    raise ValueError(f"scale mode must be one of {', '.join(SCALE_MODES)}, got {mode!r}")
