"""Whoever uses the depth, as a process of its own: how old is it when it arrives?

    python benchmarks/depth_reader.py NAMESPACE

Every line of standard input is answered with JSON: the ages of what came since the line before, in
milliseconds from the stamp (the camera's clock, this machine's) to the callback.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("depth_reader", namespace=sys.argv[1])
    ages: list[float] = []

    def take(message: Image) -> None:
        stamp = message.header.stamp
        ages.append((time.time_ns() - stamp.sec * 10**9 - stamp.nanosec) * 1e-6)

    node.create_subscription(Image, "depth/image_rect", take, 2)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    for _ in sys.stdin:
        count = len(ages)
        print(json.dumps(ages[:count]), flush=True)
        del ages[:count]


if __name__ == "__main__":
    main()
