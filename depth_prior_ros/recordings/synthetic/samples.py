"""Pairs of frames with exact depth for training, written in shards that can be memory-mapped.

A shard is a folder of .npy files (N pairs of size W x H, previous frame first):

- ``images.npy`` (N, 2, H, W, 3) uint8 RGB
- ``depth.npy`` (N, 2, H, W) float16, metres, 0 = sky
- ``K.npy`` (N, 3, 3) float32, pixels at that size
- ``previous_from_current.npy`` (N, 4, 4) float32, metres
- ``moving.npy`` (N, H, W) uint8, 1 = something that moves by itself, in the current frame
- ``mount.npy`` (N, 3) float32: height of the camera above the road in metres, pitch (up is
  positive) and roll in radians; folders of schemas 1 and 2 may lack it

Every shard depends on (seed, number of the shard, size, textures, shares of dense traffic and of
cameras) only, so an interrupted run goes on where it stopped and gives the same files.

With `frames_per_street`, pairs come in recordings: that many in a row are of one street, one light
and one camera with its mount, at least `STREET_STEP` metres apart; shards hold whole recordings.

One random pair of frames after the other: camera, traffic, light, picture, depth, motion.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from depth_prior_ros.atomic_files import staging_folder, write_json
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import BODY_FROM_OPTICAL, rigid_inverse
from depth_prior_ros.progress import ProgressBar
from depth_prior_ros.recordings.synthetic.exposure import (
    Development,
    automatic_exposure,
    develop,
    matching_curve,
    random_development,
    random_light,
)
from depth_prior_ros.recordings.synthetic.mesh import Mesh
from depth_prior_ros.recordings.synthetic.renderer import Light, Renderer
from depth_prior_ros.recordings.synthetic.textures import TextureBank, tone_quantiles
from depth_prior_ros.recordings.synthetic.traffic import (
    NEAREST,
    TOP_SPEED,
    dense_fleet,
    dense_spec,
    queue,
)
from depth_prior_ros.recordings.synthetic.vehicles import Body
from depth_prior_ros.recordings.synthetic.world import Mover, StreetWorld, placed

PAIRS_PER_WORLD = 8
FRAME_TIME = 0.1  # seconds between the frames of a pair
STREET_STEP = 4.0  # metres between the frames of a recording, at least
# Metres between the two frames of a pair of a recording: a keyframe to match with.
_STREET_TRAVEL = (1.0, 2.0)
_ATTEMPTS = 6
# A view is blocked where more than that share of the picture is nearer than so many metres.
_CLOSE, _CLOSE_SHARE = 3.0, 0.04


@dataclass(frozen=True)
class RenderedPair:
    """Two frames: index 0 is the previous one."""

    images: np.ndarray
    depth: np.ndarray
    K: np.ndarray
    previous_from_current: np.ndarray
    moving: np.ndarray
    mount: np.ndarray


@dataclass(frozen=True)
class Mount:
    """How a street's camera is mounted, and how its picture differs from KITTI's.

    height: metres above the road. pitch (up is positive), roll: radians. focal: focal lengths over
    KITTI's. row: how far the principal point lies lower, in image heights.
    """

    height: float
    pitch: float
    roll: float
    focal: float
    row: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Mount:
        """Any camera on any vehicle from a small robot to a lorry."""
        return cls(
            height=rng.uniform(0.9, 2.4),
            pitch=np.deg2rad(rng.uniform(-5.0, 5.0)),
            roll=np.deg2rad(rng.uniform(-1.5, 1.5)),
            focal=float(np.exp(rng.uniform(np.log(0.75), np.log(2.0)))),
            row=rng.uniform(-0.06, 0.06),
        )

    def of(self, camera: Camera) -> Camera:
        """A KITTI-like camera with this one's focal length and principal row."""
        return replace(
            camera,
            fx=camera.fx * self.focal,
            fy=camera.fy * self.focal,
            cy=camera.cy + self.row * camera.height,
        )


@dataclass
class Recording:
    """What the frames of one recording have in common.

    places: how far along the street its frames were taken, in metres. picture: exposure and tone
    curve, which the first frame decides.
    """

    camera: Camera
    mount: Mount
    how: Development
    places: list[float] = field(default_factory=list)
    picture: tuple[float, np.ndarray | None] | None = None

    def next_place(self, rng: np.random.Generator, last: float) -> float:
        """Where on a street of `last` metres the next frame is taken."""
        for _ in range(100):
            place = float(rng.uniform(0, last))
            if all(abs(place - other) >= STREET_STEP for other in self.places):
                break
        return place


_KITTI_MOUNT = Mount(height=1.65, pitch=0.0, roll=0.0, focal=1.0, row=0.0)


def random_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """A camera like KITTI's, varied a little."""
    width, height = size
    fx = 0.581 * width * rng.uniform(0.94, 1.06)
    # KITTI's pixels are square at 1242 x 375; the resized image's need not be.
    fy = fx * (height / 375.0) / (width / 1242.0)
    cx = width * rng.normal(0.491, 0.01)
    cy = height * rng.normal(0.461, 0.02)
    return Camera(fx, fy, cx, cy, width, height)


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(4, 4) rotation of a frame with x forward, y left, z up; radians, pitch up is positive."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    y = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    matrix = np.eye(4)
    matrix[:3, :3] = z @ y @ x
    return matrix


@dataclass(frozen=True)
class _Shot:
    """Where the camera stands at both instants and what is in front of it."""

    camera: Camera
    poses: tuple[np.ndarray, np.ndarray]  # world_from_camera, previous and current
    time: float
    s: float
    lane: int
    speed: float  # m/s
    movers: list[Mover]
    mount: tuple[float, float, float]  # height, pitch, roll


def _aim(
    world: StreetWorld,
    rng: np.random.Generator,
    size: tuple[int, int],
    dense: bool,
    mount: Mount | None,
    recording: Recording | None,
) -> _Shot:
    spec = world.spec
    last = 150.0 if not spec.dead_end else 110.0
    s = rng.uniform(0, last) if recording is None else recording.next_place(rng, last)
    own = max(1, spec.lanes // 2)
    lane = int(rng.integers(own))
    d = world.lane_offset(lane) + rng.normal(0, 0.25)
    yaw = rng.normal(0, np.deg2rad(2.0))
    if rng.random() < 0.12:
        yaw = rng.normal(0, np.deg2rad(12.0))
    pitch, roll = rng.normal(0, np.deg2rad([0.9, 0.6]))
    height = rng.uniform(1.4, 1.9)
    if mount is not None:  # a third of the usual swaying about the mount
        height, pitch, roll = mount.height, mount.pitch + pitch / 3, mount.roll + roll / 3
    current = world.course.frame(s, d, height) @ turned(yaw, pitch, roll)
    travel = rng.uniform(0.0, TOP_SPEED * FRAME_TIME) if dense else rng.uniform(0.2, 2.0)
    if recording is not None:
        travel = rng.uniform(*_STREET_TRAVEL)
    if rng.random() < (0.2 if dense else 0.1) and recording is None:
        previous, travel = current.copy(), 0.0
    else:
        step = turned(*(rng.normal(0, np.deg2rad([0.5, 0.15, 0.1])) * (0.5 + travel)))
        step[:3, 3] = (-travel, rng.normal(0, 0.02), rng.normal(0, 0.008))
        previous = current @ step
    poses = (previous @ BODY_FROM_OPTICAL, current @ BODY_FROM_OPTICAL)
    camera, time = random_camera(rng, size), rng.uniform(0, 3)
    if mount is not None:
        camera = mount.of(camera) if recording is None else recording.camera
    mounted = (height, pitch, roll)
    return _Shot(camera, poses, time, s, lane, travel / FRAME_TIME, world.movers, mounted)


def _in_traffic(
    world: StreetWorld, shot: _Shot, rng: np.random.Generator, fleet: list[Body]
) -> _Shot:
    """The shot with a queue about the camera instead of the street's own vehicles."""
    people = [m for m in world.movers if m.length < 2.0]
    dense = queue(world, fleet, rng, shot.s, shot.lane, shot.speed, shot.time)
    return replace(shot, movers=people + dense)


def _movers(world: StreetWorld, shot: _Shot, time: float, gap: float) -> tuple[Mesh, Mesh]:
    """What moves near the camera, and what waits; whoever is in its way has been left out."""
    eye = shot.poses[1]
    around = (shot.s - 15.0, shot.s + 150.0)
    kept = []
    for mover in shot.movers:
        s = mover.along(shot.time)
        if not around[0] < s < around[1]:
            continue
        d = mover.d + mover.side_speed * shot.time
        place = world.course.points(np.float64(s), np.float64(d), np.float64(0))
        ahead = eye[:3, :3].T @ (place - eye[:3, 3])
        reach = mover.length / 2
        if abs(ahead[0]) < 1.9 and -reach - 3 < ahead[2] < gap + reach:
            continue
        beside = abs(ahead[0]) < reach + 1.3 and -reach - 3 < ahead[2] < reach + 3
        if beside and (abs(mover.side_speed) > 0 or abs(ahead[0]) < 2.2):
            continue
        kept.append(mover)
    return placed(kept, world.course, time)


def render_pair(
    renderer: Renderer,
    world: StreetWorld,
    light: Light,
    rng: np.random.Generator,
    size: tuple[int, int],
    tones: np.ndarray | None = None,
    fleet: list[Body] | None = None,
    mount: Mount | None = None,
    recording: Recording | None = None,
) -> RenderedPair | None:
    """One random pair of frames in a loaded world; None where something blocks the view.

    tones: (n, knots, 3) quantiles of real frames; half of the pairs take over one's grey levels.
    fleet: the vehicles of dense, slow traffic; None leaves the street its own.
    mount: of the camera; None: about as KITTI's.
    recording: that the frames go on with, `mount` being its own; None: a pair for itself.
    """
    shot = _aim(world, rng, size, fleet is not None, mount, recording)
    gap = float(np.exp(rng.uniform(np.log(4.5), np.log(45.0))))
    if fleet is not None:
        shot, gap = _in_traffic(world, shot, rng, fleet), 0.8 * NEAREST
    how = random_development(rng) if recording is None else recording.how
    eye = shot.poses[1]
    renderer.cast_shadows(
        light,
        eye[:3, 3] + eye[:3, 2] * 28.0,
        48.0,
        Mesh.merge(list(_movers(world, shot, shot.time, gap))),
        (shot.s - 30.0, shot.s + 80.0),
    )
    around = (shot.s - 15.0, shot.s + 150.0)
    frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for pose, time in zip(shot.poses[::-1], (shot.time, shot.time - FRAME_TIME), strict=True):
        movers, waiting = _movers(world, shot, time, gap)
        frame = renderer.render_linear(shot.camera, pose, light, movers, 2, around, waiting)
        if not frames and _blocked(frame[1]):
            return None
        frames.append(frame)
    if recording is not None:
        recording.places.append(shot.s)
    exposure, curve = _picture(frames[0][0], how, rng, tones, recording)
    frames.reverse()
    return RenderedPair(
        images=np.stack([develop(f[0], how, rng, exposure, curve) for f in frames]),
        depth=np.stack([f[1] for f in frames]).astype(np.float16),
        K=shot.camera.matrix().astype(np.float32),
        previous_from_current=(rigid_inverse(shot.poses[0]) @ shot.poses[1]).astype(np.float32),
        moving=frames[1][2].astype(np.uint8),
        mount=np.array(shot.mount, np.float32),
    )


def _picture(
    radiance: np.ndarray,
    how: Development,
    rng: np.random.Generator,
    tones: np.ndarray | None,
    recording: Recording | None,
) -> tuple[float, np.ndarray | None]:
    """Exposure and tone curve, those of the recording where it has some."""
    if recording is not None and recording.picture is not None:
        return recording.picture
    exposure = automatic_exposure(radiance, how.target)
    curve = None
    if tones is not None and len(tones) and rng.random() < 0.5:
        clean = replace(how, blur=0.0, noise=0.0, jpeg=None)
        image = develop(radiance, clean, rng, exposure)
        tone = tones[rng.integers(len(tones))]
        tone = tone.mean(1, keepdims=True).repeat(3, 1) if how.grey else tone
        curve = matching_curve(image, tone, rng.uniform(0.5, 1.0))
    if recording is not None:
        recording.picture = (exposure, curve)
    return exposure, curve


def _blocked(depth: np.ndarray) -> bool:
    seen = depth[depth > 0]
    near = (seen < _CLOSE).sum() / depth.size
    return bool(near > _CLOSE_SHARE or np.median(seen) < 4.0 if len(seen) else True)


def close_road(mount: Mount, camera: Camera) -> float:
    """Share of the picture in which a flat road, seen without roll, counts as being in the way."""
    down = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    below = np.arctan(down) - mount.pitch
    with np.errstate(divide="ignore"):
        depth = mount.height * np.cos(np.arctan(down)) / np.sin(below)
    return float(((below > 0) & (depth < _CLOSE)).mean())


def _recording_camera(
    rng: np.random.Generator, size: tuple[int, int], cameras: float
) -> tuple[Mount, Camera]:
    """Mount and camera of a recording, drawn again while the road alone would block every view."""
    while True:
        mount = Mount.draw(rng) if rng.random() < cameras else _KITTI_MOUNT
        camera = mount.of(random_camera(rng, size))
        if close_road(mount, camera) <= _CLOSE_SHARE:
            return mount, camera


def iterate(
    renderer: Renderer,
    shard: int,
    count: int,
    size: tuple[int, int],
    seed: int,
    texture_images: Sequence[Path] = (),
    dense: float = 0.0,
    cameras: float = 0.0,
) -> Iterator[RenderedPair]:
    """The `count` pairs of one shard; it loads its own textures into the renderer.

    dense: share of the worlds with dense, slow traffic; the other worlds do not depend on it.
    cameras: share of the worlds with a camera of their own (`Mount.draw`) instead of KITTI's.
    """
    bank, tones = _textures(renderer, [seed, shard], texture_images)
    made = 0
    for number in itertools.count():
        if made >= count:
            return
        world, fleet, rng = _street(renderer, [seed, shard, number], bank, dense)
        mount = _mount([seed, shard, number], cameras)
        light = random_light(rng, bank)
        good = 0
        for attempt in range(PAIRS_PER_WORLD + _ATTEMPTS):
            if attempt == PAIRS_PER_WORLD // 2:
                light = random_light(rng, bank)
            pair = render_pair(renderer, world, light, rng, size, tones, fleet, mount)
            if pair is None:
                continue
            yield pair
            made, good = made + 1, good + 1
            if made == count or good == PAIRS_PER_WORLD:
                break


def iterate_recordings(
    renderer: Renderer,
    shard: int,
    count: int,
    size: tuple[int, int],
    seed: int,
    texture_images: Sequence[Path] = (),
    *,
    frames: int,
    dense: float = 0.0,
    cameras: float = 1.0,
    camera_seed: int | None = None,
) -> Iterator[RenderedPair]:
    """As `iterate`, in recordings of `frames` pairs each; `count` is a multiple of it.

    camera_seed: what the cameras come from; None: `seed`. Two sets that share it have the same
    cameras, recording by recording, in other streets.
    """
    bank, tones = _textures(renderer, [seed, shard], texture_images)
    eyes = seed if camera_seed is None else camera_seed
    done = 0
    for number in itertools.count():
        if done * frames >= count:
            return
        world, fleet, rng = _street(renderer, [seed, shard, number], bank, dense)
        light, how = random_light(rng, bank), random_development(rng)
        which = np.random.default_rng([eyes, shard, done, 3])
        mount, camera = _recording_camera(which, size, cameras)
        recording = Recording(camera, mount, how)
        pairs: list[RenderedPair] = []
        for _ in range(2 * frames + _ATTEMPTS):
            pair = render_pair(renderer, world, light, rng, size, tones, fleet, mount, recording)
            pairs += [] if pair is None else [pair]
            if len(pairs) == frames:
                yield from pairs
                done += 1
                break


def _textures(
    renderer: Renderer, seed: list[int], texture_images: Sequence[Path]
) -> tuple[TextureBank, np.ndarray | None]:
    """The textures of a shard, loaded into the renderer, and tones of real pictures."""
    bank = TextureBank(seed, texture_images)
    renderer.load_textures(bank)
    return bank, tone_quantiles(np.random.default_rng(seed), texture_images, 24)


def _street(
    renderer: Renderer, seed: list[int], bank: TextureBank, dense: float
) -> tuple[StreetWorld, list[Body] | None, np.random.Generator]:
    """A street, loaded into the renderer, its queues, and what decides all else."""
    world, fleet = _world(seed, bank, dense)
    renderer.load(world.drawing)
    return world, fleet, np.random.default_rng([*seed, 1])


def _mount(seed: list[int], cameras: float) -> Mount | None:
    rng = np.random.default_rng([*seed, 3])
    return Mount.draw(rng) if rng.random() < cameras else None


def _world(
    seed: list[int], bank: TextureBank, dense: float
) -> tuple[StreetWorld, list[Body] | None]:
    """A street, and the vehicles of its queues where it has dense traffic."""
    rng = np.random.default_rng([*seed, 2])
    if rng.random() >= dense:
        return StreetWorld(seed, bank), None
    return StreetWorld(seed, bank, dense_spec(rng)), dense_fleet(rng, bank)


SCHEMA = 1
SCHEMA_DENSE = 2  # some streets have dense traffic
SCHEMA_CAMERAS = 3  # some streets have a camera of their own
SCHEMA_RECORDINGS = 4  # several pairs in a row are of one recording
PAIRS_PER_SHARD = 128
_T = TypeVar("_T")


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def write_samples(
    out_dir: str | Path,
    count: int,
    size: tuple[int, int] = (320, 96),
    seed: int = 0,
    texture_images: Sequence[str | Path] = (),
    progress: bool = True,
    *,
    processes: int = 1,
    dense: float = 0.0,
    cameras: float = 0.0,
    frames_per_street: int = 0,
    camera_seed: int | None = None,
) -> Path:
    """Write `count` pairs to `out_dir`; shards that are there already are kept.

    Args:
        out_dir: folder for ``manifest.json`` and ``shard_00000`` and so on.
        count: number of pairs.
        size: (width, height) of the images in pixels.
        seed: everything follows from it, the size, the texture images and `dense`.
        texture_images: real frames to cut textures from (their licence goes to the weights).
        progress: show a progress bar.
        processes: how many draw at the same time; the files are the same whatever it is.
        dense: share of the streets with dense, slow traffic (cars and lorries 4 to 15 m ahead).
        cameras: share of the streets with a camera of their own: height .9 to 2.4 m, pitch to 5
            degrees, focal length .75 to 2 times KITTI's. The others have about KITTI's.
        frames_per_street: pairs of one recording (see above), of which `count` is a multiple; 0:
            every pair for itself.
        camera_seed: of the recordings' cameras, see `iterate_recordings`.

    Raises:
        ValueError: `out_dir` holds samples made with other arguments, or an argument is wrong.
        RendererUnavailableError: no OpenGL in memory; the message names the packages.
    """
    if processes < 1 or not 0 <= dense <= 1 or not 0 <= cameras <= 1:
        raise ValueError(
            f"need processes >= 1, dense between 0 and 1 and cameras too, got {processes}, {dense} "
            f"and {cameras}"
        )
    if frames_per_street < 0 or (frames_per_street and count % frames_per_street):
        raise ValueError(
            f"frames_per_street {frames_per_street}: 0, or what divides the {count} pairs"
        )
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    images = tuple(Path(p) for p in texture_images)
    whole = PAIRS_PER_SHARD // max(frames_per_street, 1) * max(frames_per_street, 1)
    sizes = [min(whole, count - at) for at in range(0, count, whole)]
    missing = [(i, wanted) for i, wanted in enumerate(sizes) if _pairs_in(out, i) < wanted]
    manifest = {
        "schema": _schema(dense, cameras, frames_per_street),
        "seed": seed,
        "size": list(size),
        "count": count,
        "pairs_per_shard": whole,
        "texture_sources": sorted({str(p.parent) for p in images}),
        "texture_fingerprint": _fingerprint(images),
        "depth_unit": "metres, 0 = sky",
        "frame_time": FRAME_TIME,
        "dense_traffic": dense,
        "cameras": cameras,
        "frames_per_street": frames_per_street,
        "camera_seed": camera_seed,
        "renderer": Renderer.name,  # folders drawn by another one exist
    }
    _check_manifest(out / "manifest.json", manifest)
    job = _Job(out, size, seed, images, dense, cameras, frames_per_street, camera_seed)
    if processes > 1 and len(missing) > 1:
        _in_processes(job, missing, min(processes, len(missing)), progress)
    elif missing:
        with closing(_Worker(job)) as worker:
            for shard in _shown(missing, len(missing), progress):
                worker.write(*shard)
    return out


def _schema(dense: float, cameras: float, frames_per_street: int) -> int:
    if frames_per_street:
        return SCHEMA_RECORDINGS
    return SCHEMA_CAMERAS if cameras else SCHEMA_DENSE if dense else SCHEMA


@dataclass(frozen=True)
class _Job:
    """What all shards of a folder have in common."""

    out: Path
    size: tuple[int, int]
    seed: int
    images: tuple[Path, ...]
    dense: float
    cameras: float
    frames_per_street: int
    camera_seed: int | None

    def pairs(self, renderer: Renderer, shard: int, count: int) -> Iterator[RenderedPair]:
        """Draw the pairs of a shard."""
        what = (renderer, shard, count, self.size, self.seed, self.images)
        if not self.frames_per_street:
            return iterate(*what, dense=self.dense, cameras=self.cameras)
        return iterate_recordings(
            *what,
            frames=self.frames_per_street,
            dense=self.dense,
            cameras=self.cameras,
            camera_seed=self.camera_seed,
        )


class _Worker:
    """Draws shards with a renderer of its own."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._renderer = Renderer()

    def write(self, shard: int, count: int) -> None:
        """Draw and write a shard, unless it is there in the meantime."""
        job = self._job
        if _pairs_in(job.out, shard) >= count:  # written by another process
            return
        _write_shard(job.out, shard, list(job.pairs(self._renderer, shard, count)))

    def close(self) -> None:
        """Give the renderer back."""
        self._renderer.release()


_worker: _Worker | None = None  # of a process of `_in_processes`


def _start_worker(job: _Job) -> None:
    global _worker
    import cv2

    cv2.setNumThreads(1)  # the processes share the cores among them
    _worker = _Worker(job)


def _work(shard: tuple[int, int]) -> None:
    assert _worker is not None
    _worker.write(*shard)


def _in_processes(
    job: _Job, missing: Sequence[tuple[int, int]], processes: int, progress: bool
) -> None:
    # Processes of their own rather than forks: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker, (job,))
    try:
        futures = [pool.submit(_work, shard) for shard in missing]
        for future in _shown(as_completed(futures), len(futures), progress):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard_{shard:05d}"


def _pairs_in(out: Path, shard: int) -> int:
    """Pairs of a finished shard, 0 where there is none; a smaller count leaves a short last one."""
    file = _shard_path(out, shard) / "K.npy"
    return len(np.load(file, mmap_mode="r")) if file.exists() else 0


def _shown(things: Iterable[_T], count: int, shown: bool) -> Iterable[_T]:
    """The things one by one, with a progress bar."""
    if not shown:
        yield from things
        return
    with ProgressBar() as bar:
        for done, thing in enumerate(things, 1):
            bar("rendering shards", done, count)
            yield thing


def _check_manifest(path: Path, manifest: dict[str, object]) -> None:
    if path.exists():
        old = json.loads(path.read_text())
        free = ("count", "texture_sources")  # more pairs; the same images in another place
        old = {
            "dense_traffic": 0.0,
            "cameras": 0.0,
            "frames_per_street": 0,
            "camera_seed": None,
            "renderer": "gl",
            **old,
        }  # once there was nothing else
        differing = [k for k in manifest if k not in free and old.get(k) != manifest[k]]
        if differing:
            raise ValueError(
                f"{path.parent} holds samples with other {', '.join(differing)};"
                " choose another folder or delete this one"
            )
        manifest = {**manifest, "count": max(int(old["count"]), int(str(manifest["count"])))}
    write_json(path, manifest)


def _write_shard(out: Path, shard: int, pairs: list[RenderedPair]) -> None:
    place = _shard_path(out, shard)
    with staging_folder(place) as folder:
        for name in ("images", "depth", "K", "previous_from_current", "moving", "mount"):
            np.save(folder / f"{name}.npy", np.stack([getattr(p, name) for p in pairs]))
        if 0 < _pairs_in(out, shard) < len(pairs):  # a short one, of which these are the rest too
            shutil.rmtree(place)
        try:
            folder.rename(place)
        except OSError:
            # Another process has just finished the same shard; the two are equal.
            if not place.exists():
                raise
