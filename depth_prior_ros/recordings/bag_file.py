"""A bag's file or files, opened through `rosbags` with what strangers' recorders leave in them.

ROS 2 (.mcap, .db3, a folder of them with or without its metadata.yaml, split or renamed) and ROS 1
(.bag). Channels whose messages are not of ROS are left out and named, instead of the whole file.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from depth_prior_ros.recordings.base import CorruptFrameError, RecordingError
from depth_prior_ros.recordings.bounded_bags import (
    Budget,
    bound_chunks,
    check_bag,
    check_chunks,
    check_database,
    check_topics,
    messages_within,
)
from depth_prior_ros.untrusted import printable

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
    """A bag that opens when it is first read, also in another process that it was sent to."""

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
        return self._reader

    def topics(self) -> dict[str, tuple[str, int]]:
        """Message type and count by topic, of what can be read."""
        return _counted(c for c in self.reader().connections if self._why_foreign(c) is None)

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


def _counted(connections: Iterator[Any]) -> dict[str, tuple[str, int]]:
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
        # Recorders leave definitions empty that they did not find.
        known = reader.typestore.fielddefs
        reader.typestore.register({k: v for k, v in usual.fielddefs.items() if k not in known})
    except Exception as error:  # rosbags raises what its parsers raise on damaged files
        raise RecordingError(_cannot_open(name, error)) from error
    check_topics(name, reader.connections)
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
