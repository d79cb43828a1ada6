"""From network units to metres.

A network trained on one camera's video knows depth up to a factor. `Scale` is what the pipeline
asks for that factor and tells what it sees: `fixed` (given with the bundle), `camera_height` (the
road lies a known height below the camera), `odometry` (the networks' travel against the measured
one), `auto` (the same where there is odometry, until then as given) or `none`.
"""

from depth_prior_ros.scale.affine import AffineScale
from depth_prior_ros.scale.choice import make_scale
from depth_prior_ros.scale.measured import (
    AutoScale,
    CameraHeightScale,
    FilterSettings,
    NothingMeasuredError,
    OdometryScale,
)
from depth_prior_ros.scale.road import RoadSettings
from depth_prior_ros.scale.state import (
    SCALE_MODES,
    FixedScale,
    NoScale,
    Scale,
    ScaleFileError,
    ScaleMode,
    ScaleSight,
    ScaleState,
    ScaleStatus,
    focal_ratio,
    load_scale,
    same_view,
    save_scale,
)
from depth_prior_ros.scale.tracks import BASELINE, Points, PointTracker, TrackedScale

__all__ = [
    "BASELINE",
    "SCALE_MODES",
    "AffineScale",
    "AutoScale",
    "CameraHeightScale",
    "FilterSettings",
    "FixedScale",
    "NoScale",
    "NothingMeasuredError",
    "OdometryScale",
    "PointTracker",
    "Points",
    "RoadSettings",
    "Scale",
    "ScaleFileError",
    "ScaleMode",
    "ScaleSight",
    "ScaleState",
    "ScaleStatus",
    "TrackedScale",
    "focal_ratio",
    "load_scale",
    "make_scale",
    "same_view",
    "save_scale",
]
