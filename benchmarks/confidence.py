"""Does the confidence rank errors? Sparsification on rendered streets and on a real drive.

    python benchmarks/confidence.py [--bundle lite] [--pairs 48] [--frames 77] [--keep DIR]
    python benchmarks/confidence.py --fit [--pairs 96]

Pixels are taken away, the least sure first, in steps of a twentieth; after each step the mean
absolute relative error of the rest is noted. AUSE is the area between that curve and the one of an
oracle that takes the largest errors first (Ilg et al., 2018), per image, then averaged. Given is
the ratio to the AUSE of random order: 0 is the oracle, 1 is no better than chance.

Sets: `pairs`, rendered at random with a seed that nothing was trained or fitted with; `street`, the
drive that comes with the package; `0052`, KITTI raw 2011_09_26 with its LiDAR, where
DEPTH_PRIOR_DATA is set. Depth is scaled by the median of each image. Both networks answer every
frame that has a predecessor, through the pipeline and with the confidence that it publishes.

Beside the confidence stand orders that cost nothing: near first (`depth`), the probability mass of
the matching (`mass`), the fusion's entropy alone, and the confidence with entropy among its cues.
`right` is the share of pixels within a factor of 1.25 of the truth, `sure` the mean confidence,
which means the same; `ECE` is their expected difference in ten bins of confidence.

`--fit` fits the constants of `depth_prior_ros/pipeline/results.py` to pairs of yet another seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depth_prior_ros.bundle import load_bundle  # noqa: E402
from depth_prior_ros.evaluation.protocols import PROTOCOLS, Protocol  # noqa: E402
from depth_prior_ros.geometry.camera import Camera  # noqa: E402
from depth_prior_ros.pipeline import DepthPipeline  # noqa: E402
from depth_prior_ros.pipeline import pipeline as pipeline_module  # noqa: E402
from depth_prior_ros.pipeline.framing import frame_image  # noqa: E402
from depth_prior_ros.pipeline.results import Weights, combine, cues  # noqa: E402
from depth_prior_ros.recordings import open_recording  # noqa: E402
from depth_prior_ros.recordings.synthetic.samples import write_samples  # noqa: E402
from depth_prior_ros.share import demo_bag  # noqa: E402

FIT_SEED, TEST_SEED = 501, 502
FRAME_NS = 10**8
STEPS = 20
PIXELS = 20_000  # of one image, at most: ranks of more say the same
FIT_PIXELS = 4_000
RIGHT = 1.25
DRIVE = "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"
Array = np.ndarray


@dataclass(frozen=True)
class Shot:
    """A frame and the one before: what goes in, and the truth."""

    previous: Array
    current: Array
    camera: Camera
    truth: Array


@dataclass(frozen=True)
class Maps:
    """What the networks said of one shot: (h, w) at the network's size; mass and entropy may be
    smaller.

    sure: the confidence that is published.
    """

    single: Array
    multi: Array | None
    sure: Array
    mass: Array | None
    entropy: Array | None
    truth: Array


# -- what there is to look at ------------------------------------------------------------------


def pairs(folder: Path, count: int, seed: int) -> Iterator[Shot]:
    """Rendered pairs; drawn now where the folder does not hold them."""
    out = folder / f"pairs_{seed}_{count}"
    write_samples(out, count, seed=seed, progress=False)
    for shard in sorted(out.glob("shard_*")):
        images, depth, matrices = (
            np.load(shard / f"{name}.npy") for name in ("images", "depth", "K")
        )
        for i in range(len(images)):
            camera = Camera.from_matrix(matrices[i], images.shape[3], images.shape[2])
            yield Shot(*images[i], camera, depth[i, 1].astype(np.float32))


def drive(path: Path, count: int) -> Iterator[Shot]:
    """Frames with depth that directly follow another, at most `count`, spread over the drive."""
    recording = open_recording(path)
    frames = recording.frames
    usable = [
        i for i in range(1, len(frames)) if frames[i].has_depth and not recording.gap_before(i)
    ]
    chosen = np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round())
    for i in (usable[int(k)] for k in chosen):
        truth = frames[i].depth()
        assert truth is not None
        yield Shot(frames[i - 1].image(), frames[i].image(), frames[i].camera, truth)


class Looker:
    """Runs the pipeline and keeps what it hands to `combine`, and what it publishes."""

    def __init__(self, bundle: str, backend: str) -> None:
        import torch

        torch.set_num_threads(1)
        loaded = load_bundle(bundle)
        self.pipeline = DepthPipeline(loaded, backend, "cpu")
        self._student = loaded.student().eval()
        self._prior = loaded.prior() if loaded.has("prior") else None
        self._given: list[tuple[Array, Array | None]] = []
        self._mass: Array | None = None
        networks = self.pipeline.networks
        run = networks.multi

        def multi(*arguments: Any) -> Any:
            found = run(*arguments)
            self._mass = networks.backend.to_numpy(found.confidence)[0, 0].copy()
            return found

        networks.multi = multi  # type: ignore[method-assign]
        if networks.has_multi_frame:
            self.pipeline.force_model = "multi_frame"

    def __call__(self, shot: Shot) -> Maps:
        self.pipeline.reset()
        self._given, self._mass = [], None

        def keep(single: Array, multi: Array | None = None) -> Array:
            self._given.append((single.copy(), None if multi is None else multi.copy()))
            return combine(single, multi)

        kept, pipeline_module.combine = pipeline_module.combine, keep  # type: ignore[assignment]
        try:
            self.pipeline.process(shot.previous, 0, camera=shot.camera)
            result = self.pipeline.process(
                shot.current, FRAME_NS, camera=shot.camera, confidence=True
            )
        finally:
            pipeline_module.combine = kept
        single, multi = self._given[0]
        assert result.confidence is not None
        return Maps(single, multi, result.confidence, self._mass, self._entropy(shot), shot.truth)

    def _entropy(self, shot: Shot) -> Array | None:
        import torch

        if self._prior is None:
            return None
        trained = self.pipeline.bundle.manifest.camera
        framed = frame_image(shot.current, shot.camera, trained)
        with torch.no_grad():
            output = self._student(torch.from_numpy(framed.tensor()), self._prior, entropy=True)
        return None if output.entropy is None else output.entropy[0, 0].numpy()


# -- errors and ranks --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """The pixels of one image that have truth: relative error, right or not, where they are."""

    error: Array
    right: Array
    index: Array
    shape: tuple[int, ...]

    def at(self, values: Array) -> Array:
        """A map of any size at these pixels."""
        size = (self.shape[1], self.shape[0])
        values = values.astype(np.float32)
        if values.shape != self.shape:
            values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        return values.reshape(-1)[self.index]


def compared(inverse: Array, truth: Array, protocol: Protocol, count: int) -> Pixels:
    """At most `count` pixels, chosen at random, scaled by the median of all."""
    found = protocol.pixels(1.0 / inverse, truth)
    chosen = np.random.default_rng(0).permutation(len(found.index))[:count]
    depth = np.clip(found.predicted * found.ratio, found.min_depth, found.max_depth)[chosen]
    expected = found.expected[chosen]
    error = np.abs(depth - expected) / expected
    right = np.maximum(depth / expected, expected / depth) < RIGHT
    return Pixels(error, right, found.index[chosen], truth.shape[:2])


def sparsification(error: Array, sure: Array) -> Array:
    """Mean error of what is left when 0, 1, ... STEPS - 1 twentieths of the pixels are gone."""
    ranked = error[np.argsort(-sure, kind="stable")]
    means = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    left = np.round(len(ranked) * (1 - np.arange(STEPS) / STEPS)).astype(int)
    return means[np.maximum(left, 1) - 1]


def area(curve: Array) -> float:
    """Under a curve over the share that is gone, by trapezoids."""
    return float((curve[1:] + curve[:-1]).sum() / 2 / STEPS)


def ause(error: Array, sure: Array) -> float:
    """The area between the sparsification by `sure` and by the error itself."""
    return area(sparsification(error, sure)) - area(sparsification(error, -error))


@dataclass
class Column:
    """One set and one network: sums over its images."""

    areas: dict[str, list[float]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    sure: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)

    def add(self, pixels: Pixels, orders: dict[str, Array]) -> None:
        """Take one image up."""
        chance = np.random.default_rng(1).random(len(pixels.error))
        for name, order in {**orders, "random": chance}.items():
            self.areas.setdefault(name, []).append(ause(pixels.error, order))
        self.errors.append(float(pixels.error.mean()))
        self.sure.append(orders["confidence"])
        self.right.append(pixels.right)

    def ause(self, name: str) -> float:
        """Mean over the images; NaN where this order was not there."""
        return float(np.mean(self.areas[name])) if name in self.areas else float("nan")

    def ratio(self, name: str = "confidence") -> float:
        """AUSE of an order over that of random order."""
        return self.ause(name) / self.ause("random")

    def calibration(self) -> tuple[float, float, float]:
        """Mean confidence, share of right pixels, expected calibration error."""
        sure, right = np.concatenate(self.sure), np.concatenate(self.right)
        bins = np.clip((sure * 10).astype(int), 0, 9)
        ece = 0.0
        for k in range(10):
            inside = bins == k
            if inside.any():
                ece += float(abs(sure[inside].mean() - right[inside].mean()) * inside.mean())
        return float(sure.mean()), float(right.mean()), ece


def columns(shots: Iterator[Shot], look: Looker, protocol: Protocol) -> dict[str, Column]:
    """single_frame and multi_frame of one set."""
    table = {"single_frame": Column(), "multi_frame": Column()}
    for shot in shots:
        maps = look(shot)
        for name, published in (("single_frame", maps.single), ("multi_frame", maps.multi)):
            if published is None:
                continue
            multi = None if name == "single_frame" else maps.multi
            pixels = compared(published, maps.truth, protocol, PIXELS)
            sure = combine(maps.single) if multi is None else maps.sure
            orders = {"confidence": pixels.at(sure), "depth": pixels.at(published)}
            if maps.entropy is not None:
                orders["entropy"] = pixels.at(-maps.entropy)
                with_entropy = combine(maps.single, multi, entropy=maps.entropy)
                orders["confidence, entropy"] = pixels.at(with_entropy)
            if multi is not None and maps.mass is not None:
                orders["mass"] = pixels.at(maps.mass)
            table[name].add(pixels, orders)
    return {name: column for name, column in table.items() if column.errors}


# -- fit -----------------------------------------------------------------------------------------


def fit(shots: list[Maps], multi: bool, entropy: bool) -> Weights:
    """The logistic model of being right, by Newton's method, an equal number of pixels an image."""
    rows, answers, names = [], [], []
    for maps in shots:
        other = maps.multi if multi else None
        if multi and other is None:
            continue
        published = maps.single if other is None else other
        pixels = compared(published, maps.truth, PROTOCOLS["synthetic"], FIT_PIXELS)
        found = cues(maps.single, other, maps.entropy if entropy else None)
        names = list(found)
        rows.append(np.stack([pixels.at(cue) for cue in found.values()], axis=1))
        answers.append(pixels.right)
    x = np.concatenate(rows).astype(np.float64)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    y = np.concatenate(answers).astype(np.float64)
    weights = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (p * (1 - p))[:, None]).T @ x
        weights += np.linalg.solve(curvature, x.T @ (y - p))
    rounded = [round(float(w), 2) for w in weights]
    return Weights(constant=rounded[0], **dict(zip(names, rounded[1:], strict=True)))


# -- the table -----------------------------------------------------------------------------------

ORDERS = ("confidence", "confidence, entropy", "depth", "entropy", "mass", "random")


def show(sets: dict[str, dict[str, Column]]) -> None:
    """Table and figures."""
    head = f"{'set':<8}{'model':<14}{'frames':>6} {'AbsRel':>7}"
    print(head + "".join(f"{o:>21}" for o in ORDERS) + f"{'sure':>7}{'right':>7}{'ECE':>7}")
    for name, models in sets.items():
        for model, column in models.items():
            line = f"{name:<8}{model:<14}{len(column.errors):>6} {np.mean(column.errors):>7.3f}"
            for order in ORDERS:
                line += f"{column.ause(order):>12.4f} ({column.ratio(order):5.3f})"
            line += "".join(f"{v:>7.2f}" for v in column.calibration())
            print(line)
    print("AUSE of AbsRel, in brackets its ratio to random order")
    for name, models in sets.items():
        for model, column in models.items():
            print(f"figure confidence_ause_ratio_{name}_{model} {column.ratio():.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--pairs", type=int, default=0, help="rendered pairs (48; to fit: 96)")
    parser.add_argument("--frames", type=int, default=1000, help="of each drive, at most")
    parser.add_argument("--keep", type=Path, help="folder for the rendered pairs")
    parser.add_argument("--fit", action="store_true", help="fit the constants, print them, end")
    options = parser.parse_args()
    look = Looker(options.bundle, options.backend)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if options.fit:
            shots = [look(shot) for shot in pairs(folder, options.pairs or 96, FIT_SEED)]
            for multi in (False, True):
                for entropy in (False, True):
                    print(f"({multi}, {entropy}): {fit(shots, multi, entropy)},")
            return 0
        sets = {
            "pairs": columns(
                pairs(folder, options.pairs or 48, TEST_SEED), look, PROTOCOLS["synthetic"]
            ),
            "street": columns(drive(demo_bag(), options.frames), look, PROTOCOLS["synthetic"]),
        }
        if data := os.environ.get("DEPTH_PRIOR_DATA"):
            shots_of_0052 = drive(Path(data) / DRIVE, options.frames)
            sets["0052"] = columns(shots_of_0052, look, PROTOCOLS["eigen"])
        else:
            print("DEPTH_PRIOR_DATA is not set: no real drive")
        show(sets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
