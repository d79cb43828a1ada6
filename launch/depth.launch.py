"""Starts depth_node, and RViz where asked for.

ros2 launch depth_prior_ros depth.launch.py camera:=/front bundle:=lite rviz:=true
"""

from __future__ import annotations

from launch.actions import LogInfo
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from depth_prior_ros.ros import launch_arguments, launching
from depth_prior_ros.ros.launch_arguments import truth
from depth_prior_ros.share import large_images_environment, share_dir
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

ARGUMENTS = launch_arguments.depth_arguments()


def generate_launch_description() -> LaunchDescription:
    return launching.description(__file__, ARGUMENTS, start)


def start(given: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    launch_arguments.check(given)
    pushed = context.launch_configurations.get("ros_namespace", "")
    below = launch_arguments.absolute(pushed, given["namespace"])
    variable = large_images_environment() if truth(given, "large_images") else {}
    # Typed: launch would take the string '1' for a number.
    values = {
        name: ParameterValue(value, value_type=type(value))
        for name, value in launch_arguments.parameter_values(given).items()
    }
    node = Node(
        package="depth_prior_ros",
        executable="depth_node",
        name=given["name"],
        namespace=given["namespace"],
        # A file of no parameters at all would not be read.
        parameters=[launch_arguments.parameter_file(given), *([values] if values else [])],
        remappings=launch_arguments.inputs(given),
        arguments=["--ros-args", *launch_arguments.ros_arguments(given, below)],
        additional_env=variable,
        sigterm_timeout=launching.END_SECONDS,
        output="screen",
    )
    messages = [
        LogInfo(
            msg="large_images: what counts is the sender. Set this where the camera driver or "
            f"bag player is started, too:\n  export {name}={profile}"
        )
        for name, profile in variable.items()
    ]
    return [node, *messages, *(viewer(given, below) if truth(given, "rviz") else [])]


def viewer(given: dict[str, str], below: str) -> list[LaunchDescriptionEntity]:
    """RViz, and the active model as a text that it can show."""
    sim_time = []
    if given["use_sim_time"]:
        sim_time = [{"use_sim_time": truth(given, "use_sim_time")}]
    text = Node(
        package="depth_prior_ros",
        executable="depth_model_text",
        namespace=given["namespace"],
        parameters=sim_time,
        remappings=[("active_model", f"{below}/{given['name']}/active_model")],
    )
    shown = {
        "parameters": sim_time,
        "remappings": launch_arguments.viewed(given, below),
        "output": "screen",
    }
    config = ["-d", str(share_dir() / "config" / "depth.rviz")]
    if given["camera_frame"]:
        arguments = [*config, "-f", given["camera_frame"]]
        return [text, Node(package="rviz2", executable="rviz2", arguments=arguments, **shown)]
    arguments = [launch_arguments.rviz_program(), *config]
    waiting = Node(package="depth_prior_ros", executable="depth_rviz", arguments=arguments, **shown)
    return [text, waiting]
