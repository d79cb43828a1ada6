"""The node under the load of a camera: what comes out, how old it is, and does memory stay.

    python benchmarks/node_load.py [--seconds 60] [--rate 30] [--image 1242x375] [--bundle lite]
        [--threads 1] [--time-budget -1] [--cores 2] [--transports profile default reliable]
        [--soak-minutes 0] [--soak-rate 30] [--json FILE]

Three processes over real DDS on the same `--cores` cores: a camera (rgb8 with camera_info and
odometry of a moving vehicle), depth_node, and a reader of its depth. This process asks for
parameters and services meanwhile. Transports:

- default: as ROS 2 starts without being told anything, best effort;
- reliable: that with `image_reliability: reliable`;
- profile: best effort with config/fastdds_large_images.xml at all processes.

Age: from the camera's stamp, which is the clock right before it publishes, until the depth of that
image is in the reader's callback; so with both ways between the processes. Inference: median and
p95 by the node's own diagnostics; ages are compared with the same percentile of it. Dropped: images
that a newer one replaced while another was being inferred, of those that arrived. Not arrived: lost
by the transport, or replaced by a newer one in the middleware's queue of one before the node read
it. Calls: get_parameters, get_state (lifecycle), set_parameters and ~/reset_scale in turn, ten a
second; every fiftieth is ~/save_snapshot, which writes files before it answers and has a figure of
its own. After the time measured the bundle is loaded anew (~/reload_bundle), and the calls that
fall into it have theirs.

`--soak-minutes 10` goes on with the first transport and compares the resident memory of the last
half minute with that of the half minute after minute 2 (a fifth of a shorter soak).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from load_processes import Setup, memory_of, processes  # noqa: E402

TRANSPORTS = ("profile", "default", "reliable")
COUNTED = ("received", "inferred", "dropped_stale", "refused", "message_lost")


def percentile(values: list[float], percent: float) -> float:
    """NaN where there is nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


@dataclass
class Load:
    """What one transport did in `seconds`; milliseconds and MiB."""

    transport: str
    seconds: float
    sent: int
    late: int
    model: str
    counts: dict[str, int]
    infer: dict[str, float]
    ages: list[float]
    calls: dict[str, list[float]]
    memory: list[dict[str, float]] = field(default_factory=list)
    reload_ms: float = float("nan")
    reload_calls: dict[str, list[float]] = field(default_factory=dict)

    @property
    def inferred_per_second(self) -> float:
        return self.counts["inferred"] / self.seconds

    @property
    def lost_share(self) -> float:
        return 1 - self.counts["received"] / max(1, self.sent)

    @property
    def dropped_share(self) -> float:
        return self.counts["dropped_stale"] / max(1, self.counts["received"])

    def age(self, percent: float) -> float:
        return percentile(self.ages, percent)

    def age_in_inferences(self, percent: int) -> float:
        """The age's percentile over the same percentile of inference."""
        return self.age(percent) / self.infer[f"p{percent}"]

    def calls_of(self, *kinds: str) -> list[float]:
        return [ms for kind in kinds for ms in self.calls.get(kind, [])]


def load(transport: str, setup: Setup, seconds: float) -> Load:
    """Count and time for `seconds`."""
    pid = setup.process.process.pid
    before = setup.robot.next_status()
    sent = setup.camera.sent()
    setup.reader.ages()
    memory: list[dict[str, float]] = []
    done = threading.Event()
    start = time.monotonic()

    def watch_memory() -> None:
        while not done.wait(1.0):
            memory.append({"at": time.monotonic() - start, **memory_of(pid)})

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    try:
        calls = setup.robot.call_in_turn(lambda: time.monotonic() < start + seconds)
        after = setup.robot.next_status()
    finally:
        done.set()
        watcher.join()
    sent_after = setup.camera.sent()
    elapsed = float(after["heard"]) - float(before["heard"])
    return Load(
        transport,
        elapsed,
        sent_after["images"] - sent["images"],
        sent_after["late"] - sent["late"],
        f"{after['active_model']} {after['reason']}",
        {name: int(after.get(name, 0)) - int(before.get(name, 0)) for name in COUNTED},
        {p: float(after.get(f"latency_ms.infer.{p}") or "nan") for p in ("p50", "p95")},
        setup.reader.ages(),
        calls,
        memory,
    )


def report(loads: list[Load]) -> None:
    heads = ("transport", "sent/s", "arrived", "inferred/s", "dropped", "infer p50", "infer p95")
    heads += ("age p50", "age p95", "age max", "p50/infer", "p95/infer", "param p95")
    heads += ("service p95", "memory", "model")
    print(" ".join(f"{head:>11}" for head in heads) + "   (ms, unless it says otherwise)")
    for x in loads:
        row = [
            x.transport,
            f"{x.sent / x.seconds:.1f}",
            f"{100 * (1 - x.lost_share):.0f} %",
            f"{x.inferred_per_second:.2f}",
            f"{100 * x.dropped_share:.0f} %",
            *(f"{x.infer[p]:.1f}" for p in ("p50", "p95")),
            *(f"{x.age(p):.1f}" for p in (50, 95, 100)),
            *(f"{x.age_in_inferences(p):.2f}" for p in (50, 95)),
            f"{percentile(x.calls_of('get_parameters', 'set_parameters'), 95):.1f}",
            f"{percentile(x.calls_of('get_state', 'reset_scale'), 95):.1f}",
            f"{x.memory[-1]['resident']:.0f} MiB" if x.memory else "",
            x.model,
        ]
        print(" ".join(f"{cell:>11}" for cell in row))
    for x in loads:
        print(f"figure node_load_inferred_per_s_{x.transport} {x.inferred_per_second:.2f}")
        print(f"figure node_load_dropped_share_{x.transport} {x.dropped_share:.3f}")
        print(f"figure node_load_lost_share_{x.transport} {x.lost_share:.3f}")
        for percent in (50, 95):
            print(f"figure node_load_age_p{percent}_ms_{x.transport} {x.age(percent):.1f}")
            inferences = x.age_in_inferences(percent)
            print(f"figure node_load_age_p{percent}_inferences_{x.transport} {inferences:.2f}")
        for kind, answers in sorted(x.calls.items()):
            value = percentile(answers, 95)
            print(f"figure node_load_{kind}_p95_ms_{x.transport} {value:.1f}")
        if x.reload_calls:
            answers = [ms for kind in x.reload_calls.values() for ms in kind]
            print(f"figure node_load_reload_ms_{x.transport} {x.reload_ms:.0f}")
            value = percentile(answers, 95)
            print(f"figure node_load_calls_during_reload_p95_ms_{x.transport} {value:.1f}")


def growth(memory: list[dict[str, float]], minutes: float) -> dict[str, float]:
    """MiB between the half minute after minute 2 and the last one, of both kinds of memory."""
    begin = min(120.0, 0.2 * 60 * minutes)
    span = min(30.0, 0.1 * 60 * minutes)
    early = [m for m in memory if begin <= m["at"] < begin + span]
    late = [m for m in memory if m["at"] >= memory[-1]["at"] - span]
    return {
        kind: statistics.median(m[kind] for m in late) - statistics.median(m[kind] for m in early)
        for kind in ("resident", "own")
    }


def soak(transport: str, arguments: argparse.Namespace) -> Load:
    """`--soak-minutes` of one transport; prints memory by minute and the growth."""
    with processes(transport, arguments) as setup:
        setup.camera.film(rate=arguments.soak_rate)
        long = load(transport, setup, 60 * arguments.soak_minutes)
    by_minute: dict[int, list[dict[str, float]]] = defaultdict(list)
    for sample in long.memory:
        by_minute[int(sample["at"] // 60)].append(sample)
    rate = f"{arguments.soak_rate:g} Hz, {long.inferred_per_second:.2f} inferred/s"
    print(f"soak: {arguments.soak_minutes:g} min, {transport}, {rate}; MiB at the end of minute")
    for minute, samples in sorted(by_minute.items()):
        last = samples[-1]
        print(f"  {minute + 1:4d}  resident {last['resident']:8.1f}  own {last['own']:8.1f}")
    grown = growth(long.memory, arguments.soak_minutes)
    print(f"figure node_load_soak_growth_mb {grown['resident']:.2f}")
    print(f"figure node_load_soak_growth_own_mb {grown['own']:.2f}")
    print(f"figure node_load_soak_inferred_per_s {long.inferred_per_second:.2f}")
    print(f"figure node_load_soak_age_p95_ms {long.age(95):.1f}")
    return long


def size_of(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0, help="images per second")
    parser.add_argument("--image", type=size_of, default=(1242, 375))
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--time-budget", type=float, default=-1.0, help="the node's; 0.0: multi-frame at any cost"
    )
    parser.add_argument("--cores", type=int, default=2, help="for all processes; 0: all there are")
    parser.add_argument("--transports", nargs="*", choices=TRANSPORTS, default=list(TRANSPORTS))
    parser.add_argument("--soak-minutes", type=float, default=0.0)
    parser.add_argument("--soak-rate", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="everything measured, for later")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    loads = []
    for transport in arguments.transports:
        with processes(transport, arguments) as setup:
            loads.append(load(transport, setup, arguments.seconds))
            loads[-1].reload_ms, loads[-1].reload_calls = setup.robot.reload()
    wide, high = arguments.image
    print(
        f"{wide}x{high} rgb8 at {arguments.rate:g} Hz for {arguments.seconds:g} s, bundle "
        f"{arguments.bundle}, {arguments.threads} thread(s), {len(os.sched_getaffinity(0))} cores"
    )
    report(loads)
    if arguments.soak_minutes:
        loads.append(soak((arguments.transports or TRANSPORTS)[0], arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(x) for x in loads], indent=1))


if __name__ == "__main__":
    main()
