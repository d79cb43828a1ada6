"""Starts depth_node, and RViz where asked for.

ros2 launch depth_prior_ros depth.launch.py camera:=/front bundle:=lite rviz:=true
"""

from __future__ import annotations

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import SubstitutionFailure
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# launch/ and config/ are neighbours in a checkout and in an installed share/depth_prior_ros alike.
CONFIG = Path(__file__).resolve().parents[1] / "config"
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
# These know the old name of the variable only; later ones warn about it.
OLD_DISTRIBUTIONS = ("humble", "iron", "jazzy")

ARGUMENTS = [
    ("bundle", "", "name of a shipped bundle or a path; empty: as the parameter file says"),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as the parameter file says"),
    ("backend", "", "auto, or a backend of docs/choice.md; empty: as the parameter file says"),
    ("params_file", str(CONFIG / "depth.yaml"), "parameter file of the node"),
    ("camera", "/camera", "namespace in which the camera publishes"),
    ("image", "", "image topic, without /compressed; empty: image_raw of the camera"),
    ("camera_info", "", "calibration topic; empty: camera_info of the camera"),
    ("image_transport", "", "raw or compressed; empty: as the parameter file says"),
    ("odom", "/odom", "odometry topic"),
    ("twist", "/twist", "topic of TwistStamped, where there is no odometry"),
    ("twist_with_covariance", "/twist_with_covariance", "the same, TwistWithCovarianceStamped"),
    ("scale", "", "fixed, camera_height, odometry or none; empty: as the parameter file says"),
    ("camera_height", "", "metres from the road to the camera, for scale:=camera_height"),
    ("namespace", "", "namespace of the node and of the depth that it publishes"),
    ("name", "depth_node", "name of the node"),
    ("autostart", "", "false leaves the lifecycle to a manager; empty: as the parameter file says"),
    ("use_sim_time", "", "take the time from /clock; empty: as the parameter file says"),
    ("large_images", "false", "messages above 512 KB through shared memory (docs/large_images.md)"),
    ("enclave", "", "SROS 2 enclave of the node (docs/security.md)"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    ("rviz", "false", "also start RViz with image, depth, points and active model"),
    ("camera_frame", "camera_optical_frame", "frame_id of the images, for RViz to look from"),
]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    check(given, context)
    pushed = context.launch_configurations.get("ros_namespace", "")
    given["below"] = absolute(pushed, given["namespace"])
    variable = profile_variable(given)
    values = overrides(given)
    node = Node(
        package="depth_prior_ros",
        executable="depth_node",
        name=given["name"],
        namespace=given["namespace"],
        # A file of no parameters at all would not be read.
        parameters=[given["params_file"], *([values] if values else [])],
        remappings=inputs(given),
        arguments=["--ros-args", *ros_arguments(given)],
        additional_env=variable,
        # It ends the frame under way and stores the scale; 5 s, the default, may be too short.
        sigterm_timeout="30",
        output="screen",
    )
    actions: list[LaunchDescriptionEntity] = [node]
    for name, profile in variable.items():
        actions.append(
            LogInfo(
                msg="large_images: what counts is the sender. Set this where the camera driver or "
                f"bag player is started, too:\n  export {name}={profile}"
            )
        )
    return [*actions, *viewer(given)] if truth(given, "rviz") else actions


def check(given: dict[str, str], context: LaunchContext) -> None:
    """Refuse what cannot be started, before anything is.

    Where an action fails, launch ends at once and leaves running what other actions have started.

    Raises:
        ValueError, FileNotFoundError: saying which argument is wrong.
    """
    # launch itself only warns, and the node would start with defaults.
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"params_file:={given['params_file']}: no such file")
    if given["log_level"] not in LOG_LEVELS:
        raise ValueError(f"log_level:={given['log_level']} is none of {', '.join(LOG_LEVELS)}")
    overrides(given)
    truth(given, "large_images")
    if truth(given, "rviz"):
        try:
            ExecutableInPackage("rviz2", "rviz2").perform(context)
        except (LookupError, SubstitutionFailure) as error:
            raise FileNotFoundError("RViz (package rviz2) is not installed: rviz:=false") from error


def viewer(given: dict[str, str]) -> list[LaunchDescriptionEntity]:
    """RViz, and the active model as a text that it can show."""
    below, sim_time = given["below"], []
    if given["use_sim_time"]:
        sim_time = [{"use_sim_time": truth(given, "use_sim_time")}]
    text = Node(
        package="depth_prior_ros",
        executable="depth_model_text",
        namespace=given["namespace"],
        parameters=sim_time,
        remappings=[("active_model", f"{below}/{given['name']}/active_model")],
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "depth.rviz"), "-f", given["camera_frame"]],
        parameters=sim_time,
        remappings=shown(given, below),
    )
    return [text, rviz]


def shown(given: dict[str, str], below: str) -> list[tuple[str, str]]:
    """Where the topics of depth.rviz are to be had."""
    relative = given["scale"] == "none"  # then depth is not called metres
    topics = {
        "image_rect": "relative" if relative else "image_rect",
        "points": "relative/points" if relative else "points",
        "colour": "colour",
        "model_text": "model_text",
    }
    # RViz shows raw images; image_transport's republisher makes them where there are none.
    camera = ("/camera/image_raw", dict(inputs(given))["image"])
    return [camera, *((f"/depth/{k}", f"{below}/depth/{v}") for k, v in topics.items())]


def inputs(given: dict[str, str]) -> list[tuple[str, str]]:
    """Where the node's inputs are to be had."""
    camera = given["camera"].rstrip("/")
    return [
        ("image", given["image"] or f"{camera}/image_raw"),
        ("camera_info", given["camera_info"] or f"{camera}/camera_info"),
        *((name, given[name]) for name in ("odom", "twist", "twist_with_covariance")),
    ]


def ros_arguments(given: dict[str, str]) -> list[str]:
    level = ["--log-level", f"{logger(given)}:={given['log_level']}"]
    return [*level, "--enclave", given["enclave"]] if given["enclave"] else level


def parts(namespace: str) -> list[str]:
    return [part for part in namespace.split("/") if part]


def absolute(pushed: str, namespace: str) -> str:
    """The namespace in full, empty for /; a relative one is below what PushRosNamespace pushed."""
    above = [] if namespace.startswith("/") else parts(pushed)
    return "".join(f"/{part}" for part in [*above, *parts(namespace)])


def logger(given: dict[str, str]) -> str:
    return ".".join([*parts(given["below"]), given["name"]])


def overrides(given: dict[str, str]) -> dict[str, str | bool | float]:
    """What the command line says goes before the parameter file; what it leaves open does not."""
    plain = ("bundle", "device", "backend", "image_transport")
    values: dict[str, str | bool | float] = {name: given[name] for name in plain if given[name]}
    if given["scale"]:
        values["scale.mode"] = given["scale"]
    if given["camera_height"]:
        values["scale.camera_height"] = number(given, "camera_height")
    if given["autostart"]:
        values["autostart"] = truth(given, "autostart")
    if given["use_sim_time"]:
        values["use_sim_time"] = truth(given, "use_sim_time")
    return values


def profile_variable(given: dict[str, str]) -> dict[str, str]:
    """The environment variable that names the profile for large images, where it is asked for."""
    if not truth(given, "large_images"):
        return {}
    old = os.environ.get("ROS_DISTRO") in OLD_DISTRIBUTIONS
    name = f"FAST{'RTPS' if old else 'DDS'}_DEFAULT_PROFILES_FILE"
    return {name: str(CONFIG / "fastdds_large_images.xml")}


def number(given: dict[str, str], name: str) -> float:
    try:
        return float(given[name])
    except ValueError:
        raise ValueError(f"{name}:={given[name]} must be a number") from None


def truth(given: dict[str, str], name: str) -> bool:
    value = given[name].lower()
    if value not in ("true", "false", "1", "0"):
        raise ValueError(f"{name}:={given[name]} must be true or false")
    return value in ("true", "1")
