"""Draws worlds in numpy, one ray a pixel: what `renderer.Renderer` draws, where OpenGL is missing.

The same meshes, textures and light give the same depth (exact, from the planes of the triangles)
and the same motion mask; the colours follow the formulas of `shaders.py`, with less smooth
textures and shadow edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.rays import HitMap, Solid, Triangles, project
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


class Raycaster:
    """Draws with numpy what `Renderer` draws with OpenGL; the methods are the same."""

    name = "raycast"

    def __init__(self, shadow_size: int = 1024) -> None:
        self._shadow_size = shadow_size
        self._texels: Texels | None = None
        self._scene = _Scene(Drawing(Mesh.empty()))
        self._shadow_matrix = np.eye(4)
        self._shadows: NDArray[np.float32] | None = None
        self._still: tuple[tuple[object, ...], HitMap] | None = None

    def load_textures(self, bank: TextureBank) -> None:
        """Use a bank; it replaces the one before."""
        self._texels = Texels(bank)

    def load(self, drawing: Drawing) -> None:
        """Use the static part of a world; it replaces the one before."""
        self._scene = _Scene(drawing)
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
            moving = _Scene(Drawing(movers, self._scene.cutout_layers))
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
        number = hits.triangles()
        y, x = np.nonzero(number >= 0)
        seen = number[y, x]
        rays = (np.linalg.inv(K) @ np.stack([x, y, np.ones(len(x))])).T @ world_from_camera[
            :3, :3
        ].T
        raw = np.zeros((size[1], size[0], 4), np.float32)
        row = np.searchsorted(triangles.number, seen)
        values, depth = scene.surface(triangles, row, x, y, self._texels)
        view_ray = rays * depth[:, None]
        world = world_from_camera[:3, 3] + view_ray
        colour = self._shade(values, world, view_ray, light)
        first = len(self._scene.indices)
        moving = (seen >= first) & (seen < first + (0 if movers is None else len(movers.indices)))
        sign = np.where(moving, -1.0, 1.0)
        raw[y, x, :3], raw[y, x, 3] = colour, sign * depth
        y, x = np.nonzero(number < 0)
        rays = (np.linalg.inv(K) @ np.stack([x, y, np.ones(len(x))])).T @ world_from_camera[
            :3, :3
        ].T
        raw[y, x, :3] = self._sky(rays, light)
        return resolve(raw, supersample, 0.75 / camera.fy)

    def _shade(
        self, surface: _Surface, world: _Floats, view: _Floats, light: Light
    ) -> NDArray[np.float32]:
        distance = _length(view).astype(np.float32)
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
        ray = rays / _length(rays)
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
        self._scene = _Scene(Drawing(Mesh.empty()))


def _step(value: _Floats, low: float, high: float) -> _Floats:
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


class _Surface:
    """What the rays meet: albedo (N, 3), normal (N, 3), gloss (N,), holes (N,) float32."""

    def __init__(
        self, albedo: _Floats, normal: _Floats, gloss: _Floats, holes: NDArray[np.bool_]
    ) -> None:
        self.albedo = albedo.astype(np.float32)
        length = np.maximum(_length(normal), 1e-6)
        self.normal = (normal / length).astype(np.float32)
        self.gloss, self.holes = gloss, holes


class _Scene:
    """A mesh with what is needed of it for every picture."""

    def __init__(self, drawing: Drawing) -> None:
        self.vertices = drawing.mesh.vertices
        self.indices = drawing.mesh.indices.astype(np.int64)
        self.cutout_layers = drawing.cutout_layers
        self.along = drawing.along
        self.layer = self.vertices[self.indices[:, 0], 8].astype(np.int64)
        self.holes = np.isin(self.layer, np.asarray(drawing.cutout_layers, np.int64))

    def joined(self, others: list[Mesh]) -> _Scene:
        """With meshes whose triangles come last and belong to no stretch of road."""
        if not others:
            return self
        mesh = Mesh.merge([Mesh(self.vertices, self.indices.astype(np.uint32)), *others])
        scene = _Scene(Drawing(mesh, self.cutout_layers))
        scene.along = self.along
        return scene

    def enter(
        self,
        hits: HitMap,
        view: _Floats,
        key: _Floats,
        texels: Texels | None,
        around: tuple[float, float] | None,
        offset: int = 0,
    ) -> Triangles:
        """Cast the rays of a view (3, 4) at the mesh; returns the triangles that came into it.

        key (4,): what orders the hits, linear in the world, before it is divided by w.
        """
        homogeneous = self.vertices[:, :3].astype(np.float64) @ view[:, :3].T + view[:, 3]
        keys = self.vertices[:, :3].astype(np.float64) @ key[:3] + key[3]
        chosen = self._stretch(around)
        corner = self.indices[chosen]
        found = project(homogeneous[corner], keys[corner], hits.size, NEAR)
        found = Triangles(chosen[found.number], found.planes, found.key, found.box)
        holes = self.holes[found.number]
        hits.add(_rows(found, ~holes), None, offset)
        if holes.any():
            assert texels is not None, "load_textures comes first"
            cut = _rows(found, holes)
            hits.add(cut, self._solid(cut, texels), offset)
        return found

    def _stretch(self, around: tuple[float, float] | None) -> NDArray[np.int64]:
        """Triangles of a stretch of road, and all that do not belong to the road."""
        every = np.arange(len(self.indices))
        if around is None or self.along is None:
            return every
        first, last = np.searchsorted(self.along, around).tolist()
        return np.concatenate([every[first:last], every[len(self.along) :]])

    def _texture_planes(self, triangles: Triangles) -> NDArray[np.float64]:
        """(T, 2, 3) linear functions of (u, v, 1) that give texture coordinates / w."""
        uv = self.vertices[self.indices[triangles.number], 6:8].astype(np.float64)
        return np.asarray(np.einsum("tik,tij->tkj", uv, triangles.planes))

    def _solid(self, triangles: Triangles, texels: Texels) -> Solid:
        planes, total = self._texture_planes(triangles), triangles.total()
        layer = self.layer[triangles.number]

        def solid(
            row: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
        ) -> NDArray[np.bool_]:
            uv, footprint = _texture_at(planes[row], _at(total[row], x, y), total[row], x, y)
            texel = texels.nearest(layer[row], uv, texels.level(footprint))
            return np.asarray(texel[:, 3] >= 128)

        return solid

    def surface(
        self,
        triangles: Triangles,
        row: NDArray[np.int64],
        x: NDArray[np.int64],
        y: NDArray[np.int64],
        texels: Texels,
    ) -> tuple[_Surface, NDArray[np.float64]]:
        """What the rays of pixels (x, y) meet on triangles `row`, and its depth (N,)."""
        total = triangles.total()[row]
        inverse = _at(total, x, y)
        planes = self._texture_planes(triangles)[row]
        uv, footprint = _texture_at(planes, inverse, total, x, y)
        number = triangles.number[row]
        texel = texels.smooth(self.layer[number], uv, texels.level(footprint))
        weights = np.stack([_at(triangles.planes[row, i], x, y) for i in range(3)], 1)
        weights = (weights / inverse[:, None]).astype(np.float32)
        corner = self.indices[number]
        columns = [3, 4, 5, 9, 10, 11, 12]
        values = np.zeros((len(row), 7), np.float32)
        for i in range(3):
            values += weights[:, i, None] * self.vertices[corner[:, i]][:, columns]
        albedo = texel * texel * values[:, 3:6] * 2.0
        return _Surface(albedo, values[:, :3], values[:, 6], self.holes[number]), 1.0 / inverse


def _length(vectors: _Floats) -> _Floats:
    """(N, 1) lengths of (N, 3); np.linalg.norm is slow on short rows."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None])


def _rows(triangles: Triangles, chosen: NDArray[np.bool_]) -> Triangles:
    return Triangles(
        triangles.number[chosen],
        triangles.planes[chosen],
        triangles.key[chosen],
        triangles.box[chosen],
    )


def _at(plane: _Floats, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(plane[:, 0] * x + plane[:, 1] * y + plane[:, 2])


def _texture_at(
    planes: _Floats,
    inverse: _Floats,
    total: _Floats,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Texture coordinates (N, 2) at pixels, and how many tiles one pixel spans (N,)."""
    uv = np.stack([_at(planes[:, i], x, y) / inverse for i in (0, 1)], 1)
    # The quotient's derivatives along x and y.
    slopes = [
        np.square(planes[:, :, i] - uv * total[:, i, None]) / np.square(inverse)[:, None]
        for i in (0, 1)
    ]
    along_x, along_y = (slope[:, 0] + slope[:, 1] for slope in slopes)
    return uv, np.sqrt(np.maximum(along_x, along_y))
