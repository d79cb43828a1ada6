"""Imported networks beside the bundle that they came from, and what metres cost where none are.

    python benchmarks/import_network.py [--bundle lite] [--frames 100]
        [--streets town country] [--seed 31] [--skip-same]

The single-frame network of a bundle is exported to ONNX, without references, and imported again;
the bundle's own depth is without them, too.

same: the largest relative difference of its depth from the bundle's own, by backend.

affine: the same network behind a gain (0.3 to 3.3) and a shift (-1 to 1 of 1/units) that change at
random from frame to frame, imported as affine-invariant, on rendered drives with their exact poses
as odometry: metres by the camera's height and by odometry. Beside it the bundle's own depth: with
its own factor, and with the factor by the same measure. AbsRel in metres, and the median of truth
over depth, over all frames after the first five seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_prior_ros.backends.onnx_backend import export_onnx
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.imported import DepthKind
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.pipeline import default_scale, first_shift
from depth_prior_ros.recordings.base import Frame
from depth_prior_ros.recordings.synthetic.drive import street_drive
from depth_prior_ros.scale import Scale, make_scale
from training.runs.network_import import ImportRequest, import_network

HEIGHT = 1.6  # metres, of the rendered drives' camera
SETTLED = 50  # frames: five seconds
NEAREST, FARTHEST = 1e-3, 80.0  # metres that are compared
MEASURED = ("camera_height", "odometry")


class PlainDepth(nn.Module):
    """A student with its prior inside and the training camera told: image -> inverse depth."""

    def __init__(self, runner: StudentRunner) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, image: Tensor) -> Tensor:
        """Image (1, 3, H, W) to inverse depth (1, 1, H, W), 1/units."""
        inverse: Tensor = self.runner(image)[0]
        return inverse


class UnknownGain(nn.Module):
    """The same behind a gain and a shift that the picture's brightness decides, as by chance."""

    def __init__(self, plain: PlainDepth) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, image: Tensor) -> Tensor:
        """As `PlainDepth`, affine-invariant."""
        number = image.mean() * 997
        gain, shift = number - number.floor(), number * 17 - (number * 17).floor()
        return self.plain(image) * (0.3 + 3 * gain) + (2 * shift - 1)


class UnknownUnit(nn.Module):
    """The same as depth, in a unit that nobody is told: a third of the student's."""

    def __init__(self, plain: PlainDepth) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, image: Tensor) -> Tensor:
        """As `PlainDepth`, scale-invariant."""
        return 3 / self.plain(image)


def imported(bundle: Bundle, network: nn.Module, depth: DepthKind, folder: Path) -> Bundle:
    """A network of a bundle's input size as an ONNX file, imported."""
    width, height = bundle.manifest.input_size
    example = np.zeros((1, 3, height, width), np.float32)
    file = folder / f"{depth}.onnx"
    export_onnx(network, (example,), file, ["image"], ["depth"])
    camera = bundle.manifest.camera
    unit = bundle.manifest.depth.metres_per_unit if depth == "disparity" else None
    request = ImportRequest(
        f"onnx:{file}",
        folder / depth,
        depth,
        metres_per_unit=unit,
        focal=(camera.fx, camera.fy),
        licence=bundle.manifest.licence,
    )
    return import_network(request)


def student_of(bundle: Bundle) -> PlainDepth:
    """The bundle's single-frame network for export."""
    depth = bundle.manifest.depth
    prior = bundle.prior() if bundle.has("prior") else None
    return PlainDepth(StudentRunner(bundle.student(), prior, depth.min_units, depth.max_units))


def print_same(own: Bundle, other: Bundle, frames: Sequence[Frame]) -> dict[str, float]:
    """The largest relative difference between two bundles' depth, by backend."""
    figures = {}
    for backend in ("openvino", "onnxruntime"):
        pipelines = [
            DepthPipeline(bundle, backend, look_up=False, force_model="single_frame")
            for bundle in (own, other)
        ]
        worst = 0.0
        for frame in frames:
            a, b = (p.infer(frame.image(), camera=frame.camera, order="rgb").depth
                    for p in pipelines)  # fmt: skip
            finite = np.isfinite(a) & np.isfinite(b)
            worst = max(worst, float(np.abs(a[finite] / b[finite] - 1).max()))
        print(f"{backend}: largest relative difference {worst:.1e}")
        figures[f"import_same_{backend}"] = worst
    return figures


class Errors:
    """Errors in metres of the frames of a drive."""

    def __init__(self) -> None:
        self._relative: list[float] = []
        self._ratios: list[NDArray[np.float32]] = []

    def add(self, depth: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
        """A frame: depth and truth of one size."""
        known = (truth > NEAREST) & (truth < FARTHEST) & ~np.isnan(depth)
        found = np.clip(depth[known], NEAREST, FARTHEST)
        self._relative.append(float((np.abs(found - truth[known]) / truth[known]).mean()))
        self._ratios.append(truth[known] / found)

    @property
    def abs_rel(self) -> float:
        """Mean over the frames."""
        return float(np.mean(self._relative))

    @property
    def bias(self) -> float:
        """Median of truth over depth, of all pixels."""
        return float(np.median(np.concatenate(self._ratios)))


def scale_for(bundle: Bundle, mode: str) -> Scale:
    """The scale of a mode for a bundle's single-frame depth."""
    if mode == "own":
        return default_scale(bundle)
    manifest = bundle.manifest
    return make_scale(
        mode,
        fixed=manifest.depth.metres_per_unit,
        source="bundle",
        camera_height=HEIGHT,
        shift=first_shift(bundle) if manifest.affine else None,
        pose_network=False,
    )


def run(bundle: Bundle, mode: str, frames: Sequence[Frame]) -> tuple[Errors, str]:
    """A drive through a pipeline with its poses as odometry; the scale's last words."""
    pipeline = DepthPipeline(
        bundle,
        look_up=False,  # the student as it was exported
        force_model="single_frame",
        scale=scale_for(bundle, mode),
        output_size="input",
    )
    errors, before = Errors(), None
    for number, frame in enumerate(frames):
        motion = None
        if before is not None:
            step = rigid_inverse(before.pose) @ frame.pose
            motion = Motion(frame.speed, "odometry", step, before.stamp_ns)
        result = pipeline.process(frame.image(), frame.stamp_ns, motion, frame.camera)
        if number >= SETTLED:
            errors.add(result.depth, frame.depth())
        before = frame
    return errors, pipeline.scale.status.text


def print_affine(
    own: Bundle, other: Bundle, streets: Sequence[str], frames: int, seed: int
) -> dict[str, float]:
    """The table; figures by street and mode."""
    figures = {}
    print(f"{'street':12} {'depth':8} {'metres by':14} {'AbsRel':>7} {'truth/depth':>12}")
    for street in streets:
        drive = street_drive(seed, frames, own.manifest.input_size, 1, street=street, stop=False)
        rows = [(own, "own", "own"), *((own, "own", m) for m in MEASURED)]
        rows += [(other, "affine", m) for m in MEASURED]
        for bundle, name, mode in rows:
            errors, words = run(bundle, mode, drive.frames)
            print(f"{street:12} {name:8} {mode:14} {errors.abs_rel:7.3f} {errors.bias:12.3f}"
                  f"  {words}", flush=True)  # fmt: skip
            figures[f"import_{street}_{name}_{mode}_abs_rel"] = errors.abs_rel
            figures[f"import_{street}_{name}_{mode}_bias"] = errors.bias
        drive.close()
    return figures


def main() -> None:
    """Print tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--streets", nargs="+", default=["town", "country"])
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--skip-same", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = load_bundle(options.bundle)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not options.skip_same:
            plain = imported(own, student_of(own), "disparity", folder)
            drive = street_drive(options.seed, 10, stop=False)
            figures |= print_same(own, plain, drive.frames)
            drive.close()
        affine = imported(own, UnknownGain(student_of(own)), "affine_invariant", folder)
        figures |= print_affine(own, affine, options.streets, options.frames, options.seed)
    for name, value in figures.items():
        print(f"figure {name} {value:.6g}")


if __name__ == "__main__":
    main()
