"""Metric depth from one moving camera: the core that a vehicle runs."""

import os

from depth_prior_ros.untrusted import IMAGE_PIXELS

# OpenCV decodes up to 2^30 pixels. It reads its limit when it is loaded: so before other modules.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(IMAGE_PIXELS))
