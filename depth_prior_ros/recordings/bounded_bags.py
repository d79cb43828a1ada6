"""Bags from strangers: compressed chunks, messages and files unpack up to a cap, and no further.

`rosbags` unpacks whole chunks and files without a bound: 100 KB of an mcap become 6 GB. Its
tables of decompressors take ones that stop.
"""

from __future__ import annotations

import bz2
import io
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import IO, Any

from depth_prior_ros import strict_yaml
from depth_prior_ros.recordings.base import RecordingError
from depth_prior_ros.untrusted import (
    CHUNK_BYTES,
    FILE_BYTES,
    FILE_EXPANSION,
    UntrustedFileError,
    check_regular,
    printable,
)


class ExpansionError(ValueError):
    """Compressed data that become larger than a cap."""


def check_bag(path: Path) -> bool:
    """Check a bag's files before they are opened: regular, and in their folder.

    Returns whether its metadata can be read; a folder's files may be read without them. Raises
    RecordingError, in one line.
    """
    bound_decompression()
    try:
        if not path.is_dir():
            check_regular(path)
            return True
        for file in path.iterdir():
            if file.suffix in (".mcap", ".db3", ".zstd", ".bag"):
                check_regular(file)
        metadata = path / "metadata.yaml"
        content = strict_yaml.read(metadata) if metadata.exists() else None
        about = content.get("rosbag2_bagfile_information") if isinstance(content, dict) else None
        names = about.get("relative_file_paths") if isinstance(about, dict) else None
        for name in names if isinstance(names, list) else ():
            file = path / str(name)
            if not file.resolve().is_relative_to(path.resolve()):
                raise UntrustedFileError(f"{metadata}: {printable(name)} lies outside the bag")
            if file.exists():
                check_regular(file)
        return content is not None
    except strict_yaml.YamlError:
        return False
    except (OSError, ValueError) as error:
        problem = strict_yaml.problem_of(error) if isinstance(error, OSError) else error
        raise RecordingError(f"{printable(path)}: cannot be opened: {problem}") from error


def check_topics(path: Path, connections: Iterable[Any]) -> None:
    """Raise RecordingError where a topic's name or type is no text, or its count no number."""
    for one in connections:
        words = isinstance(one.topic, str) and isinstance(one.msgtype, str)
        if not words or type(one.msgcount) is not int:
            raise RecordingError(f"{path}: damaged (topic {printable(one.topic, 80)} is no topic)")


@cache
def bound_decompression() -> None:
    """Make `rosbags` unpack through what stops at a cap."""
    from rosbags.rosbag1 import reader as rosbag1
    from rosbags.rosbag2 import reader as rosbag2
    from rosbags.rosbag2 import storage_mcap

    rosbag1.decompressors.update(bz2=_bz2, lz4=_lz4)
    storage_mcap.DECOMPRESSORS.update(
        lz4=lambda data, size: _lz4(data, size), zstd=lambda data, size: _zstd(data, size)
    )
    rosbag2.zstd = _BoundedZstd


def _bz2(data: bytes, size: int = CHUNK_BYTES) -> bytes:
    return _read(bz2.BZ2File(io.BytesIO(data)), size)


def _lz4(data: bytes, size: int = CHUNK_BYTES) -> bytes:
    import lz4.frame

    return _read(lz4.frame.LZ4FrameFile(io.BytesIO(data)), size)


def _zstd(data: bytes, size: int = CHUNK_BYTES) -> bytes:
    return _read(_open_zstd(io.BytesIO(data)), size)


def _open_zstd(file: IO[bytes]) -> Any:
    from backports import zstd

    return zstd.open(file, "rb")


def _read(file: IO[bytes], size: int) -> bytes:
    """All of what a compressed stream holds, up to the size that it says, or the cap."""
    limit = min(size, CHUNK_BYTES)
    with file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ExpansionError(f"a compressed chunk becomes larger than {limit:,} bytes")
    return data


class _BoundedZstd:
    """What `rosbags` takes of the zstd module: for messages, and for files."""

    @staticmethod
    def decompress(data: bytes) -> bytes:
        """A message."""
        return _zstd(data)

    @staticmethod
    def open(file: IO[bytes], mode: str = "rb") -> Any:
        """A file, whose unpacked size may be so many times its own."""
        packed = os.fstat(file.fileno()).st_size
        return _BoundedFile(
            _open_zstd(file), min(FILE_BYTES, max(CHUNK_BYTES, FILE_EXPANSION * packed))
        )


class _BoundedFile:
    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left, self._limit = file, limit, limit

    def __enter__(self) -> _BoundedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises ExpansionError beyond the cap."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ExpansionError(
                f"a compressed file becomes larger than {self._limit:,} bytes; unpack it yourself "
                "(zstd -d) if you trust it"
            )
        return data
