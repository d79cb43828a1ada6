"""`depth_bag demo`: the embedded drive through the node, with the figures printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag
from rosbag_tools.console import number, show
from rosbag_tools.replaying.session import ReplayOptions, replay
from rosbag_tools.reports.results import METRICS, REPORT, Results
from rosbag_tools.reports.scoring import BASELINE_LABELS


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
