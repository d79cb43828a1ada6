"""``depth_node``, the executable: starts :class:`~.lifecycle_node.DepthNode` and ends cleanly.

Imports nothing that takes time, so that a signal finds a handler from the very beginning. The first
SIGINT or SIGTERM ends the process, the next do not disturb the end: service managers signal every
process of a service, and launch hands the signal on that it got itself, so that most nodes hear two
within milliseconds.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

TOGETHER = 1.0
"""Seconds within which a further signal means the same as the one before."""


class _Interrupt:
    """A handler that raises KeyboardInterrupt for the first of several signals."""

    def __init__(self) -> None:
        self._before = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before, self._before = self._before, time.monotonic()
        if self._before - before > TOGETHER:
            raise KeyboardInterrupt


def listen_to_signals() -> None:
    """From now on either signal raises KeyboardInterrupt in the main thread."""
    handler = _Interrupt()
    for number in SIGNALS:
        signal.signal(number, handler)


def ignore_signals() -> None:
    """From now on neither does anything, until the process has ended. In the main thread only."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


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
    listen_to_signals()
    try:
        from depth_prior_ros.ros.run import run

        return run(args)
    except KeyboardInterrupt:
        ignore_signals()
        # Where an import was interrupted inside an exec(), CPython remembers it as unhandled and
        # dies of SIGINT after a clean end. Evaluating anything makes it forget.
        eval("None")
        return 0


if __name__ == "__main__":
    sys.exit(main())
