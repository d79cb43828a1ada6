"""What a frozen teacher says of every triplet, computed once and then read."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from depth_prior_ros.atomic_files import remove_leftovers, write_safetensors
from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.augmentation import mirror_pose
from training.data.drives import DriveFrames
from training.data.triplets import TripletBatch, TripletSource
from training.errors import TrainingError
from training.loop.distributed import SINGLE_PROCESS, ProcessGroup
from training.prior.teachers.base import FrozenTeacher, TeacherError, TeacherView

_VERSION = 1  # of what is stored; another one is another folder
_FARTHEST = 6e4  # what half precision still holds
_WHAT = "depth of the teacher"


# Outputs of n triplets, tensors in memory or slices of a file: depth (n, 1, H, W) float16, there
# (n,) bool (a row that could not be read is zero, and not there), and where the teacher knows
# motion, motions (n, 2, 4, 4) float32.
_Shard = Mapping[str, Any]


@dataclass
class TeacherOutputs:
    """Depth and motions of a frozen teacher for all triplets of a source, not mirrored.

    They do not depend on how a student's pictures are changed, so a stage need not run the teacher
    again for every step: `of` reads them and mirrors them where the sample is mirrored. Depth is
    kept in half precision (relative error at most 2^-11).

    Attributes:
        size: (W, H) of the depth: the teacher's input size.
        folder: where they lie; None: in memory.
    """

    size: tuple[int, int]
    folder: Path | None
    _first: list[int]  # row of the first triplet of every drive
    _starts: list[int]  # row with which every shard begins
    _shards: Sequence[_Shard]

    @classmethod
    def open(
        cls,
        folder: Path | None,
        teacher: FrozenTeacher,
        source: TripletSource,
        *,
        batch: int = 8,
        shard: int = 256,
        processes: ProcessGroup = SINGLE_PROCESS,
        progress: Progress = quiet,
    ) -> TeacherOutputs:
        """Read a teacher's outputs, and compute what is not there yet.

        Shards are written whole or not at all, so a run that was interrupted goes on; what a kill
        left half-written is removed, so two runs have to take turns (`reference_work.claimed`).
        Another teacher, or other data, is another folder below ``folder``. Several processes share
        the work where there is a folder.

        Args:
            folder: where they are kept; None: in memory, for this process.
            teacher: the teacher; with recorded motions where the source has them.
            source: its triplets, with pictures at the teacher's size, as first or second size.
            batch: triplets that the teacher looks at together.
            shard: triplets in a file.
            processes: those of the run.
            progress: told of triplets done.

        Raises:
            TeacherError: the source has no pictures at the teacher's size, or the teacher's depth
                is not finite.
            TrainingError: the folder cannot be written.
        """
        second = _uses_teacher_images(teacher, source)
        counts = [len(sequence.triplets) for sequence in source.sequences]
        total = sum(counts)
        work = _Work(teacher, source, second, batch, total, progress)
        starts = list(range(0, total, shard))
        spans = [range(start, min(start + shard, total)) for start in starts]
        place = None
        if folder is None:
            shards: list[_Shard] = [work.rows(span) for span in spans]
        else:
            place = folder / outputs_name(teacher, source, second)
            files = [place / f"{number:05d}.safetensors" for number in range(len(spans))]
            todo = list(zip(files, spans, strict=True))
            if processes.is_main_process:
                remove_leftovers(place)
            processes.barrier()  # until then nobody writes
            for file, span in todo[processes.rank :: processes.count]:
                if _opened(file, len(span), teacher.identity.size) is None:
                    _write(file, work.rows(span))
            processes.barrier()
            shards = [_readable(file, len(span), teacher.identity.size) for file, span in todo]
        first = [0, *accumulate(counts)][:-1]
        return cls(teacher.identity.size, place, first, starts, shards)

    def of(self, batch: TripletBatch) -> tuple[Tensor, Tensor | None]:
        """Depth (B, 1, H, W) and motions (2, B, 4, 4) or None of a batch, network units, float32.

        H and W are the teacher's; both are mirrored where the sample is. They lie on the batch's
        device.

        Raises:
            ValueError: the batch does not say which triplets it shows.
            TrainingError: one of them could not be read when the outputs were computed.
        """
        if bool((batch.drive < 0).any()) or bool((batch.triplet < 0).any()):
            raise ValueError("this batch does not say which triplets of its source it shows")
        numbers = zip(batch.drive.tolist(), batch.triplet.tolist(), strict=True)
        found = [self._row(self._first[drive] + triplet) for drive, triplet in numbers]
        device, which = batch.images.device, batch.mirrored.to(batch.images.device)
        depth = torch.stack([row["depth"] for row in found]).to(device).float()
        depth = torch.where(which[:, None, None, None], depth.flip(-1), depth)
        if "motions" not in found[0]:
            return depth, None
        motions = torch.stack([row["motions"] for row in found], dim=1).to(device)
        mirrored = mirror_pose(Pose(motions)).matrix
        return depth, torch.where(which[None, :, None, None], mirrored, motions)

    def _row(self, row: int) -> dict[str, Tensor]:
        number = bisect_right(self._starts, row) - 1
        at = row - self._starts[number]
        one = {name: rows[at : at + 1][0] for name, rows in self._shards[number].items()}
        if not bool(one["there"]):
            raise TrainingError(
                f"triplet {row} could not be read when the teacher looked at it; "
                f"{'start again' if self.folder is None else f'remove {self.folder}'} if it can now"
            )
        return one


def outputs_name(teacher: FrozenTeacher, source: TripletSource, second: bool) -> str:
    """Name of the folder with the outputs of a teacher for a source."""
    identity = teacher.identity
    mode = getattr(teacher, "precision", "f32")
    return f"{identity.sha256[:16]}_{mode}_{_fingerprint(source, second)}"


def _fingerprint(source: TripletSource, second: bool) -> str:
    """Of all that a teacher is shown: triplets, cameras, motions, and some of the pictures."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(repr((_VERSION, source.metres_per_unit, second)).encode())
    for sequence in source.sequences:
        digest.update(repr((sequence.name, sequence.triplets)).encode())
        K = sequence.teacher_K if second else sequence.K
        assert K is not None
        digest.update(K.tobytes())
        for position, pose in sorted(sequence.poses.items()):
            digest.update(repr(position).encode() + pose.tobytes())
        for picture in _some_pictures(sequence, second):
            digest.update(repr(picture.shape).encode() + picture.tobytes())
    return digest.hexdigest()


def _some_pictures(sequence: DriveFrames, second: bool) -> Iterator[Any]:
    """The first, middle and last picture of a drive, where they can be read."""
    count = len(sequence.triplets)
    for number in sorted({0, count // 2, count - 1}) if count else ():
        with contextlib.suppress(CorruptFrameError):
            views = sequence.views(sequence.triplets[number][1])
            yield views[1 if second else 0]


def _uses_teacher_images(teacher: FrozenTeacher, source: TripletSource) -> bool:
    """Whether the source's second size is the teacher's; raises TeacherError where neither is."""
    wanted = teacher.identity.size
    for drive, triplet in source.index:
        try:
            one = source.triplet(drive, triplet)
        except CorruptFrameError:
            continue
        sizes = [_size(images) for images in (one.images, one.teacher_images) if images is not None]
        if wanted not in sizes:
            shown = " and ".join(f"{w}x{h}" for w, h in sizes)
            raise TeacherError(
                f"teacher {teacher.identity.name}: its input is {wanted[0]}x{wanted[1]}, the "
                f"pictures are {shown}; load the data with teacher_size {list(wanted)}"
            )
        return wanted != sizes[0]
    raise TeacherError("there is no triplet that a teacher could look at")


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-1], images.shape[-2]


@dataclass
class _Work:
    """Runs the teacher over rows of a source."""

    teacher: FrozenTeacher
    source: TripletSource
    second: bool
    batch: int
    total: int
    progress: Progress

    def rows(self, span: range) -> dict[str, Tensor]:
        """Outputs of these rows of ``source.index``."""
        index = self.source.index
        width, height = self.teacher.identity.size
        depth = torch.zeros(len(span), 1, height, width, dtype=torch.float16)
        motions = torch.eye(4).repeat(len(span), 2, 1, 1)
        there = torch.zeros(len(span), dtype=torch.bool)
        moves = True
        for start in range(0, len(span), self.batch):
            self.progress(_WHAT, span[start], self.total)
            places, triplets = self._read(index, span, start)
            if not places:
                continue
            view = self._look(triplets)
            depth[places] = view.depth.clamp(max=_FARTHEST).half().cpu()
            there[places] = True
            moves = view.motions is not None
            if view.motions is not None:
                motions[places] = view.motions.transpose(0, 1).float().cpu()
        self.progress(_WHAT, span[-1] + 1, self.total)
        rows = {"depth": depth, "there": there}
        return rows | {"motions": motions} if moves else rows

    def _read(
        self, index: list[tuple[int, int]], span: range, start: int
    ) -> tuple[list[int], list[TripletBatch]]:
        """Readable triplets of a batch, and where in the span they stand."""
        places, triplets = [], []
        for place in range(start, min(start + self.batch, len(span))):
            with contextlib.suppress(CorruptFrameError):
                triplets.append(self.source.triplet(*index[span[place]]))
                places.append(place)
        return places, triplets

    def _look(self, triplets: list[TripletBatch]) -> TeacherView:
        images = [t.teacher_images if self.second else t.images for t in triplets]
        K = [t.teacher_K if self.second else t.K for t in triplets]
        view = self.teacher.look(
            torch.cat([i for i in images if i is not None]),
            torch.cat([k for k in K if k is not None]),
            torch.cat([t.poses for t in triplets]),
            torch.cat([t.known for t in triplets]),
        )
        if not bool(torch.isfinite(view.depth).all()):
            raise TeacherError(f"teacher {self.teacher.identity.name}: its depth is not finite")
        return view


def _opened(path: Path, count: int, size: tuple[int, int]) -> _Shard | None:
    """A shard that is there, whole and of the right shape, mapped into memory; otherwise None."""
    try:
        file = safe_open(path, framework="pt")
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {"depth": [count, 1, size[1], size[0]], "there": [count]}
        whole = all(list(found[name].get_shape()) == shape for name, shape in shapes.items())
        return found if whole else None
    except (OSError, KeyError, SafetensorError):
        return None


def _readable(path: Path, count: int, size: tuple[int, int]) -> _Shard:
    found = _opened(path, count, size)
    if found is None:
        raise TrainingError(f"{path} was changed while it was read; start again")
    return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        write_safetensors(path, tensors)
    except OSError as error:
        needed = sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20
        raise TrainingError(
            f"{path} cannot be written ({error}); it needs {needed:.0f} MiB, and so do the others. "
            "Make room and start again: what is written is kept"
        ) from error
