"""Recordings of every kind, opened by one function.

`open_recording(path)` tells by what is in it whether a path is a KITTI raw drive, a KITTI
odometry sequence, the KITTI 2015 scenes, Make3D, Cityscapes, nuScenes, a bag or a folder of
images. Readers are imported when
they are needed: nothing heavy happens on importing this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_prior_ros.recordings.base import (
    CorruptFrameError,
    Frame,
    Recording,
    RecordingError,
    Skipped,
    StoredRecording,
    read_frames,
)

__all__ = [
    "CorruptFrameError",
    "Frame",
    "Recording",
    "RecordingError",
    "Skipped",
    "StoredRecording",
    "is_bag",
    "open_recording",
    "read_frames",
]

_BAG_SUFFIXES = (".mcap", ".db3", ".bag")


def is_bag(path: str | Path) -> bool:
    """Whether a path looks like a bag: by its suffix, or a folder with metadata.yaml."""
    path = Path(path)
    return path.suffix.lower() in _BAG_SUFFIXES or (path / "metadata.yaml").is_file()


def open_recording(path: str | Path, **options: Any) -> StoredRecording:
    """Open whatever is at `path`; `options` go to the reader of that kind.

    Kinds and options: KITTI raw drive (`camera`, `depth`), KITTI odometry sequence (`camera`,
    `poses`), KITTI 2015 folder, Make3D, Cityscapes (`split`), nuScenes (`version`, `camera`,
    `scenes`), bag (`topics`, `camera`, `rectify`), image folder (`camera`, `rate`, `intrinsics`).
    Raises RecordingError, naming what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"{path}: no such file or folder")
    if is_bag(path):
        from depth_prior_ros.recordings.bag import open_bag

        return open_bag(path, **options)
    if not path.is_dir():
        raise RecordingError(
            f"{path}: not a bag ({', '.join(_BAG_SUFFIXES)}) and not a folder of images"
        )
    return _open_folder(path, options)


def _open_folder(path: Path, options: dict[str, Any]) -> StoredRecording:
    from depth_prior_ros.recordings import cityscapes, folder, make3d, nuscenes
    from depth_prior_ros.recordings import kitti as kitti_2015
    from depth_prior_ros.recordings import kitti as kitti_odometry
    from depth_prior_ros.recordings import kitti as kitti_raw

    # KITTI 2015 before KITTI raw: both have an image_02.
    if kitti_2015.is_kitti_2015(path):
        return kitti_2015.open_kitti_2015(path, **options)
    if kitti_raw.is_kitti_raw(path):
        return kitti_raw.open_kitti_raw(path, **options)
    if kitti_odometry.is_kitti_odometry(path):
        return kitti_odometry.open_kitti_odometry(path, **options)
    if cityscapes.is_cityscapes(path):
        return cityscapes.open_cityscapes(path, **options)
    if nuscenes.is_nuscenes(path):
        return nuscenes.open_nuscenes(path, **options)
    if make3d.is_make3d(path):
        return make3d.open_make3d(path, **options)
    if folder.is_image_folder(path):
        return folder.open_image_folder(path, **options)
    raise RecordingError(
        f"{path}: neither a KITTI raw drive (image_02/data), nor an odometry sequence (image_0), "
        "nor KITTI 2015 scenes (image_02 and depth_stereo), nor Make3D, Cityscapes or nuScenes, "
        "nor a bag, nor a folder of images"
    )
