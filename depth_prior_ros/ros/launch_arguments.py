"""Arguments of the launch files: which there are, and what becomes of them.

Knows nothing of launch, so that launch files consist of actions and this of functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from depth_prior_ros import strict_yaml
from depth_prior_ros.ros.parameters import PARAMETERS, Value, nearest
from depth_prior_ros.share import home_path, share_dir

Argument = tuple[str, str, str]
"""Name, default, what it is."""

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

SHORT = {"scale": "scale.mode", "camera_height": "scale.camera_height"}
"""Arguments that stand for a parameter of a longer name."""

PLAYER: tuple[Argument, ...] = (
    ("bag", "", "ROS 2 or ROS 1 bag, or a KITTI folder; empty: the embedded drive"),
    ("rate", "1.0", "times real time"),
    ("loop", "true", "begin again after the last frame; false ends everything there"),
    ("wait", "600.0", "seconds given to the node to be ready"),
)
"""What replay.launch.py plays, and how."""

_OF_A_PROCESS = ("rviz", "camera_frame", "large_images", "enclave", "log_level")

USB: tuple[Argument, ...] = (
    ("driver", "auto", "auto (the first that is installed), v4l2_camera or usb_cam"),
    ("video_device", "/dev/video0", "the camera"),
    ("size", "640x480", "of its images, WIDTHxHEIGHT"),
    ("calibration", "", "file that camera_calibration wrote; empty: none yet"),
    ("frame", "camera_optical_frame", "frame_id of its images"),
)
"""How usb_camera.launch.py starts the camera."""

USB_DRIVERS = {"v4l2_camera": "v4l2_camera_node", "usb_cam": "usb_cam_node_exe"}
"""Packages of USB cameras and their programs."""

_AS_FILE = "empty: as the parameter file says"


def depth_arguments() -> list[Argument]:
    """The arguments of depth.launch.py: those below, and every parameter of the node."""
    return [
        ("params_file", str(share_dir() / "config" / "depth.yaml"), "parameter file of the node"),
        ("camera", "/camera", "namespace in which the camera publishes"),
        ("image", "", "image topic, without /compressed; empty: image_raw of the camera"),
        ("camera_info", "", "calibration topic; empty: camera_info of the camera"),
        ("odom", "/odom", "odometry topic"),
        ("twist", "/twist", "topic of TwistStamped, where there is no odometry"),
        ("twist_with_covariance", "/twist_with_covariance", "same, TwistWithCovarianceStamped"),
        ("namespace", "", "namespace of the node and of the depth that it publishes"),
        ("name", "depth_node", "name of the node"),
        ("use_sim_time", "", f"take the time from /clock; {_AS_FILE}"),
        ("large_images", "false", "messages above 512 KB through shared memory"),
        ("enclave", "", "SROS 2 enclave of the node"),
        ("log_level", "info", ", ".join(LOG_LEVELS)),
        ("rviz", "false", "also start RViz with image, depth, points and active model"),
        ("camera_frame", "", "frame for RViz to show; empty: that of the first depth image"),
        *((short, "", f"short for {name}; {_AS_FILE}") for short, name in SHORT.items()),
        *((d.name, "", f"{d.text} {_AS_FILE.capitalize()}.") for d in PARAMETERS),
    ]


def replay_arguments() -> list[Argument]:
    """The arguments of depth.launch.py that replay.launch.py hands on.

    All but those that say where the camera is: that is its own player.
    """
    own = {"camera_info", "camera", "image", "odom", "twist", "twist_with_covariance"}
    defaults = {"use_sim_time": "true", "rviz": "true"}
    return [
        (name, defaults.get(name, default), text)
        for name, default, text in depth_arguments()
        if name not in own | {"large_images"}
    ]


def usb_camera_arguments() -> list[Argument]:
    """The arguments of depth.launch.py that usb_camera.launch.py hands on."""
    own = {"image", "camera_info", "camera_frame"}
    return [argument for argument in depth_arguments() if argument[0] not in own]


def several_cameras_arguments() -> list[Argument]:
    """The arguments of several_cameras.launch.py."""
    example = str(share_dir() / "config" / "several_cameras.yaml")
    one_process = "all cameras in one process with one copy of the networks, taking turns"
    return [
        (
            "cameras",
            example,
            "file with the cameras: for each a name and arguments of depth.launch.py",
        ),
        ("one_process", "false", one_process),
    ]


def usb_driver(chosen: str, installed: Iterable[str]) -> str:
    """The package that reads the camera.

    Args:
        chosen: `auto` or a package.
        installed: packages of `USB_DRIVERS` that are.

    Raises:
        ValueError: there is no such driver.
        FileNotFoundError: it is not installed, or none is.
    """
    if chosen not in ("auto", *USB_DRIVERS):
        raise ValueError(f"driver:={chosen} is none of auto, {', '.join(USB_DRIVERS)}")
    there = set(installed)
    found = [name for name in USB_DRIVERS if name in there and chosen in ("auto", name)]
    if found:
        return found[0]
    wanted = " or ".join(USB_DRIVERS) if chosen == "auto" else chosen
    package = (next(iter(USB_DRIVERS)) if chosen == "auto" else chosen).replace("_", "-")
    hint = f"apt install ros-$ROS_DISTRO-{package}"
    raise FileNotFoundError(f"no driver for USB cameras: {wanted} is not installed ({hint})")


def usb_parameters(driver: str, given: Mapping[str, str]) -> dict[str, object]:
    """Parameters of the camera's driver.

    Raises:
        ValueError: for a size that is none.
        FileNotFoundError: for a calibration that is not there.
    """
    width, _, height = given["size"].partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) * int(height) > 0):
        raise ValueError(f"size:={given['size']} must be WIDTHxHEIGHT, such as 640x480")
    size = [int(width), int(height)]
    values: dict[str, object] = {"video_device": given["video_device"]}
    if given["calibration"]:
        file = home_path(given["calibration"]).absolute()
        if not file.is_file():
            raise FileNotFoundError(f"calibration:={file}: no such file")
        values["camera_info_url"] = f"file://{file}"
    if driver == "usb_cam":
        return {
            **values,
            "image_width": size[0],
            "image_height": size[1],
            "frame_id": given["frame"],
        }
    return {**values, "image_size": size, "camera_frame_id": given["frame"]}


def typed(words: Sequence[str], file: str) -> list[str]:
    """Names of the arguments in ``ros2 launch ... FILE NAME:=VALUE ...``.

    Args:
        words: of the command line.
        file: a launch file. Where another one is started, which includes it, there are none: then
            all arguments are those of the other.
    """
    names = [Path(word).name for word in words]
    if Path(file).name not in names:
        return []
    rest = words[names.index(Path(file).name) + 1 :]
    return [word.split(":=")[0] for word in rest if ":=" in word]


def refuse_unknown(names: Iterable[str], known: Iterable[str], file: str) -> None:
    """Launch itself ignores arguments that a launch file does not have.

    Raises:
        ValueError: names the first of them, and the most similar one that there is.
    """
    allowed = list(known)
    for name in names:
        if name not in allowed:
            raise ValueError(f"{Path(file).name} has no argument {name}{nearest(name, allowed)}")


def check(given: Mapping[str, str]) -> None:
    """Refuse what cannot be started, before anything is.

    Raises:
        ValueError, FileNotFoundError: saying which argument is wrong.
    """
    parameter_file(given)
    if given["log_level"] not in LOG_LEVELS:
        raise ValueError(f"log_level:={given['log_level']} is none of {', '.join(LOG_LEVELS)}")
    parameter_values(given)
    truth(given, "large_images")
    if truth(given, "rviz"):
        rviz_program()


def parameter_file(given: Mapping[str, str]) -> str:
    """The parameter file's absolute path.

    Raises:
        FileNotFoundError: launch itself only warns, and the node would start with defaults.
    """
    file = home_path(given["params_file"]).absolute()
    if not file.is_file():
        raise FileNotFoundError(f"params_file:={file}: no such file")
    return str(file)


def rviz_program() -> str:
    """The path of RViz.

    Raises:
        FileNotFoundError: it is not installed.
    """
    from ament_index_python.packages import get_package_prefix

    try:
        return str(Path(get_package_prefix("rviz2")) / "lib" / "rviz2" / "rviz2")
    except LookupError as error:
        raise FileNotFoundError("RViz (package rviz2) is not installed: rviz:=false") from error


def parameter_values(given: Mapping[str, str]) -> dict[str, Value]:
    """What the command line says of parameters, which goes before the parameter file.

    Raises:
        ValueError: saying which value is wrong.
    """
    values: dict[str, Value] = {}
    for declared in PARAMETERS:
        names = [declared.name, *(short for short, name in SHORT.items() if name == declared.name)]
        texts = {name: given[name] for name in names if given.get(name)}
        if len(texts) > 1:
            raise ValueError(f"{' and '.join(texts)} are the same: give one of them")
        for name, text in texts.items():
            try:
                values[declared.name] = declared.parse(text)
            except ValueError as error:
                reason = (
                    str(error).removeprefix(f"{declared.name} ").removesuffix(f", not {text!r}")
                )
                raise ValueError(f"{name}:={text} {reason}") from None
    if given.get("use_sim_time"):
        values["use_sim_time"] = truth(given, "use_sim_time")
    return values


def read_cameras(path: Path) -> dict[str, dict[str, str]]:
    """Arguments of depth.launch.py by camera, all of them checked.

    What stands under `all` in the file holds for every camera that has none of its own.

    Raises:
        ValueError: for a file that is not as config/several_cameras.yaml explains.
        OSError: it cannot be read.
    """
    path = home_path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"cameras:={path}: no such file")
    try:
        content = strict_yaml.read(path)
    except strict_yaml.YamlError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("cameras"), dict):
        example = share_dir() / "config" / "several_cameras.yaml"
        raise ValueError(f"{path}: needs a table `cameras`, as in {example}")
    defaults = {name: default for name, default, _ in depth_arguments()}
    cameras = {}
    for name, own in content["cameras"].items():
        said = {**(content.get("all") or {}), **(own or {})}
        try:
            if "namespace" in said:
                raise ValueError("leave namespace out, it is the camera's name")
            refuse_unknown(said, defaults, "depth.launch.py")
            given = {key: _as_typed(value) for key, value in said.items()}
            cameras[str(name)] = {"camera": f"/{name}", **given, "namespace": str(name)}
            check({**defaults, **cameras[str(name)]})
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return cameras


def as_ros_arguments(path: Path, pushed: str = "") -> list[list[str]]:
    """The ROS arguments of a node for each camera of a file, for one process with all of them.

    What depth.launch.py makes of the same arguments, but those that are of a process.

    Args:
        path: see `read_cameras`.
        pushed: namespace that all of them are in.

    Raises:
        ValueError, OSError: as `read_cameras`, and for what is a process's.
    """
    defaults = {name: default for name, default, _ in depth_arguments()}
    nodes = []
    for name, own in read_cameras(path).items():
        given = {**defaults, **own}
        if of_process := [n for n in _OF_A_PROCESS if given[n] != defaults[n]]:
            raise ValueError(
                f"{path}: {name}: {of_process[0]} is of a process, and these cameras share one; "
                "set it where the process is started"
            )
        below = absolute(pushed, given["namespace"])
        words = ["-r", f"__ns:={below or '/'}", "-r", f"__node:={given['name']}"]
        words += ["--params-file", parameter_file(given)]
        for key, value in parameter_values(given).items():
            words += ["-p", f"{key}:={json.dumps(value)}"]
        for here, there in inputs(given):
            words += ["-r", f"{here}:={there}"]
        nodes.append(["--ros-args", *words])
    return nodes


def _as_typed(value: object) -> str:
    """As it would be typed on the command line: YAML's booleans are not Python's."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def inputs(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """Where the node's inputs come from, as remappings."""
    camera = given["camera"].rstrip("/")
    return [
        ("image", given["image"] or f"{camera}/image_raw"),
        ("camera_info", given["camera_info"] or f"{camera}/camera_info"),
        *((name, given[name]) for name in ("odom", "twist", "twist_with_covariance")),
    ]


def viewed(given: Mapping[str, str], below: str) -> list[tuple[str, str]]:
    """Where the topics of config/depth.rviz come from, as remappings.

    Args:
        given: the arguments.
        below: namespace of the node in full.
    """
    metres = parameter_values(given).get("scale.mode") != "none"
    topics = {
        "image_rect": "image_rect" if metres else "relative",
        "points": "points" if metres else "relative/points",
        "colour": "colour",
        "camera_info": "camera_info",
        "model_text": "model_text",
    }
    # RViz shows raw images; image_transport's republisher makes them where there are none.
    camera = ("/camera/image_raw", dict(inputs(given))["image"])
    return [camera, *((f"/depth/{k}", f"{below}/depth/{v}") for k, v in topics.items())]


def absolute(pushed: str, namespace: str) -> str:
    """The namespace in full, empty for /; a relative one is below what PushRosNamespace pushed."""
    above = "" if namespace.startswith("/") else pushed
    return "".join(f"/{part}" for part in f"{above}/{namespace}".split("/") if part)


def ros_arguments(given: Mapping[str, str], below: str) -> list[str]:
    """Log level, of the node alone, and enclave."""
    logger = ".".join([*below.split("/")[1:], given["name"]])
    level = ["--log-level", f"{logger}:={given['log_level']}"]
    return [*level, "--enclave", given["enclave"]] if given["enclave"] else level


def truth(given: Mapping[str, str], name: str) -> bool:
    """A truth value.

    Raises:
        ValueError: for another word.
    """
    value = given[name].lower()
    if value not in ("true", "false", "1", "0"):
        raise ValueError(f"{name}:={given[name]} must be true or false")
    return value in ("true", "1")
