"""Offline training: recordings in, bundles out."""
