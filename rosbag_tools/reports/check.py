"""`depth_bag check`: a result against a baseline, for CI to act on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depth_prior_ros.atomic_files import write_json
from depth_prior_ros.recordings import RecordingError
from depth_prior_ros.untrusted import parse_json, read_file
from rosbag_tools.reports.results import Results, load

SAME, WORSE, NOT_COMPARABLE = 0, 1, 2
"""Exit codes."""

_SCHEMA = 1
_BYTES = 1 << 20
_LARGER_IS_BETTER = ("d1", "d2", "d3")

DEFAULTS = {"abs_rel": 0.02, "metric_abs_rel": 0.02, "flicker": 0.05}
"""Shares by which a figure may be worse where nothing is said. Scaling by medians hides a wrong
metric factor, so metres stand beside."""


def figures(results: Results) -> dict[str, float | None]:
    """The figures of a result that can be checked, by name; None where there is no truth."""
    metrics = results.metrics
    depth, latency = metrics["depth"]["all"], metrics["latency_ms"]
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", *_LARGER_IS_BETTER, "flicker")
    found = {name: depth.get(name) for name in names}
    found["metric_abs_rel"] = metrics["absolute"]["abs_rel"]
    found |= {f"latency_{name}": value for name, value in latency.items()}
    return {**found, "dropped": metrics["dropped"]}


def baseline_of(results: Results) -> dict[str, Any]:
    """What `--accept` writes: which recording, how it was evaluated, and the figures."""
    stamps = json.dumps([frame.stamp_ns for frame in results.frames])
    return {
        "schema": _SCHEMA,
        "recording": results.run["recording"],
        "frames": len(results.frames),
        "stamps_sha256": hashlib.sha256(stamps.encode()).hexdigest(),
        "protocol": results.metrics["protocol"],
        "bundle": results.run["bundle"],
        "figures": figures(results),
    }


def parse_tolerances(text: str) -> dict[str, tuple[float, bool]]:
    """`abs_rel=2%,latency_p95=10%,dropped=0`: by name how much, and whether it is a share.

    Raises ValueError, in words.
    """
    found = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition("=")
        share = amount.endswith("%")
        try:
            value = float(amount.removesuffix("%")) / (100 if share else 1)
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise ValueError(f"{part!r} is no tolerance such as abs_rel=2% or dropped=0")
        found[name] = value, share
    return found


def check(
    folder: Path, baseline: Path, tolerances: Mapping[str, tuple[float, bool]] | None = None
) -> tuple[int, list[tuple[str, ...]]]:
    """Compare a result with a baseline: the exit code, and a row for each figure.

    tolerances: of `parse_tolerances`; None: `DEFAULTS`, of the figures that the baseline has.

    Rows: name, baseline, now, change, what is allowed, outcome. Raises RecordingError where the
    two cannot be compared: another recording, another protocol, a figure that one has not.
    """
    now = baseline_of(load(folder))
    before = _read(baseline)
    for name, words in (
        ("stamps_sha256", "another recording"),
        ("protocol", "evaluated by another protocol"),
    ):
        if before.get(name) != now[name]:
            raise RecordingError(
                f"{folder} is not comparable with {baseline}: {words} ({now['recording']}, "
                f"{now['frames']} frames; {before.get('recording')}, {before.get('frames')})"
            )
    if tolerances is None:
        there = [name for name in DEFAULTS if before["figures"].get(name) is not None]
        if not there:
            raise RecordingError(
                f"{baseline}: the recording has no true depth: name figures with --tolerance, "
                "such as latency_p95=10%"
            )
        tolerances = {name: (DEFAULTS[name], True) for name in there}
    rows: list[tuple[str, ...]] = []
    code = SAME
    for name, (amount, share) in tolerances.items():
        old, new = before["figures"].get(name), now["figures"].get(name)
        if old is None or new is None:
            known = ", ".join(k for k, v in now["figures"].items() if v is not None)
            raise RecordingError(f"{name}: not in both results; there are {known}")
        worse = (old - new) if name in _LARGER_IS_BETTER else (new - old)
        allowed = amount * abs(old) if share else amount
        failed = worse > allowed + 1e-12
        code = WORSE if failed else code
        limit = f"{amount:.3g}" if not share else f"{amount:.2%}"
        change = f"{(new - old) / old:+.2%}" if old else f"{new - old:+.4g}"
        outcome = "worse" if failed else "ok"
        rows.append((name, f"{old:.5g}", f"{new:.5g}", change, limit, outcome))
    return code, rows


def accept(folder: Path, baseline: Path) -> None:
    """Write the baseline of a result. Raises RecordingError."""
    write_json(baseline, baseline_of(load(folder)))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_file(path, _BYTES))
        if found["schema"] != _SCHEMA or not isinstance(found["figures"], dict):
            raise ValueError(f"schema {found['schema']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordingError(
            f"{path}: no baseline ({error}); `depth_bag check RESULT --against {path} --accept` "
            "writes one"
        ) from error
    return dict(found)
