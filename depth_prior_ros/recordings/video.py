"""A video file, frame by frame, through OpenCV."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.base import CorruptFrameError, RecordingError
from depth_prior_ros.untrusted import IMAGE_PIXELS, VIDEO_FRAMES

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_LEAST_BYTES = 8  # of a frame: an entry of an index
# Up to here it is quicker to read on than to look for the frame.
_READ_ON = 60


def is_video(path: Path) -> bool:
    """Whether a path is a file that is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


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
