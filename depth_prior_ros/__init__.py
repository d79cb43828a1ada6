"""Metric depth from one moving camera: the core that a vehicle runs."""
