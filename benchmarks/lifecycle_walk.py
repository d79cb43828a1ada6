"""A random walk through the node's lifecycle, under load, with storms of services and parameters.

    python benchmarks/lifecycle_walk.py --transitions 500 --seed 1

A real node process over DDS, a camera process beside it, subscribers to all that the node makes of
a frame, and a small bundle with random weights.
Before every transition several calls are sent at once; some ask for what cannot be. Printed: how
many calls were answered and how long the slowest took, how many were refused (each with words),
and by how much the node's memory grew in the second half of the walk.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

SECONDS = 10.0
"""In which every call has to be answered."""

_TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
_WAYS = {
    "unconfigured": ("configure",),
    "inactive": ("activate", "activate", "cleanup"),
    "active": ("deactivate",),
}
_ANYTHING = 0.15  # share of transitions that are drawn without asking for the state
_WATCHED = 0.3  # share of activations after which depth has to come before the walk goes on
_SETTLED = 0.1  # share of the walk over which memory is averaged
_PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("max_depth_m", 40.0),
    ("max_depth_m", -1.0),
    ("max_depth_m", "far"),
    ("failure_pause", 3),
    ("force_model", "single_frame"),
    ("force_model", ""),
    ("force_model", "no_such_model"),
    ("bundle", "no_such_bundle"),
    ("points.stride", 2),
    ("no_such_parameter", 1),
)


@dataclass
class Walk:
    """What became of the calls of a walk."""

    asked: int = 0
    seconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    wordless: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)  # MB after each transition
    unanswered: Counter[str] = field(default_factory=Counter)
    watched: int = 0  # activations after which depth was waited for, and came
    heard: Counter[str] = field(default_factory=Counter)  # messages by topic

    @property
    def growth(self) -> float:
        """MB from the middle of the walk to its end, medians over a tenth of it each."""
        width = max(1, round(_SETTLED * len(self.memory)))
        middle = len(self.memory) // 2
        first, last = self.memory[middle : middle + width], self.memory[-width:]
        return statistics.median(last) - statistics.median(first)


def _listen(node: Any, walk: Walk) -> None:
    """Subscribe to what is made only while somebody listens."""
    from sensor_msgs.msg import CompressedImage, Image, PointCloud2

    def count(topic: str) -> Callable[[Any], None]:
        return lambda message: walk.heard.update([topic])

    for topic, kind in (
        ("depth/image_rect", Image),
        ("depth/image_rect/compressedDepth", CompressedImage),
        ("depth/points", PointCloud2),
        ("depth/colour", Image),
        ("depth/confidence", Image),
    ):
        node.create_subscription(kind, topic, count(topic), 10)


class Caller:
    """Sends calls to the node without waiting, and takes their answers."""

    def __init__(self, one: Any, walk: Walk) -> None:
        from lifecycle_msgs.srv import ChangeState, GetState
        from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
        from std_srvs.srv import Trigger

        self._one, self._walk = one, walk
        self._open: list[tuple[str, float, Any, list[float]]] = []
        kinds = {
            "change_state": ChangeState,
            "get_state": GetState,
            "get_parameters": GetParameters,
            "list_parameters": ListParameters,
            "set_parameters": SetParameters,
            **dict.fromkeys(("reload_bundle", "save_snapshot", "reset_scale"), Trigger),
        }
        node = one.witness.node
        self._clients = {n: node.create_client(k, f"depth_node/{n}") for n, k in kinds.items()}
        for name, client in self._clients.items():
            if not client.wait_for_service(60):
                raise SystemExit(f"no service {name}")

    def send(self, name: str, **values: Any) -> Any:
        """One call; its future."""
        request = self._clients[name].srv_type.Request(**values)
        answered: list[float] = []
        future = self._clients[name].call_async(request)
        future.add_done_callback(lambda _: answered.append(time.monotonic()))
        self._open.append((name, time.monotonic(), future, answered))
        self._walk.asked += 1
        return future

    def collect(self) -> None:
        """Wait for all that was sent, up to SECONDS for each."""
        while self._open:
            name, sent, future, answered = self._open.pop(0)
            while not answered and time.monotonic() < sent + SECONDS and self._one.process.alive:
                time.sleep(0.001)
            if not answered:
                self._walk.unanswered[name] += 1
                continue
            self._walk.seconds.append(answered[0] - sent)
            for refused, words in _refusals(name, future.result()):
                self._walk.refused[name] += refused
                self._walk.wordless[name] += refused and not words


def _refusals(name: str, answer: Any) -> list[tuple[bool, str]]:
    """(whether refused, why in words) of each thing that a call asked for."""
    if name == "set_parameters":
        return [(not result.successful, result.reason) for result in answer.results]
    if name == "change_state":
        return [(not answer.success, "ROS has no words here")]
    if hasattr(answer, "success"):
        return [(not answer.success, answer.message)]
    return []


def _set(caller: Caller, name: str, value: Any) -> None:
    from rclpy.parameter import Parameter

    parameter = Parameter(name, value=value).to_parameter_msg()
    caller.send("set_parameters", parameters=[parameter])


def _storm(caller: Caller, chance: random.Random) -> None:
    def set_one() -> None:
        _set(caller, *chance.choice(_PARAMETERS))

    quick: tuple[Callable[[], Any], ...] = (
        lambda: caller.send("get_state"),
        lambda: caller.send("get_parameters", names=["bundle", "max_depth_m"]),
        lambda: caller.send("list_parameters"),
        lambda: caller.send("reset_scale"),
        set_one,
        set_one,
    )
    for _ in range(chance.randrange(1, 8)):
        chance.choice(quick)()
    if chance.random() < 0.1:
        caller.send(chance.choice(("reload_bundle", "save_snapshot")))


def _memory(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def run(transitions: int, seed: int, rate: float = 15.0) -> tuple[Walk, dict[str, str]]:
    """Walk; what became of the calls, and the node's last diagnostics. SystemExit if it ended."""
    import rclpy
    from fault_scenes import scene
    from helpers import make_tiny_bundle
    from ros_helpers import BUNDLE_SIZE

    chance, walk = random.Random(seed), Walk()
    with tempfile.TemporaryDirectory() as place:
        bundle = Path(place) / "bundle"
        make_tiny_bundle(bundle, BUNDLE_SIZE)
        options = {"snapshot_folder": Path(place) / "snapshots"}
        with scene(bundle, **options) as one:
            one.camera(size=BUNDLE_SIZE, rate=rate, speed=5.0, stamp=10**15, step=10**8)
            one.until(lambda: one.witness.depth, "depth")
            _listen(one.witness.node, walk)
            caller = Caller(one, walk)
            for _ in range(transitions):
                state = caller.send("get_state")
                caller.collect()
                label = state.result().current_state.label if state.done() else "active"
                ways = _WAYS.get(label, tuple(_TRANSITIONS))
                if chance.random() < _ANYTHING:
                    ways = tuple(_TRANSITIONS)
                _storm(caller, chance)
                _set(caller, "bundle", str(bundle))  # a storm may have named another
                wanted = {"id": _TRANSITIONS[chance.choice(ways)]}
                caller.send("change_state", transition=_transition(**wanted))
                _storm(caller, chance)
                caller.collect()
                if not one.process.alive:
                    raise SystemExit(f"the node ended:\n{one.process.output[-2000:]}")
                walk.memory.append(_memory(one.process.process.pid))
                if chance.random() < _WATCHED and _is_active(caller):
                    one.until(lambda: one.witness.depth, "depth after activation")
                    walk.watched += 1
                one.witness.depth.clear()
                one.witness.info.clear()
                del one.witness.diagnostics[:-1]
            status = one.witness.status()
    rclpy.try_shutdown()
    return walk, status


def _is_active(caller: Caller) -> bool:
    state = caller.send("get_state")
    caller.collect()
    return bool(state.done()) and state.result().current_state.label == "active"


def _transition(**values: int) -> Any:
    from lifecycle_msgs.msg import Transition

    return Transition(**values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--transitions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    walk, status = run(arguments.transitions, arguments.seed)
    print(f"seed {arguments.seed}, {arguments.transitions} transitions")
    print(f"figure calls {walk.asked}")
    print(f"figure unanswered {sum(walk.unanswered.values())} {dict(walk.unanswered) or ''}")
    print(f"figure slowest_s {max(walk.seconds):.2f}")
    print(f"figure median_ms {1e3 * statistics.median(walk.seconds):.1f}")
    for name, count in sorted(walk.refused.items()):
        print(f"figure refused_{name} {count}")
    print(f"figure refused_without_words {sum(walk.wordless.values())}")
    print(f"figure activations_with_depth {walk.watched}")
    for topic, count in sorted(walk.heard.items()):
        print(f"figure messages_{topic} {count}")
    for name in ("received", "inferred", "dropped_stale", "refused_frames"):
        print(f"figure frames_{name} {status.get(name, '')}")
    print(f"figure memory_MB {walk.memory[-1]:.1f}")
    print(f"figure growth_of_second_half_MB {walk.growth:.2f}")


if __name__ == "__main__":
    main()
