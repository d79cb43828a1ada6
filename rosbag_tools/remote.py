"""Inputs and outputs anywhere that fsspec reaches: s3://, gs://, sftp://, memory://, ...

Recordings are read at random places and results are renamed into place, which object stores cannot
do; so the work is done on a local copy in temporary space, and what is finished is uploaded, its
manifest last: where that is, all of it is.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import gettempdir
from typing import Any

from depth_prior_ros.atomic_files import staging_folder
from depth_prior_ros.share import recording_path

Place = Path | str
"""A path here, or a URL of fsspec."""


def place(text: str) -> Place:
    """The type of an argument: a URL stays what it is."""
    return text if "://" in text else Path(text)


def recording_place(text: str) -> Place:
    """As `place`, of a recording: the name of an embedded drive (`street`) means that."""
    return text if "://" in text else recording_path(text)


def name_of(where: Place) -> str:
    """What a recording is called: the name of its file without the suffix, or of its folder."""
    if isinstance(where, str):
        return PurePosixPath(where.rstrip("/")).stem
    return where.resolve().stem if where.is_file() else where.resolve().name


def below(where: Place, name: str) -> Place:
    """A folder in a place."""
    return f"{where.rstrip('/')}/{name}" if isinstance(where, str) else where / name


@contextmanager
def local_copies(source: Place, out: Place, manifest: str) -> Iterator[tuple[Path, Path]]:
    """Local paths to read the source from and to write results to; uploads them at the end.

    manifest: name of the file in the results that is uploaded last. Where it is at `out` already it
    is fetched first, so that whoever writes sees what is there. Temporary space is that of TMPDIR;
    what a killed process left in it is removed.

    Raises RecordingError: fsspec or the package of a protocol is missing, or a place cannot be
    reached.
    """
    if isinstance(source, Path) and isinstance(out, Path):
        yield source, out
        return
    # One of this user's and machine's own: temporary space may be shared, and numbers of processes
    # tell only here what is left over.
    own = f"depth_bag-{os.getuid()}-{socket.gethostname()}"
    scratch = Path(gettempdir()) / own / name_of(source)
    with staging_folder(scratch) as folder:
        here = source if isinstance(source, Path) else _download(source, folder / "input")
        if isinstance(out, Path):
            yield here, out
            return
        results = folder / "output" / PurePosixPath(out.rstrip("/")).name
        there = _fetch_manifest(out, results, manifest)
        yield here, results
        if there is None or (results / manifest).read_bytes() != there:
            _upload(results, out, manifest)


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    from depth_prior_ros.recordings import RecordingError

    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise RecordingError(
            f"{url}: URLs need fsspec: python3 -m pip install 'depth_prior_ros[cluster]'"
        ) from error
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RecordingError(f"{url}: {error}") from error
    return system, str(path)


@contextmanager
def _reaching(url: str) -> Iterator[tuple[Any, str]]:
    """As `_opened`; what protocols raise becomes a RecordingError that names the URL."""
    from depth_prior_ros.recordings import RecordingError

    system, path = _opened(url)
    try:
        yield system, path
    except RecordingError:
        raise
    except Exception as error:  # of any protocol's own kind
        raise RecordingError(f"{url}: {type(error).__name__}: {error}") from error


def _download(url: str, folder: Path) -> Path:
    """A copy of a file or a folder, under its own name, below a new folder.

    With it come the files that readers look for beside it (see `_beside`).
    """
    from depth_prior_ros.recordings import RecordingError

    with _reaching(url) as (system, path):
        if not system.exists(path):
            raise RecordingError(f"{url}: no such file or folder")
        root = PurePosixPath(path.rstrip("/"))
        here = folder / "above" / "beside" / root.name
        here.parent.mkdir(parents=True)
        for way in _beside(root.name, system.isdir(path)):
            other = posixpath.normpath(root.parent / way)
            if system.isfile(other):
                target = Path(os.path.normpath(here.parent / way))
                target.parent.mkdir(exist_ok=True)
                system.get_file(other, str(target))
        if not system.isdir(path):
            system.get_file(path, str(here))
            return here
        for file in system.find(path):
            target = here / PurePosixPath(file).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(file, str(target))
        return here


def _beside(name: str, is_folder: bool) -> list[str]:
    """What readers look for outside of a recording of that name, from the folder that it is in."""
    from depth_prior_ros.recordings.bag import TOPICS_FILE
    from depth_prior_ros.recordings.base import VIDEO_SUFFIXES
    from depth_prior_ros.recordings.folder import FILE_NAMES

    found = [f"{name}.{TOPICS_FILE}"]
    if is_folder:  # a drive of KITTI, a sequence of its odometry
        found += ["calib_cam_to_cam.txt", f"../poses/{name}.txt"]
    elif PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES:
        found += FILE_NAMES
    return found


def _fetch_manifest(out: str, results: Path, manifest: str) -> bytes | None:
    with _reaching(out) as (system, path):
        file = f"{path.rstrip('/')}/{manifest}"
        if not system.exists(file):
            there = system.ls(path, detail=False) if system.isdir(path) else []
            from rosbag_tools.work import refuse_others  # numpy: not for --help

            refuse_others(out, (PurePosixPath(name.rstrip("/")).name for name in there))
            return None
        results.mkdir(parents=True)
        content = bytes(system.cat_file(file))
    (results / manifest).write_bytes(content)
    return content


def _upload(results: Path, out: str, manifest: str) -> None:
    """Copy all files, the manifest last, and first of all that the work is not done."""
    content = json.loads((results / manifest).read_text())
    with _reaching(out) as (system, path):
        root = path.rstrip("/")
        begun = json.dumps({**content, "done": False}, indent=2)
        system.makedirs(root, exist_ok=True)
        system.pipe_file(f"{root}/{manifest}", begun.encode())
        files = sorted(file for file in results.rglob("*") if file.is_file())
        for file in [*(f for f in files if f.name != manifest), results / manifest]:
            target = f"{root}/{file.relative_to(results).as_posix()}"
            system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            system.put_file(str(file), target)
    shutil.rmtree(results)
