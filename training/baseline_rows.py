"""Image-independent predictors judged on the same frames as a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle_baselines import (
    LIDAR_PIXEL,
    LIDAR_ROW,
    OWN_MEAN,
    as_depth,
    read_baselines,
)
from depth_prior_ros.metrics import DepthErrors, NoValidPixelsError, Protocol
from training import baselines
from training.evaluation_sets import EvaluationError

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from training.evaluation import JudgedFrame, SetReport

# The three that a bundle is measured against; the others are printed for orientation.
COUNTED = (OWN_MEAN, LIDAR_ROW, LIDAR_PIXEL)
CONSTANT = "constant_depth"
SET_MEAN = "own_mean_over_this_set"
OTHER_IMAGE = "prediction_for_another_image"

Map = NDArray[np.floating[Any]]


def baseline_maps(bundle: Bundle, data: Path) -> tuple[dict[str, Map], list[str]]:
    """The three maps as depth (H, W), and notes on where they come from.

    They are computed from the data; where training drives or the LiDAR frames are not there, the
    maps stored in the bundle take their place.
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
    try:
        own = baselines.own_mean(bundle, baselines.training_recordings(data, bundle))
        maps[OWN_MEAN] = as_depth(OWN_MEAN, own, width)
    except EvaluationError:
        pass
    for name in COUNTED:
        if name not in maps and name in stored:
            maps[name] = as_depth(name, stored[name], width)
            notes.append(f"{name}: as stored in the bundle (its data are not in {data})")
        elif name not in maps:
            notes.append(f"{name}: not judged, neither its data in {data} nor a map in the bundle")
    return {name: maps[name] for name in COUNTED if name in maps}, notes


def judge_baselines(
    bundle: Bundle, data: Path, reports: Sequence[SetReport], progress: Callable[[str], None]
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
    from training.evaluation import ALL, SINGLE, truths

    found = truths(report)
    protocol = report.judged.protocol
    constant = {CONSTANT: np.ones((2, 2))}
    rows = {name: _errors(depth, found, protocol) for name, depth in {**maps, **constant}.items()}
    predicted = report.rows.get(ALL) or report.rows.get(SINGLE) or []
    if len(predicted) > 1:
        rows[SET_MEAN] = _errors(_mean_depth(predicted), found, protocol)
        rows[OTHER_IMAGE] = _errors_of_others(predicted, dict(found), protocol)
    return rows


def _errors(
    depth: Map, found: Sequence[tuple[int, NDArray[np.float32]]], protocol: Protocol
) -> list[DepthErrors]:
    rows = []
    for _, truth in found:
        try:
            rows.append(protocol.errors(depth, truth))
        except NoValidPixelsError:
            continue  # named when the bundle itself was judged
    return rows


def _mean_depth(predicted: Sequence[JudgedFrame]) -> NDArray[np.float64]:
    """Mean inverse depth as depth, over predictions of one size; unknown pixels do not count."""
    shape = predicted[0].depth.shape
    total, count = np.zeros(shape), np.zeros(shape)
    for frame in predicted:
        known = frame.depth > 0  # False for NaN, True for +inf
        total[known] += 1 / frame.depth[known]
        count += known
    depth = np.full(shape, np.nan)
    np.divide(count, total, out=depth, where=total > 0)
    return depth


def _errors_of_others(
    predicted: Sequence[JudgedFrame], found: dict[int, NDArray[np.float32]], protocol: Protocol
) -> list[DepthErrors]:
    """Each truth against the prediction for the image half the set away."""
    from training.evaluation import compare

    half = len(predicted) // 2
    rows = []
    for i, frame in enumerate(predicted):
        other = predicted[(i + half) % len(predicted)]
        rows.append(compare(other.depth, found[frame.position], protocol, other.region)[0])
    return rows
