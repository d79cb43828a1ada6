"""A sequence of KITTI odometry: images, calib.txt, times.txt, and poses beside the sequences.

sequences/NN/{image_2,image_0}/000000.png|jpg, calib.txt, times.txt
poses/NN.txt      one 3x4 world_from_camera per line, of camera 0
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings.base import (
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
    speeds_from_poses,
)
from depth_prior_ros.recordings.calibration import (
    CAMERA_2011_09_26,
    FRAME_PERIOD_NS,
    STAMP_ORIGIN_NS,
    camera_for_images,
    find_projection,
    scaled_to_images,
)
from depth_prior_ros.recordings.image_files import read_image
from depth_prior_ros.recordings.numbered import images_by_number, name_missing, probe_all

CAMERAS = ("image_2", "image_0", "image_3", "image_1")


def is_kitti_odometry(path: Path) -> bool:
    """Whether a folder looks like a KITTI odometry sequence."""
    return any((path / camera).is_dir() for camera in CAMERAS)


def open_kitti_odometry(
    path: Path, *, camera: str | None = None, poses: Path | None = None
) -> StoredRecording:
    """Open `sequences/NN`; `poses` defaults to `../../poses/NN.txt` where that is there.

    Raises RecordingError without a usable image.
    """
    path = Path(path)
    name = _find_camera_folder(path, camera)
    skipped: list[Skipped] = []
    notes: list[str] = []
    listed = images_by_number(path / name, skipped)
    name_missing(list(listed), "frame", skipped)
    images, size = probe_all(listed, skipped)
    if size is None:
        raise RecordingError(f"{path / name}: no usable image in it")
    calibrated, offset = _find_camera(path, name, size, notes)
    stamps = _stamps(path, images, notes)
    world = _poses(path, poses, offset, notes)
    speeds = _speeds(images, world, stamps)
    frames = [
        Frame(
            index=number,
            stamp_ns=stamps[number],
            camera=calibrated,
            load_image=partial(read_image, file, size),
            file=file,
            pose=world.get(number),
            speed=speeds.get(number),
        )
        for number, file in images.items()
    ]
    return StoredRecording(f"odometry_{path.name}", frames, skipped, notes=notes)


def _find_camera_folder(path: Path, camera: str | None) -> str:
    for name in (camera,) if camera else CAMERAS:
        if (path / name).is_dir():
            return name
    raise RecordingError(f"{path}: no {camera or 'image_2 or image_0'} in it")


def _find_camera(
    path: Path, name: str, size: tuple[int, int], notes: list[str]
) -> tuple[Camera, NDArray[np.float64]]:
    """The camera, and its position (3,) in camera 0's frame, which the poses are of."""
    file = path / "calib.txt"
    if not file.is_file():
        notes.append("no calib.txt: KITTI's own values of 2011-09-26 taken")
        return scaled_to_images(CAMERA_2011_09_26, size, str(path), notes), np.zeros(3)
    _, projection = find_projection(file, [f"P{name[-1]}"])
    camera = camera_for_images(projection, size, str(file), notes)
    K, shift = projection.matrix[:, :3], projection.matrix[:, 3]
    return camera, np.asarray(-np.linalg.solve(K, shift), np.float64)


def _stamps(path: Path, images: dict[int, Path], notes: list[str]) -> dict[int, int]:
    file = path / "times.txt"
    if file.is_file():
        try:
            times = [float(value) for value in file.read_text().split()]
            stamps = {n: STAMP_ORIGIN_NS + round(times[n] * 1e9) for n in images}
            ordered = list(stamps.values())
            if all(a < b for a, b in itertools.pairwise(ordered)):
                return stamps
            notes.append(f"{file}: times do not increase; 10 Hz taken")
        except (ValueError, IndexError, OverflowError):
            notes.append(f"{file}: does not cover every frame; 10 Hz taken")
    return {number: STAMP_ORIGIN_NS + number * FRAME_PERIOD_NS for number in images}


def _poses(
    path: Path, file: Path | None, offset: NDArray[np.float64], notes: list[str]
) -> dict[int, NDArray[np.float64]]:
    """world_from_camera (4, 4) by frame number; the line's number is the frame's."""
    named = file is not None
    file = file or path.parent.parent / "poses" / f"{path.name}.txt"
    if not file.is_file():
        if named:
            raise RecordingError(f"{file}: no such file with poses")
        notes.append("no poses")
        return {}
    camera0_from_camera = np.eye(4)
    camera0_from_camera[:3, 3] = offset
    poses: dict[int, NDArray[np.float64]] = {}
    for number, line in enumerate(file.read_text().splitlines()):
        try:
            matrix = np.array([float(v) for v in line.split()]).reshape(3, 4)
        except ValueError as error:
            raise RecordingError(f"{file}, line {number + 1}: not twelve numbers") from error
        poses[number] = np.vstack([matrix, [0, 0, 0, 1]]) @ camera0_from_camera
    return poses


def _speeds(
    images: dict[int, Path], poses: dict[int, NDArray[np.float64]], stamps: dict[int, int]
) -> dict[int, float | None]:
    numbers = [number for number in images if number in poses]
    if len(numbers) < 2:
        return {}
    speeds = speeds_from_poses([poses[n] for n in numbers], [stamps[n] for n in numbers])
    return dict(zip(numbers, speeds, strict=True))
