"""report.html: one file that carries everything in itself, made from a replay's saved results.

Its charts show what happened over time, and how long answers took.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.pages import colours, page
from depth_prior_ros.pages.charts import new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, DIM, ORANGE, RED
from depth_prior_ros.recordings import RecordingError
from rosbag_tools.console import number
from rosbag_tools.reports import pictures
from rosbag_tools.reports.results import PICTURES, REPORT, FrameRecord, Results, load
from rosbag_tools.reports.scoring import BASELINE_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _LEFT, _RIGHT = 1140, 46, 46
_COLOURS = {"multi_frame": "#35b8a6", "single_frame": ORANGE}
_NO_ANSWER = "#596075"
_LETTER = 6.2  # pixels


@dataclass(frozen=True)
class Run:
    """Frames in a row with the same model and reason, from and to a moment in seconds."""

    start: float
    end: float
    model: str | None
    reason: str | None

    @property
    def label(self) -> str:
        """For example "multi-frame · moving"."""
        model = (self.model or "no answer").replace("_", "-")
        return f"{model} · {self.reason}" if self.reason else model


def times_of(frames: Sequence[FrameRecord]) -> list[float]:
    """Seconds since the first frame."""
    return [(frame.stamp_ns - frames[0].stamp_ns) / 1e9 for frame in frames]


def percent_of(seconds: float, duration: float) -> float:
    """Where a moment lies on the timeline, in percent of its width."""
    return 100 * (_LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / max(duration, 1e-9)) / _WIDTH


def runs_of(frames: Sequence[FrameRecord]) -> Iterator[Run]:
    """Runs of the same model and reason; a run lasts until the next one begins."""
    times = times_of(frames)
    start = 0
    for i in range(1, len(frames) + 1):
        first = frames[start]
        if i < len(frames) and (frames[i].model, frames[i].reason) == (first.model, first.reason):
            continue
        yield Run(times[start], times[min(i, len(frames) - 1)], first.model, first.reason)
        start = i


def timeline(frames: Sequence[FrameRecord]) -> str:
    """Model and reason as a band over time, the speed and the error as lines below."""
    if not frames:
        return ""
    times = times_of(frames)
    figure = new_figure(_WIDTH, 262)
    duration = max(times[-1], 1e-9)
    band = new_axes(figure, _LEFT, 26, _WIDTH - _RIGHT, 56)
    _draw_runs(band, list(runs_of(frames)), duration)
    speeds = [None if f.speed is None else abs(f.speed) for f in frames]
    errors = [f.abs_rel for f in frames]
    curves = ((78, speeds, BLUE, "speed, m/s"), (166, errors, RED, "AbsRel"))
    for top, values, colour, label in curves:
        axes = new_axes(figure, _LEFT, top, _WIDTH - _RIGHT, top + 72)
        _draw_curve(axes, times, values, colour, label)
        axes.set_xlim(0, duration)
    band.set_xlim(0, duration)
    axes.tick_params(labelbottom=True)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g} s")
    return svg(figure)


def _draw_runs(axes: Axes, runs: Sequence[Run], duration: float) -> None:
    axes.set_axis_off()
    pixel = duration / (_WIDTH - _LEFT - _RIGHT)
    spans = [(run.start, max(run.end - run.start - pixel, 1.5 * pixel)) for run in runs]
    colours = [_COLOURS.get(run.model or "", _NO_ANSWER) for run in runs]
    axes.broken_barh(spans, (0, 1), facecolors=colours)
    axes.set_ylim(0, 1)
    for run, (start, width) in zip(runs, spans, strict=True):
        if width > _LETTER * len(run.label) * pixel:
            axes.text(
                start + width / 2,
                0.5,
                plain(run.label),
                color="#10131a",
                size=11,
                weight="bold",
                ha="center",
                va="center",
            )


def _draw_curve(
    axes: Axes, times: list[float], values: Sequence[float | None], colour: str, label: str
) -> None:
    """One curve, interrupted where nothing is known, between 0 and its largest value."""
    known = [value for value in values if value is not None]
    title = label if known else f"{label} (not recorded)"
    axes.set_title(title, loc="left", color=colour, size=11, pad=3)
    axes.grid(visible=False, axis="x")
    axes.tick_params(labelbottom=False)
    highest = max([*known, 1e-9])
    axes.set_yticks([0, highest] if known else [], ["0", f"{highest:.2g}"] if known else [])
    axes.set_ylim(0, 1.03 * highest)
    axes.plot(times, [np.nan if v is None else v for v in values], color=colour, linewidth=1.8)


def histogram(latencies: Sequence[float], percentiles: dict[str, float | None]) -> str:
    """Counts over milliseconds, with p50, p95 and p99 marked; "" where there are none."""
    if not latencies:
        return ""
    # One slow frame must not squeeze all others into one bar: the last bar holds what is beyond.
    top = max(1e-3, float(np.percentile(latencies, 99)) * 1.15)
    figure = new_figure(540, 190)
    axes = new_axes(figure, 20, 34, 520, 160)
    axes.grid(visible=False)
    axes.hist(
        np.minimum(latencies, top * (1 - 1e-9)), bins=30, range=(0, top), color=BLUE, rwidth=0.9
    )
    axes.set_yticks([])
    axes.set_xticks(np.linspace(0, top, 5))
    axes.xaxis.set_major_formatter(lambda milliseconds, _: f"{milliseconds:.0f} ms")
    highest = axes.get_ylim()[1]
    for name, value in percentiles.items():
        if value is not None and value <= top:
            tall = (1.02 if name == "p99" else 1.14) * highest  # apart, so that names never meet
            axes.plot([value, value], [0, tall], color=ORANGE, ls=(0, (3, 3)), lw=1, clip_on=False)
            axes.text(
                value, tall, f"{name} {value:.0f}", color=DIM, size=11, ha="center", va="bottom"
            )
    axes.set_ylim(0, highest)
    axes.set_xlim(0, top)
    return svg(figure)


_TEMPLATE = Path(__file__).parent / "templates" / "report.html"
_KINDS = {"image": "image", "depth": "depth", "truth": "true depth", "error": "relative error"}
# Bytes of pictures, before base64: with it, the page stays below 8 MB.
_PICTURE_BUDGET = 5_500_000
_STRIP = 8
_PICKED = 3
_COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3", "flicker")
_ROWS = {
    "all": "as published",
    "single_frame": "single-frame, forced",
    "multi_frame": "multi-frame, forced",
}


def report(folder: Path) -> Path:
    """Make report.html of a finished replay's folder again; raises RecordingError."""
    results = load(folder)
    try:
        text = render(folder, results)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RecordingError(
            f"{folder}: figures that no replay writes ({type(error).__name__}: {error}); replay "
            "the recording again"
        ) from error
    out = folder / REPORT
    write_text(out, text)
    return out


def render(folder: Path, results: Results) -> str:
    """The page as text; `folder` holds the pictures."""
    run, metrics, frames = results.run, results.metrics, results.frames
    shown = _within_budget(folder, [f for f in frames if f.pictures])
    views = {k: n for k, n in _KINDS.items() if shown and _picture(folder, shown[0], k).is_file()}
    answered = [f.latency_ms for f in frames if f.latency_ms is not None]
    way = "pipeline" if metrics["mode"] == "offline" else "depth node"
    return page.render(
        _TEMPLATE,
        title=f"depth_prior_ros · {run['recording']}",
        subtitle=f"{metrics['frames_in']} frames through the {way}, bundle "
        f"{run['bundle']['name']}, {metrics['mode']}",
        figures=_figures(metrics),
        views=views,
        scales=_scales(views),
        frames=_frame_data(folder, frames, shown, views),
        timeline=timeline(frames),
        strip=_strip(shown, frames),
        picked=_picked(shown),
        rows=_depth_rows(metrics),
        columns=_COLUMNS,
        note=_protocol(metrics["protocol"]),
        switches=metrics["switches"],
        latency=histogram(answered, metrics["latency_ms"]),
        details=_details(metrics, run),
    )


def _picture(folder: Path, frame: FrameRecord, kind: str) -> Path:
    return folder / PICTURES / f"{frame.index:06d}_{kind}.jpg"


def _within_budget(folder: Path, frames: list[FrameRecord]) -> list[FrameRecord]:
    """Every n-th frame, n the smallest for which the pictures fit."""
    sizes = {
        frame.index: sum(
            path.stat().st_size
            for kind in _KINDS
            if (path := _picture(folder, frame, kind)).is_file()
        )
        for frame in frames
    }
    stride = 1
    while sum(sizes[f.index] for f in frames[::stride]) > _PICTURE_BUDGET:
        stride += 1
    return frames[::stride]


def _frame_data(
    folder: Path, frames: list[FrameRecord], shown: list[FrameRecord], kinds: Iterable[str]
) -> list[dict[str, Any]]:
    """What the page's script knows of the frames that it shows."""
    data = []
    for frame in shown:
        seconds = (frame.stamp_ns - frames[0].stamp_ns) / 1e9
        duration = (frames[-1].stamp_ns - frames[0].stamp_ns) / 1e9
        entry: dict[str, Any] = {
            "index": frame.index,
            "time": seconds,
            "x": round(percent_of(seconds, duration), 2),
            "speed": frame.speed,
            "model": frame.model,
            "reason": frame.reason,
            "abs_rel": frame.abs_rel,
            "latency": frame.latency_ms,
        }
        for kind in kinds:
            path = _picture(folder, frame, kind)
            if path.is_file():
                entry[kind] = page.data_uri(path.read_bytes())
        data.append(entry)
    return data


def _figures(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    depth, latency = metrics["depth"]["all"], metrics["latency_ms"]
    best = min(
        (b["abs_rel"] for b in metrics["baselines"].values() if b["abs_rel"] is not None),
        default=None,
    )
    beside = f"AbsRel; best image-independent map {number(best)}" if best else "AbsRel"
    stationary = sum(s["reason"] == "stationary" for s in metrics["switches"])
    return [
        (
            f"{metrics['frames_out']} / {metrics['frames_in']}",
            f"depth images / frames, {metrics['dropped']} dropped",
        ),
        (number(depth["abs_rel"]), beside if depth["frames"] else "AbsRel: no true depth"),
        (
            f"{number(latency['p50'], 0)} ms",
            f"median latency; p95 {number(latency['p95'], 0)}, p99 {number(latency['p99'], 0)} ms",
        ),
        (str(len(metrics["switches"])), f"model switches, {stationary} of them: stationary"),
    ]


def _scales(views: dict[str, str]) -> list[tuple[str, str, list[str]]]:
    """Titles, colours and labels of what the pictures' colours mean."""
    near, far, largest = pictures.NEAR, pictures.FAR, pictures.LARGEST_ERROR
    title = "depth (scaled to the truth by medians)" if "truth" in views else "depth"
    labels = [f"{near:g} m", f"{(near * far) ** 0.5:.0f} m", f"{far:g} m"]
    scales = [(title, colours.depth_gradient(near, far), labels)]
    if "error" in views:
        labels = ["0 %", f"{largest / 2:.0%}", f"{largest:.0%} and more"]
        scales.append(("relative error", colours.heat_gradient(), labels))
    return scales


def _strip(shown: list[FrameRecord], frames: list[FrameRecord]) -> list[tuple[int, str]]:
    """Numbers and words of frames spread over the drive; the script fills in their pictures."""
    count = min(_STRIP, len(shown))
    picked = sorted({round(i * (len(shown) - 1) / max(1, count - 1)) for i in range(count)})
    found = []
    for i in picked:
        seconds = (shown[i].stamp_ns - frames[0].stamp_ns) / 1e9
        model = (shown[i].model or "").replace("_", "-")
        found.append((i, f"{seconds:.1f} s · {model} {shown[i].reason}"))
    return found


def _picked(shown: list[FrameRecord]) -> list[tuple[str, list[tuple[int, int]]]]:
    """The best and the worst of the frames with pictures: their places, and their numbers."""
    known = [(frame.abs_rel, i) for i, frame in enumerate(shown) if frame.abs_rel is not None]
    if not known:
        return []
    ordered = [(i, shown[i].index) for _, i in sorted(known)]
    return [("best", ordered[:_PICKED]), ("worst", ordered[::-1][:_PICKED])]


def _depth_rows(metrics: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Style, name and cells of the entries of `depth` and the image-independent maps."""
    if not metrics["depth"]["all"]["frames"]:
        return []
    depth = metrics["depth"]
    entries = [("ours", name, depth[key]) for key, name in _ROWS.items() if depth[key]["frames"]]
    entries.append(("", "as published, metres as they are (no scaling)", metrics["absolute"]))
    baselines = metrics["baselines"].items()
    entries += [("other", BASELINE_LABELS.get(name, name), entry) for name, entry in baselines]
    return [
        (kind, name, [*(number(entry.get(column)) for column in _COLUMNS), str(entry["frames"])])
        for kind, name, entry in entries
    ]


def _protocol(protocol: dict[str, Any] | None) -> str:
    if protocol is None:
        return ""
    crop = f"{protocol['crop'].capitalize()} crop" if protocol["crop"] else "no crop"
    scaling = "median scaling" if protocol["scaling"] == "median" else "no scaling"
    return f"{scaling}, {crop}, up to {protocol['max_depth']:g} m, {protocol['depth_source']} depth"


def _details(metrics: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    bundle = run["bundle"]
    models = ", ".join(f"{name}: {count}" for name, count in metrics["models"].items())
    return {
        "command": run["command"],
        "bundle": f"{bundle['name']}, {bundle['digest']}",
        "licence of the weights": bundle["licence"],
        "licence of the pictures": "that of the recording",
        "trained on": ", ".join(bundle["data_sources"]) or "not stated",
        "metric factor": bundle["metres_per_unit_source"],
        "references": run.get("references", "not recorded"),
        "frames by model": models or "none",
        "latency": run.get("latency", "from publishing an image to holding its depth"),
        "left out": "; ".join(metrics["skipped"]) or "nothing",
        "notes": "; ".join(run["notes"]) or "none",
        "node": ", ".join(f"{k}: {v}" for k, v in run["node"].items() if v),
        "versions": ", ".join(f"{k} {v}" for k, v in run["versions"].items()),
    }
