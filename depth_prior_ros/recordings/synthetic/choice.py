"""Which renderer draws: OpenGL where it works, numpy elsewhere."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.raycast import Raycaster
from depth_prior_ros.recordings.synthetic.renderer import (
    Drawing,
    Light,
    Renderer,
    RendererUnavailableError,
)
from depth_prior_ros.recordings.synthetic.textures import TextureBank

Kind = Literal["auto", "gl", "raycast"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_RAYCAST_SHADOWS = 1024  # larger maps cost the numpy renderer more than they show


class WorldRenderer(Protocol):
    """What `Renderer` (OpenGL) and `Raycaster` (numpy) have in common; see there."""

    name: str

    def load_textures(self, bank: TextureBank) -> None:
        """Use a bank; it replaces the one before."""
        ...

    def load(self, drawing: Drawing) -> None:
        """Use the static part of a world; it replaces the one before."""
        ...

    def cast_shadows(
        self,
        light: Light,
        centre: np.ndarray,
        radius: float,
        movers: Mesh | None = None,
        around: tuple[float, float] | None = None,
    ) -> None:
        """Find what the sun sees of a disc of `radius` metres about `centre` (3,)."""
        ...

    def render_linear(
        self,
        camera: Camera,
        world_from_camera: np.ndarray,
        light: Light,
        movers: Mesh | None = None,
        supersample: int = 2,
        around: tuple[float, float] | None = None,
        standing: Mesh | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radiance (H, W, 3), depth (H, W) in metres (0 = sky), moving (H, W) bool."""
        ...

    def release(self) -> None:
        """Give back what the renderer holds; it cannot be used any more."""
        ...


def open_renderer(kind: str = "auto", shadow_size: int = 1024) -> tuple[WorldRenderer, str | None]:
    """A renderer, and a note in words where `auto` had to do without OpenGL.

    Raises RendererUnavailableError for `gl` where OpenGL does not work (saying what to install),
    ValueError for a kind that is not one of KINDS.
    """
    if kind not in KINDS:
        raise ValueError(f"renderer {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "raycast":
        return Raycaster(min(shadow_size, _RAYCAST_SHADOWS)), None
    try:
        return Renderer(shadow_size), None
    except RendererUnavailableError as error:
        if kind == "gl":
            raise
        note = f"drawn with numpy, slower and a little coarser: {error}"
        return Raycaster(min(shadow_size, _RAYCAST_SHADOWS)), note
