"""What the node counts and says about itself, for ``/diagnostics``, the log and snapshots.

Not everybody has a monitor for diagnostics, so the log has them as well (:class:`HealthLog`).

The counters are written by the executor's thread and by the worker, and read once a second; one
lock guards them all. Nothing here knows a node: :meth:`Statistics.report` returns plain strings,
:func:`to_message` fills the message.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray

from depth_prior_ros.share import large_images_environment

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult
    from depth_prior_ros.ros.adapting import Adapter
    from depth_prior_ros.ros.mounting import Mounting
    from depth_prior_ros.ros.outputs.publishers import Outputs
    from depth_prior_ros.ros.subscriptions import Subscriptions
    from depth_prior_ros.ros.worker import FrameWorker


LATENCY_PARTS = ("total", "wait", "decode", "infer", "publish")
"""From the arrival of an image to its published depth, in milliseconds."""

LATENCY_PERCENTS = (50, 95, 99)

OK, WARN, ERROR, STALE = 0, 1, 2, 3

SILENCE = 2.0
"""Seconds without an image after which none counts as arriving: slow cameras are no fault."""

STUCK = 10.0
"""Seconds after which images that arrive ought to have become depth, or to have been refused."""

SEGMENT_BYTES = 512 * 1024
"""Fast DDS's shared-memory segment, unless a profile says otherwise."""

_LARGER_SEGMENT = (
    "images above 512 KB need a larger shared-memory segment at the sender: start the camera "
    "driver with {profile}, or make it publish reliably (and leave image_reliability at auto)"
)
_STUCK = (
    "the machine is far too slow for these networks (latency_ms.infer), or they hang; the log may "
    "say more"
)
_EMPTY = (
    "but no pixel of the newest has a depth: all lie beyond max_depth_m, or "
    "scale.metres_per_unit is wrong"
)
_NO_SEGMENT = (
    "make the camera publish reliably (and leave image_reliability at auto), or give the sockets "
    "larger buffers (net.core.rmem_max)"
)


class PercentileWindow:
    """Percentiles over the newest ``size`` values."""

    def __init__(self, size: int = 500) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Take one value up; the oldest leaves when the window is full."""
        self._values.append(value)

    def percentile(self, percent: float) -> float | None:
        """The value below which ``percent`` of the window lies; None while it is empty."""
        if not self._values:
            return None
        return float(np.percentile(np.fromiter(self._values, dtype=np.float64), percent))


@dataclass
class _Counts:
    received: int = 0
    inferred: int = 0
    dropped_stale: int = 0
    message_lost: int = 0
    refused_frames: int = 0
    camera_infos: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Report:
    """One diagnostic status in plain types: level, one line in words, key and value pairs."""

    level: int
    message: str
    values: dict[str, str]


class Statistics:
    """Counters and latency windows of one node, safe to use from several threads.

    Args:
        window: frames over which latencies are reported.
        fast_dds: whether the middleware is Fast DDS, whose cure for lost images differs.
        clock: steady seconds.
    """

    def __init__(
        self,
        window: int = 500,
        fast_dds: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._reported = _Counts()
        self._last_text: dict[str, str] = {}
        self._fast_dds = fast_dds
        self._clock = clock
        self._newest_image = -math.inf  # when it arrived
        self._waiting_since: float | None = None  # the oldest image of which nothing has become
        self._image_bytes = 0
        self._expected_bytes = 0
        self._latency = {name: PercentileWindow(window) for name in LATENCY_PARTS}

    def received(self, size: int = 0) -> None:
        """A camera image of ``size`` bytes arrived."""
        with self._lock:
            self._counts.received += 1
            self._image_bytes = size or self._image_bytes
            self._newest_image = self._clock()
            if self._waiting_since is None:
                self._waiting_since = self._newest_image

    def camera_info(self, width: int, height: int) -> None:
        """A calibration arrived; its image has probably three bytes a pixel."""
        with self._lock:
            self._counts.camera_infos += 1
            self._expected_bytes = 3 * width * height

    def dropped_stale(self) -> None:
        """An image was overwritten by a newer one before the worker took it."""
        with self._lock:
            self._counts.dropped_stale += 1

    def message_lost(self, count: int) -> None:
        """The transport says that ``count`` images never arrived."""
        with self._lock:
            self._counts.message_lost += count

    def refused(self, cause: str, text: str, frame: bool = True) -> int:
        """A message, usually an image (``frame``), could not be used; ``text`` says why.

        Returns:
            How often that was the cause.
        """
        with self._lock:
            self._counts.refused[cause] += 1
            self._counts.refused_frames += frame
            if frame:
                self._waiting_since = None
            self._last_text[cause] = text
            return self._counts.refused[cause]

    def inferred(self, latency_ms: Mapping[str, float]) -> None:
        """A depth image was published; latencies in milliseconds by part."""
        with self._lock:
            self._counts.inferred += 1
            self._waiting_since = None
            for name, value in latency_ms.items():
                self._latency[name].add(value)

    def report(self, state: Mapping[str, str], remarks: Sequence[str] = ()) -> Report:
        """The status since the start, its level by what happened since the last report.

        Args:
            state: what is not counted (lifecycle state, backend, active model, ...), added to the
                values; ``state``, ``enabled`` and ``publishers.image`` decide whether silence is
                worth a warning, which names ``image_topic``; ``backend_fell_back`` and a
                ``known_share`` of 0 are one.
            remarks: what an operator ought to know all the time, added to the message.
        """
        with self._lock:
            level, message = self._level(state)
            values = {**state, **self._values()}
            self._reported = replace(self._counts, refused=Counter(self._counts.refused))
        return Report(level, "; ".join([message, *remarks]), values)

    def _values(self) -> dict[str, str]:
        counts = self._counts
        values = {
            "received": str(counts.received),
            "inferred": str(counts.inferred),
            "dropped_stale": str(counts.dropped_stale),
            "refused": str(sum(counts.refused.values())),
            "refused_frames": str(counts.refused_frames),
            "message_lost": str(counts.message_lost),
            "image_bytes": str(self._image_bytes),
        }
        for cause, count in sorted(counts.refused.items()):
            values[f"refused.{cause}"] = str(count)
            values[f"refused.{cause}.last"] = self._last_text[cause]
        for name, window in self._latency.items():
            for percent in LATENCY_PERCENTS:
                value = window.percentile(percent)
                key = f"latency_ms.{name}.p{percent}"
                values[key] = "" if value is None else f"{value:.1f}"
        return values

    def _level(self, state: Mapping[str, str]) -> tuple[int, str]:
        """Level and words for what happened since the last report."""
        counts, before = self._counts, self._reported
        refused = counts.refused - before.refused
        inferred = counts.inferred - before.inferred
        level, words = self._level_of_images(state, inferred)
        if not refused:
            return level, words
        cause = refused.most_common(1)[0][0]
        said = f"{sum(refused.values())} refused, mostly {cause}: {self._last_text[cause]}"
        if "internal" in refused:
            return ERROR, said
        if counts.refused_frames > before.refused_frames:
            return ERROR if inferred == 0 else WARN, said
        # Calibration or motion, which says nothing about the images.
        return (WARN, said) if level == OK else (level, f"{words}; {said}")

    def _level_of_images(self, state: Mapping[str, str], inferred: int) -> tuple[int, str]:
        """The same, for what became of the images; refused ones apart."""
        counts, before = self._counts, self._reported
        active = state.get("state") == "active"
        if active and state.get("enabled") == "false":
            self._waiting_since = None
            return OK, "paused by ~/enable: images are left alone"
        waiting = self._waiting()
        if active and waiting > STUCK and counts.received > before.received:
            return ERROR, f"images arrive, but none has become depth for {waiting:.0f} s: {_STUCK}"
        lost = counts.message_lost - before.message_lost
        if lost:
            return WARN, f"{lost} images lost by the transport: {self._cure()}"
        quiet = self._clock() - self._newest_image >= SILENCE
        silent = quiet and counts.received == before.received
        nobody = state.get("publishers.image") == "0"
        if not active or nobody or silent:
            self._waiting_since = None
        if not active:
            return OK, "not active"
        if nobody:
            topic = state.get("image_topic") or "the image topic"
            return STALE, f"nobody publishes {topic}, or not with a QoS that fits"
        if silent:
            return STALE, self._words_of_silence(state)
        words = f"{inferred} depth image{'' if inferred == 1 else 's'} since the last report"
        if inferred and state.get("known_share") == "0":
            return WARN, f"{words}, {_EMPTY}"
        return WARN if state.get("backend_fell_back") == "true" else OK, words

    def _waiting(self) -> float:
        """Seconds for which nothing has become of the images that arrived."""
        return 0.0 if self._waiting_since is None else self._clock() - self._waiting_since

    def _words_of_silence(self, state: Mapping[str, str]) -> str:
        words = "no image arrived since the last report"
        calibrated = self._counts.camera_infos > self._reported.camera_infos
        # A camera sends both; where only the small one comes through, the large one is lost.
        if calibrated and state.get("publishers.image"):
            words += f", but camera_info did; if images are lost on the way: {self._cure()}"
        return words

    def _cure(self) -> str:
        size = self._image_bytes or self._expected_bytes
        if not self._fast_dds:
            return _NO_SEGMENT
        # Not a word about the segment where images fit it many times over.
        if 0 < size <= SEGMENT_BYTES // 4:
            return f"the machine or the network is busy ({size} bytes an image); {_NO_SEGMENT}"
        variables = (f"{name}={value}" for name, value in large_images_environment().items())
        return _LARGER_SEGMENT.format(profile=" ".join(variables))


def to_message(report: Report, name: str, hardware_id: str) -> DiagnosticArray:
    """The report as a ``/diagnostics`` message; the caller stamps it."""
    status = DiagnosticStatus()
    status.level = bytes([report.level])
    status.name = name
    status.message = report.message
    status.hardware_id = hardware_id
    status.values = [KeyValue(key=key, value=value) for key, value in report.values.items()]
    message = DiagnosticArray()
    message.status = [status]
    return message


LASTING = 3.0
"""Seconds after which a change is one to tell: a single lost image does not fill the log."""


class HealthLog:
    """Tells a change of level once it has lasted, and not again.

    Args:
        get_logger: of the node.
        clock: steady seconds.
    """

    def __init__(
        self, get_logger: Callable[[], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._get_logger = get_logger
        self._clock = clock
        self._told = OK
        self._seen = OK
        self._since = clock()

    def take(self, report: Report) -> None:
        """One report, as often as they are made."""
        now = self._clock()
        if report.level != self._seen:
            self._seen, self._since = report.level, now
        if report.level == self._told or now - self._since < LASTING:
            return
        self._told = report.level
        if report.level == OK:
            self._get_logger().info(f"well again: {report.message}")
        else:
            self._get_logger().warning(report.message)


def state_of(
    lifecycle: str,
    enabled: bool,
    bundle: str,
    pipeline: DepthPipeline | None,
    outputs: Outputs | None,
    subscriptions: Subscriptions | None,
    worker: FrameWorker | None,
    adapter: Adapter,
    mounting: Mounting | None = None,
) -> dict[str, str]:
    """Keys and values of the diagnostics that are not counted; empty where there is nothing to say.

    Args:
        lifecycle: state of the node. enabled: by ~/enable. bundle: that was asked for.
        pipeline, outputs: None before the node is configured.
        subscriptions, worker: None while it is not active.
        adapter: of the node. mounting: None where tf is not asked.
    """
    frame = worker.newest if worker is not None else None
    senders = subscriptions.publishers() if subscriptions is not None else {}
    heard = outputs.subscriptions() if outputs is not None else {}
    return {
        "state": lifecycle,
        "enabled": str(enabled).lower(),
        "bundle": str(pipeline.bundle.path) if pipeline else bundle,
        **_networks(pipeline),
        **_model(outputs.active_model if outputs else "", frame.result if frame else None),
        "model_error": worker.model_error if worker is not None else "",
        **_scale(pipeline),
        **adapter.status(),
        "mount": mounting.text if mounting is not None else "",
        "known_share": known_share(frame.result.depth) if frame else "",
        "road": outputs.road.newest.text if outputs else "",
        **_camera(worker),
        "image_topic": subscriptions.image_topic if subscriptions is not None else "",
        **{f"publishers.{n}": str(c) for n, c in senders.items()},
        **{f"subscribers.{n}": str(c) for n, c in heard.items()},
        **{f"published.{n}": str(c) for n, c in sorted(outputs.counts.items() if outputs else ())},
    }


def remarks_of(
    pipeline: DepthPipeline | None, outputs: Outputs | None, worker: FrameWorker | None = None
) -> list[str]:
    """What an operator ought to know all the time."""
    remarks = [] if worker is None else [f"camera_info: {doubt}" for doubt in worker.doubts]
    frame = worker.newest if worker is not None else None
    if frame is not None and not (frame.header.stamp.sec or frame.header.stamp.nanosec):
        remarks.append(
            "images have no stamp (zero), so that frames cannot be compared nor odometry matched: "
            "the camera's driver has to set header.stamp"
        )
    if pipeline is not None and pipeline.backend_fell_back:
        remarks.append(f"runs on {pipeline.backend}: {pipeline.backend_reason}")
    if outputs is not None and not outputs.metres:
        remarks.append(f"depth is relative, not metres (scale.mode none), on {outputs.depth_topic}")
    return remarks


def known_share(depth: NDArray[np.float32]) -> str:
    """Share of the pixels (h, w) with a finite depth; `0` means not a single one."""
    share = float(np.isfinite(depth).mean())
    return "0" if share == 0 else f"{share:.4f}"


def _networks(pipeline: DepthPipeline | None) -> dict[str, str]:
    if pipeline is None:
        keys = ("backend", "device", "backend_reason", "backend_fell_back", "references")
        return dict.fromkeys(keys, "")
    backend = pipeline.networks.backend
    return {
        "backend": backend.name,
        "device": backend.device,
        "backend_reason": pipeline.backend_reason,
        "backend_fell_back": str(pipeline.backend_fell_back).lower(),
        "references": pipeline.references_text,
    }


def _model(active_model: str, result: DepthResult | None) -> dict[str, str]:
    model, _, reason = active_model.partition(" ")
    parallax = result.parallax_px if result else None
    return {
        "active_model": model,
        "reason": reason,
        "reason_detail": (result.detail or "") if result else "",
        "pose_source": (result.pose_source or "") if result else "",
        "parallax_px": "" if parallax is None else f"{parallax:.2f}",
    }


def _scale(pipeline: DepthPipeline | None) -> dict[str, str]:
    if pipeline is None:
        return {}
    status = pipeline.scale.status
    return {
        "scale.mode": status.mode,
        "scale.state": status.state,
        "scale.metres_per_unit": f"{status.metres_per_unit:.6g}",
        "scale.spread": "" if status.spread is None else f"{status.spread:.4f}",
        "scale.samples": str(status.samples),
        "scale.text": status.text,
    }


def _camera(worker: FrameWorker | None) -> dict[str, str]:
    camera = worker.camera if worker is not None else None
    if camera is None:
        return {"image_size": "", "focal_length_px": ""}
    return {
        "image_size": f"{camera.width}x{camera.height}",
        "focal_length_px": f"{camera.fx:.1f}",
    }
