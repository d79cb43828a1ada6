"""`depth_bag make` and `render`: any recording as a bag, with the topics that this project writes.

    /camera/image_raw/compressed   sensor_msgs/CompressedImage, JPEG
    /camera/camera_info            sensor_msgs/CameraInfo
    /odom                          nav_msgs/Odometry, where the speed is known
    /ground_truth/depth            sensor_msgs/CompressedImage, 16-bit PNG, metres x 256, 0 = none
    /ground_truth/camera_info      sensor_msgs/CameraInfo
    /ground_truth/source           std_msgs/String: lidar, stereo or exact
    /ground_truth/moving           sensor_msgs/CompressedImage, 8-bit PNG, 255 = moves by itself,
                                   where asked for and known
    /camera_right/...              image and camera_info of the stereo partner, where asked for; its
                                   P has the baseline

The same recording gives the same bytes. Messages are made without ROS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import staging_folder
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.motion.odometry import UNKNOWN
from depth_prior_ros.recordings.bag_messages import KITTI_WORDS, odometry_from_pose
from depth_prior_ros.recordings.bag_topics import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    MOVING_TOPIC,
    ODOMETRY,
    SOURCE_TOPIC,
    STRING,
)
from depth_prior_ros.recordings.base import (
    CorruptFrameError,
    Frame,
    Recording,
    RecordingError,
    name_skipped,
)
from depth_prior_ros.recordings.image_files import encode_depth
from rosbag_tools.console import progress, show, show_skipped
from rosbag_tools.info import summary

if TYPE_CHECKING:
    from depth_prior_ros.images.calibration import Calibration
    from depth_prior_ros.scale import ScaleStatus

CAMERA_FRAME = "camera_optical_frame"
_STATUS = "diagnostic_msgs/msg/DiagnosticStatus"

Entry = tuple[str, str, Any]
"""Topic, type, serialised message."""


class Messages:
    """Makes messages and serialises them (CDR)."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self.store = get_typestore(Stores.ROS2_HUMBLE)

    def make(self, kind: str, **values: Any) -> Any:
        """A message of a type, such as `std_msgs/msg/String`."""
        return self.store.types[kind](**values)

    def header(self, stamp_ns: int, frame_id: str = CAMERA_FRAME) -> Any:
        """A header with a stamp in nanoseconds."""
        second, nano = divmod(stamp_ns, 1_000_000_000)
        stamp = self.make("builtin_interfaces/msg/Time", sec=second, nanosec=nano)
        return self.make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def entry(self, topic: str, kind: str, **values: Any) -> Entry:
        """A serialised message with where it goes."""
        return topic, kind, self.store.serialize_cdr(self.make(kind, **values), kind)

    def camera_info(self, calibration: Calibration) -> dict[str, Any]:
        """The fields of a CameraInfo, its header apart."""
        roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        return {
            "height": calibration.height,
            "width": calibration.width,
            "distortion_model": calibration.model,
            "d": np.array(calibration.D),
            "k": np.array(calibration.K),
            "r": np.array(calibration.R),
            "p": np.array(calibration.P),
            "binning_x": 0,
            "binning_y": 0,
            "roi": self.make("sensor_msgs/msg/RegionOfInterest", **roi),
        }

    def info(self, topic: str, stamp_ns: int, calibration: Calibration) -> Entry:
        """A CameraInfo."""
        values = self.camera_info(calibration)
        return self.entry(topic, CAMERA_INFO, header=self.header(stamp_ns), **values)

    def depth_image(self, topic: str, stamp_ns: int, depth: NDArray[np.float32]) -> Entry:
        """An Image of floats (h, w): 32FC1, metres as REP-118 has it."""
        height, width = depth.shape
        pixels = np.ascontiguousarray(depth, "<f4")
        return self.entry(
            topic,
            IMAGE,
            header=self.header(stamp_ns),
            height=height,
            width=width,
            encoding="32FC1",
            is_bigendian=0,
            step=4 * width,
            data=pixels.view(np.uint8).reshape(-1),
        )

    def text(self, topic: str, words: str) -> Entry:
        """A String."""
        return self.entry(topic, STRING, data=words)

    def scale(self, topic: str, status: ScaleStatus) -> Entry:
        """A DiagnosticStatus of where the metres come from, as the node publishes it."""
        pairs = [
            self.make("diagnostic_msgs/msg/KeyValue", key=key, value=value)
            for key, value in status.values().items()
        ]
        return self.entry(
            topic,
            _STATUS,
            level=1 if status.unsure else 0,
            name="depth_node: scale",
            message=status.text,
            hardware_id="",
            values=pairs,
        )


IMAGE_TOPIC = "/camera/image_raw/compressed"
CAMERA_INFO_TOPIC = "/camera/camera_info"
ODOMETRY_TOPIC = "/odom"
DEPTH_TOPIC = "/ground_truth/depth"
DEPTH_INFO_TOPIC = "/ground_truth/camera_info"

PARTNER = "/camera_right"
PARTNER_FRAME = "camera_right_optical_frame"

DEFAULT_QUALITY = 95


@dataclass(frozen=True)
class Partner:
    """The other pictures of a stereo bag: one a frame where there is one, by the stamp of the frame
    that they belong to; and where their camera stands, metres to the right and down (of a rectified
    pair a few millimetres at most, which are half a pixel of what is near)."""

    frames: Mapping[int, Frame]
    baseline: float
    down: float = 0.0


class Sink:
    """Messages into a bag, each topic's connection made when it is first written."""

    def __init__(self, writer: Any) -> None:
        self.store = Messages().store
        self._writer = writer
        self._connections: dict[str, Any] = {}

    def write(self, time: int, topic: str, kind: str, raw: Any) -> None:
        """Write a serialised message at a time, nanoseconds."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self.store
            )
        self._writer.write(self._connections[topic], time, raw)


@dataclass(frozen=True)
class Written:
    """What went into a bag."""

    path: Path
    images: int
    depths: int
    odometry: int
    movings: int
    size: int  # bytes


def write_bag(
    recording: Recording,
    out: Path,
    *,
    quality: int = DEFAULT_QUALITY,
    moving: bool = False,
    partner: Partner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a recording to `out`: one file if it ends in .mcap, else a bag folder.

    JPEG files go in as they are; everything else becomes a JPEG of the given quality. With
    `moving`, masks of what moves by itself go in where the recording has them; with `partner` the
    pictures of a stereo partner. Corrupt frames are left out and named in `recording.skipped`.
    `progress(done, total)` is called after every frame. The bag appears under its name only when it
    is complete. Raises RecordingError where `out` exists or not one frame could be written.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    out = Path(out)
    if out.exists():
        raise RecordingError(f"{out} exists already; remove it or choose another name")
    with staging_folder(out) as temporary:
        # the writer names the file after its folder
        folder = temporary / out.stem
        with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            messages = FrameMessages(Sink(writer), quality, moving, partner)
            for done, frame in enumerate(recording.frames, start=1):
                messages.write(recording, frame)
                if progress is not None:
                    progress(done, len(recording.frames))
        counts = messages.counts
        if not counts["images"]:
            raise RecordingError(f"{recording.name}: not one frame could be read")
        if out.suffix == ".mcap":
            (folder / f"{out.stem}.mcap").replace(out)
            size = out.stat().st_size
        else:
            shutil.move(folder, out)
            size = sum(file.stat().st_size for file in out.iterdir())
    return Written(out, size=size, **counts)


class FrameMessages:
    """Builds and writes the messages of one bag, frame by frame.

    Attributes:
        counts: how many of each kind were written.
    """

    def __init__(
        self, sink: Sink, quality: int, moving: bool, partner: Partner | None = None
    ) -> None:
        self._messages = Messages()
        self._sink = sink
        self._quality = quality
        self._moving = moving
        self._partner = partner
        self.counts = {"images": 0, "depths": 0, "odometry": 0, "movings": 0}

    def write(self, recording: Recording, frame: Frame) -> None:
        """Write a frame, and its stereo partner.

        One that cannot be read is named in `recording.skipped`.
        """
        counts = self.counts
        try:
            image, depth = self._encode(frame), frame.depth()
            moving = frame.moving() if self._moving else None
            other = None if self._partner is None else self._partner.frames.get(frame.stamp_ns)
            beside = None if other is None else self._encode(other)
        except CorruptFrameError as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            return
        if depth is not None and not counts["depths"]:
            source = recording.depth_source
            self._send(SOURCE_TOPIC, STRING, frame.stamp_ns, data=source)
        counts["odometry"] += self._write_odometry(frame)
        self._write_picture(IMAGE_TOPIC, CAMERA_INFO_TOPIC, CAMERA_FRAME, frame, image)
        counts["images"] += 1
        if other is not None and beside is not None:
            self._write_partner(other, beside)
        if depth is not None:
            self._write_depth(frame, depth)
            counts["depths"] += 1
        if moving is not None:
            self._write_moving(frame, moving)
            counts["movings"] += 1

    def _encode(self, frame: Frame) -> bytes:
        image = frame.image()  # also where the file is copied: it has to be readable
        if frame.file is not None and frame.file.suffix.lower() in (".jpg", ".jpeg"):
            return frame.file.read_bytes()
        options = [cv2.IMWRITE_JPEG_QUALITY, self._quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1])

    def _write_partner(self, frame: Frame, jpeg: bytes) -> None:
        assert self._partner is not None
        topics = f"{PARTNER}/image_raw/compressed", f"{PARTNER}/camera_info"
        # The images of a rectified pair carry the frame of its own camera; P is in the first's.
        self._write_picture(*topics, PARTNER_FRAME, frame, jpeg, self._partner)

    def _write_picture(
        self,
        topic: str,
        info: str,
        frame_id: str,
        frame: Frame,
        jpeg: bytes,
        partner: Partner | None = None,
    ) -> None:
        header = self._messages.header(frame.stamp_ns, frame_id)
        camera = self._camera_info(frame.camera, partner)
        self._send(info, CAMERA_INFO, frame.stamp_ns, header=header, **camera)
        self._send(
            topic,
            COMPRESSED_IMAGE,
            frame.stamp_ns,
            header=header,
            format="rgb8; jpeg compressed bgr8",
            data=np.frombuffer(jpeg, np.uint8),
        )

    def _write_depth(self, frame: Frame, depth: NDArray[np.float32]) -> None:
        stamp = frame.stamp_ns
        camera = frame.camera.scaled(depth.shape[1], depth.shape[0])
        self._send(
            DEPTH_INFO_TOPIC,
            CAMERA_INFO,
            stamp,
            header=self._messages.header(stamp, CAMERA_FRAME),
            **self._camera_info(camera),
        )
        self._send(
            DEPTH_TOPIC,
            COMPRESSED_IMAGE,
            stamp,
            header=self._messages.header(stamp, CAMERA_FRAME),
            format=f"16UC1; png compressed; {KITTI_WORDS}",
            data=np.frombuffer(encode_depth(depth), np.uint8),
        )

    def _write_moving(self, frame: Frame, moving: NDArray[np.bool_]) -> None:
        coded = cv2.imencode(".png", np.where(moving, np.uint8(255), np.uint8(0)))[1]
        self._send(
            MOVING_TOPIC,
            COMPRESSED_IMAGE,
            frame.stamp_ns,
            header=self._messages.header(frame.stamp_ns, CAMERA_FRAME),
            format="8UC1; png compressed",
            data=np.frombuffer(bytes(coded), np.uint8),
        )

    def _write_odometry(self, frame: Frame) -> int:
        # A pose alone would read as a vehicle that stands still.
        if frame.speed is None:
            return 0
        position, quaternion = np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
        pose_covariance = np.zeros(36)
        if frame.pose is None:
            pose_covariance[0] = UNKNOWN
        else:
            position, quaternion = odometry_from_pose(frame.pose)
        make = self._messages.make
        pose = make(
            "geometry_msgs/msg/Pose",
            position=make("geometry_msgs/msg/Point", **_named("xyz", position)),
            orientation=make("geometry_msgs/msg/Quaternion", **_named("xyzw", quaternion)),
        )
        still = make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        ahead = make("geometry_msgs/msg/Vector3", x=frame.speed, y=0.0, z=0.0)
        twist = make("geometry_msgs/msg/Twist", linear=ahead, angular=still)
        self._send(
            ODOMETRY_TOPIC,
            ODOMETRY,
            frame.stamp_ns,
            header=self._messages.header(frame.stamp_ns, "odom"),
            child_frame_id="base_link",
            pose=make(
                "geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=pose_covariance
            ),
            twist=make(
                "geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)
            ),
        )
        return 1

    def _camera_info(self, camera: Camera, partner: Partner | None = None) -> dict[str, Any]:
        calibration = Calibration.from_camera(camera)
        P = list(calibration.P)
        if partner is not None:
            P[3] = -camera.fx * partner.baseline + 0.0  # never -0
            P[7] = -camera.fy * partner.down + 0.0
        return self._messages.camera_info(replace(calibration, P=tuple(P)))

    def _send(self, topic: str, kind: str, time: int, **values: Any) -> None:
        self._sink.write(time, *self._messages.entry(topic, kind, **values))


def _named(names: str, values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def make(
    recording: Recording,
    out: Path,
    quality: int,
    *,
    moving: bool = False,
    partner: Partner | None = None,
) -> None:
    """Write the recording and print what went in and what was left out.

    moving: with masks of what moves by itself, where the recording has them. partner: with the
    pictures of a stereo partner.
    """
    with progress(f"writing {out.name}") as update:
        written = write_bag(
            recording, out, quality=quality, moving=moving, partner=partner, progress=update
        )
    show(*summary(recording))
    show_skipped(recording.skipped)
    show(
        f"{written.path}: {written.images} images, {written.depths} depth maps, "
        + (f"{written.movings} motion masks, " if written.movings else "")
        + f"{written.odometry} odometry messages, {written.size / 1e6:.1f} MB"
    )


def render(
    out: Path, quality: int, *, moving: bool = False, stereo: float = 0.0, **street: Any
) -> None:
    """Render a street drive and write it; the same arguments give the same bag.

    `moving` adds masks of what moves by itself, `stereo` a second camera so many metres to the
    right (to the left where negative); the others are those of `street_drive`. Raises
    RecordingError where `out` exists, or where OpenGL does not work (saying what to install).
    """
    from depth_prior_ros.recordings.synthetic.drive import street_drive
    from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError

    drives = [street_drive(**street, offset=x) for x in ([0.0, stereo] if stereo else [0.0])]
    partner = None
    if stereo:
        partner = Partner({frame.stamp_ns: frame for frame in drives[1].frames}, stereo)
    try:
        make(drives[0], out, quality, moving=moving, partner=partner)
    except RendererUnavailableError as error:
        raise RecordingError(str(error)) from error
    finally:
        for drive in drives:
            drive.close()
