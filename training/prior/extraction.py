"""Extraction of a reference set: random triplets through the frozen teacher, random pixels of each.

RPrDepth, section 3.2: 2,000 triplets of the training split, 1,300 pixels an image. Which triplets
and which pixels depends on the seed and the data alone, so that a run that was killed goes on, and
several processes write the very files that one would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.batch import TripletBatch
from training.data.triplets import TripletSource
from training.distributed import ALONE, Processes
from training.errors import TrainingError
from training.prior.reference_files import (
    ReferenceManifest,
    Settings,
    shard_name,
    write_shard,
)
from training.prior.reference_set import ReferenceSet
from training.prior.reference_work import Progress, begin, claimed, finish, missing
from training.prior.teachers import RichTeacher, TeacherIdentity

Key = tuple[int, int]  # a drive by number, and its triplet by number

_CHOICE = 26_000  # separates the choice of triplets from that of pixels


@dataclass(frozen=True)
class Plan:
    """Which triplets are looked at.

    Attributes:
        chosen: (drive, triplet), by image number.
        reserve: what stands in for an image whose frames cannot be read.
        notes: what is to be said.
    """

    chosen: list[Key]
    reserve: list[Key]
    notes: list[str]

    def candidates(self, image: int) -> Iterator[Key]:
        """The triplet of an image, then its own substitutes: no two images share one."""
        yield self.chosen[image]
        yield from self.reserve[image :: len(self.chosen)]


def choose_triplets(source: TripletSource, count: int, seed: int) -> Plan:
    """Choose triplets without replacement; a drive's weight counts as in training.

    Successive draws with probability proportional to (drive's weight / its triplets), made at once
    by exponential keys (Efraimidis and Spirakis 2006). Where there are not more than ``count``, all
    are taken.
    """
    keys = source.index
    if count >= len(keys):
        few = f"{count} triplets were asked for, the data have {len(keys)}: all are taken"
        return Plan(keys, [], [few] if count > len(keys) else [])
    weights = np.array([s.weight / len(s.triplets) for s in source.sequences])
    rates = weights[[drive for drive, _ in keys]]
    order = np.argsort(np.random.default_rng([seed, _CHOICE]).exponential(size=len(keys)) / rates)
    picked = [keys[i] for i in order.tolist()]
    return Plan(sorted(picked[:count]), picked[count:], [])


def extract_reference_set(
    teacher: RichTeacher,
    source: TripletSource,
    folder: Path | str,
    *,
    triplets: int = 2000,
    per_image: int = 1300,
    seed: int,
    shard_images: int = 50,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    command: str = "",
) -> ReferenceSet:
    """Make a reference set, or go on where an interrupted call was; a finished one is opened.

    Args:
        teacher: sees previous, current and next frame.
        source: triplets; its pictures, or the rich ones, have the teacher's size.
        folder: of the set; new, empty, or of the same teacher, data and settings.
        triplets: images.
        per_image: pixels of the teacher's tap map drawn from an image, without replacement.
        seed: decides images and pixels.
        shard_images: images of a shard, the unit of work.
        processes: share the shards.
        progress: called with a text, images done and all images of this process.
        command: what the user has to give again to finish the set; stands in the manifest.

    Raises:
        ReferenceSetError: the folder holds something else, or cannot be written.
        TrainingError: the sizes do not fit, or the teacher's output is not finite.
        RecipeError: too many frames cannot be read.
    """
    folder = Path(folder)
    _check_sizes(teacher.identity, source, per_image)
    plan = choose_triplets(source, triplets, seed)
    settings = Settings(
        triplets=triplets,
        per_image=per_image,
        shard_images=shard_images,
        seed=seed,
        metres_per_unit=source.metres_per_unit,
        data=_data_hash(source, plan.chosen),
    )
    begun = ReferenceManifest(
        finished=False,
        command=command,
        teacher=teacher.identity.to_dict(),
        settings=settings,
        shard_count=-(-len(plan.chosen) // shard_images),
        notes=plan.notes,
    )
    with claimed(folder, processes, progress):
        left: list[int] = []
        whole = False
        if processes.is_first:
            whole = begin(folder, begun).finished
            left = missing(folder, begun)
        # Listed once: while another process looks, this one already writes.
        left, whole = processes.broadcast((left, whole))
        if left or not whole:
            job = _Job(teacher, source, plan, settings, folder, begun.key)
            job.run(left[processes.rank :: processes.count], progress)
            processes.barrier()
            if processes.is_first:
                finish(folder, begun)
            processes.barrier()
    return ReferenceSet.open(folder)


def _check_sizes(identity: TeacherIdentity, source: TripletSource, per_image: int) -> None:
    width, height = identity.size
    pixels = (width // identity.tap) * (height // identity.tap)
    if per_image > pixels:
        raise TrainingError(
            f"per_image {per_image}: the teacher's map at 1/{identity.tap} of {width}x{height} has "
            f"{pixels} pixels only"
        )
    if not len(source):
        raise TrainingError("no triplet to extract reference pixels from")


def _data_hash(source: TripletSource, chosen: list[Key]) -> str:
    """Of the frames that were chosen."""
    frames = [(source.sequences[d].name, source.sequences[d].triplets[t]) for d, t in chosen]
    return hashlib.sha256(json.dumps(frames).encode()).hexdigest()


# -- the work ------------------------------------------------------------------------------------


@dataclass
class _Job:
    """Shards of one process."""

    teacher: RichTeacher
    source: TripletSource
    plan: Plan
    settings: Settings
    folder: Path
    key: str

    def run(self, shards: list[int], progress: Progress | None) -> None:
        """Make the shards one after the other."""
        size = self.settings.shard_images
        numbers = [range(n * size, min((n + 1) * size, len(self.plan.chosen))) for n in shards]
        total, done = sum(map(len, numbers)), 0
        for shard, images in zip(shards, numbers, strict=True):
            columns: dict[str, list[NDArray[Any]]] = {
                name: [] for name in ("features", "inverse_depth", "image", "pixel")
            }
            records = {}
            for image in images:
                records[image], pixels = self._image(image)
                for name, values in pixels.items():
                    columns[name].append(values)
                done += 1
                if progress is not None:
                    progress("reference set: images", done, total)
            joined = {name: np.concatenate(parts) for name, parts in columns.items()}
            write_shard(self.folder / shard_name(shard), joined, records, self.key)

    def _image(self, image: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The record and the reference pixels of an image."""
        why = ""
        for drive, triplet in self.plan.candidates(image):
            try:
                features, inverse = self._look(drive, triplet)
            except CorruptFrameError as error:
                why = why or str(error)
                continue
            pixels = self._pixels(image, len(inverse))
            record = self._record(drive, triplet, len(pixels), float(np.median(inverse)))
            return record, _columns(image, pixels, features, inverse)
        record = self._record(*self.plan.chosen[image], 0, None)
        none = np.zeros(0, np.int32)
        features = np.zeros((0, self.teacher.identity.channels), np.float32)
        return record | {"left_out": why}, _columns(image, none, features, none.astype(np.float32))

    def _pixels(self, image: int, count: int) -> NDArray[np.int32]:
        rng = np.random.default_rng([self.settings.seed, image])
        drawn = rng.choice(count, self.settings.per_image, replace=False, shuffle=False)
        return np.sort(drawn).astype(np.int32)

    def _record(
        self, drive: int, triplet: int, pixels: int, median: float | None
    ) -> dict[str, Any]:
        sequence = self.source.sequences[drive]
        frame = sequence.triplets[triplet][1]
        recorded = sequence.travel.frames[frame]
        return {
            "drive": sequence.name,
            "frame": frame,
            "index": recorded.index,
            "stamp_ns": recorded.stamp_ns,
            "pixels": pixels,
            "median_inverse_depth": median,
        }

    def _look(self, drive: int, triplet: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The teacher's maps of a triplet: features (pixels, C) and inverse depth (pixels,)."""
        identity = self.teacher.identity
        batch = self.source.triplet(drive, triplet)
        images, K = _rich_images(batch, identity.size)
        view = self.teacher.look(images, K, batch.poses, batch.known)
        width, height = identity.size
        shape = (identity.channels, height // identity.tap, width // identity.tap)
        if tuple(view.features.shape[1:]) != shape:
            raise TrainingError(
                f"teacher {identity.name} returns features of shape {tuple(view.features.shape)}, "
                f"not {(1, *shape)} as it says of itself"
            )
        features = view.features[0].detach().float().flatten(1).T.cpu().numpy()
        inverse = view.inverse_depth[0, 0].detach().float().flatten().cpu().numpy()
        if not (np.isfinite(features).all() and np.isfinite(inverse).all() and inverse.min() > 0):
            sequence = self.source.sequences[drive]
            raise TrainingError(
                f"teacher {identity.name}: features or depth of {sequence.name}, frame "
                f"{sequence.triplets[triplet][1]}, are not finite and positive; nothing of this "
                "shard was written"
            )
        return features, inverse


def _columns(
    image: int, pixels: NDArray[np.int32], features: NDArray[Any], inverse: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    return {
        "features": features[pixels],
        "inverse_depth": inverse[pixels],
        "image": np.full(len(pixels), image, np.int32),
        "pixel": pixels,
    }


def _rich_images(batch: TripletBatch, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (1, 3, 3, H, W) and K of a triplet at the teacher's ``size``."""
    found = []
    for images, K in ((batch.rich, batch.rich_K), (batch.images, batch.K)):
        if images is not None and K is not None:
            if (images.shape[-1], images.shape[-2]) == tuple(size):
                return images, K
            found.append(f"{images.shape[-1]}x{images.shape[-2]}")
    raise TrainingError(
        f"the teacher looks at {size[0]}x{size[1]}, the data are read at {' and '.join(found)}: "
        "read them at the teacher's size"
    )
