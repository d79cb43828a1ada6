"""One depth_node for each camera of a vehicle, as config/several_cameras.yaml lists them.

ros2 launch depth_prior_ros several_cameras.launch.py cameras:=/path/to/cameras.yaml
"""

from __future__ import annotations

import runpy
from pathlib import Path

import yaml
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

SHARE = Path(__file__).resolve().parents[1]
CAMERAS = SHARE / "config" / "several_cameras.yaml"
ONE = str(SHARE / "launch" / "depth.launch.py")


def generate_launch_description() -> LaunchDescription:
    cameras = DeclareLaunchArgument(
        "cameras",
        default_value=str(CAMERAS),
        description="file with the cameras: for each a name and arguments of depth.launch.py",
    )
    return LaunchDescription([cameras, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    path = Path(context.launch_configurations["cameras"])
    depth = runpy.run_path(ONE)
    defaults = {name: default for name, default, _ in depth["ARGUMENTS"]}
    cameras = read(path)
    for name, arguments in cameras.items():
        try:
            # All of them before the first is started.
            depth["check"]({**defaults, **arguments}, context)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return [one(arguments) for arguments in cameras.values()]


def read(path: Path) -> dict[str, dict[str, str]]:
    """Launch arguments by camera; those under `all` hold for every camera that has none of its own.

    Raises:
        ValueError: for a file that is not as config/several_cameras.yaml explains.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("cameras"), dict):
        raise ValueError(f"{path}: needs a table `cameras`, as in {CAMERAS}")
    shared = content.get("all") or {}
    known = {argument for argument, _, _ in runpy.run_path(ONE)["ARGUMENTS"]}
    cameras = {}
    for name, own in content["cameras"].items():
        if "namespace" in {**shared, **(own or {})}:
            raise ValueError(f"{path}: {name}: leave namespace out, it is the camera's name")
        arguments = {"camera": f"/{name}", **shared, **(own or {}), "namespace": str(name)}
        if unknown := sorted(set(arguments) - known):
            # launch would ignore them without a word.
            raise ValueError(f"{path}: {name}: depth.launch.py has no {', '.join(unknown)}")
        cameras[str(name)] = {key: text(value) for key, value in arguments.items()}
    return cameras


def text(value: object) -> str:
    """As it would be typed on the command line: YAML's booleans are not Python's."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def one(arguments: dict[str, str]) -> GroupAction:
    """The node of one camera; scoped, so that the arguments of one are not those of the next."""
    source = PythonLaunchDescriptionSource(ONE)
    return GroupAction([IncludeLaunchDescription(source, launch_arguments=list(arguments.items()))])
