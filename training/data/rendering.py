"""Rendering the synthetic pairs that a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError
from depth_prior_ros.recordings.synthetic.samples import write_samples
from training.config_base import RecipeError
from training.config_data import Synthetic


def ensure_samples(
    synthetic: Synthetic, size: tuple[int, int], root: Path, count: int | None = None
) -> Path:
    """Render what is missing of the first ``count`` pairs (default: all); return their folder.

    Raises:
        RecipeError: a texture drive without images, a folder with other samples, no OpenGL.
    """
    textures = [path for drive in synthetic.textures for path in _texture_images(root / drive)]
    folder = Path(synthetic.folder)
    wanted = min(count or synthetic.count, synthetic.count)
    try:
        write_samples(
            folder,
            wanted,
            size=size,
            seed=synthetic.seed,
            texture_images=textures,
            processes=synthetic.processes,
            dense=synthetic.dense,
            renderer=synthetic.renderer,
        )
    except (RendererUnavailableError, ValueError) as error:
        raise RecipeError(f"data.synthetic: {error}") from error
    return folder


def _texture_images(drive: Path) -> list[Path]:
    images = sorted(drive.glob("image_0*/**/*"))
    found = [path for path in images if path.suffix in (".jpg", ".png")]
    if not found:
        raise RecipeError(f"data.synthetic.textures: no image in {drive}/image_0*")
    return found
