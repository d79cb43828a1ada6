"""Rendering the synthetic pairs that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings.synthetic.samples import write_samples

from training.config import Synthetic


def ensure_samples(synthetic: Synthetic, size: tuple[int, int], root: Path) -> Path:
    """Render what is missing of the pairs in ``synthetic.folder`` and return the folder."""
    textures = [
        path
        for drive in synthetic.textures
        for path in sorted((root / drive).rglob("*"))
        if path.suffix in (".jpg", ".png") and "image_0" in str(path.parent)
    ]
    folder = Path(synthetic.folder)
    write_samples(folder, synthetic.count, size=size, seed=synthetic.seed, texture_images=textures)
    return folder
