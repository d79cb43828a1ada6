"""Scores of a student's queries and of reference pixels, a small block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior, PriorFusion
from training.errors import TrainingError

# References and queries (of all heads together) of a block of scores: 2 MiB is small enough for the
# caches and large enough for the calls not to count; an accelerator wants much larger ones.
_COLUMNS, _ROWS = 512, 1024
_DEVICE_COLUMNS, _DEVICE_ROWS = 8192, 4096
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Queries:
    """The queries of all images for each branch that is on.

    Attributes:
        branches: pixel-wise (1, Q, d) and depth hint (heads, Q, d'), float32, scores in powers of
            two; None where a branch is off.
        share: (Q,) float64, what each query counts in the mean over images; sums to 1.
    """

    branches: tuple[Tensor | None, Tensor | None]
    share: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, fusion: PriorFusion, query_maps: Iterable[Tensor]) -> Queries:
        """Project feature maps, (C, h, w) or (B, C, h, w) each.

        Raises:
            TrainingError: there are none, or they are not finite.
        """
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        counts: list[int] = []
        for maps in query_maps:
            maps = maps if maps.dim() == 4 else maps[None]
            counts += [maps[0, 0].numel()] * len(maps)
            for part, queries in zip(parts, fusion.scaled_queries(maps), strict=True):
                if queries is not None:  # (B, heads, Q, d)
                    part.append(queries.float().transpose(0, 1).flatten(1, 2) * _LOG2_E)
        if not counts:
            raise TrainingError("no validation image: attention needs at least one to look at")
        pixel_wise, hint = (torch.cat(part, dim=1) if part else None for part in parts)
        for queries in (pixel_wise, hint):
            if queries is not None and not bool(queries.isfinite().all()):
                raise TrainingError("the student's features of a validation image are not finite")
        share = torch.tensor([1 / (n * len(counts)) for n in counts], dtype=torch.float64)
        return cls((pixel_wise, hint), share.repeat_interleave(torch.tensor(counts)))

    @property
    def operations(self) -> float:
        """Operations of one pass per reference: two per channel of every score."""
        return float(sum(2 * branch.numel() for branch in self.branches if branch is not None))


class Branch:
    """One branch in one thread: its queries with a last channel that is added to the scores."""

    def __init__(self, queries: Tensor, last: Tensor | float = 0.0) -> None:
        heads, count, width = queries.shape
        self.queries = queries.new_empty(heads, count, width + 1)
        self.queries[..., :width] = queries
        self.queries[..., width] = last
        self._rows = max(1, _sizes(queries.device)[1] // heads)
        self._buffer = queries.new_empty(0)

    def scores(self, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (heads, q, n) of scores of keys (heads, d + 1, n); the buffer is used again."""
        heads, count, _ = self.queries.shape
        for start in range(0, count, self._rows):
            rows = slice(start, min(start + self._rows, count))
            size = heads * (rows.stop - start) * keys.shape[2]
            if self._buffer.numel() < size:
                self._buffer = keys.new_empty(size)
            block = self._buffer[:size].view(heads, rows.stop - start, keys.shape[2])
            yield rows, torch.bmm(self.queries[:, rows], keys, out=block)


def pieces(
    fusion: PriorFusion, chunk: Prior
) -> Iterator[tuple[int, tuple[Tensor | None, Tensor | None]]]:
    """Keys of a chunk, a block's width at a time: (heads, d + 1, n), the last channel one."""
    device = next(fusion.parameters()).device
    start = 0
    for features in chunk.features.to(device).split(_sizes(device)[0]):
        pixel_wise, hint = (_keys(keys) for keys in fusion.project_keys(features))
        yield start, (pixel_wise, hint)
        start += len(features)


def _keys(keys: Tensor | None) -> Tensor | None:
    if keys is None:
        return None
    heads, count, width = keys.shape
    out = keys.new_ones(heads, width + 1, count, dtype=torch.float32)
    out[:, :width] = keys.transpose(1, 2)
    return out


def _sizes(device: torch.device) -> tuple[int, int]:
    """References, and queries of all heads together, of a block of scores."""
    return (_COLUMNS, _ROWS) if device.type == "cpu" else (_DEVICE_COLUMNS, _DEVICE_ROWS)
