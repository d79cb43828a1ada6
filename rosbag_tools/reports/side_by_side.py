"""Two or more results of one recording side by side: differences, frames, a verdict on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.pages import page
from depth_prior_ros.pages.charts import legend, new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, GREEN, ORANGE, RED
from depth_prior_ros.recordings import RecordingError
from rosbag_tools.console import number
from rosbag_tools.reports.intervals import Difference, Statistic, difference, mean, percentile_95
from rosbag_tools.reports.results import PICTURES, FrameRecord, Results, load

_TEMPLATE = Path(__file__).parent / "templates" / "side_by_side.html"
_MOVES = 0.5  # m/s
_PICTURE_BUDGET = 40_000_000  # bytes, before base64
_PICKED = 3
_LINES = (BLUE, ORANGE, GREEN, RED)
_PARTS = ("0-10", "10-20", "20-40", "40-80")
_NAMES = {
    "abs_rel": "AbsRel, scaled by medians",
    "metric_abs_rel": "AbsRel of metres as they are",
    "flicker": "flicker",
    "latency_ms": "latency, ms",
}


@dataclass(frozen=True)
class Row:
    """A figure on a group of frames: what the second result differs by from the first."""

    figure: str
    group: str
    found: Difference

    @property
    def words(self) -> str:
        """Better, worse, or what cannot be told; less is better of all figures."""
        if self.found.low is None:
            return "too few frames to tell"
        return {-1: "better", 1: "worse", 0: "may be chance"}[self.found.sign]


@dataclass(frozen=True)
class Pair:
    """The frames that two results share, in the order of time."""

    first: list[FrameRecord]
    second: list[FrameRecord]


def pair_frames(first: Results, second: Results) -> Pair:
    """Frames of the same stamps. Raises RecordingError where the two share too few of them."""
    others = {frame.stamp_ns: frame for frame in second.frames}
    shared = [frame for frame in first.frames if frame.stamp_ns in others]
    if 2 * len(shared) < max(len(first.frames), len(second.frames)):
        raise RecordingError(
            f"{first.run['recording']} and {second.run['recording']} are not the same recording: "
            f"{len(shared)} frames of {len(first.frames)} and {len(second.frames)} in common"
        )
    return Pair(shared, [others[frame.stamp_ns] for frame in shared])


def rows(pair: Pair) -> list[Row]:
    """All that can be compared: by range, by model, moving against standing, latency."""
    found = [_row(pair, name, "all frames") for name in ("abs_rel", "metric_abs_rel", "flicker")]
    found += [_row(pair, f"parts.{part}", f"true depth {part} m") for part in _PARTS]
    for model in ("single_frame", "multi_frame"):
        chosen = [a.model == b.model == model for a, b in zip(*_both(pair), strict=True)]
        found.append(_row(pair, "abs_rel", model.replace("_", "-"), chosen))
    for words, moves in (("moving", True), ("standing", False)):
        chosen = [f.speed is not None and (abs(f.speed) > _MOVES) == moves for f in pair.first]
        found.append(_row(pair, "abs_rel", words, chosen))
        found.append(_row(pair, "flicker", words, chosen))
    found.append(_row(pair, "latency_ms", "mean"))
    found.append(_row(pair, "latency_ms", "95th percentile", statistic=percentile_95))
    return [row for row in found if row is not None]


def _both(pair: Pair) -> tuple[list[FrameRecord], list[FrameRecord]]:
    return pair.first, pair.second


def _value(frame: FrameRecord, name: str) -> float | None:
    if name.startswith("parts."):
        return frame.parts.get(name[6:])
    value: float | None = getattr(frame, name)
    return value


def _row(
    pair: Pair,
    name: str,
    group: str,
    chosen: Sequence[bool] | None = None,
    statistic: Statistic = mean,
) -> Row | None:
    values = [(_value(a, name), _value(b, name)) for a, b in zip(*_both(pair), strict=True)]
    kept = [
        (a, b)
        for (a, b), wanted in zip(values, chosen or [True] * len(values), strict=True)
        if wanted and a is not None and b is not None
    ]
    if not kept:
        return None
    first, second = np.array(kept).T
    figure = _NAMES["abs_rel"] if name.startswith("parts.") else _NAMES[name]
    return Row(figure, group, difference(first, second, statistic))


def verdict(found: Sequence[Row], first: str, second: str) -> str:
    """One plain sentence: whether the second result is better, by its most telling figure."""
    if not found:
        return f"{second} and {first} cannot be compared: no frame has a figure of both."
    row = found[0]
    d = row.found
    values = f"{row.figure} {number(d.second, 4)} instead of {number(d.first, 4)}"
    if d.low is None or d.high is None:
        return f"Nothing can be told of {d.frames} frames: {second} has {values}."
    spread = f"95 % interval of the difference {d.low:+.4f} to {d.high:+.4f}, {d.frames} frames"
    if d.first == d.second and d.low == d.high == 0:
        return f"{second} and {first} give the same depth ({row.figure}, {d.frames} frames)."
    if d.sign:
        return f"{second} is {row.words} than {first}: {values} ({spread})."
    return f"No difference between {second} and {first} can be told: {values} ({spread})."


def side_by_side(folders: Sequence[Path], out: Path) -> list[str]:
    """Write the page that compares results with the first of them; gives back the verdicts.

    Raises RecordingError for a folder without a result, or results of different recordings.
    """
    results = [load(folder) for folder in folders]
    names = _names(folders)
    pairs = [pair_frames(results[0], other) for other in results[1:]]
    tables = [rows(pair) for pair in pairs]
    verdicts = [
        verdict(found, names[0], name) for found, name in zip(tables, names[1:], strict=True)
    ]
    frames = _frames(folders, results, names)
    text = page.render(
        _TEMPLATE,
        title=f"{results[0].run['recording']}: results side by side",
        subtitle=f"{', '.join(names[1:])} against {names[0]}",
        verdicts=verdicts,
        names=names,
        tables=[
            (name, [_cells(row) for row in found], _drops(results[0], other))
            for name, found, other in zip(names[1:], tables, results[1:], strict=True)
        ],
        chart=_chart(results, names),
        frames=frames,
        picked=_picked(pairs[0], frames),
        made=[(name, _made(result)) for name, result in zip(names, results, strict=True)],
    )
    write_text(out, text)
    return verdicts


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with their parents where those are the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    return names


def _cells(row: Row) -> tuple[str, list[str]]:
    d = row.found
    bounds = "-" if d.low is None else f"{d.low:+.4f} to {d.high:+.4f}"
    values = [number(d.first, 4), number(d.second, 4), f"{d.value:+.4f}", bounds]
    return row.words.split()[0], [row.figure, row.group, *values, str(d.frames), row.words]


def _drops(first: Results, second: Results) -> str:
    a, b = first.metrics, second.metrics
    return (
        f"frames without depth: {a['dropped']} of {a['frames_in']} against {b['dropped']} of "
        f"{b['frames_in']}; model switches: {len(a['switches'])} against {len(b['switches'])}"
    )


def _made(result: Results) -> str:
    bundle = result.run["bundle"]
    mode = result.metrics["mode"]
    return f"bundle {bundle['name']} ({bundle['digest']}), {mode}; {result.run['command']}"


def _chart(results: Sequence[Results], names: Sequence[str]) -> str:
    """AbsRel of each result over time, or flicker or latency where there is no truth."""
    known = ("abs_rel", "flicker", "latency_ms")
    frames = [frame for result in results for frame in result.frames]
    name = next((k for k in known if any(_value(f, k) is not None for f in frames)), None)
    if name is None:
        return ""
    start = results[0].frames[0].stamp_ns
    figure = new_figure(1140, 240)
    axes = new_axes(figure, 60, 30, 1120, 210)
    for result, label, colour in zip(results, names, _LINES * len(results), strict=False):
        seconds = [(frame.stamp_ns - start) / 1e9 for frame in result.frames]
        values = [_value(frame, name) for frame in result.frames]
        curve = [np.nan if v is None else v for v in values]
        axes.plot(seconds, curve, color=colour, linewidth=1.4, label=plain(label))
    axes.set_title(_NAMES[name], loc="right", size=11, color=BLUE)
    legend(axes)
    return svg(figure)


def _frames(
    folders: Sequence[Path], results: Sequence[Results], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Frames of which all results have pictures, thinned to a page that opens."""
    by_stamp = [{frame.stamp_ns: frame for frame in result.frames} for result in results]
    shared = [
        frame.stamp_ns
        for frame in results[0].frames
        if all(found.get(frame.stamp_ns, frame).pictures for found in by_stamp)
        and all(frame.stamp_ns in found for found in by_stamp)
    ]
    entries, spent = [], 0
    for stamp in shared:
        records = [found[stamp] for found in by_stamp]
        files = [
            folder / PICTURES / f"{record.index:06d}_{kind}.jpg"
            for kind, folder, record in [
                ("image", folders[0], records[0]),
                *(("depth", f, r) for f, r in zip(folders, records, strict=True)),
            ]
        ]
        if not all(file.is_file() for file in files):
            continue
        data = [file.read_bytes() for file in files]
        spent += sum(map(len, data))
        if spent > _PICTURE_BUDGET:
            break
        told = ", ".join(f"{n} {number(r.abs_rel)}" for n, r in zip(names, records, strict=True))
        entries.append(
            {
                "stamp": str(stamp),
                "words": f"frame {records[0].index}: AbsRel {told}",
                "pictures": [page.data_uri(one) for one in data],
            }
        )
    return entries


def _picked(pair: Pair, frames: Sequence[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """The best, worst and most different frames among those with pictures, by their places."""
    place = {entry["stamp"]: i for i, entry in enumerate(frames)}
    both = [
        (place[str(a.stamp_ns)], a.abs_rel, b.abs_rel)
        for a, b in zip(*_both(pair), strict=True)
        if str(a.stamp_ns) in place and a.abs_rel is not None and b.abs_rel is not None
    ]
    by_second = [i for i, _, b in sorted(both, key=lambda entry: entry[2])]
    apart = [i for i, a, b in sorted(both, key=lambda entry: -abs(entry[2] - entry[1]))]
    if not both:
        return []
    return [
        ("best", by_second[:_PICKED]),
        ("worst", by_second[::-1][:_PICKED]),
        ("most different", apart[:_PICKED]),
    ]
