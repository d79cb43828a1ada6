"""Trees, bushes and hedges out of leaf clumps with cut-out alpha around lumpy cores."""

from __future__ import annotations

import numpy as np

from depth_prior_ros.recordings.synthetic.mesh import (
    Mesh,
    Surface,
    blob,
    box,
    cylinder,
    placement,
    quads,
)
from depth_prior_ros.recordings.synthetic.textures import TextureBank

_TURNS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)


def _clumps(
    centres: np.ndarray,
    outward: np.ndarray,
    size: np.ndarray,
    surface: Surface,
    rng: np.random.Generator,
) -> Mesh:
    """Leaf quads at `centres` (N, 3), facing roughly `outward`, lit as if they were round."""
    count = len(centres)
    facing = outward + rng.normal(0, 0.6, (count, 3))
    facing /= np.linalg.norm(facing, axis=1, keepdims=True) + 1e-9
    across = np.cross(facing, rng.normal(size=(count, 3)))
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
    along = np.cross(facing, across)
    across, along = across * size[:, None], along * size[:, None]
    corners = np.stack(
        [
            centres - across - along,
            centres + across - along,
            centres + across + along,
            centres - across + along,
        ],
        1,
    )
    tones = rng.uniform(0.7, 1.25, count)
    mesh = quads(corners, surface, np.tile(_TURNS, (count, 1, 1)), outward)
    mesh.vertices[:, 9:12] *= np.repeat(tones, 4)[:, None]
    return mesh


def _sphere(rng: np.random.Generator, count: int) -> np.ndarray:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _tone(rng: np.random.Generator) -> tuple[float, float, float]:
    value = rng.uniform(0.25, 0.6)
    r, g, b = value * rng.uniform(0.85, 1.15, 3)
    return float(r), float(g), float(b)


def broadleaf(rng: np.random.Generator, bank: TextureBank, detail: int = 70) -> Mesh:
    """A deciduous tree of height 1 x scale: trunk, boughs, a crown of several clumps."""
    height = rng.uniform(5, 14)
    stem = height * rng.uniform(0.2, 0.45)
    spread = height * rng.uniform(0.2, 0.38)
    tint = _tone(rng)
    leaf = Surface(bank.pick(rng, "leaves"), tint)
    real = rng.random() < 0.35
    core = Surface(bank.pick(rng, "real_green" if real else "bush", "bush"), tint, tile=1.5)
    wood = Surface(
        bank.pick(rng, "bark"), tuple((rng.uniform(0.25, 0.5) * np.ones(3)).tolist()), tile=0.8
    )
    girth = height * rng.uniform(0.01, 0.025)
    parts = [cylinder(girth, stem + 0.3 * (height - stem), wood, 6, girth * 0.5)]
    blobs = int(rng.integers(2, 6)) if detail > 20 else 2
    for _ in range(blobs):
        radii = np.array([spread, spread, (height - stem) * 0.5]) * rng.uniform(0.5, 0.85, 3)
        centre = np.array(
            [*rng.normal(0, 0.3 * spread, 2), rng.uniform(stem, height) * 0.4 + 0.55 * stem]
        )
        centre[2] = (
            stem + radii[2] * 0.8 + rng.uniform(0, max(height - stem - 1.8 * radii[2], 0.05))
        )
        unit = _sphere(rng, detail // blobs)
        points = centre + unit * radii * rng.uniform(0.75, 1.05, (len(unit), 1))
        size = rng.uniform(0.25, 0.45, len(unit)) * spread * 0.8
        parts.append(_clumps(points, unit, size, leaf, rng))
        inner = blob(tuple((radii * 0.8).tolist()), core, rng, 0.2, 6, 4)
        inner.vertices[:, 9:12] *= 0.6
        parts.append(inner.transformed(placement(*centre)))
    return Mesh.merge(parts)


def conifer(rng: np.random.Generator, bank: TextureBank, detail: int = 60) -> Mesh:
    """A spruce or pine: a ragged cone."""
    height = rng.uniform(6, 16)
    spread = height * rng.uniform(0.14, 0.24)
    low = height * rng.uniform(0.03, 0.25)
    value = rng.uniform(0.15, 0.35)
    tint = (value * 0.85, value, value * 0.85)
    leaf = Surface(bank.pick(rng, "leaves", "twigs", "leaves"), tint)
    core = Surface(bank.pick(rng, "bush"), tint, tile=1.5)
    wood = Surface(bank.pick(rng, "bark"), (0.3, 0.3, 0.3), tile=0.8)
    share = np.sqrt(rng.random(detail))
    angle = rng.uniform(0, 2 * np.pi, detail)
    radius = spread * share * rng.uniform(0.8, 1.1, detail)
    z = low + (height - low) * (1 - share)
    outward = np.column_stack([np.cos(angle), np.sin(angle), np.full(detail, 0.4)])
    points = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), z])
    size = spread * rng.uniform(0.3, 0.5, detail)
    cone = cylinder(spread * 0.8, height - low, core, 7, 0.05).transformed(placement(0, 0, low))
    return Mesh.merge(
        [
            cylinder(height * 0.015, low + 1, wood, 6),
            cone,
            _clumps(points, outward, size, leaf, rng),
        ]
    )


def bare_tree(rng: np.random.Generator, bank: TextureBank) -> Mesh:
    """A tree with hardly a leaf: trunk and planes of twigs."""
    height = rng.uniform(5, 11)
    wood = Surface(bank.pick(rng, "bark"), (0.35, 0.35, 0.35), tile=0.8)
    twig = Surface(bank.pick(rng, "twigs"), (0.4, 0.4, 0.4))
    parts = [cylinder(height * 0.018, height * 0.7, wood, 6, height * 0.006)]
    for angle in rng.uniform(0, np.pi, 4):
        half = height * 0.35
        dx, dy = half * np.cos(angle), half * np.sin(angle)
        low, high = height * 0.3, height
        corners = [[-dx, -dy, low], [dx, dy, low], [dx, dy, high], [-dx, -dy, high]]
        parts.append(quads(np.array([corners]), twig))
    return Mesh.merge(parts)


def tree(rng: np.random.Generator, bank: TextureBank, far: bool = False) -> Mesh:
    """Any tree; `far` ones have few leaves and are cheap to draw."""
    kind = rng.random()
    detail = 18 if far else 60
    if kind < 0.72:
        return broadleaf(rng, bank, detail)
    return conifer(rng, bank, detail) if kind < 0.92 else bare_tree(rng, bank)


def shrub(rng: np.random.Generator, bank: TextureBank) -> Mesh:
    """A bush, 0.5 to 3 m."""
    radii = rng.uniform([0.5, 0.5, 0.4], [1.8, 1.8, 1.6])
    tint = _tone(rng)
    leaf = Surface(bank.pick(rng, "leaves"), tint)
    core = Surface(bank.pick(rng, "bush", "real_green"), tint, tile=1.2)
    unit = _sphere(rng, 22)
    unit[:, 2] = np.abs(unit[:, 2])
    points = unit * radii + np.array([0, 0, radii[2] * 0.6])
    size = rng.uniform(0.3, 0.5, len(unit)) * radii.mean()
    inner = blob(tuple((radii * 0.95).tolist()), core, rng, 0.15, 8, 4)
    inner.vertices[:, 9:12] *= 0.75
    return Mesh.merge(
        [inner.transformed(placement(0, 0, radii[2] * 0.6)), _clumps(points, unit, size, leaf, rng)]
    )


def hedge(length: float, rng: np.random.Generator, bank: TextureBank) -> Mesh:
    """A hedge along x from 0 to `length`, its front at y = 0."""
    height, depth = rng.uniform(0.7, 2.6), rng.uniform(0.5, 1.2)
    tint = _tone(rng)
    kind = "real_green" if rng.random() < 0.4 else "bush"
    core = Surface(bank.pick(rng, kind, "bush"), tint, tile=rng.uniform(0.8, 2.0))
    leaf = Surface(bank.pick(rng, "leaves"), tint)
    count = int(length * 3)
    x = rng.uniform(0, length, count)
    top = rng.random(count) < 0.4
    z = np.where(top, height, rng.uniform(0.1, height, count))
    y = np.where(top, rng.uniform(0, depth, count), 0.05)
    outward = np.where(top[:, None], [0.0, -0.2, 1.0], [0.0, -1.0, 0.2])
    clumps = _clumps(np.column_stack([x, y, z]), outward, rng.uniform(0.12, 0.35, count), leaf, rng)
    return Mesh.merge([box((0, 0, 0), (length, depth, height), core), clumps])
