"""The reference set: pixels of a frozen teacher, memory-mapped (RPrDepth, section 3.2).

2,000 images of 1,300 pixels with 64 channels are 322 MiB on disk. Nothing here ever holds more than
the rows that were asked for, as float32, beside the pages that the system keeps of the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.models.prior_fusion import Prior
from training.prior.reference.files import (
    MANIFEST_NAME,
    ReferenceManifest,
    ReferenceSetError,
    ShardFile,
    open_shard,
    read_manifest,
    shard_name,
    verify_shard,
)
from training.prior.teachers.base import TeacherIdentity

__all__ = ["ReferenceSet", "ReferenceSetError"]

Indices = Sequence[int] | NDArray[np.integer[Any]] | Tensor


@dataclass(frozen=True)
class ReferenceSet:
    """A finished reference set.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        identity: the teacher.
    """

    folder: Path
    manifest: ReferenceManifest
    identity: TeacherIdentity
    _shards: tuple[ShardFile, ...]
    _ends: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> ReferenceSet:
        """Open a set, checking its manifest, and that every shard is there with all its bytes.

        Args:
            folder: of the set.
            verify: also read everything: hashes, finite features, positive depth.

        Raises:
            ReferenceSetError: it is not finished, cut off, altered, or of a newer version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        path = folder / MANIFEST_NAME
        try:
            identity = TeacherIdentity.of(manifest.teacher)
        except (TypeError, KeyError, ValueError) as error:
            raise ReferenceSetError(path, f"teacher: {error}") from error
        if not manifest.finished:
            raise ReferenceSetError(path, _unfinished(folder, manifest))
        shards = []
        for entry in manifest.shards:
            file = folder / entry.file
            shard = open_shard(file, identity.channels, entry.bytes)
            if shard.key != manifest.key or shard.rows != entry.rows:
                raise ReferenceSetError(file, "belongs to another reference set; remove it")
            if verify:
                verify_shard(file, shard, entry.sha256)
            shards.append(shard)
        ends = np.cumsum([shard.rows for shard in shards], dtype=np.int64)
        if not len(ends) or not ends[-1]:
            raise ReferenceSetError(path, "holds no reference pixel")
        return cls(folder, manifest, identity, tuple(shards), ends)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __str__(self) -> str:
        """What it is, in a few lines for people."""
        identity = self.identity
        size = sum(entry.bytes for entry in self.manifest.shards) / 2**20
        drives = {image["drive"] for image in self.images}
        used = sum(image["pixels"] > 0 for image in self.images)
        width, height = identity.size
        lines = [
            f"reference set: {self.folder}",
            f"{len(self):,} pixels with {self.channels} channels of {used} images from "
            f"{len(drives)} drives, {size:.1f} MiB",
            f"teacher: {identity.name} ({identity.kind}, {width}x{height}, features at "
            f"1/{identity.stride}, {identity.licence}), {identity.sha256[:12]}...",
        ]
        return "\n".join(lines)

    @property
    def channels(self) -> int:
        """Width of the features."""
        return self.identity.channels

    @property
    def images(self) -> list[dict[str, Any]]:
        """By number: "drive", "frame" (position), "median_inverse_depth", ...

        See `ReferenceManifest`.
        """
        return self.manifest.images

    @property
    def notes(self) -> list[str]:
        """What is to be said of how it was made: fewer triplets than asked for, frames left out."""
        return self.manifest.notes

    def require(self, identity: TeacherIdentity | None = None, channels: int | None = None) -> None:
        """Make sure that it was written by this teacher, with features of this width.

        Raises:
            ReferenceSetError: it was not.
        """
        mine = self.identity
        if identity is not None and identity.sha256 != mine.sha256:
            raise ReferenceSetError(
                self.folder,
                f"written by another teacher: {_name(mine)}, not {_name(identity)}; extract a set "
                "with that teacher into another folder",
            )
        if channels is not None and channels != mine.channels:
            raise ReferenceSetError(
                self.folder,
                f"its features have {mine.channels} channels, {channels} are needed; choose the "
                "teacher or stride that the student's fusion was built for",
            )

    def sample(self, rng: np.random.Generator, count: int) -> Prior:
        """``count`` random rows without replacement, in ascending order; all, if it has no more."""
        if count >= len(self):
            return self.rows(np.arange(len(self)))
        return self.rows(np.sort(rng.choice(len(self), count, replace=False, shuffle=False)))

    def rows(self, indices: Indices) -> Prior:
        """Some rows, in the order asked for; float32 on the CPU.

        Raises:
            IndexError: there is no such row.
        """
        features, inverse = self._gather(indices, "features", "inverse_depth")
        return Prior(torch.from_numpy(features).float(), torch.from_numpy(inverse).float())

    def sources(self, indices: Indices) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of rows: image (n,) into `images`, pixel (n,) row-major in the teacher's map."""
        image, pixel = self._gather(indices, "image", "pixel")
        return image, pixel

    def chunks(self, size: int) -> Iterator[Prior]:
        """All rows in order, ``size`` at a time (the last ones fewer), float32."""
        for start in range(0, len(self), size):
            yield self.rows(np.arange(start, min(start + size, len(self))))

    def _gather(self, indices: Indices, *names: str) -> list[NDArray[Any]]:
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"reference rows are 0 to {len(self) - 1}")
        out = [
            np.empty((len(wanted), *self._shards[0].columns[name].shape[1:]), column.dtype)
            for name, column in ((n, self._shards[0].columns[n]) for n in names)
        ]
        order: NDArray[np.int64] | None = None
        ascending = wanted
        if np.any(wanted[1:] < wanted[:-1]):
            order = np.argsort(wanted, kind="stable")
            ascending = wanted[order]
        bounds = np.searchsorted(ascending, np.concatenate([[0], self._ends]))
        for number, shard in enumerate(self._shards):
            first, last = int(bounds[number]), int(bounds[number + 1])
            if first == last:
                continue
            rows = ascending[first:last] - (self._ends[number] - shard.rows)
            to = slice(first, last) if order is None else order[first:last]
            for array, name in zip(out, names, strict=True):
                array[to] = shard.columns[name][rows]
        return out


def _name(identity: TeacherIdentity) -> str:
    return f"{identity.name} ({identity.sha256[:12]}...)"


def _unfinished(folder: Path, manifest: ReferenceManifest) -> str:
    done = sum((folder / shard_name(n)).is_file() for n in range(manifest.shard_count))
    how = f": {manifest.command}" if manifest.command else ""
    return (
        f"not finished ({done} of {manifest.shard_count} shards); the command that began it "
        f"finishes it{how}"
    )
