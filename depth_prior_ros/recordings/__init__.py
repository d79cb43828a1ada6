"""Recordings of every kind, opened by one function.

`open_recording(path)` tells by what is in it whether a path is a KITTI raw drive, a KITTI
odometry sequence, the KITTI 2015 scenes, Make3D, Cityscapes, nuScenes, a bag or a folder of
images. Readers are imported when
they are needed: nothing heavy happens on importing this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_prior_ros.recordings.bag_file import BAG_SUFFIXES, is_bag
from depth_prior_ros.recordings.base import (
    VIDEO_SUFFIXES,
    CorruptFrameError,
    Frame,
    Recording,
    RecordingError,
    Skipped,
    StoredRecording,
    is_video,
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


def open_recording(path: str | Path, **options: Any) -> StoredRecording:
    """Open whatever is at `path`; `options` go to the reader of that kind.

    Kinds and options: KITTI raw drive (`camera`, `depth`), KITTI odometry sequence (`camera`,
    `poses`), KITTI 2015 folder, Make3D, Cityscapes (`split`), nuScenes (`version`, `camera`,
    `scenes`), bag (`topics`, `camera`, `rectify`), image folder and video (`camera`, `rate`,
    `intrinsics`, `rectify`).
    Raises RecordingError, naming what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"{path.absolute()}: no such file or folder")
    if is_bag(path):
        from depth_prior_ros.recordings.bag import open_bag

        return open_bag(path, **options)
    if is_video(path):
        from depth_prior_ros.recordings.folder import open_image_folder

        return open_image_folder(path, **options)
    if not path.is_dir():
        kinds = ", ".join((*BAG_SUFFIXES, *VIDEO_SUFFIXES))
        raise RecordingError(f"{path}: neither a bag nor a video ({kinds}), nor a folder")
    from depth_prior_ros.recordings.base import open_folder

    return open_folder(path, options)
