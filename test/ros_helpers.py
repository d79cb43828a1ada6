"""A real ``depth_node`` in its own process and somebody to talk to it over DDS, for tests.

Nothing here sleeps for a fixed time: everything waits on a condition and says what it waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from forked_process import ForkedProcess
from geometry_msgs.msg import Twist, TwistWithCovariance, Vector3
from helpers import shifted, texture
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.ros.messages import camera_info_of, image_to_depth
from rosbag_tools.replaying.play import publish

FRAME = "camera_optical_frame"
RELIABLE = QoSProfile(depth=10)
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


PATIENCE = 100.0
"""Seconds that anything may take: machines that run tests are busy."""

LOCKSTEP = {"sync_wait": 5.0, "time_budget": 0.0}
"""For tests about what is answered: on a busy machine a camera_info may well be delivered a while
after its image, and frames take longer than the camera's interval."""

BUNDLE_SIZE = (96, 32)
IMAGE_SIZE = (384, 128)
STEP = 10**8  # 10 Hz


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first true value of ``condition``.

    Raises:
        AssertionError: after ``timeout`` seconds, naming ``what`` was waited for.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.005)
    return value


def stamp_of(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def nanoseconds_of(stamp: Time) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


class NodeProcess:
    """``depth_node`` as a child; killed at the end whatever happens.

    Args:
        parameters: for the command line.
        namespace: of the node.
        arguments: further ROS arguments, such as ``-r image:=/camera/image_raw``.
        code: Python to run instead of the node, for a node with something replaced in it.
        fresh: from Python's start on, for what starts and ends; otherwise, in a test, the imports
            are shared.
    """

    def __init__(
        self,
        *arguments: str,
        code: str | None = None,
        namespace: str = "/",
        fresh: bool = False,
        **parameters: Any,
    ) -> None:
        # A file, not a pipe: nobody needs to read it for the child to go on.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        run = ["-c", code] if code else ["-m", "depth_prior_ros.ros.node"]
        values = [("-p", f"{k}:={_yaml(v)}") for k, v in parameters.items()]
        flat = [word for pair in values for word in pair]
        program = [*run, "--ros-args", "-r", f"__ns:={namespace}", *flat, *arguments]
        root = Path(__file__).resolve().parents[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | ForkedProcess
        # A script's main module would be run once more by what forks.
        if fresh or "PYTEST_CURRENT_TEST" not in os.environ:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=root,
                env=environment,
            )
        else:
            self.process = ForkedProcess(program, self._log, root, environment)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()

    @property
    def output(self) -> str:
        """What the node has printed so far."""
        self._log.flush()
        with Path(f"/proc/self/fd/{self._log.fileno()}").open() as log:
            return log.read()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def interrupt(self, number: int = signal.SIGINT, timeout: float = PATIENCE) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextlib.contextmanager
def node_and_peer(*arguments: str, **options: Any) -> Iterator[tuple[NodeProcess, Peer]]:
    """A node and a peer in a namespace of their own, out of the way of all others.

    Args:
        arguments: as for :class:`NodeProcess`.
        options: likewise; those of :data:`LOCKSTEP` unless given.
    """
    options = {**LOCKSTEP, **options}
    namespace = f"/test_{uuid.uuid4().hex[:12]}"
    with (
        NodeProcess(*arguments, namespace=namespace, **options) as process,
        Peer(namespace) as peer,
    ):
        yield process, peer


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Quoted: an empty string, or a path that looks like a number, stays a string.
    return f'"{value}"' if isinstance(value, (str, Path)) else repr(value)


class SpunNode:
    """A node of the test's own, in a context of its own; a thread spins it from `start` on."""

    def __init__(self, name: str, namespace: str = "/") -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node(name, namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def start(self) -> None:
        """Once everything is subscribed to."""
        self._thread.start()

    def _spin(self) -> None:
        while self._context.ok():
            # A test's own thread may destroy what is just being waited for: then it goes on.
            with contextlib.suppress(ExternalShutdownException, InvalidHandle):
                self._executor.spin()

    def close(self) -> None:
        self._context.try_shutdown()
        self._thread.join(10)
        self.node.destroy_node()


class Peer(SpunNode):
    """The rest of the robot: publishes camera and odometry, records what the node answers."""

    def __init__(
        self, namespace: str = "/", node: str = "depth_node", *, publishes: bool = True
    ) -> None:
        super().__init__("test_peer", namespace)
        # /diagnostics is shared by all nodes: theirs are told apart by name.
        self._status_name = f"{namespace.strip('/')}/{node}: depth".lstrip("/")
        self.depth: list[Image] = []
        self.info: list[CameraInfo] = []
        self.models: list[str] = []
        self.diagnostics: list[DiagnosticArray] = []
        self._told: list[Any] = []
        if publishes:
            publisher = self.node.create_publisher
            self.image_publisher = publisher(Image, "image", RELIABLE)
            self.info_publisher = publisher(CameraInfo, "camera_info", RELIABLE)
            self.odometry_publisher = publisher(Odometry, "odom", RELIABLE)
            self._told = [self.image_publisher, self.info_publisher, self.odometry_publisher]
        subscribe = self.node.create_subscription
        self._heard = [
            subscribe(Image, "depth/image_rect", self.depth.append, RELIABLE),
            subscribe(CameraInfo, "depth/camera_info", self.info.append, RELIABLE),
        ]
        subscribe(String, f"{node}/active_model", lambda m: self.models.append(m.data), LATCHED)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        self.start()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        if message.status[0].name == self._status_name:
            self.diagnostics.append(message)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_node(self, process: Any, timeout: float = 2 * PATIENCE) -> None:
        """Until node and peer are connected both ways.

        A publisher that sees its subscriber may still not be seen by it, or the other way round,
        and what is sent then is lost. So both are asked; the node tells in its diagnostics.

        Args:
            process: a :class:`NodeProcess`, or anything ``alive`` with an ``output``.
            timeout: seconds.
        """
        heard_before = len(self.diagnostics)

        def connected() -> bool:
            assert process.alive, f"the node ended early:\n{process.output}"
            status = self.status() if len(self.diagnostics) > heard_before else {}
            inputs = [status.get(f"publishers.{n}", "0") for n in ("image", "camera_info", "odom")]
            outputs = [status.get(f"subscribers.{n}", "0") for n in ("depth", "info", "model")]
            told = all(publisher.get_subscription_count() for publisher in self._told)
            heard = all(map(_publisher_count, self._heard))
            return "0" not in inputs + outputs and told and heard

        try:
            wait_until(connected, "the node to be connected", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{process.output}") from error

    def send(
        self,
        pixels: np.ndarray,
        stamp: int,
        *,
        info: CameraInfo | None = None,
        speed: float | None = None,
        encoding: str = "rgb8",
    ) -> None:
        """Odometry (where given), calibration and image with one stamp in nanoseconds."""
        header = Header(stamp=stamp_of(stamp), frame_id=FRAME)
        if speed is not None:
            self.send_odometry(speed, stamp)
        height, width = pixels.shape[:2]
        info = info or camera_info_for(width, height)
        info.header = header
        publish(self.info_publisher, info)
        publish(self.image_publisher, image_message(pixels, header, encoding))

    def send_odometry(self, speed: float, stamp: int) -> None:
        header = Header(stamp=stamp_of(stamp), frame_id="odom")
        twist = TwistWithCovariance(twist=Twist(linear=Vector3(x=speed)))
        publish(self.odometry_publisher, Odometry(header=header, twist=twist))

    def answer(self, stamp: int, timeout: float = PATIENCE) -> Image:
        """The depth image with that stamp."""

        def found() -> Image | None:
            matching = (m for m in self.depth if nanoseconds_of(m.header.stamp) == stamp)
            return next(matching, None)

        return wait_until(found, f"depth for stamp {stamp}", timeout)

    def status(self) -> dict[str, str]:
        """The newest diagnostics as a dictionary, with ``level`` and ``message``."""
        if not self.diagnostics:
            return {}
        status = self.diagnostics[-1].status[0]
        values = {pair.key: pair.value for pair in status.values}
        return {**values, "level": str(status.level[0]), "message": status.message}

    def call(self, kind: type, name: str, request: Any, timeout: float = PATIENCE) -> Any:
        """Call a service of the node and return its answer."""
        with self.client(kind, name) as client:
            return wait_for_future(client.call_async(request), name, timeout)

    @contextlib.contextmanager
    def client(self, kind: type, name: str) -> Iterator[Any]:
        """A connected service client."""
        client = self.node.create_client(kind, name)
        try:
            assert client.wait_for_service(PATIENCE), f"no service {name}"
            yield client
        finally:
            self.node.destroy_client(client)


def _publisher_count(subscription: Any) -> int:
    count = getattr(subscription, "get_publisher_count", lambda: 1)  # not in Humble
    return int(count())


def wait_for_future(future: Any, what: str, timeout: float = PATIENCE) -> Any:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(timeout), f"no answer from {what} within {timeout:g} s"
    return future.result()


def camera_info_for(width: int, height: int) -> CameraInfo:
    """Calibration of a plausible road camera."""
    camera = Camera(0.58 * width, 0.58 * width, width / 2, height / 2, width, height)
    return camera_info_of(camera, Header(frame_id=FRAME))


def image_message(pixels: np.ndarray, header: Header, encoding: str = "rgb8") -> Image:
    """An unpadded image message of HxWxC (or HxW) uint8 pixels."""
    height, width = pixels.shape[:2]
    message = Image(header=header, width=width, height=height, encoding=encoding)
    message.step = pixels.size // height
    message.data.frombytes(np.ascontiguousarray(pixels).tobytes())
    return message


@dataclass
class Robot:
    """A node, a peer, and a clock for stamps that no other test of the same node has used."""

    process: NodeProcess
    peer: Peer
    stamp: int = 0

    def after_a_gap(self) -> int:
        self.stamp += 100 * 10**9
        return self.stamp

    def next_stamp(self) -> int:
        self.stamp += STEP
        return self.stamp

    def told(self, *models: str) -> None:
        """Wait until the active model went through exactly these."""
        try:
            wait_until(lambda: self.peer.models == list(models), "the active model")
        except AssertionError:
            assert self.peer.models == list(models)
            raise

    def answered(self, pixels: np.ndarray, **sent: object) -> np.ndarray:
        """Send a picture with the next stamp; the depth that comes back."""
        stamp = self.next_stamp()
        self.peer.send(pixels, stamp, **sent)
        return image_to_depth(self.peer.answer(stamp))

    def refused(self, cause: str) -> int:
        return int(self.peer.status().get(f"refused.{cause}", 0))

    def set(self, **values: object) -> list:
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        request = SetParameters.Request(parameters=parameters)
        return self.peer.call(SetParameters, "depth_node/set_parameters", request).results


PICTURE = texture(*IMAGE_SIZE)


def view(shift: float = 0.0) -> np.ndarray:
    return shifted(PICTURE, shift)
