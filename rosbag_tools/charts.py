"""The report's charts as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from rosbag_tools.results import FrameRecord

WIDTH = 1140
_LEFT, _RIGHT = 46, 46
_COLOURS = {"multi_frame": "#35b8a6", "single_frame": "#f0a94b"}
_NO_ANSWER = "#596075"


def times_of(frames: Sequence[FrameRecord]) -> list[float]:
    """Seconds since the first frame."""
    return [(frame.stamp_ns - frames[0].stamp_ns) / 1e9 for frame in frames]


def x_of(seconds: float, duration: float) -> float:
    """Where a moment lies on the timeline."""
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * seconds / max(duration, 1e-9)


def timeline(frames: Sequence[FrameRecord]) -> str:
    """Model and reason as a band over time, the speed and the error as lines below."""
    if not frames:
        return ""
    times = times_of(frames)
    duration = times[-1]
    parts = [f'<svg id="timeline" viewBox="0 0 {WIDTH} 262" role="img">']
    parts += _band(frames, times, duration)
    speeds = [None if f.speed is None else abs(f.speed) for f in frames]
    parts += _line(times, duration, speeds, 78, 152, "#7aa2ff", "speed, m/s")
    errors = [f.abs_rel for f in frames]
    parts += _line(times, duration, errors, 166, 236, "#ff7d8f", "AbsRel")
    for second in _ticks(duration):
        x = x_of(second, duration)
        parts.append(f'<text x="{x:.1f}" y="254" text-anchor="middle">{second:g} s</text>')
    parts.append(
        '<line id="cursor" y1="12" y2="240" x1="-5" x2="-5" stroke="#fff" stroke-opacity=".8"/>'
    )
    return "".join([*parts, "</svg>"])


def histogram(latencies: Sequence[float], percentiles: dict[str, float | None]) -> str:
    """Counts over milliseconds, with p50, p95 and p99 marked."""
    if not latencies:
        return '<p class="dim">No depth came back.</p>'
    width, height, base = 540, 190, 160
    # One slow frame must not squeeze all others into one bar: the last bar holds what is beyond.
    top = max(1e-3, float(np.percentile(latencies, 99)) * 1.15)
    bars = 30
    counts, _ = np.histogram(np.minimum(latencies, top * (1 - 1e-9)), bins=bars, range=(0, top))
    step = (width - 40) / bars
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for i, count in enumerate(counts):
        tall = (base - 30) * count / counts.max()
        parts.append(
            f'<rect x="{20 + i * step:.1f}" y="{base - tall:.1f}" width="{step - 1.5:.1f}" '
            f'height="{tall:.1f}" rx="1.5" fill="#7aa2ff"/>'
        )
    for name, value in percentiles.items():
        if value is not None and value <= top:
            x = 20 + (width - 40) * value / top
            y = {"p50": 14, "p95": 14, "p99": 28}.get(name, 14)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 3}" y2="{base}" stroke="#f0a94b" '
                f'stroke-dasharray="3 3"/><text x="{x:.1f}" y="{y}" text-anchor="middle">'
                f"{name} {value:.0f}</text>"
            )
    for i in range(5):
        x = 20 + (width - 40) * i / 4
        parts.append(
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{top * i / 4:.0f} ms</text>'
        )
    return "".join([*parts, "</svg>"])


def _band(frames: Sequence[FrameRecord], times: list[float], duration: float) -> list[str]:
    """Runs of the same model and reason as labelled boxes."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(frames) + 1):
        same = i < len(frames) and (frames[i].model, frames[i].reason) == (
            frames[start].model,
            frames[start].reason,
        )
        if same:
            continue
        end = times[i] if i < len(frames) else duration
        x, right = x_of(times[start], duration), x_of(end, duration)
        colour = _COLOURS.get(frames[start].model or "", _NO_ANSWER)
        model = (frames[start].model or "no answer").replace("_", "-")
        label = f"{model} · {frames[start].reason}" if frames[start].reason else model
        width = max(1.5, right - x - 1)
        parts.append(
            f'<rect x="{x:.1f}" y="26" width="{width:.1f}" height="30" rx="4" fill="{colour}">'
            f"<title>{escape(label)}</title></rect>"
        )
        if width > 6.2 * len(label):
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="45" text-anchor="middle" '
                f'style="fill:#10131a;font-weight:600">{escape(label)}</text>'
            )
        start = i
    return parts


def _line(
    times: list[float],
    duration: float,
    values: Sequence[float | None],
    top: float,
    bottom: float,
    colour: str,
    label: str,
) -> list[str]:
    """One curve between two heights, interrupted where nothing is known, with its scale."""
    known = [value for value in values if value is not None]
    title = f'<text x="{_LEFT}" y="{top - 3}" style="fill:{colour}">{label}'
    if not known:
        return [title + " (not recorded)</text>"]
    highest = max(max(known), 1e-9)
    parts = [title + "</text>"]
    for label_value, y in ((0.0, bottom), (highest, top + 10)):
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#2c3243"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{label_value:.2g}</text>'
        )
    points: list[str] = []
    for moment, value in [*zip(times, values, strict=True), (0.0, None)]:
        if value is None:
            if points:
                parts.append(
                    f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
                    'stroke-width="1.8" stroke-linejoin="round"/>'
                )
            points = []
            continue
        y = bottom - (bottom - top - 10) * value / highest
        points.append(f"{x_of(moment, duration):.1f},{y:.1f}")
    return parts


def _ticks(duration: float) -> list[float]:
    step = next((s for s in (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300) if duration / s <= 12), 600)
    return [round(i * step, 3) for i in range(int(duration / step) + 1)]
