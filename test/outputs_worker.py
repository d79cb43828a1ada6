"""A lifecycle node that publishes known depth through `Outputs`, in a process of its own.

Frame i has the stamp i * 50 ms and the depth of `result_of(i)`. What was made, and who listens, is
told as JSON on the topic `told` with every frame.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header, String

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import Region
from depth_prior_ros.pipeline.results import DepthResult
from depth_prior_ros.ros.messages import camera_info_of
from depth_prior_ros.ros.outputs.publishers import Outputs
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.scale import ScaleStatus

FRAME = "camera_optical_frame"
PERIOD_NS = 50_000_000
HEIGHT, WALL = 1.6, 9.0  # metres: of the camera over its road, and to a wall on the left
CAMERA = Camera(40.0, 38.0, 23.5, 10.25, 48, 20)


def result_of(i: int, confidence: bool = True, relative: bool = False) -> DepthResult:
    """Depth that differs from frame to frame, over a road, with sky, a wall, a hole and so on."""
    rng = np.random.default_rng(i)
    depth = rng.uniform(2, 70, (20, 48)).astype(np.float32)
    depth[12:] = HEIGHT / ((np.arange(12, 20) - CAMERA.cy) / CAMERA.fy)[:, np.newaxis]
    depth[8:16, 5:13] = WALL
    depth[:3] = math.inf
    depth[10, 7] = math.nan
    sure = rng.random(depth.shape).astype(np.float32)
    state = "none" if relative else "measured"
    return DepthResult(
        depth=depth,
        model="multi_frame",
        reason="moving",
        timings={},
        camera=CAMERA,
        stamp_ns=i * PERIOD_NS,
        region=Region(0, 0, 48, 20),
        confidence=sure if confidence else None,
        rgb=rng.integers(0, 256, (20, 48, 3), dtype=np.uint8),
        scale=ScaleStatus(
            "none" if relative else "odometry", state, 9.5, None if relative else 0.04, 12, "words"
        ),
    )


def header_of(i: int) -> Header:
    header = Header(frame_id=FRAME)
    header.stamp.sec, header.stamp.nanosec = divmod(i * PERIOD_NS, 10**9)
    return header


def main(relative: bool, **settings: Any) -> None:
    """Publish until the process is ended; settings as of `Settings`."""
    rclpy.init()
    node = LifecycleNode("depth_node")
    outputs = Outputs(node, Settings(**settings), metres=not relative)
    told = node.create_publisher(String, "told", 10)
    node.trigger_configure()
    node.trigger_activate()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    i = 0
    while rclpy.ok():
        i += 1
        wanted = outputs.wanted()
        result = result_of(i, "confidence" in wanted, relative)
        outputs.publish(header_of(i), camera_info_of(CAMERA, Header()), result)
        told.publish(
            String(data=json.dumps({"frames": i, "wanted": sorted(wanted), **outputs.counts}))
        )
        executor.spin_once(timeout_sec=0)
        time.sleep(0.02)
