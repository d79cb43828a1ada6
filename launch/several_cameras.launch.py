"""One depth_node for each camera of a vehicle, as config/several_cameras.yaml lists them.

ros2 launch depth_prior_ros several_cameras.launch.py cameras:=/path/to/cameras.yaml

One process each; with `one_process:=true` one for all, which share one copy of the networks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from depth_prior_ros.ros import launch_arguments
from depth_prior_ros.share import home_path, share_dir
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

DEPTH = str(Path(__file__).resolve().with_name("depth.launch.py"))


def generate_launch_description() -> LaunchDescription:
    cameras = DeclareLaunchArgument(
        "cameras",
        default_value=str(share_dir() / "config" / "several_cameras.yaml"),
        description="file with the cameras: for each a name and arguments of depth.launch.py",
    )
    one_process = DeclareLaunchArgument(
        "one_process",
        default_value="false",
        description="all cameras in one process with one copy of the networks, taking turns",
    )
    return LaunchDescription([cameras, one_process, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    typed = launch_arguments.typed(sys.argv, __file__)
    given = {name: context.launch_configurations[name] for name in ("cameras", "one_process")}
    launch_arguments.refuse_unknown(typed, given, __file__)
    file = home_path(given["cameras"]).absolute()
    if launch_arguments.truth(given, "one_process"):
        below = context.launch_configurations.get("ros_namespace", "")
        launch_arguments.as_ros_arguments(file, below)  # what is wrong with it is said here
        return [together(str(file), below)]
    cameras = launch_arguments.read_cameras(file)
    return [one(arguments) for arguments in cameras.values()]


def together(file: str, below: str) -> Node:
    """The nodes of all cameras in one process."""
    return Node(
        package="depth_prior_ros",
        executable="depth_node",
        arguments=["--cameras", file, *(["--below", below] if below else [])],
        sigterm_timeout="30",  # as in depth.launch.py
        output="screen",
    )


def one(arguments: dict[str, str]) -> GroupAction:
    """The node of one camera; scoped, so that the arguments of one are not those of the next."""
    source = PythonLaunchDescriptionSource(DEPTH)
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=list(arguments.items()))])
