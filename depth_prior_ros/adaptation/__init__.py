"""Fitting a bundle to the camera that it looks through, without changing a weight."""
