"""KITTI's calibration files, read with what is really in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.recordings.base import RecordingError
from depth_prior_ros.strict_yaml import problem_of
from depth_prior_ros.untrusted import read_text

# The colour camera of 2011-09-26, from KITTI's own calib_cam_to_cam.txt of that day.
CAMERA_2011_09_26 = Camera(721.5377, 721.5377, 609.5593, 172.854, 1242, 375)
# KITTI raw carries no absolute start in its folder names but the day: its midnight (UTC).
STAMP_ORIGIN_NS = 1_316_995_200_000_000_000
FRAME_PERIOD_NS = 100_000_000  # 10 Hz


@dataclass(frozen=True)
class Projection:
    """A rectified camera of a calibration file: P (3, 4), and its image size where given."""

    matrix: NDArray[np.float64]
    size: tuple[int, int] | None


def read_calibration(path: Path) -> dict[str, NDArray[np.float64]]:
    """The numeric rows of a KITTI calibration file by name; other rows are passed over."""
    rows: dict[str, NDArray[np.float64]] = {}
    try:
        text = read_text(path)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({problem_of(error)})") from error
    for line in text.splitlines():
        name, separator, values = line.partition(":")
        try:
            numbers = np.array([float(v) for v in values.split()])
        except ValueError:
            continue
        if separator and numbers.size:
            rows[name.strip()] = numbers
    return rows


def find_projection(path: Path, names: list[str]) -> tuple[str, Projection]:
    """The first of the named 3x4 projections that the file has, with the name found.

    `P_rect_02` finds its image size in `S_rect_02`. Raises RecordingError without any.
    """
    rows = read_calibration(path)
    for name in names:
        row = rows.get(name)
        if row is None or row.size != 12:
            continue
        size_row = rows.get(name.replace("P_rect", "S_rect")) if "P_rect" in name else None
        size = None
        if size_row is not None and size_row.size == 2:
            size = (int(size_row[0]), int(size_row[1]))
        return name, Projection(row.reshape(3, 4), size)
    raise RecordingError(f"{path}: none of {', '.join(names)} with 12 numbers in it")


def camera_for_images(
    projection: Projection, size: tuple[int, int], where: str, notes: list[str]
) -> Camera:
    """The camera of images of `size`, scaled (and noted) where the calibration is of another.

    Raises RecordingError where the aspect ratios differ by more than 1 %, or the numbers are no
    camera.
    """
    width, height = projection.size or size
    try:
        camera = Camera.from_matrix(projection.matrix, width, height)
    except InvalidCameraError as error:
        raise RecordingError(f"{where}: {error}") from error
    return scaled_to_images(camera, size, where, notes)


def scaled_to_images(camera: Camera, size: tuple[int, int], where: str, notes: list[str]) -> Camera:
    """`camera` for images of `size`; see `camera_for_images`."""
    if camera.size == size:
        return camera
    resized = camera.scaled(*size)
    if not camera.same_aspect(resized):
        raise RecordingError(
            f"{where}: calibrated at {camera.width}x{camera.height}, but the images are "
            f"{size[0]}x{size[1]}, which is no resized version of that"
        )
    notes.append(f"camera scaled from {camera.width}x{camera.height} to {size[0]}x{size[1]}")
    return resized
