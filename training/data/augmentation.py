"""Augmentation of image batches: one colour change for all frames of a sample, mirroring."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry import Pose

_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_RGB = np.linalg.inv(_TO_YIQ)


def colour_matrix(rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation in [.8, 1.2], hue within .1 turns, as one (3, 4) matrix.

    Contrast turns about mid grey. Hue and saturation act in YIQ, where both are linear.
    """
    brightness, contrast, saturation = rng.uniform(0.8, 1.2, 3)
    angle = rng.uniform(-0.1, 0.1) * 2 * np.pi
    turn = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    linear = brightness * contrast * (_TO_RGB @ chroma @ _TO_YIQ)
    offset = np.full((3, 1), 0.5 * (1 - contrast) * brightness)
    return np.concatenate([linear, offset], axis=1)


def jitter(images: Tensor, rng: np.random.Generator, probability: float = 0.5) -> Tensor:
    """Change colours per sample: images (B, N, 3, H, W) in [0, 1], the same for its N frames.

    Besides `colour_matrix` (the ranges of monodepth2) a gamma in [.8, 1.25].
    """
    identity = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    matrices, gammas = [], []
    for _ in range(images.shape[0]):
        changed = rng.random() < probability
        matrices.append(colour_matrix(rng) if changed else identity)
        gammas.append(rng.uniform(0.8, 1.25) if changed else 1.0)
    m = torch.from_numpy(np.stack(matrices)).to(images)
    out = torch.einsum("bij,bnjhw->bnihw", m[:, :, :3], images) + m[:, None, :, 3:, None]
    gamma = torch.tensor(gammas, dtype=images.dtype)[:, None, None, None, None]
    return out.clamp(1e-4, 1) ** gamma


def mirror_intrinsics(K: Tensor, width: int) -> Tensor:
    """Intrinsics (B, 3, 3) of horizontally mirrored images: the principal point is mirrored."""
    mirrored = K.clone()
    mirrored[:, 0, 2] = width - 1 - K[:, 0, 2]
    return mirrored


def mirror_pose(pose: Pose) -> Pose:
    """The motion (..., 4, 4) as seen in the mirror x -> -x."""
    flip = torch.diag(pose.matrix.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    return Pose(flip @ pose.matrix @ flip)
