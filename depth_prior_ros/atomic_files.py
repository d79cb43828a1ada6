"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.untrusted import UntrustedFileError, check_regular

if TYPE_CHECKING:
    from torch import Tensor

_LEFTOVER = re.compile(r"\.(?P<name>.+?)\.(?P<process>\d+)(\.\w+)?\.partial")
_number = itertools.count()  # threads of a process may write the same file


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write a file under; then it takes the place of `path`.

    What was written is on the disk before it is renamed, so that a power cut leaves the old file
    or the new one. Folders above it are made. Where anything fails, the old file is as it was.
    durable: False leaves out the waiting for the disk: for one of many files, of which a power cut
    may take the last ones.

    Raises:
        OSError: it cannot be written; names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_number)}.partial")
    try:
        check_regular(path)  # a rename would put a file in the place of a device
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            with suppress(OSError):  # some network file systems cannot
                sync(path.parent)
    except OSError as error:
        reason = "not a regular file" if isinstance(error, UntrustedFileError) else error.strerror
        cause = f"cannot be written: {reason or error}"
        raise OSError(error.errno, cause, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file; see `replacing`."""
    with replacing(Path(path), durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; see `replacing`. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, readable by all; see `replacing`. A full disk is an OSError here."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(0o644)  # safetensors' 0600 locks other users out


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in `folder`: of the file `name`, or all.

    What a process that still runs here is writing stays.
    """
    for file in folder.glob(".*.partial"):
        found = _LEFTOVER.fullmatch(file.name)
        if found and name in (None, found["name"]) and not _runs(int(found["process"])):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file, ignore_errors=True)
                continue
            with suppress(OSError):
                file.unlink()


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


class InUseError(OSError):
    """A folder in which another process works."""


@contextmanager
def alone_in(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Keep a folder, which exists, for this process; that ends with the process, however it ends.

    lock: a file in it that is made for this; default: the folder itself, and nothing is made. On
    file systems without locks nobody is kept out.

    Raises InUseError where another process has it.
    """
    flags = os.O_RDONLY if lock is None else os.O_RDWR | os.O_CREAT
    number = os.open(lock or folder, flags, 0o666)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                f"{folder} is in use by another run; wait for it, or give --out another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(number)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, removed afterwards unless it was moved; see `move_into_place`.

    Raises:
        OSError: what is written in it cannot be, by a full disk say; names `path` where it named
            nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    prefix = f".{path.name}.{os.getpid()}."
    folder = Path(tempfile.mkdtemp(".partial", prefix, dir=path.parent))
    folder.chmod(0o755)  # mkdtemp's 0700 locks other users out
    try:
        yield folder
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, path: Path) -> None:
    """Move `folder` to `path`. A folder cannot be exchanged in one step: the old one waits."""
    if not path.exists():
        folder.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
