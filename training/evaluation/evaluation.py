"""A bundle against ground truth, through the pipeline that a vehicle runs.

Three kinds of rows, as in metrics.json: ``all`` is what the node would have published,
``single_frame`` and ``multi_frame`` are that model forced on the frames that have a predecessor.
Separate scenes have no predecessors: there ``all`` and ``single_frame`` are the same and
``multi_frame`` has no frames. Sets that papers quote by a list of frames have a fourth row:
``single_frame_all``, that model on every frame of the list, with or without a predecessor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_prior_ros.evaluation.evaluate import (
    FrameResult,
    evaluate_beside,
    evaluate_model,
    wrong_images,
)
from depth_prior_ros.evaluation.frames import EvaluationSet, read_evaluation_frames
from depth_prior_ros.evaluation.metrics import DepthErrors
from depth_prior_ros.evaluation.predictors import (
    ImageIndependentMap,
    Map,
    Predictor,
)
from depth_prior_ros.pipeline.references import are_left_out, references_in_words
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recordings import StoredRecording
from training.evaluation.baselines import CONSTANT, COUNTED, OTHER_IMAGE, SET_MEAN, baseline_maps
from training.evaluation.pose import PoseReport, evaluate_poses, pose_recordings
from training.evaluation.sets import choose_sets, data_folder

if TYPE_CHECKING:
    from depth_prior_ros.backends import Precision
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline, Model

ALL, SINGLE, MULTI = "all", "single_frame", "multi_frame"
SINGLE_ALL = "single_frame_all"
MODELS: tuple[Model, ...] = ("single_frame", "multi_frame")
# A bundle counts as looking at the image where its AbsRel on KITTI 2015 is at most this fraction
# of the best image-independent predictor's.
NEEDED = 0.9


@dataclass
class SetReport:
    """Everything measured on one set: rows by name, baselines by name (see `baselines`)."""

    chosen: EvaluationSet
    rows: dict[str, list[FrameResult]]
    baselines: dict[str, list[DepthErrors]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the set."""
        return self.chosen.name


@dataclass(frozen=True)
class BaselineComparison:
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
class EvaluationReport:
    """An evaluation: the bundle and what runs it, in words, a report per set and per trajectory."""

    bundle: Bundle
    backend: str
    sets: list[SetReport]
    poses: list[PoseReport] = field(default_factory=list)


def evaluate_bundle(
    bundle: str | Path | Bundle = "lite",
    data: str | Path | None = None,
    protocol: str | None = None,
    *,
    models: Sequence[Model] = MODELS,
    baselines: bool = False,
    poses: bool = False,
    read_as: Mapping[str, Any] | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: Precision = "f32",
    look_up: bool = True,
    keep: bool = True,
    progress: Progress = quiet,
) -> EvaluationReport:
    """Evaluate a bundle.

    Args:
        bundle: a bundle, the name of a shipped one, or a folder.
        data: data folder; the environment variable DEPTH_PRIOR_DATA by default.
        protocol: see :func:`evaluation_sets.choose_sets`; None for kitti2015 and drive as far as
            they are there.
        models: which forced models to evaluate; with both, also what is published.
        baselines: also evaluate predictors that do not look at the image.
        poses: evaluate ego-motion on the drives with poses; without a protocol, nothing else.
        read_as: how the recording `data` is read, with the protocol drive: see `open_recording`.
        backend, device, precision: what runs the networks.
        look_up: whether references of the bundle are looked up; a set's notes say for how many
            of its frames they were not, and why.
        keep: keep every predicted depth image in memory, for pictures; `baselines` does so, too.
        progress: told in words what is being done, and how much of it is done.

    Raises:
        EvaluationError: nothing to evaluate. Also BundleError, BackendError, RecordingError.
    """
    from depth_prior_ros.bundle import Bundle, load_bundle
    from depth_prior_ros.pipeline import DepthPipeline

    folder = data_folder(data)
    sets = [] if poses and protocol is None else choose_sets(folder, protocol, read_as)
    trajectories = pose_recordings(folder) if poses else []
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    pipeline = DepthPipeline(loaded, backend, device, precision=precision, look_up=look_up)
    keep = keep or baselines
    reports = []
    for one in sets:
        report = evaluate_set(pipeline, one, models, progress, keep=keep)
        report.notes += _references_notes(report)
        reports.append(report)
    if baselines:
        progress("baselines: maps")
        maps, notes = baseline_maps(loaded, folder)
        for report in reports:
            progress(f"{report.name}: baselines")
            report.notes += notes
            report.baselines = _evaluate_baselines(report, maps, loaded.manifest.input_size)
    poses_found = evaluate_poses(pipeline, trajectories, progress) if poses else []
    return EvaluationReport(loaded, pipeline.backend, [*reports, *_sums(reports)], poses_found)


def _sums(reports: Sequence[SetReport]) -> list[SetReport]:
    """For each protocol with several recordings, all their frames as one set: the papers' mean."""
    sums = []
    for protocol in dict.fromkeys(one.chosen.protocol for one in reports):
        parts = [one for one in reports if one.chosen.protocol == protocol]
        if len(parts) < 2:
            continue
        name = f"{protocol.name} (all)"
        # The frames are those of several recordings: no position means anything here.
        chosen = EvaluationSet(name, protocol, StoredRecording(name, []), ())
        total = SetReport(chosen, {}, notes=[f"all frames of {len(parts)} recordings"])
        for one in parts:
            for row, frames in one.rows.items():
                total.rows.setdefault(row, []).extend(frames)
            for row, errors in one.baselines.items():
                total.baselines.setdefault(row, []).extend(errors)
        total.notes += _references_notes(total)
        sums.append(total)
    return sums


def _references_notes(report: SetReport) -> list[str]:
    """Which references were looked up for which frames; none where they were for all.

    Frames of one set may be of several cameras, and those of a sum are of several recordings.
    """
    longest = max(report.rows.values(), key=len, default=[])  # every frame is in it
    said = Counter(frame.references for frame in longest)
    if not any(map(are_left_out, said)):
        return []
    return [f"references {words}" for words in references_in_words(said)]


def evaluate_set(
    pipeline: DepthPipeline,
    chosen: EvaluationSet,
    models: Sequence[Model] = MODELS,
    progress: Progress = quiet,
    *,
    keep: bool = True,
) -> SetReport:
    """Run the pipeline over a set and evaluate what comes out."""
    report = SetReport(chosen, {}, notes=[*chosen.notes, *chosen.recording.notes])
    if not chosen.recording.consecutive:
        if "single_frame" in models:
            what = f"{chosen.name}: single frame"
            scenes = evaluate_model(
                pipeline,
                chosen,
                "single_frame",
                chosen.positions,
                partial(progress, what),
                keep_depth=keep,
            )
            report.rows = {ALL: scenes, SINGLE: scenes}
        report.rows[MULTI] = []
        report.notes.append("separate scenes: no frame has a predecessor for multi-frame depth")
        return report
    wanted: list[Model | None] = [None] if len(models) > 1 else []
    followed = chosen.followed()
    for model in [*wanted, *models]:
        what = f"{chosen.name}: {model or 'as published'}"
        if model == "multi_frame" and not pipeline.networks.has_multi_frame:
            report.rows[MULTI] = []
            report.notes.append("the bundle has no multi-frame network")
            continue
        listed = chosen.listed and model == "single_frame"
        positions = chosen.positions if model is None or listed else followed
        told = partial(progress, what)
        rows = evaluate_model(pipeline, chosen, model, positions, told, keep_depth=keep)
        report.rows[model or ALL] = rows
        if listed:
            report.rows[SINGLE] = [frame for frame in rows if frame.position in set(followed)]
            report.rows[SINGLE_ALL] = rows
    fallen = [f for f in report.rows.get(MULTI, []) if f.model != "multi_frame"]
    if fallen:
        reasons = sorted({frame.reason for frame in fallen})
        report.notes.append(
            f"multi_frame: {len(fallen)} of {len(report.rows[MULTI])} frames fell back to single "
            f"frame ({', '.join(reasons)})"
        )
    return report


def _evaluate_baselines(
    report: SetReport, maps: Mapping[str, Map], size: tuple[int, int]
) -> dict[str, list[DepthErrors]]:
    """Errors by name of predictors that do not look at the image, on a report's frames.

    Frames without a pixel to compare were named when the bundle itself was evaluated.
    """
    chosen = report.chosen
    published = report.rows.get(ALL) or report.rows.get(SINGLE) or []
    predictors: dict[str, Predictor] = {
        name: ImageIndependentMap(depth) for name, depth in maps.items()
    }
    predictors[CONSTANT] = ImageIndependentMap(np.ones((2, 2)))
    if len(published) > 1:
        predictors[SET_MEAN], predictors[OTHER_IMAGE] = wrong_images(published)
    frames = read_evaluation_frames(
        chosen.recording, chosen.protocol, size, chosen.positions, images=False
    )
    return evaluate_beside(predictors, frames, chosen.protocol)


def beside_baselines(report: SetReport) -> BaselineComparison | None:
    """The bundle on KITTI 2015 against the image-independent maps that were evaluated there."""
    measured = {name: rows for name, rows in report.baselines.items() if name in COUNTED and rows}
    published = report.rows.get(ALL) or report.rows.get(SINGLE)
    if report.chosen.protocol.name != "kitti2015" or not measured or not published:
        return None
    means = {n: float(np.mean([e.abs_rel for e in rows])) for n, rows in measured.items()}
    best = min(means, key=lambda name: means[name])
    own = float(np.mean([frame.errors.abs_rel for frame in published]))
    return BaselineComparison(own, best, means[best])
