"""Splits of KITTI raw: the peers' split files, the Eigen test drives, and who may see what.

A line of a split file is ``2011_09_26/2011_09_26_drive_0001_sync 12 l``: the drive, the number of
the middle frame, and l or r for image_02 or image_03 (0 or 1: the grey cameras).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from training.evaluation.sets import drive_key, eigen_test_frames
from training.recipes.base import RecipeError

DriveKey = tuple[str, str]

_LINE = re.compile(
    r"(?:\S+/)?(?P<date>\d{4}_\d\d_\d\d)_drive_(?P<number>\d{4})(?:_sync|_extract)?"
    r"(?:\s+(?P<frame>\d+)\s+(?P<side>[lr01]))?"
)
_CAMERA_OF_SIDE = {"0": 0, "1": 1, "l": 2, "r": 3}
# Which drive of KITTI raw an odometry sequence was cut from (readme of the odometry benchmark).
_DRIVE_OF_SEQUENCE = {
    "00": ("2011_10_03", "0027"),
    "01": ("2011_10_03", "0042"),
    "02": ("2011_10_03", "0034"),
    "03": ("2011_09_26", "0067"),
    "04": ("2011_09_30", "0016"),
    "05": ("2011_09_30", "0018"),
    "06": ("2011_09_30", "0020"),
    "07": ("2011_09_30", "0027"),
    "08": ("2011_09_30", "0028"),
    "09": ("2011_09_30", "0033"),
    "10": ("2011_09_30", "0034"),
}
_NAMED = 5  # drives that a message lists


class CameraView(NamedTuple):
    """One camera of one drive."""

    date: str
    number: str
    camera: int

    @property
    def drive(self) -> DriveKey:
        """The drive, whatever the camera."""
        return self.date, self.number


Frames = dict[CameraView, frozenset[int]]


def read_split(path: Path) -> Frames:
    """The frames of a split file.

    Raises:
        RecipeError: it is missing or empty, or a line is of another form (the message quotes it).
    """
    found: dict[CameraView, set[int]] = {}
    for number, line, match in _matches(path):
        if match["frame"] is None:
            raise RecipeError(f"{path}, line {number}: no frame and camera in '{line}'")
        view = CameraView(match["date"], match["number"], _CAMERA_OF_SIDE[match["side"]])
        found.setdefault(view, set()).add(int(match["frame"]))
    return {view: frozenset(frames) for view, frames in found.items()}


def read_drives(path: Path) -> set[DriveKey]:
    """The drives of a split file, or of a file with a drive's name a line; raises RecipeError."""
    return {(match["date"], match["number"]) for _, _, match in _matches(path)}


def _matches(path: Path) -> list[tuple[int, str, re.Match[str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"split file {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise RecipeError(
                f"{path}, line {number}: '{line[:80]}' is not of the form "
                "'2011_09_26/2011_09_26_drive_0001_sync 12 l'"
            )
        found.append((number, line, match))
    if not found:
        raise RecipeError(
            f"split file {path} is empty: no line like '2011_09_26/2011_09_26_drive_0001_sync 12 l'"
        )
    return found


def eigen_test() -> Frames:
    """The Eigen test frames, all of image_02."""
    return {CameraView(*key, 2): frozenset(frames) for key, frames in eigen_test_frames().items()}


def drive_of(path: Path) -> DriveKey | None:
    """The KITTI raw drive that a path belongs to, also as an odometry sequence; else None."""
    parts = [path, *path.parents]
    for part in parts:
        key = drive_key(part)
        if key is not None:
            return key
    for part in parts:
        if part.parent.name == "sequences" and part.name in _DRIVE_OF_SEQUENCE:
            return _DRIVE_OF_SEQUENCE[part.name]
    return None


def refuse_shared(
    one: Iterable[DriveKey], other: Iterable[DriveKey], what: str, allowed: str = ""
) -> None:
    """Refuse drives that stand in both; ``what`` begins the message, ``allowed`` ends it.

    Raises:
        RecipeError: names the drives.
    """
    shared = sorted(set(one) & set(other))
    if shared:
        raise RecipeError(f"{what}: {name_drives(shared)}{allowed}")


def name_drives(drives: Iterable[DriveKey]) -> str:
    """The drives as text, the first few by name."""
    names = [f"{date}_drive_{number}" for date, number in sorted(drives)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def hold_out(counts: Mapping[DriveKey, int], share: float) -> set[DriveKey]:
    """Whole drives with about ``share`` of the triplets, chosen by their names alone.

    Args:
        counts: triplets by drive.
        share: of all triplets.

    Returns:
        The drives; never all of them, and none for a share of 0 or a single drive.
    """
    order = sorted(counts, key=lambda key: hashlib.blake2b("_".join(key).encode()).digest())
    wanted, chosen, held = share * sum(counts.values()), set[DriveKey](), 0
    for key in order[:-1]:
        # The nearer of stopping before and after this drive.
        if wanted - held <= held + counts[key] - wanted:
            continue
        chosen.add(key)
        held += counts[key]
    return chosen
