"""The real node as a child process: started, watched, and ended whatever happens.

The middleware's environment: Fast DDS with shared memory that holds a whole image. With its default
of 512 KB a full-size image overwrites whatever was sent just before it: odometry and calibration
are lost where they travel best effort. Other middleware ignores all this.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import depth_prior_ros
from depth_prior_ros.recordings import RecordingError
from depth_prior_ros.share import large_images_environment

# The kernel tells the node of its parent's death (PR_SET_PDEATHSIG), however sudden that was; set
# before anything that takes time, and no hook between fork and exec, which threads make unsafe.
_START = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
del sys.argv[1]
sys.argv[0] = "depth_prior_ros.ros.node"
from depth_prior_ros.ros.node import main
sys.exit(main())
"""
_TAIL_LINES = 15
_STOP_SECONDS = 15.0


_NEW, _OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"


def replay_environment() -> dict[str, str]:
    """What a replay and its node need in their environment, beyond what the user has set.

    The profile for large messages, unless there is one; and discovery on this machine only, so
    that no robot on the same network takes the replayed drive for its own (from Iron on).
    """
    environment = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        environment |= large_images_environment()
    return environment | {name: os.environ[name] for name in environment if name in os.environ}


def use_replay_environment() -> None:
    """Set it for this process; before its first participant is made, or it is too late."""
    os.environ.update(replay_environment())


def use_large_images() -> None:
    """Set the profile for large messages for this process, unless the user has set one."""
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        os.environ.update(large_images_environment())


def free_domain() -> int:
    """A ROS domain, 1 to 101, in which nobody on this machine takes part, chosen at random.

    Two replays in one domain would take each other's images. The first participant of a domain
    listens on the port that the standard fixes (DDSI-RTPS 2.5, 9.6.2.3).
    """
    domains = list(range(1, 102))
    random.SystemRandom().shuffle(domains)
    return next((domain for domain in domains if _nobody_listens(domain)), domains[0])


def _nobody_listens(domain: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", 7400 + 250 * domain + 10))
        except OSError:
            return False
    return True


class ReplayError(RecordingError):
    """A replay cannot go on; the message says why, with the node's last words where it has any."""


class NodeProcess:
    """`depth_prior_ros.ros.node` with parameters and remappings, as a context manager.

    `log` is the file that takes what the node prints; `domain_id` its ROS domain.
    """

    def __init__(
        self,
        parameters: Mapping[str, bool | int | float | str],
        remappings: Mapping[str, str],
        *,
        domain_id: int,
        log: Path,
    ) -> None:
        self._arguments = [sys.executable, "-c", _START, str(os.getpid()), "--ros-args"]
        for name, topic in remappings.items():
            self._arguments += ["-r", f"{name}:={topic}"]
        for name, value in parameters.items():
            self._arguments += ["-p", f"{name}:={_yaml(value)}"]
        self._environment = _environment(domain_id)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NodeProcess:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the replay only, which then ends the node in order.
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return
        process.kill()
        process.wait()

    def check(self) -> None:
        """Raise ReplayError where the node has died, with the end of its log."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            raise ReplayError(f"the node ended with exit code {code}{self.log_tail()}")

    def log_tail(self) -> str:
        """The node's last lines, introduced; empty where it said nothing."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\nits last lines:\n  " + "\n  ".join(lines) if lines else ""


def _environment(domain_id: int) -> dict[str, str]:
    environment = {**os.environ, **replay_environment(), "ROS_DOMAIN_ID": str(domain_id)}
    # The child must find the very package that runs here, also in a checkout that is not installed.
    package = str(Path(depth_prior_ros.__file__).resolve().parents[1])
    paths = [package, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    return environment


def _yaml(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Quoted: a path that looks like a number stays a string.
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
