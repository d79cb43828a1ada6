"""Public names of this room."""

from depth_prior_ros.geometry.points import to_points
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline.framing import InvalidFrameError, colourise
from depth_prior_ros.pipeline.guard import ModelFailedError
from depth_prior_ros.pipeline.multi_frame_step import PoseChoice
from depth_prior_ros.pipeline.pipeline import BUDGET_SHARE, DepthPipeline
from depth_prior_ros.pipeline.results import DepthResult, Model, Reason

__all__ = [
    "BUDGET_SHARE",
    "DepthPipeline",
    "DepthResult",
    "InvalidFrameError",
    "Model",
    "ModelFailedError",
    "Motion",
    "PoseChoice",
    "Reason",
    "colourise",
    "to_points",
]
