"""What a comparison found: means over seeds, paired differences, which sets count, and the cost."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.progress import Progress, quiet
from training.comparison.rows import Row

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline.runtime import Networks

_WARM_UP = 2


def measure_cost(
    rows: Sequence[Row],
    backend: str = "auto",
    device: str = "auto",
    *,
    rounds: int = 15,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Time every row's first bundle on one thread, the rows in turn, on an image of noise.

    A single-frame row is its student with its prior; a multi-frame row all of its networks, as for
    a frame on a vehicle whose predecessor was kept. Time without decoding and resizing.

    Returns:
        `machine`, `backend` and by row `milliseconds` (median), `ratio` to the first row (median of
        the ratios of each round), `parameters` of the networks, `references` of the prior, and
        `megabytes` of the files.

    Raises:
        BundleError, BackendError: a bundle cannot be run.
    """
    from depth_prior_ros.pipeline.runtime import compile_networks

    runs: dict[str, _Timed] = {}
    for number, row in enumerate(rows):
        progress("compiling", number, len(rows))
        bundle = next(iter(row.bundles.values()))
        networks, _ = compile_networks(bundle, backend, device, threads=1)
        runs[row.name] = _Timed(bundle, networks, row.model == "multi_frame")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-_WARM_UP, rounds):
        progress("timing", max(turn, 0), rounds)
        for name, run in runs.items():
            elapsed = run.once()
            if turn >= 0:
                times[name].append(elapsed * 1e3)
    first = times[rows[0].name]
    found = {
        name: {
            "milliseconds": median(times[name]),
            "ratio": median(t / f for t, f in zip(times[name], first, strict=True)),
            **run.size(),
        }
        for name, run in runs.items()
    }
    kind = next(iter(runs.values())).networks.backend.name
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, one thread used"
    return {"machine": machine, "backend": kind, "rows": found}


class _Timed:
    """One row, ready to be run."""

    def __init__(self, bundle: Bundle, networks: Networks, multi: bool) -> None:
        self.bundle, self.networks, self.multi = bundle, networks, multi
        width, height = bundle.manifest.input_size
        rng = np.random.default_rng(0)
        native = networks.backend.to_native
        images = [rng.random((1, 3, height, width), dtype=np.float32) for _ in range(2)]
        self.before, self.now = (native(image) for image in images)
        self.kept = networks.features(self.before) if multi else None
        self.K = bundle.manifest.camera.matrix()

    def once(self) -> float:
        """Seconds of one frame."""
        networks = self.networks
        start = time.perf_counter()
        inverse, _ = networks.single(self.now)
        if self.kept is not None:
            mine = networks.features(self.now)
            step = rigid_inverse(networks.pose(self.before, self.now))
            if networks.aligns:
                step = networks.refine(self.before, self.now, step, self.K, inverse)
            networks.multi(mine, self.kept, step, self.K, inverse)
        networks.backend.synchronize()
        return time.perf_counter() - start

    def size(self) -> dict[str, Any]:
        """Parameters, reference pixels, and megabytes of the files."""
        bundle = self.bundle
        names = ["student", "multi_frame", "pose"] if self.multi else ["student"]
        networks = [getattr(bundle, name)() for name in names]
        files = [*names, *(["prior"] if bundle.has("prior") else [])]
        spec = bundle.manifest.prior
        return {
            "parameters": sum(p.numel() for net in networks for p in net.parameters()),
            "references": spec.pixels if spec is not None and bundle.has("prior") else 0,
            "megabytes": sum((bundle.path / f"{f}.safetensors").stat().st_size for f in files)
            / 1e6,
        }


def cost_table(cost: Mapping[str, Any]) -> list[str]:
    """The section of the table about cost, as Markdown lines."""
    lines = ["", f"## Cost ({cost['backend']}, {cost['machine']})", ""]
    lines += ["| | ms a frame | ratio | parameters | references | MB |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, row in cost["rows"].items():
        lines.append(
            f"| {name} | {row['milliseconds']:.1f} | {row['ratio']:.2f} | "
            f"{row['parameters'] / 1e6:.2f} M | {row['references']:,} | {row['megabytes']:.1f} |"
        )
    return lines


METRICS = ("abs_rel", "sq_rel", "rmse", "d1")
_HIGHER_IS_BETTER = ("d1",)
_HEADS = {"abs_rel": "AbsRel", "sq_rel": "SqRel", "rmse": "RMSE", "d1": "d1"}

# A frame of a set: (recording, number); its errors by name, with `moves` and `parts`.
FrameKey = tuple[str, int]
Errors = Mapping[str, Any]
ByFrame = Mapping[FrameKey, Errors]


@dataclass(frozen=True)
class FrameSubset:
    """A part of a set: which frames, and which of their pixels (None: all)."""

    name: str
    wanted: Callable[[Errors], bool]
    part: str | None = None


VIEWS = (
    FrameSubset("all", lambda _: True),
    FrameSubset("vehicle moves", lambda frame: bool(frame["moves"])),
    FrameSubset("moving pixels", lambda frame: "moving" in frame.get("parts", {}), "moving"),
    FrameSubset("static pixels", lambda frame: "static" in frame.get("parts", {}), "static"),
)


@dataclass(frozen=True)
class SetResults:
    """The frames of one set: of each row by seed, of each image-independent map by seed."""

    name: str
    rows: Mapping[str, Mapping[str, ByFrame]]
    baselines: Mapping[str, Mapping[str, ByFrame]]
    notes: Sequence[str] = ()


def set_json(results: SetResults, reference: str, pairs: Sequence[tuple[str, str]]) -> dict:
    """`frames`, `notes` and `views` of a set; a view that is empty, or the whole set, is left out.

    Every figure of a view is of the same frames, those that all rows and maps have.
    """
    everyone = [seed for row in results.rows.values() for seed in row.values()]
    shared = set.intersection(*(set(frames) for frames in everyone)) if everyone else set()
    union = set().union(*(set(frames) for frames in everyone))
    notes = list(results.notes)
    if len(shared) < len(union):
        notes.append(f"{len(union) - len(shared)} frames left out: not every row has them")
    views = {}
    for view in VIEWS:
        keys = {k for k in shared if all(view.wanted(frames[k]) for frames in everyone)}
        if keys and (view.name == "all" or view.part or len(keys) < len(shared)):
            views[view.name] = _view_json(results, view, keys, reference, pairs)
    return {"frames": len(shared), "notes": notes, "views": views}


def _view_json(
    results: SetResults,
    view: FrameSubset,
    keys: set[FrameKey],
    reference: str,
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    def means(row: Mapping[str, ByFrame]) -> dict[str, dict[str, float]]:
        return {seed: _means(frames, keys, view.part) for seed, frames in row.items()}

    rows = {name: means(row) for name, row in results.rows.items()}
    content: dict[str, Any] = {
        "frames": len(keys),
        "rows": {name: _spread(by_seed) for name, by_seed in rows.items()},
        "differences": [
            {"row": a, "against": b, **_difference(rows[a], rows[b])}
            for a, b in pairs
            if a in rows and b in rows
        ],
    }
    if view.part is None:
        baselines = {name: means(row) for name, row in results.baselines.items()}
        content["baselines"] = {name: _spread(by_seed) for name, by_seed in baselines.items()}
        if reference in rows and baselines:
            content["verdict"] = _beside_baselines(rows[reference], baselines, reference)
    return content


def _means(frames: ByFrame, keys: set[FrameKey], part: str | None) -> dict[str, float]:
    chosen = [frames[k]["parts"][part] if part else frames[k] for k in sorted(keys)]
    return {metric: fmean(float(errors[metric]) for errors in chosen) for metric in METRICS}


def _spread(by_seed: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation (of a sample; None of one) over seeds, by metric."""
    content = {}
    for metric in METRICS:
        values = {seed: means[metric] for seed, means in by_seed.items()}
        content[metric] = {**_mean_and_deviation(list(values.values())), "seeds": values}
    return content


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def _difference(
    row: Mapping[str, Mapping[str, float]], reference: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Row minus reference, seed by seed: mean, spread, and in how many of them it is better."""
    common = [seed for seed in row if seed in reference]
    if not common:
        return {"pairs": 0}
    content: dict[str, Any] = {"pairs": len(common)}
    for metric in METRICS:
        values = {seed: row[seed][metric] - reference[seed][metric] for seed in common}
        sign = -1 if metric in _HIGHER_IS_BETTER else 1
        content[metric] = {
            **_mean_and_deviation(list(values.values())),
            "better": sum(sign * value < 0 for value in values.values()),
            "seeds": values,
        }
    return content


def _beside_baselines(
    own: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]],
    reference: str,
) -> dict[str, Any]:
    """Whether the reference row's AbsRel is below that of every image-independent map."""
    figures = {
        name: fmean(means["abs_rel"] for means in by_seed.values())
        for name, by_seed in baselines.items()
    }
    best = min(figures, key=lambda name: figures[name])
    mine = [means["abs_rel"] for means in own.values()]
    return {
        "row": reference,
        "counts": fmean(mine) < figures[best],
        "abs_rel": fmean(mine),
        "best_baseline": best,
        "best_abs_rel": figures[best],
        "seeds_below": sum(value < figures[best] for value in mine),
        "seeds": len(mine),
    }


def markdown(content: Mapping[str, Any]) -> str:
    """The whole comparison (see `compare.compare`) as tables."""
    lines = ["# Comparison", ""]
    lines += [f"- {note}" for note in content["notes"]]
    for name, one in content["sets"].items():
        for view, found in one["views"].items():
            title = name if view == "all" else f"{name}, {view}"
            lines += ["", f"## {title} ({found['frames']} frames)", ""]
            lines += _rows_table(found) + _baseline_lines(found) + _difference_table(found)
        lines += [f"- {note}" for note in one["notes"]]
    if "cost" in content:
        lines += cost_table(content["cost"])
    return "\n".join(lines) + "\n"


def _rows_table(view: Mapping[str, Any]) -> list[str]:
    heads = " | ".join(_HEADS[metric] for metric in METRICS)
    lines = [f"| | seeds | {heads} |", "|---|---:" + "|---:" * len(METRICS) + "|"]
    groups = (("", view["rows"]), ("*", view.get("baselines", {})))
    for mark, rows in groups:
        for name, entry in rows.items():
            shown = _label(name) if mark else name
            cells = [_figure(entry[metric]) for metric in METRICS]
            count = len(entry["abs_rel"]["seeds"])
            lines.append(f"| {mark}{shown}{mark} | {count} | {' | '.join(cells)} |")
    return lines


def _label(name: str) -> str:
    return name.replace("_", " ")


def _figure(entry: Mapping[str, Any], form: str = ".3f") -> str:
    spread = "" if entry["std"] is None else f" ± {entry['std']:.3f}"
    return f"{entry['mean']:{form}}{spread}"


def _baseline_lines(view: Mapping[str, Any]) -> list[str]:
    found = view.get("verdict")
    if found is None:
        return []
    relation = "below" if found["counts"] else "not below"
    word = "counts" if found["counts"] else "does not count"
    return [
        "",
        f"This set **{word}**: AbsRel of {found['row']}, {found['abs_rel']:.3f}, is {relation} "
        f"{found['best_abs_rel']:.3f} of the best predictor that does not look at the image "
        f"({_label(found['best_baseline'])}); in {found['seeds_below']} of {found['seeds']} seeds.",
    ]


def _difference_table(view: Mapping[str, Any]) -> list[str]:
    found = [entry for entry in view["differences"] if entry["pairs"]]
    if not found:
        return []
    heads = " | ".join(f"{_HEADS[metric]} | better in" for metric in METRICS)
    lines = ["", f"| difference, by seed | {heads} |", "|---" + "|---:|---:" * len(METRICS) + "|"]
    for entry in found:
        cells = [
            f"{_figure(entry[metric], '+.3f')} | {entry[metric]['better']} of {entry['pairs']}"
            for metric in METRICS
        ]
        lines.append(f"| {entry['row']} − {entry['against']} | {' | '.join(cells)} |")
    return lines
