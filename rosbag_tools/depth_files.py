"""The files that depth of a recording is written to: one a frame, or one for all of them.

What a frame needs is encoded in a thread of its own (`encode`); what becomes one file of all
frames (a bag, a video) is spooled and put together at the end.
"""

from __future__ import annotations

import functools
import heapq
import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import replacing, staging_folder
from depth_prior_ros.geometry.points import encode_ply
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.pages import colours
from depth_prior_ros.recordings import Frame, RecordingError, StoredRecording, is_bag
from depth_prior_ros.recordings.image_files import encode_depth
from rosbag_tools.make import DEFAULT_QUALITY, FrameMessages, Messages, Sink
from rosbag_tools.reports import pictures

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthResult

DEPTH_TOPIC, INFO_TOPIC = "/depth/image_rect", "/depth/camera_info"
CONFIDENCE_TOPIC = "/depth/confidence"
MODEL_TOPIC, SCALE_TOPIC = "/depth_node/active_model", "/depth_node/scale"
_OWN_TOPICS = {DEPTH_TOPIC, INFO_TOPIC, CONFIDENCE_TOPIC, MODEL_TOPIC, SCALE_TOPIC}

_MILLIMETRES = 1000.0
_FAST = 1  # compression of PNG: a third of the time, a tenth more bytes
_SPOOLED_QUALITY = 95  # of a frame of the video, before it is coded
_BAND = 26  # rows below a video's pictures, for words


@dataclass(frozen=True)
class Made:
    """A frame with its depth: its position in the recording, image (H, W, 3) uint8 RGB, result."""

    position: int
    frame: Frame
    image: NDArray[np.uint8]
    result: DepthResult


@dataclass(frozen=True)
class FramewiseOutput:
    """Files named after frames: `NNNNNN` and the suffix, in a folder."""

    folder: str
    suffix: str
    words: str
    encode: Callable[[Made], bytes]

    def path(self, out: Path, frame: Frame) -> Path:
        """Where the file of a frame lies."""
        return out / self.folder / f"{frame.index:06d}{self.suffix}"


def npy(made: Made) -> bytes:
    """(h, w) float32 metres, NaN unknown, +inf beyond the range."""
    stream = io.BytesIO()
    np.save(stream, made.result.depth)
    return stream.getvalue()


def ply(made: Made) -> bytes:
    """The points whose depth is finite, in the camera's optical frame, with their colours."""
    result = made.result
    return encode_ply(result.depth, result.camera, result.rgb)


def _png(unit: float) -> Callable[[Made], bytes]:
    return lambda made: encode_depth(made.result.depth, _FAST, unit)


FRAMEWISE = {
    "npy": FramewiseOutput("npy", ".npy", "float32 metres, NaN unknown, +inf beyond range", npy),
    "png": FramewiseOutput("png", ".png", "16-bit PNG, millimetres, 0 = none", _png(_MILLIMETRES)),
    "kitti-png": FramewiseOutput(
        "kitti_png", ".png", "16-bit PNG as KITTI's: metres x 256, 0 = none", _png(256.0)
    ),
    "ply": FramewiseOutput("ply", ".ply", "binary PLY of coloured points, optical frame", ply),
}


# -- a coloured video ----------------------------------------------------------------------------


def video_frame(made: Made) -> bytes:
    """A frame of the coloured video, as a JPEG: image beside depth, model and scale below.

    The two are one above the other where they are more than twice as wide as high.
    """
    result = made.result
    depth = pictures.colour_depth(result.depth)
    height, width = depth.shape[:2]
    seen = result.rgb if result.rgb is not None else made.image
    seen = pictures.resized(np.ascontiguousarray(seen), (width, height))
    wide = width > 2 * height
    shown = np.concatenate([seen, depth], axis=0 if wide else 1)
    band = np.full((_BAND, shown.shape[1], 3), 18, np.uint8)
    _write(band, video_words(made), colours.depth_gradient_pixels(pictures.NEAR, pictures.FAR))
    picture = np.concatenate([shown, band])
    # Coders of video halve the resolution of colours.
    even = tuple(size - size % 2 for size in picture.shape[:2])
    return pictures.jpeg(picture[: even[0], : even[1]], _SPOOLED_QUALITY)


def video_words(made: Made) -> str:
    """What the video says of a frame: its number, the model with its reason, the scale."""
    result = made.result
    factor = f"{result.scale.metres_per_unit:.3g} m per unit" if result.scale else "no scale"
    model = result.model.replace("_", "-")
    return f"{made.frame.index:06d}  {model}: {result.reason}  {factor}"


def _write(band: NDArray[np.uint8], words: str, gradient: NDArray[np.uint8]) -> None:
    """Words on the left of a band (h, w, 3), and on its right what the colours mean."""
    height, width = band.shape[:2]

    def say(text: str, x: int) -> int:
        cv2.putText(
            band, text, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (232, 234, 240), 1, cv2.LINE_AA
        )
        return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0])

    end = 8 + say(words, 8)
    near, far, bar = f"{pictures.NEAR:g} m", f"{pictures.FAR:g} m", 120
    left = width - bar - 100
    if left > end:  # else the picture is too narrow for both
        say(near, left)
        x = left + 34
        band[8 : height - 8, x : x + bar] = cv2.resize(gradient[None], (bar, height - 16))
        say(far, x + bar + 6)


def write_video(out: Path, jpegs: Iterable[bytes], stamps_ns: list[int]) -> None:
    """Put a video together; its rate is the recording's. Raises RecordingError."""
    steps = np.diff(stamps_ns) / 1e9
    rate = 1 / median(steps) if len(steps) else 10.0
    with replacing(out) as temporary:
        named = temporary.with_name(temporary.name + out.suffix)  # FFmpeg goes by the suffix
        writer: Any = None
        try:
            for data in jpegs:
                picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise RecordingError(f"{out}: a spooled picture is damaged")
                if writer is None:
                    size = (picture.shape[1], picture.shape[0])
                    code = cv2.VideoWriter.fourcc(*"mp4v")
                    writer = cv2.VideoWriter(str(named), cv2.CAP_FFMPEG, code, rate, size)
                    if not writer.isOpened():
                        raise RecordingError(f"{out}: this OpenCV writes no video")
                writer.write(picture)
            if writer is not None:
                writer.release()
                named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


# -- a bag ----------------------------------------------------------------------------------------


def bag_entry(made: Made) -> bytes:
    """The messages of a frame's depth, for `write_bag`: (topic, type, serialised) each."""
    result, stamp = made.result, made.frame.stamp_ns
    messages = _messages()
    entries = [
        messages.info(INFO_TOPIC, stamp, Calibration.from_camera(result.camera)),
        messages.depth_image(DEPTH_TOPIC, stamp, result.depth),
        messages.text(MODEL_TOPIC, result.active_model),
    ]
    if result.confidence is not None:
        entries.append(messages.depth_image(CONFIDENCE_TOPIC, stamp, result.confidence))
    if result.scale is not None:
        entries.append(messages.scale(SCALE_TOPIC, result.scale))
    parts = [struct.pack("<q", stamp)]
    for topic, kind, raw in entries:
        for part in (topic.encode(), kind.encode(), bytes(raw)):
            parts += [struct.pack("<I", len(part)), part]
    return b"".join(parts)


@functools.cache
def _messages() -> Messages:
    return Messages()


def _read_entry(data: bytes) -> Iterator[tuple[int, str, str, bytes]]:
    """(time, topic, type, serialised) of what `bag_entry` gave."""
    (stamp,) = struct.unpack_from("<q", data)
    position, parts = 8, []
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        parts.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    for topic, kind, raw in zip(*[iter(parts)] * 3, strict=True):
        yield stamp, topic.decode(), kind.decode(), raw


def write_depth_bag(
    out: Path, source: Path, recording: StoredRecording, entries: Iterable[bytes]
) -> None:
    """Write `out` (.mcap): the topics of the recording at `source` beside its depth, by time.

    A bag's messages go in as they are (those of ROS 1 in ROS 2's encoding); of any other recording
    what `depth_bag make` writes.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    own = (message for entry in entries for message in _read_entry(entry))
    with staging_folder(out.with_suffix("")) as staged:
        folder = staged / out.stem
        with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            sink = Sink(writer)
            if is_bag(source):
                input_messages = _input_messages(source, sink)
                merged = heapq.merge(input_messages, own, key=lambda message: message[0])
                for time, topic, kind, raw in merged:
                    sink.write(time, topic, kind, raw)
            else:
                _write_beside(sink, recording, own)
        with replacing(out) as temporary:
            (folder / f"{out.stem}.mcap").replace(temporary)


def _input_messages(source: Path, sink: Sink) -> Iterator[tuple[int, str, str, Any]]:
    from depth_prior_ros.recordings.bag_file import BagFile

    bag = BagFile(source)
    reader, foreign = bag.reader(), bag.foreign()
    store, known = reader.typestore, sink.store.fielddefs
    sink.store.register({k: v for k, v in store.fielddefs.items() if k not in known})
    wanted = [
        c for c in reader.connections if c.topic not in foreign and c.topic not in _OWN_TOPICS
    ]
    if not wanted:
        return
    for connection, time, raw in reader.messages(wanted):
        kind = connection.msgtype
        yield time, connection.topic, kind, raw if reader.is2 else sink.store.ros1_to_cdr(raw, kind)


def _write_beside(
    sink: Sink, recording: StoredRecording, own: Iterator[tuple[int, str, str, Any]]
) -> None:
    """What `make` writes of the frames, and after each frame the messages of its time."""
    frames = FrameMessages(sink, DEFAULT_QUALITY, moving=True)
    waiting = next(own, None)
    for frame in recording.frames:
        frames.write(recording, frame)
        while waiting is not None and waiting[0] <= frame.stamp_ns:
            sink.write(*waiting)
            waiting = next(own, None)
