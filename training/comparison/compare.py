"""Many bundles on the same frames: one table, resumable, cheap for each further bundle.

What was evaluated is kept below the output folder, by what the bundle and the set hold: running the
same command again evaluates only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_json, write_text
from depth_prior_ros.evaluation.evaluate import FrameResult, evaluate
from depth_prior_ros.evaluation.frames import (
    EvaluationFrame,
    EvaluationSet,
    count,
    read_evaluation_frames,
    shown_positions,
)
from depth_prior_ros.evaluation.metrics import DepthErrors
from depth_prior_ros.evaluation.predictors import (
    BundlePredictor,
    ImageIndependentMap,
    Map,
    MeanDepth,
)
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.motion.gate import ImageMotion, MotionGate
from depth_prior_ros.progress import Progress, quiet
from training.comparison.rows import Listing, Row, open_rows, resolve_pair
from training.comparison.table import METRICS, ByFrame, SetResults, markdown, measure_cost, set_json
from training.evaluation.baselines import CONSTANT, SET_MEAN, baseline_maps
from training.evaluation.sets import (
    EvaluationError,
    data_folder,
    drive_key,
    drive_set,
    eigen_drive_sets,
    kitti_2015_set,
    lidar_training_set,
)
from training.runs.output import version_of

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline, Model

# What is kept of each frame, and of each of its parts.
ERRORS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
PART_ERRORS = ("abs_rel", "sq_rel", "rmse", "d1")
PARTS = ("moving", "static")
SETS = ("kitti_2015", "drives", "synthetic")
# Frames of a training drive that recipes keep out (keep_out: depth); only when asked for.
KEPT_OUT = "kept_out"
# What a figure depends on beside the bundle and the frames.
_PACKAGES = ("depth_prior_ros", "numpy", "openvino", "onnxruntime", "torch")
# Raised where what is kept would no longer be what evaluating gives.
CACHE_VERSION = 2
TABLE, FIGURES, CACHE = "comparison.md", "comparison.json", "cache"


@dataclass
class _Work:
    """What one comparison has at hand."""

    out: Path
    backend: str
    device: str
    progress: Progress
    found: list[tuple[str, EvaluationSet]]
    # Only one input size at a time: images and truth of several would fill the memory.
    prepared: tuple[tuple[int, int], list[PreparedSet]] | None = None
    pipeline: tuple[str, DepthPipeline] | None = None
    maps: dict[str, dict[str, Map]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def sets_for(self, bundle: Bundle) -> list[PreparedSet]:
        size = bundle.manifest.input_size
        if self.prepared is None or self.prepared[0] != size:
            sets = [prepare(group, one, size, self.progress) for group, one in self.found]
            self.prepared = (size, sets)
        return self.prepared[1]

    def maps_for(self, bundle: Bundle, data: Path) -> dict[str, Map]:
        """The maps that do not look at the image; the bundle's own where it carries it."""
        key = str(bundle.path)
        if key not in self.maps:
            self.progress(f"maps of {bundle.path} that do not look at the image")
            self.maps[key], notes = baseline_maps(bundle, data, prefer_stored=True)
            self.notes += notes
        return self.maps[key]

    def pipeline_for(self, bundle: Bundle) -> DepthPipeline:
        from depth_prior_ros.pipeline import DepthPipeline

        key = str(bundle.path)
        if self.pipeline is None or self.pipeline[0] != key:
            self.progress(f"compiling {bundle.path}")
            self.pipeline = None  # the old one's memory first
            self.pipeline = (key, DepthPipeline(bundle, self.backend, self.device))
        return self.pipeline[1]


def compare(
    listing: Listing,
    out: Path,
    data: str | Path | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Evaluate all rows on all sets; write comparison.md and comparison.json into `out`.

    Args:
        listing: rows, the row to compare with (the first one by default), further pairs, bags of
            synthetic drives, the sets (KITTI 2015, the Eigen test drives and those bags), and
            recordings of one's own; without sets, those recordings are all there is.
        out: folder of the table, and of what was evaluated already.
        data: data folder; the environment variable DEPTH_PRIOR_DATA by default.
        backend, device: what runs the networks.
        progress: told in words what is being done, and how much of it is done.

    Returns:
        The content of comparison.json: `rows` by name (model and bundles), and `sets` by name,
        each with `views` ("all", "vehicle moves", "moving pixels", "static pixels") of `rows`,
        `baselines`, `differences` and a `verdict` on them; `cost` by row where the listing asks for
        it.

    Raises:
        EvaluationError: nothing to evaluate. Also BundleError, BackendError, RecordingError.
    """
    wanted = listing.wanted(SETS)
    # Recordings of one's own need no data folder; without it, maps are those in the bundles.
    folder = data_folder(data) if wanted else listing.recordings[0].absolute().parent
    rows, notes = open_rows(listing.specs)
    names = [row.name for row in rows]
    against = listing.against or names[0]
    if against not in names:
        raise EvaluationError(f"no row '{against}' to compare with: {', '.join(names)}")
    pairs = [(name, against) for name in names if name != against]
    pairs += [resolve_pair(text, names) for text in listing.pairs]
    found = find_sets(folder, listing.synthetic, wanted, listing.recordings)
    work = _Work(out, backend, device, progress, found)
    results = _evaluate_rows(work, rows, next(row for row in rows if row.name == against), folder)
    content = {
        "metrics": list(METRICS),
        "reference": against,
        "notes": [*notes, *dict.fromkeys(work.notes)],
        "rows": {row.name: _row_json(row) for row in rows},
        "sets": {one.name: set_json(one, against, list(dict.fromkeys(pairs))) for one in results},
    }
    if listing.cost:
        content["cost"] = measure_cost(rows, backend, device, progress=progress)
    write_json(out / FIGURES, content)
    write_text(out / TABLE, markdown(content))
    return content


def _row_json(row: Row) -> dict[str, Any]:
    bundles = {
        seed: {"name": b.manifest.name, "path": str(b.path), "digest": b.digest}
        for seed, b in row.bundles.items()
    }
    return {"model": row.model, "bundles": bundles}


def _evaluate_rows(
    work: _Work, rows: Sequence[Row], reference: Row, data: Path
) -> Iterable[SetResults]:
    groups = list(dict.fromkeys(group for group, _ in work.found))
    figures: dict[str, dict[str, dict[str, dict]]] = {g: {} for g in groups}
    baselines: dict[str, dict[str, dict[str, dict]]] = {g: {} for g in groups}
    notes: dict[str, list[str]] = {g: [] for g in groups}
    jobs = [(bundle, seed) for row in rows for seed, bundle in row.bundles.items()]
    # Each bundle once for all its rows, those of one input size in a row.
    bundles = {bundle.path: (bundle, seed) for bundle, seed in jobs}
    ordered = sorted(bundles.values(), key=lambda job: job[0].manifest.input_size)
    for number, (bundle, _) in enumerate(ordered, start=1):
        users = [
            (row, seed) for row in rows for seed, b in row.bundles.items() if b.path == bundle.path
        ]
        models: list[Model] = list(dict.fromkeys(row.model for row, _ in users))
        for one in work.sets_for(bundle):
            wanted = [m for m in models if m == "single_frame" or one.consecutive]
            what = f"[{number}/{len(ordered)}] {users[0][0].name} seed {users[0][1]}, {one.name}"
            entry = _evaluate_bundle(work, bundle, one, wanted, what)
            for row, seed in users:
                if row.model in wanted:
                    kept = figures[one.group].setdefault(row.name, {}).setdefault(seed, {})
                    kept |= _by_frame(one, entry["models"][row.model]["frames"])
                    fell_back = entry["models"][row.model]["fell_back"]
                    if fell_back:
                        notes[one.group].append(
                            f"{row.name}, seed {seed}, {one.name}: {fell_back} frames fell back "
                            "to single frame"
                        )
            for row, seed in users:
                if row is reference:
                    found = _evaluate_baselines(work, bundle, one, data, entry)
                    for name, frames in found.items():
                        kept = baselines[one.group].setdefault(name, {}).setdefault(seed, {})
                        kept |= _by_frame(one, frames)
            notes[one.group] += [note for note in one.notes if note not in notes[one.group]]
    return [SetResults(g, figures[g], baselines[g], notes[g]) for g in groups if figures[g]]


def _by_frame(one: PreparedSet, frames: Sequence[dict[str, Any]]) -> ByFrame:
    return {(one.name, int(frame["index"])): frame for frame in frames}


def _evaluate_bundle(
    work: _Work, bundle: Bundle, one: PreparedSet, models: Sequence[Model], what: str
) -> dict[str, Any]:
    """What is kept of a bundle on a set, with the models that were missing evaluated and added."""
    key = _bundle_key(bundle, work.backend, work.device)
    path = work.out / CACHE / f"{key[:20]}_{one.fingerprint[:20]}.json"
    entry = _read(path) or {
        "version": CACHE_VERSION,
        "bundle": {"name": bundle.manifest.name, "path": str(bundle.path)},
        "set": one.name,
        "models": {},
    }
    # Evaluating image-independent maps needs the single-frame model's own mean.
    missing = [model for model in models if model not in entry["models"]]
    for model in missing:
        pipeline = work.pipeline_for(bundle)
        label = f"{what}: {model.replace('_', ' ')}"
        entry["backend"] = pipeline.backend
        entry["models"][model] = evaluate_frames(pipeline, one, model, work.progress, label)
    if missing:
        write_json(path, entry)
    return entry


def _evaluate_baselines(
    work: _Work, bundle: Bundle, one: PreparedSet, data: Path, entry: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Frames of every predictor that does not look at the image, by name."""
    maps: dict[str, Map] = {**work.maps_for(bundle, data), CONSTANT: np.ones((2, 2))}
    found = {}
    for name, depth in maps.items():
        found[name] = _evaluate_kept_map(work, depth, one)
    own = entry["models"].get("single_frame", {}).get("own_mean")
    if own:
        found[SET_MEAN] = own
    return found


def _evaluate_kept_map(work: _Work, depth: Map, one: PreparedSet) -> list[dict[str, Any]]:
    key = hashlib.sha256(repr(depth.shape).encode() + np.ascontiguousarray(depth).tobytes())
    path = work.out / CACHE / f"map_{key.hexdigest()[:20]}_{one.fingerprint[:20]}.json"
    entry = _read(path)
    if entry is None:
        entry = {"version": CACHE_VERSION, "set": one.name, "frames": evaluate_map(depth, one)}
        write_json(path, entry)
    frames: list[dict[str, Any]] = entry["frames"]
    return frames


def _bundle_key(bundle: Bundle, backend: str, device: str) -> str:
    """All that a bundle's depth depends on: weights, how they are used, input, what runs them."""
    manifest = bundle.manifest
    parts = (manifest.architecture, manifest.depth)
    plain = [
        bundle.digest,
        asdict(manifest.camera),
        *(part.model_dump(mode="json") for part in parts),
        backend,
        device,
        {package: v for package in _PACKAGES if (v := version_of(package))},
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """What is kept in a file; None where there is nothing that can be used."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    usable = isinstance(entry, dict) and entry.get("version") == CACHE_VERSION
    return entry if usable else None


# --- sets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedSet:
    """A recording of a `group` of the table, read once for many bundles of one input size.

    `moving`: positions of the frames at which the vehicle moves. `fingerprint` is of all of it.
    """

    group: str
    name: str
    protocol: Protocol
    consecutive: bool
    frames: tuple[EvaluationFrame, ...] = field(repr=False)
    moving: frozenset[int]
    fingerprint: str
    notes: tuple[str, ...]


def find_sets(
    data: Path,
    synthetic: Sequence[Path],
    wanted: Sequence[str] = SETS,
    recordings: Sequence[Path] = (),
) -> list[tuple[str, EvaluationSet]]:
    """(group, set): KITTI 2015, each Eigen test drive, the bags of synthetic drives together, and
    if asked for the LiDAR frames of drive 0039, which the small recipes keep out of training; then
    each of the recordings with its depth, whether of LiDAR, stereo or exact, for itself.

    Raises:
        EvaluationError: an unknown name, or a wanted set that is not there.
    """
    found: list[tuple[str, EvaluationSet]] = []
    for name in wanted:
        sets: list[tuple[str, EvaluationSet]] = []
        if name == "kitti_2015":
            scenes = kitti_2015_set(data)
            sets = [(name, scenes)] if scenes else []
        elif name == "drives":
            for chosen in eigen_drive_sets(data, listed_only=False):
                key = drive_key(Path(chosen.name))
                sets.append((f"drive_{key[1]}" if key else chosen.name, chosen))
        elif name == KEPT_OUT:
            kept = lidar_training_set(data)
            sets = [("drive_0039_kept_out", kept)] if kept else []
        elif name == "synthetic":
            sets = [(name, drive_set(path)) for path in synthetic]
            for path, (_, chosen) in zip(synthetic, sets, strict=True):
                if chosen.recording.depth_source != "exact":
                    raise EvaluationError(f"{path}: not a synthetic drive, its depth is not exact")
        else:
            raise EvaluationError(f"unknown set '{name}': {', '.join([*SETS, KEPT_OUT])}")
        if not sets and name != "synthetic":
            raise EvaluationError(f"{data}: no {name} there; leave it out of the sets")
        found += sets
    found += [_own_set(path, found) for path in recordings]
    if not found:
        raise EvaluationError("nothing to evaluate on: name a bag with --synthetic, or other sets")
    return found


def _own_set(path: Path, others: Sequence[tuple[str, EvaluationSet]]) -> tuple[str, EvaluationSet]:
    """A recording of one's own, by its name. Raises EvaluationError where it has no depth."""
    chosen = drive_set(path)
    if not chosen.positions:
        raise EvaluationError(
            f"{path}: no frame has true depth; `depth_bag info` says what the recording has"
        )
    name = chosen.name
    if name in {group for group, _ in others}:
        name = str(path)
    return name, replace(chosen, name=name)


def prepare(
    group: str, chosen: EvaluationSet, size: tuple[int, int], progress: Progress = quiet
) -> PreparedSet:
    """Read a set for networks of an input size (width, height).

    Of a drive the frames with a predecessor are evaluated, so that single- and multi-frame models
    are evaluated on the same ones; of separate scenes all.

    Raises:
        EvaluationError: not one frame can be evaluated.
    """
    recording, protocol = chosen.recording, chosen.protocol
    wanted = chosen.followed() if recording.consecutive else chosen.positions
    memory = None if recording.consecutive else 0
    every = read_evaluation_frames(recording, protocol, size, wanted, memory)
    total = len(shown_positions(recording.frames, wanted, memory))
    frames = tuple(count(every, partial(progress, f"reading {chosen.name}"), total))
    if not any(frame.truth for frame in frames):
        raise EvaluationError(f"{chosen.name}: not one frame with depth can be evaluated")
    moving = _vehicle_moves(frames) if recording.consecutive else {f.position for f in frames}
    return PreparedSet(
        group,
        chosen.name,
        protocol,
        recording.consecutive,
        frames,
        frozenset(moving),
        _fingerprint(protocol, frames, moving),
        (*recording.notes, *map(str, recording.skipped)),
    )


def _vehicle_moves(frames: Sequence[EvaluationFrame]) -> set[int]:
    """Positions of the frames at which the motion gate of a vehicle says that it moves."""
    gate, flow = MotionGate(), ImageMotion()
    moving = set()
    before: tuple[int, NDArray[np.uint8]] | None = None
    for frame in frames:
        small = flow.prepare(frame.image)
        follows = before is not None and before[0] == frame.position - 1
        motion = flow.measure(before[1], small) if before is not None and follows else None
        if gate.update(frame.stamp_ns, frame.speed, motion) == "moving":
            moving.add(frame.position)
        before = frame.position, small
    return moving


def _fingerprint(
    protocol: Protocol, frames: Sequence[EvaluationFrame], moving: Iterable[int]
) -> str:
    plain = [asdict(protocol), sorted(moving)]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for frame in frames:
        known = (frame.index, frame.stamp_ns, asdict(frame.camera), frame.speed)
        digest.update(repr(known).encode())
        digest.update(frame.image.tobytes())
        if frame.truth is not None:
            digest.update(frame.truth.index.tobytes() + frame.truth.expected.tobytes())
        if frame.moving is not None:
            digest.update(np.packbits(frame.moving).tobytes())
    return digest.hexdigest()


def evaluate_frames(
    pipeline: DepthPipeline,
    prepared: PreparedSet,
    model: Model,
    progress: Progress = quiet,
    what: str = "",
) -> dict[str, Any]:
    """Errors of a forced model: `frames` (see :func:`frame_entry`), and `fell_back`.

    `fell_back` counts the frames that the forced multi-frame network left to the single-frame one.
    Of the single-frame model also `own_mean`: its mean over the set evaluated in the place of each
    prediction. A frame of which a network knows nothing is missing for every row.
    """
    alone = model == "single_frame"
    frames = count(prepared.frames, partial(progress, what), len(prepared.frames))
    predictor = BundlePredictor(pipeline, model)
    found = evaluate(predictor, frames, prepared.protocol, keep_depth=alone)
    content: dict[str, Any] = {
        "frames": [frame_entry(one, prepared) for one in found],
        "fell_back": sum(one.model != model for one in found),
    }
    if alone and found:
        content["own_mean"] = evaluate_map(MeanDepth(one.depth for one in found).depth(), prepared)
    return content


def evaluate_map(depth: Map, prepared: PreparedSet) -> list[dict[str, Any]]:
    """The errors of one depth map (h, w) in the place of every prediction."""
    found = evaluate(ImageIndependentMap(depth), prepared.frames, prepared.protocol)
    return [frame_entry(one, prepared, parts=False) for one in found]


def frame_entry(
    result: FrameResult, prepared: PreparedSet, *, parts: bool = True
) -> dict[str, Any]:
    """One frame's errors: `index`, `moves`, ERRORS, `ratio`, and `parts` with PART_ERRORS each."""
    errors = result.errors
    entry: dict[str, Any] = {"index": result.index, "moves": result.position in prepared.moving}
    entry |= _rounded(errors, ERRORS) | {"ratio": float(f"{errors.ratio:.7g}")}
    if parts and not result.parts.keys().isdisjoint(PARTS):
        known = [name for name in PARTS if name in result.parts]
        entry["parts"] = {name: _rounded(result.parts[name], PART_ERRORS) for name in known}
    return entry


def _rounded(errors: DepthErrors, names: Sequence[str]) -> dict[str, float]:
    return {name: float(f"{getattr(errors, name):.7g}") for name in names}
