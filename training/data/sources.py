"""From a recipe's data section to triplets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.share import home_path
from training.data.drives import (
    DriveFrames,
    add_teacher_images,
    drive_path,
    load_sequence,
    open_drive,
    open_partner,
)
from training.data.frames import FrameStores, LastImage
from training.data.plan import DataPlan, Entry, plan_data
from training.data.splits import (
    CameraView,
    DriveKey,
    Frames,
    eigen_test,
    hold_out,
    name_drives,
    write_split,
)
from training.data.static import StaticRule
from training.data.triplets import TripletSource
from training.recipes.base import RecipeError
from training.recipes.data import Data

__all__ = ["DataPlan", "Entry", "LoadedData", "load_data", "plan_data", "write_zhou_split"]


class LoadedData(NamedTuple):
    """Triplets to train on, and held-out ones where the split has some."""

    training: TripletSource
    validation: TripletSource | None


def load_data(
    root: Path,
    data: Data,
    size: tuple[int, int],
    metres_per_unit: float,
    teacher_size: tuple[int, int] | None = None,
    progress: Progress = quiet,
) -> LoadedData:
    """All triplets that a data section asks for.

    Args:
        root: the data root.
        data: the section.
        size: width and height of the network's input.
        metres_per_unit: unit of the poses in a batch.
        teacher_size: width and height of a second picture of every frame to train on, made of
            the same image; None: there is none. It changes no draw. ``data.memory`` is for both:
            pictures of the second size get what those of the first leave. Held-out triplets have
            none.
        progress: told of every recording before it is read.

    Raises:
        RecipeError: see `plan_data`; or no triplet is left, which says what was left out.
    """
    plan = plan_data(root, data)
    cache = home_path(data.cache) if data.cache else None
    stores = FrameStores(size, cache, data.memory * 2**20, data.workers)
    last = LastImage() if teacher_size else None
    training, left_out = _load(root, data, plan.training, stores, last, progress)
    validation, _ = _load(root, data, plan.validation, stores, progress=progress)
    skipped = plan.skipped + left_out
    if plan.by_rule:
        training, validation = _hold_out(training, data.split.validation_share)
        if validation:
            names = name_drives({e.key for e, _ in validation if e.key})
            skipped.append(f"data.split: {names} held out for validation")
    if teacher_size is not None:
        progress("reading the drives at the teacher's size")
        skipped += _load_teacher_images(root, training, replace(stores, size=teacher_size))
    sources = []
    for loaded in (training, validation):
        source = TripletSource([], metres_per_unit, skipped, data.workers)
        _share_weights(loaded)
        for _, sequence in loaded:
            source.add(sequence)
        sources.append(source)
        skipped = []
    sources[0].refuse_empty()
    return LoadedData(sources[0], sources[1] if len(sources[1]) else None)


_Loaded = list[tuple[Entry, DriveFrames]]


def _load(
    root: Path,
    data: Data,
    entries: Sequence[Entry],
    stores: FrameStores,
    last: LastImage | None = None,
    progress: Progress = quiet,
) -> tuple[_Loaded, list[str]]:
    """Every entry's sequence, and what was left out of them.

    With ``last``, an image of which pictures of two sizes are made is decoded once.
    """
    loaded, skipped = [], []
    for number, entry in enumerate(entries):
        progress("reading the drives", number, len(entries), entry.drive.path)
        kind = entry.drive.drop_static or data.drop_static
        pairs = None
        try:
            recording = open_drive(root, entry.drive)
            if data.stereo:
                pairs = open_partner(root, entry.drive, recording)
                recording = pairs.recording
        except RecipeError as error:
            if entry.named:
                raise
            skipped.append(str(error))
            continue
        if last is not None:
            recording = replace(recording, frames=last.decode_once(recording.frames))
        sequence, left_out = load_sequence(
            recording,
            entry.drive,
            stores.size,
            path=drive_path(root, entry.drive.path),
            stores=stores,
            rule=StaticRule(kind, data.static_speed, data.static_motion),
            targets=entry.targets,
            pairs=pairs,
            mode=data.mode,
        )
        loaded.append((entry, sequence))
        skipped += left_out
    return loaded, skipped


def _load_teacher_images(root: Path, loaded: _Loaded, stores: FrameStores) -> list[str]:
    """Pictures of a second size for every sequence; what was left out of them."""
    left_out = []
    for entry, sequence in loaded:
        path = drive_path(root, entry.drive.path)
        left_out += add_teacher_images(sequence, entry.drive, stores, path)
    return left_out


def _hold_out(loaded: _Loaded, share: float) -> tuple[_Loaded, _Loaded]:
    """Split off whole drives of KITTI raw, but none that data.drives names."""
    named = {entry.key for entry, _ in loaded if entry.view is None}
    counts: Counter[DriveKey] = Counter()
    for entry, sequence in loaded:
        if entry.view is not None and entry.view.drive not in named:
            counts[entry.view.drive] += len(sequence.triplets)
    held = hold_out(counts, share)
    kept = [pair for pair in loaded if pair[0].view is None or pair[0].key not in held]
    return kept, [pair for pair in loaded if pair[0].view is not None and pair[0].key in held]


def _share_weights(loaded: _Loaded) -> None:
    """An entry's weight is that of all drives it stands for, each by its triplets."""
    total: Counter[str] = Counter()
    for entry, sequence in loaded:
        total[entry.group] += len(sequence.triplets)
    for entry, sequence in loaded:
        part = len(sequence.triplets) / max(1, total[entry.group])
        sequence.weight = entry.drive.weight * part


def _frames(loaded: _Loaded) -> Frames:
    """The middle frames of the triplets that are from KITTI raw."""
    found: dict[CameraView, set[int]] = {}
    for entry, sequence in loaded:
        if entry.view is not None:
            numbers = {sequence.travel.frames[t[1]].index for t in sequence.triplets}
            found.setdefault(entry.view, set()).update(numbers)
    return {view: frozenset(numbers) for view, numbers in found.items()}


def write_zhou_split(root: Path, data: Data, out: Path) -> dict[str, int]:
    """Make the split of ``data.kitti_raw`` by rule and write it as the peers' files.

    The rule is Zhou's (CVPR 2017): no test drive, no frame where the camera stands, a share held
    out; here the share is of whole drives, because a neighbour of a training frame is not held out.

    Returns:
        Lines of train_files.txt, val_files.txt (where something is held out) and test_files.txt.
    """
    only = data.model_copy(update={"drives": (), "synthetic": None})
    plan = plan_data(root, only)
    # No frame is kept: only image motion reads some, where speeds are not known.
    loaded, _ = _load(root, only, plan.training, FrameStores((160, 48), memory=0))
    training, validation = _hold_out(loaded, data.split.validation_share)
    lines = {"train_files.txt": write_split(out / "train_files.txt", _frames(training))}
    if validation:
        lines["val_files.txt"] = write_split(out / "val_files.txt", _frames(validation))
    lines["test_files.txt"] = write_split(out / "test_files.txt", eigen_test())
    return lines
