"""Random streets: cross-section, roadside, parked and moving vehicles, all from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from depth_prior_ros.recordings.synthetic import vehicles
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.road import Course, Ground, Layout, StreetSpec, lay_ground
from depth_prior_ros.recordings.synthetic.roadside import line_roadside
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
        line_roadside(layout, self.spec, self.ground, self.bodies, rng, bank)
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
