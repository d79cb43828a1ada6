"""`depth_train explain`, the page of a whole prior: one file that carries everything in itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.bundle import Bundle
from depth_prior_ros.pages import colours, page
from depth_prior_ros.pages.charts import legend, new_axes, new_figure, plain, svg
from depth_prior_ros.pages.colours import BLUE, CARD, DIM, GREEN, INK, ORANGE, RED, colour_heat
from depth_prior_ros.progress import Progress
from training.prior.explain import statistics
from training.prior.explain.lookup import PriorReader
from training.prior.explain.sources import (
    Origins,
    SourcePictures,
    crop_around,
    data_root,
    drive_name,
    example_images,
    read_origins,
    short,
)
from training.prior.explain.statistics import FAR, NEAR, UNUSED, DriveShare, Use, metres, percent
from training.prior.reference.set import ReferenceSet

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


_TEMPLATE = Path(__file__).parent / "templates" / "prior.html"
_TILES, _TOP_IMAGES, _DRIVES = 12, 6, 25
_TILE_SIZE, _IMAGE_WIDTH = (196, 140), 360
_TICKS = (2, 5, 10, 20, 40, 80)  # metres
# Rows of a reference set that its distribution of depth is taken from.
_SAMPLE = 200_000


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


@dataclass(frozen=True)
class Map:
    """A picture over the image plane: its URI, size, words, and (colours, labels) of its scale."""

    uri: str
    size: tuple[int, int]
    words: str
    scale: tuple[str, tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """A small picture with words below; where there is no picture, why."""

    uri: str | None
    head: str
    label: str
    why: str = ""
    colour: str = colours.LINE


def explain_prior(
    bundle: Bundle | str | Path,
    out: Path,
    *,
    data: Path | None = None,
    images: Sequence[Path] = (),
    reading: Any = None,
    count: int = 20,
    reference: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the page of a bundle's whole prior.

    Args:
        bundle: the bundle, its folder or name; with a prior.
        out: HTML file to write.
        data: data folder; default: $DEPTH_PRIOR_DATA. There the recordings that the prior came from
            are looked for and, without ``images``, evaluation sets to measure its use on.
        images: image files, folders of images or recordings to measure its use on.
        reading: how recordings among them are read, as of `explain_image`.
        count: how many images, evenly spread.
        reference: the reference set that the prior was chosen from, to compare depths.
        progress: is told what is done: done, of how many (0: not known).

    Raises:
        ExplainError, BundleError, OSError: as `explain_image`.
        TrainingError: the reference set is damaged or of another teacher.
    """
    reader, root = PriorReader(bundle), data_root(data)
    examples = example_images(images, root, count, reading)
    use = statistics.measure_use(reader, examples, progress) if len(examples) else None
    origin = examples.origin
    if examples.left_out:
        origin += f" ({len(examples.left_out)} could not be read and were left out)"
    origins = read_origins(reader.bundle)
    depths = None if reference is None else _reference_depths(reader, reference)
    pictures = SourcePictures(reader.bundle, origins, root, images)
    write_text(out, render(PriorReport(reader, origins, pictures, use, origin, depths)))


def _reference_depths(reader: PriorReader, folder: Path) -> NDArray[np.float64]:
    """Depth of a reference set in metres, of a sample where it is large."""
    references = ReferenceSet.open(folder)
    spec = reader.bundle.manifest.prior
    references.require(
        None if spec is None else spec.teacher, channels=reader.prior.features.shape[1]
    )
    sample = references.sample(np.random.default_rng(0), _SAMPLE)
    units = 1 / sample.inverse_depth.double().numpy().clip(1e-9)
    return np.asarray(units * reader.bundle.manifest.depth.metres_per_unit)


def render(report: PriorReport) -> str:
    """The page as text."""
    manifest, use = report.reader.bundle.manifest, report.use
    return page.render(
        _TEMPLATE,
        title=f"The prior of {manifest.name}",
        subtitle="no images were given, so how it is used is not known"
        if use is None
        else f"used by {_many(len(use.images), 'image')}: {report.images}",
        figures=list(_figures(report)),
        count=f"{len(report.reader):,}",
        factor=manifest.depth.metres_per_unit,
        has_reference=report.reference is not None,
        depths=_depths(report),
        origins=None if report.origins is None else _origins(report, report.origins),
        places=None if report.origins is None else _places(report, report.origins),
        agreement=None if use is None else _agreement(use),
        neighbours=None if use is None else _neighbours(report, use),
        use=None if use is None else _use(report, use),
        details=_details(report.reader, report.pictures.missing()),
    )


def _figures(report: PriorReport) -> Iterator[tuple[str, str]]:
    reader, origins, use = report.reader, report.origins, report.use
    low, middle, high = np.percentile(reader.metres, (10, 50, 90))
    yield f"{len(reader):,}", f"reference pixels, {reader.prior.features.shape[1]} channels"
    if origins is not None:
        drives = len(np.unique(origins.drives))
        yield (
            f"{len(statistics.image_counts(origins)):,}",
            f"images of {_many(drives, 'recording')}",
        )
    yield metres(middle), f"median depth; 8 of 10 from {metres(low)} to {metres(high)}"
    if use is not None:
        for name, found in use.neighbours().items():
            words = f"effective neighbours, {name} (median); even would be {len(reader):,}"
            yield f"{np.median(found):,.0f}", words
        yield percent(use.usage.unused(UNUSED)), f"unused: below {UNUSED:g}× the mean weight"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _depths(report: PriorReport) -> str:
    edges, depth = statistics.depth_edges(), report.reader.metres
    even = np.full(len(depth), 1 / len(depth))
    series = [Series("prior", statistics.depth_shares(depth, even), "#42527d", filled=True)]
    if report.reference is not None:
        found = statistics.shares(report.reference, edges)
        series.append(Series("reference set", found, LINES[2]))
    if report.use is not None:
        used = statistics.depth_shares(depth, report.use.weights)
        seen = statistics.shares(report.use.depths, edges)
        series.append(Series("prior, by weight", used, LINES[1]))
        series.append(Series("predicted in the images", seen, LINES[3]))
    ticks = [(float(depth), f"{depth} m") for depth in _TICKS]
    return distribution(edges, series, ticks, cut_ends=True)


def _places(report: PriorReport, origins: Origins) -> list[Map]:
    """Maps over the teacher's picture; none where its size is not recorded."""
    if origins.x is None or origins.map_size is None:
        return []
    grid, size = statistics.Grid.of(origins), origins.map_size
    depth = colours.colour_depth(grid.median(report.reader.metres), NEAR, FAR)
    scale = colours.depth_gradient(NEAR, FAR), (f"{NEAR:g} m", f"{FAR:g} m")
    words = "median depth of the references; grey: none"
    maps = [
        _density_map(grid.density(), size, "references"),
        Map(page.png_uri(depth), size, words, scale),
    ]
    if report.use is not None:
        maps.append(_density_map(grid.density(report.use.weights), size, "their weight"))
    return maps


def _density_map(density: NDArray[np.float64], size: tuple[int, int], words: str) -> Map:
    high = float(np.percentile(density, 99))
    uri = page.png_uri(colours.colour_heat(density / max(high, 1e-12)))
    most = f"{high:,.{0 if high >= 100 else 1}f}× even"
    return Map(uri, size, words, (colours.heat_gradient(), ("0", most)))


# -- origins ---------------------------------------------------------------------------------------


def _origins(report: PriorReport, origins: Origins) -> dict[str, Any]:
    weights = None if report.use is None else report.use.weights
    drives = statistics.by_drive(origins, weights)
    counts = statistics.image_counts(origins)
    tenth = counts[: max(1, round(len(counts) / 10))].sum() / counts.sum()
    more = len(drives) - _DRIVES
    return {
        "drives": drive_bars(drives[:_DRIVES], len(origins.image)),
        "more": _many(more, "recording") if more > 0 else "",
        "tenth": percent(float(tenth)),
        "gini": statistics.gini(counts.astype(float)),
        "ranked": ranked_bars(counts),
        "images": list(_top_images(report, origins, weights)),
    }


def _top_images(
    report: PriorReport, origins: Origins, weights: NDArray[np.float64] | None
) -> Iterator[Tile]:
    values = np.ones(len(origins.image)) if weights is None else weights
    for place, found in statistics.top_images(origins, values, _TOP_IMAGES):
        entry = origins.images[place]
        mine = np.flatnonzero(origins.image == place)
        head = f"{found:,.0f}" if weights is None else percent(found)
        label = f"{short(drive_name(entry))} · {entry.get('frame', '?')} · {len(mine):,} references"
        first = report.pictures[int(mine[0])]
        uri = None if first.image is None else _whole(report, first.image, mine)
        yield Tile(uri, head, label, first.why)


def _whole(report: PriorReport, image: NDArray[np.uint8], references: NDArray[np.int64]) -> str:
    """An image with a dot for each of its references, coloured by depth."""
    factor = _IMAGE_WIDTH / image.shape[1]
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    picture = np.ascontiguousarray(small)
    depths = colours.colour_depth(report.reader.metres[references], NEAR, FAR)
    for reference, colour in zip(references, depths.tolist(), strict=True):
        x, y = report.pictures[int(reference)].place
        cv2.circle(picture, (int(x * factor), int(y * factor)), 2, colour, -1, cv2.LINE_AA)
    return page.png_uri(picture)


# -- use -------------------------------------------------------------------------------------------


def _neighbours(report: PriorReport, use: Use) -> dict[str, Any]:
    count = len(report.reader)
    edges = np.geomspace(1, max(count, 2), 41)
    size = report.reader.bundle.manifest.input_size
    scale = colours.heat_gradient(), ("1", f"{count:,} (logarithmic)")
    series, maps = [], []
    for (name, found), colour in zip(use.neighbours().items(), LINES, strict=False):
        heads = f", {found.shape[0]} heads" if found.shape[0] > 1 else ""
        shares = statistics.shares(found.ravel(), edges)
        series.append(Series(f"{name}{heads}", shares, colour))
        share = np.log(found).mean((0, 1)) / np.log(max(count, 2))
        words = f"{name}: mean over images, by place in the student's picture"
        maps.append(Map(page.png_uri(colours.colour_heat(share)), size, words, scale))
    ticks = [(float(10**n), f"{10**n:,}") for n in range(int(np.log10(count)) + 1)]
    return {"chart": distribution(edges, series, ticks, height=190), "maps": maps}


def _agreement(use: Use) -> dict[str, Any] | None:
    """Looked-up against predicted depth; None where no depth is looked up."""
    if use.looked_up is None:
        return None
    ratio = float(np.exp(np.median(np.abs(np.log(use.looked_up / use.depths)))))
    edges = statistics.depth_edges()
    shares = statistics.columns_of(use.depths, use.looked_up, edges)
    ticks = [(float(depth), str(depth)) for depth in _TICKS]
    return {
        "chart": columns(shares, edges, ticks, ("predicted, m", "looked up, m")),
        "figures": {
            "rank correlation": f"{statistics.rank_correlation(use.depths, use.looked_up):.2f}",
            "median factor between the two": f"{ratio:.2f}",
        },
    }


def _use(report: PriorReport, use: Use) -> dict[str, Any]:
    branches = use.branches().items()
    named = [(name, statistics.concentration(weights)) for name, weights in branches]
    names = "share of the references, most used first", "share of the weight"
    top = np.argsort(-use.weights, kind="stable")[:_TILES]
    return {
        "chart": curves(named, *names),
        "figures": {name: _concentration(weights) for name, weights in branches},
        "tiles": [_tile(report, use, int(n)) for n in top] if report.origins is not None else [],
    }


def _concentration(weights: NDArray[np.float64]) -> str:
    unused = float((weights < UNUSED * weights.mean()).mean())
    return (
        f"half of the weight on {percent(statistics.share_that_holds(weights, 0.5))} of the "
        f"references, nine tenths on {percent(statistics.share_that_holds(weights, 0.9))}; "
        f"{percent(unused)} unused; largest {weights.max() * len(weights):,.0f}× the mean; Gini "
        f"{statistics.gini(weights):.2f}"
    )


def _tile(report: PriorReport, use: Use, reference: int) -> Tile:
    """A reference in its surroundings."""
    source = report.pictures[reference]
    depth = float(report.reader.metres[reference])
    colour = colours.css(colours.colour_depth(np.array(depth), NEAR, FAR))
    label = f"{percent(float(use.weights[reference]))} of the weight · {source.label}"
    if source.image is None:
        return Tile(None, metres(depth), label, source.why, colour)
    width, height = _TILE_SIZE
    window, (u, v) = crop_around(source.image, source.place, width / height)
    small = cv2.resize(window, _TILE_SIZE, interpolation=cv2.INTER_AREA)
    picture, place = np.ascontiguousarray(small), (int(u * width), int(v * height))
    for shade, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.circle(picture, place, 7, shade, thickness, cv2.LINE_AA)
    return Tile(page.png_uri(picture), metres(depth), label, colour=colour)


# -- how it was made -------------------------------------------------------------------------------


def _details(reader: PriorReader, missing: Mapping[str, str]) -> dict[str, str]:
    """How a prior was made; ``missing`` are recordings without pictures."""
    manifest = reader.bundle.manifest
    rows: dict[str, str] = {}
    if manifest.prior is not None:
        spec, teacher = manifest.prior, manifest.prior.teacher
        rows["prior"] = spec.note
        rows["selection"] = _in_words(spec.selection) if spec.selection else "not recorded"
        rows["teacher"] = "not recorded"
        if teacher is not None:
            width, height = teacher.size
            rows["teacher"] = (
                f"{teacher.name} ({teacher.kind}), input {width}x{height}, features of "
                f"{teacher.channels} channels at stride {teacher.stride}, {teacher.sha256[:12]}"
            )
            rows["licence of the teacher"] = teacher.licence
    rows["licence of the bundle"] = manifest.licence
    rows["student's fusion"] = _in_words(reader.fusion.config.to_dict())
    rows["trained on"] = "; ".join(manifest.provenance.data_sources) or "not stated"
    rows["metric factor"] = manifest.depth.metres_per_unit_source
    if missing:
        words = "; ".join(f"{name}: {why}" for name, why in missing.items())
        rows["recordings without pictures"] = words
    return rows


def _in_words(value: Any) -> str:
    """A manifest's value for people: no braces, hashes cut short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')}: {_in_words(v)}" for k, v in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text[:12]}…" if re.fullmatch("[0-9a-f]{40,}", text) else text
