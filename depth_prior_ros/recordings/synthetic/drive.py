"""A synthetic drive as a recording: a car goes down a street, waits at a crossing, goes on.

The plans of synthetic drives: when the car drives, along which street, among whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL
from depth_prior_ros.recordings.base import Frame, Mount, Skipped
from depth_prior_ros.recordings.synthetic import vehicles
from depth_prior_ros.recordings.synthetic.exposure import (
    Development,
    automatic_exposure,
    develop,
    random_light,
    sun_at,
)
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.renderer import Light, Renderer
from depth_prior_ros.recordings.synthetic.samples import turned
from depth_prior_ros.recordings.synthetic.textures import TextureBank
from depth_prior_ros.recordings.synthetic.traffic import TOP_SPEED, convoy, dense_fleet, queue
from depth_prior_ros.recordings.synthetic.world import (
    KINDS,
    Mover,
    StreetSpec,
    StreetWorld,
    random_spec,
)

EMBEDDED = "embedded"
STREETS = (EMBEDDED, *KINDS)
TRAFFIC = ("mixed", "dense")
START = 20.0  # road position of the first frame, metres
_VIEW = 200.0  # metres of street that must lie ahead


@dataclass(frozen=True)
class DriveSpec:
    """When the car drives and stands. Times in seconds from the first frame, speeds in m/s.

    Without a `stop` it goes on at `cruise`. camera_height: metres above the road; camera_pitch_deg:
    degrees by which the camera looks down.
    """

    frames: int = 80
    rate: float = 10.0
    cruise: float = 7.0  # speed before the stop
    brake_at: float = 1.6
    stop_at: float = 3.5
    go_at: float = 5.9
    away: float = 6.0  # speed after the stop, reached in `pick_up` seconds
    pick_up: float = 2.4
    camera_height: float = 1.6
    stop: bool = True
    camera_pitch_deg: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.brake_at < self.stop_at <= self.go_at:
            raise ValueError(
                "a drive brakes, stops and goes in this order: 0 <= brake_at < stop_at <= go_at, "
                f"got {self.brake_at}, {self.stop_at}, {self.go_at}"
            )
        if self.frames < 1 or self.rate <= 0:
            raise ValueError(f"need frames >= 1 and rate > 0, got {self.frames}, {self.rate}")

    def speed(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """Speed in m/s at the given times: smooth braking, standing still, smooth start."""
        if not self.stop:
            return np.full(time.shape, self.cruise)
        braking = self.cruise * (
            1.0 - _smooth((time - self.brake_at) / (self.stop_at - self.brake_at))
        )
        starting = self.away * _smooth((time - self.go_at) / self.pick_up)
        return np.where(time < self.stop_at, braking, starting)

    def travel(self, time: float) -> float:
        """Metres driven since the first frame: the integral of `speed`."""
        if not self.stop:
            return self.cruise * time
        braking = self.stop_at - self.brake_at
        done = float(np.clip((time - self.brake_at) / braking, 0.0, 1.0))
        return (
            self.cruise * min(time, self.brake_at)
            + self.cruise * braking * (done - _smooth_integral(done))
            + self.away * self.pick_up * _smooth_integral((time - self.go_at) / self.pick_up)
        )

    def stands(self, time: float) -> bool:
        """Whether the car stands still."""
        return self.stop and self.stop_at <= time <= self.go_at

    @property
    def seconds(self) -> float:
        """How long the drive takes."""
        return self.frames / self.rate


def _smooth_integral(x: float) -> float:
    """Integral of the smooth step from 0 to x; beyond 1 it grows by 1 per unit."""
    inside = min(max(x, 0.0), 1.0)
    return inside**3 - 0.5 * inside**4 + max(x - 1.0, 0.0)


def _smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def plan_world(
    seed: int, bank: TextureBank, spec: DriveSpec, street: str, traffic: str
) -> StreetWorld:
    """The street of a drive with all that moves on it.

    street: `embedded` is the town street of the package's drive, another of STREETS a random one
    of that kind. traffic: `dense` puts queues of cars and lorries around the car.
    """
    for value, known, what in ((street, STREETS, "street"), (traffic, TRAFFIC, "traffic")):
        if value not in known:
            raise ValueError(f"{what} {value!r} is not one of {', '.join(known)}")
    crossing = START + spec.travel(spec.stop_at) + 9.5
    plan = embedded_street(crossing)
    if street != EMBEDDED:
        plan = random_spec(np.random.default_rng([seed, 3]), street)
        crossings = ((crossing, 9.0),) if spec.stop and street != "motorway" else ()
        plan = replace(plan, crossings=crossings, dead_end=False)
    length = START + spec.travel(spec.seconds) + _VIEW
    plan = replace(plan, length=length) if length > plan.length + 30 else plan
    world = StreetWorld(seed, bank, plan, movers=False)
    if traffic == "dense":
        world.movers = _dense_traffic(world, spec, seed)
    elif street == EMBEDDED and spec.stop:
        world.movers = embedded_traffic(world, spec, crossing, seed)
    else:
        world.movers = _traffic(world, spec, seed)
    return world


def embedded_street(crossing: float) -> StreetSpec:
    """A town street with parked cars, trees and one crossing."""
    return StreetSpec(
        kind="town",
        lanes=2,
        lane_width=3.2,
        parking=(True, True),
        pavement=(2.6, 2.6),
        verge=(0.0, 0.0),
        crossings=((crossing, 9.0),),
        dead_end=False,
        bend=(0.0, 0.0, 0.0, 0.004, -0.006, 0.0),
        slope=(0.0, 0.0, 0.01, 0.0),
        occupancy=0.75,
        traffic=0.0,
        tree_spacing=10,
    )


def embedded_traffic(
    world: StreetWorld, spec: DriveSpec, crossing: float, seed: int
) -> list[Mover]:
    """Cars that cross while the own car stands, oncoming cars, people."""
    rng = np.random.default_rng([seed, 2])
    bank = world.bank
    movers: list[Mover] = []

    def add(mesh: Mesh, s: float, d: float, speed: float, yaw: float, side: float = 0.0) -> None:
        kerb = world.ground.height(d) if not side else 0.0
        movers.append(Mover(mesh, s, d, speed, 4.5, yaw, side, kerb))

    for meet, sense, pace in (
        (0.1, 1.0, 8.0),
        (0.75, -1.0, 7.0),
        (1.5, 1.0, 7.5),
        (2.0, -1.0, 8.5),
    ):
        time = spec.stop_at + meet * (spec.go_at - spec.stop_at) / 2.4
        body = vehicles.van(rng, bank) if meet == 0.75 else vehicles.car(rng, bank)
        s = crossing + 2.0 * sense
        add(body.mesh, s, -sense * pace * time, 0.0, sense * np.pi / 2, sense * pace)
    for meet, pace in ((1.1, 7.0), (-0.9, 7.5)):
        body = vehicles.car(rng, bank)
        add(
            body.mesh,
            20.0 + spec.travel(max(meet, 0.0)) + pace * meet,
            world.lane_offset(1),
            -pace,
            np.pi,
        )
    waiting = vehicles.car(rng, bank)
    add(waiting.mesh, crossing + 9.0, world.lane_offset(1), 0.0, np.pi)
    leading = vehicles.car(rng, bank)
    add(leading.mesh, crossing + 6.0, world.lane_offset(0), 7.5, 0.0)
    for s, d, pace in ((32.0, -7.0, 1.3), (44.0, 6.6, -1.2), (60.0, -6.8, -1.4), (66.0, 7.2, 1.1)):
        add(vehicles.person(rng, bank), s, d, pace, 0.0 if pace > 0 else np.pi)
    add(vehicles.cyclist(rng, bank), 62.0, -3.4, 2.5, 0.0)
    return movers


def _dense_traffic(world: StreetWorld, spec: DriveSpec, seed: int) -> list[Mover]:
    """A queue ahead that stops and goes as the own car does, slow queues on the other lanes."""
    rng = np.random.default_rng([seed, 4])
    fleet = dense_fleet(rng, world.bank)
    beside = queue(world, fleet, rng, START, 0, min(spec.cruise, TOP_SPEED), 0.0)
    own = world.lane_offset(0)
    movers = [m for m in beside if abs(m.d - own) > world.spec.lane_width / 2]
    movers += convoy(world, rng, START, 0, spec.travel, fleet)
    return movers + _people(world, spec, rng)


def _traffic(world: StreetWorld, spec: DriveSpec, seed: int) -> list[Mover]:
    """Oncoming vehicles, mostly one that drives ahead, crossing ones during the stop, people."""
    rng = np.random.default_rng([seed, 2])
    movers: list[Mover] = []

    def add(s: float, d: float, speed: float, yaw: float, side: float = 0.0) -> Mover:
        # A lorry that crosses would hide the whole street.
        large = vehicles.truck if rng.random() < 0.5 and not side else vehicles.van
        body = (large if rng.random() < 0.25 else vehicles.car)(rng, world.bank)
        movers.append(Mover(body.mesh, s, d, speed, body.length, yaw, side))
        return movers[-1]

    own = max(1, world.spec.lanes // 2)
    fast = {"motorway": 25.0, "country": 17.0}.get(world.spec.kind, 8.0)
    for lane in range(own, world.spec.lanes):
        time = rng.uniform(0.0, 2.0)
        while time < spec.seconds + 4.0:
            pace = fast * rng.uniform(0.9, 1.1)
            add(START + spec.travel(time) + pace * time, world.lane_offset(lane), -pace, np.pi)
            time += rng.uniform(1.2, 4.0)
    if rng.random() < 0.7:
        leading = add(START + rng.uniform(13, 30), world.lane_offset(0), 0.0, 0.0)
        leading.path = spec.travel
    for at, _ in world.spec.crossings:
        for sense in (1.0, -1.0):
            time, pace = rng.uniform(spec.stop_at, spec.go_at - 1.0), rng.uniform(6.0, 9.0)
            add(at + 2.0 * sense, -sense * pace * time, 0.0, sense * np.pi / 2, sense * pace)
    return movers + _people(world, spec, rng)


def _people(world: StreetWorld, spec: DriveSpec, rng: np.random.Generator) -> list[Mover]:
    """Who walks or cycles beside the road."""
    movers = []
    for _ in range(0 if world.spec.kind == "motorway" else 2 + rng.poisson(spec.seconds / 2)):
        side = int(rng.integers(2))
        sign = 1.0 - 2.0 * side
        kerb = world.spec.half_road + (2.2 if world.spec.parking[side] else 0.0)
        rider = rng.random() < 0.25
        d = sign * (kerb + (0.0 if rider else rng.uniform(0.8, 1.8)))
        pace = rng.uniform(3.0, 5.0) if rider else rng.uniform(0.9, 1.6)
        sense = rng.choice([-1.0, 1.0])
        mesh = (vehicles.cyclist if rider else vehicles.person)(rng, world.bank)
        s = rng.uniform(START + 5, START + spec.travel(spec.seconds) + 40)
        yaw = 0.0 if sense > 0 else np.pi
        movers.append(Mover(mesh, s, d, sense * pace, 1.8, yaw, 0.0, world.ground.height(d)))
    return movers


def dense_drive(frames: int = 80, stop: bool = True) -> DriveSpec:
    """Stop and go at walking pace."""
    return DriveSpec(frames=frames, cruise=0.85 * TOP_SPEED, away=0.7 * TOP_SPEED, stop=stop)


START_NS = 1_700_000_000_000_000_000
FARTHEST = 200.0  # metres; depth beyond is given as none, as a 16-bit PNG could not hold it
_TICK = 0.001


@dataclass(frozen=True)
class Rendered:
    """A frame: image (H, W, 3) uint8 RGB, depth (H, W) float32 metres (0 = sky), moving (H, W)."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    moving: NDArray[np.bool_]


@dataclass
class SyntheticDrive:
    """A `Recording` whose frames are rendered when they are read; same seed, same pictures.

    `street` and `traffic`: see `plan_world`; other streets than the embedded one have random
    weather. `offset`: metres by which the camera stands to the right of the car's own, of which it
    is the stereo partner. `view`: the camera; None: KITTI's, resized to `size`. Reading a frame
    raises RendererUnavailableError where OpenGL does not work.
    """

    seed: int = 8
    size: tuple[int, int] = (640, 192)
    spec: DriveSpec = field(default_factory=DriveSpec)
    supersample: int = 2
    street: str = EMBEDDED
    traffic: str = "mixed"
    offset: float = 0.0
    view: Camera | None = None
    name: str = "street"
    skipped: list[Skipped] = field(default_factory=list)
    depth_source: str | None = "exact"
    consecutive: bool = True
    notes: list[str] = field(default_factory=lambda: ["rendered, with exact depth"])

    def __post_init__(self) -> None:
        if self.view is not None:
            self.size = self.view.width, self.view.height
        width, height = self.size
        # KITTI's camera, resized: fx = 721.5 and cx = 609.6 of 1242 pixels, and so on.
        self.camera = self.view or Camera(
            721.5377 * width / 1242,
            721.5377 * height / 375,
            609.5593 * width / 1242,
            172.854 * height / 375,
            width,
            height,
        )
        self.bank = TextureBank(self.seed)
        self.world = plan_world(self.seed, self.bank, self.spec, self.street, self.traffic)
        rig_from_camera = np.eye(4)
        rig_from_camera[0, 3] = self.offset
        self.mount = Mount("left" if self.offset == 0 else "right", rig_from_camera)
        self._exposure: float | None = None
        if self.street == EMBEDDED:
            self._light = replace(_LIGHT, cloud_layer=self.bank.kinds["clouds"][0])
            self._exposure = 1.0
        else:
            self._light = random_light(np.random.default_rng([self.seed, 5]), self.bank)
        self._renderer: Renderer | None = None
        self._last: tuple[int, Rendered] | None = None
        self.frames: Sequence[Frame] = [self._frame(i) for i in range(self.spec.frames)]

    def __len__(self) -> int:
        return len(self.frames)

    def gap_before(self, i: int) -> bool:
        """False: no frame is missing."""
        return False

    def time(self, i: int) -> float:
        """Seconds from the first frame to frame i."""
        return i / self.spec.rate

    def pose(self, time: float) -> NDArray[np.float64]:
        """world_from_camera (4, 4) at a time in seconds; the car nods as it brakes."""
        step = 0.05
        rate = self.spec.speed(np.array([time - step, time + step]))
        nod = np.deg2rad(0.12) * (rate[1] - rate[0]) / (2 * step)
        standing = self.spec.stands(time)
        s = START + self.spec.travel(time)
        frame = self.world.course.frame(s, self.world.lane_offset(0), self.spec.camera_height)
        pitch = (0.0 if standing else nod) - np.deg2rad(self.spec.camera_pitch_deg)
        camera = frame @ turned(0.0, pitch, 0.0) @ BODY_FROM_OPTICAL
        return np.asarray(camera @ self.mount.rig_from_camera)

    def _frame(self, i: int) -> Frame:
        time = self.time(i)
        near = [self.pose(t)[:3, 3] for t in (max(time - _TICK, 0.0), time + _TICK)]
        seconds = time + _TICK - max(time - _TICK, 0.0)
        standing = self.spec.stands(time)
        return Frame(
            index=i,
            stamp_ns=START_NS + round(time * 1e9),
            camera=self.camera,
            load_image=lambda: self.render(i).image,
            load_depth=lambda: self.render(i).depth,
            load_moving=lambda: self.render(i).moving,
            pose=self.pose(time),
            speed=0.0 if standing else float(np.linalg.norm(near[1] - near[0]) / seconds),
        )

    def render(self, i: int) -> Rendered:
        """Draw frame i; the last one is kept."""
        if self._last is not None and self._last[0] == i:
            return self._last[1]
        radiance, depth, moving = self.render_linear(i)
        rng = np.random.default_rng([self.seed, i, *([1] if self.offset else [])])
        if self._exposure is None:  # the first frame's, so that pictures do not depend on order
            first = radiance if i == 0 else self.render_linear(0)[0]
            self._exposure = automatic_exposure(first, _CAMERA.target)
        image = develop(radiance, _CAMERA, rng, self._exposure)
        frame = Rendered(image, np.where(depth > FARTHEST, np.float32(0.0), depth), moving)
        self._last = (i, frame)
        return frame

    def render_linear(
        self, i: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Radiance, depth and what moves by itself, see `Renderer.render_linear`."""
        renderer = self._renderer or self._open()
        pose, time = self.pose(self.time(i)), self.time(i)
        s = START + self.spec.travel(time)
        light = self._light
        movers, waiting = self.world.moving(time, (s - 50.0, s + 180.0))
        # The shadow map moves on in leaps, so that shadows' edges do not crawl along.
        leap = 40.0 * max(np.ceil((s - 50.0) / 40.0), 0.0)
        middle = self.world.course.points(np.float64(55.0 + leap), np.float64(0), np.float64(0))
        renderer.cast_shadows(light, middle, 62.0, Mesh.merge([movers, waiting]))
        return renderer.render_linear(
            self.camera, pose, light, movers, self.supersample, None, waiting
        )

    def _open(self) -> Renderer:
        self._renderer = Renderer(2048 if self.size[0] > 320 else 512)
        self._renderer.load_textures(self.bank)
        self._renderer.load(self.world.drawing)
        return self._renderer

    def close(self) -> None:
        """Give the renderer back; it is made anew when a frame is read."""
        if self._renderer is not None:
            self._renderer.release()
            self._renderer = None


_CAMERA = Development(gamma=2.2, contrast=0.35, noise=0.7)
_LIGHT = Light(
    sun_direction=sun_at(np.deg2rad(200.0), np.deg2rad(40.0)),
    sun=(1.5, 1.4, 1.2),
    ambient=(0.34, 0.4, 0.5),
    horizon=(0.72, 0.82, 0.95),
    zenith=(0.16, 0.32, 0.68),
    clouds=0.45,
    fog=0.0015,
)


def street_drive(
    seed: int = 8,
    frames: int = 80,
    size: tuple[int, int] = (640, 192),
    supersample: int = 2,
    *,
    street: str = EMBEDDED,
    traffic: str = "mixed",
    stop: bool = True,
    offset: float = 0.0,
    view: Camera | None = None,
    camera_height: float | None = None,
    camera_pitch_deg: float = 0.0,
) -> SyntheticDrive:
    """By default the drive that comes with the package: 8 s at 10 Hz, with a stop of over 2 s.

    offset: metres to the right of the car's own camera (its stereo partner). view: the camera;
    default: KITTI's at `size`. camera_height, camera_pitch_deg: see `DriveSpec`; default: its
    height.

    Raises ValueError for a street or traffic that does not exist.
    """
    dense = traffic == "dense"
    spec = dense_drive(frames, stop) if dense else DriveSpec(frames=frames, stop=stop)
    spec = replace(
        spec,
        camera_height=spec.camera_height if camera_height is None else camera_height,
        camera_pitch_deg=camera_pitch_deg,
    )
    return SyntheticDrive(
        seed=seed,
        size=size,
        spec=spec,
        supersample=supersample,
        street=street,
        traffic=traffic,
        offset=offset,
        view=view,
    )
