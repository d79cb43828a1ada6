"""A USB camera and depth_node: v4l2_camera or usb_cam, whichever is installed.

ros2 launch depth_prior_ros usb_camera.launch.py calibration:=~/camera.yaml

docs/calibration.md: how to calibrate it, and what to do before that.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from ament_index_python.packages import get_package_prefix
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from depth_prior_ros.ros import launch_arguments
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

DEPTH = str(Path(__file__).resolve().with_name("depth.launch.py"))
HANDED_ON = launch_arguments.usb_camera_arguments()
ARGUMENTS = [*launch_arguments.USB, *HANDED_ON]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    launch_arguments.refuse_unknown(launch_arguments.typed(sys.argv, __file__), given, __file__)
    driver = launch_arguments.usb_driver(given["driver"], installed())
    camera = Node(
        package=driver,
        executable=launch_arguments.USB_DRIVERS[driver],
        namespace=given["camera"],
        parameters=[launch_arguments.usb_parameters(driver, given)],
        output="screen",
    )
    depth = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(DEPTH),
        launch_arguments=[(name, given[name]) for name, _, _ in HANDED_ON],
    )
    return [camera, depth]


def installed() -> list[str]:
    """The drivers that there are."""
    found = []
    for package in launch_arguments.USB_DRIVERS:
        with suppress(LookupError):
            get_package_prefix(package)
            found.append(package)
    return found
