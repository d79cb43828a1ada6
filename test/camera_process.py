"""A camera as a process of its own, which can be killed, and do wrong what cameras do wrong.

For tests and `benchmarks/node_load.py`. The parent uses :class:`CameraProcess`; this file run as a
program is the child. They speak lines of JSON: a line that goes in changes what is sent from the
next image on, or asks for malformed messages; each is answered with what was sent so far.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FRAME = "camera_optical_frame"


@dataclass
class Film:
    """What the camera sends.

    size: (width, height) of the rgb8 images. rate: images per second; 0: paused. count: images left
    to send, -1 without end. info: `good`, `none`, or a kind of `malformed.INFO`. speed: m/s on
    `odom` beside every image, None for no odometry. poses: whether `odom` has poses that go on with
    that speed. shift: pixels by which the picture moves from
    image to image. stamp: of the next image in nanoseconds, None for the clock's. step: nanoseconds
    from stamp to stamp where they are not the clock's; 0: as the rate says. loop: images after
    which stamps start over, as of a bag that loops; 0: never. clock: whether /clock is sent.
    compressed: whether images go as JPEG to `image/compressed`.
    """

    size: tuple[int, int] = (384, 128)
    rate: float = 10.0
    count: int = -1
    info: str = "good"
    speed: float | None = None
    poses: bool = False
    shift: int = 3
    stamp: int | None = None
    step: int = 0
    loop: int = 0
    clock: bool = False
    compressed: bool = False

    def changed(self, values: dict[str, Any]) -> Film:
        """With other values, as they come out of JSON."""
        unknown = values.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"no such setting: {unknown}")
        merged = {**vars(self), **values}
        return Film(**{**merged, "size": tuple(merged["size"])})


class CameraProcess:
    """The camera as a child; killed at the end whatever happens.

    Args:
        namespace: of its topics `image`, `camera_info`, `odom`.
        environment: added to this process's.
        reliable, depth: its QoS; a reliable camera serves best-effort nodes as well. A burst is
            not cut short by the sender where `depth` is as long.
        names: other names of its topics.
        film: fields of :class:`Film`.
    """

    def __init__(
        self,
        namespace: str,
        environment: dict[str, str] | None = None,
        reliable: bool = True,
        depth: int = 5,
        names: dict[str, str] | None = None,
        **film: Any,
    ) -> None:
        qos = {"reliable": reliable, "depth": depth}
        options = {"namespace": namespace, "qos": qos, "film": film}
        renamed = [word for a, b in (names or {}).items() for word in ("-r", f"{a}:={b}")]
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options), "--ros-args", *renamed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        self.pid = self._process.pid

    def __enter__(self) -> CameraProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def film(self, **changes: Any) -> dict[str, Any]:
        """Send something else from the next image on; what was sent before, as :meth:`sent`."""
        return self._ask({"film": changes})

    def sent(self) -> dict[str, Any]:
        """`images`, `stamp` (of the last one, ns), `late` (times the rate was not held), `failed`
        (messages that the middleware did not take), `subscribers` (of the images).
        """
        return self._ask({})

    def burst(self, kind: str, count: int, rate: float = 0.0) -> dict[str, Any]:
        """Send `count` malformed messages between the images, and wait until they are sent.

        rate: messages per second; 0: as fast as it can.
        """
        return self._ask({"burst": [kind, count, rate]})

    def kill(self) -> None:
        """End without a word, as a camera whose cable was pulled."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def close(self, timeout: float = 30.0) -> int:
        """End as a program ends; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(timeout)

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the camera ended with exit code {self._process.wait()}")
        return dict(json.loads(answer))


def large_images() -> dict[str, str]:
    """The environment that gives a process room for large images in Fast DDS's shared memory."""
    file = Path(__file__).resolve().parents[1] / "config" / "fastdds_large_images.xml"
    try:
        old = int(importlib.metadata.version("ros-rclpy").split(".")[0]) < 9  # before Kilted
    except importlib.metadata.PackageNotFoundError:
        old = os.environ.get("ROS_DISTRO", "") in ("humble", "iron", "jazzy")
    return {f"FAST{'RTPS' if old else 'DDS'}_DEFAULT_PROFILES_FILE": str(file)}


class _Camera:
    """The child: publishes, and asks its mailbox between two messages what to do next."""

    def __init__(self, namespace: str, film: Film, reliable: bool, depth: int) -> None:
        import rclpy
        from nav_msgs.msg import Odometry
        from rclpy.qos import QoSProfile, QoSReliabilityPolicy
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        rclpy.init()
        self._film = film
        self._began = 0  # stamp of the first pose
        self._node = rclpy.create_node("camera", namespace=namespace)
        policy = QoSReliabilityPolicy
        self._qos = QoSProfile(
            depth=depth, reliability=policy.RELIABLE if reliable else policy.BEST_EFFORT
        )
        self._topics: dict[str, Any] = {}
        self._image = self._publisher("image", Image)
        self._info = self._publisher("camera_info", CameraInfo)
        self._odometry = self._publisher("odom", Odometry)
        self._compressed = self._publisher("image/compressed", CompressedImage)
        self._clock = self._publisher("/clock", Clock) if film.clock else None
        self._pictures: list[Any] = []
        self._pictures_of: tuple[Any, ...] = ()
        self._first_stamp = film.stamp
        self._sent = self._in_loop = self._late = self._failed = self._stamp = 0

    def _publisher(self, topic: str, kind: type) -> Any:
        if topic not in self._topics:
            self._topics[topic] = self._node.create_publisher(kind, topic, self._qos)
        return self._topics[topic]

    def _publish(self, publisher: Any, message: Any) -> bool:
        try:
            publisher.publish(message)
        except RuntimeError:  # RCLError: on a machine under load, a writer's lock was not free
            self._failed += 1
            return False
        return True

    def run(self, commands: deque[str], wake: threading.Event, ended: threading.Event) -> None:
        """Until standard input ends; images are due at equal distances."""
        due = time.monotonic()
        while not ended.is_set():
            while commands:
                due = self._obey(json.loads(commands.popleft()), due)
            if self._film.rate <= 0 or self._film.count == 0:
                wake.wait(0.05)
                wake.clear()
                due = time.monotonic()
                continue
            if wake.wait(max(0.0, due - time.monotonic())):
                wake.clear()
                continue
            due = self._shoot(due)

    def _shoot(self, due: float) -> float:
        """Send an image; when the next one is due."""
        self._send_image()
        interval = 1 / self._film.rate
        now = time.monotonic()
        if now > due + interval:
            self._late += 1
            return now
        return due + interval

    def _obey(self, command: dict[str, Any], due: float) -> float:
        if "film" in command:
            self._film = self._film.changed(command["film"])
            if "stamp" in command["film"]:
                self._first_stamp, self._in_loop = self._film.stamp, 0
        if "burst" in command:
            due = self._burst(*command["burst"], due)
        answer = {
            "images": self._sent,
            "stamp": self._stamp,
            "late": self._late,
            "failed": self._failed,
            "subscribers": sum(
                publisher.get_subscription_count() for publisher in (self._image, self._compressed)
            ),
        }
        print(json.dumps(answer), flush=True)
        return due

    def _burst(self, kind: str, count: int, rate: float, due: float) -> float:
        from malformed import KINDS

        wrong = KINDS[kind]
        publisher = self._publisher(wrong.topic, wrong.message)
        start = time.monotonic()
        for number in range(count):
            if rate > 0:
                time.sleep(max(0.0, start + number / rate - time.monotonic()))
            message = wrong.build(self._header(self._stamp), self._film.size)
            while not self._publish(publisher, message):
                pass  # so many are promised
            if self._film.rate > 0 and time.monotonic() >= due:
                due = self._shoot(due)
        return due

    def _next_stamp(self) -> int:
        film = self._film
        if self._first_stamp is None:
            return time.time_ns()
        if film.loop and self._in_loop >= film.loop:
            self._in_loop = 0
        step = film.step or round(1e9 / film.rate)
        stamp = self._first_stamp + self._in_loop * step
        self._in_loop += 1
        return stamp

    def _send_image(self) -> None:
        film, stamp = self._film, self._next_stamp()
        self._stamp = stamp
        header = self._header(stamp)
        if self._clock is not None:
            self._send_clock(header.stamp)
        if film.speed is not None:
            self._send_odometry(header, film.speed, stamp)
        if film.info != "none":
            self._send_info(header)
        message = self._picture()
        message.header = header
        publisher = self._compressed if film.compressed else self._image
        self._sent += self._publish(publisher, message)
        if film.count > 0:
            film.count -= 1

    def _header(self, stamp: int) -> Any:
        from builtin_interfaces.msg import Time
        from std_msgs.msg import Header

        return Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id=FRAME)

    def _send_clock(self, stamp: Any) -> None:
        from rosgraph_msgs.msg import Clock

        assert self._clock is not None
        self._publish(self._clock, Clock(clock=stamp))

    def _send_odometry(self, header: Any, speed: float, stamp: int) -> None:
        from nav_msgs.msg import Odometry

        message = Odometry()
        message.header.stamp, message.header.frame_id = header.stamp, "odom"
        message.twist.twist.linear.x = float(speed)
        if self._film.poses:
            self._began = self._began or stamp
            message.pose.pose.position.x = speed * (stamp - self._began) * 1e-9
        self._publish(self._odometry, message)

    def _send_info(self, header: Any) -> None:
        from malformed import INFO, good_info

        if self._film.info == "good":
            message = good_info(*self._film.size)
            message.header = header
        else:
            message = INFO[self._film.info].build(header, self._film.size)
        self._publish(self._info, message)

    def _picture(self) -> Any:
        """One of eight messages made in advance, each `shift` pixels further to the left."""
        film = self._film
        key = (film.size, film.shift, film.compressed)
        if self._pictures_of != key:
            self._pictures, self._pictures_of = _pictures(*key), key
        return self._pictures[self._sent % len(self._pictures)]


def _pictures(size: tuple[int, int], shift: int, compressed: bool) -> list[Any]:
    import cv2
    import numpy as np
    from sensor_msgs.msg import CompressedImage, Image

    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    whole = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    messages = []
    for number in range(8):
        pixels = np.ascontiguousarray(np.roll(whole, -number * shift, axis=1))
        if compressed:
            message = CompressedImage(format="rgb8; jpeg compressed bgr8")
            message.data.frombytes(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
        else:
            message = Image(width=width, height=height, encoding="rgb8", step=3 * width)
            message.data.frombytes(pixels.tobytes())
        messages.append(message)
    return messages


def main() -> None:
    """The child: options as JSON in the first argument, commands as lines of standard input."""
    options = json.loads(sys.argv[1])
    commands: deque[str] = deque()
    wake, ended = threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            commands.append(line)
            wake.set()
        ended.set()
        wake.set()

    threading.Thread(target=listen, daemon=True).start()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    camera = _Camera(options["namespace"], Film().changed(options["film"]), **options["qos"])
    camera.run(commands, wake, ended)


if __name__ == "__main__":
    main()
