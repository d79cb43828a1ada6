"""`depth_bag process`: depth of a whole recording, offline, through the pipeline of the node.

    frames ─▶ decoding (a thread) ─▶ networks (this thread) ─▶ encoding, errors (threads) ─▶ files

One recording is one sequence: keyframes, the motion gate and what odometry said go from frame to
frame. So the depth is that of a replay in lockstep. After a kill the work goes on from its last
checkpoint (`work`), and ends in the same bytes.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import remove_leftovers, sync, write_bytes, write_text
from depth_prior_ros.motion.odometry import MotionHistory, OdometryReading, speed_of_twist
from depth_prior_ros.pipeline.framing import InvalidFrameError
from depth_prior_ros.recordings import Frame, RecordingError, StoredRecording, read_frames
from depth_prior_ros.recordings.bag_messages import odometry_from_pose
from depth_prior_ros.recordings.base import Skipped, name_skipped
from depth_prior_ros.scale import AutoScale, FixedScale
from rosbag_tools.depth_files import (
    FRAMEWISE,
    Made,
    bag_entry,
    video_frame,
    write_depth_bag,
    write_video,
)
from rosbag_tools.remote import Place, below
from rosbag_tools.reports.account import Account
from rosbag_tools.reports.results import METRICS, PICTURES, REPORT, save
from rosbag_tools.work import Workbook, digest_of_frames, nothing_read, taken_up

if TYPE_CHECKING:
    from depth_prior_ros.backends import Precision
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline

MANIFEST = "process.json"
BAG, VIDEO = "bag", "video"
OUTPUTS = (*FRAMEWISE, BAG, VIDEO)
SPOOLED = {BAG: bag_entry, VIDEO: video_frame}

_JOURNAL = "journal"
_SCHEMA = 4
_AHEAD = 4  # frames that are decoded, and that are encoded, while the networks run
_ENCODERS = 2

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class ProcessOptions:
    """How depth is made, and of what kinds.

    outputs: of OUTPUTS. forced: whether each model is evaluated alone, too, where there is truth.
    checkpoint: frames after which is kept how far the work has got. look_up: whether references of
    the bundle are.
    """

    outputs: tuple[str, ...] = ("npy",)
    bundle: str = "lite"
    backend: str = "auto"
    device: str = "auto"
    force_model: str = ""
    forced: bool = True
    checkpoint: int = 100
    precision: Precision = "f32"
    look_up: bool = True


@dataclass
class Processed:
    """What was done: frames with depth in all, of them now; seconds of this run, and its networks'.

    finished_before: nothing was left to do.
    """

    out: Place
    frames: int = 0
    new: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    finished_before: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What is said of it: how much was made, how fast, and where the page lies."""
        if self.finished_before:
            return [f"{self.out}: finished before, nothing to do"]
        pages = [str(below(self.out, name)) for name in (REPORT, METRICS)]
        if not self.new:
            return [f"{self.out}: depth of {self.frames} frames was there", *pages]
        rate = self.new / max(self.seconds, 1e-9)
        alone = self.new / max(self.network_seconds, 1e-9)
        before = self.frames - self.new
        rest = f", {before} were there" if before else ""
        return [
            f"{self.out}: depth of {self.new} frames{rest}; {rate:.1f} frames/s, the networks' "
            f"part of it {alone:.1f} frames/s",
            *pages,
        ]


def process(
    source: Path,
    recording: StoredRecording,
    out: Path,
    options: ProcessOptions,
    command: str,
    told: Told = lambda done, total: None,
) -> Processed:
    """Make depth of a recording and write it to the folder `out`, going on where a run ended.

    source: what the recording was opened from. Raises RecordingError (also where `out` holds
    anything else, or depth made otherwise), InUseError, BundleError, BackendError.
    """
    from depth_prior_ros.bundle import load_bundle

    bundle = load_bundle(options.bundle)
    if not recording.frames:
        raise RecordingError(f"{recording.name}: no frames in it")
    wanted = _manifest(recording, options, bundle.digest)
    spooled = tuple(name for name in SPOOLED if name in options.outputs)
    with taken_up(out / MANIFEST, wanted, "depth", (_JOURNAL, *spooled)) as work:
        if work is None:
            return Processed(out, len(recording.frames), finished_before=True)
        (out / PICTURES).mkdir(exist_ok=True)
        account = Account(recording, bundle, out)
        run = _Run(recording, out, options, _pipeline(bundle, options), account, work)
        run.frames(told)
        if not run.account.records:
            raise RecordingError(nothing_read(recording))
        run.finish(source, command)
        return run.processed


def _pipeline(bundle: Bundle, options: ProcessOptions) -> DepthPipeline:
    """The pipeline as the node has it: with `auto` where the metres are not known."""
    from depth_prior_ros.pipeline import DepthPipeline

    pipeline = DepthPipeline(
        bundle,
        options.backend,
        options.device,
        precision=options.precision,
        look_up=options.look_up,
    )
    known = isinstance(pipeline.scale, FixedScale) and pipeline.scale.mode == "fixed"
    if known and bundle.has("pose") and bundle.has("multi_frame"):  # as `auto` in the node
        pipeline.scale = AutoScale(
            FixedScale(pipeline.scale.metres_per_unit, pipeline.scale.source)
        )
    pipeline.force_model = options.force_model or None  # type: ignore[assignment]
    return pipeline


def _manifest(recording: StoredRecording, options: ProcessOptions, digest: str) -> dict[str, Any]:
    """What the depth depends on, and what its files are."""
    settings = asdict(options)
    for name in ("bundle", "forced", "checkpoint", "outputs"):
        del settings[name]
    return {
        "schema": _SCHEMA,
        "recording": recording.name,
        "frames": len(recording.frames),
        "frames_sha256": digest_of_frames(recording),
        "bundle": digest,
        "settings": settings,
        "outputs": {
            name: FRAMEWISE[name].words if name in FRAMEWISE else f"depth{_SUFFIX[name]}"
            for name in sorted(options.outputs)
        },
    }


_SUFFIX = {BAG: ".mcap", VIDEO: ".mp4"}


class _Run:
    """The frames of one recording, from the checkpoint on."""

    def __init__(
        self,
        recording: StoredRecording,
        out: Path,
        options: ProcessOptions,
        pipeline: DepthPipeline,
        account: Account,
        work: Workbook,
    ) -> None:
        self.recording, self.out, self.options = recording, out, options
        self.pipeline, self.account, self.work = pipeline, account, work
        self.processed = Processed(out, skipped=recording.skipped)
        self.depth_camera: dict[str, Any] | None = None
        self._spooled = [name for name in SPOOLED if name in options.outputs]
        self._framewise = [FRAMEWISE[name] for name in options.outputs if name in FRAMEWISE]
        for output in self._framewise:
            (out / output.folder).mkdir(exist_ok=True)
            remove_leftovers(out / output.folder)
        self._written: list[Path] = []
        self._history = MotionHistory()
        if self.work.done:
            self._restore()

    def frames(self, told: Told) -> None:
        """Make depth of what is left, and keep checkpoints."""
        start, total = self.work.done, len(self.recording.frames)
        began = time.monotonic()
        pending: deque[tuple[int, Future[dict[str, bytes]], Future[None]]] = deque()
        with (
            _Decoder(self.recording, range(start, total)) as decoded,
            ThreadPoolExecutor(_ENCODERS, "encode") as encoders,
            ThreadPoolExecutor(1, "evaluate") as evaluator,
        ):
            for position, image in decoded:
                made = self._infer(position, image)
                if made is not None:
                    encoding = encoders.submit(self._encode, made)
                    pending.append((position, encoding, evaluator.submit(self._evaluate, made)))
                while len(pending) > _AHEAD:
                    self._commit(*pending.popleft())
                if (position + 1 - start) % self.options.checkpoint == 0:
                    while pending:
                        self._commit(*pending.popleft())
                    list(encoders.map(sync, self._written))
                    self._checkpoint(position + 1)
                told(position + 1, total)
            while pending:
                self._commit(*pending.popleft())
            list(encoders.map(sync, self._written))
        self.processed.seconds = time.monotonic() - began
        self._checkpoint(total)
        told(total, total)

    def finish(self, source: Path, command: str) -> None:
        """Write the files of all frames, the figures and the page."""
        from depth_prior_ros.pipeline.pipeline import default_scale

        account, out = self.account, self.out
        self.work.results = {"depth_camera": self.depth_camera}
        self.pipeline.scale = default_scale(self.pipeline.bundle)
        self.processed.frames = len(account.records)
        stamps = [self.recording.frames[i].stamp_ns for i in sorted(account.records)]
        if VIDEO in self._spooled:
            write_video(out / "depth.mp4", self.work.entries(VIDEO), stamps)
        if BAG in self._spooled:
            entries = self.work.entries(BAG)
            write_depth_bag(out / "depth.mcap", source, self.recording, entries)
        results = account.results(
            mode="offline",
            command=command,
            pipeline=self.pipeline if self.options.forced else None,
            latency="from a decoded image to its depth, while others were decoded and encoded",
        )
        save(out, results)
        from rosbag_tools.reports.report import render

        write_text(out / REPORT, render(out, results))

    def _infer(self, position: int, image: NDArray[np.uint8]) -> Made | None:
        frame = self.recording.frames[position]
        self._tell_motion(frame)
        motion = self._history.motion_at(frame.stamp_ns, self.pipeline.previous_stamp_ns)
        try:
            result = self.pipeline.process(
                image,
                frame.stamp_ns,
                motion,
                frame.camera,
                confidence=BAG in self.options.outputs,
            )
        except InvalidFrameError as error:
            name_skipped(self.recording.skipped, f"frame {frame.index}", str(error))
            return None
        self.processed.new += 1
        parts = ("single", "features", "pose", "multi")
        milliseconds = sum(result.timings.get(name, 0.0) for name in parts)
        self.processed.network_seconds += 1e-3 * milliseconds
        if self.depth_camera is None:
            self.depth_camera = {**asdict(result.camera), "window": asdict(result.region)}
        return Made(position, frame, image, result)

    def _tell_motion(self, frame: Frame) -> None:
        """Odometry as a replay sends it: with the image's stamp, where there is a speed."""
        if frame.speed is None:
            return
        speed, course = speed_of_twist((frame.speed, 0.0, 0.0), (0.0, 0.0, 0.0))
        position = quaternion = None
        if frame.pose is not None:
            place, turn = odometry_from_pose(frame.pose)
            position, quaternion = tuple(map(float, place)), tuple(map(float, turn))
        reading = OdometryReading(position, quaternion, speed, course)  # type: ignore[arg-type]
        self._history.add(frame.stamp_ns, reading)

    def _encode(self, made: Made) -> dict[str, bytes]:
        """Write the files of a frame, and give back what goes into files of all of them."""
        for output in self._framewise:
            path = output.path(self.out, made.frame)
            write_bytes(path, output.encode(made), durable=False)
            self._written.append(path)
        return {name: SPOOLED[name](made) for name in self._spooled}

    def _evaluate(self, made: Made) -> None:
        result = made.result
        milliseconds = result.timings["total"]
        record = self.account.answered(made.position, result.depth, milliseconds, made.image)
        record.model, record.reason = result.model, result.reason
        self.account.references[result.references] += 1
        entry = self.account.journal_entry(made.position, result.references)
        self.work.append(_JOURNAL, json.dumps(entry).encode())  # in order: one thread evaluates

    def _commit(
        self, position: int, encoding: Future[dict[str, bytes]], evaluation: Future[None]
    ) -> None:
        evaluation.result()
        for name, data in encoding.result().items():
            self.work.append(name, data)

    def _checkpoint(self, done: int) -> None:
        self._written.clear()
        scale = self.pipeline.scale
        state = {
            "pipeline": self.pipeline.state(),
            "scale": scale.snapshot() if isinstance(scale, AutoScale) else None,
            "errors": self.account.errors.state(),
            "depth_camera": self.depth_camera,
        }
        self.work.checkpoint(done, state, self.recording.skipped)

    def _restore(self) -> None:
        state = self.work.state
        self.pipeline.restore(state["pipeline"])
        if isinstance(self.pipeline.scale, AutoScale):
            self.pipeline.scale.resume(state["scale"])
        self.depth_camera = state["depth_camera"]
        self.work.name_skipped(self.recording.skipped)
        for entry in self.work.entries(_JOURNAL):
            self.account.take_up(json.loads(entry))
        self.account.errors.restore(state["errors"])
        for frame in self.recording.frames[: self.work.done]:
            self._tell_motion(frame)


class _Decoder:
    """Decodes frames ahead in a thread; iterating gives (position, image)."""

    def __init__(self, recording: StoredRecording, positions: Sequence[int]) -> None:
        self._frames = read_frames(recording, positions)
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="decode", daemon=True)

    def __enter__(self) -> _Decoder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.02)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    def _decode(self) -> None:
        try:
            for entry in self._frames:
                self._queue.put(entry)
                if self._stop.is_set():
                    return
            self._queue.put(None)
        except BaseException as error:  # raised again where the frames are taken
            self._queue.put(error)
