"""A bag as a recording: its camera's images with what else is known of their moments.

Opening reads every message once (the stamps are in them) and keeps none; pixels are read again
when they are asked for. What had to be chosen or assumed is in the recording's notes, in words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.geometry.points import project_points
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.images.calibration import Calibration, DistortedCamera, rectification_wanted
from depth_prior_ros.images.encodings import MessageError, check_image, image_size, is_compressed
from depth_prior_ros.images.rectification import (
    LensCorrection,
    Rectifier,
    check_calibration,
)
from depth_prior_ros.motion.odometry import Trajectory, read_odometry
from depth_prior_ros.motion.transforms import TransformBuffer, TransformError
from depth_prior_ros.recordings import bag_messages as messages
from depth_prior_ros.recordings.bag_file import BagFile
from depth_prior_ros.recordings.bag_topics import (
    POINTS,
    SOURCE_TOPIC,
    TRANSFORMS,
    TRUTH,
    BagTopics,
    There,
    camera_of,
    choose_topics,
    image_topics,
)
from depth_prior_ros.recordings.base import (
    DEPTH_SOURCES,
    CorruptFrameError,
    Frame,
    Mount,
    RecordingError,
    Skipped,
    StoredRecording,
    name_skipped,
)
from depth_prior_ros.recordings.folder import read_mapping
from depth_prior_ros.recordings.stamps import (
    Logged,
    StampOrder,
    nearest,
    number_frames,
    order_stamps,
)

__all__ = ["TOPICS_FILE", "BagTopics", "open_bag"]

TOPICS_FILE = "topics.yaml"
"""In a bag's folder, or as BAG.topics.yaml beside it: `image: /front/image_raw`, and so on by the
names of `BagTopics`; it holds for every tool that opens the bag."""

# Odometry older than this says nothing about a frame.
_ODOMETRY_AGE = 0.5
# Seconds over which poses tell a speed.
_SPEED_SPAN_NS = 200_000_000
# Share of pixels with depth: projected LiDAR has 3 to 5 %, published stereo about 20 %.
_LIDAR_SHARE = 0.12
# A sweep takes a tenth of a second; the nearest one of an image is at most half of that away.
_SWEEP_AGE_NS = 60_000_000
_TRIED = 3  # messages of a topic before it counts as one that cannot be read
_WORDS_OF_UNIT = {
    messages.KITTI_UNIT: "metres x 256, as this project writes it",
    messages.MILLIMETRE: "16 bits are millimetres, 32 bits metres, as in ROS",
}


def _load_image(
    bag: BagFile, where: _Place, camera: Camera, correction: LensCorrection
) -> NDArray[np.uint8]:
    """Read one image; raises CorruptFrameError, also where its size is not the camera's."""
    image = messages.image_of(bag.message(*where.message), where.words)
    if image.shape[:2] != (camera.height, camera.width):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise CorruptFrameError(f"{where.words}: {found} instead of {camera.width}x{camera.height}")
    return correction.apply(image)


def _load_stored(bag: BagFile, where: _Place) -> bytes:
    message = bag.message(*where.message)
    return np.asarray(message.data, np.uint8).tobytes()


def _load_depth(bag: BagFile, where: _Place, unit: float) -> NDArray[np.float32]:
    return messages.depth_of(bag.message(*where.message), where.words, unit)


def _load_points(
    bag: BagFile, where: _Place, camera_from_points: NDArray[np.float64], camera: Camera
) -> NDArray[np.float32]:
    points = messages.points_of(bag.message(*where.message), where.words)
    return project_points(points, camera_from_points, camera)


def _load_moving(bag: BagFile, where: _Place) -> NDArray[np.bool_]:
    return messages.mask_of(bag.message(*where.message), where.words)


@dataclass(frozen=True)
class _Place:
    """A message in a bag: its stamp, topic, log time, and place among those logged at that time.

    frame: its frame_id. size: (width, height) of an image. plain: whether an image is a JPEG or PNG
    whose pixels are what they look like in a file of its own.
    """

    stamp: int
    topic: str
    time: int
    nth: int
    frame: str = ""
    size: tuple[int, int] = (0, 0)
    plain: bool = False

    @property
    def message(self) -> tuple[str, int, int]:
        return self.topic, self.time, self.nth

    @property
    def words(self) -> str:
        return f"{self.topic} at {self.time}"


@dataclass
class _Contents:
    """What one pass over a bag found: where images and depth are, and the small messages."""

    images: list[_Place] = field(default_factory=list)
    depths: list[_Place] = field(default_factory=list)
    moving: list[_Place] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)  # different ones
    odometry: list[tuple[Logged, Any]] = field(default_factory=list)
    vehicle: str = ""  # the frame whose poses odometry tells
    skipped: list[Skipped] = field(default_factory=list)
    unstamped: int = 0
    source: str | None = None
    transforms: TransformBuffer = field(default_factory=lambda: TransformBuffer(math.inf))


def open_bag(
    path: Path,
    *,
    topics: BagTopics | None = None,
    camera: Camera | None = None,
    rectify: str = "auto",
    calibration: Calibration | None = None,
) -> StoredRecording:
    """Open a bag's camera; `topics` overrides what is found, `camera` a missing camera_info.

    calibration: counts instead of camera_info (of a pair that is rectified together).

    rectify: whether images are rectified where camera_info has distortion; see
    `calibration.rectification_wanted`. Not with a `camera`, which is that of rectified images.
    What `topics` leaves open, a file beside the bag may say for every tool (see `TOPICS_FILE`).

    Raises RecordingError for a damaged bag, one without images (naming what is in it), without
    intrinsics, with ones that make no sense, or without the topics asked for.
    """
    bag = BagFile(Path(path))
    wanted = _with_kept(bag, topics or BagTopics())
    there = bag.topics()
    unreadable = {} if wanted.image else _unreadable(bag, image_topics(there))
    left_out = [f"{topic} is left out: {why}" for topic, why in sorted(bag.foreign().items())]
    try:
        chosen, notes = choose_topics(there, wanted, bag.path, unreadable)
    except RecordingError as error:
        raise RecordingError(" ".join([str(error), *left_out])) from error
    notes += left_out
    try:
        contents = _scan(bag, chosen, there)
    except AttributeError as error:  # definitions in the file are not those of their types
        raise RecordingError(
            f"{bag.path}: cannot be read as a bag ({error or type(error).__name__})"
        ) from error
    images = _of_one_size(contents)
    _drop_truth_of_others(contents, images, notes)
    images = _with_stamps(contents, images, chosen, notes)
    order = order_stamps([Logged(image.stamp, image.time) for image in images])
    if not order.kept:
        raise RecordingError(f"{bag.path}: no image of {chosen.image} is usable{_why(contents)}")
    rectifies = camera is None and rectification_wanted(rectify, chosen.image or "")
    if calibration is None:
        size = images[0].size
        calibration = _calibration(contents, camera, chosen, size, rectifies, bag.path, notes)
    lens = None
    try:
        if rectifies:
            lens = _lens(calibration, images[0].size, chosen, notes)
        fitted = calibration.camera(*images[0].size)
        doubts = calibration.doubts(*images[0].size, chosen.image or "", lens is not None)
    except (MessageError, InvalidCameraError) as error:
        text = error.text if isinstance(error, MessageError) else error
        raise RecordingError(f"{bag.path}: {chosen.camera_info}: {text}") from error
    notes += [f"{chosen.camera_info}: {doubt}" for doubt in doubts]
    lidar = None
    if _is_points(chosen, there):
        lidar = _Lidar(contents, order, calibration.rectified_from_optical(), notes)
    motion = _Motion(contents, order, images[0].frame, calibration.rectified_from_optical())
    frames = _frames(bag, lens, fitted, images, order, contents, chosen, lidar, motion, notes)
    recording = StoredRecording(
        bag.path.stem,
        frames,
        [*contents.skipped, *order.skipped],
        notes=[*bag.notes, *notes, *order.notes],
    )
    recording.streams = {k: v for k, v in vars(chosen).items() if v is not None}
    recording.mount = Mount(chosen.image or "", calibration.place_in_pair())
    recording.depth_source = _depth_source(contents, frames, lidar is not None, recording.notes)
    return recording


def _with_kept(bag: BagFile, wanted: BagTopics) -> BagTopics:
    """What was wanted, and for the rest what the file of topics says; raises RecordingError."""
    inside, beside = bag.path / TOPICS_FILE, bag.path.with_name(f"{bag.path.name}.{TOPICS_FILE}")
    file = next((f for f in (inside, beside) if f.is_file()), None)
    if file is None:
        return wanted
    names = tuple(vars(wanted))
    content = read_mapping(file, ", ".join(names))
    wrong = [k for k, v in content.items() if k not in names or not isinstance(v, str)]
    if wrong:
        raise RecordingError(f"{file}: {wrong[0]!r}: one of {', '.join(names)}, and a topic")
    bag.notes.append(f"topics by {file}: {', '.join(content.values())}")
    open_ones = {name: topic for name, topic in content.items() if getattr(wanted, name) is None}
    return replace(wanted, **open_ones)


def images_size(path: Path, topics: BagTopics | None = None) -> tuple[int, int]:
    """(width, height) of a bag's first image; raises RecordingError."""
    bag = BagFile(Path(path))
    there = bag.topics()
    chosen, _ = choose_topics(there, _with_kept(bag, topics or BagTopics()), bag.path)
    for _, _, message in bag.messages({chosen.image or ""}):
        try:
            return image_size(message)
        except MessageError:
            continue
    raise RecordingError(f"{path}: no image of {chosen.image} is usable")


@dataclass(frozen=True)
class BagCamera:
    """One of a bag's cameras: its image topic, first calibration, and its images' frame_id."""

    topic: str
    calibration: Calibration
    frame: str


def cameras_in_bag(path: Path) -> tuple[list[BagCamera], TransformBuffer]:
    """All calibrated cameras of a bag, each by its topic with the most images, and its tf."""
    bag = BagFile(Path(path))
    there = bag.topics()
    topics: dict[str, str] = {}  # camera_info -> image topic
    for topic in image_topics(there):
        info = f"{camera_of(topic)}/camera_info"
        if info in there:
            topics.setdefault(info, topic)
    transforms = TransformBuffer(math.inf)
    moving = {t for t, (kind, _) in there.items() if kind in TRANSFORMS}
    found: dict[str, BagCamera] = {}
    for topic, _, message in bag.messages({*topics, *moving}):
        if topic in moving:
            transforms.add_message(message, static=topic.endswith("static"))
        elif topic not in found:
            calibration = Calibration.from_message(message)
            if any(calibration.K) or any(calibration.P):
                frame = str(message.header.frame_id)
                found[topic] = BagCamera(topics[topic], calibration, frame)
    return list(found.values()), transforms


def _unreadable(bag: BagFile, topics: Sequence[str]) -> dict[str, str]:
    """Image topics of which not one of the first messages can be decoded, and why."""
    found: dict[str, str] = {}
    for topic in topics:
        why = ""
        for number, (_, time, message) in enumerate(bag.messages({topic})):
            try:
                messages.image_of(message, f"the message logged at {time}")
                why = ""
                break
            except CorruptFrameError as error:
                why = why or str(error)
            if number + 1 >= _TRIED:
                break
        if why:
            found[topic] = why
    return found


def _scan(bag: BagFile, chosen: BagTopics, there: There) -> _Contents:
    contents = _Contents()
    seen: Counter[tuple[str, int]] = Counter()
    wanted = {t for t in vars(chosen).values() if t is not None} | {SOURCE_TOPIC}
    frames = {t for t, (kind, _) in there.items() if kind in TRANSFORMS}
    if _is_points(chosen, there) or chosen.odom is not None:
        wanted |= frames
    for topic, time, message in bag.messages(wanted):
        nth = seen[topic, time]
        seen[topic, time] += 1
        if topic == SOURCE_TOPIC:
            contents.source = message.data if message.data in DEPTH_SOURCES else contents.source
            continue
        if topic in frames:
            contents.transforms.add_message(message, static=topic.endswith("static"))
            continue
        stamp = messages.stamp_of(message)
        # cameras that never set their clock leave zero: then the time of logging counts
        place = _Place(stamp or time, topic, time, nth, str(message.header.frame_id))
        if topic == chosen.image:
            contents.unstamped += stamp == 0
            _add_image(contents, place, message)
        elif topic == chosen.depth:
            contents.depths.append(place)
        elif topic == chosen.moving:
            contents.moving.append(place)
        elif topic == chosen.camera_info:
            calibration = Calibration.from_message(message)
            if calibration not in contents.calibrations:
                contents.calibrations.append(calibration)
        elif topic == chosen.odom:
            contents.odometry.append((Logged(place.stamp, time), read_odometry(message)))
            contents.vehicle = contents.vehicle or str(getattr(message, "child_frame_id", ""))
    return contents


def _add_image(contents: _Contents, place: _Place, message: Any) -> None:
    try:
        check_image(message)
        size = image_size(message)
    except MessageError as error:
        name_skipped(contents.skipped, f"image logged at {place.time}", error.text)
        return
    plain = is_compressed(message) and messages.is_plain_format(message.format)
    contents.images.append(replace(place, size=size, plain=plain))


def _of_one_size(contents: _Contents) -> list[_Place]:
    """The images of the most common size; the others are named."""
    if not contents.images:
        return []
    width, height = Counter(i.size for i in contents.images).most_common(1)[0][0]
    kept = [i for i in contents.images if i.size == (width, height)]
    for image in contents.images:
        if image.size != (width, height):
            why = f"{image.size[0]}x{image.size[1]}, the others are {width}x{height}"
            contents.skipped.append(Skipped(f"image logged at {image.time}", why))
    return kept


def _with_stamps(
    contents: _Contents, images: list[_Place], chosen: BagTopics, notes: list[str]
) -> list[_Place]:
    """The images; where their clock was never set or never moves, by the time of logging."""
    if contents.unstamped:
        notes.append(
            f"{contents.unstamped} of {len(contents.images)} images of {chosen.image} have no "
            "stamp: the time of logging counts"
        )
    if len(images) <= _TRIED or len({image.stamp for image in images}) > 1:
        return images
    notes.append(f"all images of {chosen.image} have one stamp: the time of logging counts")
    return [replace(image, stamp=image.time) for image in images]


def _why(contents: _Contents) -> str:
    return f" ({contents.skipped[0]})" if contents.skipped else ""


def _calibration(
    contents: _Contents,
    camera: Camera | None,
    chosen: BagTopics,
    size: tuple[int, int],
    rectifies: bool,
    path: Path,
    notes: list[str],
) -> Calibration:
    """The first usable one that fits the images, of their very size if there is one."""
    if camera is not None:
        return Calibration.from_camera(camera)
    if not contents.calibrations:
        raise RecordingError(
            f"{path}: no camera_info for {chosen.image}; name its topic, or give the intrinsics "
            f"in pixels (fx, fy, cx, cy){''.join(f'; {note}' for note in notes)}"
        )
    usable, refused = [], ""
    for calibration in contents.calibrations:
        try:
            check_calibration(calibration, rectifies)
            calibration.camera(*size)
            usable.append(calibration)
        except MessageError as error:
            refused = refused or error.text
    if not usable:
        raise RecordingError(f"{path}: {chosen.camera_info}: {refused}")
    if refused:
        notes.append(f"{chosen.camera_info}: not all are used: {refused}")
    best = next((c for c in usable if (c.width, c.height) == size), usable[0])
    if len(usable) > 1:
        notes.append(
            f"{chosen.camera_info}: there are {len(usable)} different calibrations that fit; the "
            "first one counts for all images"
        )
    if (best.width, best.height) != size:
        notes.append(
            f"{chosen.camera_info} is for {best.width}x{best.height}, the images are "
            f"{size[0]}x{size[1]}: {_way_to_fit(best)}"
        )
    return best


def _way_to_fit(calibration: Calibration) -> str:
    if calibration.roi[2]:
        return "its region of interest counts"
    return "binned" if calibration.binning != (1, 1) else "scaled to fit"


def _lens(
    calibration: Calibration, size: tuple[int, int], chosen: BagTopics, notes: list[str]
) -> DistortedCamera | None:
    """What the images are rectified with; tried out, so that it fails now or never."""
    lens = calibration.lens(*size)
    rectifier = None if lens is None else Rectifier.for_camera(lens)
    if lens is None or rectifier is None:
        return None
    empty = 0.0 if rectifier.outside is None else float(rectifier.outside.mean())
    rest = f"; {empty:.0%} of the result shows nothing" if empty > 0.005 else ""
    notes.append(f"{chosen.image} is rectified ({lens.model} in {chosen.camera_info}){rest}")
    return lens


def _frames(
    bag: BagFile,
    lens: DistortedCamera | None,
    camera: Camera,
    images: list[_Place],
    order: StampOrder,
    contents: _Contents,
    chosen: BagTopics,
    lidar: _Lidar | None,
    motion: _Motion,
    notes: list[str],
) -> list[Frame]:
    correction = LensCorrection(lens)
    depths, movings = _by_stamp(contents.depths, order), _by_stamp(contents.moving, order)
    own = contents.source is not None and (chosen.depth or "").startswith(TRUTH)
    unit = messages.KITTI_UNIT if own else messages.MILLIMETRE
    frames = []
    for number, position, stamp in zip(number_frames(order), order.kept, order.stamps, strict=True):
        load_depth: Callable[[], NDArray[np.float32]] | None = None
        if lidar is not None:
            seen = lidar.seen(images[position], stamp)
            load_depth = partial(_load_points, bag, *seen, camera) if seen else None
        elif stamp in depths:
            load_depth = partial(_load_depth, bag, depths[stamp], unit)
        moving, place = movings.get(stamp), images[position]
        frames.append(
            Frame(
                index=number,
                stamp_ns=stamp,
                camera=camera,
                load_image=partial(_load_image, bag, place, camera, correction),
                load_depth=load_depth,
                pose=motion.pose(stamp),
                speed=motion.speed(stamp),
                load_moving=partial(_load_moving, bag, moving) if moving else None,
                processing=correction.words,
                load_stored=partial(_load_stored, bag, place) if place.plain else None,
                lens=lens,
            )
        )
    if lidar is None:
        found = sum(frame.has_depth for frame in frames)
        if found:
            notes.append(f"depth of {chosen.depth}: {_WORDS_OF_UNIT[unit]}")
        if lost := len(contents.depths) - found:
            notes.append(f"{lost} depth maps have no image of the same stamp")
    if contents.odometry and not any(f.speed is not None or f.pose is not None for f in frames):
        notes.append(motion.why_nothing(chosen, order))
    if motion.doubt and contents.transforms.frames():
        notes.append(f"poses of {chosen.odom}: {motion.doubt}")
    return frames


def _drop_truth_of_others(contents: _Contents, images: list[_Place], notes: list[str]) -> None:
    """Leave ground truth out that was made for another camera of the bag, by its frame_id."""
    own = {image.frame for image in images}
    for places, what in ((contents.depths, "depth"), (contents.moving, "moving")):
        others = {p.frame for p in places if p.topic.startswith(TRUTH) and p.frame not in own}
        if others:
            told = ", ".join(sorted(map(repr, others)))
            notes.append(f"{places[0].topic} ({what}) is of another camera ({told}): left out")
            places[:] = [place for place in places if place.frame not in others]


def _by_stamp(places: list[_Place], order: StampOrder) -> dict[int, _Place]:
    found: dict[int, _Place] = {}
    for place in places:
        found.setdefault(order.moved(place.stamp, place.time), place)
    return found


def _is_points(chosen: BagTopics, there: There) -> bool:
    return there.get(chosen.depth or "", ("", 0))[0] == POINTS


class _Lidar:
    """Which sweep an image has, and how its points come into the camera's frame.

    rectified: (4, 4) from the frame of the images to that of the rectified camera.
    """

    def __init__(
        self,
        contents: _Contents,
        order: StampOrder,
        rectified: NDArray[np.float64],
        notes: list[str],
    ) -> None:
        self._contents = contents
        self._rectified = rectified
        self._notes = notes
        found = sorted(
            ((order.moved(place.stamp, place.time), place) for place in contents.depths),
            key=lambda entry: entry[0],
        )
        self._stamps = [stamp for stamp, _ in found]
        self._sweeps = [place for _, place in found]
        self._said: set[str] = set()
        notes += [f"tf: {doubt}" for doubt in contents.transforms.doubts]

    def seen(self, image: _Place, stamp: int) -> tuple[_Place, NDArray[np.float64]] | None:
        """The nearest sweep and camera_from_points (4, 4); None where there is none, said why."""
        best = nearest(self._stamps, stamp)
        if best is None or abs(self._stamps[best] - stamp) > _SWEEP_AGE_NS:
            return None
        sweep = self._sweeps[best]
        try:
            optical = self._contents.transforms.lookup(
                image.frame, sweep.frame, image.stamp, sweep.stamp
            )
        except TransformError as error:
            # The same cause for every frame: its time apart.
            cause = str(error).partition(", not at")[0]
            if cause not in self._said:
                self._said.add(cause)
                self._notes.append(f"no depth from {sweep.topic}: tf: {error}")
            return None
        return sweep, self._rectified @ optical


class _Motion:
    """What odometry says of a frame: the nearest speed, a pose between poses.

    Where the twist is never filled in, as of many a visual odometry, the poses tell the speed.
    Where the camera is mounted is taken from tf; without, it looks ahead from where the poses are.

    camera: frame of the images. rectified: (4, 4) from it to that of the rectified camera.
    """

    def __init__(
        self, contents: _Contents, order: StampOrder, camera: str, rectified: NDArray[np.float64]
    ) -> None:
        self._contents, self._camera = contents, camera
        self._optical_from_rectified = rigid_inverse(rectified)
        self.doubt = ""
        self._trajectory = Trajectory(math.inf)
        self._speeds: list[tuple[int, float]] = []
        readings = sorted(
            ((order.moved(*logged), reading) for logged, reading in contents.odometry),
            key=lambda entry: entry[0],
        )
        for stamp, reading in readings:
            if reading.position is not None and reading.quaternion is not None:
                self._trajectory.add(stamp, reading.position, reading.quaternion)
            if reading.speed is not None and math.isfinite(reading.speed):
                self._speeds.append((stamp, reading.speed))
        self._stamps = [stamp for stamp, _ in self._speeds]
        self._twist_is_filled = any(speed for _, speed in self._speeds)

    def pose(self, stamp: int) -> NDArray[np.float64] | None:
        """world_from_camera (4, 4)."""
        pose = self._trajectory.pose(stamp, _ODOMETRY_AGE)
        if pose is None:
            return None
        mount = self._mount(stamp)
        if mount is None:
            return messages.camera_pose(pose, self._trajectory.is_optical)
        world = np.asarray(pose @ mount @ self._optical_from_rectified)
        return world if self._trajectory.is_optical else messages.optical_world(world)

    def _mount(self, stamp: int) -> NDArray[np.float64] | None:
        """vehicle_from_optical (4, 4) by tf; None where it does not say."""
        if not self._contents.vehicle:
            return None
        try:
            return self._contents.transforms.lookup(self._contents.vehicle, self._camera, stamp)
        except TransformError as error:
            self.doubt = f"tf: {error}: the camera is taken to look ahead from there"
            return None

    def speed(self, stamp: int) -> float | None:
        """Metres per second, negative when reversing."""
        if not self._twist_is_filled and (speed := self._speed_of_poses(stamp)) is not None:
            return speed
        best = nearest(self._stamps, stamp)
        if best is None or abs(self._stamps[best] - stamp) > _ODOMETRY_AGE * 1e9:
            return None
        return self._speeds[best][1]

    def _speed_of_poses(self, stamp: int) -> float | None:
        for first, last in ((stamp - _SPEED_SPAN_NS, stamp), (stamp, stamp + _SPEED_SPAN_NS)):
            step = self._trajectory.step(first, last, _ODOMETRY_AGE)
            if step is not None:
                ahead = step[2, 3] if self._trajectory.is_optical else step[0, 3]
                metres = float(np.linalg.norm(step[:3, 3]))
                return math.copysign(metres / (_SPEED_SPAN_NS * 1e-9), ahead)
        return None

    def why_nothing(self, chosen: BagTopics, order: StampOrder) -> str:
        """Why no frame has a speed or a pose, in words."""
        span = self._trajectory.span_ns or tuple(self._stamps[:1] + self._stamps[-1:])
        if not span:
            return f"{chosen.odom} has neither a usable pose nor a speed in it"
        apart = max(span[0] - order.stamps[-1], order.stamps[0] - span[-1]) * 1e-9
        return (
            f"{chosen.odom} says nothing about the images: its stamps lie {apart:.4g} s from "
            "theirs, so the two have different clocks; stamp both with one clock, or name another "
            "topic of odometry"
        )


def _depth_source(
    contents: _Contents, frames: list[Frame], lidar: bool, notes: list[str]
) -> str | None:
    first = next((frame for frame in frames if frame.has_depth), None)
    if first is None:
        return None
    if contents.source:
        return contents.source
    if lidar:
        return "lidar"
    depth = first.depth()
    share = float(np.mean(depth > 0)) if depth is not None else 0.0
    # Whoever measured it, a sensor is never exact.
    source = "lidar" if share < _LIDAR_SHARE else "stereo"
    notes.append(f"depth taken as {source}: {share:.0%} of the first map's pixels have some")
    return source
