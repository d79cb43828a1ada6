"""Random streets: cross-section, roadside, parked and moving vehicles, all from one seed.

The road is lined by buildings, gardens, woods, fields, parked cars, street furniture, a horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depth_prior_ros.recordings.synthetic import scenery, vehicles
from depth_prior_ros.recordings.synthetic.mesh import Mesh, Surface, quads
from depth_prior_ros.recordings.synthetic.road import Course, Ground, Layout, StreetSpec, lay_ground
from depth_prior_ros.recordings.synthetic.textures import TextureBank

KINDS = ("town", "residential", "avenue", "country", "motorway", "lane")
_SHARES = (0.23, 0.2, 0.22, 0.2, 0.08, 0.07)
CUTOUT_KINDS = ("leaves", "twigs", "fence", "round_sign", "contact", "paint")


def random_spec(rng: np.random.Generator, kind: str | None = None) -> StreetSpec:
    """A street of a random kind with figures that fit it."""
    kind = str(rng.choice(KINDS, p=_SHARES)) if kind is None else kind
    urban = kind in ("town", "residential", "avenue", "lane")
    lanes = {"town": (2, 3), "residential": (2, 3), "avenue": (2, 5), "motorway": (4, 6)}
    low, high = lanes.get(kind, (2, 3))
    count = int(rng.integers(low, high)) if kind != "lane" else 1
    width = rng.uniform(3.3, 3.9) if kind == "motorway" else rng.uniform(2.6, 3.6)
    width = rng.uniform(3.4, 4.5) if kind == "lane" else width
    chance = {"town": 0.8, "residential": 0.65, "avenue": 0.4, "lane": 0.3}.get(kind, 0.0)
    parking = (bool(rng.random() < chance), bool(rng.random() < chance))
    pavement = tuple(
        float(rng.uniform(1.2, 4.0)) if urban and rng.random() < 0.92 else 0.0 for _ in range(2)
    )
    verge = tuple(
        float(rng.uniform(1.0, 7.0)) if rng.random() < (0.3 if urban else 1.0) else 0.0
        for _ in range(2)
    )
    if kind in ("town", "lane") and rng.random() < 0.6:
        verge = (0.0, 0.0)
    crossings = []
    if kind != "motorway":
        at = rng.uniform(20, 120)
        while at < 220:
            if rng.random() < (0.8 if urban else 0.3):
                crossings.append((float(at), float(rng.uniform(5, 12 if kind != "avenue" else 22))))
            at += rng.uniform(50, 140)
    radius = rng.uniform(60, 800) if rng.random() < 0.55 else np.inf
    bend = rng.normal(0, 1, 6).clip(-1.3, 1.3) / radius
    steep = rng.uniform(0.0, 0.05) if rng.random() < 0.5 else 0.005
    slope = rng.normal(0, 1, 5).clip(-1.5, 1.5) * steep
    return StreetSpec(
        kind=kind,
        lanes=count,
        lane_width=float(width),
        parking=parking,
        pavement=(pavement[0], pavement[1]),
        verge=(verge[0], verge[1]),
        crossings=tuple(crossings),
        dead_end=bool(urban and rng.random() < 0.25),
        bend=tuple(bend.tolist()),
        slope=tuple(slope.tolist()),
        occupancy=float(rng.uniform(0.2, 1.0)),
        traffic=float(rng.gamma(1.2, 0.9)),
        tree_spacing=float(rng.choice([7, 10, 16, 30, 1000])),
    )


@dataclass
class Mover:
    """A vehicle or person on the move: position s + speed * t along the road at offset d.

    path: metres along the road since time 0, instead of speed * t.
    """

    mesh: Mesh
    s: float
    d: float
    speed: float  # m/s along the road, negative = oncoming
    length: float
    yaw: float = 0.0
    side_speed: float = 0.0  # m/s to the left
    height: float = 0.0
    path: Callable[[float], float] | None = None

    def along(self, time: float) -> float:
        """Road position at `time` seconds."""
        return self.s + (self.speed * time if self.path is None else self.path(time))

    def moves(self, time: float) -> bool:
        """Whether it is on the move at `time` seconds rather than waiting."""
        if self.path is not None:
            return abs(self.path(time + 0.05) - self.path(time - 0.05)) > 1e-3
        return self.speed != 0.0 or self.side_speed != 0.0

    def at(self, course: Course, time: float) -> Mesh:
        """The mesh in the world at `time` seconds."""
        frame = course.frame(
            self.along(time), self.d + self.side_speed * time, self.height, self.yaw
        )
        return self.mesh.transformed(frame)


def placed(movers: list[Mover], course: Course, time: float) -> tuple[Mesh, Mesh]:
    """Meshes in the world at `time` seconds: of the movers that move, of those that wait."""
    sorted_out: tuple[list[Mesh], list[Mesh]] = ([], [])
    for mover in movers:
        sorted_out[0 if mover.moves(time) else 1].append(mover.at(course, time))
    return Mesh.merge(sorted_out[0]), Mesh.merge(sorted_out[1])


class StreetWorld:
    """A street with everything beside and on it; the same seed gives the same street."""

    def __init__(
        self,
        seed: int | list[int],
        bank: TextureBank,
        spec: StreetSpec | None = None,
        movers: bool = True,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.spec = spec or random_spec(rng)
        self.bank = bank
        self.course = Course(
            -30.0, self.spec.length, np.array(self.spec.bend), np.array(self.spec.slope)
        )
        layout = Layout(self.course)
        self.ground: Ground = lay_ground(layout, self.spec, rng, bank)
        self.bodies = _fleet(rng, bank)
        line_roadside(self, layout, rng)
        self.movers = self._traffic(rng) if movers else []
        layers = [layer for kind in CUTOUT_KINDS for layer in bank.kinds[kind]]
        self.drawing = layout.drawing(layers)

    def lane_offset(self, lane: int) -> float:
        """Offset of the middle of a lane; 0 is the rightmost of the own direction."""
        return -self.spec.half_road + (lane + 0.5) * self.spec.lane_width

    def _traffic(self, rng: np.random.Generator) -> list[Mover]:
        spec = self.spec
        movers: list[Mover] = []
        own = max(1, spec.lanes // 2)
        for lane in range(spec.lanes):
            sense = 1.0 if lane < own else -1.0
            pace = {"motorway": 28.0, "country": 20.0}.get(spec.kind, 9.0) * rng.uniform(0.3, 1.1)
            queue = rng.random() < 0.2  # nearly standing traffic
            spacing = 9.0 if queue else 100.0 / max(spec.traffic, 0.2)
            s = rng.uniform(5, 5 + spacing)
            while s < spec.length - 10:
                body = self.bodies[rng.integers(len(self.bodies))]
                side = rng.normal(0, 0.15)
                speed = sense * (rng.uniform(0, 2) if queue else pace)
                yaw = (0.0 if sense > 0 else np.pi) + rng.normal(0, 0.02)
                d = self.lane_offset(lane) + side
                movers.append(Mover(body.mesh, s, d, speed, body.length, yaw))
                s += body.length + (rng.uniform(1.5, 6) if queue else rng.exponential(spacing) + 5)
        for at, width in spec.crossings:
            for _ in range(rng.poisson(0.6)):
                body = self.bodies[rng.integers(len(self.bodies))]
                sense = rng.choice([-1.0, 1.0])
                d = rng.uniform(-25, 25)
                s = at - sense * width / 4
                mover = Mover(body.mesh, s, d, 0.0, body.length, sense * np.pi / 2)
                mover.side_speed = sense * rng.uniform(0, 9)
                movers.append(mover)
        for _ in range(rng.poisson(2.0) if spec.kind != "motorway" else 0):
            rider = rng.random() < 0.4
            mesh = (vehicles.cyclist if rider else vehicles.person)(rng, self.bank)
            side = rng.choice([-1.0, 1.0])
            d = side * (spec.half_road + rng.uniform(-0.8, 1.5))
            yaw = 0.0 if rng.random() < 0.5 else np.pi
            speed = (4.0 if rider else 1.3) * np.cos(yaw)
            height = self.ground.height(d)
            movers.append(Mover(mesh, rng.uniform(8, 200), d, speed, 1.8, yaw, 0.0, height))
        return movers

    def moving(self, time: float, around: tuple[float, float]) -> tuple[Mesh, Mesh]:
        """The movers within a stretch of road at `time` seconds: those that move, and wait."""
        near = [m for m in self.movers if around[0] < m.along(time) < around[1]]
        return placed(near, self.course, time)


def _fleet(rng: np.random.Generator, bank: TextureBank) -> list[vehicles.Body]:
    cars = [vehicles.car(rng, bank) for _ in range(11)]
    vans = [vehicles.van(rng, bank) for _ in range(2)]
    large = [(vehicles.truck if rng.random() < 0.6 else vehicles.bus)(rng, bank)]
    return cars + vans + (large if rng.random() < 0.6 else [])


_Rng = np.random.Generator
_FILLS = ("houses", "villas", "hedge", "fence", "wall", "wood", "open", "car_park", "row")
_WEIGHTS = {
    "town": (0.62, 0.05, 0.04, 0.04, 0.05, 0.06, 0.04, 0.06, 0.04),
    "lane": (0.5, 0.1, 0.1, 0.05, 0.12, 0.05, 0.03, 0.02, 0.03),
    "residential": (0.14, 0.32, 0.16, 0.1, 0.08, 0.1, 0.03, 0.04, 0.03),
    "avenue": (0.22, 0.08, 0.12, 0.08, 0.05, 0.22, 0.06, 0.09, 0.08),
    "country": (0.02, 0.06, 0.08, 0.03, 0.01, 0.4, 0.28, 0.02, 0.1),
    "motorway": (0.0, 0.02, 0.1, 0.03, 0.12, 0.4, 0.23, 0.0, 0.1),
}


@dataclass
class _Stock:
    """What a street is lined with, over and over."""

    bodies: list[vehicles.Body]
    grove: list[Mesh]
    distant: list[Mesh]
    shrubs: list[Mesh]


class _Side:
    """One side of the street: puts things at a distance from the road's edge."""

    def __init__(self, world: StreetWorld, layout: Layout, sign: float, rng: _Rng) -> None:
        self.layout, self.spec, self.ground, self.sign = layout, world.spec, world.ground, sign
        self.rng, self.bank = rng, world.bank
        spec, index = self.spec, 0 if sign > 0 else 1
        self.kerb = spec.half_road + (2.2 if spec.parking[index] else 0.0)
        self.edge = self.kerb + spec.pavement[index] + spec.verge[index] + 0.4
        self.turn = 0.0 if sign > 0 else np.pi

    def put(self, mesh: Mesh, s: float, reach: float, yaw: float = 0.0) -> None:
        """Stand a mesh `reach` metres from the road's middle, its front to the road."""
        d = self.sign * reach
        self.layout.put(mesh, s, d, self.ground.height(d) - 0.03, self.turn + yaw)

    def put_long(self, mesh: Mesh, s: float, length: float, reach: float) -> None:
        """As `put` for something that stretches from s to s + length."""
        self.put(mesh, s if self.sign > 0 else s + length, reach)

    def blocked(self, s: float, length: float, margin: float = 1.0) -> bool:
        """Whether a crossing lies in the stretch."""
        return any(
            s < at + width / 2 + margin and s + length > at - width / 2 - margin
            for at, width in self.spec.crossings
        )


def line_roadside(world: StreetWorld, layout: Layout, rng: _Rng) -> None:
    """Fill both sides of the street and its far end."""
    spec, bank = world.spec, world.bank
    grove = [scenery.tree(rng, bank) for _ in range(6)]
    distant = [scenery.tree(rng, bank, far=True) for _ in range(4)]
    shrubs = [scenery.shrub(rng, bank) for _ in range(4)]
    stock = _Stock(world.bodies, grove, distant, shrubs)
    for index, sign in enumerate((1.0, -1.0)):
        side = _Side(world, layout, sign, rng)
        _fill(side, stock)
        _furnish(side, grove)
        if spec.parking[index]:
            _park(side, world.bodies)
        _backdrop(side, distant)
    _far_end(world, layout, distant, rng)
    if spec.kind in ("motorway", "avenue") and rng.random() < 0.4:
        s = rng.uniform(30, 150)
        layout.put(scenery.gantry(2 * spec.half_road + 6, rng, bank), s, 0.0)


def _fill(side: _Side, stock: _Stock) -> None:
    rng, spec = side.rng, side.spec
    storeys = (
        int(rng.integers(2, 6)) if spec.kind in ("town", "avenue") else int(rng.integers(1, 4))
    )
    setback = float(rng.choice([0.0, 0.0, 2.0, 5.0]) if spec.kind == "town" else rng.uniform(0, 6))
    s = -20.0
    while s < spec.length - 5:
        fill = str(rng.choice(_FILLS, p=_WEIGHTS[spec.kind]))
        end = min(s + rng.uniform(12, 50), spec.length)
        while s < end:
            length = _place(side, fill, s, storeys, setback, stock)
            s += length


def _place(side: _Side, fill: str, s: float, storeys: int, setback: float, stock: _Stock) -> float:
    """Put one piece of `fill` at s; returns how far it reaches along the road."""
    rng, bank, edge, grove, shrubs = side.rng, side.bank, side.edge, stock.grove, stock.shrubs
    length = float(rng.uniform(7, 18))
    if fill in ("hedge", "fence", "wall", "open"):
        length = float(rng.uniform(5, 14))
    if side.blocked(s, length):
        return 2.0
    if fill in ("houses", "villas"):
        levels = int(np.clip(storeys + rng.integers(-1, 2), 1, 6))
        if fill == "villas":
            levels, setback = int(rng.integers(1, 4)), setback + 4.0
            _border(side, s, length, shrubs)
        house = scenery.building(
            length * rng.uniform(0.85, 1.0) if fill == "houses" else length * 0.7, rng, bank, levels
        )
        side.put_long(house, s, length if fill == "houses" else length * 0.7, edge + setback)
        gap = rng.uniform(0, 0.3) if rng.random() < 0.75 else rng.uniform(1.5, 6)
        return length + float(gap if fill == "houses" else gap + 2)
    if fill in ("hedge", "fence", "wall"):
        _border(side, s, length, shrubs, fill)
        if rng.random() < 0.6:
            _trees(side, grove, s, length, edge + 1.5, 8.0, 3)
        if rng.random() < 0.35:
            house = scenery.building(length, rng, bank, int(rng.integers(1, 4)))
            side.put_long(house, s, length, edge + rng.uniform(5, 16))
        return length
    if fill == "wood":
        _trees(side, grove, s, length, edge + 0.5, 14.0, int(length * rng.uniform(0.5, 0.9)))
        for _ in range(int(length * 0.4)):
            shrub = shrubs[rng.integers(len(shrubs))]
            side.put(shrub, s + rng.uniform(0, length), edge + rng.uniform(0, 6), rng.uniform(0, 6))
        dark = Surface(bank.pick(rng, "bush"), (0.1, 0.11, 0.09), tile=2.5)
        high = rng.uniform(4, 9)
        corners = np.array([[[0, 0, 0], [length, 0, 0], [length, 0, high], [0, 0, high]]])
        uv = np.array([[[0, high], [length, high], [length, 0], [0, 0]]], np.float32) / 2.5
        side.put_long(quads(corners, dark, uv), s, length, edge + 14.5)
    elif fill == "row":
        for at in np.arange(s, s + length, rng.uniform(5, 9)):
            tree = grove[rng.integers(len(grove))]
            side.put(tree, at, edge + rng.uniform(0, 1.0), rng.uniform(0, 6))
    elif fill == "car_park":
        for at in np.arange(s + 1.5, s + length - 1.5, 2.6):
            if rng.random() < 0.75:
                body = stock.bodies[rng.integers(len(stock.bodies))]
                if body.length < 5.2:
                    turn = np.pi / 2 * rng.choice([-1, 1])
                    side.put(body.mesh, at, edge + 3.0 + rng.normal(0, 0.2), turn)
        _trees(side, grove, s, length, edge + 9, 8.0, 2)
    elif rng.random() < 0.5:
        _trees(side, grove, s, length, edge + 3, 40.0, 2)
    return length


def _trees(
    side: _Side, grove: list[Mesh], s: float, length: float, near: float, depth: float, count: int
) -> None:
    rng = side.rng
    for _ in range(count):
        tree = grove[rng.integers(len(grove))]
        tree = tree.tinted(tuple((0.5 * rng.uniform(0.7, 1.3, 3)).tolist()))
        reach = near + depth * rng.random() ** 1.5
        side.put(tree, s + rng.uniform(0, length), reach, rng.uniform(0, 6))


def _border(
    side: _Side, s: float, length: float, shrubs: list[Mesh], fill: str | None = None
) -> None:
    """Hedge, fence, wall or a few bushes along the edge of a garden."""
    rng, bank = side.rng, side.bank
    kind = fill or str(rng.choice(["hedge", "fence", "wall", "bushes"]))
    if kind == "bushes":
        for _ in range(3):
            shrub = shrubs[rng.integers(len(shrubs))]
            side.put(shrub, s + rng.uniform(0, length), side.edge + 0.8, rng.uniform(0, 6))
        return
    maker = {"hedge": scenery.hedge, "fence": scenery.fence, "wall": scenery.wall}[kind]
    side.put_long(maker(length, rng, bank), s, length, side.edge)


def _furnish(side: _Side, grove: list[Mesh]) -> None:
    """Trees, lamps, signs, posts, bins and people near the kerb; guard rails."""
    rng, spec, bank = side.rng, side.spec, side.bank
    near = side.kerb + rng.uniform(0.4, 0.9)
    if spec.kind in ("motorway", "country") and rng.random() < (
        0.85 if spec.kind == "motorway" else 0.3
    ):
        reach = side.kerb + rng.uniform(0.6, 2.5)
        for s in np.arange(-10, spec.length - 8, 8.0):
            if not side.blocked(s, 8.0):
                side.put_long(scenery.guard_rail(8.0, bank), s, 8.0, reach)
        near = reach + 1.0
    if spec.tree_spacing < 100 and rng.random() < 0.6:
        tree = grove[rng.integers(len(grove))]
        for s in np.arange(rng.uniform(-5, 10), spec.length, spec.tree_spacing):
            if not side.blocked(s, 1.0) and rng.random() < 0.85:
                if rng.random() < 0.3:
                    tree = grove[rng.integers(len(grove))]
                side.put(tree, s, near + 0.3, rng.uniform(0, 6))
    if rng.random() < 0.7:
        lamp = scenery.lamp(rng, bank, rng.uniform(0.5, 2.5))
        for s in np.arange(rng.uniform(0, 20), spec.length, rng.uniform(18, 40)):
            if not side.blocked(s, 0.0, 0.5):
                side.put(lamp, s, near + 0.1)
    density = {"motorway": 0.015, "country": 0.03}.get(spec.kind, 0.1) * rng.uniform(0.3, 1.8)
    for _ in range(rng.poisson(density * spec.length)):
        turn = -side.turn + (rng.uniform(-0.3, 0.3) if rng.random() < 0.6 else rng.uniform(0, 6))
        reach = near + rng.exponential(0.8) * (1.0 if spec.kind != "country" else 2.0)
        s = rng.uniform(0, spec.length)
        thing = scenery.clutter(rng, bank)
        if not side.blocked(s, 0.0, 0.5):
            side.put(thing, s, reach, turn)
    for at, width in spec.crossings:
        if rng.random() < 0.5:
            side.put(
                scenery.traffic_light(rng, bank), at - width / 2 - 1, side.kerb + 0.4, -side.turn
            )
    if spec.kind in ("avenue", "residential", "town") and rng.random() < 0.15:
        s = rng.uniform(10, 150)
        if not side.blocked(s, 5.0):
            side.put_long(scenery.shelter(rng, bank), s, 4.0, side.kerb + 1.2)


def _park(side: _Side, bodies: list[vehicles.Body]) -> None:
    rng, spec = side.rng, side.spec
    cars = [b for b in bodies if b.length < 6.3]
    s = -8.0 + rng.uniform(0, 6)
    facing = 0.0 if rng.random() < 0.7 else np.pi
    while s < spec.length - 8:
        body = cars[rng.integers(len(cars))]
        if rng.random() < spec.occupancy and not side.blocked(s - 2, body.length + 4):
            turn = (facing if rng.random() < 0.9 else facing + np.pi) + rng.normal(0, 0.02)
            reach = spec.half_road + 1.1 + rng.normal(0, 0.1)
            side.put(body.mesh, s + body.length / 2, reach, turn)
        s += body.length + rng.uniform(0.5, 2.2)


def _backdrop(side: _Side, grove: list[Mesh]) -> None:
    """Tree lines, houses and hills far beside the road."""
    rng, spec, bank = side.rng, side.spec, side.bank
    if rng.random() < 0.75:
        reach = rng.uniform(45, 110)
        for s in np.arange(-10.0, spec.length, rng.uniform(5, 9)):
            side.put(
                grove[rng.integers(len(grove))], s, reach + rng.uniform(0, 20), rng.uniform(0, 6)
            )
    for _ in range(rng.poisson(3)):
        house = scenery.building(rng.uniform(8, 30), rng, bank, int(rng.integers(1, 8)))
        side.put(house, rng.uniform(0, spec.length), rng.uniform(35, 100), rng.uniform(-0.5, 0.5))


def _far_end(world: StreetWorld, layout: Layout, grove: list[Mesh], rng: _Rng) -> None:
    """What the road runs into: a row of houses across, trees, or a line of distant woods."""
    spec = world.spec
    end = spec.length - 2.0
    if spec.dead_end:
        end = float(rng.uniform(100, 200))
        for d in np.arange(-60, 60, 14.0):
            house = scenery.building(13.5, rng, world.bank, int(rng.integers(2, 5)))
            layout.put(house, end, d + 14.0, -0.1, -np.pi / 2)
        return
    for d in np.arange(-70, 70, 5.0):
        if abs(d) > spec.half_road + 3 or rng.random() < 0.5:
            tree = grove[rng.integers(len(grove))]
            s = end - rng.uniform(0, 15) if abs(d) > spec.half_road + 3 else end
            layout.put(tree, s, d, world.ground.height(d), rng.uniform(0, 6))
