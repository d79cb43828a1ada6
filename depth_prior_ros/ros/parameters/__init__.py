"""The node's parameters, each declared once, as a field of :class:`Settings`.

From that declaration come the descriptors that rclpy shows (``node``), the settings that the node
reads, ``config/depth.yaml`` and ``docs/parameters.md`` (``documents``), and arguments of the launch
files (``depth_prior_ros.ros.launch_arguments``). Nothing but ``node`` imports rclpy.
"""

from depth_prior_ros.ros.parameters.declaration import Declaration, Value
from depth_prior_ros.ros.parameters.settings import PARAMETERS, Settings, nearest

__all__ = ["PARAMETERS", "Declaration", "Settings", "Value", "nearest"]
