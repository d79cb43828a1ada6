"""`depth_bag render`: a bag of a drive through a synthetic street, with exact depth."""

from __future__ import annotations

from pathlib import Path


def render(out: Path, seed: int, frames: int, size: tuple[int, int], quality: int) -> None:
    """Render a street drive and write it; the same arguments give the same bag."""
    raise NotImplementedError
