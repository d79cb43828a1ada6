"""Where the multi-frame network should have its motion from: the pose network, or odometry.

    python benchmarks/pose_source.py [--bundle lite] [--seeds 31 32 33] [--frames 40] [--every 4]
        [--backend auto]

Pairs of frames of rendered streets with exact depth and motion. Odometry is exact, or noisy (each
step 5 % wrong in length and 0.1 degrees in direction and turn, standard deviations), or bad (30 %
and 0.6 degrees: wheels that slip, a mount that is not as it was measured). It is used as it is, or
in the mode `auto`, where the picture decides. The pose network's motion is used as it is, or
refined against the single-frame depth (as `lite` asks for). AbsRel, median scaling, up to 80 m.

Figures: `pose_source_ROW`, mean AbsRel, ROW being such as noisy_auto or single_frame.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.recordings.base import Frame

STREETS = ("residential", "country", "town")
QUALITIES = {"exact": (0.0, 0.0), "noisy": (0.05, 0.1), "bad": (0.3, 0.6)}
"""Standard deviations of a step's length (relative) and of its angles (degrees)."""


@dataclass(frozen=True)
class PoseSource:
    """One way to come by the motion."""

    name: str
    source: str
    quality: str | None
    refine: bool


def sources() -> list[PoseSource]:
    """All that are compared."""
    found = [
        PoseSource("network", "network", None, False),
        PoseSource("network_refined", "network", None, True),
    ]
    for quality in QUALITIES:
        found.append(PoseSource(quality, "odometry", quality, True))
        found.append(PoseSource(f"{quality}_auto", "auto", quality, True))
    return found


def disturbed(
    step: NDArray[np.float64], quality: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    """previous_from_current (4, 4) as odometry of that quality tells it."""
    import cv2

    length, degrees = QUALITIES[quality]
    turn, lean = (cv2.Rodrigues(np.deg2rad(rng.normal(0, degrees, 3)))[0] for _ in range(2))
    result = step.copy()
    result[:3, :3] = result[:3, :3] @ turn
    result[:3, 3] = lean @ result[:3, 3] * (1 + rng.normal(0, length))
    return result


def evaluate_pair(
    pipeline: DepthPipeline, pair: tuple[Frame, Frame], seed: int
) -> dict[str, float]:
    """AbsRel of a pair's second frame by way, and of the single-frame network."""
    from depth_prior_ros.evaluation.protocols import PROTOCOLS
    from depth_prior_ros.geometry.poses import rigid_inverse
    from depth_prior_ros.motion.gate import Motion

    before, frame = pair
    assert before.pose is not None
    assert frame.pose is not None
    truth = frame.depth()
    assert truth is not None
    step = rigid_inverse(before.pose) @ frame.pose
    pictures = before.image(), frame.image()
    found: dict[str, float] = {}
    for way in sources():
        motion = Motion(frame.speed, "odometry")
        if way.quality is not None:
            pose = disturbed(step, way.quality, np.random.default_rng(seed))
            motion = Motion(frame.speed, "odometry", pose)
        pipeline.reset()
        pipeline.force_model = "multi_frame"
        pipeline.pose_source = way.source  # type: ignore[assignment]
        pipeline.networks.aligns = way.refine
        single = pipeline.process(pictures[0], before.stamp_ns, None, before.camera)
        result = pipeline.process(pictures[1], frame.stamp_ns, motion, frame.camera)
        assert single.model == "single_frame"
        if result.model == "multi_frame":
            found[way.name] = PROTOCOLS["synthetic"].errors(result.depth, truth).abs_rel
            found[f"{way.name} by odometry"] = float(result.pose_source == "odometry")
    pipeline.force_model = "single_frame"
    single = pipeline.process(pictures[1], frame.stamp_ns, None, frame.camera)
    found["single_frame"] = PROTOCOLS["synthetic"].errors(single.depth, truth).abs_rel
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="lite", help="name or path")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--frames", type=int, default=40, help="of every street")
    parser.add_argument("--every", type=int, default=4, help="use every Nth pair")
    arguments = parser.parse_args()

    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.recordings.synthetic.drive import street_drive

    pipeline = DepthPipeline(arguments.bundle, arguments.backend)
    values: dict[str, list[float]] = defaultdict(list)
    for number, seed in enumerate(arguments.seeds):
        street = STREETS[number % len(STREETS)]
        size = pipeline.bundle.manifest.input_size
        drive = street_drive(seed, arguments.frames, size, street=street, stop=False)
        for i in range(1, len(drive.frames), arguments.every):
            pair = drive.frames[i - 1], drive.frames[i]
            for name, value in evaluate_pair(pipeline, pair, seed * 1000 + i).items():
                values[name].append(value)
        drive.close()
    count = len(values["single_frame"])
    print(f"{pipeline.bundle.manifest.name} on {pipeline.backend}: {count} pairs")
    for name in ["single_frame", *(way.name for way in sources())]:
        share = values.get(f"{name} by odometry")
        told = "" if share is None else f"   {statistics.fmean(share):4.0%} by odometry"
        if len(values[name]) < count:
            told += f"   {len(values[name])} pairs only"
        print(f"{name:18s} {statistics.fmean(values[name]):.4f}{told}")
    for name in ["single_frame", *(way.name for way in sources())]:
        print(f"figure pose_source_{name} {statistics.fmean(values[name]):.4f}")


if __name__ == "__main__":
    main()
