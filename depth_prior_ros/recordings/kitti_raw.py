"""A drive of KITTI raw (Geiger et al., IJRR 2013), as published or thinned out.

DATE/calib_cam_to_cam.txt
DATE/DATE_drive_NNNN_sync/image_02/data/0000000000.png|jpg   (or image_02/*.png directly)
                          image_02/timestamps.txt
                          oxts/data/0000000000.txt
                          proj_depth/{groundtruth,velodyne_raw}/image_02/0000000000.png
"""

from __future__ import annotations

import itertools
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from depth_prior_ros.camera import Camera
from depth_prior_ros.recordings.base import Frame, RecordingError, Skipped, StoredRecording
from depth_prior_ros.recordings.calibration import (
    CAMERA_2011_09_26,
    FRAME_PERIOD_NS,
    STAMP_ORIGIN_NS,
    camera_for_images,
    find_projection,
    scaled_to_images,
)
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, read_depth, read_image
from depth_prior_ros.recordings.numbered import images_by_number, name_missing, probe_all

CAMERAS = ("image_02", "image_03", "image_00", "image_01")  # colour first
DEPTH_KINDS = ("velodyne_raw", "groundtruth")
_FORWARD_SPEED = 8  # "vf" in an oxts packet


def is_kitti_raw(path: Path) -> bool:
    """Whether a folder looks like a KITTI raw drive."""
    return path.is_dir() and any(_image_folder(path, camera) for camera in CAMERAS)


def open_kitti_raw(
    path: Path, *, camera: str | None = None, depth: str | None = None
) -> StoredRecording:
    """Open a drive; `camera` is one of CAMERAS (the first one there), `depth` of DEPTH_KINDS.

    Raises RecordingError without a usable image or without a calibration.
    """
    path = Path(path)
    name, folder = _find_images(path, camera)
    skipped: list[Skipped] = []
    notes: list[str] = []
    listed = images_by_number(folder, skipped)
    name_missing(list(listed), "frame", skipped)
    images, size = probe_all(listed, skipped)
    if size is None:
        raise RecordingError(f"{folder}: no usable image in it ({_reasons(skipped)})")
    calibrated = _find_camera(path, name, size, notes)
    stamps = _stamps(folder, images, notes)
    depths = _depth_files(path, name, depth)
    frames = [
        Frame(
            index=number,
            stamp_ns=stamps[number],
            camera=calibrated,
            load_image=partial(read_image, file, size),
            file=file,
            load_depth=partial(read_depth, depths[number], size) if number in depths else None,
            speed=_read_speed(path / "oxts" / "data" / f"{number:010d}.txt", skipped),
        )
        for number, file in images.items()
    ]
    source = "lidar" if any(frame.has_depth for frame in frames) else None
    return StoredRecording(path.name, frames, skipped, depth_source=source, notes=notes)


def _image_folder(path: Path, camera: str) -> Path | None:
    for folder in (path / camera / "data", path / camera):
        if folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
            return folder
    return None


def _find_images(path: Path, camera: str | None) -> tuple[str, Path]:
    if not path.is_dir():
        raise RecordingError(f"{path}: no such folder")
    for name in (camera,) if camera else CAMERAS:
        folder = _image_folder(path, name)
        if folder is not None:
            return name, folder
    wanted = camera or "image_02 (nor image_03, image_00, image_01)"
    raise RecordingError(f"{path}: no images in {wanted}; is this a KITTI raw drive?")


def _reasons(skipped: list[Skipped]) -> str:
    return "; ".join(str(entry) for entry in skipped[:3]) or "the folder is empty"


def _find_camera(path: Path, name: str, size: tuple[int, int], notes: list[str]) -> Camera:
    # A drive copied out of its date folder may carry the calibration with it.
    for folder in (path, path.parent):
        file = folder / "calib_cam_to_cam.txt"
        if not file.is_file():
            continue
        own = f"P_rect_{name[-2:]}"
        # Rectified cameras share their intrinsics, so any other one will do.
        others = [f"P_rect_{i:02d}" for i in (2, 0, 3, 1)]
        found, projection = find_projection(file, [own, *others])
        if found != own:
            notes.append(f"{file.name} has no {own}: {found} taken, whose intrinsics are the same")
        return camera_for_images(projection, size, str(file), notes)
    if path.name.startswith("2011_09_26"):
        notes.append("no calib_cam_to_cam.txt: KITTI's own values of 2011-09-26 taken")
        return scaled_to_images(CAMERA_2011_09_26, size, str(path), notes)
    raise RecordingError(
        f"{path}: no calib_cam_to_cam.txt in it or beside it; copy KITTI's calibration of that day"
    )


def _stamps(folder: Path, images: dict[int, Path], notes: list[str]) -> dict[int, int]:
    """Stamps in nanoseconds by frame number: timestamps.txt, or 10 Hz from the day's midnight."""
    for file in (folder / "timestamps.txt", folder.parent / "timestamps.txt"):
        if not file.is_file():
            continue
        lines = file.read_text(errors="replace").split("\n")
        try:
            stamps = {number: _parse_stamp(lines[number]) for number in images}
        except (IndexError, ValueError):
            notes.append(f"{file}: does not cover every frame; 10 Hz taken")
            break
        ordered = list(stamps.values())
        if all(a < b for a, b in itertools.pairwise(ordered)):
            return stamps
        notes.append(f"{file}: stamps do not increase; 10 Hz taken")
        break
    return {number: STAMP_ORIGIN_NS + number * FRAME_PERIOD_NS for number in images}


def _parse_stamp(line: str) -> int:
    """Nanoseconds of "2011-09-26 13:02:25.964389445" (taken as UTC)."""
    whole, _, fraction = line.strip().partition(".")
    moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    return int(moment.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or 0)


def _depth_files(path: Path, camera: str, kind: str | None) -> dict[int, Path]:
    if kind is not None and kind not in DEPTH_KINDS:
        raise RecordingError(f"depth {kind!r} is unknown; one of {', '.join(DEPTH_KINDS)}")
    for name in (kind,) if kind else DEPTH_KINDS:
        folder = path / "proj_depth" / name / camera
        if folder.is_dir():
            return images_by_number(folder, [])
    return {}


def _read_speed(file: Path, skipped: list[Skipped]) -> float | None:
    if not file.is_file():
        return None
    try:
        return float(file.read_text().split()[_FORWARD_SPEED])
    except (OSError, ValueError, IndexError):
        skipped.append(Skipped(str(file), "no speed in it"))
        return None
