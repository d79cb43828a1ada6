"""What multi-frame depth is worth by parallax: the embedded drive, rendered streets, drive 0039.

    python benchmarks/parallax.py [--bundle lite] [--backend auto] [--data FOLDER] [--seeds 31 32]
        [--frames 40] [--keyframe 1.0] [--pose recorded]

Four depths of the same frames: S, the single-frame network; M plain, the multi-frame network on the
previous frame, as in the papers; M keyframe, the same on the frame that the pipeline chooses; M by
parallax, that blended with S in log depth as the bundle says (`multi_frame.parallax`; see
docs/choice.md). Bins are pixels of parallax that the search range spans in the keyframe, the same
pixels for all four. The motion is the recorded one where there is one (`--pose recorded`), else the
pose network's.
AbsRel after median scaling of each whole image, up to 80 m; a bin's is the mean over its pixels.

With `--threshold` the blend's threshold is tried at several values: what `multi_frame.parallax` was
fitted by.

Figures: `parallax_SET_ROW`, mean AbsRel over frames; `parallax_SET_ROW_FROM_TO`, that of a bin.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, Motion
    from depth_prior_ros.recordings.base import Frame

Array = NDArray[Any]
BINS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
ROWS = ("single", "plain", "keyframe", "parallax")
THRESHOLDS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
STREETS = ("residential", "country", "town")
MOVING = 0.5  # m/s


@dataclass(frozen=True)
class Answer:
    """What the multi-frame network said of a frame: depth of S and by matching alone (h, w), any
    unit; parallax (h / 4, w / 4) in pixels; region of the image (x, y, width, height)."""

    single: Array
    matched: Array
    parallax: Array
    region: tuple[int, int, int, int]

    def blended(self, threshold: float) -> Array:
        """From S to matching by parallax, as `models.search_range` does it."""
        if threshold == 0:
            return self.matched
        weight = np.clip(self.parallax / (threshold / 2) - 1, 0, 1)
        weight = cv2.resize(weight, (self.single.shape[1], self.single.shape[0]))
        return self.single * (self.matched / self.single) ** weight


@dataclass(frozen=True)
class Pixels:
    """The compared pixels of a frame: parallax, and relative errors by row, each (N,)."""

    parallax: Array
    errors: dict[str, Array]
    thresholds: dict[float, float]
    moving: bool


class Listener:
    """The pipeline with matching alone, and what its multi-frame network is given and says."""

    def __init__(self, bundle: str, backend: str) -> None:
        from depth_prior_ros.pipeline import DepthPipeline

        self.pipeline: DepthPipeline = DepthPipeline(bundle, backend, parallax=0.0)
        self.pipeline.max_metres = float("inf")
        self.pipeline.force_model = "multi_frame"
        networks = self.pipeline.networks
        multi, numpy = networks.multi, networks.backend.to_numpy
        self._heard: tuple[Array, ...] | None = None

        def listen(*arguments: Any) -> Any:
            output = multi(*arguments)
            heard = (1 / numpy(arguments[4]), numpy(output[0]), numpy(output[2]))
            self._heard = tuple(values[0, 0].copy() for values in heard)
            return output

        networks.multi = listen  # type: ignore[method-assign, assignment]

    def follow(
        self, frames: Sequence[Frame], positions: Sequence[int], metres: float, *, recorded: bool
    ) -> Iterator[tuple[int, Answer]]:
        """Positions and answers of those frames; frames before them are shown as on a vehicle."""
        from depth_prior_ros.pipeline.keyframes import KEYFRAME_SECONDS

        self.pipeline.reset()
        self.pipeline.keyframe_metres = metres
        self.pipeline.pose_source = "odometry" if recorded else "network"
        stamps, wanted, before = [f.stamp_ns for f in frames], set(positions), None
        for i, frame in enumerate(frames):
            ahead = [stamps[j] for j in positions if j >= i]
            if not ahead or ahead[0] - frame.stamp_ns > KEYFRAME_SECONDS * 1e9:
                continue
            self._heard = None
            motion = motion_of(frame, before if recorded else None)
            result = self.pipeline.process(frame.image(), frame.stamp_ns, motion, frame.camera)
            before = frame
            if i in wanted and self._heard is not None:
                region = result.region
                window = (region.x, region.y, region.width, region.height)
                yield i, Answer(*self._heard, window)


def motion_of(frame: Frame, before: Frame | None) -> Motion:
    """Speed and, where both frames have a pose, the motion between them."""
    from depth_prior_ros.motion.gate import Motion
    from depth_prior_ros.motion.odometry import rigid_inverse

    pose = None
    if before is not None and before.pose is not None and frame.pose is not None:
        pose = rigid_inverse(before.pose) @ frame.pose
    return Motion(frame.speed, "odometry", pose)


def errors_of(frame: Frame, protocol: str, answers: dict[str, Array], keyed: Answer) -> Pixels:
    """Errors of several depths (h, w) of one frame's region."""
    from depth_prior_ros.evaluation.protocols import PROTOCOLS

    truth = frame.depth()
    assert truth is not None
    pixels = PROTOCOLS[protocol].truth(truth, keyed.region)
    parallax = cv2.resize(keyed.parallax, pixels.size[::-1], interpolation=cv2.INTER_NEAREST)

    def errors(depth: Array) -> Array:
        found = pixels.compare(depth)
        scaled = np.clip(found.predicted * found.ratio, 1e-3, 80.0)
        return np.asarray(np.abs(scaled - found.expected) / found.expected)

    tried = {t: float(errors(keyed.blended(t)).mean()) for t in THRESHOLDS}
    return Pixels(
        parallax.reshape(-1)[pixels.index],
        {name: errors(depth) for name, depth in answers.items()},
        tried,
        frame.speed is None or abs(frame.speed) >= MOVING,
    )


def compare(
    listener: Listener,
    frames: Sequence[Frame],
    protocol: str,
    threshold: float,
    metres: float,
    *,
    recorded: bool,
) -> list[Pixels]:
    """All frames with depth that follow another one."""
    positions = [i for i, frame in enumerate(frames) if i and frame.has_depth]
    plain = dict(listener.follow(frames, positions, 0.0, recorded=recorded))
    found = []
    for i, keyed in listener.follow(frames, positions, metres, recorded=recorded):
        if i not in plain:
            continue
        answers = {
            "single": keyed.single,
            "plain": plain[i].matched,
            "keyframe": keyed.matched,
            "parallax": keyed.blended(threshold),
        }
        found.append(errors_of(frames[i], protocol, answers, keyed))
    return found


def report(name: str, frames: list[Pixels], *, thresholds: bool) -> list[str]:
    """Print a set's tables; its figures."""
    figures = []
    for what, chosen in (("all", frames), ("moving", [f for f in frames if f.moving])):
        if not chosen:
            continue
        means = {row: np.mean([f.errors[row].mean() for f in chosen]) for row in ROWS}
        print(
            f"\n{name}, {len(chosen)} frames ({what})" + " " * 6 + "".join(f"{r:>10}" for r in ROWS)
        )
        print(f"{'AbsRel':>30}" + "".join(f"{means[row]:10.4f}" for row in ROWS))
        suffix = "" if what == "all" else f"_{what}"
        figures += [f"parallax_{name}_{row}{suffix} {means[row]:.4f}" for row in ROWS]
        if thresholds:
            by = {t: np.mean([f.thresholds[t] for f in chosen]) for t in THRESHOLDS}
            print("  threshold " + "  ".join(f"{t:g}: {by[t]:.4f}" for t in THRESHOLDS))
    parallax = np.concatenate([f.parallax for f in frames])
    errors = {row: np.concatenate([f.errors[row] for f in frames]) for row in ROWS}
    for low, high in pairwise(BINS):
        inside = (parallax >= low) & (parallax < high)
        if not inside.any():
            continue
        values = {row: errors[row][inside].mean() for row in ROWS}
        share = f"{low:g} to {high:g} px ({inside.mean():.1%})"
        print(f"{share:>30}" + "".join(f"{values[row]:10.4f}" for row in ROWS))
        place = f"{low:g}_{high:g}"
        figures += [f"parallax_{name}_{row}_{place} {values[row]:.4f}" for row in ROWS]
        figures.append(f"parallax_{name}_share_{place} {inside.mean():.4f}")
    return figures


def recordings(arguments: argparse.Namespace, size: tuple[int, int]) -> Iterator[tuple[Any, ...]]:
    """Name, frames and protocol of what is evaluated; streets of one name belong together."""
    from depth_prior_ros.recordings import open_recording
    from depth_prior_ros.recordings.synthetic.drive import street_drive
    from depth_prior_ros.share import demo_bag

    if "embedded" in arguments.sets:
        yield "embedded", open_recording(demo_bag()).frames, "synthetic"
    if "streets" in arguments.sets:
        for number, seed in enumerate(arguments.seeds):
            street = STREETS[number % len(STREETS)]
            drive = street_drive(seed, arguments.frames, size, street=street, stop=False)
            yield "streets", drive.frames, "synthetic"
            drive.close()
    if "0039" in arguments.sets:
        folders = sorted(Path(arguments.data or ".").rglob("2011_09_26_drive_0039_sync"))
        if not folders:
            print(f"drive 0039 is left out: not below {arguments.data or 'DEPTH_PRIOR_DATA'}")
        for folder in folders[:1]:
            yield "0039", open_recording(folder).frames, "eigen"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="lite", help="name or path")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--data", default=os.environ.get("DEPTH_PRIOR_DATA"))
    parser.add_argument("--sets", nargs="+", default=["embedded", "streets", "0039"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--frames", type=int, default=40, help="of every street")
    parser.add_argument("--keyframe", type=float, default=None, help="metres; the pipeline's own")
    parser.add_argument("--pose", choices=["recorded", "network"], default="recorded")
    parser.add_argument("--threshold", action="store_true", help="try several")
    arguments = parser.parse_args()

    from depth_prior_ros.pipeline.keyframes import KEYFRAME_METRES

    listener = Listener(arguments.bundle, arguments.backend)
    pipeline = listener.pipeline
    threshold = getattr(pipeline.bundle.multi_frame(), "parallax", 0.0)
    metres = KEYFRAME_METRES if arguments.keyframe is None else arguments.keyframe
    print(f"{pipeline.bundle.manifest.name} on {pipeline.backend}, threshold {threshold:g} pixels")
    found: dict[str, list[Pixels]] = defaultdict(list)
    for name, frames, protocol in recordings(arguments, pipeline.bundle.manifest.input_size):
        recorded = arguments.pose == "recorded" and frames[0].pose is not None
        found[name] += compare(listener, frames, protocol, threshold, metres, recorded=recorded)
    figures = []
    for name, pixels in found.items():
        figures += report(name, pixels, thresholds=arguments.threshold)
    print()
    for figure in figures:
        print(f"figure {figure}")


if __name__ == "__main__":
    main()
