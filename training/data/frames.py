"""Frames at the network's size: kept in memory, mapped from a file, or decoded when asked for.

Resized frames on disk: one file a recording, mapped into memory, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import replacing, write_json
from depth_prior_ros.recordings.base import CorruptFrameError, Frame
from training.recipes.base import RecipeError

_VERSION = 1  # of what is stored; another one is another file


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
) -> MemoryFrames:
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


def _open(file: Path, notes: Path, shape: tuple[int, ...]) -> MemoryFrames | None:
    """The stored frames; None where there are none, or a file is damaged."""
    try:
        corrupt = {int(k): v for k, v in json.loads(notes.read_text())["corrupt"].items()}
        pictures = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError):
        return None
    if pictures.shape != shape or pictures.dtype != np.uint8:
        return None
    return MemoryFrames(pictures, corrupt)


def _write(file: Path, notes: Path, frames: Sequence[Frame], window: Window, workers: int) -> None:
    width, height = window.size
    corrupt: dict[str, str] = {}
    try:
        # Written, not mapped: a full disk is an error here and would be a bus error there.
        with replacing(file) as temporary, temporary.open("wb") as out:
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
        write_json(notes, {"corrupt": corrupt})
    except OSError as error:
        needed = len(frames) * width * height * 3 / 2**20
        raise RecipeError(
            f"data.cache: {file} {error.strerror}; it needs {needed:.0f} MiB. "
            "Make room, name another folder, or leave data.cache out"
        ) from error


Picture = NDArray[np.uint8]
Read = Callable[[int], Picture]
_CHUNK = 64  # pictures decoded ahead of the one that is stored


class FrameStore(Protocol):
    """Pictures (H, W, 3) uint8 RGB of one size by position in a recording."""

    @property
    def slow(self) -> bool:
        """Whether a picture is decoded each time it is asked for."""
        ...

    @property
    def corrupt(self) -> dict[int, str]:
        """Positions that cannot be read, as far as known, and why."""
        ...

    def __getitem__(self, position: int) -> Picture:
        """One picture; raises CorruptFrameError."""
        ...


@dataclass(frozen=True)
class Window:
    """What becomes of an image: crop (left, top, right, bottom in shares), then resize."""

    size: tuple[int, int]
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(x, y, width, height) of the part of an image that is kept."""
        left, top, right, bottom = self.crop
        x, y = round(left * width), round(top * height)
        return x, y, round((1 - right) * width) - x, round((1 - bottom) * height) - y

    def apply(self, image: Picture) -> Picture:
        """Crop and resize an image (H, W, 3)."""
        x, y, width, height = self.box(image.shape[1], image.shape[0])
        part = image[y : y + height, x : x + width]
        return np.asarray(cv2.resize(part, self.size, interpolation=cv2.INTER_AREA), np.uint8)


def reader(frames: Sequence[Frame], window: Window) -> Read:
    """A function that decodes, crops and resizes a frame; it raises CorruptFrameError."""
    return lambda position: window.apply(frames[position].image())


class LastImage(threading.local):
    """The image that a thread decoded last."""

    frame: Frame | None = None
    image: Picture | None = None

    def of(self, frame: Frame) -> Picture:
        """The frame's image; decoded unless it is the last one. Raises CorruptFrameError."""
        if self.image is None or self.frame is not frame:
            self.image = None
            self.frame, self.image = frame, frame.image()
        return self.image

    def decode_once(self, frames: Sequence[Frame]) -> list[Frame]:
        """The same frames; pictures of two sizes made in a row take one decoding."""
        return [replace(frame, load_image=partial(self.of, frame)) for frame in frames]


def read_all(
    read: Read, positions: Sequence[int], workers: int
) -> Iterable[tuple[int, Picture | CorruptFrameError]]:
    """Pictures in the order of ``positions``, decoded by ``workers`` threads."""

    def attempt(position: int) -> Picture | CorruptFrameError:
        try:
            return read(position)
        except CorruptFrameError as error:
            return error

    if workers < 1:
        yield from ((p, attempt(p)) for p in positions)
        return
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


@dataclass
class MemoryFrames:
    """All pictures decoded once and kept: in memory, or mapped from a cache file."""

    pictures: dict[int, Picture] | NDArray[np.uint8]
    corrupt: dict[int, str] = field(default_factory=dict)
    slow: bool = False

    @classmethod
    def load(cls, read: Read, positions: Sequence[int], workers: int = 0) -> MemoryFrames:
        """Decode ``positions``; what cannot be read goes to ``corrupt``."""
        pictures: dict[int, Picture] = {}
        store = cls(pictures)
        for position, picture in read_all(read, positions, workers):
            if isinstance(picture, CorruptFrameError):
                store.corrupt[position] = str(picture)
            else:
                pictures[position] = picture
        return store

    def __getitem__(self, position: int) -> Picture:
        if position in self.corrupt:
            raise CorruptFrameError(self.corrupt[position])
        return np.asarray(self.pictures[position])


@dataclass
class LazyFrames:
    """Pictures decoded each time: for sets that fit neither memory nor a cache."""

    read: Read
    corrupt: dict[int, str] = field(default_factory=dict)
    slow: bool = True

    def __getitem__(self, position: int) -> Picture:
        if position in self.corrupt:
            raise CorruptFrameError(self.corrupt[position])
        try:
            return self.read(position)
        except CorruptFrameError as error:
            self.corrupt[position] = str(error)
            raise


@dataclass
class FrameStores:
    """Opens the store that a recording's frames get: a cache, else memory while there is room.

    cache: folder for resized frames; memory: bytes for frames without a cache; workers: threads
    that decode.
    """

    size: tuple[int, int]
    cache: Path | None = None
    memory: float = float("inf")
    workers: int = 0

    def open(
        self,
        path: Path,
        frames: Sequence[Frame],
        positions: Sequence[int],
        crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> FrameStore:
        """The frames of the recording at ``path``; ``positions`` are those that are needed.

        Raises:
            RecipeError: the cache cannot be written.
        """
        window = Window(self.size, crop)
        read = reader(frames, window)
        if self.cache is not None:
            return open_cached(self.cache, path, frames, window, self.workers)
        needed = len(positions) * self.size[0] * self.size[1] * 3
        if needed > self.memory:
            return LazyFrames(read)
        self.memory -= needed
        return MemoryFrames.load(read, positions, self.workers)
