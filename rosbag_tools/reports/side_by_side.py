"""Results compared: two or more of one recording on one page with a verdict; one with a baseline.

Differences have the uncertainty that a recording of this length leaves. Frames that follow each
other are alike, so spans of them are drawn, not frames: the moving-block bootstrap (Kuensch, 1989),
here circular (Politis and Romano, 1992), its block length that of an autoregressive process of the
same correlation. The comparison with a baseline is `depth_bag check`, for CI to act on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_json, write_text
from depth_prior_ros.pages import page
from depth_prior_ros.pages.charts import legend, new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, GREEN, ORANGE, RED
from depth_prior_ros.recordings import RecordingError
from depth_prior_ros.untrusted import parse_json, read_file
from rosbag_tools.console import number
from rosbag_tools.reports.results import PICTURES, FrameRecord, Results, load

DRAWS = 1000
LEAST = 20
"""Frames below which nothing is said about the uncertainty."""

_SHARE = 0.95
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of values (draws, n) along the last axis."""


@dataclass(frozen=True)
class Difference:
    """A figure of two results on the same frames: `second` minus `first`, from `low` to `high`.

    low and high bound the difference with 95 % confidence; None for too few frames.
    """

    first: float
    second: float
    frames: int
    low: float | None = None
    high: float | None = None

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first

    @property
    def sign(self) -> int:
        """-1: smaller for certain, 1: larger for certain, 0: it may be chance."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A `Statistic`."""
    return np.asarray(values.mean(axis=-1))


def percentile_95(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A `Statistic`."""
    return np.asarray(np.percentile(values, 95, axis=-1))


def difference(
    first: NDArray[Any], second: NDArray[Any], statistic: Statistic = mean, seed: int = 0
) -> Difference:
    """Compare values (n,) of two results on the same n frames, in the order of time."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    found = float(statistic(a)), float(statistic(b))
    n = a.size
    if n < LEAST:
        return Difference(*found, n)
    block = block_length(b - a)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(10):  # a tenth at a time: of 10,000 frames all would be 160 MB
        starts = generator.integers(0, n, (DRAWS // 10, -(-n // block)))
        places = (starts[..., None] + np.arange(block)).reshape(DRAWS // 10, -1)[:, :n] % n
        drawn.append(statistic(b[places]) - statistic(a[places]))
    tail = 100 * (1 - _SHARE) / 2
    low, high = map(float, np.percentile(np.concatenate(drawn), [tail, 100 - tail]))
    # Few blocks tell their own spread badly, as few measurements do (Student).
    from scipy.stats import norm, t

    wider = float(t.ppf((1 + _SHARE) / 2, max(2, n / block - 1)) / norm.ppf((1 + _SHARE) / 2))
    value = found[1] - found[0]
    return Difference(*found, n, value + (low - value) * wider, value + (high - value) * wider)


def block_length(values: NDArray[np.float64]) -> int:
    """Frames of a block, for values (n,): twice what is best for the variance of their mean."""
    centred = values - values.mean()
    power = float(centred @ centred)
    correlation = float(centred[1:] @ centred[:-1]) / power if power > 0 else 0.0
    r = min(max(correlation, 0.0), 0.98)
    best = (6 * r**2 / (1 - r**2) ** 2 * values.size) ** (1 / 3)
    return max(1, min(math.ceil(2 * best), values.size // 4))


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


Pairs = list[tuple[FrameRecord, FrameRecord]]
"""The frames that two results share, in the order of time."""


def pair_frames(first: Results, second: Results) -> Pairs:
    """Frames of the same stamps. Raises RecordingError where the two share too few of them."""
    others = {frame.stamp_ns: frame for frame in second.frames}
    shared = [frame for frame in first.frames if frame.stamp_ns in others]
    if 2 * len(shared) < max(len(first.frames), len(second.frames)):
        raise RecordingError(
            f"{first.run['recording']} and {second.run['recording']} are not the same recording: "
            f"{len(shared)} frames of {len(first.frames)} and {len(second.frames)} in common"
        )
    return [(frame, others[frame.stamp_ns]) for frame in shared]


def rows(pairs: Pairs) -> list[Row]:
    """All that can be compared: by range, by model, moving against standing, latency."""
    found = [_row(pairs, name, "all frames") for name in ("abs_rel", "metric_abs_rel", "flicker")]
    found += [_row(pairs, f"parts.{part}", f"true depth {part} m") for part in _PARTS]
    for model in ("single_frame", "multi_frame"):
        chosen = [a.model == b.model == model for a, b in pairs]
        found.append(_row(pairs, "abs_rel", model.replace("_", "-"), chosen))
    for words, moves in (("moving", True), ("standing", False)):
        chosen = [f.speed is not None and (abs(f.speed) > _MOVES) == moves for f, _ in pairs]
        found.append(_row(pairs, "abs_rel", words, chosen))
        found.append(_row(pairs, "flicker", words, chosen))
    found.append(_row(pairs, "latency_ms", "mean"))
    found.append(_row(pairs, "latency_ms", "95th percentile", statistic=percentile_95))
    return [row for row in found if row is not None]


def _value(frame: FrameRecord, name: str) -> float | None:
    if name.startswith("parts."):
        return frame.parts.get(name[6:])
    value: float | None = getattr(frame, name)
    return value


def _row(
    pairs: Pairs,
    name: str,
    group: str,
    chosen: Sequence[bool] | None = None,
    statistic: Statistic = mean,
) -> Row | None:
    values = [(_value(a, name), _value(b, name)) for a, b in pairs]
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


def _picked(pairs: Pairs, frames: Sequence[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """The best, worst and most different frames among those with pictures, by their places."""
    place = {entry["stamp"]: i for i, entry in enumerate(frames)}
    both = [
        (place[str(a.stamp_ns)], a.abs_rel, b.abs_rel)
        for a, b in pairs
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


# -- a result against a baseline ------------------------------------------------------------------


SAME, WORSE, NOT_COMPARABLE = 0, 1, 2
"""Exit codes."""

_SCHEMA = 1
_BYTES = 1 << 20
_LARGER_IS_BETTER = ("d1", "d2", "d3")

DEFAULTS = {"abs_rel": 0.02, "metric_abs_rel": 0.02, "flicker": 0.05}
"""Shares by which a figure may be worse where nothing is said. Scaling by medians hides a wrong
metric factor, so metres stand beside."""


def figures(results: Results) -> dict[str, float | None]:
    """The figures of a result that can be checked, by name; None where there is no truth."""
    metrics = results.metrics
    depth, latency = metrics["depth"]["all"], metrics["latency_ms"]
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", *_LARGER_IS_BETTER, "flicker")
    found = {name: depth.get(name) for name in names}
    found["metric_abs_rel"] = metrics["absolute"]["abs_rel"]
    found |= {f"latency_{name}": value for name, value in latency.items()}
    return {**found, "dropped": metrics["dropped"]}


def baseline_of(results: Results) -> dict[str, Any]:
    """What `--accept` writes: which recording, how it was evaluated, and the figures."""
    stamps = json.dumps([frame.stamp_ns for frame in results.frames])
    return {
        "schema": _SCHEMA,
        "recording": results.run["recording"],
        "frames": len(results.frames),
        "stamps_sha256": hashlib.sha256(stamps.encode()).hexdigest(),
        "protocol": results.metrics["protocol"],
        "bundle": results.run["bundle"],
        "figures": figures(results),
    }


def parse_tolerances(text: str) -> dict[str, tuple[float, bool]]:
    """`abs_rel=2%,latency_p95=10%,dropped=0`: by name how much, and whether it is a share.

    Raises ValueError, in words.
    """
    found = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition("=")
        share = amount.endswith("%")
        try:
            value = float(amount.removesuffix("%")) / (100 if share else 1)
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise ValueError(f"{part!r} is no tolerance such as abs_rel=2% or dropped=0")
        found[name] = value, share
    return found


def check(
    folder: Path, baseline: Path, tolerances: Mapping[str, tuple[float, bool]] | None = None
) -> tuple[int, list[tuple[str, ...]]]:
    """Compare a result with a baseline: the exit code, and a row for each figure.

    tolerances: of `parse_tolerances`; None: `DEFAULTS`, of the figures that the baseline has.

    Rows: name, baseline, now, change, what is allowed, outcome. Raises RecordingError where the
    two cannot be compared: another recording, another protocol, a figure that one has not.
    """
    now = baseline_of(load(folder))
    before = _read(baseline)
    for name, words in (
        ("stamps_sha256", "another recording"),
        ("protocol", "evaluated by another protocol"),
    ):
        if before.get(name) != now[name]:
            raise RecordingError(
                f"{folder} is not comparable with {baseline}: {words} ({now['recording']}, "
                f"{now['frames']} frames; {before.get('recording')}, {before.get('frames')})"
            )
    if tolerances is None:
        there = [name for name in DEFAULTS if before["figures"].get(name) is not None]
        if not there:
            raise RecordingError(
                f"{baseline}: the recording has no true depth: name figures with --tolerance, "
                "such as latency_p95=10%"
            )
        tolerances = {name: (DEFAULTS[name], True) for name in there}
    rows: list[tuple[str, ...]] = []
    code = SAME
    for name, (amount, share) in tolerances.items():
        old, new = before["figures"].get(name), now["figures"].get(name)
        if old is None or new is None:
            known = ", ".join(k for k, v in now["figures"].items() if v is not None)
            raise RecordingError(f"{name}: not in both results; there are {known}")
        worse = (old - new) if name in _LARGER_IS_BETTER else (new - old)
        allowed = amount * abs(old) if share else amount
        failed = worse > allowed + 1e-12
        code = WORSE if failed else code
        limit = f"{amount:.3g}" if not share else f"{amount:.2%}"
        change = f"{(new - old) / old:+.2%}" if old else f"{new - old:+.4g}"
        outcome = "worse" if failed else "ok"
        rows.append((name, f"{old:.5g}", f"{new:.5g}", change, limit, outcome))
    return code, rows


def accept(folder: Path, baseline: Path) -> None:
    """Write the baseline of a result. Raises RecordingError."""
    write_json(baseline, baseline_of(load(folder)))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_file(path, _BYTES))
        if found["schema"] != _SCHEMA or not isinstance(found["figures"], dict):
            raise ValueError(f"schema {found['schema']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordingError(
            f"{path}: no baseline ({error}); `depth_bag check RESULT --against {path} --accept` "
            "writes one"
        ) from error
    return dict(found)
