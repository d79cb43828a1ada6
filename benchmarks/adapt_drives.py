"""`adapt` on real drives: single-frame errors in metres before and after, on other drives, too.

    python benchmarks/adapt_drives.py [--bundle lite] [--data FOLDER] [--from 0039_lidar 0039_multi
        03_poses] [--imported]

Each row is the bundle told what was fitted on one drive: numbers of its camera, or of networks that
take none the factor. With `--imported` the bundle's student is exported to ONNX, its depth in a
unit that nobody is told, and imported as scale-invariant; then followed points are in the place of
multi-frame depth.

- 0039_lidar: on the LiDAR of the first half of drive 0039;
- 0039_multi: on its own multi-frame depth of that half, metres by the camera's height (1.65 m; the
  drive has no odometry);
- 03_poses: on its own multi-frame depth of KITTI odometry 03, metres by the poses.

Judged on the LiDAR frames of the second half of 0039, drive 0052 and KITTI 2015 (protocols of
`depth_train evaluate`), single-frame, in metres (median-scaled in brackets). `lite` was trained on
0039 and 03, but for the LiDAR frames of 0039 and their neighbours.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.import_network import UnknownUnit, imported, student_of
from depth_prior_ros.adaptation.adapt import Adapted, adapt
from depth_prior_ros.adaptation.drives import matched_keyframes, measured_keyframes
from depth_prior_ros.adaptation.keyframes import AdaptationError, Keyframe, in_metres
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.evaluation.evaluate import evaluate_model
from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.metrics import mean_errors
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.scale import RoadSettings
from training.evaluation.sets import frames_with_depth
from training.runs.adapt import with_references

KITTI_HEIGHT = 1.65
ROWS = ("0039_lidar", "0039_multi", "03_poses")
_RAW = Path("kitti_raw") / "2011_09_26"


class Drives:
    """KITTI's drives below a folder, the first half of 0039 apart from the second."""

    def __init__(self, data: Path) -> None:
        whole = open_recording(data / _RAW / "2011_09_26_drive_0039_sync")
        middle = len(whole) // 2
        self.first = replace(whole, frames=whole.frames[:middle])
        self.odometry = data / "kitti_odometry" / "sequences" / "03"
        second = replace(whole, frames=whole.frames[middle:])
        other = open_recording(data / _RAW / "2011_09_26_drive_0052_sync")
        scenes = open_recording(data / "kitti_2015")
        self.judged = [
            _judged("0039_second_half", second, "eigen"),
            _judged("0052", other, "eigen"),
            _judged("kitti_2015", scenes, "kitti2015"),
        ]


def _judged(name: str, recording: StoredRecording, protocol: str) -> EvaluationSet:
    return EvaluationSet(name, PROTOCOLS[protocol], recording, frames_with_depth(recording))


def keyframes(row: str, drives: Drives, pipeline: DepthPipeline) -> tuple[list[Keyframe], str]:
    """Keyframes in metres of a row, and where they are from."""
    if row == "0039_lidar":
        return measured_keyframes(drives.first, pipeline.bundle.manifest.camera), row
    if row == "0039_multi":
        found = matched_keyframes(drives.first, pipeline, RoadSettings())
        return in_metres(found, KITTI_HEIGHT), row
    return in_metres(matched_keyframes(open_recording(drives.odometry), pipeline)), row


def judge(pipeline: DepthPipeline, drives: Drives, row: str) -> dict[str, float]:
    """Print a row; its figures."""
    figures, cells = {}, []
    for chosen in drives.judged:
        frames = evaluate_model(pipeline, chosen, "single_frame", chosen.positions)
        metric = mean_errors([frame.metric for frame in frames]).abs_rel
        scaled = mean_errors([frame.errors for frame in frames]).abs_rel
        figures[f"adapt_{row}_{chosen.name}_abs_rel_metres"] = metric
        figures[f"adapt_{row}_{chosen.name}_abs_rel_scaled"] = scaled
        cells.append(f"{metric:.3f} ({scaled:.3f})")
    print(f"{row:22}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPTH_PRIOR_DATA"))
    parser.add_argument("--from", nargs="+", choices=ROWS, default=list(ROWS), dest="rows")
    parser.add_argument("--imported", action="store_true")
    options = parser.parse_args(arguments)
    if options.data is None:
        print("no --data and no DEPTH_PRIOR_DATA: nothing to adapt on")
        return 1
    import torch

    torch.set_num_threads(1)
    drives = Drives(Path(options.data))
    bundle = load_bundle(options.bundle)
    if not options.imported:
        return run(bundle, drives, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        unknown = UnknownUnit(student_of(bundle))
        return run(imported(bundle, unknown, "scale_invariant", Path(folder)), drives, options.rows)


def run(bundle: Bundle, drives: Drives, rows: Sequence[str]) -> int:
    """Print the table and its figures."""
    pipeline = DepthPipeline(bundle)
    before = pipeline.told
    print(f"{'fitted on':22}" + "".join(f"{chosen.name:>18}" for chosen in drives.judged))
    figures = judge(pipeline, drives, "before")
    for row in rows:
        pipeline.tell_camera(before)
        try:
            found, source = keyframes(row, drives, pipeline)
        except AdaptationError as error:
            print(f"{row:22}{error}")
            continue
        networks = pipeline.networks
        adapted: Adapted = adapt(bundle, found, found[0].camera, source, networks=networks)
        pipeline.tell_camera(adapted.told)
        figures |= judge(pipeline, drives, row)
        if adapted.references is not None:
            with tempfile.TemporaryDirectory() as folder:
                holding = with_references(bundle, Path(folder) / "bundle", adapted, {})
                figures |= judge(DepthPipeline(holding), drives, f"{row}_references")
        won = "references kept" if adapted.by_references else "kept"
        kept = won if adapted.by_references or adapted.better else "not kept"
        print(f"{'':22}{len(found)} keyframes; {adapted.told}; {adapted.text}: {kept}")
    for name, value in figures.items():
        print(f"figure {name} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
