"""Whose depth is evaluated: a bundle's, a network's in training, published depth, a fixed map.

None of them cuts depth to a range; see `metrics`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.frames import EvaluationFrame
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import focal_ratio

if TYPE_CHECKING:
    import torch
    from torch import nn

    from depth_prior_ros.models.episodic_prior import References
    from depth_prior_ros.models.prior_fusion import Prior
    from depth_prior_ros.pipeline import DepthPipeline, Model

Map = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Prediction:
    """Depth of the window that a frame shows.

    depth: (h, w), metres where the predictor knows them; NaN unknown, +inf only where nothing else
    is known. max_metres: beyond it the predictor would have published +inf.
    model, reason, references: who answered, and why, and what was looked up, as in a
    `DepthResult`.
    """

    depth: Map
    max_metres: float = math.inf
    model: str = ""
    reason: str = ""
    references: str = ""

    def published(self) -> Map:
        """The depth (h, w) with +inf beyond the range; the depth itself where nothing is."""
        beyond = self.depth > self.max_metres
        return np.where(beyond, np.float32(np.inf), self.depth) if beyond.any() else self.depth


class Predictor(Protocol):
    """Says depth of frames in order."""

    def predict(
        self, frames: Iterable[EvaluationFrame]
    ) -> Iterator[tuple[EvaluationFrame, Prediction]]:
        """Each frame with truth, with its prediction; frames without truth are context."""


@dataclass
class BundlePredictor:
    """A bundle through the pipeline of a vehicle.

    model: the one that is forced; None: as published, the pipeline chooses. The pipeline begins
    anew with every `predict`, and is left with its settings as they were.
    """

    pipeline: DepthPipeline
    model: Model | None = None

    @property
    def memory(self) -> float | None:
        """Seconds before a frame whose frames have a say in its depth; None: all."""
        from depth_prior_ros.pipeline.keyframes import KEYFRAME_SECONDS

        return {"single_frame": 0, "multi_frame": KEYFRAME_SECONDS}.get(self.model or "")

    def predict(
        self, frames: Iterable[EvaluationFrame]
    ) -> Iterator[tuple[EvaluationFrame, Prediction]]:
        """See `Predictor`."""
        from depth_prior_ros.pipeline import Motion

        pipeline = self.pipeline
        before, max_metres = pipeline.force_model, pipeline.max_metres
        pipeline.reset()
        pipeline.force_model, pipeline.max_metres = self.model, math.inf
        try:
            for frame in frames:
                if frame.truth is None and self.memory == 0:
                    continue
                motion = Motion(frame.speed, "odometry") if frame.speed is not None else None
                found = pipeline.process(frame.image, frame.stamp_ns, motion, frame.camera)
                if frame.truth is not None:
                    who = found.model, found.reason, found.references
                    yield frame, Prediction(found.depth, max_metres, *who)
        finally:
            pipeline.force_model, pipeline.max_metres = before, max_metres


@dataclass
class NetworkPredictor:
    """A student in training, with its prior if there is one; its training mode is left as it was.

    metres_per_unit: of its depth. batch: frames at a time. code: the five numbers that it is told
    of its camera; None: nothing. trained: the camera that it takes every image for, whose focal
    length depth is corrected from; None: that of the frames. depth_range: smallest and largest
    depth, units; None: as networks are built. references: what the student looks up; None: nothing.
    """

    student: nn.Module
    device: torch.device | str = "cpu"
    prior: Prior | None = None
    metres_per_unit: float = 1.0
    batch: int = 8
    code: Sequence[float] | None = None
    trained: Camera | None = None
    depth_range: tuple[float, float] | None = None
    references: References | None = None

    def predict(
        self, frames: Iterable[EvaluationFrame]
    ) -> Iterator[tuple[EvaluationFrame, Prediction]]:
        """See `Predictor`."""
        with_truth = (frame for frame in frames if frame.truth is not None)
        while group := list(itertools.islice(with_truth, self.batch)):
            inverse = self.inverse_depth(np.stack([frame.image for frame in group]))
            for frame, depth in zip(group, self.metres_per_unit / inverse, strict=True):
                yield frame, Prediction(depth * self._stretch(frame), model="single_frame")

    def _stretch(self, frame: EvaluationFrame) -> np.float32:
        """True depth over the depth that the network sees."""
        seen, trained = frame.camera, self.trained
        if trained is None:
            return np.float32(1)
        return np.float32(focal_ratio(seen.fx, seen.fy, trained.fx, trained.fy))

    def inverse_depth(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Inverse depth (N, h, w) in 1/units of images (N, h, w, 3) uint8 RGB at input size."""
        import torch

        from depth_prior_ros.geometry.warping import disparity_to_depth

        was_training = self.student.training
        self.student.eval()
        try:
            with torch.inference_mode():
                pixels = torch.from_numpy(images).to(self.device)
                image = pixels.permute(0, 3, 1, 2).float().div(255)
                if self.references is not None:
                    return self._looked_up(image)
                prior = () if self.prior is None else (self.prior,)
                told: dict[str, Any] = {}
                if self.code is not None:
                    told["code"] = image.new_tensor([list(self.code)] * len(image))
                if self.depth_range is not None and prior:
                    told["depth_range"] = self.depth_range
                output = self.student(image, *prior, **told)
                limits = self.depth_range or ()
                inverse, _ = disparity_to_depth(output.disparity[0].float(), *limits)
                found: NDArray[np.float32] = inverse[:, 0].cpu().numpy()
                return found
        finally:
            self.student.train(was_training)

    def _looked_up(self, image: torch.Tensor) -> NDArray[np.float32]:
        """As a vehicle runs a student that looks references up."""
        from depth_prior_ros.models.export import StudentRunner

        student: Any = self.student
        runner = StudentRunner(student, self.prior, *(self.depth_range or ()))
        assert self.references is not None
        found = student.episodic.project([self.references], len(self.references))
        code = image.new_tensor([list(self.code or (0.0,) * 5)] * len(image))
        told = (code, *found) if student.camera_code is not None else tuple(found)
        inverse, _ = runner(image, *told)
        values: NDArray[np.float32] = inverse[:, 0].cpu().numpy()
        return values


@dataclass
class StoredDepth:
    """Depth that is there already, (h, w) by position: published by a node, or predicted before."""

    depths: Mapping[int, Map]

    def predict(
        self, frames: Iterable[EvaluationFrame]
    ) -> Iterator[tuple[EvaluationFrame, Prediction]]:
        """See `Predictor`; frames without depth are left out."""
        for frame in frames:
            if frame.truth is not None and frame.position in self.depths:
                yield frame, Prediction(self.depths[frame.position])


@dataclass
class ImageIndependentMap:
    """The same depth (h, w) whatever the image shows: the floor that a network must clear."""

    depth: Map

    def predict(
        self, frames: Iterable[EvaluationFrame]
    ) -> Iterator[tuple[EvaluationFrame, Prediction]]:
        """See `Predictor`."""
        return ((frame, Prediction(self.depth)) for frame in frames if frame.truth is not None)


class MeanDepth:
    """Mean inverse depth as depth, over images of one size; unknown pixels do not count.

    With an image of another size it begins anew.
    """

    def __init__(self, depths: Iterable[Map] = ()) -> None:
        self._total = self._count = np.zeros((0, 0))
        for depth in depths:
            self.add(depth)

    def add(self, depth: Map) -> None:
        """One more image (h, w); +inf is inverse depth 0."""
        if depth.shape != self._total.shape:
            self._total, self._count = np.zeros((2, *depth.shape))
        known = depth > 0  # False for NaN, True for +inf
        self._total[known] += 1 / depth[known]
        self._count += known

    def state(self) -> list[NDArray[np.float64]]:
        """What `from_state` goes on from."""
        return [self._total, self._count]

    @classmethod
    def from_state(cls, state: Sequence[NDArray[np.float64]]) -> MeanDepth:
        """Go on from a `state`."""
        mean = cls()
        mean._total, mean._count = (array.copy() for array in state)
        return mean

    def depth(self) -> NDArray[np.float64]:
        """(h, w); NaN where nothing was known, or all was infinite."""
        mean = np.full(self._total.shape, np.nan)
        return np.divide(self._count, self._total, out=mean, where=self._total > 0)
