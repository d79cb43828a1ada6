"""A scale from what the node's parameters and the bundle say."""

from __future__ import annotations

from depth_prior_ros.scale.affine import AffineScale, AffineStart, RoadLine, TrackedLine
from depth_prior_ros.scale.measured import (
    AutoScale,
    CameraHeightScale,
    FilterSettings,
    OdometryScale,
)
from depth_prior_ros.scale.road import RoadSettings
from depth_prior_ros.scale.state import SCALE_MODES, FixedScale, NoScale, Scale
from depth_prior_ros.scale.tracks import TrackedScale


def make_scale(
    mode: str,
    *,
    fixed: float,
    source: str,
    camera_height: float | None = None,
    settings: FilterSettings | None = None,
    road: RoadSettings | None = None,
    known: bool = True,
    shift: float | None = None,
    pose_network: bool = True,
    mounted_later: bool = False,
) -> Scale:
    """The scale of a mode.

    mode: one of SCALE_MODES. fixed, source: the factor to use (mode `fixed`) or to begin with, and
    where it is from. camera_height: metres, for mode `camera_height`; with `mounted_later` it may
    be left out, and is told later (`CameraHeightScale.mount`). known: whether `fixed` is a
    factor at all, and not only where a search begins. shift: to begin with, 1/units, of depth that
    is affine-invariant; None for all other. pose_network: whether networks see the step between two
    frames; without, points that are followed through the pictures tell it.

    Raises ValueError for an unknown mode, a missing camera height, values out of range, and mode
    `fixed` or `auto` where nobody knows the factor. `auto` without a pose network is `fixed`.
    """
    if mode not in SCALE_MODES:
        raise ValueError(f"scale mode must be one of {', '.join(SCALE_MODES)}, got {mode!r}")
    if mode == "camera_height" and camera_height is None and not mounted_later:
        raise ValueError("scale mode camera_height needs the camera's height in metres")
    start = FixedScale(fixed, source)
    if mode == "auto" and known and shift is None and pose_network:
        return AutoScale(start, settings)
    if mode == "none":
        return NoScale(fixed, source, shift or 0.0)
    if mode in ("auto", "fixed"):
        if not known or shift is not None:
            raise ValueError(_unknown(mode, shift is not None))
        return start
    if shift is not None:
        begin = AffineStart(start, shift)
        if mode == "odometry":
            return AffineScale(begin, TrackedLine(), settings)
        return AffineScale(begin, RoadLine(camera_height, road), settings)
    if mode == "odometry":
        kind = OdometryScale if pose_network else TrackedScale
        return kind(start, settings)
    return CameraHeightScale(start, camera_height, settings, road)


def _unknown(mode: str, affine: bool) -> str:
    if affine:
        return (
            f"scale mode {mode}: this network's inverse depth has an unknown factor and shift in "
            "every picture, so it has no metres; choose camera_height or odometry, or none"
        )
    return (
        f"scale mode {mode}: nobody knows this network's metres per unit; choose camera_height or "
        "odometry, give scale.metres_per_unit, or choose none"
    )
