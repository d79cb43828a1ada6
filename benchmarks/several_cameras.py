"""Two cameras in one process against a process each: memory, and depth images a second.

    python benchmarks/several_cameras.py [--cameras 2] [--seconds 20] [--rate 5] [--image 640x192]

Cameras, nodes and readers are processes of their own over real DDS (the nodes of the second row
share one, `depth_node --cameras FILE`), all on the cores that there are; both rows in one run, one
after the other. Memory: resident, of the nodes' processes together, at the end. Share: pages that
several processes map count in each of them, as resident memory does.

`figure several_cameras_memory_share` and `_rate_share` are one process over a process each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "test", ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

from camera_process import CameraProcess, large_images  # noqa: E402
from load_processes import SPEED, WARM_UP, Reader, Robot, memory_of  # noqa: E402
from node_load import size_of  # noqa: E402

CAMERAS_IN_ONE = """
import sys
from depth_prior_ros.ros.node import main
sys.exit(main(["--cameras", {file!r}]))
"""


def measure(together: bool, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Resident MiB of all nodes, and depth images a second of each camera."""
    from ros_helpers import NodeProcess

    environment = large_images()
    os.environ.update(environment)  # the nodes inherit it
    above = f"/load_{uuid.uuid4().hex[:8]}"
    names = [f"camera_{number}" for number in range(options.cameras)]
    film = {"size": options.image, "rate": options.rate, "speed": SPEED, "poses": True}
    with contextlib.ExitStack() as stack:
        if together:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            lines = [
                f"  {above}/{name}: {{image: {above}/{name}/image, camera: {above}/{name}, "
                f"odom: {above}/{name}/odom}}\n"
                for name in names
            ]
            file = folder / "cameras.yaml"
            file.write_text("cameras:\n" + "".join(lines))
            nodes = [NodeProcess(code=CAMERAS_IN_ONE.format(file=str(file)))]
        else:
            nodes = [NodeProcess(namespace=f"{above}/{name}") for name in names]
        for node in nodes:
            stack.enter_context(node)
        readers = []
        for name in names:
            stack.enter_context(CameraProcess(f"{above}/{name}", environment, **film))
            readers.append(Reader(f"{above}/{name}", environment))
            stack.callback(readers[-1].close)
            robot = Robot(f"{above}/{name}")
            stack.callback(robot.close)
            while robot.next_status(300).get("state") != "active":
                if not all(node.alive for node in nodes):
                    raise SystemExit(f"a node ended:\n{nodes[0].output}")
        time.sleep(WARM_UP)
        for reader in readers:
            reader.ages()
        start = time.monotonic()
        time.sleep(options.seconds)
        elapsed = time.monotonic() - start
        rates = [len(reader.ages()) / elapsed for reader in readers]
        return sum(memory_of(node.process.pid)["resident"] for node in nodes), rates


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=5.0, help="images per second of each camera")
    parser.add_argument("--image", type=size_of, default=(640, 192))
    options = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    print(f"{'':<18}{'MiB':>8}  depth images a second, by camera")
    found = {}
    for name, together in (("a process each", False), ("one process", True)):
        memory, rates = found[name] = measure(together, options)
        print(f"{name:<18}{memory:>8.0f}  {'  '.join(f'{rate:.2f}' for rate in rates)}", flush=True)
    (apart, each), (shared, together_rates) = found["a process each"], found["one process"]
    print(f"figure several_cameras_memory_share {shared / apart:.3f}")
    print(f"figure several_cameras_rate_share {sum(together_rates) / sum(each):.3f}")


if __name__ == "__main__":
    main()
