"""What a replay leaves behind, and nothing that needs ROS to read it again.

metrics.json   the figures
frames.json    one record per frame, and what the report says about the run
pictures/      NNNNNN_{image,depth,truth,error}.jpg, small
node.log       what the node printed
report.html    made from the above
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from depth_prior_ros.atomic_files import move_into_place, staging_folder, write_json
from depth_prior_ros.recordings import RecordingError
from depth_prior_ros.untrusted import parse_json, read_file
from rosbag_tools.work import refuse_others

METRICS, FRAMES, PICTURES, NODE_LOG, REPORT = (
    "metrics.json",
    "frames.json",
    "pictures",
    "node.log",
    "report.html",
)
_SCHEMA = 1
_JSON_BYTES = 1 << 27


@dataclass
class FrameRecord:
    """One frame that was sent. `latency_ms` None: no depth came back.

    `abs_rel` is after the protocol's scaling, `ratio` that scaling: median of the truth over
    median of the prediction. `flicker` is from the frame before, `metric_abs_rel` without scaling,
    `parts` has abs_rel by range and by what moves (see `metrics.part_errors`).
    """

    index: int
    stamp_ns: int
    speed: float | None
    latency_ms: float | None = None
    model: str | None = None
    reason: str | None = None
    abs_rel: float | None = None
    ratio: float | None = None
    pictures: bool = False
    flicker: float | None = None
    metric_abs_rel: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that report.html is made of, beside the pictures."""

    metrics: dict[str, Any]
    frames: list[FrameRecord]
    run: dict[str, Any] = field(default_factory=dict)


@contextmanager
def result_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when all went well.

    An older result in `out` is replaced; a folder with anything else in it is refused, with
    RecordingError, before anything is done.
    """
    ours = {METRICS, FRAMES, PICTURES, NODE_LOG, REPORT}
    if out.exists():
        if not out.is_dir():
            raise RecordingError(f"{out} is a file; name a folder")
        refuse_others(out, {path.name for path in out.iterdir()} - ours)
    with staging_folder(out) as temporary:
        (temporary / PICTURES).mkdir()
        yield temporary
        move_into_place(temporary, out)


def save(folder: Path, results: Results) -> None:
    """Write metrics.json and frames.json."""
    frames = {
        "schema": _SCHEMA,
        "run": results.run,
        "frames": [asdict(frame) for frame in results.frames],
    }
    write_json(folder / METRICS, results.metrics)
    write_json(folder / FRAMES, frames)


def load(folder: Path) -> Results:
    """Read a finished replay's folder; raises RecordingError where it is none."""
    try:
        metrics = parse_json(read_file(folder / METRICS, _JSON_BYTES))
        saved = parse_json(read_file(folder / FRAMES, _JSON_BYTES))
        if saved["schema"] != _SCHEMA:
            raise RecordingError(
                f"{folder / FRAMES}: written by another version (schema {saved['schema']}); "
                "replay the bag again"
            )
        frames = [FrameRecord(**frame) for frame in saved["frames"]]
        return Results(metrics, frames, saved["run"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordingError(f"{folder}: not the folder of a finished replay ({error})") from error


def switches(frames: Sequence[FrameRecord]) -> list[dict[str, Any]]:
    """Where the model changed between answered frames: stamp in seconds, from, to, reason."""
    found: list[dict[str, Any]] = []
    answered = [frame for frame in frames if frame.model is not None]
    for before, after in itertools.pairwise(answered):
        if before.model != after.model:
            found.append(
                {
                    "stamp": after.stamp_ns / 1e9,
                    "from": before.model,
                    "to": after.model,
                    "reason": after.reason,
                    "frame": after.index,
                }
            )
    return found


def latency_percentiles(frames: Sequence[FrameRecord]) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds from publishing an image to holding its depth."""
    import numpy as np

    values = [frame.latency_ms for frame in frames if frame.latency_ms is not None]
    if not values:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)}
