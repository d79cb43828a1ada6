"""The report's charts: what happened over time, and how long answers took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from depth_prior_ros.pages.charts import new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, DIM, ORANGE, RED
from rosbag_tools.reports.results import FrameRecord

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
