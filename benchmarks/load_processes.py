"""The processes of benchmarks/node_load.py: camera, node, reader, and whoever asks for services."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "test"):
    sys.path.insert(0, str(folder))

from camera_process import CameraProcess, large_images  # noqa: E402

SPEED = 10.0
CALLS_PER_SECOND = 10
CALLS_PER_SNAPSHOT = 50
IN_TURN = ("get_parameters", "get_state", "set_parameters", "reset_scale")
WARM_UP = 8.0


class Robot:
    """This process's node: hears the diagnostics, asks for parameters and services."""

    def __init__(self, namespace: str) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lifecycle_msgs.srv import GetState
        from rcl_interfaces.srv import GetParameters, SetParameters
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter
        from std_srvs.srv import Trigger

        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("asker", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._name = f"{namespace}/depth_node: depth".lstrip("/")
        self._values: dict[str, str] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 10)
        same = Parameter("motion.hold_stop", value=1.0).to_parameter_msg()
        self._requests: dict[str, tuple[type, str, Any]] = {
            "get_parameters": (
                GetParameters,
                "get_parameters",
                GetParameters.Request(names=["force_model", "max_gap"]),
            ),
            "set_parameters": (
                SetParameters,
                "set_parameters",
                SetParameters.Request(parameters=[same]),
            ),
            "get_state": (GetState, "get_state", GetState.Request()),
            **{
                name: (Trigger, name, Trigger.Request())
                for name in ("reset_scale", "save_snapshot", "reload_bundle")
            },
        }
        self._clients = {
            kind: self.node.create_client(service, f"depth_node/{name}")
            for kind, (service, name, _) in self._requests.items()
        }
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        self._context.try_shutdown()
        self._thread.join(10)
        self.node.destroy_node()

    def _hear(self, message: Any) -> None:
        for status in message.status:
            if status.name == self._name:
                self._values = {
                    **{pair.key: pair.value for pair in status.values},
                    "heard": str(time.monotonic()),
                    "message": status.message,
                }

    def next_status(self, timeout: float = 60.0) -> dict[str, str]:
        """Diagnostics that are not older than this call."""
        asked, deadline = time.monotonic(), time.monotonic() + timeout
        while float(self._values.get("heard", 0)) < asked:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no diagnostics of {self._name} within {timeout:g} s")
            time.sleep(0.01)
        return dict(self._values)

    def call(self, kind: str, timeout: float = 30.0) -> float | None:
        """Milliseconds from request to answer; None where there is no such service."""
        client = self._clients[kind]
        if not client.service_is_ready():
            return None
        done = threading.Event()
        start = time.perf_counter()
        future = client.call_async(self._requests[kind][2])
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            raise TimeoutError(f"no answer from {kind} within {timeout:g} s")
        elapsed = (time.perf_counter() - start) * 1e3
        answer = future.result()
        if getattr(answer, "success", True) is not True:
            raise RuntimeError(f"{kind}: {answer.message}")
        return elapsed

    def call_in_turn(self, go_on: Callable[[], bool]) -> dict[str, list[float]]:
        """Ten calls a second, a snapshot now and then; milliseconds by kind."""
        calls: dict[str, list[float]] = defaultdict(list)
        number = 0
        while go_on():
            number += 1
            snapshot = number % CALLS_PER_SNAPSHOT == 0
            kind = "save_snapshot" if snapshot else IN_TURN[number % len(IN_TURN)]
            begun = time.monotonic()
            if (milliseconds := self.call(kind)) is not None:
                calls[kind].append(milliseconds)
            time.sleep(max(0.0, begun + 1 / CALLS_PER_SECOND - time.monotonic()))
        return dict(calls)

    def reload(self) -> tuple[float, dict[str, list[float]]]:
        """Load the bundle anew: how many milliseconds that took, and other calls meanwhile."""
        milliseconds: list[float | None] = []
        thread = threading.Thread(
            target=lambda: milliseconds.append(self.call("reload_bundle", 300))
        )
        thread.start()
        calls = self.call_in_turn(thread.is_alive)
        thread.join()
        return (milliseconds[0] if milliseconds and milliseconds[0] else float("nan")), calls


class Reader:
    """The child of depth_reader.py."""

    def __init__(self, namespace: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "depth_reader.py"), namespace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ages(self) -> list[float]:
        """Of what came since the last call."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write("\n")
        stdin.flush()
        return list(json.loads(stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory in MiB: all of it, and what of it is the process's own (anonymous)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if " kB" in line}
    return {"resident": int(kilobytes["VmRSS"]) / 1024, "own": int(kilobytes["RssAnon"]) / 1024}


@dataclass
class Setup:
    """The processes of one transport."""

    process: Any
    camera: CameraProcess
    reader: Reader
    robot: Robot


@contextlib.contextmanager
def processes(transport: str, arguments: argparse.Namespace) -> Iterator[Setup]:
    """Camera, node and reader, connected and past their first frames."""
    from ros_helpers import NodeProcess

    environment = large_images() if transport == "profile" else {}
    namespace = f"/load_{uuid.uuid4().hex[:8]}"
    film = {"size": arguments.image, "rate": arguments.rate, "speed": SPEED, "poses": True}
    folder = tempfile.mkdtemp(prefix="snapshots_")
    os.environ.update(environment)  # the node inherits it; NodeProcess takes no environment
    try:
        node = NodeProcess(
            namespace=namespace,
            bundle=arguments.bundle,
            backend=arguments.backend,
            threads=arguments.threads,
            time_budget=arguments.time_budget,
            image_reliability="reliable" if transport == "reliable" else "best_effort",
            snapshot_folder=folder,
        )
    finally:
        for name in environment:
            del os.environ[name]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.enter_context(node)
        camera = stack.enter_context(CameraProcess(namespace, environment, **film))
        reader = Reader(namespace, environment)
        stack.callback(reader.close)
        robot = Robot(namespace)
        stack.callback(robot.close)
        deadline = time.monotonic() + 300
        while robot.next_status(300).get("state") != "active":
            if not node.alive or time.monotonic() > deadline:
                raise SystemExit(f"the node does not become active:\n{node.output}")
        time.sleep(WARM_UP)  # discovery, and the first frames
        yield Setup(node, camera, reader, robot)
