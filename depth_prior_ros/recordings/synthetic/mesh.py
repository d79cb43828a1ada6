"""Triangle meshes as plain arrays, and the few solids that streets are built from.

World frame: x forward, y left, z up (metres). A vertex is one row of 13 floats:
position (3), normal (3), texture coordinates (2), texture layer (1), tint (3), gloss (1).
A tint of 0.5 leaves the texture as it is; gloss is the share of sky reflection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from depth_prior_ros.recordings.synthetic.textures import TextureBank

FLOATS_PER_VERTEX = 13
GREY = (0.5, 0.5, 0.5)
_QUAD = np.array([[0, 1, 2], [0, 2, 3]], dtype=np.uint32)
_UNIT_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=np.float32)


@dataclass(frozen=True)
class Surface:
    """What a face looks like: texture layer, tint, gloss, metres that one texture tile spans."""

    layer: int
    tint: tuple[float, float, float] = GREY
    gloss: float = 0.0
    tile: float = 2.0


def painted(
    bank: TextureBank, tint: float | tuple[float, ...] | np.ndarray, gloss: float = 0.0
) -> Surface:
    """A plain surface of a colour (3,), or of a grey."""
    r, g, b = np.broadcast_to(np.asarray(tint, float), 3).tolist()
    return Surface(bank.kinds["plain"][0], (r, g, b), gloss)


@dataclass
class Mesh:
    """Vertices (N, 13) float32 and triangle indices (M, 3) uint32."""

    vertices: np.ndarray
    indices: np.ndarray

    @staticmethod
    def empty() -> Mesh:
        """A mesh without a triangle."""
        return Mesh(
            np.zeros((0, FLOATS_PER_VERTEX), np.float32),
            np.zeros((0, 3), np.uint32),
        )

    @staticmethod
    def merge(meshes: list[Mesh]) -> Mesh:
        """Put meshes together into one."""
        if not meshes:
            return Mesh.empty()
        counts = np.cumsum([0] + [len(m.vertices) for m in meshes])
        indices = [m.indices + np.uint32(c) for m, c in zip(meshes, counts, strict=False)]
        return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(indices))

    def transformed(self, matrix: np.ndarray) -> Mesh:
        """Moved by a (4, 4) world_from_mesh matrix; normals follow (uniform scale assumed)."""
        matrix = matrix.astype(np.float32)
        vertices = self.vertices.copy()
        vertices[:, :3] = vertices[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        normals = vertices[:, 3:6] @ matrix[:3, :3].T
        scale = np.linalg.norm(normals, axis=1, keepdims=True)
        vertices[:, 3:6] = normals / np.maximum(scale, 1e-6)
        return Mesh(vertices, self.indices)

    def tinted(self, tint: tuple[float, float, float]) -> Mesh:
        """With every tint multiplied by `tint` x 2 (0.5 leaves it as it is)."""
        vertices = self.vertices.copy()
        vertices[:, 9:12] *= np.asarray(tint, np.float32) * 2.0
        return Mesh(vertices, self.indices)


def placement(
    x: float, y: float, z: float, yaw: float = 0.0, scale: float | tuple[float, ...] = 1.0
) -> np.ndarray:
    """The (4, 4) matrix that scales, turns about z by `yaw` (rad) and moves to (x, y, z)."""
    matrix = np.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:3, :3] *= np.broadcast_to(np.asarray(scale, float), 3)
    matrix[:3, 3] = (x, y, z)
    return matrix


def quads(
    corners: np.ndarray,
    surface: Surface,
    uv: np.ndarray | None = None,
    normals: np.ndarray | None = None,
) -> Mesh:
    """Quads from corners (N, 4, 3), in order around the face (anticlockwise from outside).

    uv: (N, 4, 2) or None (each quad shows the texture once, last corner at the top left).
    normals: (N, 3) or None (computed from the first three corners).
    """
    corners = np.asarray(corners, np.float32)
    count = len(corners)
    if normals is None:
        normals = _facing(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    uv = _UNIT_UV if uv is None else uv
    vertices = _vertices(corners, np.asarray(normals)[:, None], uv, surface)
    indices = _QUAD[None] + 4 * np.arange(count, dtype=np.uint32)[:, None, None]
    return Mesh(vertices.reshape(-1, FLOATS_PER_VERTEX), indices.reshape(-1, 3))


def _vertices(points: np.ndarray, normals: Any, uv: np.ndarray, surface: Surface) -> np.ndarray:
    """Rows (..., 13) of points (..., 3); normals and texture coordinates may be for several."""
    vertices = np.empty((*points.shape[:-1], FLOATS_PER_VERTEX), np.float32)
    vertices[..., :3], vertices[..., 3:6], vertices[..., 6:8] = points, normals, uv
    vertices[..., 8], vertices[..., 9:12] = surface.layer, surface.tint
    vertices[..., 12] = surface.gloss
    return vertices


def _facing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Unit normals a x b of (N, 3) edges; written out, because np.cross is slow on small arrays."""
    normals = np.empty_like(a)
    normals[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    normals[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    normals[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    normals /= np.maximum(np.sqrt((normals * normals).sum(1, keepdims=True)), 1e-9)
    return normals


def rectangle(corners: np.ndarray, surface: Surface, offset: float = 0.0) -> Mesh:
    """One quad with the texture tiled by its size in metres."""
    corners = np.asarray(corners, np.float32)
    width = np.linalg.norm(corners[1] - corners[0]) / surface.tile
    height = np.linalg.norm(corners[3] - corners[0]) / surface.tile
    uv = _UNIT_UV * np.array([width, height], np.float32) + offset
    return quads(corners[None], surface, uv[None])


_BOX = np.array(  # corner numbers of the faces: front (+x), back, left (+y), right, top, bottom
    [[1, 3, 7, 5], [2, 0, 4, 6], [3, 2, 6, 7], [0, 1, 5, 4], [4, 5, 7, 6], [2, 3, 1, 0]]
)


def box(
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    surface: Surface,
    taper: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    bottom: bool = False,
) -> Mesh:
    """An axis-parallel box, its top drawn in by taper = (front, back, left, right) metres."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    front, back, left, right = taper
    points = np.array(
        [
            [x0, y0, z0],
            [x1, y0, z0],
            [x0, y1, z0],
            [x1, y1, z0],
            [x0 + back, y0 + right, z1],
            [x1 - front, y0 + right, z1],
            [x0 + back, y1 - left, z1],
            [x1 - front, y1 - left, z1],
        ],
        np.float32,
    )
    corners = points[_BOX if bottom else _BOX[:5]]
    width = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1) / surface.tile
    height = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1) / surface.tile
    uv = _UNIT_UV[None] * np.stack([width, height], 1)[:, None]
    return quads(corners, surface, uv)


def prism(
    profile: np.ndarray, y0: float, y1: float, surface: Surface, inset: np.ndarray | None = None
) -> Mesh:
    """A profile (N, 2) in the x-z plane, anticlockwise seen from -y, stretched from y0 to y1.

    inset (N,): metres by which each profile point is drawn in towards the middle on both sides
    (the tumblehome of a car's cabin). The sides are fans, so the profile must be convex.
    """
    profile = np.asarray(profile, np.float32)
    count = len(profile)
    inset = np.zeros(count, np.float32) if inset is None else np.asarray(inset, np.float32)
    right = np.column_stack([profile[:, 0], y0 + inset, profile[:, 1]])
    left = np.column_stack([profile[:, 0], y1 - inset, profile[:, 1]])
    nxt = np.roll(np.arange(count), -1)
    hull = np.stack([right, left, left[nxt], right[nxt]], 1)[:, ::-1]
    scale = 1.0 / surface.tile
    parts = [quads(hull, surface)]
    for points, flip in ((right, False), (left, True)):
        normal = (0.0, 1.0 if flip else -1.0, 0.0)
        vertices = _vertices(points, normal, profile * scale, surface)
        fan = np.array([[0, i, i + 1] for i in range(1, count - 1)], np.uint32)
        parts.append(Mesh(vertices, fan[:, ::-1] if flip else fan))
    return Mesh.merge(parts)


def cylinder(
    radius: float,
    height: float,
    surface: Surface,
    sides: int = 8,
    top_radius: float | None = None,
    cap: bool = False,
) -> Mesh:
    """An upright cylinder or cone from z = 0 to `height`, the texture tiled in metres."""
    top_radius = radius if top_radius is None else top_radius
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    low = np.column_stack([ring * radius, np.zeros(sides + 1)])
    high = np.column_stack([ring * top_radius, np.full(sides + 1, height)])
    corners = np.stack([low[:-1], low[1:], high[1:], high[:-1]], 1)
    u = np.arange(sides + 1) * (2 * np.pi * radius / sides / surface.tile)
    v = height / surface.tile
    uv = np.zeros((sides, 4, 2), np.float32)
    uv[:, :, 0] = np.stack([u[:-1], u[1:], u[1:], u[:-1]], 1)
    uv[:, :2, 1] = v
    mesh = quads(corners, surface, uv)
    # Smooth shading: normals of the round surface instead of the facets.
    mesh.vertices[:, 3:6] = 0.0
    mesh.vertices[:, 3:5] = mesh.vertices[:, :2] / max(radius, top_radius, 1e-6)
    if not cap:
        return mesh
    centre = np.array([0.0, 0.0, height])
    lid = np.stack([high[:-1], high[1:], np.tile(centre, (sides, 1))], 1)
    lid = np.concatenate([lid, lid[:, 2:]], 1)
    up = np.tile([0.0, 0.0, 1.0], (sides, 1))
    return Mesh.merge([mesh, quads(lid, surface, normals=up)])


def blob(
    radii: tuple[float, float, float],
    surface: Surface,
    rng: np.random.Generator,
    roughness: float = 0.15,
    segments: int = 8,
    rings: int = 5,
) -> Mesh:
    """A lumpy ellipsoid about the origin."""
    theta = np.linspace(0.0, np.pi, rings + 1)
    phi = np.linspace(0.0, 2.0 * np.pi, segments + 1)
    noise = 1.0 + roughness * rng.uniform(-1, 1, (rings + 1, segments + 1))
    noise[:, -1] = noise[:, 0]
    noise[0], noise[-1] = noise[0, 0], noise[-1, 0]
    unit = np.stack(
        [
            np.sin(theta)[:, None] * np.cos(phi),
            np.sin(theta)[:, None] * np.sin(phi),
            np.broadcast_to(np.cos(theta)[:, None], noise.shape),
        ],
        -1,
    )
    points = unit * noise[..., None] * np.asarray(radii)
    scale = np.asarray(radii).mean() / surface.tile
    uv = np.stack(np.broadcast_arrays(phi[None] * scale, theta[:, None] * scale), -1)
    vertices = _vertices(points, unit, uv, surface)
    row = segments + 1
    start = (np.arange(rings)[:, None] * row + np.arange(segments)).reshape(-1, 1, 1)
    cell = np.array([[0, row, row + 1], [0, row + 1, 1]])
    return Mesh(
        vertices.reshape(-1, FLOATS_PER_VERTEX),
        (start + cell).reshape(-1, 3).astype(np.uint32),
    )
