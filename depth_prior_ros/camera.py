"""The camera under the name that users import; it lives in `geometry.camera`."""

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError

__all__ = ["Camera", "InvalidCameraError"]
