"""What is looked at while a stage runs: figures and pictures on frames that are not trained on, and
pictures of what its networks see of a few fixed training frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.evaluation.evaluate import evaluate, evaluate_beside, wrong_images
from depth_prior_ros.evaluation.frames import (
    EvaluationFrame,
    EvaluationSet,
    read_evaluation_frames,
)
from depth_prior_ros.evaluation.metrics import mean_errors, summary
from depth_prior_ros.evaluation.predictors import NetworkPredictor
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.pages.colours import colour_inverse_depth
from training.data.triplets import TripletBatch, TripletSource
from training.evaluation.sets import (
    EvaluationError,
    eigen_drive_sets,
    kitti_2015_set,
    lidar_training_set,
)
from training.losses.photometric import Target, identity_error, minimum_error
from training.recipes.data import Mode
from training.stages.system import LookupFrame, System, motion_sources, views_of

_log = logging.getLogger(__name__)

SETS = ("0039lidar", "kitti2015", "0052")

#: Photometric error on the triplets that a split holds out.
VALIDATION_ERROR = "validation"
_VALIDATION_BATCHES, _VALIDATION_SIZE = 8, 6

# Frames of a set that are pictured, evenly spaced: the same ones each time.
_PICTURED = 6


@dataclass
class Validation:
    """Held-out frames of the data root at the network's ``size``; missing sets are left out.

    The LiDAR frames of drive 0039 are kept out of training and serve to choose; kitti_2015 and
    drive 0052 are test sets: shown, never chosen by.
    """

    root: Path
    size: tuple[int, int]
    sets: tuple[str, ...] = SETS

    def figures(self, system: System) -> dict[str, float]:
        """AbsRel after median scaling by set, and of the prediction's own mean map beside it."""
        network = _predictor(system)
        found = {}
        for name in self.sets:
            try:
                result = evaluate_network(network, self.size, self.root, (name,))[name]
            except EvaluationError:
                continue
            found[name] = result["abs_rel"]
            found[f"{name}_mean_map"] = result["own_mean"]
        return found

    def pictures(self, system: System) -> dict[str, np.ndarray]:
        """Fixed frames beside their predicted depth (near = red), one picture a set."""
        network = _predictor(system)
        result = {}
        for name in self.sets:
            try:
                _, frames = cached_frames(name, self.root, self.size)
            except EvaluationError:
                continue
            chosen = frames[:: max(1, len(frames) // _PICTURED)][:_PICTURED]
            images = np.stack([frame.image for frame in chosen])
            inverse = network.inverse_depth(images)
            rows = [
                np.hstack([i, colour_inverse_depth(d)])
                for i, d in zip(images, inverse, strict=True)
            ]
            result[f"depth/{name}"] = np.vstack(rows)
        return result


def _predictor(system: System) -> NetworkPredictor:
    return NetworkPredictor(
        system.student, system.device, system.prior, references=system.references
    )


def evaluate_network(
    network: NetworkPredictor,
    size: tuple[int, int],
    data: str | Path,
    sets: Sequence[str] = SETS,
) -> dict[str, dict[str, Any]]:
    """Errors (see `metrics.summary`) of a student of input ``size`` (width, height) by set.

    Beside them AbsRel of two that do not fit the image: ``own_mean``, the predictions' mean over
    the set for every image, and ``other_image``, the prediction for the image half the set away.
    The first call reads the data (seconds); it stays in memory afterwards.

    Raises:
        EvaluationError: a set is missing.
    """
    result: dict[str, dict[str, Any]] = {}
    for name in sets:
        protocol, frames = cached_frames(name, Path(data), size)
        results = evaluate(network, frames, protocol, keep_depth=True)
        mean, other = wrong_images(results)
        beside = evaluate_beside({"own_mean": mean, "other_image": other}, frames, protocol)
        result[name] = dict(summary([frame.errors for frame in results]))
        result[name] |= {key: mean_errors(found).abs_rel for key, found in beside.items()}
    return result


@lru_cache(maxsize=8)
def cached_frames(
    name: str, data: Path, size: tuple[int, int]
) -> tuple[Protocol, tuple[EvaluationFrame, ...]]:
    """A set for networks of input ``size`` (width, height), read once, and its protocol.

    ``name`` is kitti2015, 0039lidar or the number of an Eigen test drive. Frames that cannot be
    read are left out with a warning.

    Raises:
        EvaluationError: the set is missing.
    """
    found = _find(name, data)
    known = len(found.recording.skipped)
    every = read_evaluation_frames(found.recording, found.protocol, size, found.positions)
    frames = tuple(frame for frame in every if frame.truth is not None)
    for entry in found.recording.skipped[known:]:
        _log.warning("%s: left out %s", name, entry)
    if not frames:
        raise EvaluationError(f"{data}: no readable frame of the set '{name}'")
    return found.protocol, frames


def _find(name: str, data: Path) -> EvaluationSet:
    found: EvaluationSet | None
    if name == "kitti2015":
        found = kitti_2015_set(data)
    elif name == "0039lidar":
        found = lidar_training_set(data)
    else:
        drives = eigen_drive_sets(data, listed_only=False)
        found = next((s for s in drives if f"drive_{name}_" in s.name), None)
    if found is None or not found.positions:
        raise EvaluationError(f"{data}: the set '{name}' is not there or has no depth")
    return found


@torch.no_grad()
def validation_error(
    system: System,
    triplets: TripletSource,
    mode: Mode = "M",
    shipped: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Mean photometric error of the student's depth and motion on fixed held-out triplets.

    shipped: depth (B, 1, H, W) of images (B, 3, H, W) in the student's place, network units; motion
        is then refined against it as on a vehicle, since its unit need not be the pose network's.
    """
    errors = []
    for number in range(_VALIDATION_BATCHES):
        rng = np.random.default_rng([17, number])
        batch = triplets.batch(_VALIDATION_SIZE, rng).to(system.device)
        if mode == "M":  # the partner, where there is one, has no say
            batch = replace(batch, partner=None)
        now, sources = batch.images[:, 1], motion_sources(batch.images, mode)
        target = Target.of(now)
        depth = system.single_depth(now) if shipped is None else shipped(now)
        poses = system.neighbour_motions(batch.images)[: len(sources)]
        if shipped is not None:
            views_from_now = [
                system.aligned(now, LookupFrame(image, Pose(pose)), batch.K, depth).motion.matrix
                for image, pose in zip(sources, poses, strict=True)
            ]
            poses = torch.stack(views_from_now) if views_from_now else poses
        views = views_of(batch, batch.K, sources, poses)
        rebuilt = views.rebuild(depth)
        identity = identity_error(views.sources, target, torch.default_generator)
        errors.append(minimum_error(rebuilt, target, identity).mean().item())
    return float(np.mean(errors))


_ROWS = 4


def fixed_batch(system: System, triplets: TripletSource) -> TripletBatch:
    """The same few triplets whenever it is asked for."""
    return triplets.batch(_ROWS, np.random.default_rng(7)).to(system.device)


@torch.no_grad()
def multi_depth(system: System, batch: TripletBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Single-frame depth, multi-frame depth, and its nearest hypothesis, (B, 1, ...) each.

    From the frames that the multi-frame network looks up, with the pose network's motion.
    """
    before, now, after = batch.images.unbind(1)
    single = system.single_depth(now)
    views = []
    for place in system.lookup:
        other = before if place < 0 else after
        motion = system.motion(other, now).inverse() if place < 0 else system.motion(now, other)
        views.append(system.aligned(now, LookupFrame(other, motion), batch.K, single))
    multi = system.multi(now, views, batch.K, single)
    return single, multi.depth, multi.hypotheses.amin(1, keepdim=True)


@torch.no_grad()
def system_pictures(system: System, triplets: TripletSource) -> dict[str, np.ndarray]:
    """Image, S, M and the nearest hypothesis side by side; and the PADS map."""
    if not system.matches:
        return {}
    batch = fixed_batch(system, triplets)
    single, multi, nearest = multi_depth(system, batch)
    size = (batch.images.shape[-1], batch.images.shape[-2])
    rows = []
    for i in range(len(single)):
        image = (batch.images[i, 1].permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
        maps = [colour_inverse_depth(_inverse(m[i], size)) for m in (single, multi, nearest)]
        rows.append(np.hstack([image, *maps]))
    found = {"multi/frame_single_multi_nearest": np.vstack(rows)}
    delta = getattr(system.multi_frame, "delta", None)
    if delta is not None:
        found["multi/pads_map"] = heat(delta[0, 0].cpu().numpy(), size)
    return found


def _inverse(depth: Tensor, size: tuple[int, int]) -> np.ndarray:
    inverse = (1 / depth[0]).cpu().numpy()
    return cv2.resize(inverse, size, interpolation=cv2.INTER_LINEAR)


def heat(values: np.ndarray, size: tuple[int, int], high: float = 2.0) -> np.ndarray:
    """A map (h, w) from 0 (dark) to ``high`` (bright) as a picture of ``size`` (W, H), RGB."""
    grey = (np.clip(values / high, 0, 1) * 255).astype(np.uint8)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) with what the mask (H, W) removes in red."""
    out = image.copy()
    out[~mask] = (0.4 * out[~mask] + np.array([153, 0, 0])).astype(np.uint8)
    return out
