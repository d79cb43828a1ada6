"""From a recipe's data section to its recordings, and from those to triplets.

Which drives, which frames, and who may see them is planned before any image is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recordings import is_bag
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
from training.data.splits import (
    CameraView,
    DriveKey,
    Frames,
    drive_of,
    eigen_test,
    hold_out,
    name_drives,
    read_drives,
    read_split,
    refuse_shared,
)
from training.data.static import StaticRule
from training.data.triplets import TripletSource
from training.evaluation.sets import drive_key, find_drives
from training.recipes.base import RecipeError
from training.recipes.data import Data, Drive, KittiRaw

_LEAK = " (data.split.allow_leak: true trains on them all the same; figures on them mean nothing)"


@dataclass(frozen=True)
class Entry:
    """One recording of the plan.

    group: entries of a group share a weight, each by its number of triplets. view: the camera and
    drive of KITTI raw. targets: frames that may be the middle of a triplet, None: all.
    """

    drive: Drive
    group: str
    key: DriveKey | None = None
    view: CameraView | None = None
    targets: frozenset[int] | None = None
    named: bool = False  # by the recipe itself; then it has to be readable


@dataclass
class DataPlan:
    """What a data section comes to, before any image is read."""

    training: list[Entry] = field(default_factory=list)
    validation: list[Entry] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    by_rule: bool = False  # drives for validation are still to be held out


def plan_data(root: Path, data: Data) -> DataPlan:
    """Find the recordings of a data section and check who may see them; reads no image.

    Raises:
        RecipeError: a drive is missing, stands on both sides of the split or is a test drive; a
            split file is missing, empty or of another form.
    """
    plan = DataPlan()
    test = _test_drives(root, data)
    for place, path in enumerate(data.synthetic.textures if data.synthetic else ()):
        key = drive_of(root / path)
        if key is not None:
            what = f"data.synthetic.textures.{place}: {path} is test data"
            _refuse_leak(data, {key}, test, what)
    for place, drive in enumerate(data.drives):
        _plan_drive(plan, root, data, drive, f"data.drives.{place}", test)
    if data.kitti_raw is not None:
        _plan_kitti(plan, root, data, data.kitti_raw, test)
    elif data.split.train != "zhou" or data.split.validation:
        raise RecipeError(
            "data.split: a split file names frames of data.kitti_raw, which is not set"
        )
    return plan


def _test_drives(root: Path, data: Data) -> set[DriveKey]:
    if data.split.test == "none":
        return set()
    if data.split.test == "eigen":
        return {view.drive for view in eigen_test()}
    return read_drives(_file(root, data.split.test, "data.split.test"))


def _file(root: Path, name: str, key: str) -> Path:
    """A split file: relative to the working directory, else to the data root."""
    path = home_path(name)
    for candidate in (path, root / path):
        if candidate.is_file():
            return candidate
    raise RecipeError(f"{key}: no file {path}, neither here nor in {root}")


def _refuse_leak(data: Data, keys: Iterable[DriveKey], test: set[DriveKey], what: str) -> None:
    if not data.split.allow_leak:
        refuse_shared(keys, test, what, _LEAK)


def _plan_drive(
    plan: DataPlan, root: Path, data: Data, drive: Drive, place: str, test: set[DriveKey]
) -> None:
    if not any(sign in drive.path for sign in "*?["):
        path = drive_path(root, drive.path)
        key = drive_of(path)
        if not path.exists():
            raise RecipeError(f"{place}.path: {_nowhere(root, drive.path)}")
        if key is not None:
            what = f"{place}: {drive.path} is test data (data.split.test: {data.split.test})"
            _refuse_leak(data, {key}, test, what)
        plan.training.append(Entry(drive, place, key, named=True))
        return
    found = _fitting(root, drive.path)
    if not found:
        raise RecipeError(
            f"{place}.path: nothing below {root}, nor below the working directory {Path.cwd()}, "
            f"fits '{drive.path}'"
        )
    keys = {path: drive_of(path) for path in found}
    # Whoever names no drive cannot mean a test drive: it is left out, and named.
    left_out = {key for key in keys.values() if key in test} if not data.split.allow_leak else set()
    if left_out:
        plan.skipped.append(f"{place}: test drives {name_drives(k for k in left_out if k)}")
    kept = [path for path in found if keys[path] not in left_out]
    if not kept:
        raise RecipeError(f"{place}: only test drives fit '{drive.path}'")
    for path in kept:
        inside = path.relative_to(root) if path.is_relative_to(root) else path.absolute()
        one = drive.model_copy(update={"path": str(inside)})
        plan.training.append(Entry(one, place, keys[path]))


def _fitting(root: Path, pattern: str) -> list[Path]:
    """Recordings that fit, below the data root, else below the working directory."""
    path = home_path(pattern)
    starts = [Path(path.anchor)] if path.is_absolute() else [root, Path()]
    relative = str(path.relative_to(path.anchor))
    for start in starts:
        found = sorted(p for p in start.glob(relative) if p.is_dir() or is_bag(p))
        if found:
            return found
    return []


def _nowhere(root: Path, name: str) -> str:
    """That a drive is not there, and where it was looked for."""
    path = home_path(name)
    if path.is_absolute():
        return f"{path} does not exist"
    return (
        f"{root / path} does not exist, nor does {Path.cwd() / path} (paths are relative to the "
        "data root, or else to the working directory)"
    )


def _plan_kitti(
    plan: DataPlan, root: Path, data: Data, kitti: KittiRaw, test: set[DriveKey]
) -> None:
    split = data.split
    there = _views(root, kitti)
    listed = split.train != "zhou"
    train = read_split(_file(root, split.train, "data.split.train")) if listed else None
    held: Frames = {}
    if split.validation:
        held = read_split(_file(root, split.validation, "data.split.validation"))
        _refuse_leak(
            data,
            {view.drive for view in held},
            test,
            "data.split.validation holds test drives (data.split.test)",
        )
        explicit = {entry.key for entry in plan.training if entry.key}
        refuse_shared({v.drive for v in held}, explicit, "in data.drives and held out")
    if train is None:
        free = [view for view in there if view.drive not in {v.drive for v in held}]
        if not split.allow_leak:
            lost = {view.drive for view in free} & test
            if lost:
                plan.skipped.append(f"data.kitti_raw: {len(lost)} test drives left out")
            free = [view for view in free if view.drive not in test]
        plan.training += [_entry(kitti, there, view, None) for view in free]
        plan.by_rule = not held
    else:
        what = "data.split.train holds test drives (data.split.test)"
        _refuse_leak(data, {view.drive for view in train}, test, what)
        _refuse_shared_frames(train, held)
        plan.training += _listed(plan, kitti, there, train, "data.split.train")
    plan.validation += _listed(plan, kitti, there, held, "data.split.validation")
    if not any(entry.view for entry in plan.training):
        raise RecipeError(
            f"data.split.train: nothing left to train on of the {len(there)} camera folders below "
            f"{root / kitti.folder}"
        )


def _views(root: Path, kitti: KittiRaw) -> dict[CameraView, str]:
    """Folder, relative to the root, of every camera of every drive that is there."""
    folder = root / kitti.folder
    if not folder.is_dir():
        raise RecipeError(f"data.kitti_raw.folder: {folder} does not exist")
    found: dict[CameraView, str] = {}
    for path in find_drives(folder):
        key = drive_key(path)
        for camera in kitti.cameras:
            if key and (path / f"image_{camera:02d}").is_dir():
                found.setdefault(CameraView(*key, camera), str(path.relative_to(root)))
    if not found:
        raise RecipeError(
            f"data.kitti_raw: no drive below {folder} has images of camera "
            f"{' or '.join(map(str, kitti.cameras))}"
        )
    return found


def _entry(
    kitti: KittiRaw, there: dict[CameraView, str], view: CameraView, targets: frozenset[int] | None
) -> Entry:
    drive = Drive(
        path=there[view],
        weight=kitti.weight,
        stride=kitti.stride,
        camera=f"image_{view.camera:02d}",
        drop_static=kitti.drop_static,
    )
    return Entry(drive, "data.kitti_raw", view.drive, view, targets)


def _listed(
    plan: DataPlan, kitti: KittiRaw, there: dict[CameraView, str], frames: Frames, key: str
) -> list[Entry]:
    """Entries of a split file's frames; what is not on this disk is counted."""
    missing = [view for view in frames if view not in there]
    if missing:
        count = sum(len(frames[view]) for view in missing)
        names = name_drives({view.drive for view in missing})
        plan.skipped.append(f"{key}: {count} frames are not there or of another camera: {names}")
    if frames and len(missing) == len(frames):
        raise RecipeError(f"{plan.skipped[-1]}; nothing is left of this split")
    return [_entry(kitti, there, view, t) for view, t in frames.items() if view in there]


def _refuse_shared_frames(train: Frames, held: Frames) -> None:
    shared = {view.drive for view in train if train[view] & held.get(view, frozenset())}
    if shared:
        count = sum(len(train[view] & held.get(view, frozenset())) for view in train)
        raise RecipeError(
            f"data.split: {count} frames are in train and in validation: {name_drives(shared)}"
        )


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
