"""What the node costs besides inference: from the arrival of an image to its published depth.

    python benchmarks/node_overhead.py [--frames 300] [--rounds 3] [--sizes 640x192 320x96]
        [--image 1242x375] [--core 0]

Everything measured is pinned to one core; networks answer at once (instant_networks.py), so that
what is left is the overhead. Two tables for every size of the network's input:

- part by part, in this process, every part with the code that the node runs: view (the message's
  bytes as an array), resize (to the network's input), scale (bytes to floats), metres (network
  units to metres, NaN and Inf), fill (depth to a message), info (camera_info of the depth), publish
  (both messages, with a reader in another process). `check` and `motion` are beside them: the look
  at an image when it arrives, and the motion seen in two pictures where there is no odometry.
- whole, in a real depth_node that a camera process sends images at 20 Hz: the node's own
  diagnostics, from the arrival of an image in its callback until its depth is published, threads
  and locks included. The way of the messages between the processes is not part of it.

Core ms: what a core was kept busy for, which a busy machine does not spoil; of the whole node all
of its threads for one frame, so with the middleware's, which the latencies leave out.

`figure node_overhead_p50_ms` is the sum of the parts at the first size. `figure node_whole_p50_ms`
is the whole there, moving with odometry (the median of the medians of its rounds): with the
change of threads, caches that have gone cold between two images, and the comparison of odometry's
motion with the pictures, which is no network but part of the inference.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "test", ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

PARTS = ("view", "resize", "scale", "metres", "fill", "info", "publish")
BESIDE = ("check", "motion")
RATE = 20.0
MOVING = "moving, odometry"
SPEEDS: dict[str, float | None] = {MOVING: 10.0, "standing, odometry": 0.0, "no odometry": None}
COLUMNS = ("total", "wait", "decode", "infer", "publish")

Size = tuple[int, int]


class Times:
    """Milliseconds by name: of the clock, and of the core that this thread used."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[float]] = defaultdict(list)
        self.used: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start, used = time.perf_counter(), time.thread_time()
        yield
        self.used[name].append((time.thread_time() - used) * 1e3)
        self.by_name[name].append((time.perf_counter() - start) * 1e3)

    def percentile(self, name: str, percent: int, used: bool = False) -> float:
        values = sorted((self.used if used else self.by_name)[name])
        if not values:
            return float("nan")
        return values[min(len(values) - 1, round(percent / 100 * (len(values) - 1)))]


def parts(bundle: Path, image: Size, frames: int, core: int) -> Times:
    """Every part of the way on its own, `frames` times; the first tenth is warming up."""
    import cv2
    import rclpy
    from ros_helpers import camera_info_for, image_message
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import Header

    from depth_prior_ros.images.calibration import Calibration
    from depth_prior_ros.motion.gate import ImageMotion
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.pipeline.framing import frame_image
    from depth_prior_ros.ros import messages
    from depth_prior_ros.ros.messages import check_image, image_to_rgb

    cv2.setNumThreads(1)
    messages_in = [image_message(p, Header()) for p in moving_pictures(image)]
    info = camera_info_for(*image)
    calibration = Calibration.from_message(info)
    camera = calibration.camera(*image)
    pipeline = DepthPipeline(str(bundle), force_model="single_frame")
    trained = pipeline.bundle.manifest.camera
    motion, times = ImageMotion(), Times()
    before = None
    rclpy.init()
    node = rclpy.create_node("overhead", namespace=f"/overhead_{uuid.uuid4().hex[:8]}")
    out = node.create_publisher(Image, "depth", 2)
    info_out = node.create_publisher(CameraInfo, "info", 2)
    with reader(node.get_namespace()) as listens, on_cores({core}):
        while not listens(out):
            time.sleep(0.05)
        for number in range(frames + frames // 10):
            if number == frames // 10:
                times = Times()
            message = messages_in[number % len(messages_in)]
            with times("check"):
                check_image(message)
            with times("view"):
                pixels = image_to_rgb(message)
            with times("resize"):
                framed = frame_image(pixels, camera, trained)
            with times("scale"):
                framed.tensor()
            if before is not None:
                with times("motion"):
                    motion.measure(motion.prepare(before), motion.prepare(framed.pixels))
            before = framed.pixels
            with times("pipeline"):
                result = pipeline.process(pixels, number * 10**8, None, camera)
            times.by_name["metres"].append(result.timings["postprocess"])
            with times("fill"):
                depth = messages.depth_to_image(result.depth, message.header)
            with times("info"):
                region = result.region
                window = (region.x, region.y, region.width, region.height)
                of_depth = calibration.of_depth(image, trained.size, window)
                scaled = messages.camera_info(of_depth, message.header)
            with times("publish"):
                info_out.publish(scaled)
                out.publish(depth)
            time.sleep(0.002)  # the reader takes what was sent; the queue is two messages long
    node.destroy_node()
    rclpy.shutdown()
    return times


def moving_pictures(size: Size) -> list[Any]:
    """Eight views of one texture (H, W, 3), each three pixels on."""
    import numpy as np
    from helpers import texture

    whole = texture(size[0], size[1], margin=32)[32 : 32 + size[1]]
    return [np.ascontiguousarray(whole[:, 3 * k : 3 * k + size[0]]) for k in range(8)]


READER = """
import sys, rclpy
from sensor_msgs.msg import CameraInfo, Image
rclpy.init()
node = rclpy.create_node("reader", namespace=sys.argv[1])
node.create_subscription(Image, "depth", lambda _: None, 2)
node.create_subscription(CameraInfo, "info", lambda _: None, 2)
try:
    rclpy.spin(node)
except BaseException:
    pass
"""


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """This thread, and every process that it starts meanwhile, run there and nowhere else."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def reader(namespace: str) -> Iterator[Callable[[Any], bool]]:
    """Somebody who takes depth, in another process; tells whether a publisher is connected."""
    with subprocess.Popen([sys.executable, "-c", READER, namespace]) as child:
        try:
            yield lambda publisher: publisher.get_subscription_count() > 0
        finally:
            child.terminate()


def whole(bundle: Path, image: Size, speed: float | None, frames: int, core: int) -> dict[str, str]:
    """The node's diagnostics after `frames` images; `speed` None: no odometry."""
    from camera_process import CameraProcess, large_images
    from ros_helpers import NodeProcess, Peer, wait_until

    namespace = f"/overhead_{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        with on_cores({core}):
            file = ROOT / "benchmarks" / "instant_networks.py"
            node = NodeProcess(
                code=f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')",
                namespace=namespace,
                bundle=bundle,
                diagnostics_period=0.2,
                image_reliability="reliable",
                # Whatever else the machine does, the same networks are asked.
                time_budget=0.0,
                max_gap=60.0,
            )
        stack.enter_context(node)
        peer = stack.enter_context(Peer(namespace))
        film = {"size": image, "rate": RATE, "speed": speed, "poses": True}
        stack.enter_context(CameraProcess(namespace, large_images(), **film))
        # Depth may well come before the first diagnostics.
        wait_until(lambda: (peer.depth and peer.status()) or not node.alive, "depth", 120)
        assert node.alive, node.output
        begin = int(peer.status()["inferred"]) + 20
        wait_until(lambda: int(peer.status()["inferred"]) >= begin, "frames", 60 + frames)
        begin, used = int(peer.status()["inferred"]), core_ms(node.process.pid)
        end = begin + frames
        wait_until(lambda: int(peer.status()["inferred"]) >= end, "frames", 60 + frames)
        assert node.alive, node.output
        status = peer.status()
        a_frame = (core_ms(node.process.pid) - used) / (int(status["inferred"]) - begin)
        return {**status, "core_ms": str(a_frame)}


def core_ms(pid: int) -> float:
    """Milliseconds of a core that all threads of a process have used so far."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def size_of(text: str) -> Size:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def report_parts(times: Times) -> float:
    """The table of the parts; the sum of their medians."""
    print(f"  {'part':24}{'p50 ms':>9}{'p95 ms':>9}{'core ms':>9}")

    def row(name: str, title: str) -> None:
        values = times.percentile(name, 50), times.percentile(name, 95)
        core = times.percentile(name, 50, used=True)
        print(f"  {title:24}" + "".join(f"{value:9.3f}" for value in (*values, core)))

    for name in PARTS:
        row(name, name)
    total = sum(times.percentile(name, 50) for name in PARTS)
    print(f"  {'sum of the medians':24}{total:9.3f}")
    for name in BESIDE:
        row(name, f"{name} (beside)")
    return total


def report_whole(name: str, runs: list[dict[str, str]]) -> float:
    """One line with the medians over the rounds; that of `total`."""
    rows = [[float(run[f"latency_ms.{c}.p50"]) for c in COLUMNS] for run in runs]
    p95 = statistics.median(float(run["latency_ms.total.p95"]) for run in runs)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    model = f"{runs[-1]['active_model']} {runs[-1]['reason']}"
    used = statistics.median(float(run["core_ms"]) for run in runs)
    print(f"  {name:24}" + "".join(f"{ms:9.1f}" for ms in (*medians, p95, used)) + f"  {model}")
    return medians[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[(640, 192), (320, 96)])
    parser.add_argument("--image", type=size_of, default=(1242, 375))
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # The others are for whoever sends and takes; on a machine with one core they share it.
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {arguments.core} or {arguments.core})

    from helpers import make_tiny_bundle
    from instant_networks import use_instant_networks

    use_instant_networks()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            name = "{}x{}".format(*size)
            bundle = Path(folder) / name
            make_tiny_bundle(bundle, size)
            wide, high = arguments.image
            print(f"image {wide}x{high} rgb8, depth {name}, one core")
            measured = parts(bundle, arguments.image, arguments.frames, arguments.core)
            figures[name, "parts"] = report_parts(measured)
            print(f"  {'whole node, p50 ms':24}", end="")
            print("".join(f"{c:>9}" for c in COLUMNS), end="")
            print(f"{'tot. p95':>9}{'core ms':>9}")
            for label, speed in SPEEDS.items():
                runs = [
                    whole(bundle, arguments.image, speed, arguments.frames, arguments.core)
                    for _ in range(arguments.rounds)
                ]
                figures[name, label] = report_whole(label, runs)
    first = "{}x{}".format(*arguments.sizes[0])
    print(f"figure node_overhead_p50_ms {figures[first, 'parts']:.2f}")
    print(f"figure node_whole_p50_ms {figures[first, MOVING]:.2f}")


if __name__ == "__main__":
    main()
