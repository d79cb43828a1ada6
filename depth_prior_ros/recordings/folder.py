"""A folder of images with known intrinsics: the smallest thing that is a recording."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import Frame, RecordingError, Skipped, StoredRecording
from depth_prior_ros.recordings.calibration import STAMP_ORIGIN_NS, scaled_to_images
from depth_prior_ros.recordings.formats import folder_format
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, read_image
from depth_prior_ros.recordings.intrinsics import find_intrinsics, read_intrinsics
from depth_prior_ros.recordings.numbered import images_by_number, name_missing, probe_all


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds images directly."""
    return path.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())


@folder_format("image_folder", "a folder of images", is_image_folder, rank=2)
def open_image_folder(
    path: Path,
    *,
    camera: Camera | None = None,
    rate: float = 10.0,
    intrinsics: Path | None = None,
) -> StoredRecording:
    """Open images recorded at `rate` Hz with `camera` (scaled where the images are resized).

    Without a camera, the file `intrinsics` (see `recordings.intrinsics`) is read, or an
    intrinsics.yaml in the folder. Where every name is a number, missing numbers are gaps; otherwise
    the names' natural order counts. Raises RecordingError without a camera or a usable image.
    """
    path = Path(path)
    if path.is_dir() and intrinsics is None:
        intrinsics = find_intrinsics(path)
    if camera is None and intrinsics is None:
        raise RecordingError(
            f"{path}: a folder of images has no calibration; give the intrinsics in pixels "
            "(fx, fy, cx, cy), or write them into an intrinsics.yaml with their units"
        )
    if not rate > 0:
        raise RecordingError(f"a rate of {rate} Hz is no frame rate")
    if not path.is_dir():
        raise RecordingError(f"{path}: no such folder")
    skipped: list[Skipped] = []
    notes: list[str] = []
    listed = _list_images(path, skipped)
    images, size = probe_all(listed, skipped)
    if size is None:
        raise RecordingError(f"{path}: no usable image in it")
    if camera is None:
        assert intrinsics is not None
        camera = read_intrinsics(intrinsics, size)
    camera = scaled_to_images(camera, size, str(path), notes)
    frames = [
        Frame(
            index=number,
            stamp_ns=STAMP_ORIGIN_NS + round(number / rate * 1e9),
            camera=camera,
            load_image=partial(read_image, file, size),
            file=file,
        )
        for number, file in images.items()
    ]
    return StoredRecording(path.name, frames, skipped, notes=notes)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) that most images of a folder have; raises RecordingError without any."""
    if not path.is_dir():
        raise RecordingError(f"{path}: no such folder")
    _, size = probe_all(_list_images(path, []), [])
    if size is None:
        raise RecordingError(f"{path}: no usable image in it")
    return size


def _list_images(path: Path, skipped: list[Skipped]) -> dict[int, Path]:
    files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if all(p.stem.isascii() and p.stem.isdigit() for p in files):
        numbered = images_by_number(path, skipped)
        name_missing(list(numbered), "frame", skipped)
        return numbered
    return dict(enumerate(sorted(files, key=_natural)))


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """frame2 before frame10; the full name decides between equals."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts], path.name
