"""Long work that goes on after a kill to the same bytes: a journal, spools, and a checkpoint.

What is appended (a line a frame, the messages of a bag to be) counts up to the length that the
newest checkpoint names; the rest is cut off when the work goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from depth_prior_ros.atomic_files import alone_in, remove_leftovers, write_bytes, write_json
from depth_prior_ros.recordings import Recording, RecordingError, StoredRecording
from depth_prior_ros.recordings.base import Skipped, name_skipped
from depth_prior_ros.untrusted import parse_json, read_file

_LENGTH = struct.Struct("<Q")
_CHECKPOINT_BYTES = 1 << 28
_MANIFEST_BYTES = 1 << 26


@contextmanager
def taken_up(
    manifest: Path, wanted: Mapping[str, Any], what: str, spools: tuple[str, ...]
) -> Iterator[Workbook | None]:
    """Make the manifest's folder that of this work, and of this process.

    Args:
        manifest: the file that says what the folder is; written where the folder is new.
        wanted: what the results depend on; `done` is added: whether they are there.
        what: of the results, for messages.
        spools: names of those of the workbook.

    Yields:
        The workbook of what is left; None where nothing is. When the block ends well, the manifest
        says that all is done, and what the workbook's `results` say.

    Raises:
        RecordingError: the folder holds anything else, or what was made otherwise.
        InUseError: another process works in it.
    """
    out = manifest.parent
    if out.exists() and not out.is_dir():
        raise RecordingError(f"{out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        remove_leftovers(out)  # of a process that was killed while it wrote
        if _is_done(manifest, {**wanted, "done": False}, what):
            yield None
            return
        work = Workbook(out / ".work", spools)
        try:
            yield work
        finally:
            work.close()
        write_json(manifest, {**wanted, "done": True, **work.results})
        shutil.rmtree(work.folder, ignore_errors=True)


def refuse_others(out: object, names: Iterable[str]) -> None:
    """Raise RecordingError where there are files in a folder that is no result yet."""
    found = sorted(names)
    if found:
        raise RecordingError(f"{out} holds other files ({', '.join(found[:3])}); name a new folder")


def _is_done(manifest: Path, wanted: Mapping[str, Any], what: str) -> bool:
    """Whether the manifest says so; see `taken_up`."""
    out = manifest.parent
    if not manifest.is_file():
        refuse_others(out, (path.name for path in out.iterdir()))
        write_json(manifest, dict(wanted))
        return False
    try:
        found = parse_json(read_file(manifest, _MANIFEST_BYTES))
        other = [k for k in wanted if k != "done" and found.get(k) != wanted[k]]
    except (OSError, ValueError, AttributeError) as error:
        raise RecordingError(f"{manifest}: cannot be read ({error})") from error
    if other:
        raise RecordingError(
            f"{out} holds {what} made otherwise (another {', '.join(other)}); name a new folder, "
            "or remove it"
        )
    return bool(found.get("done"))


def nothing_read(recording: Recording) -> str:
    """That not one frame of a recording could be read, and why, in words."""
    reasons = "; ".join(str(entry) for entry in recording.skipped[:3])
    return f"{recording.name}: not one frame could be read ({reasons})"


def digest_of_frames(recording: StoredRecording) -> str:
    """SHA-256 of what a recording says of its frames: numbers, stamps, speeds, cameras."""
    told = [[f.index, f.stamp_ns, f.speed, list(astuple(f.camera))] for f in recording.frames]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


class Workbook:
    """The files of unfinished work in a folder of its own, which is made.

    Attributes:
        done: units of work that the checkpoint has; 0 at the beginning.
        state: what was kept with it; empty at the beginning.
        results: what the manifest is to say of the finished work.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        """names: of the spools. Raises RecordingError for a checkpoint that cannot be read."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.done = 0
        self.state: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        checkpoint = folder / "checkpoint"
        if checkpoint.is_file():
            self.done, self.state, lengths = _read_checkpoint(checkpoint)
        self._files = {name: _opened(folder / name, lengths.get(name, 0)) for name in names}

    def append(self, name: str, data: bytes) -> None:
        """Append an entry to a spool."""
        self._files[name].write(_LENGTH.pack(len(data)))
        self._files[name].write(data)

    def entries(self, name: str) -> Iterator[bytes]:
        """All entries of a spool, in order."""
        self._files[name].flush()
        with (self.folder / name).open("rb") as file:
            while head := file.read(_LENGTH.size):
                yield file.read(_LENGTH.unpack(head)[0])

    def name_skipped(self, skipped: list[Skipped]) -> None:
        """Name again what was left out up to the checkpoint."""
        for what, why in self.state.get("skipped", []):
            name_skipped(skipped, what, why)

    def checkpoint(self, done: int, state: Mapping[str, Any], skipped: Sequence[Skipped]) -> None:
        """Keep what was appended, a state of plain data and arrays, and what was left out; on the
        disk before it returns."""
        lengths = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            lengths[name] = file.tell()
        state = {**state, "skipped": [[entry.what, entry.why] for entry in skipped]}
        write_bytes(self.folder / "checkpoint", pack({"done": done, "lengths": lengths}, state))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _opened(path: Path, length: int) -> io.BufferedRandom:
    if not path.exists():
        path.touch()
    file = path.open("r+b")
    if path.stat().st_size < length:
        file.close()
        raise RecordingError(f"{path}: shorter than its checkpoint says; remove its folder")
    file.truncate(length)
    file.seek(length)
    return file


def _read_checkpoint(path: Path) -> tuple[int, Any, dict[str, int]]:
    try:
        head, state = unpack(read_file(path, _CHECKPOINT_BYTES))
        return head["done"], state, head["lengths"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise RecordingError(f"{path}: damaged ({error}); remove its folder") from error


def pack(*trees: Any) -> bytes:
    """Nested dictionaries and lists of numbers, words and arrays as bytes, for `unpack`."""
    arrays: dict[str, np.ndarray] = {}

    def flat(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return {"array": f"a{len(arrays) - 1}"}
        if isinstance(value, Mapping):
            return {"map": [[key, flat(entry)] for key, entry in value.items()]}
        if isinstance(value, (list, tuple)):
            return [flat(entry) for entry in value]
        return value.item() if isinstance(value, np.generic) else value

    text = json.dumps([flat(tree) for tree in trees])
    stream = io.BytesIO()
    arrays["tree"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack(data: bytes) -> list[Any]:
    """What `pack` was given. Raises ValueError, KeyError, zipfile.BadZipFile."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:

        def whole(value: Any) -> Any:
            if isinstance(value, list):
                return [whole(entry) for entry in value]
            if isinstance(value, dict):
                if "array" in value:
                    return arrays[value["array"]]
                return {key: whole(entry) for key, entry in value["map"]}
            return value

        return [whole(tree) for tree in json.loads(arrays["tree"].tobytes())]
