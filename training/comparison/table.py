"""What a comparison found: means over seeds, paired differences, and which sets count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from training.comparison.cost import cost_table

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
