"""What stands beside a road. Local frame: x along the road, the front at y = 0, y away from it.

Trees, bushes and hedges are leaf clumps with cut-out alpha around lumpy cores.
"""

from __future__ import annotations

import numpy as np

from depth_prior_ros.recordings.synthetic import vehicles
from depth_prior_ros.recordings.synthetic.mesh import (
    Mesh,
    Surface,
    blob,
    box,
    cylinder,
    painted,
    placement,
    quads,
    rectangle,
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


_Rng = np.random.Generator


def _wall_tint(rng: _Rng) -> tuple[float, float, float]:
    value = rng.uniform(0.25, 0.75)
    r, g, b = value * rng.uniform(0.9, 1.1, 3)
    return float(r), float(g), float(b)


def _front(
    corners: np.ndarray, bays: float, storeys: float, layer: int, tint: tuple[float, float, float]
) -> Mesh:
    uv = np.array([[[0, storeys], [bays, storeys], [bays, 0], [0, 0]]], np.float32)
    return quads(np.asarray(corners, np.float32)[None], Surface(layer, tint), uv)


def building(
    width: float, rng: _Rng, bank: TextureBank, storeys: int, depth: float | None = None
) -> Mesh:
    """A house with windows, roof, sometimes a shop, balconies, chimney, dormers."""
    depth = rng.uniform(8, 14) if depth is None else depth
    storey = rng.uniform(2.7, 3.6)
    height = storeys * storey
    bay = rng.uniform(2.0, 4.0)
    tint = _wall_tint(rng)
    real = rng.random() < 0.25
    layer = bank.pick(rng, "real_wall", "facade") if real else bank.pick(rng, "facade")
    side_layer = layer if rng.random() < 0.6 else bank.pick(rng, "plaster", "masonry", "real_wall")
    across, up = max(1, round(width / bay)), storeys
    base = storey if rng.random() < 0.35 else 0.0
    parts = []
    faces = (
        (np.array([[0, 0], [width, 0]]), across, layer),
        (np.array([[width, 0], [width, depth]]), max(1, round(depth / bay)), side_layer),
        (np.array([[0, depth], [0, 0]]), max(1, round(depth / bay)), side_layer),
    )
    for (a, b), bays, face in faces:
        low, high = base, height
        rows = up - (1 if base else 0)
        if rows > 0:
            wall = np.array([[*a, low], [*b, low], [*b, high], [*a, high]])
            parts.append(_front(wall, bays, rows, face, tint))
        if base:
            ground = np.array([[*a, 0], [*b, 0], [*b, base], [*a, base]])
            shop = bank.pick(rng, "shop", "shop", "masonry")
            parts.append(_front(ground, max(1, bays // 2), 1, shop, tint))
    parts += _details(width, depth, height, storey, storeys, rng, bank)
    return Mesh.merge(parts)


def _details(
    width: float,
    depth: float,
    height: float,
    storey: float,
    storeys: int,
    rng: _Rng,
    bank: TextureBank,
) -> list[Mesh]:
    trim = painted(bank, _wall_tint(rng))
    tiles = Surface(bank.pick(rng, "roof"), _wall_tint(rng), tile=3.0)
    parts = []
    if rng.random() < 0.7:
        rise = rng.uniform(0.25, 0.6) * depth
        over = 0.4
        low, high, mid = height - 0.1, height + rise, depth / 2
        eaves = [[-over, -over, low], [width + over, -over, low]]
        back = [[width + over, depth + over, low], [-over, depth + over, low]]
        ridge = [[width + over, mid, high], [-over, mid, high]]
        parts.append(rectangle(np.array([*eaves, *ridge]), tiles))
        parts.append(rectangle(np.array([*back, ridge[1], ridge[0]]), tiles))
        wall = Surface(bank.pick(rng, "plaster"), _wall_tint(rng))
        for x in (0.0, width):
            gable = np.array([[x, 0, height], [x, depth, height], [x, mid, high], [x, mid, high]])
            parts.append(quads(gable[None], wall))
        for x in np.arange(2.0, width - 2.5, rng.uniform(3, 7)) if rng.random() < 0.4 else ():
            window = Surface(bank.pick(rng, "facade"), trim.tint)
            front = np.array([[x, 0.8, height], [x + 1.6, 0.8, height]])
            top = front[::-1] + np.array([0, 0, 1.7])
            parts.append(quads(np.concatenate([front, top])[None], window))
            parts.append(box((x, 0.82, height), (x + 1.6, mid, height + 1.7), trim))
        if rng.random() < 0.6:
            x = rng.uniform(0.5, max(width - 1, 0.6))
            parts.append(box((x, mid - 0.3, high - 1), (x + 0.7, mid + 0.3, high + 0.8), trim))
    else:
        parts.append(box((-0.1, -0.15, height), (width + 0.1, depth, height + 0.5), trim))
    if rng.random() < 0.5:  # cornice between the storeys
        for level in range(1, storeys):
            z = level * storey
            parts.append(box((0, -0.12, z - 0.1), (width, 0.05, z + 0.1), trim))
    if rng.random() < 0.25:
        for level in range(1, storeys):
            for x in np.arange(1.0, width - 3, rng.uniform(4, 8)):
                z = level * storey
                parts.append(box((x, -1.2, z), (x + 2.6, 0, z + 0.95), trim, bottom=True))
    if rng.random() < 0.4:
        x = rng.uniform(0.3, max(width - 1.5, 0.4))
        door = painted(bank, rng.uniform(0.02, 0.4, 3))
        parts.append(box((x, -0.04, 0), (x + 1.1, 0.02, 2.2), door))
        parts.append(box((x - 0.3, -0.9, 0), (x + 1.4, 0.0, 0.25), trim))
    return parts


def wall(length: float, rng: _Rng, bank: TextureBank) -> Mesh:
    """A garden wall, a noise barrier or a shed's side."""
    height = rng.choice([0.6, 1.2, 2.0, 3.5]) * rng.uniform(0.8, 1.2)
    kind = bank.pick(rng, "masonry", "plaster", "real_wall", "real_any")
    surface = Surface(kind, _wall_tint(rng), tile=rng.uniform(1.0, 4.0))
    return box((0, 0, 0), (length, 0.3, height), surface)


def fence(length: float, rng: _Rng, bank: TextureBank) -> Mesh:
    """A fence that can be looked through, with posts and sometimes a low wall."""
    height = rng.uniform(0.8, 2.0)
    base = rng.uniform(0.2, 0.6) if rng.random() < 0.4 else 0.0
    layer = bank.pick(rng, "fence")
    uv = np.array([[0, 1], [length / height, 1], [length / height, 0], [0, 0]], np.float32)
    corners = np.array([[0, 0, base], [length, 0, base], [length, 0, height], [0, 0, height]])
    parts = [quads(corners[None], Surface(layer, _wall_tint(rng)), uv[None])]
    post = painted(bank, 0.2)
    for x in np.arange(0, length, 2.5):
        parts.append(box((x, -0.03, 0), (x + 0.07, 0.04, height + 0.05), post))
    if base:
        stone = Surface(bank.pick(rng, "masonry", "plaster"), _wall_tint(rng))
        parts.append(box((0, -0.1, 0), (length, 0.12, base), stone))
    return Mesh.merge(parts)


def guard_rail(length: float, bank: TextureBank) -> Mesh:
    """A steel guard rail."""
    steel = painted(bank, (0.42, 0.43, 0.45), 0.15)
    profile = np.array([[0.0, 0.45], [-0.06, 0.52], [0.0, 0.6], [-0.06, 0.68], [0.0, 0.75]])
    strips = []
    for i in range(len(profile) - 1):
        (y0, z0), (y1, z1) = profile[i], profile[i + 1]
        strips.append([[0, y0, z0], [length, y0, z0], [length, y1, z1], [0, y1, z1]])
    posts = [box((x, 0.02, 0), (x + 0.1, 0.12, 0.7), steel) for x in np.arange(0, length, 4.0)]
    return Mesh.merge([quads(np.array(strips), steel), *posts])


def lamp(rng: _Rng, bank: TextureBank, reach: float) -> Mesh:
    """A street lamp whose arm reaches over the road (towards -y)."""
    steel = painted(bank, rng.uniform(0.05, 0.4))
    height = rng.uniform(4, 9)
    parts = [cylinder(0.08, height, steel, 6, 0.05)]
    parts.append(box((-0.03, -reach, height - 0.06), (0.03, 0, height), steel))
    head = painted(bank, 0.3)
    parts.append(
        box((-0.1, -reach - 0.5, height - 0.08), (0.1, -reach, height + 0.08), head, bottom=True)
    )
    return Mesh.merge(parts)


def pole(rng: _Rng, bank: TextureBank) -> Mesh:
    """A plain mast."""
    shade = rng.uniform(0.08, 0.4)
    surface = Surface(bank.pick(rng, "plain", "bark"), (shade, shade, shade))
    return cylinder(rng.uniform(0.05, 0.18), rng.uniform(3, 9), surface, 7)


def traffic_sign(rng: _Rng, bank: TextureBank) -> Mesh:
    """A sign on a post, facing -x (towards the driver)."""
    height = rng.uniform(2.0, 2.9)
    half = rng.uniform(0.28, 0.45)
    parts = [cylinder(0.035, height + half, painted(bank, (0.3, 0.3, 0.32)), 5)]
    if rng.random() < 0.6:
        wide, tall, layer = half, half, bank.pick(rng, "round_sign")
    else:
        wide, tall, layer = half * rng.uniform(1, 2.5), half, bank.pick(rng, "sign")
    face = [[-0.05, wide, height - tall], [-0.05, -wide, height - tall]]
    face += [[-0.05, -wide, height + tall], [-0.05, wide, height + tall]]
    parts.append(quads(np.array([face]), Surface(layer)))
    return Mesh.merge(parts)


def traffic_light(rng: _Rng, bank: TextureBank) -> Mesh:
    """A traffic light facing -x."""
    dark = painted(bank, 0.02)
    parts = [cylinder(0.07, 3.4, painted(bank, (0.25, 0.25, 0.27)), 6)]
    parts.append(box((-0.15, -0.17, 2.3), (0.05, 0.17, 3.3), dark))
    colours = ((0.05, 0.6, 0.2), (0.3, 0.2, 0.02), (0.7, 0.03, 0.02))
    lit = rng.integers(3)
    for i, colour in enumerate(colours):
        z = 2.45 + 0.3 * i
        dim = 1.0 if i == lit else 0.15
        tint = (dim * colour[0], dim * colour[1], dim * colour[2])
        parts.append(box((-0.17, -0.09, z - 0.09), (-0.14, 0.09, z + 0.09), painted(bank, tint)))
    return Mesh.merge(parts)


def gantry(span: float, rng: _Rng, bank: TextureBank) -> Mesh:
    """A sign gantry or a bridge across the road, centred on the origin, facing -x."""
    steel = painted(bank, (0.3, 0.3, 0.32))
    half = span / 2
    if rng.random() < 0.5:
        concrete = Surface(bank.pick(rng, "plaster", "masonry"), _wall_tint(rng), tile=3)
        width = rng.uniform(4, 12)
        deck = box((0, -half - 20, 4.8), (width, half + 20, 6.4), concrete, bottom=True)
        piers = [box((1, y - 0.5, -2), (width - 1, y + 0.5, 4.9), concrete) for y in (-half, half)]
        return Mesh.merge([deck, *piers])
    parts = [box((-0.15, y - 0.15, -1), (0.15, y + 0.15, 6.5), steel) for y in (-half, half)]
    parts.append(box((-0.2, -half, 6.0), (0.2, half, 6.4), steel, bottom=True))
    for y in rng.uniform(-half * 0.7, half * 0.7, 2):
        board = Surface(bank.pick(rng, "sign"), tile=3)
        parts.append(box((-0.3, y - 1.5, 5.2), (-0.2, y + 1.5, 7.2), board, bottom=True))
    return Mesh.merge(parts)


def shelter(rng: _Rng, bank: TextureBank) -> Mesh:
    """A bus stop."""
    steel = painted(bank, (0.15, 0.15, 0.16))
    poster = Surface(bank.pick(rng, "sign", "real_any"), tile=1.4)
    return Mesh.merge(
        [
            box((0, 0, 2.3), (4, 1.5, 2.45), steel, bottom=True),
            box((0, 1.4, 0), (0.08, 1.5, 2.3), steel),
            box((3.92, 1.4, 0), (4, 1.5, 2.3), steel),
            box((3.9, 0.2, 0.2), (4.0, 1.4, 2.1), poster),
            box((0.5, 1.0, 0.4), (3, 1.35, 0.5), steel),
        ]
    )


def clutter(rng: _Rng, bank: TextureBank) -> Mesh:
    """Something small that stands on a pavement or a verge."""
    makers = (
        pole,
        traffic_sign,
        vehicles.trailer_sign,
        shrub,
        lambda r, b: vehicles.cyclist(r, b, rider=False),
        vehicles.person,
    )
    weights = [0.2, 0.25, 0.15, 0.1, 0.1, 0.2]
    return makers[rng.choice(len(makers), p=weights)](rng, bank)
