"""Bags and images that unpack to gigabytes: refused in one line, with little memory."""

from __future__ import annotations

import bz2
import io
import os
import resource
import sqlite3
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from test_bag_kinds import camera, write

from depth_prior_ros.recordings import RecordingError, open_recording
from depth_prior_ros.recordings.bag_file import (
    Budget,
    ExpansionError,
    _bz2,
    _lz4,
    _zstd,
    bound_chunks,
    bound_decompression,
    check_bag,
    check_chunks,
    messages_within,
)
from depth_prior_ros.recordings.base import CorruptFrameError
from depth_prior_ros.recordings.folder import VideoFile
from depth_prior_ros.recordings.image_files import decode_depth, decode_image, probe_image
from depth_prior_ros.untrusted import BAG_EXPANSION, CHUNK_BYTES, OPEN_CHUNKS_BYTES

ZEROS = bytes(1 << 22)
TOO_MUCH = CHUNK_BYTES // len(ZEROS) + 1


def packed(kind: str, blocks: int) -> bytes:
    if kind == "bz2":
        compressor = bz2.BZ2Compressor(1)
        return b"".join(compressor.compress(ZEROS) for _ in range(blocks)) + compressor.flush()
    out = io.BytesIO()
    if kind == "lz4":
        import lz4.frame

        stream = lz4.frame.open(out, "wb")
    else:
        from backports import zstd

        stream = zstd.open(out, "wb")
    with stream:
        for _ in range(blocks):
            stream.write(ZEROS)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "unpack"), [("lz4", _lz4), ("zstd", _zstd)])
def test_chunks(kind: str, unpack) -> None:
    assert unpack(packed(kind, 2)) == ZEROS * 2
    with pytest.raises(ExpansionError, match="larger than 100 bytes"):
        unpack(packed(kind, 1), 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ExpansionError, match="a compressed chunk becomes larger"):
        unpack(packed(kind, TOO_MUCH))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_chunks_of_ros1() -> None:
    assert _bz2(packed("bz2", 1)) == ZEROS
    with pytest.raises(ExpansionError):
        _bz2(packed("bz2", 1), 100)


def test_rosbags_unpacks_through_them() -> None:
    from rosbags.rosbag1 import reader
    from rosbags.rosbag2 import storage_mcap

    bound_decompression()
    assert storage_mcap.DECOMPRESSORS["zstd"](packed("zstd", 1), len(ZEROS)) == ZEROS
    with pytest.raises(ExpansionError):
        storage_mcap.DECOMPRESSORS["zstd"](packed("zstd", 1), 100)
    assert reader.decompressors["bz2"] is _bz2


METADATA = """rosbag2_bagfile_information:
  version: 8
  storage_identifier: sqlite3
  duration: {nanoseconds: 1}
  starting_time: {nanoseconds_since_epoch: 1}
  message_count: 1
  topics_with_message_count: []
  compression_format: zstd
  compression_mode: FILE
  relative_file_paths: [f.db3.zstd]
  files: [{path: f.db3.zstd, starting_time: {nanoseconds_since_epoch: 1},
           duration: {nanoseconds: 1}, message_count: 1}]
"""


def refused(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        open_recording(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_whole_file_that_is_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text(METADATA)
    (tmp_path / "f.db3.zstd").write_bytes(packed("zstd", TOO_MUCH))
    assert "becomes larger than" in refused(tmp_path)


def test_files_outside_the_bag(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    (bag / "metadata.yaml").write_text(METADATA.replace("[f.db3.zstd]", "[../../f.db3]"))
    with pytest.raises(RecordingError, match="lies outside the bag"):
        check_bag(bag)


@pytest.mark.parametrize("text", ["a: &a [x]\nb: *a", "[" * 3000, "x: 2001-99-99"])
def test_metadata_that_is_odd(tmp_path: Path, text: str) -> None:
    """It is not read; the bag files beside it would be, and there are none."""
    (tmp_path / "metadata.yaml").write_text(text)
    assert not check_bag(tmp_path)
    refused(tmp_path)


@pytest.mark.parametrize("suffix", [".mcap", ".bag", ".db3"])
def test_a_bag_is_a_regular_file(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(RecordingError, match="not a regular file"):
        check_bag(tmp_path / f"x{suffix}")


# -- what is small, and asked for over and over ----------------------------------------------------


def chunk(start: int, end: int, size: int = CHUNK_BYTES, place: int | None = None) -> object:
    return SimpleNamespace(
        message_start_time=start,
        message_end_time=end,
        uncompressed_size=size,
        chunk_start_offset=start if place is None else place,
    )


def test_chunks_of_one_time_are_unpacked_side_by_side() -> None:
    at_once = OPEN_CHUNKS_BYTES // CHUNK_BYTES
    large = 1 << 40
    check_chunks([chunk(i, i + 1, CHUNK_BYTES // 2) for i in range(100)], large)
    with pytest.raises(ExpansionError, match="of the same time"):
        check_chunks([chunk(i, 100) for i in range(at_once + 1)], large)
    backwards = [chunk(0, -50, place=50 + i) for i in range(3)]  # open for no time
    with pytest.raises(ExpansionError, match="of the same time"):
        check_chunks([*backwards, *(chunk(i, 100) for i in range(at_once + 1))], large)


def test_an_index_that_names_too_much() -> None:
    with pytest.raises(ExpansionError, match="a chunk twice"):
        check_chunks([chunk(0, 1, 10, place=9), chunk(2, 3, 10, place=9)], 100)
    size = CHUNK_BYTES // BAG_EXPANSION
    with pytest.raises(ExpansionError, match="its messages become larger"):
        check_chunks([chunk(2 * i, 2 * i + 1) for i in range(3)], 2 * size)


def test_messages_and_chunks_within_a_budget() -> None:
    budget = Budget(0)
    half = bytes(CHUNK_BYTES // 2)
    for _ in range(2):  # each pass anew
        assert len(list(messages_within(budget, [(None, 0, half)] * 2, True))) == 2
    with pytest.raises(ExpansionError):
        list(messages_within(budget, [(None, 0, half)] * 3, True))
    reader = SimpleNamespace(chunks={7: _Chunk(lambda data: half)})
    budget.renew()
    bound_chunks(reader, budget)
    for _ in range(2):
        assert reader.chunks[7].decompressor(b"") is half
    with pytest.raises(ExpansionError):
        reader.chunks[7].decompressor(b"")


class _Chunk:
    def __init__(self, decompressor) -> None:
        self.decompressor = decompressor

    _replace = SimpleNamespace


VIEW = """
DROP TABLE message_definitions;
CREATE VIEW message_definitions AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
SELECT x AS id, '' AS topic_type, '' AS encoding, '' AS encoded_message_definition,
'' AS type_description_hash FROM c;
"""
COMPUTED = """
DROP TABLE messages;
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER,
data BLOB GENERATED ALWAYS AS (zeroblob(900000000)) VIRTUAL);
INSERT INTO messages(topic_id, timestamp) VALUES (1, 1);
"""
ONE_NUMBER = """
CREATE TABLE t2 AS SELECT * FROM topics;
INSERT INTO t2 SELECT * FROM topics;
DROP TABLE topics;
ALTER TABLE t2 RENAME TO topics;
"""
TRIGGER = "CREATE TRIGGER t AFTER INSERT ON topics BEGIN SELECT 1; END"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (VIEW, "view message_definitions is none of a bag"),
        (COMPUTED, "has a column that is computed"),
        (ONE_NUMBER, "two topics have one number"),
        (TRIGGER, "trigger t is none"),
    ],
    ids=["view", "computed", "one number", "trigger"],
)
def test_a_database_that_computes_what_is_read(tmp_path: Path, script: str, words: str) -> None:
    bag = write(tmp_path / "bag", camera(), mcap=False)
    database = sqlite3.connect(bag / "bag.db3")
    database.executescript(script)
    database.close()
    assert words in refused(bag / "bag.db3")
    refused(bag)


def test_the_qos_in_a_bag_is_not_parsed(tmp_path: Path) -> None:
    """It is YAML of any size, in a parser of Python."""
    bag = write(tmp_path / "bag", camera(), mcap=False)
    database = sqlite3.connect(bag / "bag.db3")
    database.execute("UPDATE topics SET offered_qos_profiles = '[[[ x'")
    database.commit()
    database.close()
    assert len(open_recording(bag / "bag.db3").frames) == 3


# -- images ----------------------------------------------------------------------------------------


def png(says: tuple[int, int], colour: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", *says, 16 if colour == 0 else 8, colour, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("says", [(30000, 30000), (60000, 60000), (0, 4), (2**31 - 1, 1)])
def test_images_whose_header_says_too_much(tmp_path: Path, says: tuple[int, int]) -> None:
    with pytest.raises(CorruptFrameError, match="its header says"):
        decode_image(png(says, 2), "x")
    with pytest.raises(CorruptFrameError, match="its header says"):
        decode_depth(png(says, 0), "x")
    (tmp_path / "x.png").write_bytes(png(says, 2))
    with pytest.raises(CorruptFrameError, match="its header says"):
        probe_image(tmp_path / "x.png")


@pytest.mark.parametrize("head", [b"P5\n8200 8200\n255\n", b"P6\n16000 4200\n255\n"])
def test_images_of_other_kinds_have_the_same_cap(head: bytes) -> None:
    with pytest.raises(CorruptFrameError, match="more than 67,108,864 pixels"):
        decode_image(head + bytes(100), "x")


def test_a_video_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(place), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    assert VideoFile(place).size == (64, 48)
    monkeypatch.setattr("depth_prior_ros.recordings.folder.IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(RecordingError, match="a video of 64x48, 3,071 pixels are the most"):
        VideoFile(place)


def test_a_video_whose_header_says_too_many_frames(tmp_path: Path) -> None:
    place = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(place), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    data = bytearray(place.read_bytes())
    for head, field in ((b"avih", 16), (b"strh", 32)):
        at = data.index(head) + 8 + field
        data[at : at + 4] = struct.pack("<I", 2**31 - 1)
    place.write_bytes(data)
    with pytest.raises(RecordingError, match=r"its header says 2,147,483,647 frames"):
        VideoFile(place)


def test_an_image_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(CorruptFrameError, match="not a regular file"):
        probe_image(tmp_path / "x.png")
    assert np.size(decode_image(png((2, 2), 2), "x")) == 12
