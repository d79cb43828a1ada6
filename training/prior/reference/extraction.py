"""Extraction of a reference set: random triplets through the frozen teacher, random pixels of each.

RPrDepth, section 3.2: 2,000 triplets of the training split, 1,300 pixels an image. Which triplets
and which pixels depends on the seed and the data alone, so that a run that was killed goes on, and
several processes write the very files that one would.

A reference set in the making: who writes it, what is there already, and when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depth_prior_ros.atomic_files import remove_leftovers
from depth_prior_ros.bundle.files import sha256_of
from depth_prior_ros.progress import Progress
from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.triplets import TripletBatch, TripletSource
from training.errors import TrainingError
from training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from training.prior.reference.files import (
    MANIFEST_NAME,
    SHARDS,
    ExtractionSettings,
    ReferenceManifest,
    ReferenceSetError,
    ShardEntry,
    open_shard,
    read_manifest,
    shard_name,
    write_manifest,
    write_shard,
)
from training.prior.reference.set import ReferenceSet
from training.prior.teachers.base import FrozenTeacher, TeacherIdentity

_LOCK = ".extracting"


@contextmanager
def claimed(
    folder: Path, processes: ProcessGroup, progress: Progress | None, what: str = "reference set"
) -> Iterator[None]:
    """Wait until no other run on this machine writes the folder; the first process holds it.

    Raises:
        ReferenceSetError: the folder is a file or cannot be made.
    """
    if not processes.is_main_process:  # the first one of a run waits for all of them
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / _LOCK).open("w"))
        except FileExistsError:
            raise ReferenceSetError(folder, f"is a file; a folder ({what}) is wanted") from None
        except OSError as error:
            if not folder.is_dir():
                raise ReferenceSetError(folder, f"cannot be written: {error.strerror}") from error
            # What is finished there can be read all the same; writing says why it cannot.
        else:
            _wait_for(lock, f"{what}: another run writes it", progress)
        yield


def _wait_for(lock: IO[str], text: str, progress: Progress | None) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if progress is not None:
            progress(text, 0, 0)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass


def begin(folder: Path, begun: ReferenceManifest) -> ReferenceManifest:
    """The manifest that is there, or a new one of an unfinished set.

    Raises:
        ReferenceSetError: the folder holds something else, or cannot be written.
    """
    if (folder / MANIFEST_NAME).exists():
        found = read_manifest(folder)
        _refuse_other(folder, found, begun)
        for place in (folder, folder / SHARDS):
            remove_leftovers(place)
        return found
    if any(f.name[0] != "." for f in folder.iterdir()):
        raise ReferenceSetError(
            folder, f"holds other things and no {MANIFEST_NAME}; choose another folder"
        )
    write_manifest(folder, begun)
    return begun


def _refuse_other(folder: Path, found: ReferenceManifest, wanted: ReferenceManifest) -> None:
    theirs, ours = found.teacher, wanted.teacher
    if theirs.get("sha256") != ours["sha256"]:
        raise ReferenceSetError(
            folder,
            f"holds the reference set of another teacher ({theirs.get('name')}, "
            f"{str(theirs.get('sha256'))[:12]}..., not {ours['name']}, {ours['sha256'][:12]}...); "
            "name another folder, or remove that one",
        )
    had, want = found.settings.model_dump(), wanted.settings.model_dump()
    if had != want:
        other = [f"{n} {had[n]}, not {want[n]}" for n in want if had[n] != want[n] and n != "data"]
        text = "; ".join(other) or "other frames"
        raise ReferenceSetError(
            folder,
            f"holds a reference set of other settings ({text}); name another folder, or remove "
            "that one",
        )


def missing(folder: Path, begun: ReferenceManifest) -> list[int]:
    """Shards that are still to be made; a damaged one counts as missing."""
    left = []
    for number in range(begun.shard_count):
        try:
            shard = open_shard(folder / shard_name(number), int(begun.teacher["channels"]))
        except ReferenceSetError:
            left.append(number)
            continue
        if shard.key != begun.key:
            left.append(number)
    return left


def finish(folder: Path, begun: ReferenceManifest) -> None:
    """Write the manifest of the whole set."""
    entries: list[ShardEntry] = []
    images: dict[int, dict[str, Any]] = {}
    notes = list(begun.notes)
    for number in range(begun.shard_count):
        path = folder / shard_name(number)
        shard = open_shard(path, int(begun.teacher["channels"]))
        images |= shard.images
        entries.append(
            ShardEntry(
                file=shard_name(number),
                rows=shard.rows,
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    out = [record for record in images.values() if not record["pixels"]]
    if out:
        notes.append(f"{len(out)} images left out: {out[0]['left_out']}")
    records = [images[number] for number in sorted(images)]
    changes = {"shards": entries, "images": records, "notes": notes}
    whole = begun.model_copy(update={"finished": True, "command": "", **changes})
    write_manifest(folder, whole)


Key = tuple[int, int]  # a drive by number, and its triplet by number

_CHOICE = 26_000  # separates the choice of triplets from that of pixels


@dataclass(frozen=True)
class ExtractionPlan:
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


def choose_triplets(source: TripletSource, count: int, seed: int) -> ExtractionPlan:
    """Choose triplets without replacement; a drive's weight counts as in training.

    Successive draws with probability proportional to (drive's weight / its triplets), made at once
    by exponential keys (Efraimidis and Spirakis 2006). Where there are not more than ``count``, all
    are taken.
    """
    keys = source.index
    if count >= len(keys):
        few = f"{count} triplets were asked for, the data have {len(keys)}: all are taken"
        return ExtractionPlan(keys, [], [few] if count > len(keys) else [])
    weights = np.array([s.weight / len(s.triplets) for s in source.sequences])
    rates = weights[[drive for drive, _ in keys]]
    order = np.argsort(np.random.default_rng([seed, _CHOICE]).exponential(size=len(keys)) / rates)
    picked = [keys[i] for i in order.tolist()]
    return ExtractionPlan(sorted(picked[:count]), picked[count:], [])


def extract_reference_set(
    teacher: FrozenTeacher,
    source: TripletSource,
    folder: Path | str,
    *,
    triplets: int = 2000,
    per_image: int = 1300,
    seed: int,
    shard_images: int = 50,
    processes: ProcessGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
    command: str = "",
) -> ReferenceSet:
    """Make a reference set, or go on where an interrupted call was; a finished one is opened.

    Args:
        teacher: sees previous, current and next frame.
        source: triplets; its pictures, or the teacher's, have the teacher's size.
        folder: of the set; new, empty, or of the same teacher, data and settings.
        triplets: images.
        per_image: pixels of the teacher's map of features drawn from an image, without replacement.
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
    settings = ExtractionSettings(
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
        if processes.is_main_process:
            whole = begin(folder, begun).finished
            left = missing(folder, begun)
        # Listed once: while another process looks, this one already writes.
        left, whole = processes.broadcast((left, whole))
        if left or not whole:
            job = _Job(teacher, source, plan, settings, folder, begun.key)
            job.run(left[processes.rank :: processes.count], progress)
            processes.barrier()
            if processes.is_main_process:
                finish(folder, begun)
            processes.barrier()
    return ReferenceSet.open(folder)


def _check_sizes(identity: TeacherIdentity, source: TripletSource, per_image: int) -> None:
    width, height = identity.size
    pixels = (width // identity.stride) * (height // identity.stride)
    if per_image > pixels:
        raise TrainingError(
            f"per_image {per_image}: the teacher's map at 1/{identity.stride} of {width}x{height} "
            f"has {pixels} pixels only"
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

    teacher: FrozenTeacher
    source: TripletSource
    plan: ExtractionPlan
    settings: ExtractionSettings
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
        images, K = _images_of_size(batch, identity.size)
        view = self.teacher.look(images, K, batch.poses, batch.known)
        width, height = identity.size
        shape = (identity.channels, height // identity.stride, width // identity.stride)
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


def _images_of_size(batch: TripletBatch, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (1, 3, 3, H, W) and K of a triplet at the teacher's ``size``."""
    found = []
    for images, K in ((batch.teacher_images, batch.teacher_K), (batch.images, batch.K)):
        if images is not None and K is not None:
            if (images.shape[-1], images.shape[-2]) == tuple(size):
                return images, K
            found.append(f"{images.shape[-1]}x{images.shape[-2]}")
    raise TrainingError(
        f"the teacher looks at {size[0]}x{size[1]}, the data are read at {' and '.join(found)}: "
        "read them at the teacher's size"
    )
