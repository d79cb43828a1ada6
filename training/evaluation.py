"""A bundle against ground truth, through the pipeline that a vehicle runs.

Three kinds of rows, as in metrics.json: ``all`` is what the node would have published,
``single_frame`` and ``multi_frame`` are that model forced on the frames that have a predecessor.
Separate scenes have no predecessors: there ``all`` and ``single_frame`` are the same and
``multi_frame`` has no frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.metrics import (
    DepthErrors,
    NoValidPixelsError,
    Protocol,
    garg_mask,
    summary,
)
from depth_prior_ros.recordings import CorruptFrameError, Frame
from depth_prior_ros.recordings.base import name_skipped
from training.evaluation_sets import (
    EvaluationError,
    EvaluationSet,
    data_folder,
    drive_set,
    eigen_drive_sets,
    find_drives,
    kitti_2015_set,
)

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult, Model

ALL, SINGLE, MULTI = "all", "single_frame", "multi_frame"
MODELS: tuple[Model, ...] = ("single_frame", "multi_frame")
# A bundle counts as looking at the image where its AbsRel on KITTI 2015 is at most this fraction
# of the best image-independent predictor's.
NEEDED = 0.9

Progress = Callable[[str], None]


@dataclass(frozen=True)
class JudgedFrame:
    """One prediction and its errors: `errors` as the protocol scales, `metric` without scaling.

    `depth` is the prediction (h, w) in metres for the window `region` (x, y, width, height) of
    the image; `position` counts in the recording's frames.
    """

    position: int
    model: str
    reason: str
    errors: DepthErrors
    metric: DepthErrors
    depth: NDArray[np.float32] = field(repr=False)
    region: tuple[int, int, int, int]


@dataclass
class SetReport:
    """Everything measured on one set: rows by name, baselines by name (see `baseline_rows`)."""

    judged: EvaluationSet
    rows: dict[str, list[JudgedFrame]]
    baselines: dict[str, list[DepthErrors]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the set."""
        return self.judged.name


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle's depth comes from the image: its AbsRel against the best of three maps."""

    abs_rel: float
    best_baseline: str
    best_abs_rel: float

    @property
    def ratio(self) -> float:
        """The bundle's error over the best baseline's."""
        return self.abs_rel / self.best_abs_rel

    @property
    def passed(self) -> bool:
        """At least 10 % below."""
        return self.ratio <= NEEDED


@dataclass
class Report:
    """An evaluation: the bundle and what runs it, in words, and a report per set."""

    bundle: Bundle
    backend: str
    sets: list[SetReport]


def evaluate(
    bundle: str | Path | Bundle = "lite",
    data: str | Path | None = None,
    protocol: str | None = None,
    *,
    models: Sequence[Model] = MODELS,
    baselines: bool = False,
    backend: str = "auto",
    device: str = "auto",
    progress: Progress = lambda _: None,
) -> Report:
    """Judge a bundle.

    Args:
        bundle: a bundle, the name of a shipped one, or a folder.
        data: data folder; the environment variable DEPTH_PRIOR_DATA by default.
        protocol: "kitti2015", "eigen" (listed test frames), "drive" (all frames with depth of the
            recording `data`, or of every Eigen test drive below it), None for kitti2015 and drive
            as far as they are there.
        models: which forced models to judge; with both, also what is published.
        baselines: also judge predictors that do not look at the image.
        backend, device: what runs the networks.
        progress: told in words what is being done.

    Raises:
        EvaluationError: nothing to judge. Also BundleError, BackendError, RecordingError.
    """
    from depth_prior_ros.bundle import Bundle, load_bundle
    from depth_prior_ros.pipeline import DepthPipeline

    folder = data_folder(data)
    sets = choose_sets(folder, protocol)
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    pipeline = DepthPipeline(loaded, backend, device)
    reports = [evaluate_set(pipeline, chosen, models, progress) for chosen in sets]
    if baselines:
        from training.baseline_rows import judge_baselines

        judge_baselines(loaded, folder, reports, progress)
    return Report(loaded, pipeline.backend, reports)


def choose_sets(data: Path, protocol: str | None) -> list[EvaluationSet]:
    """The sets that `protocol` means below `data`; see :func:`evaluate`.

    Raises:
        EvaluationError: none is there, or the protocol is unknown.
    """
    sets: list[EvaluationSet] = []
    if protocol in (None, "kitti2015"):
        scenes = kitti_2015_set(data)
        sets += [scenes] if scenes else []
    if protocol == "eigen":
        sets += eigen_drive_sets(data, listed_only=True)
    elif protocol in (None, "drive"):
        sets += _drives(data, required=protocol == "drive")
    elif protocol != "kitti2015":
        raise EvaluationError(f"unknown protocol '{protocol}': kitti2015, eigen or drive")
    sets = [chosen for chosen in sets if chosen.judged]
    if not sets:
        wanted = {
            "kitti2015": "kitti_2015/image_02 and kitti_2015/depth_stereo",
            "eigen": "KITTI raw drives of the Eigen test list with proj_depth",
            "drive": "a recording with depth",
            None: "kitti_2015 or KITTI raw drives of the Eigen test list with depth",
        }[protocol]
        raise EvaluationError(f"{data}: nothing to judge there; looked for {wanted}")
    return sets


def _drives(data: Path, *, required: bool) -> list[EvaluationSet]:
    below = [folder for folder in find_drives(data) if folder != data]
    if below:
        return eigen_drive_sets(data, listed_only=False)
    return [drive_set(data)] if required else eigen_drive_sets(data, listed_only=False)


def evaluate_set(
    pipeline: DepthPipeline,
    chosen: EvaluationSet,
    models: Sequence[Model] = MODELS,
    progress: Progress = lambda _: None,
) -> SetReport:
    """Run the pipeline over a set and judge what comes out."""
    report = SetReport(chosen, {}, notes=list(chosen.recording.notes))
    if not chosen.recording.consecutive:
        progress(f"{chosen.name}: single frame")
        if "single_frame" in models:
            scenes = _run(pipeline, chosen, "single_frame", chosen.judged)
            report.rows = {ALL: scenes, SINGLE: scenes}
        report.rows[MULTI] = []
        report.notes.append("separate scenes: no frame has a predecessor for multi-frame depth")
        return report
    wanted: list[Model | None] = [None] if len(models) > 1 else []
    followed = [i for i in chosen.judged if i and not chosen.recording.gap_before(i)]
    for model in [*wanted, *models]:
        progress(f"{chosen.name}: {model or 'as published'}")
        if model == "multi_frame" and not pipeline.networks.has_multi_frame:
            report.rows[MULTI] = []
            report.notes.append("the bundle has no multi-frame network")
            continue
        positions = chosen.judged if model is None else followed
        report.rows[model or ALL] = _run(pipeline, chosen, model, positions)
    fallen = [f for f in report.rows.get(MULTI, []) if f.model != "multi_frame"]
    if fallen:
        reasons = sorted({frame.reason for frame in fallen})
        report.notes.append(
            f"multi_frame: {len(fallen)} of {len(report.rows[MULTI])} frames fell back to single "
            f"frame ({', '.join(reasons)})"
        )
    return report


def _run(
    pipeline: DepthPipeline, chosen: EvaluationSet, model: Model | None, positions: Sequence[int]
) -> list[JudgedFrame]:
    """Judge the frames at `positions`; those in between are shown too, unless single-frame."""
    from depth_prior_ros.framing import InvalidFrameError
    from depth_prior_ros.pipeline import Motion

    pipeline.force_model = model
    pipeline.reset()
    judged = []
    wanted = set(positions)
    # The single-frame network has no memory, so that it need not see the others.
    shown = positions if model == "single_frame" else range(max(positions, default=-1) + 1)
    for position in shown:
        frame = chosen.recording.frames[position]
        try:
            image = frame.image()
            truth = frame.depth() if position in wanted else None
        except CorruptFrameError as error:
            name_skipped(chosen.recording.skipped, f"frame {frame.index}", str(error))
            continue
        motion = Motion(frame.speed, "odometry") if frame.speed is not None else None
        try:
            result = pipeline.process(image, frame.stamp_ns, motion, frame.camera)
        except InvalidFrameError as error:
            name_skipped(chosen.recording.skipped, f"frame {frame.index}", str(error))
            continue
        if truth is None:
            continue
        try:
            judged.append(_judge(position, result, truth, chosen.protocol))
        except NoValidPixelsError as error:
            name_skipped(chosen.recording.skipped, f"depth of frame {frame.index}", str(error))
    pipeline.force_model = None
    return judged


def _judge(
    position: int, result: DepthResult, truth: NDArray[np.float32], protocol: Protocol
) -> JudgedFrame:
    region = (result.region.x, result.region.y, result.region.width, result.region.height)
    errors, metric = compare(result.depth, truth, protocol, region)
    return JudgedFrame(position, result.model, result.reason, errors, metric, result.depth, region)


def compare(
    depth: NDArray[np.float32],
    truth: NDArray[np.float32],
    protocol: Protocol,
    region: tuple[int, int, int, int] | None = None,
) -> tuple[DepthErrors, DepthErrors]:
    """Errors as the protocol scales, and without scaling.

    Args:
        depth: prediction (h, w) of the window `region` (x, y, width, height) of the truth's image.
        truth: (H, W) metres, 0 = none. The protocol's crop is that of the whole image.
        protocol: range, crop and scaling.
        region: None for the whole image.

    Raises:
        NoValidPixelsError: prediction and truth share no pixel.
    """
    if region is not None and region != (0, 0, truth.shape[1], truth.shape[0]):
        x, y, width, height = region
        inside = garg_mask(*truth.shape) if protocol.crop == "garg" else np.True_
        truth = np.where(inside, truth, 0)[y : y + height, x : x + width]
        protocol = replace(protocol, crop=None)
    return protocol.errors(depth, truth), replace(protocol, scaling="none").errors(depth, truth)


def truths(report: SetReport) -> list[tuple[int, NDArray[np.float32]]]:
    """(position, truth) of the frames of a set whose image and depth could be read."""
    found = []
    for position in report.judged.judged:
        frame: Frame = report.judged.recording.frames[position]
        try:
            depth = frame.depth()
        except CorruptFrameError as error:
            name_skipped(report.judged.recording.skipped, f"frame {frame.index}", str(error))
            continue
        if depth is not None:
            found.append((position, depth))
    return found


def verdict(report: SetReport) -> Verdict | None:
    """The bundle on KITTI 2015 against the image-independent maps that were judged there."""
    from training.baseline_rows import COUNTED

    measured = {name: rows for name, rows in report.baselines.items() if name in COUNTED and rows}
    published = report.rows.get(ALL) or report.rows.get(SINGLE)
    if report.judged.protocol.name != "kitti2015" or not measured or not published:
        return None
    means = {n: float(np.mean([e.abs_rel for e in rows])) for n, rows in measured.items()}
    best = min(means, key=lambda name: means[name])
    own = float(np.mean([frame.errors.abs_rel for frame in published]))
    return Verdict(own, best, means[best])


def row_entry(frames: Sequence[JudgedFrame]) -> dict[str, Any]:
    """One entry of `depth`: the errors as the protocol scales, and `metric` without scaling."""
    entry: dict[str, Any] = dict(summary([frame.errors for frame in frames]))
    entry["metric"] = summary([frame.metric for frame in frames])
    return entry


def as_json(report: Report) -> dict[str, Any]:
    """`data_sets` by name, each with `depth` as in metrics.json and its `baselines`.

    With a single data set its `depth` also stands at the top, as it does in metrics.json.
    """
    sets = {one.name: _set_json(one) for one in report.sets}
    content: dict[str, Any] = {
        "bundle": {
            "name": report.bundle.manifest.name,
            "path": str(report.bundle.path),
            "digest": report.bundle.digest,
        },
        "backend": report.backend,
        "data_sets": sets,
    }
    if len(sets) == 1:
        content["depth"] = next(iter(sets.values()))["depth"]
    return content


def _set_json(report: SetReport) -> dict[str, Any]:
    content: dict[str, Any] = {
        "protocol": asdict(report.judged.protocol),
        "depth": {name: row_entry(frames) for name, frames in report.rows.items()},
        "notes": report.notes,
        "skipped": [asdict(entry) for entry in report.judged.recording.skipped],
    }
    if report.baselines:
        content["baselines"] = {name: summary(rows) for name, rows in report.baselines.items()}
    outcome = verdict(report)
    if outcome is not None:
        content["verdict"] = {
            **asdict(outcome),
            "ratio": outcome.ratio,
            "needed": NEEDED,
            "passed": outcome.passed,
        }
    return content


def write_json(report: Report, path: Path) -> None:
    """Write :func:`as_json` under a temporary name, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(as_json(report), indent=2, allow_nan=False) + "\n")
    temporary.replace(path)
