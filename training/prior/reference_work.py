"""A reference set in the making: who writes it, what is there already, and when it is whole."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from training.distributed import Processes
from training.prior.reference_files import (
    MANIFEST_NAME,
    ReferenceManifest,
    ReferenceSetError,
    ShardEntry,
    file_hash,
    open_shard,
    read_manifest,
    remove_leftovers,
    shard_name,
    write_manifest,
)

Progress = Callable[[str, int, int], None]

_LOCK = ".extracting"


@contextmanager
def claimed(
    folder: Path, processes: Processes, progress: Progress | None, what: str = "reference set"
) -> Iterator[None]:
    """Wait until no other run on this machine writes the folder; the first process holds it.

    Raises:
        ReferenceSetError: the folder is a file or cannot be made.
    """
    if not processes.is_first:  # the first one of a run waits for all of them
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / _LOCK).open("w"))
        except FileExistsError:
            raise ReferenceSetError(folder, f"is a file; a folder ({what}) is wanted") from None
        except OSError as error:
            if not folder.is_dir():
                raise ReferenceSetError(folder, f"cannot be written: {error.strerror}") from error
            # What is finished there can be read all the same; writing says why it cannot.
        else:
            _wait_for(lock, f"{what}: another run writes it", progress)
        yield


def _wait_for(lock: IO[str], text: str, progress: Progress | None) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if progress is not None:
            progress(text, 0, 0)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass


def begin(folder: Path, begun: ReferenceManifest) -> ReferenceManifest:
    """The manifest that is there, or a new one of an unfinished set.

    Raises:
        ReferenceSetError: the folder holds something else, or cannot be written.
    """
    if (folder / MANIFEST_NAME).exists():
        found = read_manifest(folder)
        _refuse_other(folder, found, begun)
        remove_leftovers(folder)
        return found
    if any(f.name[0] != "." for f in folder.iterdir()):
        raise ReferenceSetError(
            folder, f"holds other things and no {MANIFEST_NAME}; choose another folder"
        )
    write_manifest(folder, begun)
    return begun


def _refuse_other(folder: Path, found: ReferenceManifest, wanted: ReferenceManifest) -> None:
    theirs, ours = found.teacher, wanted.teacher
    if theirs.get("sha256") != ours["sha256"]:
        raise ReferenceSetError(
            folder,
            f"holds the reference set of another teacher ({theirs.get('name')}, "
            f"{str(theirs.get('sha256'))[:12]}..., not {ours['name']}, {ours['sha256'][:12]}...); "
            "name another folder, or remove that one",
        )
    had, want = found.settings.model_dump(), wanted.settings.model_dump()
    if had != want:
        other = [f"{n} {had[n]}, not {want[n]}" for n in want if had[n] != want[n] and n != "data"]
        text = "; ".join(other) or "other frames"
        raise ReferenceSetError(
            folder,
            f"holds a reference set of other settings ({text}); name another folder, or remove "
            "that one",
        )


def missing(folder: Path, begun: ReferenceManifest) -> list[int]:
    """Shards that are still to be made; a damaged one counts as missing."""
    left = []
    for number in range(begun.shard_count):
        try:
            shard = open_shard(folder / shard_name(number), int(begun.teacher["channels"]))
        except ReferenceSetError:
            left.append(number)
            continue
        if shard.key != begun.key:
            left.append(number)
    return left


def finish(folder: Path, begun: ReferenceManifest) -> None:
    """Write the manifest of the whole set."""
    entries: list[ShardEntry] = []
    images: dict[int, dict[str, Any]] = {}
    notes = list(begun.notes)
    for number in range(begun.shard_count):
        path = folder / shard_name(number)
        shard = open_shard(path, int(begun.teacher["channels"]))
        images |= shard.images
        entries.append(
            ShardEntry(
                file=shard_name(number),
                rows=shard.rows,
                bytes=path.stat().st_size,
                sha256=file_hash(path),
            )
        )
    out = [record for record in images.values() if not record["pixels"]]
    if out:
        notes.append(f"{len(out)} images left out: {out[0]['left_out']}")
    records = [images[number] for number in sorted(images)]
    changes = {"shards": entries, "images": records, "notes": notes}
    whole = begun.model_copy(update={"finished": True, "command": "", **changes})
    write_manifest(folder, whole)
