"""Charts of the prior's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.pages.charts import legend, new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, CARD, DIM, GREEN, INK, ORANGE, RED, colour_heat
from training.prior.explain.statistics import DriveShare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = (BLUE, ORANGE, GREEN, RED)
Ticks = Sequence[tuple[float, str]]
_WIDTH, _MARGIN = 1140, 12


@dataclass(frozen=True)
class Series:
    """One distribution: shares of the bars between edges; drawn as bars or as an outline."""

    name: str
    shares: NDArray[np.float64]
    colour: str
    filled: bool = False


def distribution(
    edges: NDArray[np.float64],
    series: Sequence[Series],
    ticks: Ticks,
    height: int = 230,
    cut_ends: bool = False,
) -> str:
    """Shares over a logarithmic axis; `ticks` are places on it and their words.

    With ``cut_ends`` the outer bars, which hold what is beyond, do not decide the height.
    """
    inner = slice(1, -1) if cut_ends else slice(None)
    highest = max(float(s.shares[inner].max()) for s in series) or 1.0
    figure = new_figure(_WIDTH, height)
    axes = new_axes(figure, _MARGIN, 34, _WIDTH - _MARGIN, height - 26)
    axes.set_xscale("log")
    for one in series:
        if one.filled:
            bars = axes.bar(edges[:-1], one.shares, np.diff(edges), align="edge", label=one.name)
            for bar in bars:
                bar.set(color=one.colour, edgecolor=CARD)
        else:
            axes.stairs(one.shares, edges, color=one.colour, lw=2, label=one.name)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.06 * highest)
    axes.set_yticks([])
    _name_places(axes, ticks)
    legend(axes)
    words = f"top {highest:.1%}"
    if cut_ends:
        words += "; last bar: " + ", ".join(f"{s.name} {s.shares[-1]:.0%}" for s in series)
    _write(axes, 1, 1.03, words, ha="right")
    return svg(figure)


def curves(named: Sequence[tuple[str, NDArray[np.float64]]], across: str, up: str) -> str:
    """Curves (points, 2) in the unit square, with the diagonal."""
    figure, axes = _square(across, up)
    axes.plot([0, 1], [0, 1], color=DIM, ls=(0, (4, 4)), lw=1)
    for (name, points), colour in zip(named, LINES, strict=False):
        axes.plot(*points.T, color=colour, lw=2, label=name)
    quarters = np.linspace(0, 1, 5)
    axes.set_xticks(quarters, [f"{share:.0%}" for share in quarters])
    axes.set_yticks(quarters, [f"{share:.0%}" for share in quarters])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    legend(axes)
    return svg(figure)


def columns(
    shares: NDArray[np.float64], edges: NDArray[np.float64], ticks: Ticks, names: tuple[str, str]
) -> str:
    """Distributions side by side, (bars up, bars across), both axes logarithmic, with diagonal."""
    figure, axes = _square(*names)
    low, high = np.log(edges[0]), np.log(edges[-1])
    bright = np.sqrt(shares / max(float(shares.max()), 1e-12))
    extent = (low, high, low, high)
    axes.imshow(colour_heat(bright), origin="lower", extent=extent, interpolation="none")
    axes.plot([low, high], [low, high], color="white", alpha=0.5, ls=(0, (4, 4)), lw=1)
    axes.grid(visible=False)
    places, words = [np.log(value) for value, _ in ticks], [name for _, name in ticks]
    axes.set_xticks(places, words)
    axes.set_yticks(places, words)
    return svg(figure)


def drive_bars(drives: Sequence[DriveShare], total: int) -> str:
    """References by recording, with the share of the weight as a second, thinner bar."""
    rows = np.arange(len(drives))
    height = 34 * len(drives) + 40
    figure = new_figure(_WIDTH, height)
    axes = new_axes(figure, 270, 30, _WIDTH - 310, height - 8)
    axes.grid(visible=False)
    references = [drive.references / total for drive in drives]
    weights = [drive.weight or 0.0 for drive in drives]
    axes.barh(rows, references, 0.4, color=BLUE, label="share of the references")
    if drives[0].weight is not None:
        axes.barh(rows + 0.32, weights, 0.18, color=ORANGE, label="share of the weight")
    axes.set_xlim(0, max(*references, *weights))
    axes.set_ylim(len(drives) - 0.4, -0.5)
    axes.set_xticks([])
    axes.set_yticks(rows, [plain(drive.name) for drive in drives], color=INK)
    for row, drive in enumerate(drives):
        words = f"{drive.references:,} of {drive.images:,} images"
        if drive.weight is not None:
            words += f" · {drive.weight:.1%} of the weight"
        across = axes.get_yaxis_transform()
        axes.text(1.535, row, words, color=DIM, size=11, ha="right", va="center", transform=across)
    legend(axes)
    return svg(figure)


def ranked_bars(counts: NDArray[np.int64]) -> str:
    """References by image, largest first, as one silhouette."""
    figure = new_figure(_WIDTH, 130)
    axes = new_axes(figure, _MARGIN, 26, _WIDTH - _MARGIN, 108)
    axes.set_axis_off()
    tall = [group.mean() for group in np.array_split(counts, min(len(counts), 400))]
    axes.stairs(tall, fill=True, color=BLUE, alpha=0.8)
    axes.set_xlim(0, len(tall))
    axes.set_ylim(0, max(tall))
    _write(axes, 0, 1.04, f"most: {int(counts.max()):,}")
    _write(axes, 1, 1.04, f"least: {int(counts.min()):,}", ha="right")
    _write(axes, 0, -0.04, "image 1", va="top")
    _write(axes, 1, -0.04, f"image {len(counts):,}", ha="right", va="top")
    return svg(figure)


def _square(across: str, up: str, size: int = 400) -> tuple[Figure, Axes]:
    figure = new_figure(size, size)
    axes = new_axes(figure, 56, 30, size - 18, size - 44)
    axes.set_xlabel(across, color=DIM, size=11)
    axes.set_ylabel(up, color=DIM, size=11)
    return figure, axes


def _name_places(axes: Axes, ticks: Ticks) -> None:
    """Marks of a logarithmic axis: these alone."""
    axes.set_xticks([value for value, _ in ticks], [words for _, words in ticks])
    axes.minorticks_off()


def _write(
    axes: Axes, x: float, y: float, words: str, ha: str = "left", va: str = "bottom"
) -> None:
    """Words at a place given as shares of the axes."""
    where = axes.transAxes
    axes.text(x, y, plain(words), color=DIM, size=11, ha=ha, va=va, transform=where)
