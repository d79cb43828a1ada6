"""How sharp depth is where objects end: errors beside jumps of the true depth, on KITTI 2015.

    python benchmarks/sharpness.py [--bundles lite OTHER ...] [--data FOLDER] [--pictures FOLDER]

A jump is where, of two known pixels at most three apart in a row or column, one is at least 35 %
farther than the other; what is within 6 pixels of it (of the recorded image) counts as beside it.
AbsRel of single-frame depth after median scaling of each whole image, up to 80 m; the mean over
images. `--pictures` writes ten scenes: the image, each bundle's depth in the order given, and the
truth, one above the other.

Figures: `sharpness_BUNDLE`, beside jumps; `sharpness_BUNDLE_elsewhere`, of the other pixels.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.evaluation.frames import EvaluationFrame, read_evaluation_frames
from depth_prior_ros.evaluation.metrics import NoValidPixelsError, TruthPixels
from depth_prior_ros.evaluation.predictors import BundlePredictor
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.pages.colours import colour_depth
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recordings import StoredRecording, open_recording
from training.evaluation.sets import frames_with_depth

JUMP, APART, BESIDE = 1.35, 3, 6
SCENES = 10
NEAR, FAR = 3.0, 80.0
PROTOCOL = PROTOCOLS["kitti2015"]

Depth = NDArray[np.float32]


def depth_image(truth: TruthPixels) -> Depth:
    """(H, W) metres, 0 = unknown."""
    depth = np.zeros(truth.size, np.float32)
    depth.reshape(-1)[truth.index] = truth.expected
    return depth


def beside_jumps(depth: Depth) -> NDArray[np.bool_]:
    """(H, W): within `BESIDE` pixels of two known pixels, at most `APART` apart, with a jump."""
    jumps = np.zeros(depth.shape, np.uint8)
    for apart in range(1, APART + 1):
        for one, other in ((np.s_[:, apart:], np.s_[:, :-apart]), (np.s_[apart:], np.s_[:-apart])):
            near = np.minimum(depth[one], depth[other])
            jumps[one] |= (near > 0) & (np.maximum(depth[one], depth[other]) >= JUMP * near)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BESIDE + 1,) * 2)
    return cv2.dilate(jumps, kernel).astype(bool)


def frames_of(recording: StoredRecording, pipeline: DepthPipeline) -> list[EvaluationFrame]:
    """All scenes, as the bundle's network is shown them."""
    size, positions = pipeline.bundle.manifest.input_size, frames_with_depth(recording)
    return list(read_evaluation_frames(recording, PROTOCOL, size, positions))


def errors_of(pipeline: DepthPipeline, frames: list[EvaluationFrame]) -> NDArray[np.float64]:
    """(N, 3) of each scene: AbsRel beside jumps and elsewhere, and the share of the former."""
    found = []
    for frame, prediction in BundlePredictor(pipeline, "single_frame").predict(frames):
        assert frame.truth is not None
        pixels = frame.truth.compare(prediction.depth)
        beside = beside_jumps(depth_image(frame.truth)).reshape(-1)[pixels.index]
        try:
            parts = [pixels.errors("median", part).abs_rel for part in (beside, ~beside)]
        except NoValidPixelsError:
            continue
        found.append((*parts, float(beside.mean())))
    return np.array(found)


def write_pictures(
    folder: Path, pipelines: Sequence[DepthPipeline], recording: StoredRecording
) -> None:
    """Image, depth of each bundle and truth of `SCENES` scenes, as scene_NUMBER.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, len(recording.frames), len(recording.frames) // SCENES)[:SCENES]:
        rows: list[NDArray[np.uint8]] = []
        truth: Depth | None = None
        for pipeline in pipelines:
            size = pipeline.bundle.manifest.input_size
            frames = list(read_evaluation_frames(recording, PROTOCOL, size, [number]))
            for frame, prediction in BundlePredictor(pipeline, "single_frame").predict(frames):
                assert frame.truth is not None
                truth = depth_image(frame.truth)
                height, width = truth.shape
                rows = rows or [cv2.resize(frame.image, (width, height))]
                scaled = prediction.depth * frame.truth.compare(prediction.depth).ratio
                rows.append(colour_depth(cv2.resize(scaled, (width, height)), NEAR, FAR))
        if truth is not None:
            dense = cv2.dilate(truth, np.ones((3, 3), np.uint8))
            picture = np.vstack([*rows, colour_depth(dense, NEAR, FAR)])
            write_bytes(
                folder / f"scene_{number:02}.png", cv2.imencode(".png", picture[..., ::-1])[1]
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", nargs="+", default=["lite"])
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPTH_PRIOR_DATA"))
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args(arguments)
    if options.data is None:
        print("no --data and no DEPTH_PRIOR_DATA: nothing to evaluate on")
        return 1
    recording = open_recording(Path(options.data) / "kitti_2015")
    pipelines = [DepthPipeline(bundle) for bundle in options.bundles]
    figures = {}
    print(f"{'bundle':30}{'beside jumps':>14}{'elsewhere':>12}{'share beside':>14}{'scenes':>8}")
    for bundle, pipeline in zip(options.bundles, pipelines, strict=True):
        errors = errors_of(pipeline, frames_of(recording, pipeline))
        beside, elsewhere, share = errors.mean(axis=0)
        print(f"{bundle:30}{beside:14.3f}{elsewhere:12.3f}{share:14.2f}{len(errors):8}", flush=True)
        name = Path(bundle).name
        figures |= {f"sharpness_{name}": beside, f"sharpness_{name}_elsewhere": elsewhere}
    if options.pictures is not None:
        write_pictures(options.pictures, pipelines, recording)
    for name, value in figures.items():
        print(f"figure {name} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
