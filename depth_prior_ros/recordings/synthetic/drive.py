"""A synthetic drive as a recording: a car goes down a street, waits at a crossing, goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings.base import Frame, Skipped
from depth_prior_ros.recordings.synthetic import vehicles
from depth_prior_ros.recordings.synthetic.develop import Development, develop
from depth_prior_ros.recordings.synthetic.light import sun_at
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.renderer import Light, Renderer
from depth_prior_ros.recordings.synthetic.samples import CAMERA_FROM_VEHICLE, turned
from depth_prior_ros.recordings.synthetic.textures import TextureBank
from depth_prior_ros.recordings.synthetic.world import Mover, StreetSpec, StreetWorld

START_NS = 1_700_000_000_000_000_000
FARTHEST = 200.0  # metres; depth beyond is given as none, as a 16-bit PNG could not hold it
_TICK = 0.001


@dataclass(frozen=True)
class DriveSpec:
    """When the car drives and stands. Times in seconds from the first frame, speeds in m/s."""

    frames: int = 80
    rate: float = 10.0
    cruise: float = 7.0  # speed before the stop
    brake_at: float = 1.6
    stop_at: float = 3.5
    go_at: float = 5.9
    away: float = 6.0  # speed after the stop, reached in `pick_up` seconds
    pick_up: float = 2.4
    camera_height: float = 1.6

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
        braking = self.cruise * (
            1.0 - _smooth((time - self.brake_at) / (self.stop_at - self.brake_at))
        )
        starting = self.away * _smooth((time - self.go_at) / self.pick_up)
        return np.where(time < self.stop_at, braking, starting)

    def travel(self, time: float) -> float:
        """Metres driven since the first frame: the integral of `speed`."""
        braking = self.stop_at - self.brake_at
        return (
            self.cruise * min(time, self.brake_at)
            + self.cruise * braking * (_part(time, self.brake_at, braking) - self._eased(time))
            + self.away * self.pick_up * _smooth_integral((time - self.go_at) / self.pick_up)
        )

    def _eased(self, time: float) -> float:
        braking = self.stop_at - self.brake_at
        return _smooth_integral(_part(time, self.brake_at, braking))


def _part(time: float, start: float, length: float) -> float:
    return float(np.clip((time - start) / length, 0.0, 1.0))


def _smooth_integral(x: float) -> float:
    """Integral of the smooth step from 0 to x; beyond 1 it grows by 1 per unit."""
    inside = min(max(x, 0.0), 1.0)
    return inside**3 - 0.5 * inside**4 + max(x - 1.0, 0.0)


def _smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


@dataclass
class SyntheticDrive:
    """A `Recording` whose frames are rendered when they are read; same seed, same pictures.

    Reading a frame needs OpenGL through EGL (RendererUnavailableError says what to install);
    cameras, poses and speeds do not.
    """

    seed: int = 8
    size: tuple[int, int] = (640, 192)
    spec: DriveSpec = field(default_factory=DriveSpec)
    supersample: int = 2
    name: str = "street"
    skipped: list[Skipped] = field(default_factory=list)
    depth_source: str = "exact"
    consecutive: bool = True
    notes: list[str] = field(default_factory=lambda: ["rendered, with exact depth"])

    def __post_init__(self) -> None:
        width, height = self.size
        # KITTI's camera, resized: fx = 721.5 and cx = 609.6 of 1242 pixels, and so on.
        self.camera = Camera(
            721.5377 * width / 1242,
            721.5377 * height / 375,
            609.5593 * width / 1242,
            172.854 * height / 375,
            width,
            height,
        )
        self.bank = TextureBank(self.seed)
        self._crossing = 20.0 + self.spec.travel(self.spec.stop_at) + 9.5
        self.world = StreetWorld(self.seed, self.bank, _street(self._crossing), movers=False)
        self.world.movers = _traffic(self.world, self.spec, self._crossing, self.seed)
        self._renderer: Renderer | None = None
        self._exposure: float | None = None
        self._last: tuple[int, NDArray[np.uint8], NDArray[np.float32]] | None = None
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
        standing = self.spec.stop_at <= time <= self.spec.go_at
        s = 20.0 + self.spec.travel(time)
        frame = self.world.course.frame(s, self.world.lane_offset(0), self.spec.camera_height)
        return frame @ turned(0.0, 0.0 if standing else nod, 0.0) @ CAMERA_FROM_VEHICLE

    def _frame(self, i: int) -> Frame:
        time = self.time(i)
        near = [self.pose(t)[:3, 3] for t in (max(time - _TICK, 0.0), time + _TICK)]
        seconds = time + _TICK - max(time - _TICK, 0.0)
        standing = self.spec.stop_at <= time <= self.spec.go_at
        return Frame(
            index=i,
            stamp_ns=START_NS + round(time * 1e9),
            camera=self.camera,
            load_image=lambda: self.render(i)[0],
            load_depth=lambda: self.render(i)[1],
            pose=self.pose(time),
            speed=0.0 if standing else float(np.linalg.norm(near[1] - near[0]) / seconds),
        )

    def render(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Image (H, W, 3) uint8 RGB and depth (H, W) float32 metres (0 = sky) of frame i."""
        if self._last is not None and self._last[0] == i:
            return self._last[1], self._last[2]
        if self._renderer is None:
            self._renderer = Renderer(shadow_size=2048 if self.size[0] > 320 else 512)
            self._renderer.load_textures(self.bank)
            self._renderer.load(self.world.drawing)
        radiance, depth, _ = self.render_linear(i)
        if self._exposure is None:
            self._exposure = 1.0
        rng = np.random.default_rng([self.seed, i])
        image = develop(radiance, _CAMERA, rng, self._exposure)
        depth = np.where(depth > FARTHEST, np.float32(0.0), depth)
        self._last = (i, image, depth)
        return image, depth

    def render_linear(
        self, i: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Radiance, depth and what moves by itself, see `Renderer.render_linear`."""
        assert self._renderer is not None
        pose, time = self.pose(self.time(i)), self.time(i)
        light = replace(_LIGHT, cloud_layer=self.bank.kinds["clouds"][0])
        movers = self.world.moving(time, (-30.0, 200.0))
        middle = self.world.course.points(np.float64(55.0), np.float64(0), np.float64(0))
        self._renderer.cast_shadows(light, middle, 62.0, movers)
        return self._renderer.render_linear(self.camera, pose, light, movers, self.supersample)

    def close(self) -> None:
        """Give the OpenGL context back; it is made anew when a frame is read."""
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


def _street(crossing: float) -> StreetSpec:
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


def _traffic(world: StreetWorld, spec: DriveSpec, crossing: float, seed: int) -> list[Mover]:
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


def street_drive(
    seed: int = 8, frames: int = 80, size: tuple[int, int] = (640, 192), supersample: int = 2
) -> SyntheticDrive:
    """The drive that comes with the package: 8 s at 10 Hz, standing still for more than 2 s."""
    return SyntheticDrive(
        seed=seed, size=size, spec=DriveSpec(frames=frames), supersample=supersample
    )
