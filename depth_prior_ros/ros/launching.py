"""What the launch files have in common; the only module that imports launch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource

from depth_prior_ros.ros import launch_arguments
from depth_prior_ros.ros.launch_arguments import Argument
from depth_prior_ros.share import share_dir
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

Start = Callable[[dict[str, str], LaunchContext], list[LaunchDescriptionEntity]]
"""From the arguments' values to what is started."""

END_SECONDS = "30"
"""For `sigterm_timeout`: the end of a frame and a scale to store may take longer than 5 s."""


def description(file: str, arguments: Sequence[Argument], start: Start) -> LaunchDescription:
    """What a launch file's `generate_launch_description` returns.

    Args:
        file: the launch file.
        arguments: that it has; others are refused, which launch itself does not do.
        start: called with their values. Where an action fails, launch ends at once and leaves
            running what others have started: so it checks everything before.
    """

    def checked(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        given = {name: context.launch_configurations[name] for name, _, _ in arguments}
        launch_arguments.refuse_unknown(launch_arguments.typed(sys.argv, file), given, file)
        return start(given, context)

    declared = [
        DeclareLaunchArgument(name, default_value=default, description=words)
        for name, default, words in arguments
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=checked)])


def depth_launch(arguments: Mapping[str, str]) -> IncludeLaunchDescription:
    """depth.launch.py with these arguments."""
    source = PythonLaunchDescriptionSource(str(share_dir() / "launch" / "depth.launch.py"))
    return IncludeLaunchDescription(source, launch_arguments=list(arguments.items()))


def handed_on(given: Mapping[str, str], arguments: Sequence[Argument]) -> dict[str, str]:
    """Of the values those of the arguments that are for depth.launch.py."""
    return {name: given[name] for name, _, _ in arguments}
