"""Rendering the synthetic pairs that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings.synthetic.samples import write_samples
from training.config import Synthetic


def ensure_samples(
    synthetic: Synthetic, size: tuple[int, int], root: Path, count: int | None = None
) -> Path:
    """Render what is missing of the first ``count`` pairs (default: all); return their folder."""
    textures = [
        path
        for drive in synthetic.textures
        for path in sorted((root / drive).glob("image_0*/**/*"))
        if path.suffix in (".jpg", ".png")
    ]
    folder = Path(synthetic.folder)
    wanted = min(count or synthetic.count, synthetic.count)
    write_samples(folder, wanted, size=size, seed=synthetic.seed, texture_images=textures)
    return folder
