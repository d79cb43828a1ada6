"""One depth_node for each camera of a vehicle, as config/several_cameras.yaml lists them.

ros2 launch depth_prior_ros several_cameras.launch.py cameras:=/path/to/cameras.yaml

One process each; with `one_process:=true` one for all, which share one copy of the networks.
"""

from __future__ import annotations

from launch.actions import GroupAction
from launch_ros.actions import Node

from depth_prior_ros.ros import launch_arguments, launching
from depth_prior_ros.share import home_path
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity


def generate_launch_description() -> LaunchDescription:
    return launching.description(__file__, launch_arguments.several_cameras_arguments(), start)


def start(given: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    file = home_path(given["cameras"]).absolute()
    if launch_arguments.truth(given, "one_process"):
        below = context.launch_configurations.get("ros_namespace", "")
        launch_arguments.as_ros_arguments(file, below)  # what is wrong with it is said here
        return [together(str(file), below)]
    cameras = launch_arguments.read_cameras(file)
    # Scoped, so that the arguments of one are not those of the next.
    return [GroupAction([launching.depth_launch(own)]) for own in cameras.values()]


def together(file: str, below: str) -> Node:
    """The nodes of all cameras in one process."""
    return Node(
        package="depth_prior_ros",
        executable="depth_node",
        arguments=["--cameras", file, *(["--below", below] if below else [])],
        sigterm_timeout=launching.END_SECONDS,
        output="screen",
    )
