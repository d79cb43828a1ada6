"""Python programs as children that are forked from one that has imported what takes seconds.

Tests start a hundred nodes. Each is as real as one of a command line, with a process, a middleware
and networks of its own; what they share is the import of PyTorch and of the pipeline. How a program
starts and how the interpreter ends is therefore tested with `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

# What every node imports sooner or later, but rclpy: its middleware starts threads as it is loaded,
# which a fork would leave behind (a node without them never misses a camera that was killed).
PRELOADED = [
    "forked_process",
    "depth_prior_ros.pipeline.pipeline",
    "depth_prior_ros.backends.torch_backend",
    "depth_prior_ros.models.student",
    "depth_prior_ros.models.mism",
    "depth_prior_ros.ros.parameters",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOADED)


class ForkedProcess:
    """As much of `subprocess.Popen` as tests use.

    Args:
        program: as for Python's command line: ``["-m", MODULE, ...]`` or ``["-c", CODE, ...]``.
        output: a file of the system that takes stdout and stderr.
        cwd: folder to run in.
        env: the whole environment.
    """

    def __init__(self, program: list[str], output: IO[str], cwd: Path, env: dict[str, str]) -> None:
        name = f"/proc/{os.getpid()}/fd/{output.fileno()}"
        self._process = _CONTEXT.Process(
            target=_run, args=(program, name, str(cwd), env), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_replay_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of replays are forked, too; test_node_process.py and others start them in earnest."""
    from rosbag_tools.replaying import node_process

    def popen(arguments: list[str], *, env: dict[str, str], stdout: IO[bytes], **_: Any) -> Any:
        _python, option, code, _parent, *words = arguments
        code = f"import os, sys; sys.argv.insert(1, str(os.getppid()))\n{code}"
        output = os.fdopen(os.dup(stdout.fileno()), "w")  # open until the child has it
        process = ForkedProcess([option, code, *words], output, Path.cwd(), env)
        weakref.finalize(process, output.close)
        return process

    forking = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
    monkeypatch.setattr(node_process, "subprocess", forking)


def _run(program: list[str], output: str, cwd: str, env: dict[str, str]) -> None:
    """The child."""
    assert "rclpy" not in sys.modules, "forked from a process with threads"
    with Path(output).open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    # As Python's own, which are line-buffered at best and still those of the server.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    option, what, *arguments = program
    sys.argv = [option if option == "-c" else what, *arguments]
    if option == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
