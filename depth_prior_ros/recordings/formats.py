"""Which folders hold which data set: every reader registers how its own are told from the others.

A new format is one module of this room: a function that opens such a folder, under
`@folder_format`. `open_recording` finds it, and with it training, evaluation and replay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depth_prior_ros.recordings.base import RecordingError, StoredRecording
from depth_prior_ros.registry import Registry

Opener = Callable[..., StoredRecording]


@dataclass(frozen=True)
class FolderFormat:
    """A kind of folder.

    Attributes:
        title: what it is and how it is told, in words: "a KITTI raw drive (image_02/data)".
        fits: whether a folder is one; looks at names, reads no data.
        open: the reader; takes the folder, and options of its own by name.
        rank: those of a lower rank are asked first.
    """

    title: str
    fits: Callable[[Path], bool]
    open: Opener
    rank: int


FORMATS: Registry[FolderFormat] = Registry("recording format", __package__)


def folder_format(
    name: str, title: str, fits: Callable[[Path], bool], rank: int = 1
) -> Callable[[Opener], Opener]:
    """Decorator of a reader; see `FolderFormat`."""

    def keep(open_folder: Opener) -> Opener:
        FORMATS.register(name)(FolderFormat(title, fits, open_folder, rank))
        return open_folder

    return keep


def open_folder(path: Path, options: dict[str, Any]) -> StoredRecording:
    """Open a folder by what is in it. Raises RecordingError, naming what was looked for."""
    formats = sorted((found for _, found in FORMATS.items()), key=lambda found: found.rank)
    for found in formats:
        if found.fits(path):
            return found.open(path, **options)
    titles = ", nor ".join(found.title for found in formats)
    raise RecordingError(f"{path}: neither {titles}, nor a bag")
