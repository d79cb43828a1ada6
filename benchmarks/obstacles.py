"""What becomes an obstacle: rendered streets with exact depth, the shipped bundle beside it.

    python benchmarks/obstacles.py [--streets embedded town ...] [--frames 6] [--bundle lite]
        [--seeds 8] [--size 640x192] [--no-bundle]

Truth is where the renderer's road lies: each pixel's point, its height above the road's middle line
at its place along the road, and how far to the side it is.

recall: of the pixels that truly show something 0.3 m to 2.5 m above the road and within 20 m, the
share that `find_obstacles` marks.
on road: of the points that come out (one a cube), the share that truly lies on the lanes, less than
0.1 m above the road's middle; ground: the same wherever it lies, kerbs, pavements and verges
included. A point's truth is that of the pixels that it is made of.
no road: frames in which no road was found, of which nothing comes out; they count as missed.

--drive FOLDER looks at a real drive instead, its camera --height metres up: in how many frames a
road was found, and with --picture FILE every 13th of these frames with its obstacles in colour (red
near, blue 20 m) and from above.

The bundle sees the same pictures through the pipeline, scaled by the camera's height. One thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.points import to_points
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.recordings.synthetic.drive import STREETS, SyntheticDrive, street_drive
from depth_prior_ros.scale import RoadSettings, make_scale
from depth_prior_ros.scale.obstacles import (
    NoRoadError,
    Obstacles,
    ObstacleSettings,
    find_obstacles,
    road_of_depth,
)

HEIGHT, RANGE = 0.3, 20.0
GROUND = 0.1
CAMERA_HEIGHT = 1.6


@dataclass
class Count:
    """Pixels and points of some frames."""

    things: int = 0
    found: int = 0
    points: int = 0
    on_road: int = 0
    on_ground: int = 0
    frames: int = 0
    without_road: int = 0

    def line(self, name: str) -> str:
        """One row of the table."""
        return (
            f"{name:24} {self.found / max(self.things, 1):7.1%} "
            f"{self.on_road / max(self.points, 1):8.2%} "
            f"{self.on_ground / max(self.points, 1):8.2%} {self.points:8d} "
            f"{self.without_road}/{self.frames}"
        )


def true_places(
    drive: SyntheticDrive, pose: NDArray[np.float64], points: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Of points (h, w, 3) in the camera's frame: height above the road's middle line, distance from
    it to the side; (h, w, 2)."""
    course = drive.world.course
    along = np.arange(course.start, course.end, 0.25)
    middle = course.points(along, np.zeros_like(along), np.zeros_like(along))
    world = points.reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    places = np.full((len(world), 2), np.nan)
    known = np.flatnonzero(np.isfinite(world).all(axis=1))
    ahead = np.linalg.norm(middle[:, :2] - pose[:2, 3], axis=1) < 60
    near = middle[ahead]
    for part in np.array_split(known, max(1, len(known) // 4000)):
        squared = ((world[part, None, :2] - near[None, :, :2]) ** 2).sum(-1)
        places[part, 0] = world[part, 2] - near[squared.argmin(1), 2]
        places[part, 1] = np.sqrt(squared.min(1))
    return places.reshape(*points.shape[:2], 2)


def judge(
    count: Count,
    depth: NDArray[np.float32],
    camera: Camera,
    truth: NDArray[np.float32],
    places: NDArray[np.float64],
    half_road: float,
    settings: ObstacleSettings,
) -> None:
    """Compare what is found in `depth` with the `truth` (h, w) and its `true_places`."""
    height = places[..., 0]
    ranges = np.hypot(truth, truth * (np.arange(camera.width) - camera.cx) / camera.fx)
    within = np.isfinite(height) & (ranges <= RANGE)
    things = within & (height > HEIGHT) & (height < settings.max_height)
    ground = np.isfinite(height) & (height < GROUND)
    road_itself = ground & (places[..., 1] <= half_road)
    count.frames += 1
    count.things += int(things.sum())
    try:
        road = road_of_depth(depth, camera, RoadSettings())
    except NoRoadError:
        count.without_road += 1
        return
    obstacles = find_obstacles(depth, camera, road, settings)
    count.found += int((obstacles.mask & things).sum())
    # How much of each point is road: the mean of its cube's pixels.
    points = obstacles.points(ground.astype(np.float32))
    count.points += len(points)
    count.on_ground += int((points[:, 3] > 0.5).sum())
    points = obstacles.points(road_itself.astype(np.float32))
    count.on_road += int((points[:, 3] > 0.5).sum())


def run(
    streets: Sequence[str],
    frames: int,
    size: tuple[int, int],
    seeds: Sequence[int],
    bundle: str | None,
    settings: ObstacleSettings,
) -> tuple[Count, Count]:
    """Print the table; the sums over all streets."""
    pipeline: Any = None
    if bundle is not None:
        from depth_prior_ros.pipeline import DepthPipeline

        pipeline = DepthPipeline(bundle)
    sums = Count(), Count()
    for street in streets:
        counts = Count(), Count()
        for seed in seeds:
            drive = street_drive(
                seed, frames=10 * frames, size=size, supersample=1, street=street, stop=False
            )
            if pipeline is not None:
                manifest = pipeline.bundle.manifest.depth
                pipeline.reset()
                pipeline.scale = make_scale(
                    "camera_height",
                    fixed=manifest.metres_per_unit,
                    source="bundle",
                    camera_height=CAMERA_HEIGHT,
                )
            for i, frame in enumerate(drive.frames):
                judged = i % 10 == 9
                if not judged and pipeline is None:
                    continue
                if pipeline is not None:
                    result = pipeline.process(
                        frame.image(), frame.stamp_ns, Motion(7.0, "odometry"), frame.camera
                    )
                if not judged:
                    continue
                truth = np.where(frame.depth() > 0, frame.depth(), np.nan).astype(np.float32)
                camera = frame.camera
                assert frame.pose is not None
                places = true_places(drive, frame.pose, to_points(truth, camera, organised=True))
                half = drive.world.spec.half_road
                for count in (counts[0], sums[0]):
                    judge(count, truth, camera, truth, places, half, settings)
                if pipeline is not None:
                    seen = _as_seen(result, truth, places)
                    for count in (counts[1], sums[1]):
                        judge(count, result.depth, result.camera, *seen, half, settings)
            drive.close()
        print(counts[0].line(f"{street}, exact"), flush=True)
        if pipeline is not None:
            print(counts[1].line(f"{street}, {bundle}"), flush=True)
    return sums


def look_at(drive: Path, bundle: str, height: float, out: Path | None) -> None:
    """Print in how many frames of a recording a road was found; draw some of them."""
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.recordings import open_recording

    pipeline = DepthPipeline(bundle)
    pipeline.scale = make_scale(
        "camera_height",
        fixed=pipeline.bundle.manifest.depth.metres_per_unit,
        source="bundle",
        camera_height=height,
    )
    frames, without, rows, road = open_recording(drive).frames, 0, [], None
    for i, frame in enumerate(frames):
        result = pipeline.process(frame.image(), frame.stamp_ns, None, frame.camera)
        try:
            road = road_of_depth(result.depth, result.camera, RoadSettings())
        except NoRoadError:
            without += 1
        if out is not None and road is not None and i % 13 == 6:
            rows.append(_drawn(result, find_obstacles(*_seen(result), road, ObstacleSettings())))
    print(f"{drive.name}: {len(frames)} frames, in {without} no road of their own")
    if out is not None:
        cv2.imwrite(str(out), np.vstack(rows))


def _seen(result: Any) -> tuple[NDArray[np.float32], Camera]:
    return result.depth, result.camera


def _drawn(result: Any, obstacles: Obstacles) -> NDArray[np.uint8]:
    """The picture with obstacles in colour, and from above: 9 pixels a metre."""
    picture = cv2.cvtColor(result.rgb, cv2.COLOR_RGB2BGR)
    near = (255 * np.clip(1 - result.depth / RANGE, 0, 1)).astype(np.uint8)
    colour = cv2.applyColorMap(near, cv2.COLORMAP_TURBO)
    picture[obstacles.mask] = (0.4 * picture + 0.6 * colour)[obstacles.mask].astype(np.uint8)
    picture = cv2.resize(picture, None, fx=2, fy=2)
    above = np.full((picture.shape[0], 240, 3), 255, np.uint8)
    points = obstacles.points()
    across = np.clip(120 + 9 * points[:, 0], 0, 239).astype(int)
    ahead = np.clip(above.shape[0] - 1 - 9 * points[:, 2], 0, above.shape[0] - 1).astype(int)
    above[ahead, across] = (0, 0, 200)
    return np.hstack([picture, above])


def _as_seen(
    result: Any, truth: NDArray[np.float32], places: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Truth and places of the nearest pixel for each pixel of a result's depth."""
    rows, columns = result.depth.shape
    region = result.region
    y = np.clip(region.y + ((np.arange(rows) + 0.5) * region.height / rows), 0, truth.shape[0] - 1)
    x = np.clip(
        region.x + ((np.arange(columns) + 0.5) * region.width / columns), 0, truth.shape[1] - 1
    )
    at = np.ix_(y.astype(int), x.astype(int))
    return truth[at], places[at]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streets", nargs="+", default=list(STREETS), choices=STREETS)
    parser.add_argument("--frames", type=int, default=3, help="frames judged a drive, 1 s apart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[8])
    parser.add_argument("--size", default="640x192")
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--no-bundle", action="store_true", help="exact depth only")
    parser.add_argument("--drive", type=Path, help="a recording to look at instead")
    parser.add_argument("--height", type=float, default=1.65, help="of its camera, metres")
    parser.add_argument("--picture", type=Path, help="what was seen of it, as PNG")
    given = parser.parse_args(arguments)
    if given.drive is not None:
        look_at(given.drive, given.bundle, given.height, given.picture)
        return 0
    width, height = (int(side) for side in given.size.split("x"))
    print(f"{'':24} {'recall':>7} {'on road':>8} {'ground':>8} {'points':>8} no road")
    exact, seen = run(
        given.streets,
        given.frames,
        (width, height),
        given.seeds,
        None if given.no_bundle else given.bundle,
        ObstacleSettings(),
    )
    print(exact.line("all, exact"))
    print(f"figure obstacles_exact_recall {exact.found / max(exact.things, 1):.4f}")
    print(f"figure obstacles_exact_false {exact.on_road / max(exact.points, 1):.4f}")
    if not given.no_bundle:
        print(seen.line(f"all, {given.bundle}"))
        print(f"figure obstacles_bundle_recall {seen.found / max(seen.things, 1):.4f}")
        print(f"figure obstacles_bundle_false {seen.on_road / max(seen.points, 1):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
