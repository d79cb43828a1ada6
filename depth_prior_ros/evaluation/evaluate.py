"""The one evaluation: any predictor, frames with truth, a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.frames import (
    EvaluationFrame,
    EvaluationSet,
    Window,
    count,
    read_evaluation_frames,
    shown_positions,
)
from depth_prior_ros.evaluation.metrics import (
    RANGES,
    DepthErrors,
    FlickerMeter,
    NoValidPixelsError,
    mean_flicker,
    part_errors,
    summary,
)
from depth_prior_ros.evaluation.predictors import (
    BundlePredictor,
    ImageIndependentMap,
    MeanDepth,
    Prediction,
    Predictor,
    StoredDepth,
)
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.recordings.base import Skipped, name_skipped

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, Model

PARTS = (*(f"{near}-{far}" for near, far in RANGES), "moving", "static")
"""The parts of an image in the order of tables."""

_NO_DEPTH = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class FrameResult:
    """One prediction and its errors.

    `errors` are as the protocol scales, `metric` in metres without scaling, beyond the predictor's
    range as the protocol's farthest. `parts` are the errors by range and of what moves (see
    :func:`metrics.part_errors`). `depth` is the prediction (h, w) for the `region` of the image,
    empty where it was not kept; `position` counts in the recording's frames, `index` is the number
    that the recording gives the frame. `flicker`: from the frame before (see `flicker`); None where
    that was not evaluated, or no pose is known. `references`: as in a `DepthResult`.
    """

    position: int
    index: int
    model: str
    reason: str
    errors: DepthErrors
    metric: DepthErrors
    region: Window
    depth: NDArray[np.floating[Any]] = field(default_factory=_NO_DEPTH.copy, repr=False)
    parts: dict[str, DepthErrors] = field(default_factory=dict)
    flicker: float | None = None
    references: str = ""


def evaluate(
    predictor: Predictor,
    frames: Iterable[EvaluationFrame],
    protocol: Protocol,
    *,
    keep_depth: bool = False,
    skipped: list[Skipped] | None = None,
    meter: FlickerMeter | None = None,
) -> list[FrameResult]:
    """Evaluate a predictor on the frames that have truth.

    Depth is scaled first and clamped to the protocol's range after; of a predictor's own range only
    the row in metres knows.

    Args:
        predictor: see `predictors`.
        frames: in order, read for this protocol (see `frames.read_evaluation_frames`).
        protocol: how depth is scaled.
        keep_depth: keep every depth image in memory.
        skipped: told of frames on which nothing can be compared.
        meter: of flicker, for frames that come in several calls.
    """
    results = []
    meter = meter or FlickerMeter()
    for frame, prediction in predictor.predict(frames):
        try:
            found = evaluate_frame(frame, prediction, protocol, keep_depth=keep_depth)
            shake = meter.add(frame, prediction.depth, found.errors.ratio)
            results.append(replace(found, flicker=shake))
        except NoValidPixelsError as error:
            if skipped is not None:
                name_skipped(skipped, f"depth of frame {frame.index}", str(error))
    return results


def evaluate_model(
    pipeline: DepthPipeline,
    chosen: EvaluationSet,
    model: Model | None,
    positions: Sequence[int],
    told: Callable[[int, int], None] = lambda done, total: None,
    *,
    keep_depth: bool = False,
) -> list[FrameResult]:
    """Evaluate a bundle's model on the frames at `positions` of a set's recording.

    model: the one that is forced; None: as published. told: of (done, total) frames.
    """
    predictor = BundlePredictor(pipeline, model)
    recording, protocol, memory = chosen.recording, chosen.protocol, predictor.memory
    size = pipeline.bundle.manifest.input_size
    frames = read_evaluation_frames(recording, protocol, size, positions, memory)
    counted = count(frames, told, len(shown_positions(recording.frames, positions, memory)))
    skipped = recording.skipped
    return evaluate(predictor, counted, protocol, keep_depth=keep_depth, skipped=skipped)


def evaluate_beside(
    predictors: Mapping[str, Predictor], frames: Iterable[EvaluationFrame], protocol: Protocol
) -> dict[str, list[DepthErrors]]:
    """Errors by name of predictors that do not look at images, each frame read once for all.

    Frames on which nothing can be compared are left out in silence.
    """
    errors: dict[str, list[DepthErrors]] = {name: [] for name in predictors}
    for frame in frames:
        for name, predictor in predictors.items():
            errors[name] += [found.errors for found in evaluate(predictor, [frame], protocol)]
    return errors


def wrong_images(results: Sequence[FrameResult]) -> tuple[ImageIndependentMap, StoredDepth]:
    """Of predictions whose depth was kept: their mean, and of each frame that half the set away."""
    depths = [result.depth for result in results]
    half = len(depths) // 2
    others = zip(results, depths[half:] + depths[:half], strict=True)
    stored = StoredDepth({result.position: other for result, other in others})
    return ImageIndependentMap(MeanDepth(depths).depth()), stored


def evaluate_frame(
    frame: EvaluationFrame, prediction: Prediction, protocol: Protocol, *, keep_depth: bool = False
) -> FrameResult:
    """The errors of one prediction. Raises NoValidPixelsError."""
    assert frame.truth is not None
    pixels = frame.truth.compare(prediction.depth)
    published = prediction.published()
    metres = pixels if published is prediction.depth else frame.truth.compare(published)
    return FrameResult(
        frame.position,
        frame.index,
        prediction.model,
        prediction.reason,
        pixels.errors(protocol.scaling),
        metres.errors("none"),
        frame.window,
        prediction.depth if keep_depth else _NO_DEPTH,
        part_errors(pixels, protocol.scaling, frame.moving),
        references=prediction.references,
    )


def row_entry(frames: Sequence[FrameResult], protocol: Protocol | None = None) -> dict[str, Any]:
    """One entry of `depth`: the errors as the protocol scales; `metric`, without scaling; `parts`.

    `parts` has an entry for each range of metres ("0-10" ...) and, where it is known what moves,
    for "moving" and "static": the mean over the images that have enough of it, and how many.
    `flicker` is the mean over pairs of frames, `flicker_pairs` their number.
    `rmse_log10` is there where the protocol is quoted by it.
    """
    entry: dict[str, Any] = dict(summary([frame.errors for frame in frames]))
    if protocol is not None and protocol.log10:
        values = [frame.errors.rmse_log10 for frame in frames]
        entry["rmse_log10"] = fmean(values) if values else None
    entry["metric"] = summary([frame.metric for frame in frames])
    entry["parts"] = part_entries([frame.parts for frame in frames])
    return entry | mean_flicker([frame.flicker for frame in frames])


def part_entries(frames: Sequence[dict[str, DepthErrors]]) -> dict[str, dict[str, Any]]:
    """Mean errors by part, over the images that have the part."""
    names = {name for parts in frames for name in parts}
    order = [name for name in PARTS if name in names]
    entries = {}
    for name in order:
        entry: dict[str, Any] = dict(summary([parts[name] for parts in frames if name in parts]))
        for key in ("ratio_median", "ratio_spread"):  # those of whole images, told elsewhere
            del entry[key]
        entries[name] = entry
    return entries
