"""Draws worlds in numpy, one ray a pixel: what `renderer.Renderer` draws, where OpenGL is missing.

The same meshes, textures and light give the same depth (exact, from the planes of the triangles)
and the same motion mask; the colours follow the formulas of `shaders.py`, with less smooth
textures and shadow edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.raycast_scene import Look, Scene, Surface, length_of
from depth_prior_ros.recordings.synthetic.rays import HitMap
from depth_prior_ros.recordings.synthetic.renderer import (
    FAR,
    NEAR,
    Drawing,
    Light,
    resolve,
    shadow_from_world,
)
from depth_prior_ros.recordings.synthetic.texels import Texels
from depth_prior_ros.recordings.synthetic.textures import TextureBank

_Floats = NDArray[np.floating]
_BIAS = 0.0006  # of a shadow's depth, and metres along the normal: see shaders.py
_LIFT = 0.06
_BLOCK = 1 << 14  # pixels


class Raycaster:
    """Draws with numpy what `Renderer` draws with OpenGL; the methods are the same."""

    name = "raycast"

    def __init__(self, shadow_size: int = 1024) -> None:
        self._shadow_size = shadow_size
        self._texels: Texels | None = None
        self._scene = Scene(Drawing(Mesh.empty()))
        self._shadow_matrix = np.eye(4)
        self._shadows: NDArray[np.float32] | None = None
        self._still: tuple[tuple[object, ...], HitMap] | None = None

    def load_textures(self, bank: TextureBank) -> None:
        """Use a bank; it replaces the one before."""
        self._texels = Texels(bank)

    def load(self, drawing: Drawing) -> None:
        """Use the static part of a world; it replaces the one before."""
        self._scene = Scene(drawing)
        self._still = None

    def cast_shadows(
        self,
        light: Light,
        centre: np.ndarray,
        radius: float,
        movers: Mesh | None = None,
        around: tuple[float, float] | None = None,
    ) -> None:
        """Find what the sun sees of a disc of `radius` metres about `centre` (3,)."""
        matrix = shadow_from_world(np.asarray(light.sun_direction), centre, radius)
        half = self._shadow_size / 2
        to_pixels = np.array([[half, 0, 0, half - 0.5], [0, half, 0, half - 0.5], [0, 0, 0, 1.0]])
        view = to_pixels @ matrix
        nearness = np.array([0, 0, -0.5, 0.5]) @ matrix  # 1 = towards the sun, 0 = away
        known = (light.sun_direction, tuple(centre), radius, around)
        if self._still is None or self._still[0] != known:
            still = HitMap((self._shadow_size,) * 2, (1e-6, 1.0))
            self._scene.enter(still, view, nearness, self._texels, around)
            self._still = (known, still)
        hits = self._still[1]
        if movers is not None and len(movers.indices):
            hits = hits.copy()
            moving = Scene(Drawing(movers, self._scene.cutout_layers))
            moving.enter(hits, view, nearness, self._texels, None, len(self._scene.indices))
        self._shadow_matrix, self._shadows = matrix, hits.keys()

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
        """As `Renderer.render_linear`.

        supersample: rays per pixel and axis; the time grows with its square.
        """
        assert self._texels is not None, "load_textures comes first"
        size = (camera.width * supersample, camera.height * supersample)
        K = np.array(
            [
                [camera.fx * supersample, 0, (camera.cx + 0.5) * supersample - 0.5],
                [0, camera.fy * supersample, (camera.cy + 0.5) * supersample - 0.5],
                [0, 0, 1],
            ]
        )
        view = K @ np.linalg.inv(world_from_camera)[:3]
        scene = self._scene.joined([mesh for mesh in (movers, standing) if mesh is not None])
        hits = HitMap(size, (1.0 / FAR, 1.0 / NEAR))
        triangles = scene.enter(hits, view, np.array([0, 0, 0, 1.0]), self._texels, around)
        number = hits.triangles().ravel()
        # One product gives the world's directions, per metre of depth.
        turn = world_from_camera[:3, :3] @ np.linalg.inv(K)
        raw = np.zeros((size[0] * size[1], 4), np.float32)
        look = Look(scene, triangles, self._texels)
        first = len(self._scene.indices)
        last = first + (0 if movers is None else len(movers.indices))
        # A block at a time, so that what is computed for it stays in the processor's cache.
        for start in range(0, len(raw), _BLOCK):
            block = number[start : start + _BLOCK]
            hit = np.flatnonzero(block >= 0)
            seen, pixel = block[hit], start + hit
            rays, x, y = _rays(turn, pixel, size[0])
            surface, depth = look.at(seen, x, y)
            way = rays * depth[:, None]
            colour = self._shade(surface, world_from_camera[:3, 3] + way, way, light)
            moving = (seen >= first) & (seen < last)
            raw[pixel, :3], raw[pixel, 3] = colour, np.where(moving, -depth, depth)
            pixel = start + np.flatnonzero(block < 0)
            raw[pixel, :3] = self._sky(_rays(turn, pixel, size[0])[0], light)
        return resolve(raw.reshape(size[1], size[0], 4), supersample, 0.75 / camera.fy)

    def _shade(
        self, surface: Surface, world: _Floats, view: _Floats, light: Light
    ) -> NDArray[np.float32]:
        distance = length_of(view).astype(np.float32)
        normal = surface.normal
        sun_direction = np.asarray(light.sun_direction, np.float32)
        sun, ambient = np.asarray(light.sun, np.float32), np.asarray(light.ambient, np.float32)
        horizon = np.asarray(light.horizon, np.float32)
        lit = normal @ sun_direction
        lit = np.maximum(np.where(surface.holes, 0.65 * lit + 0.35, lit), 0.0)
        lit *= self._sunlit(world, normal)
        up = normal[:, 2:]
        colour = surface.albedo * (sun * lit[:, None] + ambient * (0.65 + 0.35 * up))
        glossy = np.flatnonzero(surface.gloss > 0)
        if len(glossy):
            ray = (view[glossy] / distance[glossy]).astype(np.float32)
            n = normal[glossy]
            facing = np.einsum("ij,ij->i", ray, n)[:, None]
            bounce = ray - 2.0 * facing * n
            fresnel = 0.25 + 0.75 * np.maximum(1.0 - np.abs(facing), 0.0) ** 3
            height = bounce[:, 2:]
            zenith = np.asarray(light.zenith, np.float32)
            mirror = np.where(
                height > 0.08, horizon + (zenith - horizon) * height, np.float32(0.12) * ambient
            )
            glint = np.maximum(bounce @ sun_direction, 0.0) ** 60
            glint *= 6.0 * np.minimum(3.0 * lit[glossy], 1.0)
            mirror += sun * glint[:, None]
            share = surface.gloss[glossy, None] * fresnel
            colour[glossy] += (mirror - colour[glossy]) * share
        clear = np.exp(-light.fog * distance)
        return np.asarray(horizon * 0.8 * (1.0 - clear) + colour * clear, np.float32)

    def _sunlit(self, world: _Floats, normal: NDArray[np.float32]) -> NDArray[np.float32]:
        """1 where the sun reaches, 0 in the shadow."""
        if self._shadows is None:
            return np.ones(len(world), np.float32)
        matrix = self._shadow_matrix
        place = (world + _LIFT * normal) @ matrix[:3, :3].T + matrix[:3, 3]
        near = np.abs(place) < 1.0
        inside = near[:, 0] & near[:, 1] & near[:, 2]
        pixel = ((place[inside, :2] * 0.5 + 0.5) * self._shadow_size).astype(np.int64)
        nearest = self._shadows[pixel[:, 1], pixel[:, 0]]
        lit = np.ones(len(world), np.float32)
        lit[inside] = 0.5 - 0.5 * place[inside, 2] + _BIAS >= nearest
        return lit

    def _sky(self, rays: _Floats, light: Light) -> NDArray[np.float32]:
        assert self._texels is not None
        ray = rays / length_of(rays)
        up = np.maximum(ray[:, 2:], 0.0)
        horizon, zenith = np.asarray(light.horizon), np.asarray(light.zenith)
        colour = horizon + (zenith - horizon) * up**0.6
        layer = np.full(len(ray), light.cloud_layer)
        uv = ray[:, :2] / (up + 0.12) * 0.18
        cover = self._texels.smooth(layer, uv, np.zeros(len(ray), np.int64))[:, :1]
        density = _step(cover, 1.0 - light.clouds, 1.3 - light.clouds) * _step(up, 0.0, 0.12)
        colour += (horizon * 1.25 - 0.3 * cover - colour) * density
        glare = np.maximum(ray @ np.asarray(light.sun_direction), 0.0) ** 200
        return np.asarray(colour + np.asarray(light.sun) * glare[:, None] * 4.0, np.float32)

    def release(self) -> None:
        """Forget the world and its textures."""
        self._texels, self._shadows, self._still = None, None, None
        self._scene = Scene(Drawing(Mesh.empty()))


def _step(value: _Floats, low: float, high: float) -> _Floats:
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _rays(
    turn: _Floats, pixel: NDArray[np.int64], width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Directions (N, 3) of pixels in the world, per metre of depth, and their x and y."""
    y, x = np.divmod(pixel, width)
    return np.stack([x, y, np.ones(len(x))], 1) @ turn.T, x, y
