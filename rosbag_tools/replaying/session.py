"""One replay from beginning to end: node, playing, evaluating, metrics.json, report.html.

`depth_bag demo` is one of the embedded drive.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.pipeline.references import SWITCHED_OFF, UNKNOWN
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.share import demo_bag
from rosbag_tools.console import number, progress, show
from rosbag_tools.replaying.node_process import NodeProcess, ReplayError, free_domain
from rosbag_tools.reports.account import Account
from rosbag_tools.reports.results import METRICS, NODE_LOG, REPORT, Results, result_folder, save
from rosbag_tools.reports.scoring import BASELINE_LABELS
from rosbag_tools.work import nothing_read

if TYPE_CHECKING:
    from depth_prior_ros.backends import Precision
    from depth_prior_ros.bundle import Bundle
    from rosbag_tools.replaying.replay import Answer, Played, Player


@dataclass(frozen=True)
class ReplayOptions:
    """How to replay.

    rate: None for lockstep, otherwise the speed in multiples of real time. forced: whether to
    evaluate each model forced as well. force_model: what the node itself is forced to. look_up:
    whether references of the bundle are.
    start_timeout and answer_timeout: seconds. domain_id: a ROS domain, None for one that is free.
    """

    bundle: str = "lite"
    rate: float | None = None
    backend: str = "auto"
    device: str = "auto"
    precision: Precision = "f32"
    force_model: str = ""
    forced: bool = True
    start_timeout: float = 180.0
    answer_timeout: float = 20.0
    domain_id: int | None = None
    look_up: bool = True


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
            raise ReplayError(nothing_read(recording))
        results = session.results(played, command)
        save(folder, results)
        from rosbag_tools.reports.report import render

        (folder / REPORT).write_text(render(folder, results), encoding="utf-8")
    return results


class _Session:
    """The state of one replay."""

    def __init__(
        self, recording: StoredRecording, folder: Path, options: ReplayOptions, bundle: Bundle
    ) -> None:
        self.recording, self.folder, self.options, self.bundle = recording, folder, options, bundle
        self.account = Account(recording, bundle, folder)
        self._answered_at: dict[int, int] = {}

    def play(self) -> Played:
        """Run the node and the player; fills the account."""
        from rosbag_tools.replaying.replay import IMAGE_TOPIC, INFO_TOPIC, ODOMETRY_TOPIC, Player

        options = self.options
        domain = free_domain() if options.domain_id is None else options.domain_id
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
        options, pipeline = self.options, None
        self.account.references[self._references(played)] += played.sent
        if options.forced and self.account.protocol is not None:
            from depth_prior_ros.pipeline import DepthPipeline

            pipeline = DepthPipeline(
                self.bundle,
                backend=options.backend,
                device=options.device,
                precision=options.precision,
                look_up=options.look_up,
            )
        return self.account.results(
            mode="lockstep" if options.rate is None else f"rate {options.rate:g}",
            command=command,
            pipeline=pipeline,
            repeated=played.repeated,
            node=played.diagnostics,
            latency="from publishing an image to holding its depth, in the replay's process",
        )

    def _references(self, played: Played) -> str:
        """What was looked up: known by how the node was started, or said by it.

        It says so of the newest camera only.
        """
        if self.bundle.manifest.references is None:
            return ""
        if not self.options.look_up:
            return SWITCHED_OFF
        if not played.references:
            return UNKNOWN
        several = len({frame.camera for frame in self.recording.frames}) > 1
        return played.references + (", as the node said last" if several else "")

    def _node_parameters(self) -> dict[str, bool | int | float | str]:
        options = self.options
        parameters: dict[str, bool | int | float | str] = {
            "bundle": str(self.bundle.path),
            "backend": options.backend,
            "device": options.device,
            "precision": options.precision,
            "look_up": options.look_up,
            "image_reliability": "reliable",
            "odom_reliability": "reliable",
        }
        if options.force_model:
            parameters["force_model"] = options.force_model
        # In lockstep time costs nothing: no model is left out for being slow, no frame is answered
        # before its odometry. Without any, waiting for it would only measure the waiting.
        if options.rate is None:
            parameters["time_budget"] = 0.0
        if options.rate is None and any(f.speed is not None for f in self.recording.frames):
            parameters["sync_wait"] = 5.0
        return parameters

    def _play(self, player: Player, process: NodeProcess) -> Played:
        options = self.options
        with progress(f"replaying {self.recording.name}") as update:

            def sent(done: int, total: int) -> None:
                self.account.record(done - 1)
                update(done, total)

            arguments = (self.recording, process, self._answered, sent)
            if options.rate is None:
                return player.lockstep(*arguments, options.answer_timeout)
            return player.real_time(*arguments, options.rate, options.answer_timeout)

    def _answered(self, answer: Answer) -> None:
        self._answered_at[answer.position] = answer.source_ns
        self.account.answered(answer.position, answer.depth, answer.latency_ms)

    def _name_models(self, player: Player) -> None:
        for position, source_ns in self._answered_at.items():
            record = self.account.records[position]
            record.model, record.reason = player.model_at(source_ns)


def check_rclpy() -> None:
    """Raise ReplayError, in words, where there is no ROS 2."""
    try:
        import rosbag_tools.replaying.replay  # noqa: F401 - a module with rclpy in it
    except ImportError as error:
        raise ReplayError(
            f"a replay needs rclpy ({error}): source a ROS 2 installation, or install this "
            "package with its extra `ros`"
        ) from error


def demo(out: Path, options: ReplayOptions, command: str) -> Results:
    """Replay the embedded drive into `out` and print its figures; raises as `replay` does."""
    results = replay(open_recording(demo_bag()), out, options, command)
    show_results(results, out)
    return results


def show_results(results: Results, out: Path) -> None:
    """Print what a replay found: counts, switches, errors beside image-independent maps."""
    metrics = results.metrics
    latency = metrics["latency_ms"]
    show(
        f"frames in {metrics['frames_in']}, out {metrics['frames_out']}, "
        f"dropped {metrics['dropped']} ({metrics['mode']})",
        f"latency: p50 {number(latency['p50'], 0)} ms, p95 {number(latency['p95'], 0)} ms, "
        f"p99 {number(latency['p99'], 0)} ms",
    )
    for switch in metrics["switches"]:
        show(f"frame {switch['frame']}: {switch['from']} -> {switch['to']} ({switch['reason']})")
    if not metrics["switches"]:
        show("the model never changed")
    if metrics["depth"]["all"]["frames"]:
        show(_depth_table(metrics))
    else:
        show("no true depth in this recording: nothing to compare with")
    show(f"{out / REPORT}", f"{out / METRICS}")


def _depth_table(metrics: dict[str, Any]) -> Any:
    from rich.table import Table

    protocol = metrics["protocol"]
    crop = "Garg crop" if protocol["crop"] else "no crop"
    title = f"{protocol['scaling']} scaling, {crop}, up to {protocol['max_depth']:g} m"
    columns = ("abs_rel", "rmse", "rmse_log", "d1")
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    table.add_column("depth")
    for column in (*columns, "frames"):
        table.add_column(column, justify="right")
    entries = {
        "as published": metrics["depth"]["all"],
        "single-frame, forced": metrics["depth"]["single_frame"],
        "multi-frame, forced": metrics["depth"]["multi_frame"],
        "as published, metres as they are": metrics["absolute"],
    }
    for name, entry in entries.items():
        # A model that was not forced (--no-forced) has no frames.
        if entry["frames"]:
            table.add_row(name, *(number(entry[c]) for c in columns), str(entry["frames"]))
    if metrics["baselines"]:
        table.add_section()
        table.add_row("maps that do not look at the image:")
    for name, entry in metrics["baselines"].items():
        figures = (number(entry[c]) for c in columns)
        table.add_row(f"  {BASELINE_LABELS.get(name, name)}", *figures, str(entry["frames"]))
    return table
