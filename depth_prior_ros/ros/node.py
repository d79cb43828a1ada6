"""``depth_node``, the executable: starts :class:`~.lifecycle_node.DepthNode` and ends cleanly.

Imports nothing that takes time, so that a signal finds a handler from the very beginning.
"""

from __future__ import annotations

import sys

from depth_prior_ros.ros import interrupts

USAGE = """usage: depth_node [--cameras FILE [--below NAMESPACE]]
                  [--ros-args -p NAME:=VALUE ... -r FROM:=TO ... --params-file FILE]

Camera images in (image, camera_info, odom), metric depth out (depth/image_rect, ...), as a ROS 2
lifecycle node. Parameters are explained in config/depth.yaml; with them unchanged the node loads
the bundle `lite` and starts by itself. With --cameras there is a node for each camera of a file
such as config/several_cameras.yaml, in this process, sharing one copy of the networks. For
arguments in words: ros2 launch depth_prior_ros depth.launch.py --show-args"""


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; returns the exit code.

    0 after SIGINT, SIGTERM or a shutdown of the context; 1 where the parameters are wrong or, with
    ``autostart``, where the bundle cannot be loaded.
    """
    given = sys.argv[1:] if args is None else args
    if "-h" in given or "--help" in given:
        print(USAGE)
        return 0
    interrupts.listen()
    try:
        from depth_prior_ros.ros.run import run

        return run(args)
    except KeyboardInterrupt:
        interrupts.ignore()
        # Where an import was interrupted inside an exec(), CPython remembers it as unhandled and
        # dies of SIGINT after a clean end. Evaluating anything makes it forget.
        eval("None")
        return 0


if __name__ == "__main__":
    sys.exit(main())
