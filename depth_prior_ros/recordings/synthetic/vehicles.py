"""Vehicles and people, standing on z = 0, facing +x, centred on the origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depth_prior_ros.recordings.synthetic.mesh import (
    Mesh,
    Surface,
    blob,
    box,
    cylinder,
    painted,
    placement,
    prism,
    quads,
)
from depth_prior_ros.recordings.synthetic.textures import TextureBank

_Colour = tuple[float, float, float]
_PAINTS: tuple[tuple[float, float, float], ...] = (
    (0.02, 0.02, 0.025),
    (0.05, 0.05, 0.06),
    (0.12, 0.13, 0.14),
    (0.35, 0.36, 0.38),
    (0.55, 0.56, 0.58),
    (0.8, 0.8, 0.8),
    (0.75, 0.75, 0.72),
    (0.03, 0.06, 0.2),
    (0.08, 0.16, 0.3),
    (0.35, 0.02, 0.02),
    (0.5, 0.06, 0.04),
    (0.03, 0.12, 0.06),
    (0.45, 0.35, 0.2),
    (0.7, 0.5, 0.05),
)


@dataclass(frozen=True)
class Body:
    """A vehicle's mesh and its footprint in metres."""

    mesh: Mesh
    length: float
    width: float


def paint_colour(rng: np.random.Generator) -> _Colour:
    """A car colour: mostly black, grey, silver, white, some blue and red."""
    base = np.array(_PAINTS[rng.integers(len(_PAINTS))]) * rng.uniform(0.7, 1.3, 3)
    r, g, b = np.clip(base * rng.uniform(0.8, 1.2), 0.01, 0.9)
    return float(r), float(g), float(b)


def _wheel(x: float, y: float, radius: float, side: int, bank: TextureBank) -> list[Mesh]:
    angle = np.arange(12) * (2 * np.pi / 12)
    ring = np.column_stack([x + radius * np.cos(angle), radius + radius * np.sin(angle)])
    hub = np.column_stack([x + 0.6 * radius * np.cos(angle), radius + 0.6 * radius * np.sin(angle)])
    tyre = painted(bank, 0.015)
    rim = painted(bank, (0.3, 0.3, 0.31), 0.2)
    inner, outer = y - side * 0.2, y + side * 0.01
    low, high = min(inner, outer), max(inner, outer)
    hub_y = y + side * 0.02
    return [prism(ring, low, high, tyre), prism(hub, min(y, hub_y), max(y, hub_y), rim)]


def _wheels(xs: tuple[float, ...], half: float, radius: float, bank: TextureBank) -> list[Mesh]:
    return [m for x in xs for side in (-1, 1) for m in _wheel(x, side * half, radius, side, bank)]


def _contact(length: float, width: float, bank: TextureBank) -> Mesh:
    x, y = length / 2 + 0.15, width / 2 + 0.15
    corners = np.array([[[-x, -y, 0.02], [x, -y, 0.02], [x, y, 0.02], [-x, y, 0.02]]])
    return quads(corners, Surface(bank.kinds["contact"][0]))


def _ends(length: float, half: float, bank: TextureBank, waist: float) -> list[Mesh]:
    """Lights, number plates, grille and bumpers of a car."""
    x = length / 2
    head = painted(bank, (0.6, 0.6, 0.62), 0.5)
    tail = painted(bank, (0.4, 0.02, 0.02), 0.2)
    plate = painted(bank, (0.7, 0.7, 0.68))
    dark = painted(bank, 0.02, 0.1)
    z = 0.72 * waist
    parts = [
        box((x - 0.2, -0.25, 0.42), (x + 0.02, 0.25, 0.52), plate),
        box((x - 0.2, -0.5 * half, z - 0.08), (x + 0.01, 0.5 * half, z + 0.05), dark),
        box((-x - 0.02, -0.25, z - 0.05), (-x + 0.1, 0.25, z + 0.06), plate),
        box((x - 0.1, -half * 0.9, 0.24), (x + 0.015, half * 0.9, 0.36), dark),
        box((-x - 0.015, -half * 0.9, 0.24), (-x + 0.1, half * 0.9, 0.4), dark),
    ]
    for side in (-1, 1):
        y0, y1 = sorted((side * half * 0.6, side * half * 0.97))
        parts.append(box((x - 0.25, y0, z - 0.06), (x - 0.0, y1, z + 0.08), head))
        parts.append(box((-x - 0.01, y0, z), (-x + 0.2, y1, z + 0.2), tail))
    return parts


def car(rng: np.random.Generator, bank: TextureBank, colour: _Colour | None = None) -> Body:
    """A hatchback, saloon, estate, van or off-road car of random size and colour."""
    style = rng.choice(
        ["hatch", "saloon", "estate", "tall", "coupe"], p=[0.3, 0.25, 0.2, 0.2, 0.05]
    )
    length = rng.uniform(3.5, 4.2) if style == "hatch" else rng.uniform(4.1, 4.9)
    half = rng.uniform(0.8, 0.92)
    height = {"tall": 1.72, "coupe": 1.3}.get(str(style), 1.46) + rng.uniform(-0.06, 0.1)
    waist = height * rng.uniform(0.6, 0.66)
    paint = painted(bank, colour or paint_colour(rng), rng.uniform(0.15, 0.45))
    glass = painted(bank, (0.02, 0.025, 0.03), rng.uniform(0.4, 0.8))
    dark = painted(bank, 0.03)
    x = length / 2
    bonnet = x - rng.uniform(0.85, 1.2) * (0.75 if style == "tall" else 1.0)
    front = bonnet - rng.uniform(0.5, 0.8)
    rear = {"saloon": -x + 1.25, "coupe": -x + 1.3}.get(str(style), -x + 0.55)
    boot = {"saloon": -x + 0.65, "coupe": -x + 0.4}.get(str(style), -x + 0.12)
    body = [[-x + 0.05, 0.22], [x - 0.05, 0.22], [x, 0.5], [x - 0.12, 0.72 * waist + 0.1]]
    body += [[bonnet, waist], [-x + 0.1, waist + 0.04], [-x, 0.5]]
    tumble = rng.uniform(0.1, 0.2)
    cabin = [[boot, waist], [bonnet, waist - 0.03], [front, height - 0.06], [rear, height - 0.06]]
    roof = [[rear - 0.03, height - 0.07], [front + 0.04, height - 0.07]]
    roof += [[front - 0.25, height], [rear + 0.25, height - 0.02]]
    inset = np.array([0.03, 0.03, tumble, tumble])
    parts = [
        prism(np.array(body), -half, half, paint, np.array([0.06, 0.06, 0, 0.02, 0.04, 0.04, 0])),
        prism(np.array(cabin), -half, half, glass, inset),
        prism(np.array(roof), -half + tumble - 0.03, half - tumble + 0.03, paint),
        box((-x + 0.1, -half - 0.005, 0.2), (x - 0.1, half + 0.005, 0.3), dark),
    ]
    # Pillars: thin painted slabs that run up the sides of the cabin.
    middle = 0.5 * (front + rear) + rng.uniform(-0.2, 0.2)
    for at, wide in ((middle, 0.05), (rear + (0.1 if style != "estate" else 0.7), 0.12)):
        pillar = np.array([[at - wide, waist], [at + wide, waist]])
        top = np.array([[at + wide * 0.6, height - 0.06], [at - wide * 0.6, height - 0.06]])
        parts.append(
            prism(np.concatenate([pillar, top]), -half - 0.01, half + 0.01, paint, inset + 0.005)
        )
    for side in (-1, 1):
        y0, y1 = sorted((side * (half - 0.02), side * (half + 0.14)))
        parts.append(box((bonnet - 0.45, y0, waist), (bonnet - 0.33, y1, waist + 0.14), paint))
    radius = rng.uniform(0.29, 0.34)
    parts += _ends(length, half, bank, waist)
    parts += _wheels((x - 0.75, -x + 0.75), half, radius, bank)
    parts.append(_contact(length, 2 * half, bank))
    return Body(Mesh.merge(parts), length, 2 * half)


def van(rng: np.random.Generator, bank: TextureBank) -> Body:
    """A delivery van or camper."""
    length, half, height = rng.uniform(4.3, 6.2), rng.uniform(0.9, 1.05), rng.uniform(1.85, 2.7)
    colour = (0.75, 0.75, 0.74) if rng.random() < 0.5 else paint_colour(rng)
    paint = painted(bank, colour, 0.2)
    glass = painted(bank, (0.02, 0.025, 0.03), 0.6)
    x = length / 2
    waist = 1.15
    body = [[-x, 0.3], [x, 0.3], [x, 0.8], [x - 0.6, waist], [x - 1.25, height - 0.1]]
    body += [[x - 1.5, height], [-x + 0.05, height]]
    parts = [prism(np.array(body), -half, half, paint)]
    screen = np.array(
        [
            [x - 0.66, -half + 0.15, waist + 0.08],
            [x - 0.66, half - 0.15, waist + 0.08],
            [x - 1.14, half - 0.2, height - 0.22],
            [x - 1.14, -half + 0.2, height - 0.22],
        ]
    ) + np.array([0.03, 0, 0.02])
    parts.append(quads(screen[None], glass))
    side = half + 0.01
    low, high = waist + 0.05, height - 0.3
    parts.append(box((x - 1.85, -side, low), (x - 0.95, side, high), glass, (0.3, 0, 0, 0)))
    if rng.random() < 0.5:
        parts.append(box((-x + 0.3, -side, low), (x - 2.0, side, high), glass))
    if rng.random() < 0.6:
        back = painted(bank, (0.03, 0.03, 0.04), 0.5)
        parts.append(
            box((-x - 0.01, -half * 0.8, waist), (-x + 0.1, half * 0.8, height - 0.3), back)
        )
    parts += _ends(length, half, bank, waist)
    parts += _wheels((x - 0.9, -x + 1.0), half, 0.34, bank)
    parts.append(_contact(length, 2 * half, bank))
    return Body(Mesh.merge(parts), length, 2 * half)


def truck(rng: np.random.Generator, bank: TextureBank) -> Body:
    """A lorry with a box or a trailer."""
    length, half, height = rng.uniform(7, 14), rng.uniform(1.15, 1.27), rng.uniform(2.9, 3.9)
    x = length / 2
    cab = painted(bank, paint_colour(rng), 0.2)
    glass = painted(bank, (0.02, 0.025, 0.03), 0.6)
    dark = painted(bank, 0.03)
    if rng.random() < 0.4:
        cargo = Surface(bank.pick(rng, "sign", "real_any"), tile=rng.uniform(2, 6))
    else:
        cargo = painted(bank, rng.uniform(0.1, 0.8, 3))
    parts = [
        box((x - 2.0, -half + 0.05, 0.5), (x, half - 0.05, 2.9), cab, (0.15, 0, 0.05, 0.05)),
        box((x - 0.3, -half + 0.2, 1.6), (x + 0.02, half - 0.2, 2.4), glass, (0.1, 0, 0, 0)),
        box((x - 1.3, -half + 0.03, 1.6), (x - 0.5, half - 0.03, 2.3), glass),
        box((-x, -half, 1.0), (x - 2.2, half, height), cargo),
        box((-x, -half + 0.2, 0.5), (x - 0.2, half - 0.2, 1.0), dark),
        box((-x - 0.02, -half, 0.6), (-x + 0.1, half, 0.8), painted(bank, (0.3, 0.03, 0.03))),
    ]
    axles = (x - 1.2, -x + 1.2, -x + 2.4) if length > 9 else (x - 1.2, -x + 1.5)
    parts += _wheels(axles, half, 0.5, bank)
    parts.append(_contact(length, 2 * half, bank))
    return Body(Mesh.merge(parts), length, 2 * half)


def bus(rng: np.random.Generator, bank: TextureBank) -> Body:
    """A city bus or tram car."""
    length, half, height = rng.uniform(10, 13), 1.25, rng.uniform(2.9, 3.3)
    x = length / 2
    paint = painted(bank, paint_colour(rng), 0.2)
    lower = painted(bank, rng.uniform(0.05, 0.8, 3), 0.2)
    glass = painted(bank, (0.03, 0.035, 0.04), 0.6)
    parts = [
        box((-x, -half, 0.3), (x, half, 1.2), lower),
        box((-x, -half, 1.2), (x, half, height), paint),
        box((-x - 0.01, -half - 0.01, 1.3), (x + 0.02, half + 0.01, height - 0.6), glass),
        box((x - 0.1, -half + 0.1, 0.9), (x + 0.03, half - 0.1, height - 0.5), glass),
    ]
    for at in np.arange(-x + 1.3, x - 0.5, 1.4):
        parts.append(box((at, -half - 0.02, 1.25), (at + 0.1, half + 0.02, height - 0.55), paint))
    parts += _wheels((x - 2.6, -x + 3.0), half, 0.48, bank)
    parts.append(_contact(length, 2 * half, bank))
    return Body(Mesh.merge(parts), length, 2 * half)


def person(rng: np.random.Generator, bank: TextureBank) -> Mesh:
    """A standing or walking person, 1.5 to 1.9 m."""
    scale = rng.uniform(1.5, 1.9) / 1.75
    trousers = painted(bank, rng.uniform(0.02, 0.25) * rng.uniform(0.6, 1.4, 3))
    coat = painted(bank, np.clip(rng.uniform(0.02, 0.7) * rng.uniform(0.4, 1.5, 3), 0, 1))
    skin = painted(bank, (0.45, 0.28, 0.2))
    hair = painted(bank, rng.uniform(0.02, 0.3) * np.array([1.0, 0.8, 0.6]))
    stride = rng.uniform(0.0, 0.3)
    parts = [
        box(
            (stride - 0.08, 0.03, 0), (stride + 0.08, 0.17, 0.85), trousers, (stride, -stride, 0, 0)
        ),
        box(
            (-stride - 0.08, -0.17, 0),
            (-stride + 0.08, -0.03, 0.85),
            trousers,
            (-stride, stride, 0, 0),
        ),
        box((-0.13, -0.22, 0.8), (0.13, 0.22, 1.48), coat, (0.03, 0.03, 0.05, 0.05)),
        box((-0.08, -0.31, 0.75), (0.08, -0.21, 1.42), coat, (0, 0, 0.0, -0.05)),
        box((-0.08, 0.21, 0.75), (0.08, 0.31, 1.42), coat, (0, 0, -0.05, 0.0)),
        blob((0.1, 0.09, 0.13), skin, rng, 0.03).transformed(placement(0.02, 0, 1.61)),
        blob((0.11, 0.1, 0.1), hair, rng, 0.03).transformed(placement(-0.02, 0, 1.67)),
    ]
    return Mesh.merge(parts).transformed(placement(0, 0, 0, 0, scale))


def cyclist(rng: np.random.Generator, bank: TextureBank, rider: bool = True) -> Mesh:
    """A bicycle, with its rider or parked."""
    dark = painted(bank, 0.03)
    frame = painted(bank, paint_colour(rng), 0.2)
    parts = []
    for x in (-0.5, 0.5):
        angle = np.arange(12) * (2 * np.pi / 12)
        ring = np.column_stack([x + 0.34 * np.cos(angle), 0.34 + 0.34 * np.sin(angle)])
        inner = np.column_stack([x + 0.29 * np.cos(angle), 0.34 + 0.29 * np.sin(angle)])
        hull = np.stack([ring, np.roll(ring, -1, 0), np.roll(inner, -1, 0), inner], 1)
        parts.append(quads(np.insert(hull, 1, 0.0, axis=2), dark))
    parts.append(box((-0.5, -0.02, 0.33), (0.4, 0.02, 0.42), frame))
    parts.append(box((-0.2, -0.02, 0.35), (-0.13, 0.02, 0.95), frame))
    parts.append(box((0.35, -0.25, 0.95), (0.42, 0.25, 1.0), dark))
    parts.append(box((0.38, -0.02, 0.3), (0.45, 0.02, 1.0), frame))
    if rider:
        body = person(rng, bank).transformed(placement(-0.1, 0, 0.35, 0, (1.0, 1.0, 0.85)))
        parts.append(body)
    return Mesh.merge(parts)


def trailer_sign(rng: np.random.Generator, bank: TextureBank) -> Mesh:
    """A bin, cabinet or advertising column on the pavement."""
    if rng.random() < 0.3:
        poster = Surface(bank.pick(rng, "sign", "real_any"), tile=1.5)
        return cylinder(rng.uniform(0.4, 0.7), rng.uniform(2, 3), poster, 10, cap=True)
    size = rng.uniform([0.3, 0.3, 0.7], [1.4, 0.8, 1.5])
    surface = painted(bank, rng.uniform(0.03, 0.5, 3))
    half = size / 2
    return box((-half[0], -half[1], 0), (half[0], half[1], size[2]), surface)
