"""`depth_train explain`, the picture: what was looked up at a few pixels of an image."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.bundle import Bundle
from depth_prior_ros.pages.charts import plain
from depth_prior_ros.pages.colours import BACK, BLUE, CARD, DIM, INK, LINE, colour_depth
from training.prior.explain.lookup import (
    ExplainError,
    Lookup,
    Prediction,
    PriorReader,
    default_pixels,
)
from training.prior.explain.sources import (
    Source,
    SourcePictures,
    crop_around,
    data_root,
    one_image,
    read_origins,
)
from training.prior.explain.statistics import FAR, NEAR, depth_edges, depth_shares, metres, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUERY_COLOURS = ("#ff5d73", "#ffd166", "#4cd7a5", "#5aa9ff", "#c792ff", "#ff9f5a", "#8ee3f5")
KINDS = ("png", "jpg", "jpeg")

_DPI = 110
# Inches.
_WIDTH, _MARGIN, _GAP, _TITLE, _TALLEST, _FOOT = 17.0, 0.3, 0.12, 0.75, 4.4, 0.5
_ROW, _TILE, _WORDS, _CHART = 1.75, 1.78, 2.25, 3.3


@dataclass
class Explanation:
    """One image and what was looked up at some of its pixels.

    `names` says what a pixel probably shows; `count` references are drawn for each.
    """

    image: NDArray[np.uint8]
    prediction: Prediction
    lookups: list[Lookup]
    reader: PriorReader
    sources: SourcePictures
    title: str
    names: dict[tuple[int, int], str]
    count: int


def explain_image(
    bundle: Bundle | str | Path,
    image: Path,
    out: Path,
    *,
    pixels: Sequence[tuple[int, int]] = (),
    branch: str | None = None,
    data: Path | None = None,
    frame: int | None = None,
    reading: Any = None,
    top: int = 5,
) -> str:
    """Write the picture of what was looked up at some pixels of an image.

    Args:
        bundle: the bundle, its folder or name; with a prior.
        image: an image file, or a recording.
        out: PNG or JPEG to write.
        pixels: (x, y) in the image's own pixels; default: a handful spread over it.
        branch: see `PriorReader`.
        data: folder with the recordings that the prior came from; default: $DEPTH_PRIOR_DATA.
        frame: of a recording; default: its middle.
        reading: how a recording is read, see `recording_options`; default: as it is found.
        top: references to show per pixel, 1 to 8.

    Returns:
        The same in words, a line per pixel.

    Raises:
        ExplainError: no prior, an image that cannot be read or framed, a pixel outside.
        BundleError: the bundle is damaged.
        OSError: ``out`` cannot be written; nothing is left of it.
    """
    if not 1 <= top <= 8:
        raise ExplainError(f"--top {top}: 1 to 8 references fit beside each other")
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ExplainError(f"{out}: a picture's name ends in .{', .'.join(KINDS)}")
    reader = PriorReader(bundle, branch)
    name, picture = one_image(image, frame, reading)
    prediction = reader.predict(picture)
    names = {} if pixels else default_pixels(prediction)
    lookups = [reader.look_up(prediction, pixel) for pixel in (pixels or names)]
    sources = SourcePictures(reader.bundle, read_origins(reader.bundle), data_root(data), [image])
    title = f"What {reader.bundle.manifest.name} looks up in {name}"
    write_bytes(
        out,
        draw(Explanation(picture, prediction, lookups, reader, sources, title, names, top), kind),
    )
    lines = [
        f"{number} {names.get(found.pixel, ''):6} pixel {found.pixel[0]},{found.pixel[1]}: looked "
        f"up {found.looked_up:.1f} m, predicted {found.predicted:.1f} m, "
        f"{found.neighbours:,.0f} effective neighbours of {len(reader):,}"
        for number, found in enumerate(lookups, 1)
    ]
    return "\n".join(lines)


def draw(explanation: Explanation, kind: str = "png") -> bytes:
    """The picture as a file of one of `KINDS`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = explanation.image.shape[:2]
    each = min((_WIDTH - 2 * _MARGIN - _GAP) / 2, _TALLEST * width / height)
    top = each * height / width
    rows = len(explanation.lookups)
    total = _TITLE + top + 0.62 + rows * (_ROW + _GAP) + _FOOT
    figure = Figure(figsize=(_WIDTH, total), dpi=_DPI, facecolor=BACK)
    FigureCanvasAgg(figure)
    page = _Page(figure, total, explanation)
    page.text(_MARGIN, 0.36, explanation.title, size=15, weight="bold")
    page.text(_MARGIN, 0.6, _subtitle(explanation.reader), size=10.5, color=DIM)
    _draw_views(page, each, top)
    y = _TITLE + top + 0.62
    for number, lookup in enumerate(explanation.lookups):
        _draw_row(page, number, lookup, y)
        y += _ROW + _GAP
    page.text(_MARGIN, total - 0.2, _legend(len(explanation.reader)), size=9.5, color=DIM)
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, facecolor=BACK)
    return stream.getvalue()


class _Page:
    """A figure in inches from its upper left corner, and what it shows."""

    def __init__(self, figure: Figure, height: float, shown: Explanation) -> None:
        self.figure, self.height, self.shown = figure, height, shown

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Empty axes with a thin frame."""
        box = (x / _WIDTH, 1 - (y + height) / self.height, width / _WIDTH, height / self.height)
        axes = self.figure.add_axes(box, facecolor=CARD)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(LINE)
        return axes

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Words whose base line begins at (x, y)."""
        style = {"color": INK, "size": 10.5, "va": "baseline", **style}
        self.figure.text(x / _WIDTH, 1 - y / self.height, plain(words), **style)


def _subtitle(reader: PriorReader) -> str:
    manifest = reader.bundle.manifest
    branches = {"pixel_wise": "pixel-wise branch", "hint": "depth-hint branch, mean of its heads"}
    branch = branches.get(reader.branch) or reader.branch.replace(
        "hint:", "depth-hint branch, head "
    )
    return f"bundle {manifest.name} · {len(reader):,} reference pixels · {branch}"


def _legend(count: int) -> str:
    return (
        f"Below a reference: depth, weight, recording · frame, weight as n× the even 1/{count:,}. "
        "Neighbours: effective number, exp of the weights' entropy. Bars: weight by depth; "
        "outline: the prior as it is, unweighted."
    )


def _draw_views(page: _Page, width: float, height: float) -> None:
    """The image and its depth side by side, with the query pixels."""
    image, prediction = page.shown.image.copy(), page.shown.prediction
    size = image.shape[1], image.shape[0]
    region = prediction.framed.region
    depth = np.full((size[1], size[0]), np.nan)
    window = cv2.resize(
        prediction.depth, (region.width, region.height), interpolation=cv2.INTER_LINEAR
    )
    depth[region.y : region.y + region.height, region.x : region.x + region.width] = window
    coloured = colour_depth(np.nan_to_num(depth, nan=FAR), NEAR, FAR)
    coloured[np.isnan(depth)] = (27, 31, 43)
    image[np.isnan(depth)] //= 3  # what the student does not see
    left = (_WIDTH - 2 * width - _GAP) / 2
    right = left + width + _GAP
    for x, picture in ((left, image), (right, coloured)):
        axes = page.axes(x, _TITLE, width, height)
        axes.imshow(picture, extent=(0, size[0], size[1], 0), aspect="auto")
        for number, lookup in enumerate(page.shown.lookups):
            _mark(axes, lookup, number)
        axes.set_xlim(0, size[0])
        axes.set_ylim(size[1], 0)
    below = _TITLE + height + 0.2
    page.text(left, below, "Boxes: the cells of the student's features that look up.", color=DIM)
    _draw_scale(page, right, _TITLE + height + 0.1, width)


def _mark(axes: Axes, lookup: Lookup, number: int) -> None:
    """The cell of the feature map that holds the pixel, and the query's number beside it."""
    from matplotlib.patches import Rectangle

    colour = QUERY_COLOURS[number % len(QUERY_COLOURS)]
    x, y, width, height = lookup.box
    for line, edge in ((4.0, "black"), (2.0, colour)):
        axes.add_patch(Rectangle((x, y), width, height, fill=False, lw=line, ec=edge))
    axes.text(
        x,
        y,
        str(number + 1),
        color="#10131a",
        size=11,
        weight="bold",
        ha="center",
        va="center",
        bbox={"boxstyle": "circle,pad=0.25", "fc": colour, "ec": "black", "lw": 0.8},
    )


def _draw_scale(page: _Page, x: float, y: float, width: float) -> None:
    """The colours of depth with their metres."""
    steps = np.geomspace(NEAR, FAR, 256)
    axes = page.axes(x, y, width, 0.13)
    axes.imshow(colour_depth(steps[None], NEAR, FAR), aspect="auto")
    for value in (2, 3, 5, 10, 20, 40, 80):
        share = np.log(value / NEAR) / np.log(FAR / NEAR)
        side = "left" if share < 0.01 else "right" if share > 0.99 else "center"
        page.text(x + share * width, y + 0.32, f"{value} m", size=9.5, color=DIM, ha=side)


def _draw_row(page: _Page, number: int, lookup: Lookup, y: float) -> None:
    colour = QUERY_COLOURS[number % len(QUERY_COLOURS)]
    tall = _ROW - 0.42
    query = page.axes(_MARGIN, y, _TILE, tall)
    x0, y0, width, height = lookup.box
    _show_crop(query, page.shown.image, (x0 + width / 2, y0 + height / 2), _TILE / tall, colour)
    _frame(query, colour)
    words = _MARGIN + _TILE + 2 * _GAP
    _draw_words(page, words, y, number, lookup)
    left = words + _WORDS
    right = _WIDTH - _MARGIN - _CHART
    step = (right - left - 2 * _GAP) / max(1, page.shown.count)
    for place, reference in enumerate(lookup.top(page.shown.count)):
        x = left + place * step
        _draw_tile(page, (x, y, step - _GAP, tall), lookup, int(reference))
    _draw_chart(page, right, y, lookup, colour, tall)


def _draw_words(page: _Page, x: float, y: float, number: int, lookup: Lookup) -> None:
    name, count = page.shown.names.get(lookup.pixel), page.shown.count
    held = float(lookup.weights[lookup.top(count)].sum())
    shown = min(count, len(lookup.weights))
    colour = QUERY_COLOURS[number % len(QUERY_COLOURS)]
    head = f"{number + 1}" + (f"  {name}" if name else "")
    page.text(x, y + 0.2, head, size=13, weight="bold", color=colour)
    lines = (
        (f"pixel {lookup.pixel[0]}, {lookup.pixel[1]}", DIM),
        (f"predicted  {metres(lookup.predicted)}", INK),
        (f"looked up  {metres(lookup.looked_up)}", BLUE),
        (f"{lookup.neighbours:,.0f} neighbours", INK),
        (f"top {shown}: {percent(held)}", DIM),
    )
    for place, (line, shade) in enumerate(lines):
        page.text(x, y + 0.45 + 0.225 * place, line, color=shade)


def _draw_tile(
    page: _Page, box: tuple[float, float, float, float], lookup: Lookup, reference: int
) -> None:
    """One reference: its surroundings in its image, or a grey field that says why not."""
    x, y, width, height = box
    reader, source = page.shown.reader, page.shown.sources[reference]
    depth = float(reader.metres[reference])
    colour = tuple(colour_depth(np.array(depth), NEAR, FAR) / 255)
    axes = page.axes(x, y, width, height)
    if source.image is None:
        axes.set_facecolor("#3a3f4d")
        words = plain(_wrapped(source.why, 24))
        axes.text(0.5, 0.5, words, color=INK, size=8.5, ha="center", va="center")
    else:
        _show_crop(axes, source.image, source.place, width / height, "white")
        _show_whole(axes, source)
    _frame(axes, colour)
    weight = float(lookup.weights[reference])
    page.text(x, y + height + 0.19, metres(depth), size=11, weight="bold")
    factor = weight * len(reader)
    times = f"{factor:,.0f}×" if factor >= 10 else f"{factor:.1f}×"
    page.text(x + width, y + height + 0.19, percent(weight), size=10, ha="right")
    page.text(x, y + height + 0.35, source.label, size=8.5, color=DIM)
    page.text(x + width, y + height + 0.35, times, size=8.5, color=DIM, ha="right")


def _wrapped(words: str, width: int) -> str:
    lines = textwrap.wrap(words, width)
    return "\n".join([*lines[:4], "…"] if len(lines) > 5 else lines)


def _show_crop(
    axes: Axes, image: NDArray[np.uint8], place: tuple[float, float], aspect: float, colour: str
) -> None:
    window, (u, v) = crop_around(image, place, aspect)
    axes.imshow(window, extent=(0, 1, 1, 0), aspect="auto")
    for size, width, edge in ((11, 3.4, "black"), (11, 1.7, colour)):
        axes.plot([u], [v], "o", ms=size, mfc="none", mec=edge, mew=width)
    axes.plot([u], [v], "o", ms=2.2, color=colour)
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)


def _show_whole(axes: Axes, source: Source) -> None:
    """Where in the whole image the window lies: a small frame with a dot."""
    from matplotlib.patches import Rectangle

    assert source.image is not None
    height, width = source.image.shape[:2]
    box = axes.get_window_extent()
    across = 0.3
    down = across * (box.width / box.height) * height / width
    x, y = source.place
    left, top = 0.03 if x > 0.1 * width or y > 0.3 * height else 0.97 - across, 0.04
    frame = Rectangle((left, top), across, down, fc=(0, 0, 0, 0.55), ec="white", lw=0.8)
    axes.add_patch(frame)
    axes.plot([left + across * x / width], [top + down * y / height], "o", ms=3, color="white")


def _frame(axes: Axes, colour: Any) -> None:
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.4)


def _draw_chart(page: _Page, x: float, y: float, lookup: Lookup, colour: str, tall: float) -> None:
    """How the weight is distributed over depth, beside the prior itself."""
    edges, depths = depth_edges(), page.shown.reader.metres
    shares = depth_shares(depths, lookup.weights)
    even = depth_shares(depths, np.full(len(depths), 1.0 / len(depths)))
    axes = page.axes(x, y, _CHART, tall)
    axes.set_xscale("log")
    axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=colour, ec=CARD, lw=0.6)
    axes.stairs(even, edges, color=DIM, lw=1.2)
    top = 1.4 * max(shares.max(), even.max())
    axes.set_ylim(0, top)
    axes.set_xlim(edges[0], edges[-1])
    _draw_lines(axes, ((lookup.predicted, INK, "-"), (lookup.looked_up, BLUE, "--")), top)
    ticks = (2, 5, 10, 20, 40, 80)
    axes.set_xticks(ticks, [str(t) for t in ticks], color=DIM, size=8.5)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=2, color=LINE, pad=2)
    label = f"{percent(float(shares.max()))}"
    axes.text(0.012, 0.95, label, transform=axes.transAxes, color=DIM, size=8.5, va="top")
    page.text(x + _CHART / 2, y + tall + 0.36, "metres", size=8.5, color=DIM, ha="center")


def _draw_lines(axes: Axes, lines: Sequence[tuple[float, str, str]], top: float) -> None:
    """Two depths as vertical lines, named where there is room."""
    low, high = axes.get_xlim()
    heights = (0.86 * top, 0.72 * top)  # apart, so that the names never meet
    for (depth, colour, style), name, tall in zip(
        lines, ("predicted", "looked up"), heights, strict=True
    ):
        place = float(np.clip(depth, low, high))
        axes.plot([place, place], [0, tall], color=colour, ls=style, lw=1.5)
        share = np.log(place / low) / np.log(high / low)
        nearer = depth < lines[0][0] if name == "looked up" else depth <= lines[1][0]
        side = "right" if share > 0.78 or (nearer and share > 0.22) else "left"
        words = f"{name} " if side == "right" else f" {name}"
        axes.text(place, tall, words, color=colour, size=8.5, ha=side, va="bottom")
