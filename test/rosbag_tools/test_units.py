"""The same units on a cluster as here, and inputs and outputs at URLs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bag import write
from test_extract import hashes
from test_process import lose_once
from test_replay import stopping_drive
from training_files import write_moving_drive

from rosbag_tools.cli import main
from rosbag_tools.units import Unit, run_on_ray, run_units


def test_recordings_and_results_at_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra cluster)")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    bag = write(tmp_path, stopping_drive(6))
    assert main(["extract", str(bag), "--out", str(tmp_path / "set")]) == 0
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bags/made.mcap", bag.read_bytes())
    command = ["extract", "memory://bags/made.mcap", "--out", "memory://sets/one"]
    assert main(command) == 0
    memory.get("/sets/one/made", str(tmp_path / "fetched"), recursive=True)
    assert hashes(tmp_path / "fetched") == hashes(tmp_path / "set" / "made")
    left = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert not left, "temporary copies are removed"
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    # A data set at a URL is a recording, too.
    again = ["extract", "memory://sets/one/made", "--out", str(tmp_path / "again")]
    assert main(again) == 0
    images = tmp_path / "again" / "made" / "images"
    assert hashes(images) == hashes(tmp_path / "set" / "made" / "images")
    assert main(["extract", "memory://bags/other.mcap", "--out", str(tmp_path / "o")]) == 1
    assert "memory://bags/other.mcap: no such file" in capsys.readouterr().err
    assert main(["extract", "nothing://x/y.mcap", "--out", str(tmp_path / "o")]) == 1
    assert "nothing://x/y.mcap: " in capsys.readouterr().err


def test_a_folder_at_a_url_that_holds_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra cluster)")
    memory, bag = fsspec.filesystem("memory"), str(write(tmp_path, stopping_drive(4)))
    memory.pipe_file("/others/made/thesis.tex", b"years of work")
    assert main(["extract", bag, "--out", "memory://others"]) == 1
    assert "memory://others/made holds other files (thesis.tex)" in capsys.readouterr().err
    assert memory.ls("/others/made", detail=False) == ["/others/made/thesis.tex"]
    # What an upload that was killed left is one's own: the first file says so.
    put, files = type(memory).put_file, []

    def broken(self: Any, here: str, there: str, *more: Any, **named: Any) -> None:
        files.append(there)
        if len(files) == 3:
            raise ConnectionError("the line is dead")
        put(self, here, there, *more, **named)

    monkeypatch.setattr(type(memory), "put_file", broken)
    assert main(["extract", bag, "--out", "memory://half"]) == 1
    assert "the line is dead" in capsys.readouterr().err
    monkeypatch.setattr(type(memory), "put_file", put)
    assert main(["extract", bag, "--out", "memory://half", "--quality", "50"]) == 1
    assert "made otherwise (another settings)" in capsys.readouterr().err
    assert main(["extract", bag, "--out", "memory://half"]) == 0
    assert main(["extract", bag, "--out", str(tmp_path / "whole")]) == 0
    memory.get("/half/made", str(tmp_path / "fetched"), recursive=True)
    assert hashes(tmp_path / "fetched") == hashes(tmp_path / "whole" / "made")


def test_a_drive_at_a_url_keeps_what_lies_beside_it(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra cluster)")
    drive = write_moving_drive(tmp_path, "2011_09_28_drive_0001_sync")
    memory = fsspec.filesystem("memory")
    memory.put(str(drive.parent), "/raw/2011_09_28", recursive=True)
    url = f"memory://raw/2011_09_28/{drive.name}"
    assert main(["extract", url, "--out", str(tmp_path / "far")]) == 0
    assert main(["extract", str(drive), "--out", str(tmp_path / "near")]) == 0
    assert hashes(tmp_path / "far") == hashes(tmp_path / "near")


def die_or_double(number: int, told: Any) -> int:
    if number == 2:
        os._exit(9)
    return 2 * number


@pytest.mark.slow
def test_a_unit_that_kills_its_process_costs_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, here]))
    units = [Unit(str(number), number) for number in range(5)]
    outcomes = run_units(die_or_double, units, jobs=2)
    assert [o.result for o in outcomes] == [0, 2, None, 6, 8]
    assert "its process was lost three times" in outcomes[2].error


def refuse(path: Path, told: Any) -> str:
    raise OSError(f"{path.name} is not there")


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_and_does_lost_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs Ray (extra cluster)")
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, here]))
    units = [Unit(name, tmp_path / name) for name in ("a", "b")]
    assert [o.result for o in run_on_ray(lose_once, units, "auto")] == ["a", "b"]
    errors = [o.error for o in run_on_ray(refuse, units, "auto")]
    assert errors == ["a is not there", "b is not there"]
    bags = [str(write(tmp_path, stopping_drive(8), f"{name}.mcap")) for name in ("one", "two")]
    assert main(["extract", *bags, "--out", str(tmp_path / "alone"), "--jobs", "1"]) == 0
    assert (
        main(["extract", *bags, "--out", str(tmp_path / "cluster"), "--ray", "auto", "--jobs", "2"])
        == 0
    )
    assert hashes(tmp_path / "cluster") == hashes(tmp_path / "alone")
