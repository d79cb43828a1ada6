"""What multi-frame depth is worth by parallax: the embedded drive, rendered streets, two drives.

    python benchmarks/parallax.py [--bundle lite ...] [--backend auto] [--data FOLDER]
        [--sets embedded streets 0039 0052] [--seeds 31 32] [--frames 40] [--keyframe 1.0]
        [--pose recorded]

Four depths of the same frames: S, the single-frame network; M plain, the multi-frame network on the
previous frame, as in the papers; M keyframe, the same on the frame that the pipeline chooses; M by
parallax, that blended with S in log depth by parallax and confidence, as the bundle says
(`multi_frame.parallax`; see docs/choice.md). Bins are pixels of parallax that the search range
spans in the keyframe, the same pixels for all four. The motion is the recorded one where there is
one (`--pose recorded`), else the pose network's.
AbsRel after median scaling of each whole image, up to 80 m; a bin's is the mean over its pixels.
The last line of a set is of whole frames again, those whose median parallax is above 4 pixels.
With several bundles (of several seeds) the mean over them, and the standard deviation. `M-S` is M
by parallax minus S, paired by bundle.

With `--threshold` the blend's threshold is tried at several values: what `multi_frame.parallax` was
fitted by.

Figures: `parallax_SET_ROW`, mean AbsRel over frames; `parallax_SET_ROW_FROM_TO`, that of a bin;
`parallax_SET_ROW_median_above_4`. Of several bundles their mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.pipeline.results import matching_weight

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, Motion
    from depth_prior_ros.recordings.base import Frame

Array = NDArray[Any]
BINS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
ROWS = ("single", "plain", "keyframe", "parallax")
THRESHOLDS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
DRIVES = ("0039", "0052")
STREETS = ("residential", "country", "town")
MOVING = 0.5  # m/s
MUCH = 4.0  # pixels: median parallax of a frame that shows plenty


@dataclass(frozen=True)
class Answer:
    """What the multi-frame network said of a frame: depth of S and by matching alone (h, w), any
    unit; confidence (h, w); parallax (h / 4, w / 4) in pixels; region of the image (x, y, width,
    height)."""

    single: Array
    matched: Array
    confidence: Array
    parallax: Array
    region: tuple[int, int, int, int]

    def blended(self, threshold: float) -> Array:
        """From S to matching, as the network does it."""
        if threshold == 0:
            return self.matched
        weight = matching_weight(self.parallax, threshold, self.confidence[::4, ::4])
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
            heard = (1 / numpy(arguments[4]), *map(numpy, output[:3]))
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


@dataclass(frozen=True)
class Line:
    """One line of a bundle's table: label, its end in figures' names, AbsRel by row; share of the
    pixels for a bin, number of frames for whole frames."""

    label: str
    suffix: str
    values: dict[str, float]
    part: float
    binned: bool = False


def whole_frames(label: str, suffix: str, frames: list[Pixels]) -> Line:
    """The mean over frames of each one's AbsRel."""
    values = {row: float(np.mean([f.errors[row].mean() for f in frames])) for row in ROWS}
    return Line(label, suffix, values, len(frames))


def lines_of(frames: list[Pixels]) -> dict[str, Line]:
    """The lines of a set for one bundle, by their suffix."""
    lines = [whole_frames("all frames", "", frames)]
    if moving := [f for f in frames if f.moving]:
        lines.append(whole_frames("moving", "_moving", moving))
    parallax = np.concatenate([f.parallax for f in frames])
    errors = {row: np.concatenate([f.errors[row] for f in frames]) for row in ROWS}
    for low, high in pairwise(BINS):
        inside = (parallax >= low) & (parallax < high)
        if inside.any():
            values = {row: float(errors[row][inside].mean()) for row in ROWS}
            label, suffix = f"{low:g} to {high:g} px", f"_{low:g}_{high:g}"
            lines.append(Line(label, suffix, values, float(inside.mean()), binned=True))
    if much := [f for f in frames if np.median(f.parallax) > MUCH]:
        label, suffix = f"median above {MUCH:g} px", f"_median_above_{MUCH:g}"
        lines.append(whole_frames(label, suffix, much))
    return {line.suffix: line for line in lines}


def report(name: str, bundles: list[list[Pixels]], *, thresholds: bool) -> list[str]:
    """Print a set's table, of one bundle or the mean over several; its figures."""
    figures = []
    tables = [lines_of(frames) for frames in bundles]
    several = len(tables) > 1
    print(f"\n{name:32}" + "".join(f"{r:>18}" for r in (*ROWS, "M-S")))
    for suffix in dict.fromkeys(s for table in tables for s in table):
        lines = [table[suffix] for table in tables if suffix in table]
        part = float(np.mean([line.part for line in lines]))
        binned = lines[0].binned
        label = f"{lines[0].label} " + (f"({part:.1%})" if binned else f"({part:.3g} frames)")
        print(f"{label:32}", end="")
        columns = {row: [line.values[row] for line in lines] for row in ROWS}
        pairs = zip(columns["parallax"], columns["single"], strict=True)
        for values in (*columns.values(), [m - s for m, s in pairs]):
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            print(f"{np.mean(values):.4f}{spread}".rjust(18), end="")
        print(f"  in {len(lines)} of {len(tables)}" if several and len(lines) < len(tables) else "")
        figures += [f"parallax_{name}_{row}{suffix} {np.mean(v):.4f}" for row, v in columns.items()]
        if binned:
            figures.append(f"parallax_{name}_share{suffix} {part:.4f}")
    for what in ("all", "moving") if thresholds else ():
        chosen = [f for frames in bundles for f in frames if what == "all" or f.moving]
        if chosen:
            by = {t: np.mean([f.thresholds[t] for f in chosen]) for t in THRESHOLDS}
            tried = "  ".join(f"{t:g}: {by[t]:.4f}" for t in THRESHOLDS)
            print(f"  threshold ({what}) {tried}")
    return figures


@lru_cache
def rendered(seed: int, count: int, size: tuple[int, int], street: str) -> list[Frame]:
    """The frames of a rendered street in memory: every bundle looks at them twice."""
    from depth_prior_ros.recordings.synthetic.drive import street_drive

    drive = street_drive(seed, count, size, street=street, stop=False)
    kept = []
    for frame in drive.frames:
        image, depth = frame.image(), frame.depth()
        assert depth is not None
        kept.append(
            replace(frame, load_image=partial(_same, image), load_depth=partial(_same, depth))
        )
    drive.close()
    return kept


def _same(values: Array) -> Array:
    return values


def recordings(arguments: argparse.Namespace, size: tuple[int, int]) -> Iterator[tuple[Any, ...]]:
    """Name, frames and protocol of what is evaluated; streets of one name belong together."""
    from depth_prior_ros.recordings import open_recording
    from depth_prior_ros.share import demo_bag

    if "embedded" in arguments.sets:
        yield "embedded", open_recording(demo_bag()).frames, "synthetic"
    if "streets" in arguments.sets:
        for number, seed in enumerate(arguments.seeds):
            street = STREETS[number % len(STREETS)]
            yield "streets", rendered(seed, arguments.frames, size, street), "synthetic"
    for number in DRIVES:
        if number not in arguments.sets:
            continue
        folders = sorted(Path(arguments.data or ".").rglob(f"2011_09_26_drive_{number}_sync"))
        if not folders:
            print(f"drive {number} is left out: not below {arguments.data or 'DEPTH_PRIOR_DATA'}")
        for folder in folders[:1]:
            yield number, open_recording(folder).frames, "eigen"


def measure(bundle: str, arguments: argparse.Namespace) -> dict[str, list[Pixels]]:
    """What one bundle says of all sets."""
    from depth_prior_ros.pipeline.keyframes import KEYFRAME_METRES

    listener = Listener(bundle, arguments.backend)
    pipeline = listener.pipeline
    threshold = getattr(pipeline.bundle.multi_frame(), "parallax", 0.0)
    metres = KEYFRAME_METRES if arguments.keyframe is None else arguments.keyframe
    print(f"{bundle} on {pipeline.backend}, threshold {threshold:g} pixels", flush=True)
    found: dict[str, list[Pixels]] = defaultdict(list)
    for name, frames, protocol in recordings(arguments, pipeline.bundle.manifest.input_size):
        recorded = arguments.pose == "recorded" and frames[0].pose is not None
        found[name] += compare(listener, frames, protocol, threshold, metres, recorded=recorded)
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", nargs="+", default=["lite"], help="names or paths")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--data", default=os.environ.get("DEPTH_PRIOR_DATA"))
    sets = ["embedded", "streets", *DRIVES]
    parser.add_argument("--sets", nargs="+", default=sets[:3], choices=sets)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--frames", type=int, default=40, help="of every street")
    parser.add_argument("--keyframe", type=float, default=None, help="metres; the pipeline's own")
    parser.add_argument("--pose", choices=["recorded", "network"], default="recorded")
    parser.add_argument("--threshold", action="store_true", help="try several")
    arguments = parser.parse_args()

    measured = [measure(bundle, arguments) for bundle in arguments.bundle]
    figures = []
    for name in measured[0]:
        of_bundles = [found[name] for found in measured]
        figures += report(name, of_bundles, thresholds=arguments.threshold)
    print()
    for figure in figures:
        print(f"figure {figure}")


if __name__ == "__main__":
    main()
