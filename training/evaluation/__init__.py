"""Bundles against ground truth."""
