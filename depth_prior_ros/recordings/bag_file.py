"""A bag's file or files, opened through `rosbags` with what strangers' recorders leave in them.

ROS 2 (.mcap, .db3, a folder of them with or without its metadata.yaml, split or renamed) and ROS 1
(.bag). Channels whose messages are not of ROS are left out and named, instead of the whole file.

Of bags from strangers, compressed chunks, messages and files unpack up to a cap, and no further:
`rosbags` unpacks whole chunks and files without a bound, 100 KB of an mcap become 6 GB. Its tables
of decompressors take ones that stop. What is small by itself, but is asked for over and over
(chunks that all begin at one time, a table of SQLite that computes itself), is refused on opening,
or where it has become too much.
"""

from __future__ import annotations

import bz2
import io
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from depth_prior_ros import strict_yaml
from depth_prior_ros.recordings.base import CorruptFrameError, RecordingError
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

BAG_SUFFIXES = (".mcap", ".db3", ".bag")
_UNFINISHED = ".active"  # what ROS 1's recorder calls a file that it still writes
_PACKED = (".zstd", ".zst", ".gz", ".bz2", ".xz", ".lz4", ".zip")
_METADATA = "metadata.yaml"
_OPENING = threading.Lock()


def is_bag(path: str | Path) -> bool:
    """Whether a path looks like a bag: by its suffix, or a folder with bag files in it."""
    path = Path(path)
    if path.is_dir():
        return (path / _METADATA).is_file() or bool(bag_files(path) or _packed(path))
    return _is_packed(path) or path.name.lower().removesuffix(_UNFINISHED).endswith(BAG_SUFFIXES)


def _is_packed(path: Path) -> bool:
    """Whether a file is called like a bag file that was compressed."""
    suffix = path.suffix.lower()
    return suffix in _PACKED and path.name.lower().removesuffix(suffix).endswith(BAG_SUFFIXES)


def _packed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_packed(path))


def bag_files(folder: Path) -> list[Path]:
    """The bag files that lie in a folder, in the order of the numbers in their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in BAG_SUFFIXES and p.is_file()]
    return sorted(found, key=lambda p: (_stem(p), _number(p), p.name))


def _stem(path: Path) -> str:
    """The name that the parts of a split recording share: `drive_0.mcap` and `drive_1.mcap`."""
    return re.sub(r"_[0-9]+$", "", path.stem) + path.suffix.lower()


def _number(path: Path) -> int:
    digits = re.search(r"_([0-9]+)$", path.stem)
    return int(digits[1]) if digits else -1


class _LowerCase(type(Path())):  # type: ignore[misc]
    """A path that is told by its suffix, as FAT cards write it: `DRIVE.MCAP`."""

    @property
    def suffix(self) -> str:
        return str(super().suffix.lower())


class BagFile:
    """A bag that opens when it is first read, also in another process that it was sent to.

    Its files are closed with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._reader: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        del state["_lock"]
        return {**state, "_reader": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def reader(self) -> Any:
        """The open `AnyReader`; raises RecordingError naming the cause."""
        if self._reader is None:
            self._reader = self._open()
            # With the bag that nobody holds any more, and not when the collector comes by.
            weakref.finalize(self, self._reader.close)
        return self._reader

    def topics(self) -> dict[str, tuple[str, int]]:
        """Message type and count by topic, of what can be read."""
        return _counts(c for c in self.reader().connections if self._why_foreign(c) is None)

    def foreign(self) -> dict[str, str]:
        """Topics that cannot be read, and why."""
        whys = {c.topic: self._why_foreign(c) for c in self.reader().connections}
        return {topic: why for topic, why in whys.items() if why is not None}

    def messages(
        self, topics: set[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """(topic, log time in nanoseconds, message) in order; raises RecordingError on damage."""
        reader = self.reader()
        wanted = [c for c in reader.connections if c.topic in topics and not self._why_foreign(c)]
        if not wanted:
            return
        try:
            found = reader.messages(wanted, start=start, stop=stop)
            for connection, time, raw in messages_within(reader.budget, found, reader.is2):
                yield connection.topic, time, reader.deserialize(raw, connection.msgtype)
        except Exception as error:
            raise RecordingError(f"{self.path}: damaged ({error})") from error

    def message(self, topic: str, time: int, nth: int) -> Any:
        """The `nth` message of a topic logged at that time; raises CorruptFrameError."""
        try:
            with self._lock:
                found = list(self.messages({topic}, start=time, stop=time + 1))
        except RecordingError as error:
            raise CorruptFrameError(str(error)) from error
        if nth >= len(found):
            raise CorruptFrameError(f"{self.path}: a message of {topic} is gone")
        return found[nth][2]

    def _why_foreign(self, connection: Any) -> str | None:
        form = getattr(connection.ext, "serialization_format", "cdr")
        if form != "cdr":
            return f"its messages are {form or 'of an unknown encoding'}, not those of ROS 2"
        if connection.msgtype not in self.reader().typestore.fielddefs:
            return f"the bag does not define its type {connection.msgtype}"
        return None

    def _open(self) -> Any:
        if self.path.suffix.lower() == _UNFINISHED:
            raise RecordingError(
                f"{self.path}: its recording was not finished; `rosbag reindex` makes it readable"
            )
        if _is_packed(self.path):
            raise RecordingError(_unpack_first(self.path, self.path))
        readable = check_bag(self.path)
        if not self.path.is_dir():
            return _open_files([self.path], self.path)
        if not readable and (self.path / _METADATA).exists():
            self.notes.append(f"{_METADATA} cannot be read: the bag files beside it are")
            return _open_files(self._files(), self.path)
        if not readable:
            self.notes.append(f"there is no {_METADATA}: the bag files in the folder are read")
            return _open_files(self._files(), self.path)
        try:
            return _open_files([self.path], self.path)
        except RecordingError:
            # Renamed files, foreign channels, metadata that the recorder had no time to write.
            if not bag_files(self.path):
                raise
            reader = _open_files(self._files(), self.path)
            self.notes.append(f"{_METADATA} is not usable: the bag files beside it are read")
            return reader

    def _files(self) -> list[Path]:
        """The bag files of a folder, where they are one recording; raises RecordingError."""
        files = bag_files(self.path)
        if not files and (packed := _packed(self.path)):
            raise RecordingError(_unpack_first(self.path, packed[0]))
        if len({_stem(file) for file in files}) > 1:
            names = ", ".join(file.name for file in files[:6]) + (", ..." if files[6:] else "")
            raise RecordingError(
                f"{self.path}: several bags and no {_METADATA} in it; name one of them: {names}"
            )
        return files


def _unpack_first(path: Path, packed: Path) -> str:
    how = "zstd -d" if packed.suffix.startswith(".zst") else "unpack"
    return (
        f"{path}: {packed.name} is compressed, and there is no {_METADATA} that says so: unpack it "
        f"first ({how} {packed.name})"
    )


def _counts(connections: Iterator[Any]) -> dict[str, tuple[str, int]]:
    counts: dict[str, tuple[str, int]] = {}
    for connection in connections:
        before = counts.get(connection.topic, ("", 0))[1]
        counts[connection.topic] = (connection.msgtype, before + connection.msgcount)
    return counts


def _open_files(paths: list[Path], name: Path) -> Any:
    """An open `AnyReader` of the parts of one bag; raises RecordingError naming the cause."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    usual = get_typestore(Stores.ROS2_HUMBLE)
    try:
        paths = [_LowerCase(path) for path in paths]
        reader = AnyReader(paths, default_typestore=usual)
        if reader.is2:
            reader.readers = [_tolerant_reader()(path) for path in paths]
        reader.open()
        reader.budget = Budget(sum(_size(path) for path in paths))
        for one in () if reader.is2 else reader.readers:
            bound_chunks(one, reader.budget)
        # Recorders leave definitions empty that they did not find. (`register` would generate and
        # compile the classes of all of them, which `usual` has.)
        reader.typestore.fielddefs = usual.fielddefs | reader.typestore.fielddefs
        reader.typestore.types = usual.types | reader.typestore.types
    except Exception as error:  # rosbags raises what its parsers raise on damaged files
        raise RecordingError(_cannot_open(name, error)) from error
    try:
        check_topics(name, reader.connections)
    except BaseException:
        reader.close()
        raise
    return reader


def _size(path: Path) -> int:
    """Bytes of a bag file, or of the files in a bag's folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _tolerant_reader() -> Any:
    """A `rosbags` reader of ROS 2 bags that takes definitions it cannot read for missing ones."""
    from rosbags.rosbag2 import Reader, storage_mcap, storage_sqlite3
    from rosbags.rosbag2.reader import DirectoryReader

    class TolerantMcap(storage_mcap.McapReader):
        def __init__(self, path: Any) -> None:
            super().__init__(path)
            self.schemas = _ReadableSchemas()

        def open(self) -> None:
            # A schema of protobuf is no text, and cannot be passed over without this. The first
            # text is the profile: whatever it is, each channel says its own encoding.
            texts = iter(("ros2",))

            def read_text(bio: Any) -> str:
                found = storage_mcap.read_bytes(bio).decode(errors="replace")
                return next(texts, found)

            with _OPENING:
                strict = storage_mcap.read_string
                storage_mcap.read_string = read_text
                try:
                    super().open()
                finally:
                    storage_mcap.read_string = strict
            check_chunks(self.chunks, self.path.stat().st_size)

    class CheckedDatabase(storage_sqlite3.Sqlite3Reader):
        def open(self) -> None:
            check_database(self.path)
            super().open()

    plugins = {"mcap": TolerantMcap, "sqlite3": CheckedDatabase}

    class TolerantFolder(DirectoryReader):
        STORAGE_PLUGINS = {**DirectoryReader.STORAGE_PLUGINS, **plugins}  # noqa: RUF012

    class TolerantReader(Reader):
        STORAGE_PLUGINS = {  # noqa: RUF012
            **Reader.STORAGE_PLUGINS,
            "dir": TolerantFolder,
            ".mcap": TolerantMcap,
            ".db3": CheckedDatabase,
        }

    return TolerantReader


class _ReadableSchemas(dict[int, Any]):
    """Schemas of an MCAP; what is no definition of ROS messages becomes an empty one."""

    def __setitem__(self, key: int, schema: Any) -> None:
        super().__setitem__(key, schema if _is_readable(schema) else _emptied(schema))


def _is_readable(schema: Any) -> bool:
    from rosbags.typesys import get_types_from_msg

    if schema.encoding == "ros2msg":
        with suppress(Exception):  # its parser's own errors, and Python's
            get_types_from_msg(schema.data, schema.name)
            return True
        return False
    return schema.encoding in ("", "ros2idl", "omgidl")


def _emptied(schema: Any) -> Any:
    return schema._replace(encoding="", data="")


def _cannot_open(path: Path, error: Exception) -> str:
    said = str(error)
    if "end magic" in said:
        return (
            f"{path}: cut off (its recording was not finished); `mcap recover` saves what is in it"
        )
    if "not indexed" in said.lower():
        return f"{path}: has no index (its recording was not finished); `rosbag reindex` makes one"
    if isinstance(error, FileNotFoundError) or "files are missing" in said:
        return f"{path}: {said}; copy them beside it, or name one file"
    words = printable(" ".join(said.split()) or type(error).__name__, 300)
    return f"{path}: cannot be read as a bag ({words})"


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
