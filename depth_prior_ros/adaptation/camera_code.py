"""Fit what a student is told of its camera on a few frames whose depth is known in metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depth_prior_ros.geometry.warping import MAX_DEPTH, MIN_DEPTH, disparity_to_depth
from depth_prior_ros.models.prior_fusion import Prior, ProjectedPrior
from depth_prior_ros.models.student import NUMBERS, Student
from depth_prior_ros.models.trunk import Features
from depth_prior_ros.progress import Progress, quiet

STEPS = 30
_RATE, _LAST_RATE = 0.2, 0.01
# Numbers of one cost as much as an error of a hundredth: nobody knows them better than zero.
_WEIGHT = 0.01
_BATCH = 8


class StoppedError(Exception):
    """Somebody asked for an end."""


def never() -> bool:
    """Go on."""
    return False


def fit_camera_code(
    student: Student,
    images: Sequence[Tensor],
    depth: Sequence[Tensor],
    prior: Prior | None = None,
    *,
    depth_range: tuple[float, float] = (MIN_DEPTH, MAX_DEPTH),
    steps: int = STEPS,
    progress: Progress = quiet,
    stop: Callable[[], bool] = never,
) -> tuple[float, ...]:
    """Fit the numbers by gradient; no weight changes. The trunk runs once an image.

    Args:
        student: told its camera, in eval mode.
        images: each (3, H, W), RGB in [0, 1], as the student sees them.
        depth: of each, (h, w) in the student's units, 0 = unknown; (h, w) may be a fraction of
            (H, W).
        prior: of the student, where it has a fusion.
        depth_range: smallest and largest depth of the student, units.
        steps: of Adam.
        progress: told of images and steps.
        stop: asked between them.

    Raises:
        ValueError: a student that is not told its camera, no image, or no known depth.
        StoppedError: `stop` said so.
    """
    if student.camera_code is None:
        raise ValueError("this student is not told its camera, so nothing can be fitted")
    if not any(bool((one > 0).any()) for one in depth):
        raise ValueError("fitting what a student is told of its camera needs depth in metres")
    features = []
    with torch.no_grad():
        for done, image in enumerate(images):
            progress("looking at keyframes", done, len(images))
            _ask(stop)
            features.append(student.trunk(image[None]))
        projected = (
            None if prior is None or student.fusion is None else student.fusion.project(prior)
        )
    frames = _Frames(student, projected, depth_range, features, [one[None, None] for one in depth])
    code = frames.fit(steps, progress, stop)
    return tuple(round(float(value), 4) for value in code[0])


def _ask(stop: Callable[[], bool]) -> None:
    if stop():
        raise StoppedError


@dataclass(frozen=True)
class _Frames:
    student: Student
    prior: ProjectedPrior | None
    depth_range: tuple[float, float]
    features: list[Features]
    depth: list[Tensor]

    def fit(self, steps: int, progress: Progress, stop: Callable[[], bool]) -> Tensor:
        """The numbers (1, 5) that explain the frames' depth best."""
        parameters = list(self.student.parameters())
        learning = [p.requires_grad for p in parameters]
        code = self.depth[0].new_zeros(1, NUMBERS, requires_grad=True)
        optimiser = torch.optim.Adam([code], lr=_RATE)
        rate = (_LAST_RATE / _RATE) ** (1 / max(steps - 1, 1))
        generator = torch.Generator().manual_seed(0)
        known = [i for i, depth in enumerate(self.depth) if bool((depth > 0).any())]
        try:
            self.student.requires_grad_(False)
            for step in range(steps):
                progress("fitting", step, steps)
                optimiser.param_groups[0]["lr"] = _RATE * rate**step
                optimiser.zero_grad()
                drawn = torch.randperm(len(known), generator=generator)[:_BATCH].tolist()
                for i in drawn:  # one at a time, so that memory stays small and `stop` is heard
                    _ask(stop)
                    (self._log_error(known[i], code) / len(drawn)).backward()
                (_WEIGHT * code.square().sum()).backward()
                optimiser.step()
        finally:
            for parameter, before in zip(parameters, learning, strict=True):
                parameter.requires_grad_(before)
        return code.detach()

    def _log_error(self, frame: int, code: Tensor) -> Tensor:
        assert self.student.camera_code is not None
        features = self.student.camera_code(self.features[frame], code)
        seen = self.student.decode(features, self.prior, scales=(0,), depth_range=self.depth_range)
        truth = self.depth[frame]
        predicted = torch.nn.functional.interpolate(
            disparity_to_depth(seen.disparity[0], *self.depth_range)[1],
            truth.shape[2:],
            mode="nearest",
        )
        known = truth > 0
        return (predicted[known].log() - truth[known].log()).abs().mean()
