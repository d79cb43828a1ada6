"""Many bundles on the same frames: one table, resumable, cheap for each further bundle.

What was judged is kept below the output folder, by what the bundle and the set hold: running the
same command again judges only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_prior_ros.atomic_files import write_json, write_text
from depth_prior_ros.geometry.camera import Camera
from training.comparison.cost import measure_cost
from training.comparison.rows import Listing, Row, open_rows, resolve_pair
from training.comparison.sets import SETS, PreparedSet, find_sets, judge_map, judge_model, prepare
from training.comparison.table import METRICS, ByFrame, SetResults, markdown, set_json
from training.evaluation.baseline_rows import CONSTANT, SET_MEAN, Map, baseline_maps
from training.evaluation.sets import EvaluationError, EvaluationSet, Progress, data_folder, quiet

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline, Model

# Raised where what is kept would no longer be what judging gives.
CACHE_VERSION = 1
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
    prepared: tuple[Camera, list[PreparedSet]] | None = None
    pipeline: tuple[str, DepthPipeline] | None = None
    maps: dict[str, dict[str, Map]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def sets_for(self, bundle: Bundle) -> list[PreparedSet]:
        camera = bundle.manifest.camera
        if self.prepared is None or self.prepared[0] != camera:
            sets = [prepare(group, one, camera, self.progress) for group, one in self.found]
            self.prepared = (camera, sets)
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
    """Judge all rows on all sets; write comparison.md and comparison.json into `out`.

    Args:
        listing: rows, the row to compare with (the first one by default), further pairs, bags of
            synthetic drives, and the sets (KITTI 2015, the Eigen test drives and those bags).
        out: folder of the table, and of what was judged already.
        data: data folder; the environment variable DEPTH_PRIOR_DATA by default.
        backend, device: what runs the networks.
        progress: told in words what is being done, and how much of it is done.

    Returns:
        The content of comparison.json: `rows` by name (model and bundles), and `sets` by name,
        each with `views` ("all", "vehicle moves", "moving pixels", "static pixels") of `rows`,
        `baselines`, `differences` and a `verdict`; `cost` by row where the listing asks for it.

    Raises:
        EvaluationError: nothing to judge. Also BundleError, BackendError, RecordingError.
    """
    folder = data_folder(data)
    rows, notes = open_rows(listing.specs)
    names = [row.name for row in rows]
    against = listing.against or names[0]
    if against not in names:
        raise EvaluationError(f"no row '{against}' to compare with: {', '.join(names)}")
    pairs = [(name, against) for name in names if name != against]
    pairs += [resolve_pair(text, names) for text in listing.pairs]
    found = find_sets(folder, listing.synthetic, listing.sets or SETS)
    work = _Work(out, backend, device, progress, found)
    results = _judge_rows(work, rows, next(row for row in rows if row.name == against), folder)
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


def _judge_rows(
    work: _Work, rows: Sequence[Row], reference: Row, data: Path
) -> Iterable[SetResults]:
    groups = list(dict.fromkeys(group for group, _ in work.found))
    figures: dict[str, dict[str, dict[str, dict]]] = {g: {} for g in groups}
    blind: dict[str, dict[str, dict[str, dict]]] = {g: {} for g in groups}
    notes: dict[str, list[str]] = {g: [] for g in groups}
    jobs = [(bundle, seed) for row in rows for seed, bundle in row.bundles.items()]
    # Each bundle once for all its rows, those of one input size in a row.
    bundles = {bundle.path: (bundle, seed) for bundle, seed in jobs}
    ordered = sorted(bundles.values(), key=lambda job: repr(job[0].manifest.camera))
    for number, (bundle, _) in enumerate(ordered, start=1):
        users = [
            (row, seed) for row in rows for seed, b in row.bundles.items() if b.path == bundle.path
        ]
        models: list[Model] = list(dict.fromkeys(row.model for row, _ in users))
        for one in work.sets_for(bundle):
            wanted = [m for m in models if m == "single_frame" or one.consecutive]
            what = f"[{number}/{len(ordered)}] {users[0][0].name} seed {users[0][1]}, {one.name}"
            entry = _judge_bundle(work, bundle, one, wanted, what)
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
                    found = _judge_blind(work, bundle, one, data, entry)
                    for name, frames in found.items():
                        kept = blind[one.group].setdefault(name, {}).setdefault(seed, {})
                        kept |= _by_frame(one, frames)
            notes[one.group] += [note for note in one.notes if note not in notes[one.group]]
    return [SetResults(g, figures[g], blind[g], notes[g]) for g in groups if figures[g]]


def _by_frame(one: PreparedSet, frames: Sequence[dict[str, Any]]) -> ByFrame:
    return {(one.name, int(frame["index"])): frame for frame in frames}


def _judge_bundle(
    work: _Work, bundle: Bundle, one: PreparedSet, models: Sequence[Model], what: str
) -> dict[str, Any]:
    """What is kept of a bundle on a set, with the models that were missing judged and added."""
    key = _bundle_key(bundle, work.backend, work.device)
    path = work.out / CACHE / f"{key[:20]}_{one.fingerprint[:20]}.json"
    entry = _read(path) or {
        "version": CACHE_VERSION,
        "bundle": {"name": bundle.manifest.name, "path": str(bundle.path)},
        "set": one.name,
        "models": {},
    }
    # Judging image-independent maps needs the single-frame model's own mean.
    missing = [model for model in models if model not in entry["models"]]
    for model in missing:
        pipeline = work.pipeline_for(bundle)
        label = f"{what}: {model.replace('_', ' ')}"
        entry["backend"] = pipeline.backend
        entry["models"][model] = judge_model(pipeline, one, model, work.progress, label)
    if missing:
        write_json(path, entry)
    return entry


def _judge_blind(
    work: _Work, bundle: Bundle, one: PreparedSet, data: Path, entry: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Frames of every predictor that does not look at the image, by name."""
    maps: dict[str, Map] = {**work.maps_for(bundle, data), CONSTANT: np.ones((2, 2))}
    found = {}
    for name, depth in maps.items():
        found[name] = _judge_kept_map(work, depth, one)
    own = entry["models"].get("single_frame", {}).get("own_mean")
    if own:
        found[SET_MEAN] = own
    return found


def _judge_kept_map(work: _Work, depth: Map, one: PreparedSet) -> list[dict[str, Any]]:
    key = hashlib.sha256(repr(depth.shape).encode() + np.ascontiguousarray(depth).tobytes())
    path = work.out / CACHE / f"map_{key.hexdigest()[:20]}_{one.fingerprint[:20]}.json"
    entry = _read(path)
    if entry is None:
        entry = {"version": CACHE_VERSION, "set": one.name, "frames": judge_map(depth, one)}
        write_json(path, entry)
    frames: list[dict[str, Any]] = entry["frames"]
    return frames


def _bundle_key(bundle: Bundle, backend: str, device: str) -> str:
    """All that a bundle's depth depends on: weights, how they are used, input, range, backend."""
    manifest = bundle.manifest
    parts = (manifest.architecture, manifest.depth)
    plain = [
        bundle.digest,
        asdict(manifest.camera),
        *(part.model_dump(mode="json") for part in parts),
        backend,
        device,
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
