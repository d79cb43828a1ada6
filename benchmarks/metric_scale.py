"""How right the metres are: exact depth, the shipped bundle on a synthetic drive, KITTI.

    python benchmarks/metric_scale.py [--parts exact synthetic odometry lidar] [--frames N]
        [--bundle lite] [--seeds N] [--data FOLDER]

exact: rendered drives; exact depth and poses times an unknown factor, with 5 % noise on every
pixel, every frame and every step. The error of the published factor after five seconds.

synthetic: the bundle on the drive of the package, its exact poses as odometry. Error against the
truth of every mode, as published and after median scaling.

odometry: KITTI odometry 03 (and the first 51 frames of 06 and 01), their poses as odometry. The
published factor against the one that makes the whole drive as long as it was, the spread, and the
height over the road that the factor gives the camera: 1.65 m is right, and no scale mode but
camera_height knows it. `lite` was trained on 03, with its poses; 06 and 01 it has never seen.

lidar: drive 0052 with LiDAR, camera 1.65 m above the road, no odometry: AbsRel (eigen protocol)
without median scaling beside the median-scaled one. `odometry` is the factor learnt on 03.

KITTI is read from --data, by default DEPTH_PRIOR_DATA; without it the last two parts are left out.
The networks run once for all modes: each mode is told of the same frames, and its factor is put on
the same depth. Single thread.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.metrics import DepthErrors, NoValidPixelsError, mean_errors
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.recordings.base import Frame
from depth_prior_ros.recordings.synthetic.drive import SyntheticDrive, street_drive
from depth_prior_ros.scale import RoadSettings, Scale, ScaleSight, ScaleStatus, make_scale
from depth_prior_ros.scale.road import NoRoadError, fit_road

PARTS = ("exact", "synthetic", "odometry", "lidar")
MODES = ("fixed", "camera_height", "odometry")
KITTI_HEIGHT = 1.65
SYNTHETIC_HEIGHT = 1.6
NOISE = 0.05
SKY = 200.0  # metres at which the exact depth of part `exact` puts the sky
ENDLESS = 1e6  # metres: no depth is cut off, as every mode's factor is put on it afterwards
UNKNOWN = (1 / 3, 0.7, 1.0, 1.5, 3.0)


# -- exact depth -----------------------------------------------------------------------------------


def exact_sights(
    drive: SyntheticDrive, depths: Sequence[NDArray[np.float32]], factor: float, seed: int
) -> Iterator[ScaleSight]:
    """A drive as networks of `factor` metres per unit and 5 % noise would see it."""
    rng = np.random.default_rng(seed)
    before: NDArray[np.float64] | None = None
    for frame, depth in zip(drive.frames, depths, strict=True):
        noise = NOISE * (rng.standard_normal(depth.shape) + rng.standard_normal())
        units = np.where(depth > 0, depth, SKY) / factor * np.exp(noise)
        assert frame.pose is not None
        metres = None if before is None else _distance(before, frame.pose)
        step = math.exp(NOISE * rng.standard_normal())
        yield ScaleSight(
            frame.stamp_ns,
            (1 / units).astype(np.float32),
            frame.camera,
            moving=True,
            units_travelled=None if metres is None else metres / factor * step,
            metres_travelled=metres,
            seconds=None if before is None else 1 / drive.spec.rate,
        )
        before = frame.pose


def run_exact(streets: Sequence[str], seeds: int) -> dict[str, float]:
    """Print the table; the worst errors in percent by mode."""
    print(f"\nexact depth and poses, unknown factor, {NOISE:.0%} noise: error after 5 s")
    print(f"{'street':12} {'mode':14} {'mean':>7} {'worst':>7} {'spread':>7} {'largest step':>13}")
    worst: dict[str, float] = {}
    for street in streets:
        drive = street_drive(frames=51, size=(160, 48), supersample=1, street=street, stop=False)
        depths = [frame.depth() for frame in drive.frames]
        drive.close()
        for mode in ("camera_height", "odometry"):
            errors, spreads, steps = [], [], []
            for seed in range(seeds):
                for ratio in UNKNOWN:
                    scale = _scale(mode, 10.0, SYNTHETIC_HEIGHT)
                    factors = [scale.metres_per_unit]
                    for sight in exact_sights(drive, depths, 10.0 * ratio, seed):
                        scale.observe(sight)
                        factors.append(scale.metres_per_unit)
                    errors.append(abs(factors[-1] / (10.0 * ratio) - 1))
                    spreads.append(scale.status.spread or math.nan)
                    steps.append(np.abs(np.diff(np.log(factors))).max())
            worst[mode] = max(worst.get(mode, 0.0), 100 * max(errors))
            print(
                f"{street:12} {mode:14} {np.mean(errors):7.2%} {max(errors):7.2%} "
                f"{np.mean(spreads):7.2%} {max(steps):13.2%}"
            )
    return worst


# -- the networks, once for all modes --------------------------------------------------------------


class SeveralScales:
    """A `Scale` with a fixed factor that lets others see the same frames."""

    source = "benchmark"
    needs_depth = True
    needs_travel = True

    def __init__(self, fixed: float, height: float, stored: Mapping[str, Any] | None) -> None:
        """`stored`: factors by mode, to go on from."""
        self.by_mode = {mode: _scale(mode, fixed, height) for mode in MODES}
        for mode, known in (stored or {}).items():
            self.by_mode[mode].restore(known)
        self.metres_per_unit = fixed
        self.heights: list[float] = []  # of the camera over the road, units
        self.travel: list[tuple[float, float]] = []  # metres and units

    @property
    def status(self) -> ScaleStatus:
        """That of the fixed factor."""
        return self.by_mode["fixed"].status

    def observe(self, sight: ScaleSight) -> None:
        """Tell all, and take notes."""
        for scale in self.by_mode.values():
            scale.observe(sight)
        if not sight.moving or sight.inverse_units is None:
            return
        with contextlib.suppress(NoRoadError):
            self.heights.append(fit_road(sight.inverse_units, sight.camera, RoadSettings()).height)
        metres, units = sight.metres_travelled, sight.units_travelled
        if metres is not None and units is not None:
            self.travel.append((metres, units))

    def reset(self) -> None:
        """Nothing to forget."""

    def store(self) -> dict[str, Any]:
        """Not used."""
        return {}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Not used."""


@dataclass
class ScaleErrors:
    """A drive under every mode: factors by frame, and errors against the truth."""

    scales: SeveralScales
    factors: dict[str, list[float]] = field(default_factory=lambda: {m: [] for m in MODES})
    metric: dict[str, list[DepthErrors]] = field(default_factory=lambda: {m: [] for m in MODES})
    scaled: list[DepthErrors] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def add(self, depth: NDArray[np.float32], truth: NDArray[Any], protocol: str) -> None:
        """Compare a depth image with the truth, under the factor of each mode."""
        try:
            pixels = PROTOCOLS[protocol].pixels(depth, truth)
        except NoValidPixelsError:
            return
        self.scaled.append(pixels.errors("median"))
        fixed = self.scales.metres_per_unit
        for mode in MODES:
            published = depth * np.float32(self.factors[mode][-1] / fixed)
            self.metric[mode].append(PROTOCOLS[protocol].pixels(published, truth).errors("none"))


def run_pipeline(
    bundle: str,
    frames: Sequence[Frame],
    height: float,
    protocol: str | None,
    stored: Mapping[str, Any] | None = None,
) -> ScaleErrors:
    """All frames through a pipeline, with their poses as odometry where they have some."""
    pipeline = DepthPipeline(bundle, max_metres=ENDLESS)
    scales = SeveralScales(pipeline.scale.metres_per_unit, height, stored)
    pipeline.scale = scales
    found = ScaleErrors(scales)
    before: Frame | None = None
    for frame in frames:
        result = pipeline.process(
            frame.image(), frame.stamp_ns, _motion(before, frame), frame.camera
        )
        for mode, scale in scales.by_mode.items():
            found.factors[mode].append(scale.metres_per_unit)
        found.models.append(result.model)
        if protocol and frame.has_depth:
            found.add(result.depth, frame.depth(), protocol)
        before = frame
    return found


def _motion(before: Frame | None, frame: Frame) -> Motion | None:
    if frame.speed is None:
        return None
    if before is None or before.pose is None or frame.pose is None:
        return Motion(frame.speed, "odometry")
    step = np.linalg.inv(before.pose) @ frame.pose
    return Motion(frame.speed, "odometry", step, before.stamp_ns)


def _scale(mode: str, fixed: float, height: float) -> Scale:
    return make_scale(mode, fixed=fixed, source="bundle", camera_height=height)


def _distance(before: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(now[:3, 3] - before[:3, 3]))


# -- tables ----------------------------------------------------------------------------------------


def print_errors(found: ScaleErrors) -> None:
    """AbsRel by mode, as published and median-scaled."""
    print(
        f"{'mode':14} {'factor':>7} {'spread':>7} {'state':10} {'AbsRel':>7} {'d1':>6} "
        f"{'truth/depth':>12}"
    )
    for mode in MODES:
        status, errors = found.scales.by_mode[mode].status, mean_errors(found.metric[mode])
        spread = "" if status.spread is None else f"{status.spread:.1%}"
        ratio = float(np.median([e.ratio for e in found.metric[mode]]))
        print(
            f"{mode:14} {status.metres_per_unit:7.3f} {spread:>7} {status.state:10} "
            f"{errors.abs_rel:7.3f} {errors.d1:6.3f} {ratio:12.3f}"
        )
    best = mean_errors(found.scaled)
    print(f"{'median-scaled':14} {'':7} {'':7} {'':10} {best.abs_rel:7.3f} {best.d1:6.3f}")
    multi = found.models.count("multi_frame")
    print(f"{len(found.models)} frames, {multi} multi-frame, {len(found.scaled)} with truth")


def factor_error(found: ScaleErrors, mode: str) -> float:
    """Relative error of the last factor, against the one that fits the truth (median of frames)."""
    fixed = found.scales.metres_per_unit
    right = fixed * float(np.median([e.ratio for e in found.metric["fixed"]]))
    return found.factors[mode][-1] / right - 1


def print_drive(name: str, found: ScaleErrors, figures: dict[str, float], figure: str) -> None:
    """How the factors of a drive with poses compare with its length and with the camera's height.

    The mean length and the median height over the drive are the references.
    """
    metres, units = np.array(found.scales.travel).T
    whole = float(metres.sum() / units.sum())
    unit_height = float(np.median(found.scales.heights))
    print(
        f"\n{name}: {len(found.models)} frames, {metres.sum():.0f} m measured; the drive's length "
        f"gives {whole:.3f} m per unit, single steps differ by {_spread(metres / units):.1%}"
    )
    print(
        f"{'mode':14} {'5 s':>7} {'end':>7} {'spread':>7} {'of length':>10} {'rms':>6} "
        f"{'camera at':>10}"
    )
    for mode in MODES:
        factors = np.array(found.factors[mode])
        status = found.scales.by_mode[mode].status
        spread = "" if status.spread is None else f"{status.spread:.1%}"
        later = factors[min(50, len(factors) - 1) :]
        rms = float(np.sqrt(np.mean((later / whole - 1) ** 2)))
        print(
            f"{mode:14} {factors[min(50, len(factors) - 1)]:7.3f} {factors[-1]:7.3f} {spread:>7} "
            f"{factors[-1] / whole - 1:+10.1%} {rms:6.1%} {unit_height * factors[-1]:8.2f} m"
        )
        figures[f"metric_scale_{figure}_{mode}_rms_percent"] = 100 * rms
        if mode == "odometry":
            figures[f"metric_scale_{figure}_spread_percent"] = 100 * (status.spread or math.nan)
            height = unit_height * factors[-1] / KITTI_HEIGHT - 1
            figures[f"metric_scale_{figure}_height_error_percent"] = 100 * abs(height)


def _spread(values: NDArray[np.float64]) -> float:
    logs = np.log(values)
    return float(1.4826 * np.median(np.abs(logs - np.median(logs))))


# -- the parts -------------------------------------------------------------------------------------


def run_synthetic(options: argparse.Namespace, figures: dict[str, float]) -> None:
    """The bundle on the drive of the package."""
    drive = street_drive(frames=min(80, options.frames or 80))
    print(f"\n{options.bundle} on a synthetic drive, exact poses as odometry")
    found = run_pipeline(options.bundle, drive.frames, SYNTHETIC_HEIGHT, "synthetic")
    drive.close()
    print_errors(found)
    for mode in MODES:
        error = 100 * factor_error(found, mode)
        print(f"factor of {mode}: {error:+.1f} % of the one that fits the exact depth")
        figures[f"metric_scale_synthetic_{mode}_error_percent"] = abs(error)
        figures[f"metric_scale_synthetic_{mode}_abs_rel"] = mean_errors(found.metric[mode]).abs_rel
    figures["metric_scale_synthetic_median_scaled_abs_rel"] = mean_errors(found.scaled).abs_rel


def run_odometry(options: argparse.Namespace, figures: dict[str, float]) -> dict[str, Any]:
    """KITTI odometry; what the mode `odometry` learnt on 03."""
    stored: dict[str, Any] = {}
    for number in ("03", "06", "01"):
        path = options.data / "kitti_odometry" / "sequences" / number
        frames = open_recording(path).frames[: options.frames]
        found = run_pipeline(options.bundle, frames, KITTI_HEIGHT, None)
        if not found.scales.travel:
            print(f"\nodometry {number}: nothing measured in {len(frames)} frames")
            continue
        print_drive(f"KITTI odometry {number}", found, figures, f"kitti{number}")
        if number == "03":
            stored = found.scales.by_mode["odometry"].store()
    return stored


def run_lidar(
    options: argparse.Namespace, figures: dict[str, float], stored: dict[str, Any]
) -> None:
    """Drive 0052."""
    path = options.data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0052_sync"
    frames = open_recording(path).frames[: options.frames]
    print("\nKITTI drive 0052 against LiDAR, as published by each mode")
    known = {"odometry": stored} if stored else None
    if known is None:
        print("odometry: no factor from 03 in this run, so it stays the bundle's")
    found = run_pipeline(options.bundle, frames, KITTI_HEIGHT, "eigen", known)
    print_errors(found)
    for mode in MODES:
        figures[f"metric_scale_0052_{mode}_abs_rel"] = mean_errors(found.metric[mode]).abs_rel
    figures["metric_scale_0052_median_scaled_abs_rel"] = mean_errors(found.scaled).abs_rel


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--frames", type=int, help="of every drive, at most (all)")
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--seeds", type=int, default=5, help="noises of part exact (5)")
    parser.add_argument("--streets", nargs="+", default=["embedded", "town", "country"])
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPTH_PRIOR_DATA"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    figures: dict[str, float] = {}
    if "exact" in options.parts:
        for mode, worst in run_exact(options.streets, options.seeds).items():
            figures[f"metric_scale_exact_{mode}_worst_percent"] = worst
    if "synthetic" in options.parts:
        run_synthetic(options, figures)
    stored: dict[str, Any] = {}
    if options.data is None and {"odometry", "lidar"} & set(options.parts):
        print("\nno --data and no DEPTH_PRIOR_DATA: KITTI is left out")
    elif options.data is not None:
        options.data = Path(options.data)
        if "odometry" in options.parts:
            stored = run_odometry(options, figures)
        if "lidar" in options.parts:
            run_lidar(options, figures, stored)
    print()
    for name, value in figures.items():
        print(f"figure {name} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
