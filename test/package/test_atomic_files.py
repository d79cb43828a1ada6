"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from depth_prior_ros.atomic_files import (
    move_into_place,
    remove_leftovers,
    replacing,
    staging_folder,
    write_bytes,
    write_json,
    write_safetensors,
)


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["bytes", "tensors"])
def test_a_full_disk_is_named(tmp_path: Path, kind: str) -> None:
    """Files may grow to a hundred bytes only."""
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"cannot be written.*a\.bin"):
            if kind == "bytes":
                write_bytes(path, bytes(1000))
            else:
                write_safetensors(path, {"x": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_in_a_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out"
    full = pytest.raises(OSError, match=r"cannot be written: No space left.*out'")
    with full, staging_folder(path), Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert not list(tmp_path.iterdir())


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    texts = [bytes([i]) * 50_000 for i in range(4)]
    threads = [threading.Thread(target=write_bytes, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts and list(tmp_path.iterdir()) == [path]


def test_tensors_are_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_safetensors(path, {"x": torch.arange(3)}, {"about": "words"})
    assert load_file(path)["x"].tolist() == [0, 1, 2]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as temporary:
        name = temporary.name
        raise RuntimeError
    gone = name.replace(f".{os.getpid()}.", ".4194399.")  # no process has that number
    for left in (gone, ".0.safetensors.4194399.partial"):
        (tmp_path / left).touch()
    kept = {tmp_path / ".mine.partial", tmp_path / name}  # this process still runs
    for file in kept:
        file.touch()
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == kept


def test_a_folder_takes_anothers_place(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for text in ("one", "two"):
        with staging_folder(path) as folder:
            (folder / "file").write_text(text)
            assert folder.stat().st_mode & 0o777 == 0o755
            move_into_place(folder, path)
    assert (path / "file").read_text() == "two" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), staging_folder(path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [path]
