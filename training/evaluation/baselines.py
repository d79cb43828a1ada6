"""Depth predictors that do not look at the image: the floor that a network must clear.

A network that has learned only "the road is below, the sky above" looks good in figures. Three maps
tell: the mean of the network's own output over its training drives, and the mean log depth, per
row and per pixel, of the LiDAR frames of KITTI drive 0039.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle.baselines import (
    LIDAR_PIXEL,
    LIDAR_ROW,
    OWN_MEAN,
    add_baselines,
    as_depth,
    stored_maps,
)
from depth_prior_ros.evaluation.frames import EvaluationSet, camera_of_size
from depth_prior_ros.evaluation.predictors import Map, NetworkPredictor
from depth_prior_ros.pipeline.framing import frame_image
from depth_prior_ros.recordings import (
    CorruptFrameError,
    StoredRecording,
    open_recording,
    read_frames,
)
from training.evaluation.sets import EvaluationError, data_folder, lidar_training_set

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle

# The three that a bundle is measured against; the others are printed for orientation.
COUNTED = (OWN_MEAN, LIDAR_ROW, LIDAR_PIXEL)
CONSTANT = "constant_depth"
SET_MEAN = "own_mean_over_this_set"
OTHER_IMAGE = "prediction_for_another_image"

# What the shipped bundle learned from, relative to the data folder. The paths of a bundle's own
# recipe take their place where it names any.
TRAINING_DRIVES = (
    "kitti_raw/2011_09_26/2011_09_26_drive_0095_sync",
    "kitti_raw/2011_09_26/2011_09_26_drive_9001_sync",
    "kitti_raw/2011_09_26/2011_09_26_drive_0039_sync",
    "kitti_odometry/sequences/03",
)
# A single LiDAR return stands for this many pixels around it (standard deviation, at full size).
_SPREAD = 4.0
# Where the summed weight of returns is below this, a pixel counts as never seen.
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class LidarMeans:
    """Mean log depth (log metres) over frames at their full size: per row (H,), per pixel (H, W).

    `frames` were averaged; `skipped` names those that could not be read.
    """

    row: NDArray[np.float32]
    pixel: NDArray[np.float32]
    frames: int
    skipped: tuple[str, ...] = ()


def lidar_means(depths: Iterable[NDArray[np.float32]], spread: float = _SPREAD) -> LidarMeans:
    """Mean log depth of sparse depth maps (H, W) in metres, 0 = none.

    Rows without a return take the nearest row that has one. Per pixel, returns are summed over
    all frames and spread by a Gaussian of `spread` pixels, sums and counts alike, before they are
    divided; pixels too far from any return take their row's mean.

    Raises:
        EvaluationError: without a single return.
    """
    total: NDArray[np.float64] | None = None
    count: NDArray[np.float64] | None = None
    frames = 0
    for depth in depths:
        if total is None or count is None:
            total, count = np.zeros(depth.shape), np.zeros(depth.shape)
        elif depth.shape != total.shape:
            raise EvaluationError(
                f"depth of {depth.shape} and {total.shape} (H, W) cannot be averaged by pixel"
            )
        known = depth > 0
        total[known] += np.log(depth[known])
        count += known
        frames += 1
    if total is None or count is None or not count.any():
        raise EvaluationError("no LiDAR depth to average")
    row = _row_means(total, count)
    weight = _blur(count, spread)
    seen = weight > _LEAST_WEIGHT
    pixel = np.repeat(row[:, None], total.shape[1], axis=1)
    np.divide(_blur(total, spread), weight, out=pixel, where=seen)
    return LidarMeans(row.astype(np.float32), pixel.astype(np.float32), frames)


def _row_means(total: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.arange(len(count))
    seen = count.sum(1) > 0
    means = total.sum(1)[seen] / count.sum(1)[seen]
    nearest = np.abs(rows[:, None] - rows[seen]).argmin(1)
    return means[nearest]


def _blur(values: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
    if spread <= 0:
        return values
    blurred: NDArray[np.float64] = cv2.GaussianBlur(values, (0, 0), spread)
    return blurred


@lru_cache(maxsize=1)
def kitti_lidar_means(data: Path) -> LidarMeans | None:
    """The means over drive 0039's LiDAR frames below `data`; None where it is not there.

    Read once in a process.
    """
    found = lidar_training_set(data)
    if found is None:
        return None
    skipped: list[str] = []
    means = lidar_means(_readable_depths(found, skipped))
    return replace(means, skipped=tuple(skipped))


def _readable_depths(found: EvaluationSet, skipped: list[str]) -> Iterator[NDArray[np.float32]]:
    for position in found.positions:
        try:
            depth = found.recording.frames[position].depth()
        except CorruptFrameError as error:
            skipped.append(str(error))
            continue
        if depth is not None:
            yield depth


def training_recordings(data: Path, bundle: Bundle | None = None) -> list[StoredRecording]:
    """The drives a bundle was trained on, as far as they are below `data`."""
    paths: Sequence[str] = _recipe_drives(bundle) if bundle else ()
    recordings = [open_recording(data / p) for p in paths if (data / p).exists()]
    return recordings or [open_recording(data / p) for p in TRAINING_DRIVES if (data / p).exists()]


def _recipe_drives(bundle: Bundle) -> list[str]:
    """Drive paths in the recipe that a bundle was made by; empty where it does not say."""
    data = bundle.manifest.provenance.recipe.get("data")
    drives = data.get("drives", []) if isinstance(data, Mapping) else []
    return [d["path"] for d in drives if isinstance(d, Mapping) and isinstance(d.get("path"), str)]


def own_mean(
    bundle: Bundle, recordings: Sequence[StoredRecording], stride: int = 10, device: str = "cpu"
) -> NDArray[np.float32]:
    """Per-pixel mean of the student's inverse depth, (H, W) network units, over recordings.

    Every `stride`-th frame of each recording, all frames with the same weight.

    Raises:
        EvaluationError: without a readable frame.
    """
    student = bundle.student().to(device)
    prior = bundle.prior() if bundle.has("prior") else None
    network = NetworkPredictor(student, device, prior.to(device) if prior is not None else None)
    total, count = None, 0
    for batch in _batches(recordings, bundle.manifest.input_size, stride):
        inverse = network.inverse_depth(batch).astype(np.float64)
        total = inverse.sum(0) if total is None else total + inverse.sum(0)
        count += len(batch)
    if total is None:
        raise EvaluationError("no training frame to average the bundle's output over")
    mean: NDArray[np.float32] = (total / count).astype(np.float32)
    return mean


def _batches(
    recordings: Sequence[StoredRecording], size: tuple[int, int], stride: int, batch: int = 8
) -> Iterator[NDArray[np.uint8]]:
    waiting: list[NDArray[np.uint8]] = []
    for recording in recordings:
        for _, image in read_frames(recording, range(0, len(recording.frames), stride)):
            waiting.append(frame_image(image, None, camera_of_size(size)).pixels)
            if len(waiting) == batch:
                yield np.stack(waiting)
                waiting = []
    if waiting:
        yield np.stack(waiting)


def baseline_arrays(
    bundle: Bundle,
    data: str | Path | None = None,
    *,
    stride: int = 10,
    device: str = "cpu",
    recordings: Sequence[StoredRecording] = (),
) -> dict[str, NDArray[np.float32]]:
    """The maps at the bundle's input size, for its file baselines.safetensors.

    own_mean_inverse_depth (H, W) in network units, over `recordings` (those that the bundle was
    trained on where there are none); where drive 0039 is below `data` also lidar_row_log_depth (H,)
    and lidar_pixel_log_depth (H, W) in log metres.
    """
    folder = data_folder(data)
    recordings = recordings or training_recordings(folder, bundle)
    arrays = {OWN_MEAN: own_mean(bundle, recordings, stride, device)}
    means = kitti_lidar_means(folder)
    if means is not None:
        size = bundle.manifest.input_size
        rows = np.ascontiguousarray(means.row[:, None])
        row = cv2.resize(rows, (1, size[1]), interpolation=cv2.INTER_AREA)
        arrays[LIDAR_ROW] = np.asarray(row, np.float32).reshape(-1)
        pixel = cv2.resize(means.pixel, size, interpolation=cv2.INTER_AREA)
        arrays[LIDAR_PIXEL] = np.asarray(pixel, np.float32)
    return arrays


def write_baselines(
    bundle: str | Path,
    data: str | Path | None = None,
    stride: int = 10,
    recordings: Sequence[StoredRecording] = (),
) -> Bundle:
    """Compute the maps and add them to a bundle on disk, so that they are there without data.

    `recordings` are those that it was trained on; without them they are looked for below `data`.
    """
    from depth_prior_ros.bundle import load_bundle

    loaded = load_bundle(bundle)
    arrays = baseline_arrays(loaded, data, stride=stride, recordings=recordings)
    return add_baselines(loaded, arrays)


def baseline_maps(
    bundle: Bundle, data: Path, *, prefer_stored: bool = False
) -> tuple[dict[str, Map], list[str]]:
    """The three maps as depth (H, W), and notes on where they come from.

    They are computed from the data; where training drives or the LiDAR frames are not there, the
    maps stored in the bundle take their place. `prefer_stored`: the bundle's own mean map is taken
    as stored where it is, which saves running the network over its training drives.
    """
    stored = stored_maps(bundle)
    maps: dict[str, Map] = {}
    notes = []
    means = kitti_lidar_means(data)
    if means is not None:
        notes += [f"LiDAR means: left out {line}" for line in means.skipped]
        wide = means.pixel.shape[1]
        maps[LIDAR_ROW] = as_depth(LIDAR_ROW, means.row, wide)
        maps[LIDAR_PIXEL] = as_depth(LIDAR_PIXEL, means.pixel, wide)
    known = prefer_stored and OWN_MEAN in stored
    try:
        recordings = [] if known else training_recordings(data, bundle)
        own = own_mean(bundle, recordings)
        maps[OWN_MEAN] = as_depth(OWN_MEAN, own, own.shape[1])
    except EvaluationError:
        pass
    for name in COUNTED:
        if name not in maps and name in stored:
            maps[name] = stored[name]
            if not (known and name == OWN_MEAN):
                notes.append(f"{name}: as stored in the bundle (its data are not in {data})")
        elif name not in maps:
            notes.append(
                f"{name}: not evaluated, neither its data in {data} nor a map in the bundle"
            )
    return {name: maps[name] for name in COUNTED if name in maps}, notes
