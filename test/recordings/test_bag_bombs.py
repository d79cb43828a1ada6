"""Bags and images that unpack to gigabytes: refused in one line, with little memory."""

from __future__ import annotations

import bz2
import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from depth_prior_ros.recordings import RecordingError, open_recording
from depth_prior_ros.recordings.base import CorruptFrameError
from depth_prior_ros.recordings.bounded_bags import (
    ExpansionError,
    _bz2,
    _lz4,
    _zstd,
    bound_decompression,
    check_bag,
)
from depth_prior_ros.recordings.image_files import decode_depth, decode_image, probe_image
from depth_prior_ros.untrusted import CHUNK_BYTES

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


def test_an_image_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(CorruptFrameError, match="not a regular file"):
        probe_image(tmp_path / "x.png")
    assert np.size(decode_image(png((2, 2), 2), "x")) == 12
