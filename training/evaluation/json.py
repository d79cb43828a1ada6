"""An evaluation as JSON, in the form of metrics.json where the two say the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from depth_prior_ros.evaluation.evaluate import row_entry
from depth_prior_ros.evaluation.metrics import summary

if TYPE_CHECKING:
    from training.evaluation.evaluation import EvaluationReport, SetReport


def as_json(report: EvaluationReport) -> dict[str, Any]:
    """`data_sets` by name, each with `depth` as in metrics.json and its `baselines`; `pose`.

    With a single data set its `depth` also stands at the top, as it does in metrics.json. Sets of
    several drives have their sum as one more, "NAME (all)". Where `unit_by_stereo` of the bundle is
    true, papers quote the errors of `metric`, without scaling.
    """
    from training.evaluation.pose import pose_json

    sets = {one.name: _set_json(one) for one in report.sets}
    content: dict[str, Any] = {
        "bundle": {
            "name": report.bundle.manifest.name,
            "path": str(report.bundle.path),
            "digest": report.bundle.digest,
            "unit_by_stereo": report.bundle.manifest.depth.unit_by_stereo,
        },
        "backend": report.backend,
        "data_sets": sets,
    }
    if len(sets) == 1:
        content["depth"] = next(iter(sets.values()))["depth"]
    if report.poses:
        content["pose"] = {one.name: pose_json(one) for one in report.poses}
    return content


def _set_json(report: SetReport) -> dict[str, Any]:
    from training.evaluation.evaluation import NEEDED, beside_baselines

    protocol = report.chosen.protocol
    content: dict[str, Any] = {
        "protocol": asdict(protocol),
        "depth": {name: row_entry(frames, protocol) for name, frames in report.rows.items()},
        "notes": report.notes,
        "skipped": [asdict(entry) for entry in report.chosen.recording.skipped],
    }
    if report.baselines:
        content["baselines"] = {name: summary(rows) for name, rows in report.baselines.items()}
    outcome = beside_baselines(report)
    if outcome is not None:
        content["verdict"] = {
            **asdict(outcome),
            "ratio": outcome.ratio,
            "needed": NEEDED,
            "passed": outcome.passed,
        }
    return content
