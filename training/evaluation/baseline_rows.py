"""Image-independent predictors judged on the same frames as a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle.baselines import (
    LIDAR_PIXEL,
    LIDAR_ROW,
    OWN_MEAN,
    as_depth,
    read_baselines,
)
from depth_prior_ros.metrics import DepthErrors, NoValidPixelsError, Protocol
from depth_prior_ros.recordings import CorruptFrameError
from depth_prior_ros.recordings.base import name_skipped
from training.evaluation import baselines
from training.evaluation.frames import Window, compare, scaled_window
from training.evaluation.sets import EvaluationError, Progress

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from training.evaluation.evaluation import JudgedFrame, SetReport

# The three that a bundle is measured against; the others are printed for orientation.
COUNTED = (OWN_MEAN, LIDAR_ROW, LIDAR_PIXEL)
CONSTANT = "constant_depth"
SET_MEAN = "own_mean_over_this_set"
OTHER_IMAGE = "prediction_for_another_image"

Map = NDArray[np.floating[Any]]


def baseline_maps(
    bundle: Bundle, data: Path, *, prefer_stored: bool = False
) -> tuple[dict[str, Map], list[str]]:
    """The three maps as depth (H, W), and notes on where they come from.

    They are computed from the data; where training drives or the LiDAR frames are not there, the
    maps stored in the bundle take their place. `prefer_stored`: the bundle's own mean map is taken
    as stored where it is, which saves running the network over its training drives.
    """
    width = bundle.manifest.input_size[0]
    stored = read_baselines(bundle)
    maps: dict[str, Map] = {}
    notes = []
    means = baselines.kitti_lidar_means(data)
    if means is not None:
        notes += [f"LiDAR means: left out {line}" for line in means.skipped]
        wide = means.pixel.shape[1]
        maps[LIDAR_ROW] = as_depth(LIDAR_ROW, means.row, wide)
        maps[LIDAR_PIXEL] = as_depth(LIDAR_PIXEL, means.pixel, wide)
    known = prefer_stored and OWN_MEAN in stored
    try:
        recordings = [] if known else baselines.training_recordings(data, bundle)
        own = baselines.own_mean(bundle, recordings)
        maps[OWN_MEAN] = as_depth(OWN_MEAN, own, width)
    except EvaluationError:
        pass
    for name in COUNTED:
        if name not in maps and name in stored:
            maps[name] = as_depth(name, stored[name], width)
            if not (known and name == OWN_MEAN):
                notes.append(f"{name}: as stored in the bundle (its data are not in {data})")
        elif name not in maps:
            notes.append(f"{name}: not judged, neither its data in {data} nor a map in the bundle")
    return {name: maps[name] for name in COUNTED if name in maps}, notes


def judge_baselines(
    bundle: Bundle, data: Path, reports: Sequence[SetReport], progress: Progress
) -> None:
    """Add the baselines' errors and notes to every report.

    The maps are those of a camera that looks like KITTI's: they are stretched to the truth's size.
    """
    progress("baselines: maps")
    maps, notes = baseline_maps(bundle, data)
    for report in reports:
        progress(f"{report.name}: baselines")
        report.notes += notes
        report.baselines = _judge_set(report, maps)


def _judge_set(report: SetReport, maps: dict[str, Map]) -> dict[str, list[DepthErrors]]:
    from training.evaluation.evaluation import ALL, SINGLE

    protocol, recording = report.judged.protocol, report.judged.recording
    predicted = report.rows.get(ALL) or report.rows.get(SINGLE) or []
    blind: dict[str, Map] = {**maps, CONSTANT: np.ones((2, 2))}
    rows: dict[str, list[DepthErrors]] = {name: [] for name in blind}
    others: dict[int, JudgedFrame] = {}
    mean: Map | None = None
    if len(predicted) > 1:
        rows |= {SET_MEAN: [], OTHER_IMAGE: []}
        mean = mean_depth([frame.depth for frame in predicted])
        half = len(predicted) // 2
        # The image half the set away.
        pairs = zip(predicted, predicted[half:] + predicted[:half], strict=True)
        others = {frame.position: other for frame, other in pairs}
    for position, truth in _truths(report):
        for name, depth in blind.items():
            _add(rows[name], depth, truth, protocol, None)
        other = others.get(position)
        if other is None:
            continue
        size = recording.frames[position].camera.size
        window = scaled_window(other.region, size, (truth.shape[1], truth.shape[0]))
        _add(rows[OTHER_IMAGE], other.depth, truth, protocol, window)
        if mean is not None:
            _add(rows[SET_MEAN], mean, truth, protocol, window)
    return rows


def _add(
    rows: list[DepthErrors],
    depth: NDArray[np.floating[Any]],
    truth: NDArray[np.float32],
    protocol: Protocol,
    window: Window | None,
) -> None:
    # Frames without a pixel to compare were named when the bundle itself was judged.
    with suppress(NoValidPixelsError):
        rows.append(compare(depth, truth, protocol, window)[0])


def _truths(report: SetReport) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(position, truth) of the frames of a set whose depth can be read, one by one."""
    recording = report.judged.recording
    for position in report.judged.judged:
        frame = recording.frames[position]
        try:
            depth = frame.depth()
        except CorruptFrameError as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            continue
        if depth is not None:
            yield position, depth


def mean_depth(depths: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Mean inverse depth as depth, over images of one size; unknown pixels do not count."""
    shape = depths[0].shape
    total, count = np.zeros(shape), np.zeros(shape)
    for depth in depths:
        known = depth > 0  # False for NaN, True for +inf
        total[known] += 1 / depth[known]
        count += known
    mean = np.full(shape, np.nan)
    np.divide(count, total, out=mean, where=total > 0)
    return mean
