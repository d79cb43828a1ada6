"""Latency and accuracy of a bundle by backend and precision, on one thread, in one run.

    DEPTH_PRIOR_DATA=... python benchmarks/backends.py [--bundle lite] [--rounds 30] [--every 3]
        [--threads 1] [--only NAME ...]

Rows: PyTorch, OpenVINO and ONNX Runtime on the CPU in float32, PyTorch and OpenVINO in bfloat16,
and PyTorch on CUDA where there is a GPU; what this machine has not is named with its reason.
OpenVINO in float32 once more without the references that single-frame depth looks up
(`without_look_up`).

- latency: milliseconds of a whole frame in the pipeline, from the RGB image to depth in metres:
  single-frame, multi-frame with the motion by the pose network, and multi-frame with odometry,
  which measures the factor, too. One frame of the embedded drive after the other, the rows in turn;
  medians, and the median of the ratios to the first row on the same frame.
- accuracy: AbsRel of both forced models on every `--every`th frame of KITTI drive 0052 (projected
  LiDAR, Garg's crop, median scaling, 80 m) or, without data, of the rendered drive.
- disagreement: mean |depth / depth of the first row - 1| over all pixels of these frames. Every row
  finds its own motion between the frames, so that the multi-frame column is that of whole systems.

Figures: `backend_ROW_single_ms`, `_multi_ms`, `_odometry_ms`, `_single_absrel`, `_multi_absrel`,
`_single_apart` and `_multi_apart`, ROW being such as openvino_bf16.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.adaptation.drives import motion_since
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.scale import make_scale
from depth_prior_ros.share import demo_bag

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.evaluation.protocols import Protocol
    from depth_prior_ros.pipeline import DepthPipeline, Model
    from depth_prior_ros.recordings import Recording
    from depth_prior_ros.recordings.base import Frame

DRIVE = "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"
ROWS = (
    ("torch", "cpu", "f32"),
    ("torch", "cpu", "bf16"),
    ("onnxruntime", "cpu", "f32"),
    ("openvino", "cpu", "f32"),
    ("openvino", "cpu", "bf16"),
    ("torch", "cuda", "f32"),
    ("torch", "cuda", "bf16"),
    ("torch", "cuda", "f16"),
    ("onnxruntime", "cuda", "f32"),
    ("tensorrt", "cuda", "f32"),
    ("tensorrt", "cuda", "f16"),
)
MODELS: tuple[Model, ...] = ("single_frame", "multi_frame")
WAYS: dict[str, Model] = {
    "single": "single_frame",
    "multi": "multi_frame",
    "odometry": "multi_frame",
}
SHORT = {"single_frame": "single", "multi_frame": "multi"}
_WARM_UP = 3


@dataclass
class Row:
    """One backend with a precision: its pipeline, and what was measured."""

    name: str
    pipeline: DepthPipeline
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {w: [] for w in WAYS})
    abs_rel: dict[Model, list[float]] = field(default_factory=lambda: {m: [] for m in MODELS})
    apart: dict[Model, list[float]] = field(default_factory=lambda: {m: [] for m in MODELS})


def make_rows(bundle: Bundle, threads: int, only: list[str]) -> list[Row]:
    """The rows that this machine has; the others are printed with their reasons."""
    from depth_prior_ros.backends import BackendError
    from depth_prior_ros.pipeline import DepthPipeline

    rows = []
    without = ("openvino", "cpu", "f32", "without_look_up")
    for name, device, precision, *ending in (*ROWS, without):
        parts = (name, device, precision, *ending)
        title = "_".join(part for part in parts if part != "cpu")
        if only and title not in only and title != "torch_f32":
            continue
        try:
            pipeline = DepthPipeline(
                bundle,
                name,
                device,
                threads=threads,
                precision=precision,
                max_metres=np.inf,
                look_up=not ending,
            )
        except BackendError as error:
            print(f"left out: {title}: {error}")
            continue
        rows.append(Row(title, pipeline))
    return rows


def open_drive() -> tuple[Recording, Protocol]:
    """Drive 0052 where the data is, the rendered drive otherwise."""
    from depth_prior_ros.evaluation.protocols import PROTOCOLS
    from depth_prior_ros.recordings.synthetic.drive import street_drive

    folder = os.environ.get("DEPTH_PRIOR_DATA")
    if folder and (Path(folder) / DRIVE).is_dir():
        return open_recording(Path(folder) / DRIVE), PROTOCOLS["eigen"]
    return street_drive(), PROTOCOLS["synthetic"]


def time_rows(rows: list[Row], frames: list[Frame]) -> None:
    """Whole frames, the rows in turn; the first ones are for warming up."""
    for way, model in WAYS.items():
        for row in rows:
            row.pipeline.reset()
            row.pipeline.scale = make_scale(
                "odometry" if way == "odometry" else "fixed",
                fixed=row.pipeline.bundle.manifest.depth.metres_per_unit,
                source="bundle",
            )
            row.pipeline.force_model = model
        before: Frame | None = None
        for position, frame in enumerate(frames):
            motion = motion_since(before, frame) if way == "odometry" else None
            image, before = frame.image(), frame
            for row in rows:
                result = row.pipeline.process(image, frame.stamp_ns, motion, frame.camera)
                if position >= _WARM_UP:
                    assert result.model == model, result.active_model
                    row.milliseconds[way].append(result.timings["total"])


def evaluate_rows(rows: list[Row], drive: Recording, protocol: Protocol, every: int) -> int:
    """Errors and disagreement on pairs of frames; how many."""
    from depth_prior_ros.evaluation.metrics import NoValidPixelsError
    from rosbag_tools.reports.scoring import in_view

    count = 0
    for position in range(1, len(drive.frames), every):
        before, frame = drive.frames[position - 1], drive.frames[position]
        truth = frame.depth()
        if truth is None or drive.gap_before(position):
            continue
        pictures = before.image(), frame.image()
        expected: dict[Model, NDArray[np.float32]] = {}
        for row in rows:
            for model in MODELS:
                row.pipeline.reset()
                row.pipeline.force_model = model
                if model == "multi_frame":
                    row.pipeline.process(pictures[0], before.stamp_ns, None, before.camera)
                result = row.pipeline.process(pictures[1], frame.stamp_ns, None, frame.camera)
                assert result.model == model, result.active_model
                depth = result.depth
                reference = expected.setdefault(model, depth)
                row.apart[model].append(float(np.mean(np.abs(depth / reference - 1))))
                try:
                    errors = protocol.errors(depth, in_view(truth, depth))
                except NoValidPixelsError:
                    continue
                row.abs_rel[model].append(errors.abs_rel)
        count += 1
    return count


def report(rows: list[Row]) -> None:
    """The table, then the figures."""
    print(
        f"{'':18s} {'single ms':>9s} {'ratio':>6s} {'multi ms':>9s} {'ratio':>6s}"
        f" {'odom. ms':>9s} {'ratio':>6s}"
        f" {'AbsRel s':>9s} {'AbsRel m':>9s} {'apart s':>9s} {'apart m':>9s}"
    )
    figures = []
    for row in rows:
        cells = []
        for way, times in row.milliseconds.items():
            ratios = [t / f for t, f in zip(times, rows[0].milliseconds[way], strict=True)]
            middle, ratio = statistics.median(times), statistics.median(ratios)
            cells.append(f"{middle:9.1f} {ratio:6.2f}")
            figures.append((f"{row.name}_{way}_ms", f"{middle:.1f}"))
        for what, values in (("absrel", row.abs_rel), ("apart", row.apart)):
            for model in MODELS:
                mean = statistics.fmean(values[model])
                cells.append(f"{mean:9.4f}" if what == "absrel" else f"{mean:9.1e}")
                digits = f"{mean:.4f}" if what == "absrel" else f"{mean:.2e}"
                figures.append((f"{row.name}_{SHORT[model]}_{what}", digits))
        print(f"{row.name:18s} {' '.join(cells)}")
    for name, value in figures:
        print(f"figure backend_{name} {value}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="lite", help="name or path")
    parser.add_argument("--rounds", type=int, default=30, help="frames for the latency")
    parser.add_argument("--every", type=int, default=3, help="evaluate every Nth frame")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="these rows, beside torch_f32")
    arguments = parser.parse_args()

    import torch

    from depth_prior_ros.bundle import load_bundle

    bundle = load_bundle(arguments.bundle)
    rows = make_rows(bundle, arguments.threads, arguments.only)
    drive, protocol = open_drive()
    width, height = bundle.manifest.input_size
    print(
        f"{bundle.manifest.name} at {width}x{height}; {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{arguments.threads} thread(s) used; PyTorch {torch.__version__}"
    )
    if torch.cuda.is_available():
        print(f"GPU: {torch.cuda.get_device_name()}")
    time_rows(rows, open_recording(demo_bag()).frames[: _WARM_UP + arguments.rounds])
    count = evaluate_rows(rows, drive, protocol, max(1, arguments.every))
    print(f"latency: {arguments.rounds} frames; accuracy: {count} frames of {drive.name}")
    report(rows)


if __name__ == "__main__":
    main()
