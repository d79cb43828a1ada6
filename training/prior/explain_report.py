"""The page of a prior: one HTML file that carries everything in itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from training.prior import explain_charts as charts
from training.prior import explain_statistics as statistics
from training.prior.explain_details import details
from training.prior.explain_lookup import PriorReader
from training.prior.explain_page import PAGE, STYLE
from training.prior.explain_scale import (
    FAR,
    NEAR,
    colour_depth,
    crop_around,
    depth_edges,
    depth_shares,
    metres,
    percent,
)
from training.prior.explain_sources import Origins, SourcePictures, drive_name, short
from training.prior.explain_statistics import UNUSED, Use

_TILES, _TOP_IMAGES, _DRIVES = 12, 6, 25
_TILE_SIZE, _IMAGE_WIDTH = (196, 140), 360
_DEPTH_TICKS = [(float(m), f"{m} m") for m in (2, 5, 10, 20, 40, 80)]
_NOT_KNOWN = '<p class="dim">This bundle does not say where its reference pixels come from.</p>'


@dataclass(frozen=True)
class PriorReport:
    """What the page is made of.

    Attributes:
        reader: the bundle's student and prior.
        origins: where the references come from; None where the bundle does not say.
        pictures: of the recordings, as far as they are there.
        use: what some images looked up; None where there were none to look at.
        images: in words, where those images are from.
        reference: depth (n,) in metres of the set that the prior was chosen from; None: not given.
    """

    reader: PriorReader
    origins: Origins | None
    pictures: SourcePictures
    use: Use | None
    images: str = ""
    reference: NDArray[np.float64] | None = None


def render(report: PriorReport) -> str:
    """The page as text."""
    manifest = report.reader.bundle.manifest
    parts = {
        "TITLE": f"The prior of {escape(manifest.name)}",
        "SUBTITLE": escape(_subtitle(report)),
        "STYLE": STYLE,
        "CARDS": _cards(report),
        "DEPTHS": _depths(report),
        "PLACES": _places(report),
        "ORIGINS": _origins(report),
        "NEIGHBOURS": _neighbours(report),
        "AGREEMENT": _agreement(report),
        "USE": _use(report),
        "DETAILS": details(report.reader, report.pictures.missing()),
    }
    # In one pass: what is filled in may hold the name of another place.
    return re.sub(r"@([A-Z]+)@", lambda place: parts[place.group(1)], PAGE)


def _subtitle(report: PriorReport) -> str:
    if report.use is None:
        return "no images were given, so how it is used is not known"
    return f"used by {_many(len(report.use.images), 'image')}: {report.images}"


def _cards(report: PriorReport) -> str:
    reader, origins, use = report.reader, report.origins, report.use
    depth = reader.metres
    low, middle, high = np.percentile(depth, (10, 50, 90))
    cards = [(f"{len(reader):,}", f"reference pixels, {reader.prior.features.shape[1]} channels")]
    if origins is not None:
        counts = statistics.image_counts(origins)
        drives = len(np.unique(origins.drives))
        cards.append((f"{len(counts):,}", f"images of {_many(drives, 'recording')}"))
    cards.append((metres(middle), f"median depth; 8 of 10 from {metres(low)} to {metres(high)}"))
    if use is not None:
        for name, found in use.neighbours().items():
            words = f"effective neighbours, {name} (median); even would be {len(reader):,}"
            cards.append((f"{np.median(found):,.0f}", words))
        words = f"unused: below {UNUSED:g}× the mean weight"
        cards.append((percent(use.usage.unused(UNUSED)), words))
    return "".join(
        f'<div class="card"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in cards
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


# -- depth -----------------------------------------------------------------------------------------


def _depths(report: PriorReport) -> str:
    edges, depth = depth_edges(), report.reader.metres
    even = np.full(len(depth), 1 / len(depth))
    series = [charts.Series("prior", depth_shares(depth, even), "#42527d", filled=True)]
    if report.reference is not None:
        found = statistics.shares(report.reference, edges)
        series.append(charts.Series("reference set", found, charts.LINES[2]))
    if report.use is not None:
        used = depth_shares(depth, report.use.weights)
        seen = statistics.shares(report.use.depths, edges)
        series.append(charts.Series("prior, by weight", used, charts.LINES[1]))
        series.append(charts.Series("predicted in the images", seen, charts.LINES[3]))
    factor = report.reader.bundle.manifest.depth.metres_per_unit
    note = (
        f"Metres by the bundle's factor, {factor:.3g} m a unit; the outer bars hold what is beyond."
    )
    if report.reference is None:
        note += " <code>--reference DIR</code> shows the set that it was chosen from beside it."
    return (
        charts.distribution(edges, series, _DEPTH_TICKS, cut_ends=True)
        + f'<p class="dim">{note}</p>'
    )


# -- places ----------------------------------------------------------------------------------------


def _places(report: PriorReport) -> str:
    origins = report.origins
    if origins is None:
        return _NOT_KNOWN
    if origins.x is None or origins.map_size is None:
        return '<p class="dim">The size of the teacher\'s map is not recorded.</p>'
    grid = statistics.Grid.of(origins)
    there = grid.density()
    high = float(np.percentile(there, 99))
    maps = [
        _map(charts.heat_map(there, high), origins, "references", high),
        _map(
            charts.depth_map(grid.median(report.reader.metres)),
            origins,
            "median depth of the references; grey: none",
            None,
        ),
    ]
    if report.use is not None:
        used = grid.density(report.use.weights)
        high = float(np.percentile(used, 99))
        maps.append(_map(charts.heat_map(used, high), origins, "their weight", high))
    words = "Positions in the teacher's picture; 1 is as if they were spread evenly."
    return f'<p class="dim">{words}</p><div class="maps">{"".join(maps)}</div>'


def _map(uri: str, origins: Origins, words: str, high: float | None) -> str:
    assert origins.map_size is not None
    width, height = origins.map_size
    return _picture(uri, words, _scale(high), f"{width}/{height}")


def _picture(uri: str, words: str, scale: str, aspect: str) -> str:
    return (
        f'<figure><img class="map" alt="{escape(words)}" src="{uri}" '
        f'style="aspect-ratio:{aspect}"><figcaption>{escape(words)}{scale}</figcaption></figure>'
    )


def _scale(high: float | None, low: str = "0", unit: str = "× even") -> str:
    if high is None:
        colours = colour_depth(np.geomspace(NEAR, FAR, 16))
        ends = (f"{NEAR:g} m", f"{FAR:g} m")
    else:
        colours, ends = charts.inferno(), (low, f"{high:,.{0 if high >= 100 else 1}f}{unit}")
    return (
        f'<span class="scale">{ends[0]}<i style="background:{charts.gradient(colours)}"></i>'
        f"{ends[1]}</span>"
    )


# -- origins ---------------------------------------------------------------------------------------


def _origins(report: PriorReport) -> str:
    origins = report.origins
    if origins is None:
        return _NOT_KNOWN
    weights = None if report.use is None else report.use.weights
    drives = statistics.by_drive(origins, weights)
    counts = statistics.image_counts(origins)
    tenth = counts[: max(1, round(len(counts) / 10))].sum() / counts.sum()
    more = len(drives) - _DRIVES
    left_out = f'<p class="dim">and {_many(more, "recording")} more</p>' if more > 0 else ""
    return (
        charts.drive_bars(drives[:_DRIVES], len(origins.image))
        + left_out
        + f"<p>The tenth of the images that gives most gives {percent(float(tenth))} of the "
        f"references (Gini {statistics.gini(counts.astype(float)):.2f}; 0: all give alike).</p>"
        + charts.ranked_bars(counts)
        + _top_images(report, origins, weights)
    )


def _top_images(report: PriorReport, origins: Origins, weights: NDArray[np.float64] | None) -> str:
    values = np.ones(len(origins.image)) if weights is None else weights
    what = "most references" if weights is None else "largest share of the weight"
    tiles = []
    for place, found in statistics.top_images(origins, values, _TOP_IMAGES):
        entry = origins.images[place]
        mine = np.flatnonzero(origins.image == place)
        number = f"{found:,.0f}" if weights is None else percent(found)
        label = f"{short(drive_name(entry))} · {entry.get('frame', '?')} · {len(mine):,} references"
        tiles.append(_tile(_whole(report, origins, mine), number, label, "wide"))
    return (
        f'<p class="dim">Images with the {what}:</p><div class="tiles large">{"".join(tiles)}</div>'
    )


def _whole(report: PriorReport, origins: Origins, references: NDArray[np.int64]) -> str:
    """The image of some references with a dot for each, coloured by depth."""
    first = report.pictures[int(references[0])]
    if first.image is None:
        return f'<div class="none">{escape(first.why)}</div>'
    factor = _IMAGE_WIDTH / first.image.shape[1]
    small = cv2.resize(first.image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    picture = np.ascontiguousarray(small)
    for reference in references:
        x, y = report.pictures[int(reference)].place
        colour = [int(c) for c in colour_depth(report.reader.metres[reference])]
        cv2.circle(picture, (int(x * factor), int(y * factor)), 2, colour, -1, cv2.LINE_AA)
    return f'<img alt="source image" src="{charts.png_uri(picture)}">'


# -- use -------------------------------------------------------------------------------------------


def _no_use() -> str:
    return (
        '<p class="dim">Not known: there were no images to look at. Give some with '
        "<code>--images-from</code> or <code>--data</code>.</p>"
    )


def _neighbours(report: PriorReport) -> str:
    use, count = report.use, len(report.reader)
    if use is None:
        return _no_use()
    edges = np.geomspace(1, max(count, 2), 41)
    series, maps = [], []
    for number, (name, found) in enumerate(use.neighbours().items()):
        heads = f", {found.shape[0]} heads" if found.shape[0] > 1 else ""
        shares = statistics.shares(found.ravel(), edges)
        series.append(charts.Series(f"{name}{heads}", shares, charts.LINES[number]))
        mean = np.exp(np.log(found).mean((0, 1)))
        share = np.log(mean) / np.log(max(count, 2))
        scale = _scale(float(count), "1", " (logarithmic)")
        words = f"{name}: mean over images, by place in the student's picture"
        size = report.reader.bundle.manifest.input_size
        maps.append(_picture(charts.heat_map(share, 1.0), words, scale, f"{size[0]}/{size[1]}"))
    ticks = [(float(10**n), f"{10**n:,}") for n in range(int(np.log10(count)) + 1)]
    words = (
        "The effective number of neighbours of a query is exp of the entropy of its weights: 1 "
        f"where one reference has all the weight, {count:,} where all have the same."
    )
    return (
        f'<p class="dim">{words}</p>'
        + charts.distribution(edges, series, ticks, height=190)
        + f'<div class="maps">{"".join(maps)}</div>'
    )


def _agreement(report: PriorReport) -> str:
    use = report.use
    if use is None:
        return _no_use()
    if use.looked_up is None:
        return '<p class="dim">This fusion has no pixel-wise branch, so it looks up no depth.</p>'
    ratio = float(np.exp(np.median(np.abs(np.log(use.looked_up / use.depths)))))
    correlation = statistics.rank_correlation(use.depths, use.looked_up)
    columns = statistics.columns_of(use.depths, use.looked_up, depth_edges())
    words = (
        "A column shows which depths D_c were looked up at pixels of one predicted depth (bright: "
        "many). On the diagonal, the prior says what the student says; where columns look alike, "
        "what is looked up does not depend on what is seen."
    )
    ticks = [(value, name.removesuffix(" m")) for value, name in _DEPTH_TICKS]
    return (
        '<div class="pair"><div>'
        + charts.square(columns, depth_edges(), ticks, ("predicted, m", "looked up, m"))
        + f'</div><div><p class="dim">{words}</p><dl><dt>rank correlation</dt><dd>'
        f"{correlation:.2f}</dd><dt>median factor between the two</dt><dd>{ratio:.2f}</dd></dl>"
        "</div></div>"
    )


def _use(report: PriorReport) -> str:
    use = report.use
    if use is None:
        return _no_use()
    named = [(name, statistics.concentration(w)) for name, w in use.branches().items()]
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>half of the weight on "
        f"{percent(statistics.share_that_holds(w, 0.5))} of the references, nine tenths on "
        f"{percent(statistics.share_that_holds(w, 0.9))}; {percent(_unused(w))} unused; largest "
        f"{w.max() * len(w):,.0f}× the mean; Gini {statistics.gini(w):.2f}</dd>"
        for name, w in use.branches().items()
    )
    curves = charts.curves(named, "share of the references, most used first", "share of the weight")
    parts = f'<div class="pair"><div>{curves}</div><div><dl>{rows}</dl></div></div>'
    if report.origins is None:
        return parts
    top = np.argsort(-use.weights, kind="stable")[:_TILES]
    tiles = "".join(_reference_tile(report, int(reference)) for reference in top)
    return (
        parts + '<p class="dim">The references with the largest weight:</p>'
        f'<div class="tiles">{tiles}</div>'
    )


def _unused(weights: NDArray[np.float64]) -> float:
    return float((weights < UNUSED * weights.mean()).mean())


def _reference_tile(report: PriorReport, reference: int) -> str:
    assert report.use is not None
    source = report.pictures[reference]
    depth = float(report.reader.metres[reference])
    colour = "#{:02x}{:02x}{:02x}".format(*(int(c) for c in colour_depth(np.array(depth))))
    if source.image is None:
        inside = f'<div class="none" style="border-color:{colour}">{escape(source.why)}</div>'
    else:
        width, height = _TILE_SIZE
        window, (u, v) = crop_around(source.image, source.place, width / height)
        small = cv2.resize(window, _TILE_SIZE, interpolation=cv2.INTER_AREA)
        picture, place = np.ascontiguousarray(small), (int(u * width), int(v * height))
        for shade, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
            cv2.circle(picture, place, 7, shade, thickness, cv2.LINE_AA)
        uri = charts.png_uri(picture)
        inside = f'<img alt="reference" src="{uri}" style="border-color:{colour}">'
    weight = percent(float(report.use.weights[reference]))
    return _tile(inside, metres(depth), f"{weight} of the weight · {source.label}")


def _tile(inside: str, head: str, label: str, kind: str = "") -> str:
    words = f"<b>{escape(head)}</b>{escape(label)}"
    return f'<div class="tile {kind}">{inside}{words}</div>'
