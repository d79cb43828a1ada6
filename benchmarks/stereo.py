"""What stereo partners are worth in training: modes M, S and MS side by side.

    python benchmarks/stereo.py [--steps 250] [--batch 4] [--seeds 1 2] [--frames 40] [--out FOLDER]
        [--real DATA]
    python benchmarks/stereo.py --matching [--size 320 96] [--out FOLDER]
    python benchmarks/stereo.py --sources [--frames 40] [--out FOLDER]

Without --real: student (and pose network, in M and MS) of `lite` go on from `lite` on four rendered
drives with a second camera 0.54 m to the right (`depth_bag render --stereo`), and are judged on two
other streets, single-frame, over all pixels nearer than 80 m, those that move by themselves apart.
With --real: the same on the stereo pairs below DATA (KITTI odometry 02, 06 and 01, and drive 9002),
judged on KITTI 2015. All modes have one start, unit, number of steps and draws. Runs that are there
are gone on with, or taken as they are.

AbsRel is printed after median scaling and in metres, d1_metres is the share of pixels within 1.25;
ratio is the median over pixels of truth over prediction, the median over frames. The row `start` is
the bundle before.

With --matching nothing is trained: depth by semi-global matching (recordings/stereo_depth.py) of
pairs of the two streets, against exact depth nearer than 80 m.

With --sources nothing is trained either: of 40 depths from 2 to 100 m, the one at which a pixel's
photometric error is smallest is compared with the exact one (2 to 60 m), on every fifth triplet of
the four drives, by their recorded motion. So is seen where each mode's loss would draw depth to if
every pixel stood for itself. MS_mean: the mean of M's and S's loss.

Figures: `stereo_MODE_scaled`, `_metres`, `_off` (|ratio - 1|), and of what moves by itself on
rendered drives `_scaled_moving`, `_metres_moving`, `_d1_metres_moving`, `_ratio_moving`;
`stereo_matching_share` (of the pixels), `_median` (relative error), `_wrong` (by more than 10 %);
`stereo_sources_WHICH_PART_d1` (share of the pixels kept whose best depth is within 1.25).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml
from numpy.typing import NDArray

Array = NDArray[Any]
MODES = ("M", "S", "MS")
TRAINING = (("town", 41), ("residential", 42), ("avenue", 43), ("country", 44))
UNSEEN = (("town", 51), ("residential", 52))
PAIRS = (
    {"path": "kitti_odometry/sequences/02", "camera": "image_2"},
    {"path": "kitti_odometry/sequences/06", "camera": "image_0"},
    {"path": "kitti_odometry/sequences/01", "camera": "image_0"},
    {"path": "kitti_raw/2011_09_28/2011_09_28_drive_9002_sync", "camera": "image_00"},
)
BASELINE = 0.54
FARTHEST = 80.0
_FIGURES = (
    "scaled",
    "metres",
    "off",
    "scaled_moving",
    "metres_moving",
    "d1_metres_moving",
    "ratio_moving",
)
_MATCHED = 4  # frames of each street


def main() -> None:
    """Render, train, judge, print."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parsed = _parser().parse_args()
    (_match if parsed.matching else _sources if parsed.sources else _compare)(parsed)


def _compare(parsed: argparse.Namespace) -> None:
    """Every mode and seed, and the start."""
    from depth_prior_ros.bundle import load_bundle

    out = parsed.out / ("real" if parsed.real else "rendered")
    out.mkdir(parents=True, exist_ok=True)
    unit = load_bundle("lite").manifest.depth.metres_per_unit
    if parsed.real:
        root, drives = parsed.real, list(PAIRS)
        judged = [root / "kitti_2015"]
    else:
        root = out.resolve()
        drives = [{"path": _render(root, *plan, parsed.frames).name} for plan in TRAINING]
        judged = [_render(root, *plan, parsed.frames) for plan in UNSEEN]
    rows = {("start", 0): _judge("lite", judged)}
    for seed in parsed.seeds:
        for mode in parsed.modes:
            recipe = _recipe(mode, seed, root, drives, unit, parsed)
            folder = out / f"{mode}_{seed}_{parsed.steps}{_variant(parsed)}"
            rows[mode, seed] = _judge(str(_train(recipe, folder)), judged)
    _print(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--settle",
        type=int,
        default=100,
        help="steps of the pose network alone before, in which it takes the unit of the student's "
        "depth (default: 100)",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate (default: 2e-4)")
    parser.add_argument(
        "--no-recorded-motion",
        dest="recorded_motion",
        action="store_false",
        help="the pose network's motion also where odometry or poses were recorded",
    )
    parser.add_argument("--frames", type=int, default=40, help="of each rendered drive")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 96])
    parser.add_argument("--out", type=Path, default=Path("runs/stereo"))
    parser.add_argument("--real", type=Path, default=None, metavar="DATA")
    parser.add_argument("--matching", action="store_true", help="judge depth by matching")
    parser.add_argument("--sources", action="store_true", help="judge what the losses ask for")
    return parser


def _variant(parsed: argparse.Namespace) -> str:
    """What tells the folders of runs apart that differ from the default."""
    words = "" if parsed.recorded_motion else "_predicted"
    words += f"_settled{parsed.settle}" if parsed.settle else ""
    return words if parsed.rate == 2e-4 else f"{words}_{parsed.rate:g}"


def _render(
    folder: Path, street: str, seed: int, frames: int, size: tuple[int, int] = (320, 96)
) -> Path:
    from rosbag_tools.make import render

    bag = folder / f"{street}_{seed}_{frames}.mcap"
    if not bag.exists():
        render(
            bag,
            95,
            seed=seed,
            frames=frames,
            size=size,
            street=street,
            stop=False,
            moving=True,
            stereo=BASELINE,
        )
    return bag


def _match(parsed: argparse.Namespace) -> None:
    """Print how much of the unseen streets is matched, and how well."""
    from depth_prior_ros.recordings import open_recording
    from depth_prior_ros.recordings.stereo import open_pairs
    from depth_prior_ros.recordings.stereo_depth import with_stereo_depth

    width, height = parsed.size
    folder = parsed.out / f"matching_{width}x{height}"
    folder.mkdir(parents=True, exist_ok=True)
    shares, errors = [], []
    for plan in UNSEEN:
        bag = _render(folder, *plan, _MATCHED, (width, height))
        recording = open_recording(bag)
        pairs = with_stereo_depth(open_pairs(bag, recording))
        for exact, matched in zip(recording.frames, pairs.frames, strict=True):
            truth, depth = exact.depth(), matched.depth()
            counted = (truth > 0) & (truth < FARTHEST)
            found = counted & (depth > 0)
            shares.append(found.sum() / counted.sum())
            errors.append(np.abs(depth[found] / truth[found] - 1))
    error = np.concatenate(errors)
    print(f"figure stereo_matching_share {np.mean(shares):.4f}")
    print(f"figure stereo_matching_median {np.median(error):.4f}")
    print(f"figure stereo_matching_wrong {np.mean(error > 0.1):.4f}")


def _sources(parsed: argparse.Namespace) -> None:
    """Print where the smallest photometric error of each pixel lies, by what explains it."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from depth_prior_ros.recordings import open_recording
    from training.data.triplets import load_triplets
    from training.recipes.data import Drive

    torch.set_num_threads(1)
    root = (parsed.out / "rendered").resolve()
    root.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    for plan in TRAINING:
        bag = _render(root, *plan, parsed.frames)
        triplets = load_triplets(root, [Drive(path=bag.name)], (320, 96), 1.0, mode="MS")
        frames, drive = open_recording(bag).frames, triplets.sequences[0]
        for number in range(0, len(drive.triplets), 5):
            frame = frames[drive.triplets[number][1]]
            for which, part, values in _asked(triplets.triplet(0, number), frame):
                found[which, part].append(values)
    table = Table("source", "pixels", "kept", "AbsRel", "depth / truth", "within 1.25", box=None)
    for (which, part), values in found.items():
        means = np.mean(values, 0)
        table.add_row(which, part, *(f"{mean:.3f}" for mean in means))
    Console(width=160).print(table)
    for (which, part), values in found.items():
        print(f"figure stereo_sources_{which}_{part}_d1 {np.mean(values, 0)[-1]:.4f}")


def _asked(batch: Any, frame: Any) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """For sources and parts of a frame: the share that the auto-mask keeps; of it AbsRel of the
    best depth, the median of best depth over truth, and the share within a factor of 1.25."""
    import torch

    from training.losses.photometric import Target, view_errors
    from training.stages.system import motion_sources, views_of

    truth, moving = (torch.from_numpy(np.array(p)) for p in (frame.depth(), frame.moving()))
    target = Target.of(batch.images[:, 1])
    sources = motion_sources(batch.images, "MS")
    views = views_of(batch, batch.K, sources, batch.poses.transpose(0, 1))
    still = view_errors(views.sources, target)[:, 0, 0]
    depths = torch.from_numpy(np.geomspace(2, 100, 40)).float()
    errors = torch.stack(
        [view_errors(views.rebuild(torch.full_like(truth, d)[None, None]), target) for d in depths]
    )[:, :, 0, 0]
    before_after, partner = errors[:, :2].amin(1), errors[:, 2]
    losses = {
        "M": (before_after, still[:2].amin(0)),
        "S": (partner, still[2]),
        "MS": (errors.amin(1), still.amin(0)),
        "MS_mean": ((before_after + partner) / 2, (still[:2].amin(0) + still[2]) / 2),
    }
    seen = (truth > 2) & (truth < 60)
    for part, pixels in (("static", seen & ~moving), ("moving", seen & moving)):
        for which, (loss, unmoved) in losses.items():
            least, place = loss.min(0)
            kept = pixels & (least < unmoved)
            if kept.sum() < 20:
                continue
            ratio = depths[place][kept] / truth[kept]
            right = (ratio.log().abs() < np.log(1.25)).float().mean()
            share, error = kept.sum() / pixels.sum(), (ratio - 1).abs().mean()
            values = (share, error, ratio.median(), right)
            yield which, part, tuple(float(v) for v in values)


def _recipe(
    mode: str,
    seed: int,
    root: Path,
    drives: list[dict[str, str]],
    unit: float,
    parsed: argparse.Namespace,
) -> dict[str, Any]:
    stage = {
        "kind": "self_supervised",
        "train": ["student"] if mode == "S" else ["student", "pose"],
        "steps": parsed.steps,
        "batch": parsed.batch,
        "learning_rate": parsed.rate,
        "warm_up": 20,
        "trunk_rate": 0.5,
        "ema": 0.98,
        "known_pose_weight": 0.0,
        "recorded_motion": parsed.recorded_motion,
    }
    stages = [stage]
    if mode != "S" and parsed.settle:
        settling = {"train": ["pose"], "steps": parsed.settle, "recorded_motion": False}
        stages.insert(0, stage | settling)
    return {
        "seed": seed,
        "size": parsed.size,
        "metres_per_unit": unit,
        "start": "lite",
        "start_networks": ["student", "pose"],
        "networks": {
            "trunk": "mobilenet_v2",
            "decoder": "convex",
            "camera_code": True,
            "multi_frame": {"hypotheses": 8},
        },
        "data": {"root": str(root), "mode": mode, "drives": drives, "split": {"test": "none"}},
        "stages": stages,
        "output": {
            "name": f"stereo_{mode}",
            "licence": "CC-BY-NC-SA-3.0",
            "provenance": ["lite"],
            "multi_frame": False,
        },
        "checkpoint_every": 50,
        "validate_every": 100_000,
    }


def _train(recipe: dict[str, Any], folder: Path) -> Path:
    from training.commands.cli import main as depth_train

    bundle = folder / "bundle"
    if not bundle.exists():
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(recipe))
        code = depth_train(["run", str(file), "--out", str(folder)])
        if code:
            raise SystemExit(code)
    return bundle


def _judge(bundle: str, recordings: list[Path]) -> dict[str, float]:
    """Means over frames of AbsRel by what it is of, and |ratio - 1|."""
    from depth_prior_ros.bundle import load_bundle
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.recordings import open_recording

    pipeline = DepthPipeline(load_bundle(bundle))
    pipeline.force_model = "single_frame"
    pipeline.max_metres = np.inf
    found: dict[str, list[float]] = defaultdict(list)
    for path in recordings:
        pipeline.reset()
        for frame in open_recording(path).frames:
            truth = frame.depth()
            if truth is None:
                continue
            result = pipeline.process(frame.image(), frame.stamp_ns, camera=frame.camera)
            for name, value in _errors(result.depth, truth, frame.moving()):
                found[name].append(value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    for name in (name for name in found if name.startswith("ratio")):
        means[name] = float(np.median(found[name]))
    return means | {"off": abs(means["ratio"] - 1)}


def _errors(depth: Array, truth: Array, moving: Array | None) -> Iterator[tuple[str, float]]:
    import cv2

    if depth.shape != truth.shape:
        depth = cv2.resize(depth, truth.shape[::-1])
    valid = (truth > 0) & (truth < FARTHEST) & np.isfinite(depth)
    ratio = float(np.median(truth[valid] / depth[valid]))
    yield "ratio", ratio
    parts = {"": valid}
    if moving is not None:
        parts |= {"_static": valid & ~moving, "_moving": valid & moving}
    for name, pixels in parts.items():
        if pixels.sum() < 50:
            continue
        quotients = truth[pixels] / depth[pixels]
        yield f"d1_metres{name}", float((np.abs(np.log(quotients)) < np.log(1.25)).mean())
        if name:
            yield f"ratio{name}", float(np.median(quotients))
        for scale, factor in (("scaled", ratio), ("metres", 1.0)):
            said = np.clip(depth[pixels] * factor, 1e-3, FARTHEST)
            error = np.abs(said - truth[pixels]) / truth[pixels]
            yield f"{scale}{name}", float(error.mean())


def _print(rows: dict[tuple[str, int], dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = sorted({name for row in rows.values() for name in row})
    table = Table("mode", "seed", *names, box=None)
    for (mode, seed), row in rows.items():
        table.add_row(mode, str(seed or ""), *(f"{row.get(n, np.nan):.3f}" for n in names))
    Console(width=240).print(table)
    for mode in ("start", *MODES):
        mine = [row for (m, _), row in rows.items() if m == mode]
        for name in _FIGURES:
            values = [row[name] for row in mine if name in row]
            if values:
                print(f"figure stereo_{mode}_{name} {np.mean(values):.4f}")


if __name__ == "__main__":
    main()
