"""Resized frames on disk: one file a recording, mapped into memory, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.base import CorruptFrameError, Frame
from training.config_base import RecipeError
from training.data.frames import Picture, Window, read_all, reader

_VERSION = 1  # of what is stored; another one is another file


@dataclass
class CachedFrames:
    """Pictures mapped from a cache file."""

    pictures: NDArray[np.uint8]
    corrupt: dict[int, str]
    slow: bool = False

    def __getitem__(self, position: int) -> Picture:
        if position in self.corrupt:
            raise CorruptFrameError(self.corrupt[position])
        return np.asarray(self.pictures[position])


def fingerprint(path: Path, frames: Sequence[Frame], window: Window) -> str:
    """What a cache file is valid for: path, the window, and of every image its name, size, time
    and how it is processed."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(f"{_VERSION} {window} {path.resolve()}".encode())
    whole = _state(path)
    for frame in frames:
        state = whole if frame.file is None else _state(frame.file)
        name = "" if frame.file is None else str(frame.file)
        digest.update(f"{frame.index} {frame.stamp_ns} {name} {state}{frame.processing}\n".encode())
    return digest.hexdigest()


def _state(path: Path) -> str:
    """Size and time of a file, or of the files right in a folder (a bag may be one)."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = (file.stat() for file in files if file.is_file())
    return " ".join(f"{s.st_size} {s.st_mtime_ns}" for s in stats)


def open_cached(
    folder: Path, path: Path, frames: Sequence[Frame], window: Window, workers: int = 0
) -> CachedFrames:
    """Frames of the recording at ``path`` out of ``folder``, decoded into it where not there yet.

    Another size, crop or state of the image files is another cache file. Processes that write the
    same one at once do not disturb each other.

    Raises:
        RecipeError: the folder cannot be written; the message says what to do.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", path.name)
    width, height = window.size
    stem = f"{plain}_{width}x{height}_{fingerprint(path, frames, window)}"
    file, notes = folder / f"{stem}.npy", folder / f"{stem}.json"
    found = _open(file, notes, (len(frames), height, width, 3))
    if found is None:
        _write(file, notes, frames, window, workers)
        found = _open(file, notes, (len(frames), height, width, 3))
    if found is None:
        raise RecipeError(f"{file} was changed while it was read; start again")
    return found


def _open(file: Path, notes: Path, shape: tuple[int, ...]) -> CachedFrames | None:
    """The stored frames; None where there are none, or a file is damaged."""
    try:
        corrupt = {int(k): v for k, v in json.loads(notes.read_text())["corrupt"].items()}
        pictures = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError):
        return None
    if pictures.shape != shape or pictures.dtype != np.uint8:
        return None
    return CachedFrames(pictures, corrupt)


def _write(file: Path, notes: Path, frames: Sequence[Frame], window: Window, workers: int) -> None:
    width, height = window.size
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.partial")
    corrupt: dict[str, str] = {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written, not mapped: a full disk is an error here and would be a bus error there.
        with temporary.open("wb") as out:
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (len(frames), height, width, 3),
            }
            np.lib.format.write_array_header_1_0(out, header)
            nothing = np.zeros((height, width, 3), np.uint8)
            for i, picture in read_all(reader(frames, window), range(len(frames)), workers):
                if isinstance(picture, CorruptFrameError):
                    corrupt[str(i)] = str(picture)
                    picture = nothing
                out.write(np.ascontiguousarray(picture).data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
        temporary.write_text(json.dumps({"corrupt": corrupt}))
        temporary.replace(notes)
    except OSError as error:
        needed = len(frames) * width * height * 3 / 2**20
        raise RecipeError(
            f"data.cache: {file} cannot be written ({error.strerror}); it needs {needed:.0f} MiB. "
            "Make room, name another folder, or leave data.cache out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
