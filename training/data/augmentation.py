"""Augmentation of image batches: one colour change for all frames of a sample, mirroring."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose

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


@dataclass(frozen=True)
class Colours:
    """A change of colours: a (3, 4) matrix on values in [0, 1], then a power."""

    matrix: np.ndarray
    gamma: float

    @classmethod
    def draw(cls, rng: np.random.Generator, probability: float = 0.5) -> Colours | None:
        """With ``probability`` a `colour_matrix` and a gamma in [.8, 1.25], otherwise None."""
        if rng.random() >= probability:
            return None
        matrix = colour_matrix(rng)
        return cls(matrix, rng.uniform(0.8, 1.25))

    def scaled(self) -> np.ndarray:
        """The matrix for values of 0 to 255."""
        return np.concatenate([self.matrix[:, :3], 255 * self.matrix[:, 3:]], axis=1)

    def table(self) -> np.ndarray:
        """What the power makes of each of the 256 values, (256,) float32 in [0, 1]."""
        return (_VALUES.clip(1e-4) ** self.gamma).astype(np.float32)


_VALUES = np.arange(256) / 255
_PLAIN = _VALUES.astype(np.float32)


def write_planes(picture: np.ndarray, out: np.ndarray, colours: Colours | None = None) -> None:
    """A picture (H, W, 3) uint8 to float32 planes ``out`` (3, H, W) in [0, 1], colours changed.

    Matrix and table work on bytes, many times as fast as on floats; the matrix's result is within
    one grey value of the exact one.
    """
    table = _PLAIN
    if colours is not None:
        picture, table = cv2.transform(picture, colours.scaled()), colours.table()
    for channel, plane in enumerate(cv2.split(picture)):
        cv2.LUT(plane, table, out[channel])


def mirror_intrinsics(K: Tensor, width: int) -> Tensor:
    """Intrinsics (B, 3, 3) of horizontally mirrored images: the principal point is mirrored."""
    mirrored = K.clone()
    mirrored[:, 0, 2] = width - 1 - K[:, 0, 2]
    return mirrored


def mirror_pose(pose: Pose) -> Pose:
    """The motion (..., 4, 4) as seen in the mirror x -> -x."""
    flip = torch.diag(pose.matrix.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    return Pose(flip @ pose.matrix @ flip)
