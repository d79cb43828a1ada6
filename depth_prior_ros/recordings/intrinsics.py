"""Intrinsics that somebody wrote down, in the unit that they say: pixels, or shares of the image.

Confusing the two gives flat depth or none and no error anywhere, so the unit has to be stated and
is checked against the numbers. A file (YAML or JSON) says::

    units: pixels            # or: normalised (fx and cx by the width, fy and cy by the height)
    fx: 721.5
    fy: 721.5
    cx: 609.6
    cy: 172.9
    width: 1242              # of the image that they belong to; not needed where normalised
    height: 375

or is what ROS's ``camera_calibration`` wrote (``image_width``, ``camera_matrix``, ...), with its
lens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.calibration import Calibration, is_ros_calibration
from depth_prior_ros.recordings.base import RecordingError

Units = Literal["pixels", "normalised"]

UNITS = ("pixels", "normalised")
FILE_NAMES = (
    "intrinsics.yaml",
    "intrinsics.yml",
    "intrinsics.json",
    "camera_info.yaml",
    "ost.yaml",  # as camera_calibration calls it
)
_VALUES = ("fx", "fy", "cx", "cy")
_KEYS = ("units", *_VALUES, "width", "height")
# Focal lengths between half a degree and nearly half a turn of view, as shares of the image.
_LARGEST_SHARE = 100.0
# The smallest focal length in pixels that a camera of a real image has.
_LEAST_PIXELS = 8.0


def camera_from_values(
    values: Sequence[float], units: Units, size: tuple[int, int], where: str = "intrinsics"
) -> Camera:
    """The camera of images of `size` (width, height) from fx, fy, cx, cy in the stated unit.

    Raises RecordingError: not four numbers, an unknown unit, numbers in pixels where normalised
    ones are expected or the other way round, and what no camera can have.
    """
    if units not in UNITS:
        raise RecordingError(f"{where}: units {units!r} are unknown; say {' or '.join(UNITS)}")
    numbers = [_number(value, where) for value in values]
    if len(numbers) != 4:
        raise RecordingError(f"{where}: fx, fy, cx, cy expected, got {len(numbers)} numbers")
    fx, fy, cx, cy = numbers
    shown = f"fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}"
    width, height = size
    # Shares of the image lie around 0.5, 1 and 2; a principal point in pixels is far from 0.5.
    if units == "normalised":
        if max(fx, fy) > _LARGEST_SHARE or max(cx, cy) > 2:
            raise RecordingError(
                f"{where}: {shown} are in pixels where normalised are expected; divide fx and cx "
                "by the width and fy and cy by the height, or say that they are pixels"
            )
        fx, fy, cx, cy = fx * width, fy * height, cx * width, cy * height
    elif max(fx, fy) < _LEAST_PIXELS and min(width, height) > _LEAST_PIXELS:
        raise RecordingError(
            f"{where}: {shown} are normalised where pixels are expected; multiply fx and cx by "
            "the width and fy and cy by the height, or say that they are normalised"
        )
    try:
        return Camera(fx, fy, cx, cy, width, height)
    except InvalidCameraError as error:
        raise RecordingError(f"{where}: {error}") from error


def find_intrinsics(folder: Path) -> Path | None:
    """The file with intrinsics that lies in a folder, if one does."""
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def read_intrinsics(path: Path, size: tuple[int, int]) -> Calibration:
    """The calibration in a file (see the module); `size` (width, height) is that of the images.

    Normalised intrinsics hold for any size, those in pixels for the size that the file gives, or
    for `size` where it gives none. Raises RecordingError.
    """
    content = read_mapping(path, "units, fx, fy, cx and cy")
    if is_ros_calibration(content):
        try:
            return Calibration.from_yaml(content)
        except InvalidCameraError as error:
            raise RecordingError(f"{path}: {error}") from error
    unknown = sorted(str(key) for key in set(content) - set(_KEYS))
    if unknown:
        raise RecordingError(
            f"{path}: {unknown[0]!r} is unknown; known are {', '.join(_KEYS)}, or a file of ROS's "
            "camera_calibration"
        )
    missing = [name for name in ("units", *_VALUES) if name not in content]
    if missing:
        raise RecordingError(f"{path}: {', '.join(missing)} missing")
    units = content["units"]
    if units == "pixels" and ("width" in content or "height" in content):
        size = _size(content, path)
    values = [content[name] for name in _VALUES]
    return Calibration.from_camera(camera_from_values(values, units, size, str(path)))


def read_mapping(path: Path, expected: str) -> Mapping[str, Any]:
    """Keys and values of a YAML or JSON file; raises RecordingError naming what was expected."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecordingError(f"{path}: cannot be read as YAML or JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise RecordingError(f"{path}: {expected} expected")
    return content


def _size(content: Mapping[str, Any], path: Path) -> tuple[int, int]:
    values = [content.get(name) for name in ("width", "height")]
    if not all(isinstance(value, int) and value > 0 for value in values):
        raise RecordingError(f"{path}: width and height must be whole numbers of pixels")
    return int(values[0] or 0), int(values[1] or 0)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordingError(f"{where}: {value!r} is not a number")
    return float(value)
