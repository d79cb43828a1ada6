"""A bag as a recording: ROS 2 (.mcap, .db3, bag folder) and ROS 1 (.bag), through `rosbags`.

Opening reads every message once (the stamps are in them) and keeps none; pixels are read again
when they are asked for.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.rectification import DistortedCamera, Rectifier, rectification_wanted
from depth_prior_ros.recordings import bag_messages as messages
from depth_prior_ros.recordings.base import (
    DEPTH_SOURCES,
    CorruptFrameError,
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
)
from depth_prior_ros.recordings.bounded_bags import check_bag, check_topics

SOURCE_TOPIC = "/ground_truth/source"
MOVING_TOPIC = "/ground_truth/moving"
# Odometry older than this says nothing about a frame.
_ODOMETRY_AGE_NS = 500_000_000
# Share of pixels with depth: projected LiDAR has 3 to 5 %, published stereo about 20 %.
_LIDAR_SHARE, _STEREO_SHARE = 0.12, 0.4
# An image of a bag: its stamp, topic, log time, and place among the messages logged at that time.
_Located = tuple[int, str, int, int]
_NOT_COLOUR = ("depth", "disparity", "confidence", "mask", "segment", "label")


@dataclass(frozen=True)
class BagTopics:
    """Which topic is what; None: found by type and name, or not there."""

    image: str | None = None
    camera_info: str | None = None
    odom: str | None = None
    depth: str | None = None
    moving: str | None = None


class BagFile:
    """A bag that opens when it is first read, also in another process that it was sent to.

    lens: its images are rectified with it; None: they are as they should be.
    """

    def __init__(self, path: Path, lens: DistortedCamera | None = None) -> None:
        self.path = path
        self.lens = lens
        self._reader: Any = None
        self._rectifier: Rectifier | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "lens": self.lens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def reader(self) -> Any:
        """The open `AnyReader`; raises RecordingError naming the cause."""
        if self._reader is None:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore

            check_bag(self.path)
            try:
                reader = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
                reader.open()
            except Exception as error:  # rosbags raises what its parsers raise on damaged files
                raise RecordingError(_cannot_open(self.path, error)) from error
            check_topics(self.path, reader.connections)
            self._reader = reader
        return self._reader

    def topics(self) -> dict[str, tuple[str, int]]:
        """Message type and count by topic."""
        counts: dict[str, tuple[str, int]] = {}
        for connection in self.reader().connections:
            before = counts.get(connection.topic, ("", 0))[1]
            counts[connection.topic] = (connection.msgtype, before + connection.msgcount)
        return counts

    def messages(
        self, topics: set[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """(topic, log time in nanoseconds, message) in order; raises RecordingError on damage."""
        reader = self.reader()
        connections = [c for c in reader.connections if c.topic in topics]
        if not connections:
            return
        try:
            for connection, time, raw in reader.messages(connections, start=start, stop=stop):
                yield connection.topic, time, reader.deserialize(raw, connection.msgtype)
        except Exception as error:
            raise RecordingError(f"{self.path}: damaged ({error})") from error

    def message(self, topic: str, time: int, nth: int) -> Any:
        """The `nth` message of a topic logged at that time; raises CorruptFrameError."""
        try:
            with self._lock:
                found = list(self.messages({topic}, start=time, stop=time + 1))
        except RecordingError as error:
            raise CorruptFrameError(str(error)) from error
        if nth >= len(found):
            raise CorruptFrameError(f"{self.path}: a message of {topic} is gone")
        return found[nth][2]

    def load_image(self, topic: str, time: int, nth: int, camera: Camera) -> NDArray[np.uint8]:
        """Read one image; raises CorruptFrameError, also where its size is not the camera's."""
        what = f"{topic} at {time}"
        image = messages.image_of(self.message(topic, time, nth), what)
        if image.shape[:2] != (camera.height, camera.width):
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise CorruptFrameError(f"{what}: {found} instead of {camera.width}x{camera.height}")
        rectifier = self.rectifier()
        return image if rectifier is None else rectifier.apply(image)

    def rectifier(self) -> Rectifier | None:
        """What rectifies the images, made once; raises InvalidCameraError."""
        if self._rectifier is None and self.lens is not None:
            self._rectifier = Rectifier.for_camera(self.lens)
        return self._rectifier

    def load_depth(self, topic: str, time: int, nth: int) -> NDArray[np.float32]:
        """Read one depth map; raises CorruptFrameError."""
        return messages.depth_of(self.message(topic, time, nth), f"{topic} at {time}")

    def load_moving(self, topic: str, time: int, nth: int) -> NDArray[np.bool_]:
        """Read one mask of what moves by itself; raises CorruptFrameError."""
        return messages.mask_of(self.message(topic, time, nth), f"{topic} at {time}")


@dataclass
class _Contents:
    """What one pass over a bag found: where images and depth are, and the small messages."""

    images: list[_Located]
    depths: dict[int, tuple[str, int, int]]
    cameras: list[tuple[int, Any]]
    odometry: list[tuple[int, float | None, NDArray[np.float64] | None]]
    moving: dict[int, tuple[str, int, int]]
    source: str | None = None


def open_bag(
    path: Path,
    *,
    topics: BagTopics | None = None,
    camera: Camera | None = None,
    rectify: str = "auto",
) -> StoredRecording:
    """Open a bag's camera; `topics` overrides what is found, `camera` a missing camera_info.

    rectify: whether images are rectified where camera_info has distortion; see
    `rectification.rectification_wanted`. Not with a `camera`, which is that of rectified images.

    Raises RecordingError for a damaged bag, one without images (naming what is in it), without
    intrinsics, with ones that make no sense, or without the topics asked for.
    """
    path = Path(path)
    bag = BagFile(path)
    there = bag.topics()
    chosen = find_topics(there, topics or BagTopics(), path)
    notes: list[str] = []
    try:
        contents = _scan(bag, chosen)
        if camera is None:
            camera = _camera(contents, chosen, path)
            if rectification_wanted(rectify, chosen.image or ""):
                bag.lens = _lens(contents, chosen, path, notes)
    except AttributeError as error:  # definitions in the file are not those of their types
        raise RecordingError(_cannot_open(path, error)) from error
    skipped: list[Skipped] = []
    images = _ordered(contents.images, skipped)
    if not images:
        raise RecordingError(f"{path}: no image of {chosen.image} is usable")
    times = [stamp for stamp, *_ in contents.odometry]
    frames = []
    for index, image in zip(_indices(images, skipped), images, strict=True):
        stamp = image[0]
        depth, moving = contents.depths.get(stamp), contents.moving.get(stamp)
        speed, pose = _odometry_at(contents.odometry, times, stamp)
        frames.append(
            Frame(
                index=index,
                stamp_ns=stamp,
                camera=camera,
                load_image=partial(bag.load_image, *image[1:], camera),
                load_depth=partial(bag.load_depth, *depth) if depth else None,
                pose=pose,
                speed=speed,
                load_moving=partial(bag.load_moving, *moving) if moving else None,
                processing=f"rectified: {bag.lens}" if bag.lens else "",
            )
        )
    lost = len(contents.depths) - sum(frame.has_depth for frame in frames)
    if lost:
        notes.append(f"{lost} depth maps have no image of the same stamp")
    source = _depth_source(contents, frames, notes)
    return StoredRecording(path.stem, frames, skipped, depth_source=source, notes=notes)


def find_topics(there: dict[str, tuple[str, int]], wanted: BagTopics, path: Path) -> BagTopics:
    """Which topic is what: as wanted, else by type and name; raises RecordingError."""
    for item in fields(wanted):
        topic = getattr(wanted, item.name)
        if topic is not None and topic not in there:
            raise RecordingError(f"{path}: no topic {topic}. {_listing(there)}")
    image = wanted.image or _find_image(there)
    if image is None:
        raise RecordingError(f"{path}: no images in this bag. {_listing(there)}")
    base = image.rsplit("/", 2 if image.endswith("/compressed") else 1)[0]
    infos = [t for t in _of_type(there, messages.CAMERA_INFO) if not _is_special(t)]
    info = f"{base}/camera_info" if f"{base}/camera_info" in infos else next(iter(infos), None)
    odom = _first(_of_type(there, messages.ODOMETRY), "/odom") or _first(
        _of_type(there, messages.TWIST), "/twist"
    )
    depths = [
        t
        for t in _of_type(there, messages.COMPRESSED_IMAGE, messages.IMAGE)
        if t.startswith("/ground_truth/") and "depth" in t
    ]
    depth = _first(depths, "/ground_truth/depth")
    moving = MOVING_TOPIC if _is_picture(there, MOVING_TOPIC) else None
    found = BagTopics(image, info, odom, depth, moving)
    return replace(found, **{k: v for k, v in vars(wanted).items() if v is not None})


def _of_type(there: dict[str, tuple[str, int]], *types: str) -> list[str]:
    """Topics of these types that have messages, the fullest first."""
    found = [t for t, (kind, count) in there.items() if kind in types and count]
    return sorted(found, key=lambda t: (-there[t][1], t))


def _is_picture(there: dict[str, tuple[str, int]], topic: str) -> bool:
    return topic in _of_type(there, messages.COMPRESSED_IMAGE, messages.IMAGE)


def _first(topics: list[str], favourite: str) -> str | None:
    return favourite if favourite in topics else next(iter(topics), None)


def _is_special(topic: str) -> bool:
    return topic.startswith("/ground_truth/") or any(word in topic for word in _NOT_COLOUR)


def _find_image(there: dict[str, tuple[str, int]]) -> str | None:
    found = [
        topic
        for topic in _of_type(there, messages.COMPRESSED_IMAGE, messages.IMAGE)
        if not _is_special(topic) and not topic.endswith("compressedDepth")
    ]
    raw, compressed = "/camera/image_raw", "/camera/image_raw/compressed"
    return _first(found, compressed if compressed in found else raw)


def _listing(there: dict[str, tuple[str, int]]) -> str:
    if not there:
        return "It holds no topics at all."
    rows = ", ".join(f"{t} ({kind}, {n})" for t, (kind, n) in sorted(there.items()))
    return f"Its topics: {rows}"


def _cannot_open(path: Path, error: Exception) -> str:
    if "end magic" in str(error):
        return (
            f"{path}: cut off (its recording was not finished); `mcap recover` saves what is in it"
        )
    return f"{path}: cannot be read as a bag ({error or type(error).__name__})"


def _scan(bag: BagFile, chosen: BagTopics) -> _Contents:
    contents = _Contents([], {}, [], [], {})
    seen: Counter[tuple[str, int]] = Counter()
    wanted = {t for t in vars(chosen).values() if t is not None} | {SOURCE_TOPIC}
    for topic, time, message in bag.messages(wanted):
        nth = seen[topic, time]
        seen[topic, time] += 1
        if topic == chosen.image:
            # cameras that never set their clock leave zero: then the time of logging counts
            contents.images.append((messages.stamp_of(message) or time, topic, time, nth))
        elif topic == chosen.depth:
            contents.depths.setdefault(messages.stamp_of(message) or time, (topic, time, nth))
        elif topic == chosen.moving:
            contents.moving.setdefault(messages.stamp_of(message) or time, (topic, time, nth))
        elif topic == chosen.camera_info:
            if not contents.cameras:
                contents.cameras.append((time, message))
        elif topic == chosen.odom:
            stamp = messages.stamp_of(message) or time
            pose = messages.pose_from_odometry(message)
            contents.odometry.append((stamp, messages.speed_of(message), pose))
        elif topic == SOURCE_TOPIC and message.data in DEPTH_SOURCES:
            contents.source = message.data
    contents.odometry.sort(key=lambda entry: entry[0])
    return contents


def _camera(contents: _Contents, chosen: BagTopics, path: Path) -> Camera:
    if not contents.cameras:
        raise RecordingError(
            f"{path}: no camera_info for {chosen.image}; "
            "name its topic, or give the intrinsics in pixels (fx, fy, cx, cy)"
        )
    try:
        return messages.camera_of(contents.cameras[0][1])
    except InvalidCameraError as error:
        raise RecordingError(f"{path}: {chosen.camera_info}: {error}") from error


def _lens(
    contents: _Contents, chosen: BagTopics, path: Path, notes: list[str]
) -> DistortedCamera | None:
    """What the images are rectified with; tried out, so that it fails now or never."""
    try:
        lens = messages.lens_of(contents.cameras[0][1])
        rectifier = None if lens is None else Rectifier.for_camera(lens)
    except InvalidCameraError as error:
        raise RecordingError(f"{path}: {chosen.camera_info}: {error}") from error
    if lens is None or rectifier is None:
        return None
    empty = 0.0 if rectifier.outside is None else float(rectifier.outside.mean())
    rest = f"; {empty:.0%} of the result shows nothing" if empty > 0.005 else ""
    notes.append(f"{chosen.image} is rectified ({lens.model} in {chosen.camera_info}){rest}")
    return lens


def _ordered(images: list[_Located], skipped: list[Skipped]) -> list[_Located]:
    """Images whose stamps increase; the others are named."""
    kept: list[_Located] = []
    for image in images:
        if kept and image[0] <= kept[-1][0]:
            how = "stands still" if image[0] == kept[-1][0] else "runs backwards"
            skipped.append(Skipped(f"image logged at {image[2]}", f"its stamp {image[0]} {how}"))
        else:
            kept.append(image)
    return kept


def _indices(images: list[_Located], skipped: list[Skipped]) -> list[int]:
    """Frame numbers that jump where frames are missing, judged by the usual period."""
    steps = [b[0] - a[0] for a, b in itertools.pairwise(images)]
    period = statistics.median(steps) if steps else 1
    indices = [0]
    for step in steps:
        missing = max(0, round(step / period) - 1)
        if missing:
            index = indices[-1]
            skipped.append(Skipped(f"after frame {index}", f"{missing} missing"))
        indices.append(indices[-1] + 1 + missing)
    return indices


def _odometry_at(
    odometry: list[tuple[int, float | None, NDArray[np.float64] | None]],
    times: list[int],
    stamp: int,
) -> tuple[float | None, NDArray[np.float64] | None]:
    """Speed of the newest odometry at that moment; its pose only where it is of that moment."""
    position = bisect.bisect_right(times, stamp) - 1
    if position < 0 or stamp - times[position] > _ODOMETRY_AGE_NS:
        return None, None
    time, speed, pose = odometry[position]
    return speed, pose if time == stamp else None


def _depth_source(contents: _Contents, frames: list[Frame], notes: list[str]) -> str | None:
    first = next((frame for frame in frames if frame.has_depth), None)
    if first is None:
        return None
    if contents.source:
        return contents.source
    depth = first.depth()
    share = float(np.mean(depth > 0)) if depth is not None else 0.0
    source = "lidar" if share < _LIDAR_SHARE else "stereo" if share < _STEREO_SHARE else "exact"
    notes.append(f"depth taken as {source}: {share:.0%} of the first map's pixels have some")
    return source
