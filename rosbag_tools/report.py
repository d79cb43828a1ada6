"""report.html: one file that carries everything in itself, made from a replay's saved results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from depth_prior_ros.atomic_files import write_text
from rosbag_tools import charts, pictures
from rosbag_tools.console import number
from rosbag_tools.report_page import PAGE, SCRIPT, STYLE
from rosbag_tools.results import PICTURES, REPORT, FrameRecord, Results, load
from rosbag_tools.scoring import BASELINE_LABELS

_KINDS = {"image": "image", "depth": "depth", "truth": "true depth", "error": "relative error"}
# Bytes of pictures, before base64: with it, the page stays below 8 MB.
_PICTURE_BUDGET = 5_500_000
_STRIP = 8
_COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


def report(folder: Path) -> Path:
    """Make report.html of a finished replay's folder again; raises RecordingError."""
    page = render(folder, load(folder))
    out = folder / REPORT
    write_text(out, page)
    return out


def render(folder: Path, results: Results) -> str:
    """The page as text; `folder` holds the pictures."""
    shown = _within_budget(folder, [f for f in results.frames if f.pictures])
    kinds = [kind for kind in _KINDS if shown and _picture(folder, shown[0], kind).is_file()]
    run, metrics = results.run, results.metrics
    data = _frame_data(folder, results.frames, shown, kinds)
    parts = {
        "TITLE": f"depth_prior_ros · {escape(run['recording'])}",
        "SUBTITLE": escape(
            f"{metrics['frames_in']} frames through the depth node, bundle "
            f"{run['bundle']['name']}, {metrics['mode']}"
        ),
        "CARDS": _cards(metrics),
        "STAGE": _stage(kinds, len(shown)),
        "TIMELINE": charts.timeline(results.frames),
        "STRIP": _strip(shown, results.frames),
        "DEPTH": depth_table(metrics),
        "SWITCHES": _switches(metrics),
        "LATENCY": charts.histogram(
            [f.latency_ms for f in results.frames if f.latency_ms is not None],
            metrics["latency_ms"],
        ),
        "DETAILS": _details(metrics, run),
        "STYLE": STYLE,
        "SCRIPT": SCRIPT.replace("START", str(len(shown) // 4)),
        # a name with "</script>" in it must not end the element
        "FRAMES": json.dumps(data).replace("<", "\\u003c"),
    }
    # in one pass: what is filled in may hold the name of another place
    return re.sub(r"@([A-Z]+)@", lambda place: parts[place.group(1)], PAGE)


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
    folder: Path, frames: list[FrameRecord], shown: list[FrameRecord], kinds: list[str]
) -> list[dict[str, Any]]:
    if not frames:
        return []
    first, duration = frames[0].stamp_ns, (frames[-1].stamp_ns - frames[0].stamp_ns) / 1e9
    data = []
    for frame in shown:
        seconds = (frame.stamp_ns - first) / 1e9
        entry: dict[str, Any] = {
            "index": frame.index,
            "time": seconds,
            "x": round(charts.x_of(seconds, duration), 1),
            "speed": frame.speed,
            "model": frame.model,
            "reason": frame.reason,
            "abs_rel": frame.abs_rel,
            "latency": frame.latency_ms,
        }
        for kind in kinds:
            path = _picture(folder, frame, kind)
            if path.is_file():
                entry[kind] = pictures.data_uri(path.read_bytes())
        data.append(entry)
    return data


def _cards(metrics: dict[str, Any]) -> str:
    depth, latency = metrics["depth"]["all"], metrics["latency_ms"]
    best = min(
        (b["abs_rel"] for b in metrics["baselines"].values() if b["abs_rel"] is not None),
        default=None,
    )
    beside = f"AbsRel; best image-independent map {number(best)}" if best else "AbsRel"
    stationary = sum(s["reason"] == "stationary" for s in metrics["switches"])
    cards = [
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
    return "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in cards)


def _stage(kinds: Sequence[str], count: int) -> str:
    if not count:
        return '<p class="dim">No depth came back, so there are no pictures.</p>'
    views = "".join(
        f'<figure><img id="{kind}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for kind, name in _KINDS.items()
        if kind in kinds
    )
    middle = (pictures.NEAR * pictures.FAR) ** 0.5
    scales = _scale(
        "depth (scaled to the truth by medians)" if "truth" in kinds else "depth",
        pictures.depth_gradient(),
        [f"{pictures.NEAR:g} m", f"{middle:.0f} m", f"{pictures.FAR:g} m"],
    )
    if "error" in kinds:
        largest = pictures.LARGEST_ERROR
        labels = ["0 %", f"{largest / 2:.0%}", f"{largest:.0%} and more"]
        scales += _scale("relative error", pictures.error_gradient(), labels)
    black = "beyond the range, or no truth" if "truth" in kinds else "beyond the range"
    scales += f'<div class="scale">black: {black}<br>grey: unknown</div>'
    return (
        f'<div class="stage"><div class="views">{views}</div>'
        '<div class="controls"><button id="play">Play</button>'
        f'<input type="range" id="slider" min="0" max="{count - 1}" value="0" '
        'aria-label="frame"></div><div id="caption"></div>'
        f'<div class="scales">{scales}</div></div>'
    )


def _scale(title: str, colours: list[str], labels: list[str]) -> str:
    ends = "".join(f"<span>{label}</span>" for label in labels)
    gradient = ",".join(colours)
    return (
        f'<div class="scale">{title}<i style="background:linear-gradient(90deg,{gradient})"></i>'
        f"<div>{ends}</div></div>"
    )


def _strip(shown: list[FrameRecord], frames: list[FrameRecord]) -> str:
    """Frames spread over the drive; the script fills in their pictures."""
    count = min(_STRIP, len(shown))
    picked = sorted({round(i * (len(shown) - 1) / max(1, count - 1)) for i in range(count)})
    cells = []
    for i in picked:
        seconds = (shown[i].stamp_ns - frames[0].stamp_ns) / 1e9
        text = f"{seconds:.1f} s · {(shown[i].model or '').replace('_', '-')} {shown[i].reason}"
        cells.append(
            f'<div data-frame="{i}"><img alt="image"><img alt="depth">{escape(text)}</div>'
        )
    return "".join(cells)


def depth_table(metrics: dict[str, Any]) -> str:
    """The entries of `depth` and the image-independent maps as an HTML table."""
    if not metrics["depth"]["all"]["frames"]:
        return '<p class="dim">The recording has no true depth.</p>'
    protocol = metrics["protocol"]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in (*_COLUMNS, "frames"))
    rows = []
    names = {
        "all": "as published",
        "single_frame": "single-frame, forced",
        "multi_frame": "multi-frame, forced",
    }
    for key, name in names.items():
        if metrics["depth"][key]["frames"]:
            rows.append(_row(name, metrics["depth"][key], "ours"))
    rows.append(_row("as published, metres as they are (no scaling)", metrics["absolute"], ""))
    rows += [
        _row(BASELINE_LABELS.get(name, name), entry, "other")
        for name, entry in metrics["baselines"].items()
    ]
    crop = f"{protocol['crop'].capitalize()} crop" if protocol["crop"] else "no crop"
    scaling = "median scaling" if protocol["scaling"] == "median" else "no scaling"
    note = f"{scaling}, {crop}, up to {protocol['max_depth']:g} m, {protocol['depth_source']} depth"
    return (
        f"<table><tr><th>depth</th>{head}</tr>{''.join(rows)}</table>"
        f'<p class="dim">{escape(note)}. Grey rows: maps that do not look at the image.</p>'
    )


def _row(name: str, entry: dict[str, Any], kind: str) -> str:
    cells = "".join(f"<td>{number(entry[column])}</td>" for column in _COLUMNS)
    return f'<tr class="{kind}"><td>{escape(name)}</td>{cells}<td>{entry["frames"]}</td></tr>'


def _switches(metrics: dict[str, Any]) -> str:
    if not metrics["switches"]:
        return '<p class="dim">The model never changed.</p>'
    rows = "".join(
        f"<tr><td>{s['frame']}</td><td>{s['stamp']:.2f}</td>"
        f'<td><span class="tag {s["from"]}">{s["from"].replace("_", "-")}</span> → '
        f'<span class="tag {s["to"]}">{s["to"].replace("_", "-")}</span></td>'
        f"<td>{escape(str(s['reason']))}</td></tr>"
        for s in metrics["switches"]
    )
    return (
        "<table><tr><th>frame</th><th>stamp, s</th><th>models</th><th>reason</th></tr>"
        f"{rows}</table>"
    )


def _details(metrics: dict[str, Any], run: dict[str, Any]) -> str:
    bundle = run["bundle"]
    models = ", ".join(f"{name}: {count}" for name, count in metrics["models"].items())
    rows = {
        "command": f"<code>{escape(run['command'])}</code>",
        "bundle": escape(f"{bundle['name']}, {bundle['digest']}"),
        "licence of the weights": escape(bundle["licence"]),
        "licence of the pictures": "that of the recording",
        "trained on": escape(", ".join(bundle["data_sources"]) or "not stated"),
        "metric factor": escape(bundle["metres_per_unit_source"]),
        "frames by model": escape(models) or "none",
        "latency": "from publishing an image to holding its depth, in the replay's process",
        "left out": escape("; ".join(metrics["skipped"])) or "nothing",
        "notes": escape("; ".join(run["notes"])) or "none",
        "node": escape(", ".join(f"{k}: {v}" for k, v in run["node"].items() if v)),
        "versions": escape(", ".join(f"{k} {v}" for k, v in run["versions"].items())),
    }
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items()) + "</dl>"
