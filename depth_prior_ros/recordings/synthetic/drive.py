"""A synthetic drive as a recording: a car goes down a street, waits at a crossing, goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings.base import Frame, Skipped
from depth_prior_ros.recordings.synthetic.choice import WorldRenderer, open_renderer
from depth_prior_ros.recordings.synthetic.develop import (
    Development,
    automatic_exposure,
    develop,
)
from depth_prior_ros.recordings.synthetic.drive_plan import (
    EMBEDDED,
    START,
    DriveSpec,
    dense_drive,
    plan_world,
)
from depth_prior_ros.recordings.synthetic.light import random_light, sun_at
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.pairs import CAMERA_FROM_VEHICLE, turned
from depth_prior_ros.recordings.synthetic.renderer import Light
from depth_prior_ros.recordings.synthetic.textures import TextureBank

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

    `renderer`: auto, gl or raycast (see `open_renderer`); where auto has to do without OpenGL,
    `notes` says so once a frame was read. `street` and `traffic`: see `plan_world`; other streets
    than the embedded one have random weather.
    """

    seed: int = 8
    size: tuple[int, int] = (640, 192)
    spec: DriveSpec = field(default_factory=DriveSpec)
    supersample: int = 2
    street: str = EMBEDDED
    traffic: str = "mixed"
    renderer: str = "auto"
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
        self.world = plan_world(self.seed, self.bank, self.spec, self.street, self.traffic)
        self._exposure: float | None = None
        if self.street == EMBEDDED:
            self._light = replace(_LIGHT, cloud_layer=self.bank.kinds["clouds"][0])
            self._exposure = 1.0
        else:
            self._light = random_light(np.random.default_rng([self.seed, 5]), self.bank)
        self._renderer: WorldRenderer | None = None
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
        return frame @ turned(0.0, 0.0 if standing else nod, 0.0) @ CAMERA_FROM_VEHICLE

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
        rng = np.random.default_rng([self.seed, i])
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

    def _open(self) -> WorldRenderer:
        shadows = 2048 if self.size[0] > 320 else 512
        self._renderer, note = open_renderer(self.renderer, shadows)
        if note and note not in self.notes:
            self.notes.append(note)
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
    renderer: str = "auto",
) -> SyntheticDrive:
    """By default the drive that comes with the package: 8 s at 10 Hz, with a stop of over 2 s.

    Raises ValueError for a street, traffic or renderer that does not exist.
    """
    dense = traffic == "dense"
    spec = dense_drive(frames, stop) if dense else DriveSpec(frames=frames, stop=stop)
    return SyntheticDrive(
        seed=seed,
        size=size,
        spec=spec,
        supersample=supersample,
        street=street,
        traffic=traffic,
        renderer=renderer,
    )
