"""Folders of images: what their names say, which are missing, which are unusable."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from depth_prior_ros.recordings.base import CorruptFrameError, Skipped
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, probe_image
from depth_prior_ros.recordings.stamps import StampOrder, number_frames

# Names that are times since 1970: (from, below, nanoseconds of one), between 1985 and 2286.
_EPOCHS = (
    (5 * 10**17, 10**19, 1),
    (5 * 10**14, 10**16, 1_000),
    (5 * 10**11, 10**13, 1_000_000),
)
_SECONDS = re.compile(r"[0-9]{1,10}[._][0-9]{3,9}")
# Larger numbers than this are no count of frames.
_LARGEST_NUMBER = 10**9
# A hole longer than this is named as a range, so that a stray file 9999999 does not name a million.
_LONGEST_LISTED_GAP = 20


def images_by_number(folder: Path, skipped: list[Skipped]) -> dict[int, Path]:
    """Images of a folder by the number that is their name, in order.

    Image files whose name is no number and second files of a number are named in `skipped`.
    Files that are no images (by suffix) are not frames and are passed over.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if not _is_number(path.stem):
            skipped.append(Skipped(str(path), "its name is not a frame number"))
        elif int(path.stem) in found:
            skipped.append(Skipped(str(path), f"frame {int(path.stem)} is there twice"))
        else:
            found[int(path.stem)] = path
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class NamedImages:
    """Images of a folder in their order.

    files: by frame number, which jumps where a frame is missing. stamps: nanoseconds by frame
    number, where the names are times. notes: how the names were read, in words.
    """

    files: dict[int, Path]
    stamps: dict[int, int] | None
    notes: list[str]


def images_by_name(folder: Path, skipped: list[Skipped]) -> NamedImages:
    """Images of a folder by whatever their names are.

    Numbers are frame numbers, whose usual step is one frame (images 0, 5, 10 follow each other);
    numbers that are too large for that, and seconds with a fraction, are times. Any other name
    gives an order: `frame2` before `frame10`.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    times = _times_of(files)
    if times is not None:
        unique: dict[int, Path] = {}
        for path in sorted(files):
            if times[path] in unique:
                skipped.append(Skipped(str(path), "another image has the same time in its name"))
            else:
                unique[times[path]] = path
        order = StampOrder(kept=list(range(len(unique))), stamps=sorted(unique))
        numbers = number_frames(order)
        skipped.extend(order.skipped)
        stamps = dict(zip(numbers, order.stamps, strict=True))
        named = {number: unique[stamp] for number, stamp in stamps.items()}
        return NamedImages(named, stamps, ["stamps are taken from the images' names"])
    if all(_is_number(p.stem) and int(p.stem) <= _LARGEST_NUMBER for p in files):
        numbered, step = _in_steps(images_by_number(folder, skipped))
        name_missing(list(numbered), "frame", skipped)
        notes = (
            [f"the images are numbered in steps of {step}: that is one frame"] if step > 1 else []
        )
        return NamedImages(numbered, None, notes)
    return NamedImages(dict(enumerate(sorted(files, key=_natural))), None, [])


def _times_of(files: list[Path]) -> dict[Path, int] | None:
    """Nanoseconds by file, where all names are times; None otherwise."""
    if files and all(_SECONDS.fullmatch(p.stem) for p in files):
        return {p: int(Decimal(p.stem.replace("_", ".")) * 10**9) for p in files}
    if not files or not all(_is_number(p.stem) for p in files):
        return None
    values = {p: int(p.stem) for p in files}
    low, high = min(values.values()), max(values.values())
    for start, end, unit in _EPOCHS:
        if start <= low and high < end:
            return {p: value * unit for p, value in values.items()}
    return None


def _in_steps(numbered: dict[int, Path]) -> tuple[dict[int, Path], int]:
    """Frame numbers counted in their usual step, where all are multiples of it apart."""
    steps = [b - a for a, b in itertools.pairwise(numbered)]
    step = Counter(steps).most_common(1)[0][0] if steps else 1
    if step == 1 or any(other % step for other in steps):
        return numbered, 1
    return {number // step: path for number, path in numbered.items()}, step


def _is_number(stem: str) -> bool:
    # str.isdigit alone accepts digits that int() refuses
    return stem.isascii() and stem.isdigit()


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """frame2 before frame10; the full name decides between equals."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts], path.name


def name_missing(numbers: list[int], what: str, skipped: list[Skipped]) -> None:
    """Name the numbers missing between the first and the last one."""
    for before, after in itertools.pairwise(numbers):
        missing = range(before + 1, after)
        if len(missing) > _LONGEST_LISTED_GAP:
            skipped.append(Skipped(f"{what} {missing[0]} to {missing[-1]}", "missing"))
        else:
            skipped.extend(Skipped(f"{what} {number}", "missing") for number in missing)


def probe_all(
    images: dict[int, Path], skipped: list[Skipped]
) -> tuple[dict[int, Path], tuple[int, int] | None]:
    """Keep the images that look whole and share the most common size.

    Returns the kept images and that (width, height), None without any.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for number, path in images.items():
        try:
            sizes[number] = probe_image(path)
        except CorruptFrameError as error:
            skipped.append(Skipped(f"frame {number}", str(error)))
    if not sizes:
        return {}, None
    # the first of the most common: Counter keeps the order of insertion
    common = Counter(sizes.values()).most_common(1)[0][0]
    for number, size in sizes.items():
        if size != common:
            why = f"{images[number]}: {size[0]}x{size[1]}, the others are {common[0]}x{common[1]}"
            skipped.append(Skipped(f"frame {number}", why))
    return {n: images[n] for n, size in sizes.items() if size == common}, common
