"""Procedural street worlds, rendered with exact depth: training samples and synthetic drives."""
