"""Options of a command line that say how a recording is to be read: the same in every tool.

Not among the recordings, so that a command line is built without importing what reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.share import home_path

if TYPE_CHECKING:
    from depth_prior_ros.geometry.camera import Camera

_TOPICS = ("image", "camera_info", "odom", "depth")


def intrinsics(text: str) -> str:
    """FX,FY,CX,CY in pixels, or the name of a YAML or JSON file: the type of an argument."""
    if Path(text).suffix.lower() not in (".yaml", ".yml", ".json"):
        try:
            _, _, _, _ = (float(value) for value in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text} is neither FX,FY,CX,CY nor a YAML or JSON file"
            ) from error
    return text


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
        type=intrinsics,
        metavar="FX,FY,CX,CY|FILE",
        help="of a folder of images, a video, or a bag without camera_info: in pixels of these "
        "images, or a YAML file (also of ROS's camera_calibration)",
    )


def recording_options(path: Path, parsed: Any) -> dict[str, Any]:
    """What `open_recording(path)` is to be given.

    parsed: a namespace, or whatever has its names. Raises RecordingError for options that are of
    another kind of recording.
    """
    from depth_prior_ros.recordings import RecordingError, is_bag
    from depth_prior_ros.recordings.bag_topics import BagTopics
    from depth_prior_ros.recordings.base import is_video

    options: dict[str, Any] = {}
    topics = {name: getattr(parsed, f"{name}_topic", None) for name in _TOPICS}
    intrinsics = getattr(parsed, "intrinsics", None)
    if is_bag(path):
        options.update(topics=BagTopics(**topics), rectify=parsed.rectify)
        if intrinsics is not None:
            options.update(_of_bag(path, intrinsics))
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
    """`camera` or `intrinsics` for images at a path, of what `intrinsics` lets through.

    Raises RecordingError.
    """
    if text is None:
        return {}
    if "," in text:
        from depth_prior_ros.recordings.folder import image_size

        return {"camera": _camera(text, image_size(path))}
    return {"intrinsics": home_path(text)}


def intrinsics_camera(text: str, size: tuple[int, int] | None) -> Camera:
    """The rectified camera of what `intrinsics` lets through, of images of a size (W, H).

    Without a size, of the images that the calibration in a file is of. Raises RecordingError.
    """
    from depth_prior_ros.images.encodings import MessageError
    from depth_prior_ros.recordings import RecordingError
    from depth_prior_ros.recordings.folder import read_intrinsics

    if "," in text:
        if size is None:
            raise RecordingError(f"--intrinsics {text}: say of images of which --size")
        return _camera(text, size)
    calibration = read_intrinsics(home_path(text), size or (0, 0))
    try:
        return calibration.camera(*(size or (calibration.width, calibration.height)))
    except MessageError as error:
        raise RecordingError(f"{text}: {error}") from error


def _of_bag(path: Path, text: str) -> dict[str, Any]:
    """`camera`, or `calibration` of a file, which may have a lens."""
    from depth_prior_ros.recordings.bag import images_size
    from depth_prior_ros.recordings.folder import read_intrinsics

    size = images_size(path)
    if "," in text:
        return {"camera": _camera(text, size)}
    return {"calibration": read_intrinsics(home_path(text), size)}


def _camera(text: str, size: tuple[int, int]) -> Camera:
    from depth_prior_ros.recordings.folder import camera_from_values

    values = [float(value) for value in text.split(",")]
    return camera_from_values(values, "pixels", size, "--intrinsics")
