"""Bags in; bags, data sets and reports out."""

import depth_prior_ros  # noqa: F401 - before OpenCV is loaded, whose limit it sets
