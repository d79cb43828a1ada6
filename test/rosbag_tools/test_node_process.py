"""The node of a replay does not outlive it, however sudden its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

_PARENT = """
import sys, time
from pathlib import Path
from rosbag_tools.replaying.node_process import NodeProcess
with NodeProcess({"autostart": False}, {}, domain_id=83, log=Path(sys.argv[1])) as node:
    print(node._process.pid, flush=True)
    time.sleep(60)
"""


def runs(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


@pytest.mark.parametrize("seconds", [0.0, pytest.param(6.0, marks=pytest.mark.slow)])
def test_a_killed_replay_takes_its_node_along(tmp_path: Path, seconds: float) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    node = int(parent.stdout.readline())
    time.sleep(seconds)
    assert runs(node), (tmp_path / "log").read_text()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while runs(node) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(node)
