"""``depth_rviz``: RViz, opened in the frame of the first depth image.

    depth_rviz RVIZ2 [ARGUMENT ...] [--ros-args ...]

waits for ``/depth/camera_info``, which comes with every depth image, and then becomes the program
RVIZ2, with ``-f FRAME`` before the other arguments. In another frame RViz would need a transform,
which a camera by itself does not have. Started by ``depth.launch.py``.
"""

from __future__ import annotations

import os
import sys

import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import CameraInfo

from depth_prior_ros.ros.qos import qos

TOPIC = "/depth/camera_info"


def first_frame(args: list[str]) -> str | None:
    """The frame of the first depth image; None where it was interrupted before.

    Args:
        args: with remappings of :data:`TOPIC`.
    """
    frames: list[str] = []
    try:
        rclpy.init(args=args)
        node = rclpy.create_node("depth_rviz")
        node.create_subscription(
            CameraInfo, TOPIC, lambda info: frames.append(info.header.frame_id), qos(1, False)
        )
        node.get_logger().info("RViz opens with the first depth image; camera_frame:=FRAME at once")
        while not frames:
            rclpy.spin_once(node)
        node.destroy_node()
    except (KeyboardInterrupt, ExternalShutdownException):
        return None
    finally:
        rclpy.try_shutdown()
    return frames[0]


def main() -> int:
    """Become RViz; the exit code where that is not to be: 0 interrupted, 2 without a program."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: depth_rviz RVIZ2 [ARGUMENT ...] [--ros-args ...]", file=sys.stderr)
        return 2
    frame = first_frame(sys.argv)
    if frame is not None:
        program, *arguments = sys.argv[1:]
        os.execvp(program, [program, "-f", frame, *arguments])
    return 0


if __name__ == "__main__":
    sys.exit(main())
