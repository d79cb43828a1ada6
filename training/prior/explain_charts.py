"""Charts of the prior's page as inline SVG, and its maps as PNG inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from training.prior.explain_scale import colour_depth
from training.prior.explain_statistics import DriveShare

LINES = ("#7aa2ff", "#f0a94b", "#4cd7a5", "#ff7d8f")
DIM = "#9aa3b5"


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
    ticks: Sequence[tuple[float, str]],
    height: int = 230,
    width: int = 1140,
    cut_ends: bool = False,
) -> str:
    """Shares over a logarithmic axis; `ticks` are places on it and their words.

    With ``cut_ends`` the outer bars, which hold what is beyond, do not decide the height.
    """
    left, right, top, base = 12, 12, 34, height - 26
    low, high = np.log(edges[0]), np.log(edges[-1])
    inner = slice(1, -1) if cut_ends else slice(None)
    highest = max(float(s.shares[inner].max()) for s in series) or 1.0

    def across(value: float) -> float:
        return left + (width - left - right) * (np.log(value) - low) / (high - low)

    def up(share: float) -> float:
        return base - (base - top) * min(share / highest, 1.06)

    parts = [_svg(width, height)]
    for value, words in ticks:
        x = across(value)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}" stroke="#2c3243"/>'
            f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{escape(words)}</text>'
        )
    places = [across(edge) for edge in edges]
    for one in series:
        if one.filled:
            parts += [
                f'<rect x="{a + 0.7:.1f}" y="{up(s):.1f}" width="{max(0.5, b - a - 1.4):.1f}" '
                f'height="{base - up(s):.1f}" rx="1.5" fill="{one.colour}"/>'
                for a, b, s in zip(places[:-1], places[1:], one.shares, strict=True)
            ]
            continue
        steps = [
            f"{x:.1f},{up(s):.1f}"
            for a, b, s in zip(places[:-1], places[1:], one.shares, strict=True)
            for x in (a, b)
        ]
        parts.append(_line(steps, one.colour))
    parts += _legend([(one.name, one.colour) for one in series], left)
    words = f"top {highest:.1%}"
    if cut_ends:
        ends = ", ".join(f"{one.name} {one.shares[-1]:.0%}" for one in series)
        words += f"; last bar: {ends}"
    parts.append(f'<text x="{width - right}" y="20" text-anchor="end">{escape(words)}</text>')
    return "".join([*parts, "</svg>"])


def curves(
    named: Sequence[tuple[str, NDArray[np.float64]]], across: str, up: str, size: int = 400
) -> str:
    """Curves (points, 2) in the unit square, with the diagonal."""
    left, base, side = 48, size - 40, size - 76
    width = left + side + 24

    def place(x: float, y: float) -> str:
        return f"{left + side * x:.1f},{base - side * y:.1f}"

    parts = [_svg(width, size, most=width)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + side * share, base - side * share
        parts.append(
            f'<line x1="{left}" x2="{left + side}" y1="{y:.1f}" y2="{y:.1f}" stroke="#2c3243"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>'
            f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{share:.0%}</text>'
        )
    parts.append(
        f'<polyline points="{place(0, 0)} {place(1, 1)}" fill="none" stroke="{DIM}" '
        'stroke-dasharray="4 4"/>'
    )
    colours = []
    for number, (name, points) in enumerate(named):
        colours.append((name, LINES[number % len(LINES)]))
        parts.append(_line([place(x, y) for x, y in points], colours[-1][1]))
    parts += _legend(colours, left)
    parts.append(
        f'<text x="{left + side / 2}" y="{size - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text transform="translate(11 {base - side / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>"
    )
    return "".join([*parts, "</svg>"])


def square(
    columns: NDArray[np.float64],
    edges: NDArray[np.float64],
    ticks: Sequence[tuple[float, str]],
    names: tuple[str, str],
    size: int = 400,
) -> str:
    """Distributions side by side, (bars up, bars across), both axes logarithmic, with diagonal."""
    left, base, side, top = 56, size - 40, size - 60, 20
    low, high = np.log(edges[0]), np.log(edges[-1])
    uri = heat_map(np.sqrt(columns[::-1]), float(np.sqrt(columns.max())))
    parts = [
        _svg(left + side + 16, size, most=left + side + 16),
        f'<image href="{uri}" x="{left}" y="{top}" width="{side}" height="{side}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>',
        f'<line x1="{left}" y1="{base}" x2="{left + side}" y2="{top}" stroke="#fff" '
        'stroke-opacity=".5" stroke-dasharray="4 4"/>',
    ]
    for value, words in ticks:
        share = side * (np.log(value) - low) / (high - low)
        parts.append(
            f'<text x="{left + share:.1f}" y="{base + 16}" text-anchor="middle">{escape(words)}'
            f'</text><text x="{left - 6}" y="{base - share + 4:.1f}" text-anchor="end">'
            f"{escape(words)}</text>"
        )
    parts.append(
        f'<text x="{left + side / 2}" y="{size - 8}" text-anchor="middle">{escape(names[0])}</text>'
        f'<text transform="translate(13 {base - side / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(names[1])}</text>"
    )
    return "".join([*parts, "</svg>"])


def drive_bars(drives: Sequence[DriveShare], total: int) -> str:
    """References by recording, with the share of the weight as a second, thinner bar."""
    width, row, left, right = 1140, 34, 270, 310
    largest = max(max(d.references / total, d.weight or 0.0) for d in drives)
    parts = [_svg(width, row * len(drives) + 34)]
    known = drives[0].weight is not None
    legend = [("share of the references", LINES[0])]
    parts += _legend(legend + ([("share of the weight", LINES[1])] if known else []), left)
    for number, drive in enumerate(drives):
        y = 32 + number * row
        long = (width - left - right) * drive.references / total / largest
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end" class="ink">'
            f"{escape(drive.name)}</text>"
            f'<rect x="{left}" y="{y}" width="{max(1.0, long):.1f}" height="13" rx="2" '
            f'fill="{LINES[0]}"/>'
        )
        words = f"{drive.references:,} of {drive.images:,} images"
        if drive.weight is not None:
            long = (width - left - right) * drive.weight / largest
            parts.append(
                f'<rect x="{left}" y="{y + 15}" width="{max(1.0, long):.1f}" height="6" rx="2" '
                f'fill="{LINES[1]}"/>'
            )
            words += f" · {drive.weight:.1%} of the weight"
        parts.append(f'<text x="{width - 8}" y="{y + 14}" text-anchor="end">{escape(words)}</text>')
    return "".join([*parts, "</svg>"])


def ranked_bars(counts: NDArray[np.int64], height: int = 130, width: int = 1140) -> str:
    """References by image, largest first, as one silhouette."""
    left, base, top = 12, height - 22, 26
    groups = np.array_split(counts, min(len(counts), 400))
    tall = np.array([group.mean() for group in groups])
    step = (width - 2 * left) / len(tall)
    ends = [f"{left},{base}"]
    for number, value in enumerate(tall):
        y = base - (base - top) * value / max(tall.max(), 1e-9)
        ends += [f"{left + number * step:.1f},{y:.1f}", f"{left + (number + 1) * step:.1f},{y:.1f}"]
    ends.append(f"{width - left},{base}")
    return (
        _svg(width, height)
        + f'<polygon points="{" ".join(ends)}" fill="{LINES[0]}" fill-opacity=".8"/>'
        f'<text x="{left}" y="17">most: {int(counts.max()):,}</text>'
        f'<text x="{width - left}" y="17" text-anchor="end">least: {int(counts.min()):,}</text>'
        f'<text x="{left}" y="{height - 6}">image 1</text>'
        f'<text x="{width - left}" y="{height - 6}" text-anchor="end">image {len(counts):,}</text>'
        "</svg>"
    )


def heat_map(values: NDArray[np.float64], high: float) -> str:
    """A map (rows, columns) from 0 (dark) to ``high`` (bright) as a picture's URI."""
    grey = np.rint(255 * np.clip(np.nan_to_num(values) / max(high, 1e-12), 0, 1)).astype(np.uint8)
    return png_uri(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))


def depth_map(metres: NDArray[np.float64]) -> str:
    """Depth (rows, columns) in metres as a picture's URI; grey where there is none."""
    coloured = colour_depth(np.nan_to_num(metres, nan=1.0))
    coloured[np.isnan(metres)] = (58, 63, 77)
    return png_uri(coloured)


def png_uri(picture: NDArray[np.uint8]) -> str:
    """An RGB picture as a URI that the page carries in itself."""
    data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1]
    return f"data:image/png;base64,{base64.b64encode(bytes(data)).decode()}"


def gradient(colours: NDArray[np.uint8]) -> str:
    """RGB colours (n, 3) as a CSS gradient from left to right."""
    steps = ",".join("#{:02x}{:02x}{:02x}".format(*map(int, colour)) for colour in colours)
    return f"linear-gradient(90deg,{steps})"


def inferno(steps: int = 16) -> NDArray[np.uint8]:
    """The colours of `heat_map`, (steps, 3) RGB."""
    grey = np.linspace(0, 255, steps).astype(np.uint8)[:, None]
    return np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[:, 0, ::-1])


def _svg(width: int, height: int, most: int | None = None) -> str:
    style = f' style="max-width:{most}px"' if most else ""
    return f'<svg viewBox="0 0 {width} {height}" role="img"{style}>'


def _line(points: Sequence[str], colour: str) -> str:
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2" '
        'stroke-linejoin="round"/>'
    )


def _legend(entries: Sequence[tuple[str, str]], left: float) -> list[str]:
    parts, x = [], left
    for name, colour in entries:
        parts.append(
            f'<rect x="{x:.0f}" y="10" width="11" height="11" rx="2" fill="{colour}"/>'
            f'<text x="{x + 16:.0f}" y="20">{escape(name)}</text>'
        )
        x += 34 + 6.1 * len(name)
    return parts
