"""What was recorded, read one way: frames with camera, pose, speed and depth, whatever the source.

Every source (KITTI drive, bag, image folder, synthetic drive) opens as a `Recording`. A frame's
pixels are read when they are asked for; opening a recording only lists and probes what is there.
Whatever cannot be used is left out, counted and named in `Recording.skipped`, never silently.

A new format is one module of this room: a function that opens such a folder, under
`@folder_format`. `open_recording` finds it, and with it training, evaluation and replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.calibration import DistortedCamera
from depth_prior_ros.registry import Registry
from depth_prior_ros.strict_yaml import problem_of
from depth_prior_ros.untrusted import printable

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
# Where nothing says when: the midnight (UTC) of KITTI raw's first day, whose folder names carry no
# more than that, and 10 Hz.
STAMP_ORIGIN_NS = 1_316_995_200_000_000_000
FRAME_PERIOD_NS = 100_000_000
# Where the depth of a recording comes from decides how it may be evaluated (see metrics.py).
DEPTH_SOURCES = ("lidar", "stereo", "exact")


class RecordingError(Exception):
    """A recording cannot be opened; the message says what is wrong and what to do, on one line.

    Names in it come from elsewhere, and are made printable.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


class CorruptFrameError(RecordingError):
    """One frame cannot be read: its file is truncated, damaged or of another size."""


@contextmanager
def readable(path: Path, wrong: type[RecordingError] = RecordingError) -> Iterator[None]:
    """What cannot be read of a file here is an error of that kind, which names the file."""
    try:
        yield
    except OSError as error:
        raise wrong(f"{path}: cannot be read ({problem_of(error)})") from error


@dataclass(frozen=True)
class Skipped:
    """Something of a recording that was left out, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Frame:
    """One image of a recording with everything known about its moment.

    `index` is the number the source gives the frame (it jumps where a frame is missing);
    `stamp_ns` is in nanoseconds. `pose` is world_from_camera, (4, 4) float64, camera optical
    frame (x right, y down, z forward), metres. `speed` is in m/s, negative when reversing. `file`
    is the image's own file where it has one, so that a JPEG can be copied instead of encoded again.
    `load_moving` reads which pixels show something that moves by itself, where that is known.
    `processing` says what was done to the stored pixels (rectification); whoever keeps pixels keeps
    it beside them. `load_stored` reads the JPEG or PNG that was recorded, where there is one, as it
    is before `lens` rectifies its picture.
    """

    index: int
    stamp_ns: int
    camera: Camera
    load_image: Callable[[], NDArray[np.uint8]] = field(repr=False)
    load_depth: Callable[[], NDArray[np.float32]] | None = field(default=None, repr=False)
    pose: NDArray[np.float64] | None = field(default=None, repr=False)
    speed: float | None = None
    file: Path | None = field(default=None, repr=False)
    load_moving: Callable[[], NDArray[np.bool_]] | None = field(default=None, repr=False)
    processing: str = field(default="", repr=False)
    load_stored: Callable[[], bytes] | None = field(default=None, repr=False)
    lens: DistortedCamera | None = field(default=None, repr=False)

    @property
    def has_depth(self) -> bool:
        """Whether `depth` gives a map."""
        return self.load_depth is not None

    def image(self) -> NDArray[np.uint8]:
        """Read the image, (H, W, 3) uint8 RGB. Raises CorruptFrameError."""
        return self.load_image()

    def depth(self) -> NDArray[np.float32] | None:
        """Read the true depth, (H, W) float32 metres, 0 = none; None where none was recorded.

        Raises CorruptFrameError.
        """
        return None if self.load_depth is None else self.load_depth()

    def moving(self) -> NDArray[np.bool_] | None:
        """Read what moves by itself (cars, people; not the camera), (H, W) bool; None: unknown.

        Raises CorruptFrameError.
        """
        return None if self.load_moving is None else self.load_moving()


@runtime_checkable
class Recording(Protocol):
    """A drive, or a set of scenes, as a sequence of frames in the order of their stamps.

    name: a short one, for tables and reports. frames: the usable ones. skipped: what was left out;
    grows when reading finds a corrupt frame. depth_source: one of DEPTH_SOURCES; None without
    depth. notes: what had to be assumed, in words.
    """

    name: str
    frames: Sequence[Frame]
    skipped: list[Skipped]
    depth_source: str | None
    notes: list[str]

    def gap_before(self, i: int) -> bool:
        """Whether frames[i] does not directly follow frames[i - 1]; False for the first frame."""


@dataclass(frozen=True)
class Mount:
    """Which camera of its rig a recording shows, and where that stands.

    camera: its folder or image topic. rig_from_camera: (4, 4) float64, metres, from the rectified
    camera to the rig's rectified first one; None where nobody recorded it.
    """

    camera: str
    rig_from_camera: NDArray[np.float64] | None = field(default=None, compare=False)

    @classmethod
    def of_projection(cls, camera: str, P: NDArray[np.float64]) -> Mount:
        """From P (3, 4) of a rectified camera, whose last column is its place times K (KITTI)."""
        rig_from_camera = np.eye(4)
        rig_from_camera[:3, 3] = -np.linalg.solve(P[:, :3], P[:, 3])
        return cls(camera, rig_from_camera)


@dataclass
class StoredRecording:
    """The `Recording` that every stored source opens as.

    `depth_source` is one of DEPTH_SOURCES, or None without depth. `consecutive` is False for a set
    of separate scenes, where no frame follows another. `notes` says in words what had to be
    assumed (a calibration that was not there, stamps that were made up). `streams` names the topics
    of a bag by what they are used as (image, camera_info, odom, depth, moving). `mount` tells which
    of several cameras it is and where it stands among them; None where there can be one only.
    """

    name: str
    frames: Sequence[Frame]
    skipped: list[Skipped] = field(default_factory=list)
    depth_source: str | None = None
    consecutive: bool = True
    notes: list[str] = field(default_factory=list)
    streams: dict[str, str] = field(default_factory=dict)
    mount: Mount | None = None

    def gap_before(self, i: int) -> bool:
        """Whether frames[i] does not directly follow frames[i - 1]; False for the first frame."""
        if i < 0:
            i += len(self.frames)
        if i == 0:
            return False
        return not self.consecutive or self.frames[i].index != self.frames[i - 1].index + 1

    def __len__(self) -> int:
        return len(self.frames)


def is_video(path: Path) -> bool:
    """Whether a path is a file that is called like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def read_frames(
    recording: Recording, indices: Sequence[int] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (position, image) of every readable frame; corrupt ones go to `recording.skipped`.

    `indices` are positions in `recording.frames`; all of them by default. A frame that cannot be
    read is named once, however often it is tried.
    """
    for position in range(len(recording.frames)) if indices is None else indices:
        frame = recording.frames[position]
        try:
            image = frame.image()
        except CorruptFrameError as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            continue
        yield position, image


def name_skipped(skipped: list[Skipped], what: str, why: str) -> None:
    """Append an entry unless the very same one is already there."""
    entry = Skipped(what, why)
    if entry not in skipped:
        skipped.append(entry)


def speeds_from_poses(
    poses: Sequence[NDArray[np.float64]], stamps_ns: Sequence[int]
) -> list[float | None]:
    """Forward speed in m/s of each frame from world_from_camera poses (4, 4).

    Backward differences (the first frame takes the next one's): what odometry would have known at
    that moment. The sign is that of the motion along the camera's z axis. None where time stands
    still.
    """
    speeds: list[float | None] = []
    for i in range(len(poses)):
        a, b = (i - 1, i) if i else (0, min(1, len(poses) - 1))
        seconds = (stamps_ns[b] - stamps_ns[a]) * 1e-9
        if seconds <= 0:
            speeds.append(None)
            continue
        step = poses[b][:3, 3] - poses[a][:3, 3]
        forward = float(step @ poses[a][:3, 2])
        speeds.append(float(np.copysign(np.linalg.norm(step) / seconds, forward)))
    return speeds


Opener = Callable[..., StoredRecording]


@dataclass(frozen=True)
class FolderFormat:
    """A kind of folder.

    Attributes:
        title: what it is and how it is told, in words: "a KITTI raw drive (image_02/data)".
        fits: whether a folder is one; looks at names, reads no data.
        open: the reader; takes the folder, and options of its own by name.
        rank: those of a lower rank are asked first.
    """

    title: str
    fits: Callable[[Path], bool]
    open: Opener
    rank: int


FORMATS: Registry[FolderFormat] = Registry("recording format", __package__)


def folder_format(
    name: str, title: str, fits: Callable[[Path], bool], rank: int = 1
) -> Callable[[Opener], Opener]:
    """Decorator of a reader; see `FolderFormat`."""

    def keep(open_folder: Opener) -> Opener:
        FORMATS.register(name)(FolderFormat(title, fits, open_folder, rank))
        return open_folder

    return keep


def open_folder(path: Path, options: dict[str, Any]) -> StoredRecording:
    """Open a folder by what is in it. Raises RecordingError, naming what was looked for."""
    formats = sorted((found for _, found in FORMATS.items()), key=lambda found: found.rank)
    for found in formats:
        if found.fits(path):
            return found.open(path, **options)
    titles = ", nor ".join(found.title for found in formats)
    raise RecordingError(f"{path}: neither {titles}, nor a bag")
