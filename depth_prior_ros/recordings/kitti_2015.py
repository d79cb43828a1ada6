"""Separate scenes of KITTI 2015 (Menze and Geiger, CVPR 2015) with depth from stereo.

image_02/000002.jpg, depth_stereo/000002.png (16-bit, metres x 256), calib_cam_to_cam.txt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from depth_prior_ros.recordings.base import Frame, RecordingError, Skipped, StoredRecording
from depth_prior_ros.recordings.calibration import (
    CAMERA_2011_09_26,
    FRAME_PERIOD_NS,
    STAMP_ORIGIN_NS,
    camera_for_images,
    find_projection,
    scaled_to_images,
)
from depth_prior_ros.recordings.image_files import read_depth, read_image
from depth_prior_ros.recordings.numbered import images_by_number, probe_all


def is_kitti_2015(path: Path) -> bool:
    """Whether a folder holds KITTI 2015 scenes."""
    return (path / "image_02").is_dir() and (path / "depth_stereo").is_dir()


def open_kitti_2015(path: Path) -> StoredRecording:
    """Open the scenes; no frame follows another (`gap_before` is True for all but the first).

    Raises RecordingError without a usable image.
    """
    path = Path(path)
    skipped: list[Skipped] = []
    notes: list[str] = []
    images, size = probe_all(images_by_number(path / "image_02", skipped), skipped)
    if size is None:
        raise RecordingError(f"{path / 'image_02'}: no usable image in it")
    file = path / "calib_cam_to_cam.txt"
    if file.is_file():
        _, projection = find_projection(file, ["P_rect_02"])
        camera = camera_for_images(projection, size, str(file), notes)
    else:
        notes.append("no calib_cam_to_cam.txt: KITTI's own values of 2011-09-26 taken")
        camera = scaled_to_images(CAMERA_2011_09_26, size, str(path), notes)
    depths = images_by_number(path / "depth_stereo", skipped)
    frames = [
        Frame(
            index=number,
            stamp_ns=STAMP_ORIGIN_NS + number * FRAME_PERIOD_NS,
            camera=camera,
            load_image=partial(read_image, image, size),
            file=image,
            load_depth=partial(read_depth, depths[number], size) if number in depths else None,
        )
        for number, image in images.items()
    ]
    source = "stereo" if depths else None
    return StoredRecording(
        path.name, frames, skipped, depth_source=source, consecutive=False, notes=notes
    )
