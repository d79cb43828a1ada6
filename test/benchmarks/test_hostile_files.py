"""A small fixed part of benchmarks/hostile_files.py."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import hostile_files

FOLDER = Path(hostile_files.__file__).parent
RUN = """
import json, hostile_files
cases = dict.fromkeys(hostile_files.FULL, 3)
print(json.dumps(hostile_files.run(cases, seed=2011, minutes=1)[0]))
"""


@pytest.mark.slow
def test_mutated_files_of_every_kind_are_read_or_refused() -> None:
    """In a process of its own: what forks should have no threads of the tests before it."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=FOLDER, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert {name.split()[-1] for name in counts} <= {"accepted", "refused"}, done.stdout
    assert sum(counts.values()) == 3 * len(hostile_files.FULL)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_what_goes_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise KeyError

    def lines(_: Path) -> None:
        raise ValueError("\x1b")

    def fill(_: Path) -> int:
        return len(os.urandom(1) * (hostile_files.MEMORY - resident() + (1 << 26)))

    # A child has the memory of this process from its fork on. Filling 2 GiB takes seconds.
    monkeypatch.setattr(hostile_files, "MEMORY", resident() + (1 << 27))
    for what, read in (
        ("crash", lambda _: os.kill(os.getpid(), signal.SIGKILL)),
        ("traceback", fail),
        ("several lines", lines),
        ("hang", lambda _: time.sleep(60)),
        ("memory", fill),
    ):
        kind = hostile_files.Kind("x", tmp_path, read, (ValueError,))
        seconds = 0.5 if what == "hang" else 20
        monkeypatch.setattr(hostile_files, "SECONDS", seconds)
        assert hostile_files.outcome(kind, tmp_path) == what
