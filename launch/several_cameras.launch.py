"""One depth_node for each camera of a vehicle, as config/several_cameras.yaml lists them.

ros2 launch depth_prior_ros several_cameras.launch.py cameras:=/path/to/cameras.yaml
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

from depth_prior_ros.ros import launch_arguments
from depth_prior_ros.share import share_dir
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

DEPTH = str(Path(__file__).resolve().with_name("depth.launch.py"))


def generate_launch_description() -> LaunchDescription:
    cameras = DeclareLaunchArgument(
        "cameras",
        default_value=str(share_dir() / "config" / "several_cameras.yaml"),
        description="file with the cameras: for each a name and arguments of depth.launch.py",
    )
    return LaunchDescription([cameras, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    typed = launch_arguments.typed(sys.argv, __file__)
    launch_arguments.refuse_unknown(typed, ["cameras"], __file__)
    cameras = launch_arguments.read_cameras(Path(context.launch_configurations["cameras"]))
    return [one(arguments) for arguments in cameras.values()]


def one(arguments: dict[str, str]) -> GroupAction:
    """The node of one camera; scoped, so that the arguments of one are not those of the next."""
    source = PythonLaunchDescriptionSource(DEPTH)
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=list(arguments.items()))])
