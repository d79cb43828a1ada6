"""The reference set on disk: what is read is what was written, and nothing damaged is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_files import PictureTeacher, all_features, write_random_set

from depth_prior_ros.bundle.files import sha256_of
from training.commands.cli import main
from training.errors import TrainingError
from training.prior.reference.files import (
    MANIFEST_NAME,
    SMALLEST_INVERSE_DEPTH,
    ReferenceSetError,
    open_shard,
    read_manifest,
    shard_name,
    write_manifest,
    write_shard,
)
from training.prior.reference.set import ReferenceSet

ROOT = Path(__file__).resolve().parents[2]
ROWS, SHARDS, CHANNELS = 30, 4, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("set")
    write_random_set(place, SHARDS, ROWS, CHANNELS)
    return place


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set that a test may damage."""
    write_random_set(tmp_path / "set", SHARDS, ROWS, CHANNELS)
    return tmp_path / "set"


def written() -> np.ndarray:
    """What `write_random_set` was given (rows, C + 1), in half precision."""
    parts = []
    for number in range(SHARDS):
        rng = np.random.default_rng([0, number])
        features = rng.standard_normal((ROWS, CHANNELS), dtype=np.float32)
        inverse = rng.random(ROWS, dtype=np.float32) + 0.05
        parts.append(np.concatenate([features, inverse[:, None]], 1))
    return np.concatenate(parts).astype(np.float16).astype(np.float32)


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    found = ReferenceSet.open(folder, verify=True)
    assert len(found) == SHARDS * ROWS
    assert found.channels == CHANNELS
    everything = found.rows(np.arange(len(found)))
    assert everything.features.dtype == everything.inverse_depth.dtype == torch.float32
    np.testing.assert_array_equal(all_features(everything).numpy(), written())
    image, pixel = found.sources(np.arange(len(found)))
    assert image.dtype == pixel.dtype == np.int32
    np.testing.assert_array_equal(image, np.repeat(np.arange(SHARDS), ROWS))
    np.testing.assert_array_equal(pixel, np.tile(np.arange(ROWS), SHARDS))
    assert [record["frame"] for record in found.images] == list(range(SHARDS))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, SHARDS * ROWS - 1), min_size=1, max_size=80))
def test_rows_come_in_the_order_asked_for(folder: Path, indices: list[int]) -> None:
    found = ReferenceSet.open(folder)
    np.testing.assert_array_equal(all_features(found.rows(indices)).numpy(), written()[indices])
    image, pixel = found.sources(torch.tensor(indices))
    np.testing.assert_array_equal(image * ROWS + pixel, indices)


def test_rows_outside_are_refused(folder: Path) -> None:
    found = ReferenceSet.open(folder)
    for index in (-1, SHARDS * ROWS):
        with pytest.raises(IndexError):
            found.rows([0, index])


@pytest.mark.parametrize("size", [1, 7, ROWS, ROWS + 1, 1000])
def test_chunks_are_the_whole_set(folder: Path, size: int) -> None:
    parts = list(ReferenceSet.open(folder).chunks(size))
    assert all(len(part.features) == size for part in parts[:-1])
    joined = torch.cat([all_features(part) for part in parts])
    np.testing.assert_array_equal(joined.numpy(), written())


def test_a_sample_has_no_row_twice_and_follows_the_generator(folder: Path) -> None:
    found = ReferenceSet.open(folder)
    first = all_features(found.sample(np.random.default_rng(1), 50))
    assert len({tuple(row) for row in first.tolist()}) == 50
    assert first.equal(all_features(found.sample(np.random.default_rng(1), 50)))
    assert not first.equal(all_features(found.sample(np.random.default_rng(2), 50)))
    for count in (SHARDS * ROWS, 10_000):
        everything = all_features(found.sample(np.random.default_rng(1), count))
        np.testing.assert_array_equal(everything.numpy(), written())


def test_every_row_is_as_likely_as_any_other(folder: Path) -> None:
    found, rng = ReferenceSet.open(folder), np.random.default_rng(0)
    number = {tuple(row): i for i, row in enumerate(written().tolist())}
    counts = np.zeros(len(found))
    rounds, size = 400, 30
    for _ in range(rounds):
        for row in all_features(found.sample(rng, size)).tolist():
            counts[number[tuple(row)]] += 1
    p = size / len(found)
    assert abs(counts - rounds * p).max() < 5 * np.sqrt(rounds * p * (1 - p))


def test_teacher_and_width_are_required(folder: Path) -> None:
    found = ReferenceSet.open(folder)
    found.require(found.identity, CHANNELS)
    with pytest.raises(ReferenceSetError, match=r"written by another teacher: random .* not pict"):
        found.require(PictureTeacher().identity)
    with pytest.raises(ReferenceSetError, match="have 5 channels, 32 are needed"):
        found.require(channels=32)


def test_no_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="this folder is no reference set"):
        ReferenceSet.open(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.999])
def test_a_shard_that_was_cut_off(own: Path, keep: float) -> None:
    file = own / shard_name(2)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ReferenceSetError, match=r"00002.safetensors: cut off.*extracts it again"):
        ReferenceSet.open(own)


def test_a_shard_that_is_missing(own: Path) -> None:
    (own / shard_name(1)).unlink()
    with pytest.raises(ReferenceSetError, match=r"00001.safetensors: missing"):
        ReferenceSet.open(own)


def test_a_shard_of_noise(own: Path) -> None:
    file = own / shard_name(1)
    size = file.stat().st_size
    for noise in (b"\xff" * size, b"\x02" + b"\0" * 7 + b"{}" + b"\0" * (size - 10)):
        file.write_bytes(noise)
        with pytest.raises(ReferenceSetError, match="00001"):
            ReferenceSet.open(own)


def test_a_changed_bit_is_found_by_verify(own: Path) -> None:
    file = own / shard_name(3)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    ReferenceSet.open(own)
    with pytest.raises(ReferenceSetError, match="altered"):
        ReferenceSet.open(own, verify=True)


def test_a_shard_of_another_set(own: Path, tmp_path: Path) -> None:
    write_random_set(tmp_path / "other", SHARDS + 1, ROWS, CHANNELS, seed=1)
    (own / shard_name(0)).write_bytes((tmp_path / "other" / shard_name(0)).read_bytes())
    with pytest.raises(ReferenceSetError, match="another reference set"):
        ReferenceSet.open(own)


def test_a_shard_of_another_width(own: Path, tmp_path: Path) -> None:
    write_random_set(tmp_path / "other", SHARDS, ROWS, CHANNELS + 1)
    (own / shard_name(0)).write_bytes((tmp_path / "other" / shard_name(0)).read_bytes())
    with pytest.raises(ReferenceSetError, match="00000"):
        ReferenceSet.open(own)
    with pytest.raises(ReferenceSetError, match="features have 6 channels, the set's teacher"):
        open_shard(own / shard_name(0), CHANNELS)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_manifest_that_was_cut_off(own: Path, keep: float) -> None:
    file = own / MANIFEST_NAME
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(ReferenceSetError, match="cut off or altered"):
        ReferenceSet.open(own)


def test_a_manifest_that_was_changed(own: Path) -> None:
    file = own / MANIFEST_NAME
    file.write_text(file.read_text().replace("per_image: 30", "per_image: 31"))
    with pytest.raises(ReferenceSetError, match="altered"):
        ReferenceSet.open(own)


def test_a_manifest_of_a_newer_version(own: Path) -> None:
    file = own / MANIFEST_NAME
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, "schema": 2, "more": "keys"}))
    with pytest.raises(ReferenceSetError, match=r"newer version .schema 2.*update"):
        ReferenceSet.open(own)


def test_an_unfinished_set_says_how_to_finish_it(own: Path) -> None:
    done = read_manifest(own)
    changes = {"finished": False, "shards": [], "images": [], "command": "depth_train reference x"}
    write_manifest(own, done.model_copy(update=changes))
    (own / shard_name(3)).unlink()
    with pytest.raises(ReferenceSetError, match=r"3 of 4 shards.*depth_train reference x"):
        ReferenceSet.open(own)


BAD = [
    ("features", np.nan, "not finite"),
    ("features", np.inf, "not finite"),
    ("features", 1e5, "does not fit half precision"),
    ("inverse_depth", np.nan, "not finite and positive"),
    ("inverse_depth", 0.0, "not finite and positive"),
    ("inverse_depth", -1.0, "not finite and positive"),
    ("inverse_depth", 1e6, "does not fit half precision"),
]


@pytest.mark.parametrize(("column", "value", "words"), BAD)
def test_bad_values_are_not_written(tmp_path: Path, column: str, value: float, words: str) -> None:
    columns = {
        "features": np.ones((4, 3), np.float32),
        "inverse_depth": np.ones(4, np.float32),
        "image": np.zeros(4, np.int32),
        "pixel": np.zeros(4, np.int32),
    }
    columns[column].flat[2] = value
    with pytest.raises(ReferenceSetError, match=words):
        write_shard(tmp_path / "00000.safetensors", columns, {}, "key")
    assert list(tmp_path.iterdir()) == []


def test_tiny_inverse_depth_stays_positive(tmp_path: Path) -> None:
    columns = {
        "features": np.ones((2, 3), np.float32),
        "inverse_depth": np.array([1e-12, 0.25], np.float32),
        "image": np.zeros(2, np.int32),
        "pixel": np.zeros(2, np.int32),
    }
    write_shard(tmp_path / "a", columns, {}, "key")
    stored = open_shard(tmp_path / "a", 3).columns["inverse_depth"]
    assert stored.astype(np.float64).tolist() == [SMALLEST_INVERSE_DEPTH, 0.25]


def test_bad_values_on_disk_are_found_by_verify(own: Path) -> None:
    """A shard with a NaN that somebody else wrote, hash and all."""
    file = own / shard_name(0)
    shard = open_shard(file, CHANNELS)
    data = bytearray(file.read_bytes())
    place = data.index(shard.columns["features"].tobytes())
    data[place : place + 2] = np.array([np.nan], np.float16).tobytes()
    file.write_bytes(bytes(data))
    done = read_manifest(own)
    entry = done.shards[0].model_copy(update={"sha256": sha256_of(file)})
    write_manifest(own, done.model_copy(update={"shards": [entry, *done.shards[1:]]}))
    with pytest.raises(ReferenceSetError, match="features of 1 of 30"):
        ReferenceSet.open(own, verify=True)


def test_a_set_without_a_pixel(tmp_path: Path) -> None:
    write_random_set(tmp_path, 2, 0, 3)
    with pytest.raises(ReferenceSetError, match="holds no reference pixel"):
        ReferenceSet.open(tmp_path)


def test_the_command_prints_errors_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reference", str(tmp_path / "none.yaml")]) == 1
    said = capsys.readouterr().err
    assert f"no recipe '{tmp_path / 'none.yaml'}'" in said and "Traceback" not in said


LARGE = """
import json, sys, time
from pathlib import Path
import numpy as np
import torch
from training.prior.reference.set import ReferenceSet
found = ReferenceSet.open(sys.argv[1])
rng = np.random.default_rng(0)
torch.set_num_threads(1)
found.sample(rng, 8192)
times = []
for _ in range(20):
    began = time.process_time()
    found.sample(rng, 8192)
    times.append(time.process_time() - began)
rows = sum(len(part.features) for part in found.chunks(65536))
# Not ru_maxrss: that one is inherited from the process which started this one.
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) / 2**10
print(json.dumps({"rows": rows, "ms": 1e3 * float(np.median(times)), "peak": peak}))
"""


@pytest.mark.slow
def test_two_million_pixels_need_little_memory_and_time(tmp_path: Path) -> None:
    """2.6 M x 64: as float32 they would be 644 MiB; the pages of the files count, too."""
    write_random_set(tmp_path, 40, 65_000, 64)
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    figures = json.loads(out)
    print(figures)
    assert figures["rows"] == 2_600_000
    assert figures["peak"] < 1200  # MiB, with torch itself
    assert figures["ms"] < 30  # of processor time: others may be at work
