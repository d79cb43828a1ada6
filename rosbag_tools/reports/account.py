"""What is known of every frame that was given depth, and what a result says of all of them.

A replay through the node and depth made offline keep the same account, so that their results are
read, compared and shown by the same code.
"""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.evaluate import FrameResult
from depth_prior_ros.evaluation.metrics import DepthErrors, summary
from depth_prior_ros.evaluation.protocols import Protocol, protocol_for
from depth_prior_ros.pipeline.references import (
    NO_LOOK_UP,
    SWITCHED_OFF,
    references_in_words,
)
from depth_prior_ros.recordings import Frame, StoredRecording
from rosbag_tools.console import progress
from rosbag_tools.reports import pictures
from rosbag_tools.reports.results import (
    PICTURES,
    FrameRecord,
    Results,
    latency_percentiles,
    switches,
)
from rosbag_tools.reports.scoring import ReplayErrors, evaluate_forced, in_view, protocol_entry

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline

# Pictures of more frames than this would make the report too heavy to open.
MOST_PICTURES = 120
_VERSIONS_OF = ("numpy", "torch", "openvino", "onnxruntime", "rosbags", "opencv-python-headless")


@dataclass
class Account:
    """The records of a recording's frames; pictures of some of them go to `folder`.

    Attributes:
        records: of every frame that was sent, by its position.
        fell_back: frames on which forced multi-frame had to fall back.
        references: frames by what was looked up for them (`DepthResult.references`).
    """

    recording: StoredRecording
    bundle: Bundle
    folder: Path
    records: dict[int, FrameRecord] = field(default_factory=dict)
    fell_back: int = 0
    references: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.protocol: Protocol | None = protocol_for(self.recording)
        self.errors = ReplayErrors(self.recording, self.protocol)
        self._stride = -(-len(self.recording.frames) // MOST_PICTURES)

    def record(self, position: int) -> FrameRecord:
        """The record of a frame; a new one where it has none yet."""
        frame = self.recording.frames[position]
        new = FrameRecord(frame.index, frame.stamp_ns, frame.speed)
        return self.records.setdefault(position, new)

    def answered(
        self,
        position: int,
        depth: NDArray[np.float32],
        latency_ms: float,
        image: NDArray[np.uint8] | None = None,
    ) -> FrameRecord:
        """Evaluate one depth image (h, w) and keep small pictures of it.

        image: of the frame, where it was read already.
        """
        record = self.record(position)
        record.latency_ms = round(latency_ms, 3)
        frame = self.recording.frames[position]
        result = self.errors.add(position, depth)
        if result is not None:
            record.abs_rel, record.ratio = result.errors.abs_rel, result.errors.ratio
            record.metric_abs_rel, record.flicker = result.metric.abs_rel, result.flicker
            record.parts = {name: part.abs_rel for name, part in result.parts.items()}
        if position % self._stride == 0:
            errors = None if result is None else result.errors
            self._draw(record, frame, frame.image() if image is None else image, depth, errors)
        return record

    def journal_entry(self, position: int, references: str) -> dict[str, Any]:
        """What `take_up` needs of a frame, as plain data."""
        found = [r for r in self.errors.results[-1:] if r.position == position]
        evaluated = None
        if found:
            evaluated = {k: v for k, v in asdict(found[0]).items() if k != "depth"}
        return {
            "position": position,
            "record": asdict(self.records[position]),
            "evaluated": evaluated,
            "references": references,
        }

    def take_up(self, entry: Mapping[str, Any]) -> None:
        """Go on after a frame of a `journal_entry`; in order."""
        self.records[entry["position"]] = FrameRecord(**entry["record"])
        self.references[entry["references"]] += 1
        if entry["evaluated"] is not None:
            evaluated = dict(entry["evaluated"])
            for name in ("errors", "metric"):
                evaluated[name] = DepthErrors(**evaluated[name])
            evaluated["parts"] = {k: DepthErrors(**v) for k, v in evaluated["parts"].items()}
            evaluated["region"] = tuple(evaluated["region"])
            self.errors.results.append(FrameResult(**evaluated))

    def results(
        self,
        *,
        mode: str,
        command: str,
        pipeline: DepthPipeline | None,
        repeated: int = 0,
        node: Mapping[str, str] | None = None,
        latency: str,
    ) -> Results:
        """Everything measured; runs the baselines, and the forced models where there is a pipeline.

        mode: how depth was made. latency: what the latencies are, in words.
        """
        recording = self.recording
        records = [self.records[i] for i in sorted(self.records)]
        references = self._references_in_words()
        out = sum(record.latency_ms is not None for record in records)
        metrics: dict[str, Any] = {
            "frames_in": len(records),
            "frames_out": out,
            "dropped": len(records) - out,
            "switches": switches(records),
            "latency_ms": latency_percentiles(records),
            "depth": self._depth_entries(pipeline),
            "protocol": protocol_entry(self.protocol, recording),
            "absolute": summary([result.metric for result in self.errors.results]),
            "baselines": self._baselines(),
            "models": dict(Counter(f"{r.model} {r.reason}" for r in records if r.model)),
            "multi_frame_fell_back": self.fell_back,
            "mode": mode,
            "repeated": repeated,
            "skipped": [str(entry) for entry in recording.skipped],
            "references": references,
        }
        manifest = self.bundle.manifest
        run = {
            "command": command,
            "recording": recording.name,
            "notes": [*recording.notes, *self.errors.notes()],
            "bundle": {
                "name": manifest.name,
                "licence": manifest.licence,
                "data_sources": list(manifest.provenance.data_sources),
                "metres_per_unit_source": manifest.depth.metres_per_unit_source,
                "digest": self.bundle.digest[:16],
            },
            "references": references,
            "camera": asdict(recording.frames[0].camera),
            "node": dict(node or {}),
            "latency": latency,
            "versions": versions(),
        }
        return Results(metrics, records, run)

    def _references_in_words(self) -> str:
        """Which references were looked up; what switches them off here is an option."""
        said = {
            f"{text} with {NO_LOOK_UP}" if text == SWITCHED_OFF else text: frames
            for text, frames in self.references.items()
        }
        return "; ".join(references_in_words(said))

    def _draw(
        self,
        record: FrameRecord,
        frame: Frame,
        image: NDArray[np.uint8],
        depth: NDArray[np.float32],
        errors: DepthErrors | None,
    ) -> None:
        view = in_view(image, depth)
        size = pictures.thumbnail_size(view.shape[1], view.shape[0])
        scaled = depth * np.float32(errors.ratio) if errors is not None else depth
        drawn = {
            "image": pictures.resized(view, size),
            "depth": pictures.resized(pictures.colour_depth(scaled), size),
        }
        if errors is not None:
            whole = frame.depth()
            assert whole is not None  # there are errors
            truth = in_view(whole, depth)
            error = pictures.relative_error(depth, truth, errors.ratio)
            drawn["truth"] = pictures.colour_truth(truth, size)
            drawn["error"] = pictures.colour_error(error, view, size)
        for name, picture in drawn.items():
            file = self.folder / PICTURES / f"{record.index:06d}_{name}.jpg"
            file.write_bytes(pictures.jpeg(picture))
        record.pictures = True

    def _depth_entries(self, pipeline: DepthPipeline | None) -> dict[str, Any]:
        entries: dict[str, Any] = {"all": self.errors.entry()}
        if self.protocol is None or pipeline is None:
            return entries | {"single_frame": summary([]), "multi_frame": summary([])}
        with progress("evaluating each model") as update:
            forced, self.fell_back = evaluate_forced(
                self.recording, pipeline, self.protocol, update
            )
        return entries | forced

    def _baselines(self) -> dict[str, Any]:
        if not self.errors.results:
            return {}
        with progress("evaluating image-independent maps") as update:
            return self.errors.baselines(self.bundle, update)


def versions() -> dict[str, str]:
    """What ran, for the report."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for name in ("depth-prior-ros", "ros-rclpy", *_VERSIONS_OF):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["depth_bag", *arguments])
