"""The ground of a street: lanes, kerbs, pavements, verges, land beyond, road markings.

The course of a road: s metres along it, d metres to the left of its middle, h above it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from depth_prior_ros.recordings.synthetic.mesh import Mesh, Surface, painted, quads
from depth_prior_ros.recordings.synthetic.renderer import Drawing
from depth_prior_ros.recordings.synthetic.textures import TextureBank

_STEP = 1.0


class Course:
    """A plane curve with elevation; maps road coordinates to the world."""

    def __init__(self, start: float, end: float, bend: np.ndarray, slope: np.ndarray) -> None:
        """Bend (1/m) and slope (rise over run) are sampled evenly from `start` to `end` metres."""
        self.start, self.end = start, end
        self._s = np.arange(start, end + _STEP, _STEP)
        knots = np.linspace(start, end, len(bend))
        curvature = np.interp(self._s, knots, bend)
        rise = np.interp(self._s, np.linspace(start, end, len(slope)), slope)
        # Smooth the corners of the interpolation; the mean slope is left as it is.
        kernel = np.ones(15) / 15
        rise = np.convolve(np.pad(rise, 7, mode="edge"), kernel, mode="valid")
        self._heading = np.cumsum(curvature) * _STEP
        self._heading -= np.interp(0.0, self._s, self._heading)
        self._x = np.cumsum(np.cos(self._heading)) * _STEP
        self._y = np.cumsum(np.sin(self._heading)) * _STEP
        self._z = np.cumsum(rise) * _STEP
        self._rise = rise

    @staticmethod
    def straight(start: float, end: float) -> Course:
        """A straight, level road."""
        return Course(start, end, np.zeros(2), np.zeros(2))

    def points(self, s: np.ndarray, d: np.ndarray, h: np.ndarray) -> np.ndarray:
        """World positions (..., 3) of road coordinates."""
        heading = np.interp(s, self._s, self._heading)
        x = np.interp(s, self._s, self._x) - d * np.sin(heading)
        y = np.interp(s, self._s, self._y) + d * np.cos(heading)
        return np.stack(np.broadcast_arrays(x, y, np.interp(s, self._s, self._z) + h), -1)

    def frame(self, s: float, d: float, h: float = 0.0, yaw: float = 0.0) -> np.ndarray:
        """(4, 4) world_from_object of something standing at (s, d), turned by yaw from the road."""
        heading = float(np.interp(s, self._s, self._heading)) + yaw
        climb = float(np.arctan(np.interp(s, self._s, self._rise))) * np.cos(yaw)
        cos, sin = np.cos(heading), np.sin(heading)
        forward = np.array([cos * np.cos(climb), sin * np.cos(climb), np.sin(climb)])
        left = np.array([-sin, cos, 0.0])
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = forward, left
        matrix[:3, 2] = np.cross(forward, left)
        matrix[:3, 3] = self.points(np.float64(s), np.float64(d), np.float64(h))
        return matrix


@dataclass(frozen=True)
class StreetSpec:
    """The plan of a street. Lengths in metres; `lanes` counts both directions."""

    kind: str
    lanes: int
    lane_width: float
    parking: tuple[bool, bool]  # left, right
    pavement: tuple[float, float]  # width, 0 = none
    verge: tuple[float, float]
    crossings: tuple[tuple[float, float], ...]  # (road position, width)
    dead_end: bool
    bend: tuple[float, ...]
    slope: tuple[float, ...]
    occupancy: float  # share of parking places taken
    traffic: float  # vehicles per 100 m and direction
    tree_spacing: float
    length: float = 240.0

    @property
    def half_road(self) -> float:
        """Half the width of the lanes."""
        return self.lanes * self.lane_width / 2


@dataclass
class Layout:
    """Gathers meshes with the position of their triangles along the road."""

    course: Course
    _meshes: list[Mesh] = field(default_factory=list)
    _along: list[np.ndarray] = field(default_factory=list)

    def add(self, mesh: Mesh, s: float | np.ndarray) -> None:
        """Add a mesh in world coordinates; s is one position or one for each of its quads."""
        along = np.repeat(s, 2) if isinstance(s, np.ndarray) else np.full(len(mesh.indices), s)
        self._meshes.append(mesh)
        self._along.append(along)

    def put(self, mesh: Mesh, s: float, d: float, h: float = 0.0, yaw: float = 0.0) -> None:
        """Stand a mesh on the road's frame at (s, d)."""
        self.add(mesh.transformed(self.course.frame(s, d, h, yaw)), s)

    def drawing(self, cutout_layers: list[int]) -> Drawing:
        """Everything in one mesh, its triangles sorted along the road."""
        mesh = Mesh.merge(self._meshes)
        along = np.concatenate(self._along)
        order = np.argsort(along, kind="stable")
        return Drawing(Mesh(mesh.vertices, mesh.indices[order]), cutout_layers, along[order])


@dataclass(frozen=True)
class Band:
    """One strip of the ground beside or on the road, between two offsets from its middle."""

    inner: float
    outer: float
    inner_height: float
    outer_height: float
    kind: str  # texture kind
    layer: int
    tint: float
    tile: float


class Ground:
    """Cross-section of the ground: bands to the left (d > 0) and to the right."""

    def __init__(self, left: list[Band], right: list[Band]) -> None:
        self.left, self.right = left, right

    def height(self, d: float) -> float:
        """Height above the road's middle at offset d."""
        reach = abs(d)
        for band in self.left if d >= 0 else self.right:
            if band.inner <= reach <= band.outer:
                share = (reach - band.inner) / max(band.outer - band.inner, 1e-6)
                return band.inner_height + share * (band.outer_height - band.inner_height)
        return 0.0


_GROUND_STEP = 4.0
_REACH = 160.0
_CAMBER = 0.02  # fall of the road towards its edges
_Rng = np.random.Generator


def lay_ground(layout: Layout, spec: StreetSpec, rng: _Rng, bank: TextureBank) -> Ground:
    """Add the ground of the whole street to the layout; returns its cross-section."""
    tone = float(rng.uniform(0.2, 0.6))
    asphalt = bank.pick(rng, "asphalt", "asphalt", "real_ground")
    ground = Ground(
        _side(spec, 0, asphalt, tone, rng, bank), _side(spec, 1, asphalt, tone, rng, bank)
    )
    level = -_CAMBER * spec.half_road  # of crossings: the road's edge, so that no gap is left
    starts = np.arange(layout.course.start, layout.course.end, _GROUND_STEP)
    crossing = np.zeros(len(starts), bool)
    for at, width in spec.crossings:
        crossing |= np.abs(starts + _GROUND_STEP / 2 - at) < width / 2
    changes = starts[1:][crossing[1:] != crossing[:-1]]
    for sign, bands in ((1.0, ground.left), (-1.0, ground.right)):
        for band in bands:
            surface = Surface(band.layer, (band.tint,) * 3, tile=band.tile)
            heights = (band.inner_height, band.outer_height)
            if band.inner < spec.half_road - 0.01:
                layout.add(_cells(layout.course, starts, sign, band, heights, surface), starts)
                continue
            layout.add(
                _cells(layout.course, starts[~crossing], sign, band, heights, surface),
                starts[~crossing],
            )
            if not crossing.any():
                continue
            if band.outer < 60:
                surface = Surface(asphalt, (tone,) * 3, tile=5.0)
            flat = _cells(layout.course, starts[crossing], sign, band, (level, level), surface)
            layout.add(flat, starts[crossing])
            layout.add(_steps(layout.course, changes, sign, band, level), changes)
    _paint_lines(layout, spec, rng, bank)
    _patch_road(layout, spec, rng, bank)
    return ground


def _side(
    spec: StreetSpec, side: int, asphalt: int, tone: float, rng: _Rng, bank: TextureBank
) -> list[Band]:
    half = spec.half_road
    bands = [Band(0.0, half, 0.0, -_CAMBER * half, "asphalt", asphalt, tone, 5.0)]
    at, h = half, -_CAMBER * half

    def add(width: float, rise: float, kind: str, shade: float, tile: float) -> None:
        nonlocal at, h
        layer = asphalt if kind == "asphalt" else bank.pick(rng, kind, kind, kind, "real_ground")
        bands.append(Band(at, at + width, h, h + rise, kind, layer, shade, tile))
        at, h = at + width, h + rise

    if spec.parking[side]:
        kind = "paving" if rng.random() < 0.4 else "asphalt"
        add(2.2, 0.0, kind, tone * (1 if kind == "asphalt" else rng.uniform(0.7, 1.3)), 3.0)
    elif spec.kind in ("country", "motorway"):
        add(rng.uniform(0.3, 2.5), 0.0, "asphalt", tone, 5.0)
    if spec.pavement[side]:
        add(0.12, rng.uniform(0.04, 0.16), "paving", 0.6, 1.0)
        if rng.random() < 0.25:
            add(rng.uniform(0.8, 2.0), 0.0, "grass", rng.uniform(0.3, 0.6), 3.0)
        kind = "paving" if rng.random() < 0.65 else "asphalt"
        add(spec.pavement[side], 0.02, kind, rng.uniform(0.3, 0.75), 2.0)
    if spec.verge[side]:
        kind = "soil" if rng.random() < 0.2 else "grass"
        rise = rng.uniform(-0.6, 0.4) if spec.kind in ("country", "motorway") else 0.03
        add(spec.verge[side], rise, kind, rng.uniform(0.25, 0.65), 3.0)
    bank_rise = 0.0
    if spec.kind in ("country", "motorway") and rng.random() < 0.45:
        bank_rise = rng.uniform(-1.0, 4.0)
    kinds = (
        ["grass", "soil", "paving"]
        if spec.kind not in ("country", "motorway")
        else ["grass", "grass", "soil"]
    )
    kind = kinds[rng.integers(3)]
    shade = rng.uniform(0.25, 0.65)
    add(rng.uniform(4, 12), bank_rise, kind, shade, 4.0)
    add(20.0, rng.uniform(-0.5, 0.8), kind, shade, 6.0)
    add(_REACH, rng.uniform(-3, 12) if rng.random() < 0.5 else 0.0, "grass", shade, 14.0)
    return bands


def _cells(
    course: Course,
    starts: np.ndarray,
    sign: float,
    band: Band,
    heights: tuple[float, float],
    surface: Surface,
) -> Mesh:
    """Stretches of one band, each from its start for one step."""
    count = len(starts)
    d = np.tile(sign * np.array([band.inner, band.inner, band.outer, band.outer]), (count, 1))
    at = starts[:, None] + np.array([0.0, _GROUND_STEP, _GROUND_STEP, 0.0])
    inner_h, outer_h = heights
    corners = course.points(at, d, np.array([inner_h, inner_h, outer_h, outer_h]))
    uv = np.stack([at, d], -1) / surface.tile
    up = np.tile([0.0, 0.0, 1.0], (count, 1))
    return quads(corners, surface, uv.astype(np.float32), up)


def _steps(course: Course, at: np.ndarray, sign: float, band: Band, level: float) -> Mesh:
    """The upright faces between a band and the level of crossings, so that no gap is left."""
    d = np.tile(sign * np.array([band.inner, band.outer, band.outer, band.inner]), (len(at), 1))
    h = np.array([level, level, band.outer_height, band.inner_height])
    corners = course.points(np.tile(at[:, None], (1, 4)), d, h)
    return quads(corners, Surface(band.layer, (band.tint,) * 3, tile=band.tile))


def _strip(
    course: Course, s0: float, s1: float, d0: float, d1: float, h: float, surface: Surface
) -> Mesh:
    """A quad on the road, split along its length so that it follows the road."""
    count = max(1, int(np.ceil((s1 - s0) / 3.0)))
    at = np.linspace(s0, s1, count + 1)
    low = course.points(at, np.full(count + 1, d0), np.full(count + 1, h))
    high = course.points(at, np.full(count + 1, d1), np.full(count + 1, h))
    corners = np.stack([low[:-1], low[1:], high[1:], high[:-1]], 1)
    uv = np.zeros((count, 4, 2), np.float32)
    uv[:, :, 0] = np.stack([at[:-1], at[1:], at[1:], at[:-1]], 1) / surface.tile
    uv[:, 2:, 1] = abs(d1 - d0) / surface.tile
    up = np.tile([0.0, 0.0, 1.0], (count, 1))
    return quads(corners, surface, uv, up)


def _camber(d: float) -> float:
    return -_CAMBER * abs(d) + 0.012


def _paint_lines(layout: Layout, spec: StreetSpec, rng: _Rng, bank: TextureBank) -> None:
    if spec.kind == "lane" or (spec.kind == "residential" and rng.random() < 0.5):
        return
    white = Surface(bank.pick(rng, "paint"), (0.42,) * 3, tile=2.0)
    course, half, wide = layout.course, spec.half_road, rng.uniform(0.1, 0.18)
    dash, gap = (6.0, 12.0) if spec.kind == "motorway" else (3.0, rng.choice([3.0, 6.0]))

    def line(s0: float, s1: float, d: float, width: float = wide) -> None:
        if any(s0 < at + w / 2 and s1 > at - w / 2 for at, w in spec.crossings):
            return
        strip = _strip(course, s0, s1, d - width / 2, d + width / 2, _camber(d), white)
        layout.add(strip, s0)

    for lane in range(1, spec.lanes):
        d = -half + lane * spec.lane_width
        solid = (lane == spec.lanes // 2 and spec.lanes > 2) or rng.random() < 0.1
        for s in np.arange(course.start, course.end - dash, 4.0 if solid else dash + gap):
            line(s, s + (4.0 if solid else dash), d)
    if spec.kind in ("country", "motorway", "avenue") or rng.random() < 0.2:
        for s in np.arange(course.start, course.end - 4, 4.0):
            line(s, s + 4.0, half - 0.15)
            line(s, s + 4.0, -half + 0.15)
    for at, width in spec.crossings:
        if rng.random() < 0.6:  # stop line
            line(at - width / 2 - 1.5, at - width / 2 - 1.0, -half / 2, half)
        if rng.random() < 0.5:  # zebra or dashed edge
            for d in np.arange(-half, half, 1.0):
                line(at - width / 2 - 4.5, at - width / 2 - 2.0, d + 0.5, 0.5)
    for s in rng.uniform(0, 200, rng.poisson(2.0)):  # arrows
        d = -half + spec.lane_width * (rng.integers(max(1, spec.lanes // 2)) + 0.5)
        line(s, s + 2.5, d, 0.15)
        line(s + 2.5, s + 3.2, d, 0.5)


def _patch_road(layout: Layout, spec: StreetSpec, rng: _Rng, bank: TextureBank) -> None:
    """Repairs, seams, manholes: darker and lighter pieces of the road."""
    course, half = layout.course, spec.half_road
    for _ in range(rng.poisson(18)):
        s, d = rng.uniform(-5, 200), rng.uniform(-half, half)
        length, width = rng.uniform(0.5, 12), rng.uniform(0.2, 1.8)
        low, high = max(d - width / 2, -half), min(d + width / 2, half)
        if low < 0 < high:
            high = 0.0
        if high - low < 0.05:
            continue
        shade = float(rng.uniform(0.15, 0.6))
        surface = Surface(bank.pick(rng, "asphalt"), (shade,) * 3, tile=4.0)
        h = -_CAMBER * min(abs(low), abs(high)) + 0.006
        layout.add(_strip(course, s, s + length, low, high, h, surface), s)
    for _ in range(rng.poisson(6)):
        s, d = rng.uniform(0, 200), rng.uniform(-half + 0.5, half - 0.5)
        shade = float(rng.uniform(0.03, 0.15))
        surface = painted(bank, shade)
        layout.add(_strip(course, s, s + 0.6, d - 0.3, d + 0.3, _camber(d), surface), s)
