"""The prior in figures: depths, where its pixels come from, how evenly they are used; in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.progress import Progress
from training.prior.explain.lookup import ExplainError, PriorReader
from training.prior.explain.sources import Origins
from training.prior.selection.statistics import PriorUsage, prior_usage

NEAR, FAR = 2.0, 80.0
"""Metres between which colours, and the axes of depth, run (logarithmic)."""
BINS = 36
UNUSED = 0.01
"""A reference counts as unused below this share of the mean weight."""

# References in a cell of a map over the image, on average: fewer, and chance is all it shows.
_PER_CELL = 25


@dataclass(frozen=True)
class DriveShare:
    """What one recording gave: references, images, and its share of the weight (None: unknown)."""

    name: str
    references: int
    images: int
    weight: float | None


@dataclass(frozen=True)
class Use:
    """What some images looked up.

    Attributes:
        images: their names.
        usage: weights and effective numbers of neighbours; queries image by image.
        shape: (h, w) of the feature map.
        depths: the student's depth of all cells of all images, metres.
        looked_up: depth D_c of the same cells; None without a pixel-wise branch.
    """

    images: list[str]
    usage: PriorUsage
    shape: tuple[int, int]
    depths: NDArray[np.float64] = field(repr=False)
    looked_up: NDArray[np.float64] | None = field(default=None, repr=False)

    def branches(self) -> dict[str, NDArray[np.float64]]:
        """Mean weight of each reference (N,), of sum one, by branch."""
        found = {"pixel-wise": self.usage.pixel_wise, "depth hint": self.usage.hint}
        return {name: w.numpy() for name, w in found.items() if w is not None}

    def neighbours(self) -> dict[str, NDArray[np.float64]]:
        """Effective number of neighbours of each query (heads, images, h, w), by branch."""
        found = {
            "pixel-wise": self.usage.pixel_wise_neighbours,
            "depth hint": self.usage.hint_neighbours,
        }
        shape = (-1, len(self.images), *self.shape)
        return {name: n.numpy().reshape(shape) for name, n in found.items() if n is not None}

    @property
    def weights(self) -> NDArray[np.float64]:
        """Mean weight of each reference (N,) over the branches, of sum one."""
        return np.mean(list(self.branches().values()), axis=0)


def measure_use(
    reader: PriorReader,
    images: Iterable[tuple[str, NDArray[np.uint8]]],
    progress: Progress | None = None,
) -> Use:
    """Let the student look at images (name, (H, W, 3) uint8 RGB) and sum up what it looks up.

    Raises:
        ExplainError: there are none, or one cannot be framed.
    """
    import torch

    names: list[str] = []
    maps, depths, looked_up = [], [], []
    with torch.no_grad():
        for name, image in images:
            prediction = reader.predict(image)
            pixels = torch.from_numpy(prediction.framed.tensor())
            maps.append(reader.student.fusion_features(pixels))
            h, w = maps[-1].shape[-2:]
            rows = (np.arange(h) * 2 + 1) * prediction.depth.shape[0] // (2 * h)
            columns = (np.arange(w) * 2 + 1) * prediction.depth.shape[1] // (2 * w)
            depths.append(prediction.depth[rows[:, None], columns].ravel())
            if prediction.looked_up is not None:
                looked_up.append(prediction.looked_up.ravel())
            names.append(name)
            if progress is not None:
                progress("looking at images", len(names), 0)
        if not names:
            raise ExplainError("no image to look at")
        usage = prior_usage(reader.fusion, maps, [reader.prior], progress=progress)
    shape = (maps[0].shape[-2], maps[0].shape[-1])
    found = np.concatenate(looked_up) if looked_up else None
    return Use(names, usage, shape, np.concatenate(depths), found)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's; 0 where one of them does not vary."""
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def columns_of(
    a: NDArray[np.float64], b: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How ``b`` (n,) is distributed where ``a`` (n,) lies in a bar: (bars of b, bars of a).

    Columns sum to one, or are zero; the outer bars hold what is beyond.
    """
    last = np.nextafter(edges[-1], edges[0])
    up, across = np.clip(b, edges[0], last), np.clip(a, edges[0], last)
    counts = np.histogram2d(up, across, bins=[edges, edges])[0]
    return np.asarray(counts / np.maximum(counts.sum(0), 1), np.float64)


def gini(values: NDArray[np.float64]) -> float:
    """How unevenly a sum is spread: 0 all alike, towards 1 all in one."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count, total = len(ordered), ordered.sum()
    if total <= 0:
        return 0.0
    ranks = np.arange(1, count + 1)
    return float(2 * (ranks * ordered).sum() / (count * total) - (count + 1) / count)


def concentration(weights: NDArray[np.float64], points: int = 200) -> NDArray[np.float64]:
    """Share of the weight on the most used share of the references: (points + 1, 2)."""
    ordered = np.sort(weights)[::-1]
    sums = np.concatenate([[0.0], np.cumsum(ordered)]) / max(float(weights.sum()), 1e-300)
    # Denser at the beginning, where the curve is steep.
    share = np.linspace(0, 1, points + 1) ** 2
    return np.stack([share, np.interp(share * len(weights), np.arange(len(sums)), sums)], axis=1)


def share_that_holds(weights: NDArray[np.float64], part: float) -> float:
    """The smallest share of the references that holds this part of the weight."""
    sums = np.cumsum(np.sort(weights)[::-1])
    return float(np.searchsorted(sums, part * sums[-1]) + 1) / len(weights)


def image_counts(origins: Origins) -> NDArray[np.int64]:
    """References by image, of the images that gave any, largest first."""
    counts = np.bincount(origins.image, minlength=len(origins.images))
    return np.sort(counts[counts > 0])[::-1]


def by_drive(origins: Origins, weights: NDArray[np.float64] | None) -> list[DriveShare]:
    """What each recording gave, most references first."""
    names = origins.drives
    found = []
    for name in np.unique(names):
        mine = names == name
        found.append(
            DriveShare(
                str(name),
                int(mine.sum()),
                len(np.unique(origins.image[mine])),
                None if weights is None else float(weights[mine].sum() / weights.sum()),
            )
        )
    return sorted(found, key=lambda drive: -drive.references)


def top_images(
    origins: Origins, values: NDArray[np.float64], count: int
) -> Iterator[tuple[int, float]]:
    """Images (place in the list) with the largest sum of ``values`` (N,), and that sum."""
    sums = np.bincount(origins.image, values, minlength=len(origins.images))
    for place in np.argsort(-sums, kind="stable")[:count]:
        if sums[place] > 0:
            yield int(place), float(sums[place])


@dataclass(frozen=True)
class Grid:
    """Square cells over the teacher's map, of whole pixels: otherwise they would beat with them.

    Attributes:
        size: (width, height) of the map.
        side: of a cell, in pixels of the map; cells at the right and lower edge may be smaller.
        place: (2, N) row and column of each reference in the map.
    """

    size: tuple[int, int]
    side: int
    place: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, origins: Origins) -> Grid:
        """Cells large enough to hold a few references each, on average."""
        assert origins.map_size is not None and origins.x is not None and origins.y is not None
        width, height = origins.map_size
        pixels = _PER_CELL * width * height / len(origins.image)
        side = int(np.clip(np.ceil(np.sqrt(pixels)), 1, min(width, height)))
        place = np.stack([origins.y * height, origins.x * width]).astype(np.int64)
        return cls((width, height), side, place)

    def density(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """How many references (or how much weight) a pixel of the map holds; 1: as if even.

        Returns:
            (height, width) of the map.
        """
        every = np.indices(self.size[::-1]).reshape(2, -1)
        pixels = replace(self, place=every)._by_cell(None)
        found = self._by_cell(weights) / pixels
        return np.asarray(found / found.mean(), np.float64)

    def median(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Median of the references' values in each cell, as `density`; NaN where there are none."""
        return self._by_cell(values, "median")

    def _by_cell(
        self, values: NDArray[np.float64] | None, statistic: str = "sum"
    ) -> NDArray[np.float64]:
        """A statistic of the references' values (None: ones) in its cell, at every pixel."""
        from scipy.stats import binned_statistic_2d

        values = np.ones(self.place.shape[1]) if values is None else values
        rows, columns = (np.append(np.arange(0, n, self.side), n) for n in self.size[::-1])
        found = binned_statistic_2d(*self.place, values, statistic, bins=[rows, columns]).statistic
        return np.repeat(np.repeat(found, np.diff(rows), 0), np.diff(columns), 1)


def shares(
    values: Sequence[float] | NDArray[np.float64],
    edges: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Shares of values by bars, or their weights summed; the outer bars hold what is beyond."""
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    sums = np.bincount(place, weights, minlength=len(edges) - 1)
    return np.asarray(sums / max(1, len(place)) if weights is None else sums, np.float64)


# -- depth -----------------------------------------------------------------------------------------


def depth_edges() -> NDArray[np.float64]:
    """Edges of the bars of every distribution over depth; the outer bars hold what is beyond."""
    return np.asarray(np.geomspace(NEAR / 1.5, FAR * 1.5, BINS + 1), np.float64)


def depth_shares(metres: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (N,) summed by depth (N,) into the bars of `depth_edges`; their sum is kept."""
    return shares(metres, depth_edges(), weights)


def percent(share: float) -> str:
    """A share for people: 12 %, 3.4 %, 0.056 %."""
    value = 100 * share
    if value >= 10 or value == 0:
        return f"{value:.0f} %"
    digits = max(1, 1 - int(np.floor(np.log10(value)))) if value > 1e-4 else 6
    return f"{value:.{digits}f} %"


def metres(depth: float) -> str:
    """A depth for people: 7.4 m, 31 m."""
    if depth > 1.5 * FAR:
        return f"> {1.5 * FAR:.0f} m"
    return f"{depth:.1f} m" if depth < 10 else f"{depth:.0f} m"
