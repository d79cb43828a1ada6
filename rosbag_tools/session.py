"""One replay from beginning to end: node, playing, evaluation, metrics.json, report.html."""

from __future__ import annotations

import platform
import random
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.metrics import DepthErrors, summary
from depth_prior_ros.evaluation.protocols import Protocol, protocol_for
from depth_prior_ros.recordings import Frame, StoredRecording
from rosbag_tools import pictures
from rosbag_tools.console import progress
from rosbag_tools.node_process import NodeProcess, ReplayError
from rosbag_tools.results import (
    NODE_LOG,
    PICTURES,
    REPORT,
    FrameRecord,
    Results,
    latency_percentiles,
    result_folder,
    save,
    switches,
)
from rosbag_tools.scoring import (
    ReplayErrors,
    evaluate_forced,
    in_view,
    protocol_entry,
)

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from rosbag_tools.replay import Answer, Played, Player

# Pictures of more frames than this would make the report too heavy to open.
_MOST_PICTURES = 120
_VERSIONS_OF = ("numpy", "torch", "openvino", "onnxruntime", "rosbags", "opencv-python-headless")


@dataclass(frozen=True)
class ReplayOptions:
    """How to replay.

    rate: None for lockstep, otherwise the speed in multiples of real time. forced: whether to
    evaluate each model forced as well. force_model: what the node itself is forced to.
    start_timeout and answer_timeout: seconds. domain_id: a ROS domain, None for a random one.
    """

    bundle: str = "lite"
    rate: float | None = None
    backend: str = "auto"
    device: str = "auto"
    force_model: str = ""
    forced: bool = True
    start_timeout: float = 180.0
    answer_timeout: float = 20.0
    domain_id: int | None = None


def replay(recording: StoredRecording, out: Path, options: ReplayOptions, command: str) -> Results:
    """Replay a recording through the real node and write everything to the folder `out`.

    Raises RecordingError (also ReplayError: the node died, or is silent) and BundleError. `out`
    appears only when all is done.
    """
    from depth_prior_ros.bundle import load_bundle

    check_rclpy()
    if options.rate is not None and not options.rate > 0:
        raise ReplayError(f"a rate of {options.rate} is no speed; 1 is real time")
    bundle = load_bundle(options.bundle)  # a bad one is refused before anything starts
    if not recording.frames:
        raise ReplayError(f"{recording.name}: no frames to replay")
    with result_folder(out) as folder:
        session = _Session(recording, folder, options, bundle)
        played = session.play()
        if not played.sent:
            reasons = "; ".join(str(entry) for entry in recording.skipped[:3])
            raise ReplayError(f"{recording.name}: not one frame could be read ({reasons})")
        results = session.results(played, command)
        save(folder, results)
        from rosbag_tools.report import render

        (folder / REPORT).write_text(render(folder, results), encoding="utf-8")
    return results


class _Session:
    """The state of one replay."""

    def __init__(
        self, recording: StoredRecording, folder: Path, options: ReplayOptions, bundle: Bundle
    ) -> None:
        self.recording, self.folder, self.options, self.bundle = recording, folder, options, bundle
        self.protocol: Protocol | None = protocol_for(recording)
        self.errors = ReplayErrors(recording, self.protocol)
        self.records: dict[int, FrameRecord] = {}
        self.fell_back = 0
        self._answered_at: dict[int, int] = {}
        self._stride = -(-len(recording.frames) // _MOST_PICTURES)

    def play(self) -> Played:
        """Run the node and the player; fills `records`."""
        from rosbag_tools.replay import IMAGE_TOPIC, INFO_TOPIC, ODOMETRY_TOPIC, Player

        options = self.options
        domain = options.domain_id
        if domain is None:
            domain = random.SystemRandom().randint(1, 101)
        remappings = {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC, "odom": ODOMETRY_TOPIC}
        process = NodeProcess(
            self._node_parameters(), remappings, domain_id=domain, log=self.folder / NODE_LOG
        )
        with process, Player(domain) as player:
            with progress("starting the node") as update:
                player.wait_for_node(process, options.start_timeout)
                update(1, 1)
            played = self._play(player, process)
            self._name_models(player)
        return played

    def results(self, played: Played, command: str) -> Results:
        """Everything measured; runs the forced models and the baselines."""
        recording, options = self.recording, self.options
        records = [self.records[i] for i in sorted(self.records)]
        out = sum(record.latency_ms is not None for record in records)
        metrics: dict[str, Any] = {
            "frames_in": played.sent,
            "frames_out": out,
            "dropped": played.sent - out,
            "switches": switches(records),
            "latency_ms": latency_percentiles(records),
            "depth": self._depth_entries(),
            "protocol": protocol_entry(self.protocol, recording),
            "absolute": summary([result.metric for result in self.errors.results]),
            "baselines": self._baselines(),
            "models": dict(Counter(f"{r.model} {r.reason}" for r in records if r.model)),
            "multi_frame_fell_back": self.fell_back,
            "mode": "lockstep" if options.rate is None else f"rate {options.rate:g}",
            "repeated": played.repeated,
            "skipped": [str(entry) for entry in recording.skipped],
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
            "camera": asdict(recording.frames[0].camera),
            "node": played.diagnostics or {},
            "versions": versions(),
        }
        return Results(metrics, records, run)

    def _node_parameters(self) -> dict[str, bool | int | float | str]:
        options = self.options
        parameters: dict[str, bool | int | float | str] = {
            "bundle": str(self.bundle.path),
            "backend": options.backend,
            "device": options.device,
            "image_reliability": "reliable",
            "odom_reliability": "reliable",
        }
        if options.force_model:
            parameters["force_model"] = options.force_model
        # In lockstep time costs nothing: no model is left out for being slow, no frame is evaluated
        # without its odometry. Without any, waiting for it would only measure the waiting.
        if options.rate is None:
            parameters["time_budget"] = 0.0
        if options.rate is None and any(f.speed is not None for f in self.recording.frames):
            parameters["sync_wait"] = 5.0
        return parameters

    def _play(self, player: Player, process: NodeProcess) -> Played:
        options = self.options
        with progress(f"replaying {self.recording.name}") as update:

            def sent(done: int, total: int) -> None:
                self._record(done - 1)
                update(done, total)

            arguments = (self.recording, process, self._answered, sent)
            if options.rate is None:
                return player.lockstep(*arguments, options.answer_timeout)
            return player.real_time(*arguments, options.rate, options.answer_timeout)

    def _record(self, position: int) -> FrameRecord:
        frame = self.recording.frames[position]
        new = FrameRecord(frame.index, frame.stamp_ns, frame.speed)
        return self.records.setdefault(position, new)

    def _answered(self, answer: Answer) -> None:
        """Evaluate one depth image and keep small pictures of it."""
        record = self._record(answer.position)
        record.latency_ms = round(answer.latency_ms, 3)
        self._answered_at[answer.position] = answer.source_ns
        frame = self.recording.frames[answer.position]
        depth = answer.depth
        result = self.errors.add(answer.position, depth)
        if result is not None:
            record.abs_rel, record.ratio = result.errors.abs_rel, result.errors.ratio
        if answer.position % self._stride == 0:
            self._draw(record, frame, depth, None if result is None else result.errors)

    def _draw(
        self,
        record: FrameRecord,
        frame: Frame,
        depth: NDArray[np.float32],
        errors: DepthErrors | None,
    ) -> None:
        view = in_view(frame.image(), depth)
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

    def _name_models(self, player: Player) -> None:
        for position, source_ns in self._answered_at.items():
            record = self.records[position]
            record.model, record.reason = player.model_at(source_ns)

    def _depth_entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = {"all": self.errors.entry()}
        if self.protocol is None or not self.options.forced:
            return entries | {"single_frame": summary([]), "multi_frame": summary([])}
        from depth_prior_ros.pipeline import DepthPipeline

        with progress("evaluating each model") as update:
            pipeline = DepthPipeline(
                self.bundle, backend=self.options.backend, device=self.options.device
            )
            forced, self.fell_back = evaluate_forced(
                self.recording, pipeline, self.protocol, update
            )
        return entries | forced

    def _baselines(self) -> dict[str, Any]:
        if not self.errors.results:
            return {}
        with progress("evaluating image-independent maps") as update:
            return self.errors.baselines(self.bundle, update)


def check_rclpy() -> None:
    """Raise ReplayError, in words, where there is no ROS 2."""
    try:
        import rosbag_tools.replay  # noqa: F401 - a module with rclpy in it
    except ImportError as error:
        raise ReplayError(
            f"a replay needs rclpy ({error}): source a ROS 2 installation, or install this "
            "package with its extra `ros`"
        ) from error


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
