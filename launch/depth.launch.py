"""Starts depth_node, and RViz where asked for.

ros2 launch depth_prior_ros depth.launch.py camera:=/front bundle:=lite rviz:=true
"""

from __future__ import annotations

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# launch/ and config/ are neighbours in a checkout and in an installed share/depth_prior_ros alike.
CONFIG = Path(__file__).resolve().parents[1] / "config"
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

ARGUMENTS = [
    ("bundle", "", "name of a shipped bundle or a path; empty: as the parameter file says"),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as the parameter file says"),
    ("backend", "", "auto, torch, openvino or onnxruntime; empty: as the parameter file says"),
    ("params_file", str(CONFIG / "depth.yaml"), "parameter file of the node"),
    ("camera", "/camera", "namespace in which the camera publishes"),
    ("image", "", "image topic; empty: image_raw of the camera"),
    ("camera_info", "", "calibration topic; empty: camera_info of the camera"),
    ("odom", "/odom", "odometry topic"),
    ("namespace", "", "namespace of the node and of the depth that it publishes"),
    ("name", "depth_node", "name of the node"),
    ("autostart", "", "false leaves the lifecycle to a manager; empty: as the parameter file says"),
    ("use_sim_time", "false", "take the time from /clock"),
    ("large_images", "false", "let the node send depth above 512 KB through shared memory"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("rviz", "false", "also start RViz with image and depth"),
]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    # launch itself only warns, and the node would start with defaults.
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"params_file:={given['params_file']}: no such file")
    if given["log_level"] not in LOG_LEVELS:
        raise ValueError(f"log_level:={given['log_level']} is none of {', '.join(LOG_LEVELS)}")
    camera = given["camera"].rstrip("/")
    image = given["image"] or f"{camera}/image_raw"
    camera_info = given["camera_info"] or f"{camera}/camera_info"
    depth = "/".join(["", *parts(given["namespace"]), "depth/image_rect"])
    node = Node(
        package="depth_prior_ros",
        executable="depth_node",
        name=given["name"],
        namespace=given["namespace"],
        parameters=[given["params_file"], overrides(given)],
        remappings=[("image", image), ("camera_info", camera_info), ("odom", given["odom"])],
        arguments=["--ros-args", "--log-level", f"{logger(given)}:={given['log_level']}"],
        additional_env=environment(given),
        output="screen",
    )
    if not truth(given, "rviz"):
        return [node]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "depth.rviz")],
        parameters=[{"use_sim_time": truth(given, "use_sim_time")}],
        remappings=[("/camera/image_raw", image), ("/depth/image_rect", depth)],
    )
    return [node, rviz]


def parts(namespace: str) -> list[str]:
    return [part for part in namespace.split("/") if part]


def logger(given: dict[str, str]) -> str:
    return ".".join([*parts(given["namespace"]), given["name"]])


def overrides(given: dict[str, str]) -> dict[str, str | bool]:
    """What the command line says goes before the parameter file; what it leaves open does not."""
    values: dict[str, str | bool] = {
        name: given[name] for name in ("bundle", "device", "backend") if given[name]
    }
    if given["autostart"]:
        values["autostart"] = truth(given, "autostart")
    values["use_sim_time"] = truth(given, "use_sim_time")
    return values


def environment(given: dict[str, str]) -> dict[str, str]:
    if not truth(given, "large_images"):
        return {}
    profile = str(CONFIG / "fastdds_large_images.xml")
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    return {f"FAST{'RTPS' if old else 'DDS'}_DEFAULT_PROFILES_FILE": profile}


def truth(given: dict[str, str], name: str) -> bool:
    value = given[name].lower()
    if value not in ("true", "false", "1", "0"):
        raise ValueError(f"{name}:={given[name]} must be true or false")
    return value in ("true", "1")
