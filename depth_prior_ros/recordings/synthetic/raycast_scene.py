"""Meshes as rays meet them: normals, colours and textures at the pixels of a view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.rays import HitMap, Solid, Triangles, project
from depth_prior_ros.recordings.synthetic.renderer import NEAR, Drawing
from depth_prior_ros.recordings.synthetic.texels import Texels

_Floats = NDArray[np.floating]


class Surface:
    """What the rays meet: albedo (N, 3), normal (N, 3), gloss (N,), holes (N,) float32."""

    def __init__(
        self, albedo: _Floats, normal: _Floats, gloss: _Floats, holes: NDArray[np.bool_]
    ) -> None:
        self.albedo = albedo.astype(np.float32)
        length = np.maximum(length_of(normal), 1e-6)
        self.normal = (normal / length).astype(np.float32)
        self.gloss, self.holes = gloss, holes


class Scene:
    """A mesh with what is needed of it for every picture."""

    def __init__(self, drawing: Drawing) -> None:
        self.vertices = drawing.mesh.vertices
        self.indices = drawing.mesh.indices.astype(np.int64)
        self.cutout_layers = drawing.cutout_layers
        self.along = drawing.along
        self.looks = np.ascontiguousarray(self.vertices[:, [3, 4, 5, 9, 10, 11, 12]])
        self.layer = self.vertices[self.indices[:, 0], 8].astype(np.int64)
        self.holes = np.isin(self.layer, np.asarray(drawing.cutout_layers, np.int64))

    def joined(self, others: list[Mesh]) -> Scene:
        """With meshes whose triangles come last and belong to no stretch of road."""
        if not others:
            return self
        mesh = Mesh.merge([Mesh(self.vertices, self.indices.astype(np.uint32)), *others])
        scene = Scene(Drawing(mesh, self.cutout_layers))
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

    def _solid(self, triangles: Triangles, texels: Texels) -> Solid:
        planes, total = texture_planes(self, triangles), triangles.total()
        layer = self.layer[triangles.number]

        def solid(
            row: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
        ) -> NDArray[np.bool_]:
            uv, footprint = _texture_at(planes[row], _at(total[row], x, y), total[row], x, y)
            texel = texels.nearest(layer[row], uv, texels.level(footprint))
            return np.asarray(texel[:, 3] >= 128)

        return solid


class Look:
    """The triangles of a scene in one view, ready to be asked what a ray meets on them."""

    def __init__(self, scene: Scene, triangles: Triangles, texels: Texels) -> None:
        """triangles: by ascending number, as `Scene.enter` gives them."""
        self._scene, self._triangles, self._texels = scene, triangles, texels
        self._total = triangles.total()
        self._planes = texture_planes(scene, triangles)

    def at(
        self, number: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
    ) -> tuple[Surface, NDArray[np.float64]]:
        """What the rays of pixels (x, y) meet on triangles `number`, and its depth (N,)."""
        scene, row = self._scene, np.searchsorted(self._triangles.number, number)
        total = self._total[row]
        inverse = _at(total, x, y)
        uv, footprint = _texture_at(self._planes[row], inverse, total, x, y)
        layer, level = scene.layer[number], self._texels.level(footprint)
        texel = self._texels.smooth(layer, uv, level)
        corner = scene.indices[number]
        values = np.zeros((len(row), scene.looks.shape[1]), np.float32)
        planes = self._triangles.planes[row]
        for i in range(3):
            weight = (_at(planes[:, i], x, y) / inverse).astype(np.float32)
            values += weight[:, None] * scene.looks[corner[:, i]]
        albedo = texel * texel * values[:, 3:6] * 2.0
        surface = Surface(albedo, values[:, :3], values[:, 6], scene.holes[number])
        return surface, 1.0 / inverse


def texture_planes(scene: Scene, triangles: Triangles) -> NDArray[np.float64]:
    """(T, 2, 3) linear functions of (u, v, 1) that give texture coordinates / w."""
    uv = scene.vertices[scene.indices[triangles.number], 6:8].astype(np.float64)
    return np.asarray(np.einsum("tik,tij->tkj", uv, triangles.planes))


def length_of(vectors: _Floats) -> _Floats:
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
