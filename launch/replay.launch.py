"""Plays a bag to depth_node and shows both in RViz; ends with the bag, or with RViz.

ros2 launch depth_prior_ros replay.launch.py bag:=drive.mcap scale:=odometry

Needs no rosbag2: `depth_bag play` reads ROS 1 and ROS 2 bags. For figures instead of pictures:
`depth_bag replay`.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

SHARE = Path(__file__).resolve().parents[1]
CAMERA = "/camera"

# Of the player.
ARGUMENTS = [
    ("bag", str(SHARE / "drives" / "street.mcap"), "ROS 2 or ROS 1 bag, or a KITTI folder"),
    ("rate", "1.0", "times real time"),
    ("loop", "true", "begin again after the last frame; false ends everything there"),
    ("wait", "600.0", "seconds given to the node to be ready"),
]
# Handed on to depth.launch.py, which explains them.
HANDED_ON = [
    ("bundle", "", "as in depth.launch.py"),
    ("device", "", "as in depth.launch.py"),
    ("backend", "", "as in depth.launch.py"),
    ("params_file", str(SHARE / "config" / "depth.yaml"), "as in depth.launch.py"),
    ("scale", "", "as in depth.launch.py"),
    ("camera_height", "", "as in depth.launch.py"),
    ("namespace", "", "as in depth.launch.py"),
    ("log_level", "info", "as in depth.launch.py"),
    ("use_sim_time", "true", "take the time from the bag"),
    ("rviz", "true", "also start RViz"),
]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in [*ARGUMENTS, *HANDED_ON]
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in [*ARGUMENTS, *HANDED_ON]}
    if not Path(given["bag"]).exists():
        raise FileNotFoundError(f"bag:={given['bag']}: no such file or folder")
    words = ["play", given["bag"], "--rate", given["rate"], "--wait", given["wait"]]
    words += ["--loop"] if given["loop"].lower() in ("true", "1") else []
    words += ["--clock"] if given["use_sim_time"].lower() in ("true", "1") else []
    player = Node(
        package="depth_prior_ros",
        executable="depth_bag",
        arguments=words,
        sigterm_timeout="30",
        output="screen",
    )
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "depth.launch.py")),
        launch_arguments=[
            *((name, given[name]) for name, _, _ in HANDED_ON),
            ("camera", CAMERA),
            # A full-size image per frame, and points above half a megabyte for RViz.
            ("large_images", "true"),
        ],
    )
    return [RegisterEventHandler(OnProcessExit(on_exit=end_all)), node, player]


def end_all(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The end of any of them is the end of all: bag played, RViz closed, or the node died."""
    if context.is_shutdown:
        return []
    return [EmitEvent(event=Shutdown(reason=f"{event.process_name} ended"))]
