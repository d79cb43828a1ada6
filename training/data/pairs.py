"""Pairs of synthetic frames with exact depth and motion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depth_prior_ros.geometry import Pose
from training.data.augmentation import jitter, mirror_intrinsics, mirror_pose

if TYPE_CHECKING:
    from depth_prior_ros.recordings.synthetic.samples import SampleSet


@dataclass
class PairBatch:
    """A batch of pairs (previous, current).

    inputs: (B, 2, 3, H, W) with changed colours. depth: of the current frame (B, 1, H, W) in
    network units, 0 = sky. K: (B, 3, 3) in pixels. previous_from_current: (B, 4, 4) in network
    units.
    """

    inputs: Tensor
    depth: Tensor
    K: Tensor
    previous_from_current: Pose


@dataclass
class PairSource:
    """Draws from a set of rendered pairs. Either frame of a pair may be the current one."""

    samples: SampleSet
    metres_per_unit: float

    @classmethod
    def open(cls, folder: Path, metres_per_unit: float) -> PairSource:
        """Open a folder written by ``write_samples``."""
        from depth_prior_ros.recordings.synthetic.samples import open_samples

        return cls(open_samples(folder), metres_per_unit)

    def batch(self, size: int, rng: np.random.Generator) -> PairBatch:
        """Draw ``size`` pairs, mirrored half the time, in either order of time."""
        drawn = [self._draw(int(i), rng) for i in rng.integers(len(self.samples), size=size)]
        images, depth, K, poses = (torch.stack(column) for column in zip(*drawn, strict=True))
        which = torch.from_numpy(rng.random(size) < 0.5)
        images = torch.where(which[:, None, None, None, None], images.flip(-1), images)
        depth = torch.where(which[:, None, None, None], depth.flip(-1), depth)
        K = torch.where(which[:, None, None], mirror_intrinsics(K, images.shape[-1]), K)
        pose = torch.where(which[:, None, None], mirror_pose(Pose(poses)).matrix, poses)
        inputs = _degrade(jitter(images, rng, probability=0.8), rng)
        return PairBatch(inputs, depth, K, Pose(pose))

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        sample = self.samples[index]
        images, depth = sample.images, sample.depth
        pose = Pose(torch.from_numpy(np.array(sample.previous_from_current, dtype=np.float32)))
        current = 1
        if rng.random() < 0.5:  # time runs backwards: twice as many views, and reverse gear
            images, pose, current = images[::-1], pose.inverse(), 0
        matrix = pose.matrix.clone()
        matrix[:3, 3] /= self.metres_per_unit
        truth = torch.from_numpy(depth[current].astype(np.float32)) / self.metres_per_unit
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        K = torch.from_numpy(np.array(sample.K, dtype=np.float32))
        return pixels, truth[None], K, matrix


def _degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Some samples grey, blurred or noisy, as cameras are: (B, 2, 3, H, W)."""
    out = images.clone()
    for i in range(images.shape[0]):
        if rng.random() < 0.3:
            out[i] = out[i].mean(1, keepdim=True)
        if rng.random() < 0.3:
            small = F.avg_pool2d(out[i], 3, stride=1, padding=1, count_include_pad=False)
            out[i] = out[i] + (small - out[i]) * float(rng.random())
        if rng.random() < 0.5:
            noise = torch.from_numpy(rng.standard_normal(out[i].shape, dtype=np.float32))
            out[i] = out[i] + noise * float(rng.uniform(0, 0.03))
    return out.clamp(0, 1)
