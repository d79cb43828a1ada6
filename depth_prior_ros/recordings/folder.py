"""A folder of images, or a video, with known intrinsics: the smallest thing that is a recording.

Intrinsics are what somebody wrote down, in the unit that they say: pixels, or shares of the image.
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
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.calibration import Calibration, is_ros_calibration, rectification_wanted
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import LensCorrection, Rectifier
from depth_prior_ros.recordings.base import (
    STAMP_ORIGIN_NS,
    CorruptFrameError,
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
    is_video,
)
from depth_prior_ros.recordings.cityscapes import is_city
from depth_prior_ros.recordings.image_files import (
    IMAGE_SUFFIXES,
    images_by_name,
    probe_all,
    read_bytes,
    read_image,
)
from depth_prior_ros.untrusted import IMAGE_PIXELS, VIDEO_FRAMES

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
    from depth_prior_ros import strict_yaml

    try:
        content = strict_yaml.read(path)  # JSON is YAML, too
    except (OSError, strict_yaml.YamlError) as error:
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


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds images directly, and is no city of Cityscapes, which does so too."""
    if not path.is_dir() or is_city(path):
        return False
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())


@folder_format("image_folder", "a folder of images", is_image_folder, rank=2)
def open_image_folder(
    path: Path,
    *,
    camera: Camera | None = None,
    rate: float | None = None,
    intrinsics: Path | None = None,
    rectify: str = "auto",
) -> StoredRecording:
    """Open a folder of images, or a video file, of `camera` (scaled where images are resized).

    Without a camera, the file `intrinsics` (see above) is read, or one that lies
    in the folder or beside the video; images are rectified where it has distortion, unless the
    folder is called rectified (`calibration.rectification_wanted`). rate: Hz, where names are no
    times; default: 10, or the video's own. Names: see `numbered.images_by_name`. Raises
    RecordingError without a camera or a usable image.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if intrinsics is None and camera is None and folder.is_dir():
        intrinsics = find_intrinsics(folder)
    if camera is None and intrinsics is None:
        raise RecordingError(
            f"{path}: {'a video' if is_video(path) else 'a folder of images'} has no calibration; "
            "give the intrinsics in pixels (fx, fy, cx, cy), or write them into an intrinsics.yaml "
            "with their units, or put the YAML of ROS's camera_calibration there under that name"
        )
    if rate is not None and not rate > 0:
        raise RecordingError(f"a rate of {rate} Hz is no frame rate")
    skipped: list[Skipped] = []
    pictures = _of_video(path, rate) if is_video(path) else _of_folder(path, rate, skipped)
    notes = pictures.notes
    if camera is not None:
        calibration = Calibration.from_camera(camera)
    else:
        assert intrinsics is not None
        calibration = read_intrinsics(intrinsics, pictures.size)
        notes.append(f"calibration from {intrinsics}")
    where = str(path if intrinsics is None else intrinsics)
    fitted, correction = _fit(calibration, pictures.size, where, rectify, path.name, notes)
    frames = [
        Frame(
            index=number,
            stamp_ns=stamp,
            camera=fitted,
            load_image=partial(correction.read, load) if correction else load,
            # A file whose picture is not the frame's cannot stand for it.
            file=None if correction else file,
            processing=correction.words,
            load_stored=partial(read_bytes, file) if file is not None else None,
            lens=correction.lens,
        )
        for number, stamp, load, file in pictures.frames
    ]
    return StoredRecording(path.stem if path.is_file() else path.name, frames, skipped, notes=notes)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a video, or that most images of a folder have; raises RecordingError."""
    if is_video(path):
        return VideoFile(path).size
    return _of_folder(path, None, []).size


@dataclass
class _Pictures:
    """Images in order: (frame number, stamp in nanoseconds, how to read it, its file)."""

    size: tuple[int, int]
    frames: list[tuple[int, int, Callable[[], NDArray[np.uint8]], Path | None]]
    notes: list[str]


def _of_folder(path: Path, rate: float | None, skipped: list[Skipped]) -> _Pictures:
    if not path.is_dir():
        raise RecordingError(f"{path}: no such folder, and no video file")
    named = images_by_name(path, skipped)
    if not named.files:
        raise RecordingError(
            f"{path}: no images in it; files of images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    images, size = probe_all(named.files, skipped)
    if size is None:
        raise RecordingError(f"{path}: no usable image in it ({skipped[-1]})")
    stamps = named.stamps or {
        number: STAMP_ORIGIN_NS + round(number / (rate or 10.0) * 1e9) for number in images
    }
    frames = [
        (number, stamps[number], partial(read_image, file, size), file)
        for number, file in images.items()
    ]
    return _Pictures(size, list(frames), list(named.notes))


def _of_video(path: Path, rate: float | None) -> _Pictures:
    video = VideoFile(path)
    hertz = rate or video.rate
    frames = [
        (number, STAMP_ORIGIN_NS + round(number / hertz * 1e9), partial(video.read, number), None)
        for number in range(video.count)
    ]
    notes = [f"stamps are made of the video's {hertz:g} frames a second"]
    return _Pictures(video.size, list(frames), notes)


def _fit(
    calibration: Calibration,
    size: tuple[int, int],
    where: str,
    rectify: str,
    name: str,
    notes: list[str],
) -> tuple[Camera, LensCorrection]:
    """The camera of images of that size, and what rectifies them; raises RecordingError."""
    lens = None
    try:
        camera = calibration.camera(*size)
        if rectification_wanted(rectify, name):
            lens = calibration.lens(*size)
        if lens is not None:
            Rectifier(lens)  # tried out, so that it fails now or never
    except (MessageError, InvalidCameraError) as error:
        text = error.text if isinstance(error, MessageError) else str(error)
        raise RecordingError(f"{where}: {text}") from error
    own = calibration.width, calibration.height
    if own != size:
        notes.append(f"camera scaled from {own[0]}x{own[1]} to {size[0]}x{size[1]}")
    if lens is not None:
        notes.append(f"images are rectified ({lens.model} in {where})")
    notes += calibration.doubts(*size, name, lens is not None)
    return camera, LensCorrection(lens)


_LEAST_BYTES = 8  # of a frame: an entry of an index
# Up to here it is quicker to read on than to look for the frame.
_READ_ON = 60


class VideoFile:
    """The frames of a video by their number; goes to other processes closed.

    size: (width, height) as stored: an orientation tag is not followed, as nowhere. rate: frames a
    second. count: frames, as the file says.

    Raises RecordingError for a file that is no video, or without frames.
    """

    def __init__(self, path: Path) -> None:
        import cv2

        self.path = Path(path)
        self._lock = threading.Lock()
        self._capture: Any = None
        self._next = 0
        capture = self._open()
        self.count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate = float(capture.get(cv2.CAP_PROP_FPS))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = width, height
        if min(self.count, width, height) < 1 or not (math.isfinite(self.rate) and self.rate > 0):
            raise RecordingError(f"{path}: a video without frames that OpenCV can read")
        most = min(VIDEO_FRAMES, self.path.stat().st_size // _LEAST_BYTES)
        if self.count > most:
            raise RecordingError(
                f"{path}: its header says {self.count:,} frames; a file of its size has at most "
                f"{most:,}"
            )
        if width * height > IMAGE_PIXELS:
            raise RecordingError(
                f"{path}: a video of {width}x{height}, {IMAGE_PIXELS:,} pixels are the most"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_capture": None, "_next": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def read(self, number: int) -> NDArray[np.uint8]:
        """Read one frame, (H, W, 3) uint8 RGB; raises CorruptFrameError."""
        import cv2

        with self._lock:
            capture = self._capture or self._open()
            if not 0 <= number - self._next <= _READ_ON:
                capture.set(cv2.CAP_PROP_POS_FRAMES, number)
                self._next = number
            while self._next < number and capture.grab():
                self._next += 1
            found, frame = capture.read() if self._next == number else (False, None)
            self._next += 1
        if not found:
            self._next = -1  # wherever the decoder is now
            raise CorruptFrameError(f"{self.path}: frame {number} cannot be read")
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def _open(self) -> Any:
        import cv2

        # What FFmpeg finds wrong, it writes to the terminal; the error below says it, too.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not capture.isOpened():
            raise RecordingError(
                f"{self.path}: cannot be read as a video: it is damaged, or of a kind that OpenCV "
                "does not read (`ffmpeg -i IN -c:v libx264 OUT.mp4` makes one that it does)"
            )
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        self._capture, self._next = capture, 0
        return capture
