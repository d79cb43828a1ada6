"""Whether the vehicle moves, and how the camera moved between two frames."""

from depth_prior_ros.motion.gate import GateSettings, Motion

__all__ = ["GateSettings", "Motion"]
