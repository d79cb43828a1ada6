"""Folders of numbered images: which numbers are there, which are missing, which are unusable."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from depth_prior_ros.recordings.base import CorruptFrameError, Skipped
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, probe_image

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
        # str.isdigit alone accepts digits that int() refuses
        if not (path.stem.isascii() and path.stem.isdigit()):
            skipped.append(Skipped(str(path), "its name is not a frame number"))
        elif int(path.stem) in found:
            skipped.append(Skipped(str(path), f"frame {int(path.stem)} is there twice"))
        else:
            found[int(path.stem)] = path
    return dict(sorted(found.items()))


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
