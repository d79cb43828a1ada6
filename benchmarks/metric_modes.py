"""Metres by scale mode, as the pipeline answers frame by frame, and beside them the same scaled.

    python benchmarks/metric_modes.py [--bundle lite] [--frames 40] [--noise-seed 3]

The embedded drive, and rendered streets (residential, country, town of seeds 31 to 33, at the
bundle's input size, `--frames` each, 10 Hz, no stop), each with its exact speed and poses as
odometry. Rows: mode `fixed` (the bundle's factor) and `auto` (odometry's), single-frame alone and
multi-frame where it moves; `auto` once more with odometry that is noisy (5 % in length and 0.1
degrees a step) and bad (six times that). The first frame, which has no frame before, is left out.
AbsRel over pixels to 80 m, mean over frames; in brackets after scaling each frame by medians. One
thread.

`figure metric_modes_DRIVE_ROW` is in metres, `..._scaled` after scaling.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.pipeline import DepthPipeline, Model, Motion
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import Frame
from depth_prior_ros.recordings.synthetic.drive import street_drive
from depth_prior_ros.scale import make_scale
from depth_prior_ros.share import demo_bag

STREETS = {"residential": 31, "country": 32, "town": 33}
# mode, forced model, and how many times the usual noise odometry has.
ROWS: dict[str, tuple[str, Model | None, float]] = {
    "fixed_single": ("fixed", "single_frame", 0),
    "fixed_multi": ("fixed", None, 0),
    "auto_single": ("auto", "single_frame", 0),
    "auto_multi": ("auto", None, 0),
    "auto_noisy": ("auto", None, 1),
    "auto_bad": ("auto", None, 6),
}
_TURN, _LENGTH = math.radians(0.1), 0.05


def drives(size: tuple[int, int], frames: int) -> Iterator[tuple[str, list[Frame]]]:
    """Name and frames of each drive."""
    yield "embedded", open_recording(demo_bag()).frames
    for street, seed in STREETS.items():
        yield street, street_drive(seed, frames, size, street=street, stop=False).frames


def motions(frames: list[Frame], noise: float, seed: int) -> Iterator[Motion]:
    """What odometry says at each frame, with its noise."""
    rng = np.random.default_rng(seed)
    before: Frame | None = None
    for frame in frames:
        step: NDArray[np.float64] | None = None
        if before is not None and before.pose is not None and frame.pose is not None:
            step = rigid_inverse(before.pose) @ frame.pose
        if step is not None and noise:
            turn = np.eye(4)
            turn[:3, :3] = cv2.Rodrigues(rng.normal(0, _TURN * noise, 3))[0]
            step = step @ turn
            step[:3, 3] *= 1 + rng.normal(0, _LENGTH * noise)
        yield Motion(frame.speed, None if frame.speed is None else "odometry", step)
        before = frame


def evaluate(
    pipeline: DepthPipeline, frames: list[Frame], row: str, seed: int
) -> tuple[float, float]:
    """AbsRel in metres and after scaling, means over the frames."""
    mode, model, noise = ROWS[row]
    depth = pipeline.bundle.manifest.depth
    pipeline.reset()
    pipeline.scale = make_scale(mode, fixed=depth.metres_per_unit, source="bundle")
    pipeline.force_model = model
    found = []
    for frame, motion in zip(frames, motions(frames, noise, seed), strict=True):
        result = pipeline.process(frame.image(), frame.stamp_ns, motion, frame.camera)
        truth = frame.depth()
        if frame is frames[0] or truth is None:
            continue
        region = result.region
        window = (region.x, region.y, region.width, region.height)
        pixels = PROTOCOLS["synthetic"].truth(truth, window).compare(result.depth)
        found.append([pixels.errors(scaling).abs_rel for scaling in ("none", "median")])
    metres, scaled = np.mean(found, axis=0)
    return float(metres), float(scaled)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--noise-seed", type=int, default=3)
    options = parser.parse_args()
    pipeline = DepthPipeline(options.bundle, options.backend, max_metres=math.inf)
    names, table = [], {}
    for name, frames in drives(pipeline.bundle.manifest.input_size, options.frames):
        names.append(name)
        for row in ROWS:
            table[row, name] = evaluate(pipeline, frames, row, options.noise_seed)
            print(f"{name} {row}: {table[row, name][0]:.3f}", file=sys.stderr)
    print(f"{'':<14}" + "".join(f"{name:>18}" for name in names))
    for row in ROWS:
        cells = (f"{m:.3f} ({s:.3f})" for m, s in (table[row, name] for name in names))
        print(f"{row:<14}" + "".join(f"{cell:>18}" for cell in cells))
    for (row, name), (metres, scaled) in table.items():
        print(f"figure metric_modes_{name}_{row} {metres:.4f}")
        print(f"figure metric_modes_{name}_{row}_scaled {scaled:.4f}")


if __name__ == "__main__":
    main()
