"""The running node's ~/adapt on a rendered drive with another mount: metres before and after.

    python benchmarks/adapt_service.py [--bundle lite] [--frames 300] [--judged 60] [--seed 21]
        [--street town] [--height 1.1] [--pitch 4] [--rate 1.0] [--time-budget -1]
        [--poses] [--camera-height]

A drive is rendered with a camera that is mounted otherwise than that of training. Its last `judged`
frames are played in lockstep to a depth_node that is to use the single-frame network, and what it
publishes is compared with the exact depth, in metres. Then the frames before are played in real
time (10 frames a second times `rate`), with the vehicle's speed as odometry (with `--poses` its
poses; with `--camera-height` nothing but the camera's height and pitch), ~/adapt is called, and
they are played again while the node fits. Then the judged frames once more.

Frames lost: of those that were sent while the node fitted, without an answer; beside it the same
for as many frames before the call. All over DDS, two processes; the street of the judged frames
goes on where the one before ended.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_prior_ros.evaluation.metrics import mean_errors
from depth_prior_ros.evaluation.protocols import PROTOCOLS
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.recordings.synthetic.drive import DriveSpec, SyntheticDrive
from rosbag_tools.make import write_bag
from rosbag_tools.replaying.node_process import NodeProcess, free_domain
from rosbag_tools.replaying.replay import IMAGE_TOPIC, INFO_TOPIC, ODOMETRY_TOPIC, Answer, Player

_PATIENCE = 300.0


class Operator:
    """Calls services and sets parameters of the node, and hears its diagnostics."""

    def __init__(self, domain: int) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rcl_interfaces.srv import SetParameters
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from std_srvs.srv import Trigger

        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("operator", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.values: dict[str, str] = {}
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, 10)
        self._adapt = self._node.create_client(Trigger, "/depth_node/adapt")
        self._set = self._node.create_client(SetParameters, "/depth_node/set_parameters")
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def _hear(self, message: Any) -> None:
        for status in message.status:
            self.values = {pair.key: pair.value for pair in status.values}

    def close(self) -> None:
        self._context.try_shutdown()
        self._thread.join(10)

    def adapt(self) -> tuple[bool, str, float]:
        """Call ~/adapt: success, words, milliseconds."""
        from std_srvs.srv import Trigger

        start = time.monotonic()
        answer = self._call(self._adapt, Trigger.Request())
        return answer.success, answer.message, 1e3 * (time.monotonic() - start)

    def force(self, model: str) -> None:
        """Set force_model."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        wanted = Parameter("force_model", value=model).to_parameter_msg()
        answer = self._call(self._set, SetParameters.Request(parameters=[wanted]))
        assert answer.results[0].successful, answer.results[0].reason

    def _call(self, client: Any, request: Any) -> Any:
        assert client.wait_for_service(_PATIENCE)
        future = client.call_async(request)
        deadline = time.monotonic() + _PATIENCE
        while not future.done():
            assert time.monotonic() < deadline, "the node does not answer"
            time.sleep(0.002)
        return future.result()


class Plays:
    """Parts of a recording, each time later than the last."""

    def __init__(self, recording: StoredRecording, known: str) -> None:
        self._recording, self._known, self._offset = recording, known, 0

    def part(self, first: int, end: int) -> StoredRecording:
        frames = self._recording.frames[first:end]
        moved = [replace(f, stamp_ns=f.stamp_ns + self._offset, **self._told(f)) for f in frames]
        self._offset += self._recording.frames[-1].stamp_ns - frames[0].stamp_ns + 10**10
        return replace(self._recording, frames=moved)

    def _told(self, frame: Any) -> dict[str, Any]:
        if self._known == "poses":
            return {}
        return {"pose": None, "speed": frame.speed if self._known == "speed" else None}


def judged(
    player: Player, node: NodeProcess, operator: Operator, part: StoredRecording
) -> tuple[float, float]:
    """AbsRel of the published single-frame depth in metres, and after median scaling."""
    protocol, metric, scaled = PROTOCOLS["synthetic"], [], []

    def take(answer: Answer) -> None:
        truth = part.frames[answer.position].depth()
        assert truth is not None
        pixels = protocol.pixels(answer.depth, truth)
        metric.append(pixels.errors("none"))
        scaled.append(pixels.errors("median"))

    operator.force("single_frame")
    player.lockstep(part, node, take, lambda done, total: None, 60.0)
    operator.force("")
    return mean_errors(metric).abs_rel, mean_errors(scaled).abs_rel


def played(
    player: Player, node: NodeProcess, part: StoredRecording, rate: float, fitting: Any
) -> tuple[list[bool], list[bool]]:
    """For every frame, whether it was answered, and whether the node was fitting as it was sent."""
    answered = [False] * len(part.frames)
    during = [False] * len(part.frames)

    def take(answer: Answer) -> None:
        answered[answer.position] = True

    def told(done: int, total: int) -> None:
        during[done - 1] = fitting()

    player.real_time(part, node, take, told, rate, 10.0)
    return answered, during


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", default="lite")
    add("--frames", type=int, default=300)
    add("--judged", type=int, default=60)
    add("--seed", type=int, default=21)
    add("--street", default="town")
    add("--height", type=float, default=1.1)
    add("--pitch", type=float, default=4.0, help="degrees downwards")
    add("--rate", type=float, default=1.0)
    add("--time-budget", type=float, default=-1.0, help="the node's; 0: multi-frame at any cost")
    add("--poses", action="store_true")
    add("--camera-height", action="store_true")
    options = parser.parse_args(arguments)
    known = "height" if options.camera_height else "poses" if options.poses else "speed"
    spec = DriveSpec(
        frames=options.frames,
        stop=False,
        camera_height=options.height,
        camera_pitch_deg=options.pitch,
    )
    drive = SyntheticDrive(seed=options.seed, spec=spec, street=options.street)
    with tempfile.TemporaryDirectory() as folder:
        bag = Path(folder) / "drive.mcap"
        write_bag(drive, bag)
        drive.close()
        return run(options, open_recording(bag), known, Path(folder))


def run(options: argparse.Namespace, recording: StoredRecording, known: str, folder: Path) -> int:
    domain = free_domain()
    remappings = {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC, "odom": ODOMETRY_TOPIC}
    parameters: dict[str, bool | int | float | str] = {
        "bundle": options.bundle,
        "image_reliability": "reliable",
        "odom_reliability": "reliable",
        "diagnostics_period": 0.1,
        "time_budget": options.time_budget,
        "adapt.file": str(folder / "adapted.yaml"),
    }
    if known == "height":
        parameters["scale.camera_height"] = options.height
        parameters["scale.camera_pitch_deg"] = options.pitch
    plays, learned = Plays(recording, known), options.frames - options.judged
    process = NodeProcess(parameters, remappings, domain_id=domain, log=folder / "node.log")
    with process as node, Player(domain) as player:
        operator = Operator(domain)
        player.wait_for_node(node, _PATIENCE)
        before = judged(player, node, operator, plays.part(learned, options.frames))
        answered, _ = played(player, node, plays.part(0, learned), options.rate, bool)
        usual = answered.count(False)
        said = operator.values
        print(
            f"{said.get('adapt.keyframes')} keyframes; {said.get('active_model')} "
            f"{said.get('reason')}; inference {said.get('latency_ms.infer.p50')} ms (median)"
        )
        success, words, took = operator.adapt()
        print(f"~/adapt answered in {took:.0f} ms: {words}", flush=True)
        if not success:
            return 1
        deadline = time.monotonic() + 1.0
        while operator.values.get("adapt.state") != "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        again, refused, _ = operator.adapt()
        print(f"a second call: {'taken' if again else 'refused'}: {refused}", flush=True)

        def fitting() -> bool:
            return operator.values.get("adapt.state") == "running"

        answered, during = played(player, node, plays.part(0, learned), options.rate, fitting)
        while fitting():
            time.sleep(0.1)
        lost = sum(d and not a for a, d in zip(answered, during, strict=True))
        after = judged(player, node, operator, plays.part(learned, options.frames))
        outcome = operator.values.get("adapt.outcome", "")
        operator.close()
    count = during.count(True)
    print(f"outcome: {outcome}")
    print(
        f"{options.bundle}, camera at {options.height:g} m looking {options.pitch:g} degrees down, "
        f"{options.street} {options.seed}, metres by {known}; single-frame as published, "
        f"{options.judged} frames of another part of the street:\n"
        f"AbsRel in metres {before[0]:.3f} before, {after[0]:.3f} after "
        f"(median-scaled {before[1]:.3f}, {after[1]:.3f})\n"
        f"frames lost while it fitted: {lost} of {count} at {10 * options.rate:g} Hz "
        f"(without a fit: {usual} of {learned})"
    )
    name = f"adapt_service_{known}"
    print(f"figure {name}_abs_rel_metres_before {before[0]:.3f}")
    print(f"figure {name}_abs_rel_metres_after {after[0]:.3f}")
    print(f"figure {name}_lost_share {lost / max(1, count):.3f}")
    print(f"figure {name}_usual_lost_share {usual / learned:.3f}")
    print(f"figure {name}_answer_ms {took:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
