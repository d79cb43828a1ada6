"""Bags from strangers: compressed chunks, messages and files unpack up to a cap, and no further.

`rosbags` unpacks whole chunks and files without a bound: 100 KB of an mcap become 6 GB. Its
tables of decompressors take ones that stop. What is small by itself, but is asked for over and over
(chunks that all begin at one time, a table of SQLite that computes itself), is refused on opening,
or where it has become too much.
"""

from __future__ import annotations

import bz2
import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from depth_prior_ros import strict_yaml
from depth_prior_ros.recordings.base import RecordingError
from depth_prior_ros.untrusted import (
    BAG_EXPANSION,
    BAG_TOPICS,
    CHUNK_BYTES,
    FILE_BYTES,
    FILE_EXPANSION,
    OPEN_CHUNKS_BYTES,
    UntrustedFileError,
    check_regular,
    printable,
)

_ZSTD = b"\x28\xb5\x2f\xfd"


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
            if file.suffix.lower() in (".mcap", ".db3", ".zstd", ".bag"):
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


class Budget:
    """Bytes that one pass over a bag may unpack or read: `BAG_EXPANSION` times its size."""

    def __init__(self, size: int) -> None:
        self._limit = self._left = max(CHUNK_BYTES, BAG_EXPANSION * size)

    def renew(self) -> None:
        """A new pass begins."""
        self._left = self._limit

    def take(self, size: int) -> None:
        """Raise ExpansionError where it is more than is left."""
        self._left -= size
        if self._left < 0:
            raise ExpansionError(f"its messages become larger than {self._limit:,} bytes")


def messages_within(
    budget: Budget, messages: Iterable[tuple[Any, int, bytes]], is2: bool
) -> Iterator[tuple[Any, int, bytes]]:
    """(connection, time, bytes) of a pass; raises ExpansionError.

    Of ROS 2 (is2) a message may still be compressed, where the metadata are lost that say so.
    """
    budget.renew()
    for connection, time, raw in messages:
        unpacked = _zstd(raw) if is2 and raw[:4] == _ZSTD else raw  # CDR begins with a zero
        budget.take(len(unpacked))
        yield connection, time, unpacked


def bound_chunks(reader: Any, budget: Budget) -> None:
    """Count what an open reader of ROS 1 unpacks: it goes from chunk to chunk as times say."""
    for place, chunk in reader.chunks.items():
        reader.chunks[place] = chunk._replace(decompressor=_counted(chunk.decompressor, budget))


def _counted(unpack: Callable[[bytes], bytes], budget: Budget) -> Callable[[bytes], bytes]:
    def counted(data: bytes) -> bytes:
        unpacked = unpack(data)
        budget.take(len(unpacked))
        return unpacked

    return counted


def check_chunks(chunks: Iterable[Any], size: int) -> None:
    """Raise ExpansionError for an index of an MCAP whose chunks are too much, together or at once.

    size: of the file. Chunks whose times overlap are unpacked side by side, to be put in order.
    """
    chunks = list(chunks)
    Budget(size).take(sum(chunk.uncompressed_size for chunk in chunks))
    if len({chunk.chunk_start_offset for chunk in chunks}) < len(chunks):
        raise ExpansionError("its index names a chunk twice")
    spans = [(c.message_start_time, c.message_end_time, c.uncompressed_size) for c in chunks]
    starts = [(start, 0, size) for start, _, size in spans]
    ends = [(max(start, end), 1, -size) for start, end, size in spans]
    opened = 0
    for _, _, change in sorted(starts + ends):
        opened += change
        if opened > OPEN_CHUNKS_BYTES:
            raise ExpansionError(
                f"chunks of the same time become larger than {OPEN_CHUNKS_BYTES:,} bytes"
            )


def check_database(path: Path) -> None:
    """Raise ExpansionError for a database (.db3) that computes what is read of it.

    A view, or a column that is generated, makes gigabytes of nothing; topics of one number all come
    with every message.
    """
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
        tables = []
        for kind, name, page in database.execute("SELECT type, name, rootpage FROM sqlite_master"):
            if kind not in ("table", "index") or not page:  # views, triggers, virtual tables
                raise ExpansionError(f"{kind} {printable(name, 80)} is none of a bag")
            tables += [name] if kind == "table" else []
        for name in tables:
            columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,))
            if any(hidden for (hidden,) in columns):
                raise ExpansionError(f"table {printable(name, 80)} has a column that is computed")
        if "topics" not in tables:
            return  # the reader has words for that
        few = database.execute("SELECT id FROM topics LIMIT ?", (BAG_TOPICS + 1,)).fetchall()
        if len(few) > BAG_TOPICS:
            raise ExpansionError(f"more than {BAG_TOPICS:,} topics")
        if len(set(few)) < len(few):
            raise ExpansionError("two topics have one number")


@cache
def bound_decompression() -> None:
    """Make `rosbags` unpack through what stops at a cap."""
    from rosbags.rosbag1 import reader as rosbag1
    from rosbags.rosbag2 import reader as rosbag2
    from rosbags.rosbag2 import storage_mcap, storage_sqlite3

    for module in (rosbag2, storage_mcap, storage_sqlite3):
        module.parse_qos = lambda told: []  # YAML without bounds, and nobody asks for it
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
