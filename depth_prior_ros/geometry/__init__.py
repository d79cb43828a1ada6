"""Cameras, rigid motions, and warping one view into another."""
