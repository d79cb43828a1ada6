"""Fit what a student is told of its camera on a few frames whose depth is known in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.camera_code import NUMBERS
from depth_prior_ros.models.student import Student
from depth_prior_ros.models.trunk import Features

STEPS = 30
_RATE, _LAST_RATE = 0.2, 0.01
# Numbers of one cost as much as an error of a hundredth: nobody knows them better than zero.
_WEIGHT = 0.01
_BATCH = 8


@dataclass(frozen=True)
class FittedCode:
    """Numbers for a student, and the mean absolute relative error in metres, per frame.

    `before` and `after` are of frames that the fit has not seen; of all where there is one only.
    """

    numbers: tuple[float, ...]
    before: float
    after: float
    frames: int

    @property
    def better(self) -> bool:
        """Whether the fit is to be kept: references of another camera make it worse than none."""
        return self.after < self.before


def fit_camera_code(
    student: Student,
    images: Tensor,
    depth: Tensor,
    metres_per_unit: float,
    steps: int = STEPS,
) -> FittedCode:
    """Fit the numbers by gradient, on every second frame; they are validated on the others.

    Then, where that helped, once more on all frames. The trunk runs once an image.

    Args:
        student: told its camera, in eval mode; its weights stay.
        images: (N, 3, H, W), RGB in [0, 1], as the student sees them.
        depth: (N, 1, h, w) metres, 0 = unknown; (h, w) may be a fraction of (H, W).
        metres_per_unit: of the bundle.
        steps: of Adam.

    Raises:
        ValueError: a student that is not told its camera, no image, or no known depth.
    """
    if student.camera_code is None:
        raise ValueError("this student is not told its camera, so nothing can be fitted")
    if not len(images) or not bool((depth > 0).any()):
        raise ValueError("fitting what a student is told of its camera needs depth in metres")
    with torch.no_grad():
        features = [student.trunk(images[i : i + 1]) for i in range(len(images))]
    frames = _Frames(student, features, depth, metres_per_unit)
    everything = range(len(images))
    fitted_on = everything[::2] if len(images) > 1 else everything
    validation = everything[1::2] if len(images) > 1 else everything
    zero = images.new_zeros(1, NUMBERS)
    before = frames.abs_rel(validation, zero)
    code = frames.fit(fitted_on, steps)
    after = frames.abs_rel(validation, code)
    if after < before and len(images) > 1:
        code = frames.fit(everything, steps)
    numbers = tuple(round(float(value), 4) for value in code[0])
    return FittedCode(numbers, before, after, len(images))


@dataclass(frozen=True)
class _Frames:
    student: Student
    features: list[Features]
    depth: Tensor
    metres_per_unit: float

    def fit(self, which: Sequence[int], steps: int) -> Tensor:
        """The numbers (1, 5) that explain these frames' depth best."""
        parameters = list(self.student.parameters())
        learning = [p.requires_grad for p in parameters]
        code = self.depth.new_zeros(1, NUMBERS, requires_grad=True)
        optimiser = torch.optim.Adam([code], lr=_RATE)
        rate = (_LAST_RATE / _RATE) ** (1 / max(steps - 1, 1))
        generator = torch.Generator().manual_seed(0)
        try:
            self.student.requires_grad_(False)
            for step in range(steps):
                drawn = torch.randperm(len(which), generator=generator)[:_BATCH].tolist()
                optimiser.param_groups[0]["lr"] = _RATE * rate**step
                optimiser.zero_grad()
                error = torch.stack([self._log_error(which[i], code) for i in drawn]).nanmean()
                (error + _WEIGHT * code.square().sum()).backward()
                optimiser.step()
        finally:
            for parameter, before in zip(parameters, learning, strict=True):
                parameter.requires_grad_(before)
        return code.detach()

    def _predicted(self, frame: int, code: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and known depth in metres at the pixels where it is known."""
        features = self.student.camera_code(self.features[frame], code)  # type: ignore[misc]
        disparity = self.student.decoder(features, (0,))[0]
        truth = self.depth[frame : frame + 1]
        small = torch.nn.functional.interpolate(
            disparity_to_depth(disparity)[1], truth.shape[2:], mode="nearest"
        )
        known = truth > 0
        return small[known] * self.metres_per_unit, truth[known]

    def _log_error(self, frame: int, code: Tensor) -> Tensor:
        predicted, truth = self._predicted(frame, code)
        return (predicted.log() - truth.log()).abs().mean()

    @torch.no_grad()
    def abs_rel(self, which: Sequence[int], code: Tensor) -> float:
        """Mean over the frames of the mean of |predicted - known| / known."""
        errors = []
        for frame in which:
            predicted, truth = self._predicted(frame, code)
            errors.append(((predicted - truth).abs() / truth).mean())
        return float(torch.stack(errors).nanmean())
