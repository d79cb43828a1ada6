"""What references of its own camera do for a student: streets and cameras that it has never seen.

    python benchmarks/episodic_prior.py [--bundle BUNDLE] [--seed 0] [--codes 40] [--global lite]

Renders (once, about ten minutes) 40 streets with a camera of their own each, and 40 other streets
with the same cameras. Three frames of a street are the references of the other three. Rows: no
references, references, the five numbers of the camera fitted to the same frames (code), both; exact
depth, depth with smooth errors of 12 %, depth by the bundle's own multi-frame network with odometry
that is 5 % off at random from step to step. `--global` names the bundle that the look-up was
trained on, if that has a set out of its training frames, as in the paper (`lite` has): rows with
its set, with the set's depths exchanged, and with both looked up. AbsRel is of depth in metres at
the centres of 8x8 pixels, and after median scaling (in brackets); the mean over frames. Codes are
fitted on the first `--codes` streets alone, on which both other rows are repeated. Without
DEPTH_PRIOR_DATA textures are drawn, not photographed: other streets.

Figures: `episodic_ROW`, AbsRel in metres.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.episodic_prior import References, pooled_depth
from depth_prior_ros.models.prior_fusion import Prior, blend_disparity
from depth_prior_ros.models.student import Student
from depth_prior_ros.recordings.synthetic.samples import write_samples
from depth_prior_ros.scale.state import focal_ratio
from training.data.pairs import SampleSet
from training.stages.episodic import (
    Matcher,
    SeenFrame,
    cell_depth,
    draw_references,
    matched_frames,
    picture,
    see,
    smooth_noise,
    with_matches,
)

FRAMES, STREETS = 6, 40
SEED, OTHER_SEED = 7701, 8801
COUNT = 1000
COUNTS = (10, 25, 50, 100, 250, 500, 1000)
TEXTURES = (
    "kitti_raw/2011_09_26/2011_09_26_drive_0095_sync",
    "kitti_raw/2011_09_26/2011_09_26_drive_9001_sync",
    "kitti_odometry/sequences/03",
)
NOISE, ODOMETRY = 0.12, 0.05
FIGURES = {
    "none": "none",
    "global": "global set",
    "global_and_own": "global set, and own street, exact",
    "own_exact": "own street, exact",
    "own_noisy": "own street, 12 % errors",
    "own_multi_frame": "own street, multi-frame",
    "same_camera": "other street, same camera, exact",
    "another_camera": "another camera, exact",
    "code_own_multi_frame": "code, own street, multi-frame",
}


@dataclass
class Errors:
    """AbsRel of frames in metres and after median scaling, and the share within 25 %."""

    metric: list[float] = field(default_factory=list)
    scaled: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """One frame: two maps of depth, truth 0 where unknown."""
        known = truth > 0
        p, t = predicted[known], truth[known]
        self.metric.append(float(((p - t) / t).abs().mean()))
        p_scaled = p * (t.median() / p.median())
        self.scaled.append(float(((p_scaled - t) / t).abs().mean()))
        self.within.append(float((torch.maximum(p / t, t / p) < 1.25).float().mean()))

    def row(self) -> str:
        """As it is printed."""
        m, s, w = (np.mean(values) for values in (self.metric, self.scaled, self.within))
        return f"{m:7.3f} ({s:.3f}) {w:7.3f}"


@dataclass
class Street:
    """A recording: its frames as seen, with exact depth, and with that of the multi-frame net.

    The latter as `adapt` takes it, of the frames that are references; of the others with none.
    """

    images: list[Tensor]
    exact: list[SeenFrame]
    matched: list[SeenFrame]


def recordings(
    folder: Path, seed: int, camera_seed: int | None, size: tuple[int, int]
) -> SampleSet:
    """The streets of a seed, rendered where they are missing."""
    root = Path(os.environ.get("DEPTH_PRIOR_DATA", "/nowhere"))
    images = [p for d in TEXTURES for p in sorted((root / d).glob("image_0*/**/*"))]
    write_samples(
        folder,
        STREETS * FRAMES,
        size,
        seed,
        [p for p in images if p.suffix in (".jpg", ".png")],
        dense=0.2,
        cameras=1.0,
        frames_per_street=FRAMES,
        camera_seed=camera_seed,
    )
    return SampleSet(folder)


def look(
    samples: SampleSet, bundle: Bundle, student: Student, matcher: Matcher, seed: int, unit: float
) -> list[Street]:
    """All streets of a set as the student sees them; depth in its units."""
    rng = np.random.default_rng(seed)
    trained = bundle.manifest.camera
    streets = []
    for first in range(0, STREETS * FRAMES, FRAMES):
        street = Street([], [], [])
        seen: list[SeenFrame] = []
        for i in range(first, first + FRAMES):
            row = samples[i]
            K = row["K"]
            factor = unit * focal_ratio(float(K[0, 0]), float(K[1, 1]), trained.fx, trained.fy)
            image = picture(row["images"][1])
            exact = see(student, image, cell_depth(row["depth"][1]) / factor)
            street.images.append(image)
            street.exact.append(exact)
            matched = [matcher.keyframe(row)] if i - first >= FRAMES // 2 else [None]
            seen += with_matches([exact], matched, [factor])
        none = [replace(frame, depth=frame.depth * 0) for frame in seen]
        half = FRAMES // 2
        street.matched += none[:half] + (matched_frames(seen[half:], ODOMETRY, rng) or none[half:])
        streets.append(street)
    return streets


class GlobalSet:
    """A student that looks up a set out of its training frames, told no camera."""

    def __init__(self, bundle: Bundle) -> None:
        self.student, self.prior = bundle.student(), bundle.prior()

    @torch.no_grad()
    def see(self, image: Tensor, seen: SeenFrame, prior: Prior) -> SeenFrame:
        """A frame (1, 3, H, W) that was seen without the set, with it."""
        student = self.student
        assert student.fusion is not None
        features = student.features(image)
        fused = student.fusion(student.at_fusion(features), prior)
        told = student.with_fused(features, fused.features)
        disparity, maps = student.decoder.with_maps(told, (0,))
        own = pooled_depth(disparity_to_depth(blend_disparity(disparity[0], fused))[0])
        return SeenFrame(seen.keys, seen.depth, maps[3].half(), own)

    def exchanged(self, rng: np.random.Generator) -> Prior:
        """The set with its depths exchanged among each other."""
        order = torch.from_numpy(rng.permutation(len(self.prior.inverse_depth)))
        return replace(self.prior, inverse_depth=self.prior.inverse_depth[order])


def noisy(frames: Sequence[SeenFrame], rng: np.random.Generator) -> list[SeenFrame]:
    """The frames with smooth errors of depth, and without half of it."""
    found = []
    for frame in frames:
        error = smooth_noise(frame.depth.shape[2:], rng, NOISE).exp()
        kept = torch.from_numpy(rng.random(frame.depth.shape) < 0.5)
        found.append(SeenFrame(frame.keys, frame.depth * error * kept, frame.decoded, frame.own))
    return found


def any_known(frames: Sequence[SeenFrame]) -> bool:
    """Whether there is depth to look up."""
    return any(bool((frame.depth > 0).any()) for frame in frames)


@torch.no_grad()
def looked_up(
    student: Student, queries: Sequence[SeenFrame], references: References | None
) -> list[Tensor]:
    """Depth of the queries at cells, with references or without."""
    if references is None:
        return [frame.own for frame in queries]
    assert student.episodic is not None
    found = student.episodic.project([references], len(references))
    return [
        frame.own * student.episodic(frame.decoded.float(), frame.own, found).exp()
        for frame in queries
    ]


def shuffled(references: References, rng: np.random.Generator) -> References:
    """The references with their depths exchanged among each other."""
    order = torch.from_numpy(rng.permutation(len(references)))
    return References(references.features, references.position, references.inverse_depth[order])


def fitted_queries(
    student: Student,
    street: Street,
    frames: Sequence[SeenFrame],
    images: Sequence[Tensor],
) -> list[SeenFrame]:
    """The first half of a street as seen with numbers that were fitted to other frames."""
    from depth_prior_ros.adaptation.camera_code import fit_camera_code

    depth = [frame.depth[0, 0] for frame in frames]
    code = fit_camera_code(student, [image[0] for image in images], depth)
    told = torch.tensor([code])
    pairs = zip(street.images[: FRAMES // 2], street.exact, strict=False)
    return [see(student, image, frame.depth, told) for image, frame in pairs]


def table_of_streets(
    bundle: Bundle, data: Path, seed: int, codes: int, unit: float, paper: GlobalSet | None = None
) -> dict[str, Errors]:
    """All rows on rendered streets; `unit` is in metres, `paper` the student with a set."""
    student = bundle.student()
    assert student.episodic is not None
    # More than there is room for in an exported network: how many would help?
    student.episodic.config = replace(student.episodic.config, capacity=max(COUNTS))
    size = bundle.manifest.input_size
    matcher = Matcher(bundle.student(), bundle.pose(), bundle.multi_frame(), bundle.manifest.camera)
    rendered = recordings(data / "test", SEED, None, size)
    own = look(rendered, bundle, student, matcher, seed, unit)
    rendered = recordings(data / "same_camera", OTHER_SEED, SEED, size)
    other = look(rendered, bundle, student, matcher, seed + 1, unit)
    rng = np.random.default_rng([seed, 7])
    rows: dict[str, Errors] = {}
    half = FRAMES // 2

    def add(name: str, queries: Sequence[SeenFrame], references: References | None) -> None:
        errors = rows.setdefault(name, Errors())
        for frame, depth in zip(queries, looked_up(student, queries, references), strict=True):
            errors.add(depth, frame.depth)

    def draw(frames: Sequence[SeenFrame], count: int = COUNT) -> References | None:
        return draw_references(frames, count, rng) if any_known(frames) else None

    for number, street in enumerate(own):
        queries, rest = street.exact[:half], street.exact[half:]
        elsewhere, stranger = other[number], own[(number + 1) % len(own)]
        add("none", queries, None)
        add("none, one factor fitted", _rescaled(queries, rest), None)
        add("own street, exact", queries, draw(rest))
        add("own street, 12 % errors", queries, draw(noisy(rest, rng)))
        add("own street, multi-frame", queries, draw(street.matched[half:]))
        add("other street, same camera, exact", queries, draw(elsewhere.exact[half:]))
        add("other street, same camera, multi-frame", queries, draw(elsewhere.matched[half:]))
        add("another camera, exact", queries, draw(stranger.exact[half:]))
        references = draw(rest)
        assert references is not None
        add("own street, depths exchanged", queries, shuffled(references, rng))
        for count in COUNTS:
            add(f"own street, {count} references", queries, draw(rest, count))
        if paper is not None:
            pairs = list(zip(street.images, street.exact, strict=True))[:half]
            fused = [paper.see(image, frame, paper.prior) for image, frame in pairs]
            exchanged = paper.exchanged(rng)
            add("global set", fused, None)
            add(
                "global set, depths exchanged", [paper.see(i, f, exchanged) for i, f in pairs], None
            )
            add("global set, and own street, exact", fused, draw(rest))
    for number, street in enumerate(own[:codes]):
        add("streets with codes: none", street.exact[:half], None)
        add("streets with codes: own street, exact", street.exact[:half], draw(street.exact[half:]))
        kinds = {
            "own street, exact": (street.exact, street.images),
            "own street, multi-frame": (street.matched, street.images),
            "other street, same camera, exact": (other[number].exact, other[number].images),
            "another camera, exact": (
                own[(number + 1) % len(own)].exact,
                own[(number + 1) % len(own)].images,
            ),
        }
        for kind, (frames, images) in kinds.items():
            if not any_known(frames[half:]):
                continue
            queries = fitted_queries(student, street, frames[half:], images[half:])
            add(f"code, {kind}", queries, None)
            add(f"both, {kind}", queries, draw(frames[half:]))
    return rows


def _rescaled(queries: Sequence[SeenFrame], references: Sequence[SeenFrame]) -> list[SeenFrame]:
    """The queries with their own depth times what scales the references' medians right."""
    logs = [(f.depth / f.own).log()[f.depth > 0] for f in references]
    factor = torch.cat(logs).median().exp()
    return [SeenFrame(f.keys, f.depth, f.decoded, f.own * factor) for f in queries]


def main() -> int:
    """Print the tables, then the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--data", type=Path, default=Path("runs/episodic_streets"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--codes", type=int, default=STREETS, help="streets that codes are fitted on"
    )
    parser.add_argument(
        "--metres-per-unit",
        type=float,
        help="of the student's depth; default: the bundle's, which was fitted to real drives. "
        "Recipes train on rendered streets with 10",
    )
    parser.add_argument(
        "--global",
        dest="paper",
        metavar="BUNDLE",
        help="whose student with its set gives the rows of the global set",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(options.bundle)
    unit = options.metres_per_unit or bundle.manifest.depth.metres_per_unit
    paper = None if options.paper is None else GlobalSet(load_bundle(options.paper))
    rows = table_of_streets(bundle, options.data, options.seed, options.codes, unit, paper)
    print(f"{options.bundle}, {STREETS} streets, seed {options.seed}, {unit:.2f} m a unit")
    print(f"{'AbsRel in metres (after scaling), within 25 %':50s}")
    for name, errors in rows.items():
        print(f"{name:50s}{errors.row()}", flush=True)
    for name, row in FIGURES.items():
        if row in rows:
            print(f"figure episodic_{name} {np.mean(rows[row].metric):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
