"""KITTI odometry 03 played as a bag to the real node, its poses as odometry: the node's own scale.

    python benchmarks/metric_scale_bag.py [--frames N] [--bundle lite] [--data FOLDER]
        [--sequence 03] [--modes odometry camera_height]

A bag is made of the sequence and played over DDS in lockstep, once per mode, to a depth_node with
that `scale.mode`; what is printed is what its diagnostics say after the last frame. The error is
against the factor that makes the whole drive as long as it was, found by a pipeline in this process
on the same bag (see metric_scale.py). `lite` was trained on 03, with its poses.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metric_scale import KITTI_HEIGHT, run_pipeline

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import Recording, StoredRecording
from rosbag_tools.make import write_bag
from rosbag_tools.replaying.node_process import NodeProcess, free_domain

MEASURED = ("camera_height", "odometry")


@dataclass(frozen=True)
class Told:
    """The scale as the node's diagnostics told it last."""

    state: str
    metres_per_unit: float
    spread: float
    samples: int


def played(recording: Recording, bundle: str, mode: str, folder: Path) -> Told:
    """Play a recording to a node in a scale mode."""
    from rosbag_tools.replaying.replay import IMAGE_TOPIC, INFO_TOPIC, ODOMETRY_TOPIC, Player

    domain = free_domain()
    remappings = {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC, "odom": ODOMETRY_TOPIC}
    parameters: dict[str, bool | int | float | str] = {
        "bundle": bundle,
        "scale.mode": mode,
        "scale.camera_height": KITTI_HEIGHT,
        "image_reliability": "reliable",
        "odom_reliability": "reliable",
        "sync_wait": 5.0,
        "time_budget": 0.0,
        "diagnostics_period": 0.2,
    }
    process = NodeProcess(parameters, remappings, domain_id=domain, log=folder / "node.log")
    with process, Player(domain) as player:
        player.wait_for_node(process, 300.0)
        end = player.lockstep(
            recording, process, lambda answer: None, lambda done, total: None, 60.0
        )
    said = end.diagnostics or {}
    return Told(
        said["scale.state"],
        float(said["scale.metres_per_unit"]),
        float(said.get("scale.spread") or "nan"),
        int(said["scale.samples"]),
    )


def length_factor(recording: StoredRecording, bundle: str) -> float:
    """Metres per unit that make the networks' travel as long as the measured one."""
    found = run_pipeline(bundle, recording.frames, KITTI_HEIGHT, None)
    return sum(m for m, _ in found.scales.travel) / sum(u for _, u in found.scales.travel)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, help="at most (all)")
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--sequence", default="03")
    parser.add_argument("--modes", nargs="+", choices=MEASURED, default=["odometry"])
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPTH_PRIOR_DATA"))
    options = parser.parse_args(arguments)
    if options.data is None:
        print("no --data and no DEPTH_PRIOR_DATA: nothing to play")
        return 1
    sequence = Path(options.data) / "kitti_odometry" / "sequences" / options.sequence
    source = open_recording(sequence)
    source.frames = source.frames[: options.frames]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        bag = Path(name) / "drive.mcap"
        write_bag(source, bag)
        recording = open_recording(bag)
        whole = length_factor(recording, options.bundle)
        print(
            f"{len(recording.frames)} frames as a bag; its length gives {whole:.3f} m per unit\n"
            f"{'mode':14} {'factor':>7} {'error':>7} {'spread':>7} {'samples':>8} state"
        )
        for mode in options.modes:
            told = played(recording, options.bundle, mode, Path(name))
            error = told.metres_per_unit / whole - 1
            print(
                f"{mode:14} {told.metres_per_unit:7.3f} {error:+7.1%} {told.spread:7.1%} "
                f"{told.samples:8} {told.state}"
            )
            figure = f"metric_scale_bag{options.sequence}_{mode}"
            figures[f"{figure}_error_percent"] = 100 * abs(error)
            figures[f"{figure}_spread_percent"] = 100 * told.spread
    for figure, value in figures.items():
        print(f"figure {figure} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
