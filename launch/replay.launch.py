"""Plays a bag to depth_node and shows both in RViz; ends with the bag, or with RViz.

ros2 launch depth_prior_ros replay.launch.py bag:=drive.mcap scale:=camera_height camera_height:=1.5

Needs no rosbag2: `depth_bag play` reads ROS 1 and ROS 2 bags. For figures instead of pictures:
`depth_bag replay`.
"""

from __future__ import annotations

import os

from launch.actions import EmitEvent, RegisterEventHandler, SetEnvironmentVariable
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from depth_prior_ros.ros import launch_arguments, launching
from depth_prior_ros.ros.launch_arguments import truth
from depth_prior_ros.share import demo_bag, large_images_environment, recording_path
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

HANDED_ON = launch_arguments.replay_arguments()
ARGUMENTS = [*launch_arguments.PLAYER, *HANDED_ON]


def generate_launch_description() -> LaunchDescription:
    return launching.description(__file__, ARGUMENTS, start)


def start(given: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    bag = recording_path(given["bag"]).absolute() if given["bag"] else demo_bag()
    if not bag.exists():
        raise FileNotFoundError(f"bag:={bag}: no such file or folder")
    words = ["play", str(bag), "--rate", given["rate"], "--wait", given["wait"]]
    words += ["--loop"] if truth(given, "loop") else []
    words += ["--clock"] if truth(given, "use_sim_time") else []
    player = Node(
        package="depth_prior_ros",
        executable="depth_bag",
        arguments=words,
        sigterm_timeout=launching.END_SECONDS,
        output="screen",
    )
    node = launching.depth_launch(launching.handed_on(given, HANDED_ON))
    # A full-size image per frame, and points above half a megabyte for RViz: for both of them.
    environment = [
        SetEnvironmentVariable(name, profile)
        for name, profile in large_images_environment().items()
        if name not in os.environ
    ]
    return [RegisterEventHandler(OnProcessExit(on_exit=end_all)), *environment, node, player]


def end_all(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The end of any of them is the end of all: bag played, RViz closed, or the node died."""
    if context.is_shutdown:
        return []
    return [EmitEvent(event=Shutdown(reason=f"{event.process_name} ended"))]
