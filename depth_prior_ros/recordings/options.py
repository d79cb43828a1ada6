"""Options of a command line that say how a recording is to be read: the same in every tool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from depth_prior_ros.recordings.bag_file import is_bag
from depth_prior_ros.recordings.bag_topics import BagTopics
from depth_prior_ros.recordings.base import RecordingError
from depth_prior_ros.recordings.video import is_video

_TOPICS = ("image", "camera_info", "odom", "depth")


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """Add `--image-topic` and its like, `--rectify` and `--intrinsics`."""
    add = parser.add_argument
    for name in _TOPICS:
        add(
            f"--{name.replace('_', '-')}-topic",
            metavar="TOPIC",
            help="of a bag (default: found by type and name)",
        )
    add(
        "--rectify",
        choices=("auto", "always", "never"),
        default="auto",
        help="images whose calibration has distortion; auto: unless the topic or folder is called "
        "rect or rectified (default: auto)",
    )
    add(
        "--intrinsics",
        metavar="FX,FY,CX,CY|FILE",
        help="of a folder of images, a video, or a bag without camera_info: in pixels of these "
        "images, or a YAML file (also of ROS's camera_calibration)",
    )


def recording_options(path: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    """What `open_recording(path)` is to be given; raises RecordingError for options that are of
    another kind of recording."""
    options: dict[str, Any] = {}
    topics = {name: getattr(parsed, f"{name}_topic", None) for name in _TOPICS}
    intrinsics = getattr(parsed, "intrinsics", None)
    if is_bag(path):
        options.update(topics=BagTopics(**topics), rectify=parsed.rectify)
        if intrinsics is not None:
            options["camera"] = _camera(path, intrinsics)
        return options
    if any(topics.values()):
        raise RecordingError(f"{path}: topics are those of a bag, which this is not")
    from depth_prior_ros.recordings.folder import is_image_folder

    if is_image_folder(path) or is_video(path):
        options.update(rectify=parsed.rectify, **intrinsics_option(path, intrinsics))
    elif intrinsics is not None:
        raise RecordingError(f"{path}: brings its own calibration, --intrinsics is not for it")
    return options


def intrinsics_option(path: Path, text: str | None) -> dict[str, Any]:
    """`camera` or `intrinsics` for images at a path, of FX,FY,CX,CY or the name of a file.

    Raises RecordingError.
    """
    if text is None:
        return {}
    if Path(text).expanduser().is_file():
        return {"intrinsics": Path(text).expanduser()}
    return {"camera": _camera(path, text)}


def _camera(path: Path, text: str) -> Any:
    from depth_prior_ros.recordings.folder import image_size
    from depth_prior_ros.recordings.intrinsics import camera_from_values, read_intrinsics

    try:
        values = [float(value) for value in text.split(",")]
    except ValueError as error:
        if is_bag(path) and Path(text).expanduser().is_file():
            size = _bag_size(path)
            return read_intrinsics(Path(text).expanduser(), size).camera(*size)
        raise RecordingError(f"--intrinsics {text}: neither FX,FY,CX,CY nor a file") from error
    size = _bag_size(path) if is_bag(path) else image_size(path)
    return camera_from_values(values, "pixels", size, "--intrinsics")


def _bag_size(path: Path) -> tuple[int, int]:
    from depth_prior_ros.recordings.bag import images_size

    return images_size(path)
