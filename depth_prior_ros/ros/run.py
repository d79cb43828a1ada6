"""Runs :class:`~.lifecycle_node.DepthNode`, one or several, until the process is interrupted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions, install_signal_handlers

from depth_prior_ros.pipeline.sharing import NetworkPool
from depth_prior_ros.ros import interrupts, launch_arguments
from depth_prior_ros.ros.lifecycle_node import DepthNode
from depth_prior_ros.untrusted import printable, printable_lines

_OPTIONS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
_OPTIONS.add_argument("--cameras", metavar="FILE")
_OPTIONS.add_argument("--below", default="", metavar="NAMESPACE")


def run(args: list[str] | None = None) -> int:
    """Run the node until the context is shut down; returns the exit code.

    ``--cameras FILE`` runs one for each camera of the file (`launch_arguments.read_cameras`): they
    share the networks, whose frames take turns.

    Raises:
        KeyboardInterrupt: for SIGINT, and for SIGTERM before the node spins.

    It is the end of a process: SIGINT and SIGTERM are ignored from its end on.
    """
    nodes: list[DepthNode] = []
    try:
        given = sys.argv[1:] if args is None else list(args)
        options, ros = _OPTIONS.parse_known_args(given)
        cameras = []
        if options.cameras:
            cameras = launch_arguments.as_ros_arguments(Path(options.cameras), options.below)
        # rclpy turns SIGTERM into a wake-up of the executor. While the bundle is being loaded there
        # is none to wake: until then it interrupts as SIGINT does.
        _init(ros if options.cameras else args)
        pool = NetworkPool() if cameras else None
        executor = SingleThreadedExecutor()
        for own in cameras or [[]]:
            node = DepthNode(cli_args=own, pool=pool)
            nodes.append(node)
            if not node.settings.autostart:
                node.get_logger().info("autostart is off: waiting to be configured")
            elif not node.start():
                return 1
            executor.add_node(node)
        install_signal_handlers(SignalHandlerOptions.ALL)
        _spin(executor, nodes)
    except ExternalShutdownException:
        return 0
    except UnicodeEncodeError as error:
        odd = [a for a in (sys.argv[1:] if args is None else args) if not _is_utf8(a)]
        where = printable(", ".join(odd) or error.object, 300)
        print(
            f"depth_node: {where}: not UTF-8 in the locale of this process; set LC_ALL=C.UTF-8",
            file=sys.stderr,
        )
        return 1
    except (OSError, ValueError, ParameterException) as error:
        print(f"depth_node: {printable_lines(error)}", file=sys.stderr)
        return 1
    finally:
        # A frame is ended and the scale stored now, and then the interpreter takes its time.
        interrupts.ignore()
        for node in nodes:
            node.destroy_node()
        # Not rclpy.shutdown: a signal has already shut the context down.
        rclpy.try_shutdown()
        interrupts.ignore()  # rclpy has put back what it found
    return 0


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _init(args: list[str] | None) -> None:
    """Raises ValueError for ROS arguments or parameter files that cannot be read."""
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        raise ValueError(f"the command line cannot be used: {error}") from error


def _spin(executor: SingleThreadedExecutor, nodes: list[DepthNode]) -> None:
    """Spin until the context is shut down; a callback that fails is counted, and ends nothing.

    On a machine under load even publishing may fail: Fast DDS gives a busy writer 100 ms.

    Raises:
        ExternalShutdownException: when the context is shut down.
    """
    while True:
        try:
            executor.spin()
            return
        except ExternalShutdownException:
            raise
        except Exception as error:
            if not nodes[0].context.ok():
                raise ExternalShutdownException from error
            nodes[0].callback_failed(error)  # whose callback it was, the executor does not tell
