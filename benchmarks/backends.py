"""Latency and accuracy of a bundle by backend and precision, on one thread, in one run.

    DEPTH_PRIOR_DATA=... python benchmarks/backends.py [--bundle lite] [--rounds 30] [--every 3]
        [--threads 1] [--only NAME ...]

Rows: PyTorch, OpenVINO and ONNX Runtime on the CPU in float32, PyTorch and OpenVINO in bfloat16,
and PyTorch on CUDA where there is a GPU; what this machine has not is named with its reason.

- latency: milliseconds of a whole frame in the pipeline, from the RGB image to depth in metres, by
  forced model. The rows take turns, round by round; medians, and the median of the ratios to the
  first row in the same round.
- accuracy: AbsRel of both forced models on every `--every`th frame of KITTI drive 0052 (projected
  LiDAR, Garg's crop, median scaling, 80 m) or, without data, of the rendered drive.
- disagreement: mean |depth / depth of the first row - 1| over all pixels of these frames. Every row
  finds its own motion between the frames, so that the multi-frame column is that of whole systems.

Figures: `backend_ROW_single_ms`, `_multi_ms`, `_single_absrel`, `_multi_absrel`, `_single_apart`
and `_multi_apart`, ROW being such as openvino_bf16.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.evaluation.protocols import Protocol
    from depth_prior_ros.pipeline import DepthPipeline, Model
    from depth_prior_ros.recordings import Recording

DRIVE = "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"
ROWS = (
    ("torch", "cpu", "f32"),
    ("torch", "cpu", "bf16"),
    ("onnxruntime", "cpu", "f32"),
    ("openvino", "cpu", "f32"),
    ("openvino", "cpu", "bf16"),
    ("torch", "cuda", "f32"),
    ("torch", "cuda", "bf16"),
)
MODELS: tuple[Model, ...] = ("single_frame", "multi_frame")
SHORT = {"single_frame": "single", "multi_frame": "multi"}
TENTH = 100_000_000
_WARM_UP = 3


@dataclass
class Row:
    """One backend with a precision: its pipeline, and what was measured."""

    name: str
    pipeline: DepthPipeline
    milliseconds: dict[Model, list[float]] = field(default_factory=lambda: {m: [] for m in MODELS})
    abs_rel: dict[Model, list[float]] = field(default_factory=lambda: {m: [] for m in MODELS})
    apart: dict[Model, list[float]] = field(default_factory=lambda: {m: [] for m in MODELS})


def make_rows(bundle: Bundle, threads: int, only: list[str]) -> list[Row]:
    """The rows that this machine has; the others are printed with their reasons."""
    from depth_prior_ros.backends import BackendError
    from depth_prior_ros.pipeline import DepthPipeline

    rows = []
    for name, device, precision in ROWS:
        title = "_".join(part for part in (name, device, precision) if part != "cpu")
        if only and title not in only and title != "torch_f32":
            continue
        try:
            pipeline = DepthPipeline(
                bundle, name, device, threads=threads, precision=precision, max_metres=np.inf
            )
        except BackendError as error:
            print(f"left out: {title}: {error}")
            continue
        rows.append(Row(title, pipeline))
    return rows


def open_drive() -> tuple[Recording, Protocol]:
    """Drive 0052 where the data is, the rendered drive otherwise."""
    from depth_prior_ros.evaluation.protocols import PROTOCOLS
    from depth_prior_ros.recordings import open_recording
    from depth_prior_ros.recordings.synthetic.drive import street_drive

    folder = os.environ.get("DEPTH_PRIOR_DATA")
    if folder and (Path(folder) / DRIVE).is_dir():
        return open_recording(Path(folder) / DRIVE), PROTOCOLS["eigen"]
    return street_drive(), PROTOCOLS["synthetic"]


def time_rows(rows: list[Row], images: list[NDArray[np.uint8]], camera: Any, rounds: int) -> None:
    """Whole frames, the rows in turn; the predecessor's features are kept, as on a vehicle."""
    for model in MODELS:
        for row in rows:
            row.pipeline.reset()
            row.pipeline.force_model = model
        for turn in range(-_WARM_UP, rounds):
            for row in rows:
                stamp = (turn + _WARM_UP) * TENTH
                result = row.pipeline.process(images[turn % 2], stamp, None, camera)
                if turn >= 0:
                    assert result.model == model, result.active_model
                    row.milliseconds[model].append(result.timings["total"])


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
        f" {'AbsRel s':>9s} {'AbsRel m':>9s} {'apart s':>9s} {'apart m':>9s}"
    )
    figures = []
    for row in rows:
        cells = []
        for model in MODELS:
            times = row.milliseconds[model]
            ratios = [t / f for t, f in zip(times, rows[0].milliseconds[model], strict=True)]
            middle, ratio = statistics.median(times), statistics.median(ratios)
            cells.append(f"{middle:9.1f} {ratio:6.2f}")
            figures.append((f"{row.name}_{SHORT[model]}_ms", f"{middle:.1f}"))
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
    parser.add_argument("--rounds", type=int, default=30, help="for the latency")
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
    start = len(drive.frames) // 2
    images = [drive.frames[start + i].image() for i in range(2)]
    time_rows(rows, images, drive.frames[start].camera, arguments.rounds)
    count = evaluate_rows(rows, drive, protocol, max(1, arguments.every))
    print(f"latency: {arguments.rounds} rounds; accuracy: {count} frames of {drive.name}")
    report(rows)


if __name__ == "__main__":
    main()
