"""A USB camera and depth_node: v4l2_camera or usb_cam, whichever is installed.

ros2 launch depth_prior_ros usb_camera.launch.py calibration:=~/camera.yaml

docs/calibration.md: how to calibrate it, and what to do before that.
"""

from __future__ import annotations

from contextlib import suppress

from ament_index_python.packages import get_package_prefix
from launch_ros.actions import Node

from depth_prior_ros.ros import launch_arguments, launching
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

HANDED_ON = launch_arguments.usb_camera_arguments()
ARGUMENTS = [*launch_arguments.USB, *HANDED_ON]


def generate_launch_description() -> LaunchDescription:
    return launching.description(__file__, ARGUMENTS, start)


def start(given: dict[str, str], context: LaunchContext) -> list[LaunchDescriptionEntity]:
    driver = launch_arguments.usb_driver(given["driver"], installed())
    camera = Node(
        package=driver,
        executable=launch_arguments.USB_DRIVERS[driver],
        namespace=given["camera"],
        parameters=[launch_arguments.usb_parameters(driver, given)],
        output="screen",
    )
    return [camera, launching.depth_launch(launching.handed_on(given, HANDED_ON))]


def installed() -> list[str]:
    """The drivers that there are."""
    found = []
    for package in launch_arguments.USB_DRIVERS:
        with suppress(LookupError):
            get_package_prefix(package)
            found.append(package)
    return found
