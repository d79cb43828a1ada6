"""A network's error in seconds, for steering a training run.

Truth is read once and kept as the list of its valid pixels, so that a second call costs little
more than the network itself. The figures are those of :mod:`depth_prior_ros.metrics`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.metrics import Protocol, garg_mask
from depth_prior_ros.recordings import CorruptFrameError, read_frames
from depth_prior_ros.recordings.base import name_skipped
from training.evaluation.sets import (
    EvaluationError,
    EvaluationSet,
    eigen_drive_sets,
    kitti_2015_set,
    lidar_training_set,
)

if TYPE_CHECKING:
    from depth_prior_ros.models.prior_fusion import Prior

_log = logging.getLogger(__name__)

SETS = ("kitti2015", "0052", "0039lidar")


@dataclass(frozen=True)
class SparseTruth:
    """The pixels of one frame that count: flat indices into an image of `size` (H, W), metres."""

    size: tuple[int, int]
    index: NDArray[np.int32]
    depth: NDArray[np.float32]

    @classmethod
    def of(cls, depth: NDArray[np.float32], protocol: Protocol) -> SparseTruth:
        """From dense truth (H, W), 0 = none."""
        valid = (depth > protocol.min_depth) & (depth < protocol.max_depth)
        if protocol.crop == "garg":
            valid &= garg_mask(*depth.shape)
        index = np.flatnonzero(valid).astype(np.int32)
        return cls((depth.shape[0], depth.shape[1]), index, depth.reshape(-1)[index])

    def errors(self, inverse_depth: NDArray[np.float32], cap: float) -> dict[str, float]:
        """Errors of inverse depth (h, w), any unit, after scaling by medians, capped at metres."""
        height, width = self.size
        full = cv2.resize(inverse_depth, (width, height), interpolation=cv2.INTER_LINEAR)
        predicted = 1 / np.maximum(full.reshape(-1)[self.index], 1e-9)
        ratio = float(np.median(self.depth) / np.median(predicted))
        predicted = np.clip(predicted * ratio, 1e-3, cap)
        log = np.log(predicted / self.depth)
        return {
            "abs_rel": float(np.mean(np.abs(predicted - self.depth) / self.depth)),
            "rmse": float(np.sqrt(np.mean((predicted - self.depth) ** 2))),
            "rmse_log": float(np.sqrt(np.mean(log**2))),
            "d1": float(np.mean(np.abs(log) < np.log(1.25))),
            "ratio": ratio,
        }


@dataclass(frozen=True)
class CachedSet:
    """A set at the network's input size: images (N, H, W, 3) uint8 RGB and their truth."""

    name: str
    images: NDArray[np.uint8]
    truth: tuple[SparseTruth, ...]
    cap: float


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An RGB image (H, W, 3) at the network's input size (width, height)."""
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized)


def _locate(name: str, data: Path) -> EvaluationSet:
    found: EvaluationSet | None
    if name == "kitti2015":
        found = kitti_2015_set(data)
    elif name == "0039lidar":
        found = lidar_training_set(data)
    else:
        drives = eigen_drive_sets(data, listed_only=False)
        found = next((s for s in drives if f"drive_{name}_" in s.name), None)
    if found is None or not found.judged:
        raise EvaluationError(f"{data}: the set '{name}' is not there or has no depth")
    return found


@lru_cache(maxsize=8)
def cached_set(name: str, data: Path, size: tuple[int, int]) -> CachedSet:
    """Read a set once: `name` is kitti2015, 0039lidar or the number of an Eigen test drive.

    `size` is (width, height) of the network's input. Frames whose image or depth is damaged are
    left out with a warning. Raises EvaluationError where the set is missing.
    """
    found = _locate(name, data)
    skipped = found.recording.skipped
    known = len(skipped)
    images, truth = [], []
    for position, image in read_frames(found.recording, found.judged):
        frame = found.recording.frames[position]
        try:
            depth = frame.depth()
        except CorruptFrameError as error:
            name_skipped(skipped, f"depth of frame {frame.index}", str(error))
            continue
        assert depth is not None  # judged frames have depth
        sparse = SparseTruth.of(depth, found.protocol)
        if sparse.index.size:
            images.append(resize_image(image, size))
            truth.append(sparse)
    for entry in skipped[known:]:
        _log.warning("%s: left out %s", name, entry)
    if not images:
        raise EvaluationError(f"{data}: no readable frame of the set '{name}'")
    return CachedSet(name, np.stack(images), tuple(truth), found.protocol.max_depth)


def predict_inverse_depth(
    student: nn.Module,
    images: NDArray[np.uint8],
    device: torch.device | str = "cpu",
    batch: int = 8,
    prior: Prior | None = None,
) -> NDArray[np.float32]:
    """Inverse depth (N, H, W) in network units of images (N, H, W, 3) uint8 RGB at input size.

    `prior` is on the same device as the student; None runs it without its fusion. The student's
    training mode is left as it was found.
    """
    was_training = student.training
    student.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = torch.from_numpy(images[start : start + batch]).to(device)
                image = pixels.permute(0, 3, 1, 2).float().div(255)
                output = student(image) if prior is None else student(image, prior)
                inverse, _ = disparity_to_depth(output.disparity[0].float())
                parts.append(inverse[:, 0].cpu().numpy())
    finally:
        student.train(was_training)
    return np.concatenate(parts)


def _mean_abs_rel(pairs: Iterator[tuple[NDArray[np.float32], SparseTruth]], cap: float) -> float:
    return float(np.mean([truth.errors(inverse, cap)["abs_rel"] for inverse, truth in pairs]))


def judge(inverse: NDArray[np.float32], cached: CachedSet) -> dict[str, float]:
    """Mean errors of predictions (N, h, w) on a set, beside two that do not fit the image.

    `own_mean` is AbsRel of the predictions' mean over the set for every image, `other_image` of
    the prediction for another image of the set (half the set away).
    """
    each = [t.errors(i, cached.cap) for i, t in zip(inverse, cached.truth, strict=True)]
    result = {name: float(np.mean([e[name] for e in each])) for name in each[0]}
    ratios = np.array([e["ratio"] for e in each])
    result["ratio"] = float(np.median(ratios))
    result["ratio_spread"] = float(np.std(ratios / np.median(ratios)))
    mean = inverse.mean(0)
    result["own_mean"] = _mean_abs_rel(((mean, t) for t in cached.truth), cached.cap)
    others = np.roll(inverse, len(inverse) // 2, axis=0)
    result["other_image"] = _mean_abs_rel(zip(others, cached.truth, strict=True), cached.cap)
    result["frames"] = len(each)
    return result


def evaluate_network(
    student: nn.Module,
    device: torch.device | str,
    size: tuple[int, int],
    data_dir: str | Path,
    sets: Sequence[str] = SETS,
    prior: Prior | None = None,
) -> dict[str, dict[str, float]]:
    """Errors of a student by set (see :func:`judge`), scaled by medians, capped at 80 m.

    `size` is (width, height) of its input, `prior` what its fusion reads where it has one. LiDAR
    sets are judged within Garg's crop. The first call reads the data (seconds); it stays in memory
    afterwards.
    """
    result = {}
    for name in sets:
        cached = cached_set(name, Path(data_dir), size)
        inverse = predict_inverse_depth(student, cached.images, device, prior=prior)
        result[name] = judge(inverse, cached)
    return result


def colour_inverse_depth(inverse: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Inverse depth (H, W) in turbo, near = red, (H, W, 3) uint8 RGB; black where unknown.

    Spread from zero to the 98th percentile, so that pictures of any unit compare.
    """
    known = np.isfinite(inverse)
    top = float(np.percentile(inverse[known], 98)) if known.any() else 1.0
    grey = np.where(known, np.clip(inverse / max(top, 1e-9), 0, 1) * 255, 0).astype(np.uint8)
    colour = cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[..., ::-1].copy()
    colour[~known] = 0
    return colour


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H, W, 3) as PNG."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise OSError(f"{path}: the picture could not be encoded")
    write_bytes(path, data.tobytes())
