"""Depth images a second that the quickstart gives: a camera at 10 Hz, the node with its defaults.

    python benchmarks/quickstart.py [--seconds 30] [--rate 10] [--image 1242x375]

Three processes over real DDS: a camera as drivers are (rgb8 on `/front/image_raw`, reliable, a
queue of 5, beside it camera_info and `/odom` of a moving vehicle), depth_node with what

    ros2 launch depth_prior_ros depth.launch.py camera:=/front odom:=/odom

gives it (parameter file and remappings, nothing else), and a reader of the depth. Rows: Fast DDS as
ROS 2 starts without being told anything; with config/fastdds_large_images.xml at all processes;
and a best-effort camera of either kind, whose lost images nobody can bring back.

`figure quickstart_CASE` is depth images a second in the reader, over `--seconds`; `rate` and
`rate_profile` are the camera that is reliable, without and with the profile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "test", ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

from camera_process import CameraProcess, large_images  # noqa: E402
from load_processes import SPEED, WARM_UP, Reader, Robot  # noqa: E402
from node_load import size_of  # noqa: E402

CASES = {
    "rate": (True, False),
    "rate_profile": (True, True),
    "best_effort": (False, False),
    "best_effort_profile": (False, True),
}


def launched(profile: bool) -> list[str]:
    """ROS arguments that depth.launch.py gives the node for the quickstart's command."""
    from depth_prior_ros.ros import launch_arguments

    given = {name: default for name, default, _ in launch_arguments.depth_arguments()}
    given |= {"camera": "/front", "odom": "/odom", "large_images": str(profile).lower()}
    launch_arguments.check(given)
    renamed = [w for a, b in launch_arguments.inputs(given) for w in ("-r", f"{a}:={b}")]
    file = ["--params-file", launch_arguments.parameter_file(given)]
    return [*renamed, *file, *launch_arguments.ros_arguments(given, "")]


def rate(case: str, options: argparse.Namespace) -> tuple[float, float, dict[str, str]]:
    """Images sent and depth images read a second, and the node's last diagnostics."""
    from ros_helpers import NodeProcess

    reliable, profile = CASES[case]
    environment = large_images() if profile else {}
    names = {"image": "image_raw", "odom": "/odom"}
    film = {"size": options.image, "rate": options.rate, "speed": SPEED, "poses": True}
    os.environ.update(environment)  # the node inherits it
    try:
        node = NodeProcess(*launched(profile))
    finally:
        for name in environment:
            del os.environ[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(node)
        camera = stack.enter_context(
            CameraProcess("/front", environment, reliable, names=names, **film)
        )
        reader = Reader("/", environment)
        stack.callback(reader.close)
        robot = Robot("/")
        stack.callback(robot.close)
        while robot.next_status(300).get("state") != "active":
            if not node.alive:
                raise SystemExit(f"the node does not become active:\n{node.output}")
        time.sleep(WARM_UP)  # discovery, and the first frames
        sent, start = camera.sent()["images"], time.monotonic()
        reader.ages()
        time.sleep(options.seconds)
        elapsed = time.monotonic() - start
        depth, images = len(reader.ages()), camera.sent()["images"] - sent
        return images / elapsed, depth / elapsed, robot.next_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=10.0, help="images per second")
    parser.add_argument("--image", type=size_of, default=(1242, 375))
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # The names are a robot's own: out of its way.
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(102, 215)))
    found = {}
    print(f"{'camera and transport':<22}{'sent/s':>8}{'depth/s':>9}  model, dropped")
    for case in options.cases:
        sent, depth, status = rate(case, options)
        found[case] = depth
        model = f"{status['active_model']} {status['reason']}, {status.get('dropped_stale', 0)}"
        print(f"{case:<22}{sent:>8.2f}{depth:>9.2f}  {model}", flush=True)
    for case, depth in found.items():
        print(f"figure quickstart_{case} {depth:.2f}")


if __name__ == "__main__":
    main()
