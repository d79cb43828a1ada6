"""`depth_bag extract`: a data set out of a recording.

    frames ─▶ reading, decoding, encoding (threads) ─▶ standing or moving (this thread) ─▶ files

What comes out is a recording again (`depth_prior_ros.recordings.extracted`), which training reads
as it reads a bag. Images that were recorded as JPEG or PNG are kept byte by byte; all are decoded
once, so that a data set has no frame that cannot be read. After a kill the work goes on from its
last checkpoint, and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import remove_leftovers, replacing, sync, write_bytes
from depth_prior_ros.bundle.files import sha256_of
from depth_prior_ros.motion.gate import GateSettings, MotionGate, RecentPictures
from depth_prior_ros.recordings import CorruptFrameError, Frame, RecordingError, StoredRecording
from depth_prior_ros.recordings.bag_file import bag_files, is_bag
from depth_prior_ros.recordings.base import Skipped, name_skipped
from depth_prior_ros.recordings.extracted import (
    DEPTH,
    FRAMES,
    IMAGES,
    MANIFEST,
    MOVING,
    PARTNER,
    SCHEMA,
    FrameLine,
    Picture,
    Suffix,
    View,
)
from depth_prior_ros.recordings.image_files import decode_image, encode_depth
from rosbag_tools.remote import Place
from rosbag_tools.work import Workbook, digest_of_frames, nothing_read, taken_up

FORMATS = ("jpeg", "png")

_LINES = "lines"
THREADS, _AHEAD = 2, 6  # OpenCV lets go of Python's lock
PNG_COMPRESSION = 1  # a third of the time, a tenth more bytes
_KEPT = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class ExtractOptions:
    """What is written of a recording.

    format: of images, one of FORMATS; `jpeg` keeps recorded JPEGs and PNGs byte by byte, `png`
    writes all pixels without loss. quality: of JPEGs that have to be made. rectified: write
    rectified images, also where recorded ones have to be encoded again for it. stride: every
    how-manieth frame. stereo: with the stereo partner; partner: which camera that is, found by
    itself where empty. stereo_depth: depth matched with the partner (semi-global matching), in
    place of the recording's own. reading: options of the reader that change what is read.
    checkpoint: frames after which is kept how far the work has got.
    """

    format: str = "jpeg"
    quality: int = 95
    rectified: bool = False
    stride: int = 1
    stereo: bool = False
    partner: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)
    stereo_depth: bool = False
    checkpoint: int = 200


@dataclass
class Extracted:
    """What was done: frames in the data set, of them by this run; standing ones; bytes."""

    out: Place
    frames: int = 0
    new: int = 0
    depths: int = 0
    static: int = 0
    finished_before: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What is said of it."""
        if self.finished_before:
            return [f"{self.out}: {self.frames} frames, finished before, nothing to do"]
        return [
            f"{self.out}: {self.frames} frames, {self.depths} with depth; the vehicle stands in "
            f"{self.static}"
        ]


def extract(
    source: Path,
    recording: StoredRecording,
    out: Path,
    options: ExtractOptions,
    told: Told = lambda done, total: None,
) -> Extracted:
    """Write a recording to the folder `out`, going on where a run ended.

    source: what the recording was opened from. Raises RecordingError, also where `out` holds
    anything else, and where stereo pairs are asked for and there are none; InUseError.
    """
    if not recording.frames:
        raise RecordingError(f"{recording.name}: no frames in it")
    settings = {k: v for k, v in asdict(options).items() if k != "checkpoint"}
    wanted = {
        "schema_version": SCHEMA,
        "recording": recording.name,
        "source": _source(source, recording),
        "settings": settings,
    }
    with taken_up(out / MANIFEST, wanted, "a data set", (_LINES,)) as work:
        if work is None:
            manifest = json.loads((out / MANIFEST).read_text())
            return Extracted(out, manifest["frames"], finished_before=True)
        recording, partners, partner_from_camera = _with_partner(source, recording, options)
        run = _Run(recording, partners, out, options, work)
        run.frames(told)
        work.results = run.finish(partner_from_camera)
        return run.extracted


def _source(path: Path, recording: StoredRecording) -> dict[str, Any]:
    """Name and hashes; of folders of images the hashes of their images stand with the frames."""
    files = bag_files(path) if path.is_dir() and is_bag(path) else [path]
    return {
        "name": path.resolve().name,
        "frames_sha256": digest_of_frames(recording),
        "files": {file.name: sha256_of(file) for file in files if file.is_file()},
    }


def _with_partner(
    source: Path, recording: StoredRecording, options: ExtractOptions
) -> tuple[StoredRecording, dict[int, Frame], list[float] | None]:
    """The recording, its partners' frames by stamp, and partner_from_camera (16)."""
    if not (options.stereo or options.stereo_depth):
        return recording, {}, None
    from depth_prior_ros.recordings.stereo import open_pairs
    from depth_prior_ros.recordings.stereo_depth import with_stereo_depth

    rectify = str(options.reading.get("rectify", "auto"))
    pairs = open_pairs(source, recording, options.partner or None, rectify=rectify)
    motion = [float(value) for value in pairs.partner_from_camera.ravel()]
    pairs.recording.skipped.extend(pairs.skipped)
    written = with_stereo_depth(pairs) if options.stereo_depth else pairs.recording
    return (written, pairs.by_stamp(), motion) if options.stereo else (written, {}, None)


def strided(recording: StoredRecording, stride: int) -> list[tuple[int, int]]:
    """(position, new frame number) of every `stride`-th frame; a gap stays one.

    The count begins anew after a gap, so that no two frames look like neighbours across it.
    """
    frames = recording.frames
    if stride == 1 or not recording.consecutive:
        return [(i, frames[i].index) for i in range(0, len(frames), stride)]
    found: list[tuple[int, int]] = []
    since = number = 0
    for position, frame in enumerate(frames):
        if recording.gap_before(position):
            missing = (frame.index - frames[position - 1].index) // stride
            since, number = 0, number + max(1, missing)
        if since % stride == 0:
            found.append((position, number))
            number += 1
        since += 1
    return found


@dataclass(frozen=True)
class _Written:
    """A frame whose files are there: its line, but for standing or moving, and its image."""

    line: FrameLine
    files: list[Path]
    image: NDArray[np.uint8]


class _Run:
    """The frames of one recording, from the checkpoint on."""

    def __init__(
        self,
        recording: StoredRecording,
        partners: Mapping[int, Frame],
        out: Path,
        options: ExtractOptions,
        work: Workbook,
    ) -> None:
        self.recording, self.out, self.options = recording, out, options
        self._partners, self.work = partners, work
        self.extracted = Extracted(out, skipped=recording.skipped)
        self._kept = strided(recording, options.stride)
        self._views = _views([*recording.frames, *partners.values()])
        for folder in (IMAGES, DEPTH, MOVING, PARTNER):
            if (out / folder).is_dir():
                remove_leftovers(out / folder)
        (out / IMAGES).mkdir(exist_ok=True)
        self._gate, self._pictures = MotionGate(), RecentPictures()
        # Where speeds were recorded, they say whether the vehicle stands; pictures cost time.
        self._by_pictures = all(frame.speed is None for frame in recording.frames)
        if self.work.done:
            state = self.work.state
            self._gate.restore(state["gate"])
            self._pictures.restore(state["pictures"])
            self.work.name_skipped(recording.skipped)

    def frames(self, told: Told) -> None:
        """Write what is left, and keep checkpoints."""
        start, total = self.work.done, len(self._kept)
        unsynced: list[Path] = []
        with ThreadPoolExecutor(THREADS, "extract") as pool:
            for done, written in enumerate(self._in_order(pool, start), start + 1):
                if written is not None:
                    self._append(written)
                    unsynced += written.files
                if (done - start) % self.options.checkpoint == 0 or done == total:
                    list(pool.map(sync, unsynced))
                    unsynced.clear()
                    self._checkpoint(done)
                told(done, total)

    def _in_order(self, pool: ThreadPoolExecutor, start: int) -> Iterator[_Written | None]:
        pending: deque[Future[_Written | CorruptFrameError]] = deque()
        for position, number in self._kept[start:]:
            pending.append(pool.submit(self._write, position, number))
            if len(pending) > _AHEAD:
                yield self._taken(pending.popleft())
        while pending:
            yield self._taken(pending.popleft())

    def _taken(self, future: Future[_Written | CorruptFrameError]) -> _Written | None:
        result = future.result()
        if isinstance(result, CorruptFrameError):
            what, _, why = str(result).partition(": ")
            name_skipped(self.recording.skipped, what, why)
            return None
        return result

    def _write(self, position: int, number: int) -> _Written | CorruptFrameError:
        """Write the files of a frame; called in threads."""
        frame = self.recording.frames[position]
        try:
            return self._write_frame(frame, number)
        except CorruptFrameError as error:
            error.args = (f"frame {frame.index}: {error}",)
            return error

    def _write_frame(self, frame: Frame, number: int) -> _Written:
        data, image, picture = self._encoded(frame)
        other = self._partners.get(frame.stamp_ns)
        beside = None if other is None else self._encoded(other)
        contents: dict[str, bytes] = {IMAGES: data}
        if beside is not None:
            contents[PARTNER] = beside[0]
        depth, moving, speed = frame.depth(), frame.moving(), frame.speed
        if depth is not None:
            contents[DEPTH] = encode_depth(depth, PNG_COMPRESSION)
        if moving is not None:
            mask = np.where(moving, np.uint8(255), np.uint8(0))
            contents[MOVING] = bytes(cv2.imencode(".png", mask)[1])
        line = FrameLine(
            index=number,
            source_index=frame.index,
            stamp_ns=frame.stamp_ns,
            image=picture,
            partner=None if beside is None else beside[2],
            depth=depth is not None,
            moving=moving is not None,
            speed=speed if speed is not None and np.isfinite(speed) else None,
            pose=None if frame.pose is None else [float(v) for v in frame.pose[:3].ravel()],
            sha256={name: hashlib.sha256(found).hexdigest() for name, found in contents.items()},
        )
        files = []
        for folder, found in contents.items():
            files.append(self.out / folder / line.file(folder))
            write_bytes(files[-1], found, durable=False)
        return _Written(line, files, image)

    def _encoded(self, frame: Frame) -> tuple[bytes, NDArray[np.uint8], Picture]:
        """The bytes of a frame's image file, its pixels, and what the data set says of it."""
        options, view = self.options, self._views[_view_of(frame)]
        if options.format == "jpeg" and not (options.rectified and frame.lens is not None):
            data = b"" if frame.load_stored is None else frame.load_stored()
            suffix = next((s for start, s in _KEPT.items() if data.startswith(start)), None)
            if suffix is not None:
                image = decode_image(data, f"frame {frame.index}")
                kind: Suffix = ".jpg" if suffix == ".jpg" else ".png"
                bent = frame.lens is not None
                return data, image, Picture(suffix=kind, view=view, distorted=bent)
        image = frame.image()
        colours = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if options.format == "png":
            data = bytes(
                cv2.imencode(".png", colours, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])[1]
            )
            return data, image, Picture(suffix=".png", view=view, distorted=False)
        data = bytes(cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, options.quality])[1])
        return data, image, Picture(suffix=".jpg", view=view, distorted=False)

    def _append(self, written: _Written) -> None:
        """Say whether the vehicle stands, in the frames' order, and keep the line."""
        line, flow = written.line, None
        if self._by_pictures and self.recording.consecutive:
            flow = self._pictures.motion(line.stamp_ns, written.image, GateSettings())
        state = "unknown"
        if self.recording.consecutive:
            state = self._gate.update(line.stamp_ns, line.speed, flow)
        static = None if state == "unknown" else state == "stationary"
        line = line.model_copy(update={"static": static})
        self.work.append(_LINES, line.model_dump_json().encode())
        self.extracted.new += 1

    def _checkpoint(self, done: int) -> None:
        state = {"gate": self._gate.snapshot(), "pictures": self._pictures.snapshot()}
        self.work.checkpoint(done, state, self.recording.skipped)

    def finish(self, partner_from_camera: list[float] | None) -> dict[str, Any]:
        """Write frames.jsonl; what the manifest says of all frames."""
        digest, spans, found = hashlib.sha256(), _Spans(), self.extracted
        with replacing(self.out / FRAMES) as temporary, temporary.open("wb") as file:
            for entry in self.work.entries(_LINES):
                file.write(entry + b"\n")
                digest.update(entry + b"\n")
                line = FrameLine.model_validate_json(entry)
                spans.add(line)
                found.frames += 1
                found.depths += line.depth
                found.static += line.static is True
        recording = self.recording
        if not found.frames:
            raise RecordingError(nothing_read(recording))
        return {
            "frames": found.frames,
            "frames_sha256": digest.hexdigest(),
            "views": [View(camera=c, lens=lens).model_dump(mode="json") for c, lens in self._views],
            "partner_from_camera": partner_from_camera,
            "depth_source": recording.depth_source,
            "consecutive": recording.consecutive,
            "camera": recording.mount.camera if recording.mount else "",
            "streams": recording.streams,
            "static_spans": spans.found,
            "notes": recording.notes,
            "skipped": [[entry.what, entry.why] for entry in recording.skipped],
        }


class _Spans:
    """First and last frame of each span in which the vehicle stands."""

    def __init__(self) -> None:
        self.found: list[list[int]] = []
        self._stood = False

    def add(self, line: FrameLine) -> None:
        if line.static and self._stood:
            self.found[-1][1] = line.index
        elif line.static:
            self.found.append([line.index, line.index])
        self._stood = bool(line.static)


def _view_of(frame: Frame) -> tuple[Any, Any]:
    return frame.camera, frame.lens


def _views(frames: list[Frame]) -> dict[tuple[Any, Any], int]:
    """The different cameras of the frames, numbered."""
    found: dict[tuple[Any, Any], int] = {}
    for frame in frames:
        found.setdefault(_view_of(frame), len(found))
    return found
