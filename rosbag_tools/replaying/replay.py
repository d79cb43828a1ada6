"""`depth_bag replay`: a recording played to the real node over DDS, and what came back.

The node runs as a child process in a ROS domain of its own; images go out decoded on
/camera/image_raw with their camera_info and odometry.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import String

from depth_prior_ros.recordings import Frame, Recording, read_frames
from rosbag_tools.replaying.node_process import NodeProcess, ReplayError, use_replay_environment
from rosbag_tools.replaying.play import (
    IMAGE_TOPIC,
    INFO_TOPIC,
    ODOMETRY_TOPIC,
    Sender,
)

__all__ = ["IMAGE_TOPIC", "INFO_TOPIC", "ODOMETRY_TOPIC", "Answer", "Played", "Player"]

_TRIES = 3
_UNANSWERED_IN_A_ROW = 3
_DRAIN_SECONDS = 0.3
_REPORT_SECONDS = 2.0  # the node reports once a second


@dataclass(frozen=True)
class Answer:
    """A depth image that came back, `position` being its frame's place in the recording."""

    position: int
    depth: NDArray[np.float32]
    latency_ms: float
    source_ns: int  # when the node published it


@dataclass
class Played:
    """What happened on the way: frames sent, sent again, and what the node said last."""

    sent: int = 0
    repeated: int = 0
    diagnostics: dict[str, str] | None = None

    @property
    def references(self) -> str:
        """What the node said of its bundle's references; empty before it saw a camera."""
        said = self.diagnostics
        return said.get("references", "") if said and _saw_a_frame(said) else ""


class Player:
    """The rest of the robot: camera and odometry out, depth and diagnostics in.

    `domain_id` is the ROS domain, `node_name` the depth node's name. A context manager.
    """

    def __init__(self, domain_id: int, node_name: str = "depth_node") -> None:
        use_replay_environment()
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self._node = rclpy.create_node("depth_replay", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._changed = threading.Condition()
        self._published_at: dict[int, float] = {}
        self._arrived: dict[int, tuple[Image, float, int]] = {}
        self._models: list[tuple[int, str]] = []
        self._diagnostics: dict[str, str] | None = None
        reliable = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
        latched = QoSProfile(
            depth=10,
            reliability=QoSReliabilityPolicy.RELIABLE,
            durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._sender = Sender(self._node)
        subscribe = self._node.create_subscription
        self._depth_topic = "/depth/image_rect"
        subscribe(Image, self._depth_topic, _with_source_time(self._on_depth), reliable)
        subscribe(String, f"/{node_name}/active_model", _with_source_time(self._on_model), latched)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable)
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.try_shutdown()
        self._thread.join(10)
        self._node.destroy_node()

    def wait_for_node(self, process: NodeProcess, timeout: float) -> None:
        """Until the node is active: it subscribes then. Raises ReplayError if it does not."""
        deadline = time.monotonic() + timeout
        while not (
            self._node.count_publishers(self._depth_topic) and all(self._sender.listeners())
        ):
            process.check()
            if time.monotonic() > deadline:
                raise ReplayError(
                    f"the node was not active after {timeout:.0f} s{process.log_tail()}"
                )
            time.sleep(0.02)

    def lockstep(
        self,
        recording: Recording,
        process: NodeProcess,
        on_answer: Callable[[Answer], None],
        progress: Callable[[int, int], None],
        timeout: float,
    ) -> Played:
        """Send a frame, wait for its depth, send the next one.

        A frame without an answer after `timeout` seconds is sent again, twice; then it counts as
        dropped. Several such frames in a row end the replay with ReplayError.
        """
        played, unanswered = Played(), 0
        for position, image in read_frames(recording):
            frame = recording.frames[position]
            played.sent += 1
            for attempt in range(_TRIES):
                played.repeated += attempt > 0
                self._send(frame, image)
                if self._wait_for(frame.stamp_ns, process, timeout):
                    break
            answer = self._take(position, frame.stamp_ns)
            if answer is None:
                unanswered += 1
                if unanswered == _UNANSWERED_IN_A_ROW or played.sent == 1:
                    raise ReplayError(self._silence(process, frame, timeout))
            else:
                unanswered = 0
                on_answer(answer)
            progress(position + 1, len(recording.frames))
        self._finish(played)
        return played

    def real_time(
        self,
        recording: Recording,
        process: NodeProcess,
        on_answer: Callable[[Answer], None],
        progress: Callable[[int, int], None],
        rate: float,
        timeout: float,
    ) -> Played:
        """Send frames `rate` times as fast as they were recorded, whatever comes back.

        Answers are handed on after the last frame, so that evaluating them costs the node nothing;
        until then they wait in a file, so that a long drive does not fill the memory.
        """
        played, start, last = Played(), None, None
        places: dict[int, int] = {}
        with _Spool() as spool:
            for position, image in read_frames(recording):
                frame = recording.frames[position]
                due = (frame.stamp_ns - recording.frames[0].stamp_ns) / 1e9 / rate
                start = time.perf_counter() - due if start is None else start
                time.sleep(max(0.0, start + due - time.perf_counter()))
                process.check()
                self._send(frame, image)
                places[frame.stamp_ns] = position
                played.sent, last = played.sent + 1, frame.stamp_ns
                self._take_all(places, spool)
                progress(position + 1, len(recording.frames))
            if last is not None:
                self._wait_for(last, process, timeout)
            self._finish(played)
            self._take_all(places, spool)
            for answer in spool:
                on_answer(answer)
        return played

    def model_at(self, source_ns: int) -> tuple[str | None, str | None]:
        """Model and reason that the node had named when it published at that time."""
        before = [text for moment, text in self._models if moment <= source_ns]
        model, _, reason = before[-1].partition(" ") if before else ("", "", "")
        return model or None, reason or None

    def _send(self, frame: Frame, image: NDArray[np.uint8]) -> None:
        message = self._sender.prepare(frame, image)
        self._published_at.setdefault(frame.stamp_ns, time.perf_counter())
        self._sender.publish(message)

    def _wait_for(self, stamp_ns: int, process: NodeProcess, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._changed:
                if self._changed.wait_for(lambda: stamp_ns in self._arrived, 0.5):
                    return True
            process.check()
        return False

    def _take(self, position: int, stamp_ns: int) -> Answer | None:
        with self._changed:
            arrived = self._arrived.pop(stamp_ns, None)
        if arrived is None:
            return None
        message, moment, source_ns = arrived
        latency = (moment - self._published_at[stamp_ns]) * 1e3
        return Answer(position, _depth(message), latency, source_ns)

    def _take_all(self, places: dict[int, int], spool: _Spool) -> None:
        with self._changed:
            stamps = list(self._arrived)
        for stamp in stamps:
            answer = self._take(places[stamp], stamp) if stamp in places else None
            if answer is not None:
                spool.add(answer)

    def _finish(self, played: Played) -> None:
        """Wait for what may still be on its way: topics are not ordered among each other.

        What the node said before its first frame tells nothing of the recording.
        """
        time.sleep(_DRAIN_SECONDS)
        with self._changed:
            self._changed.wait_for(lambda: _saw_a_frame(self._diagnostics or {}), _REPORT_SECONDS)
            played.diagnostics = self._diagnostics

    def _silence(self, process: NodeProcess, frame: Frame, timeout: float) -> str:
        said = self._diagnostics or {}
        return (
            f"no depth for frame {frame.index} after {_TRIES} times {timeout:.0f} s; the node is "
            f"running and says: {said.get('message', 'nothing')}{process.log_tail()}"
        )

    def _on_depth(self, message: Image, source_ns: int) -> None:
        moment = time.perf_counter()
        stamp = message.header.stamp
        with self._changed:
            self._arrived[stamp.sec * 10**9 + stamp.nanosec] = (message, moment, source_ns)
            self._changed.notify_all()

    def _on_model(self, message: String, source_ns: int) -> None:
        self._models.append((source_ns, message.data))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            with self._changed:
                self._diagnostics = {**values, "message": status.message}
                self._changed.notify_all()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return


class _Spool:
    """Answers kept in a file, in the order in which they came."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._answers: list[Answer] = []
        self._shapes: list[tuple[int, int]] = []

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answer: Answer) -> None:
        self._file.write(answer.depth.tobytes())
        height, width = answer.depth.shape
        self._shapes.append((height, width))
        self._answers.append(replace(answer, depth=np.empty((0, 0), np.float32)))

    def __iter__(self) -> Iterator[Answer]:
        self._file.seek(0)
        for answer, shape in zip(self._answers, self._shapes, strict=True):
            data = self._file.read(4 * shape[0] * shape[1])
            yield replace(answer, depth=np.frombuffer(data, np.float32).reshape(shape))


def _saw_a_frame(diagnostics: Mapping[str, str]) -> bool:
    return int(diagnostics.get("inferred", 0)) > 0


def _with_source_time(callback: Callable[[Any, int], None]) -> Callable[..., None]:
    """Hand the time of publishing to a callback; that of arrival where rclpy does not tell."""
    if hasattr(Subscription, "CallbackType"):
        return lambda message, info: callback(message, int(info["source_timestamp"]))
    return lambda message: callback(message, time.time_ns())  # Humble


def _depth(message: Image) -> NDArray[np.float32]:
    """(h, w) float32 metres of a 32FC1 image; raises ReplayError for anything else."""
    if message.encoding != "32FC1":
        raise ReplayError(f"the node published {message.encoding!r} as depth, not '32FC1'")
    order = ">f4" if message.is_bigendian else "<f4"
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = np.ascontiguousarray(rows[:, : 4 * message.width]).view(order)
    return pixels.astype(np.float32, copy=False)
