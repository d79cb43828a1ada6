"""Fit a bundle to its camera on keyframes, evaluate it on others, and keep it where it is better.

What is fitted are the five numbers that the student is told of its camera; no weight changes, and
nothing is compiled. `depth_train adapt` and the node's service `~/adapt` are this one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from depth_prior_ros.adaptation.keyframes import (
    FARTHEST,
    NEAREST,
    AdaptationError,
    Keyframe,
    spaced,
)
from depth_prior_ros.bundle import Bundle, CameraCodeSpec, CameraSpec
from depth_prior_ros.evaluation.evaluate import FrameResult, evaluate
from depth_prior_ros.evaluation.frames import EvaluationFrame
from depth_prior_ros.evaluation.metrics import DepthErrors, mean_errors
from depth_prior_ros.evaluation.predictors import NetworkPredictor
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.scale import focal_ratio

if TYPE_CHECKING:
    from depth_prior_ros.models.episodic_prior import References
    from depth_prior_ros.models.prior_fusion import Prior
    from depth_prior_ros.models.student import Student

LEAST = 8
"""Keyframes below which nothing is fitted."""

FITTED, EVALUATED = 24, 12
"""Keyframes that are fitted on and evaluated on, at most."""

STRETCHES = 8
"""Of a drive, alternately fitted on and held out."""

PROTOCOL = Protocol("keyframes", min_depth=NEAREST, max_depth=FARTHEST)


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        told: the new numbers, the camera that they belong to, and where they are from.
        before: errors of the bundle as it was, one a keyframe that was held out.
        after: those with the new numbers.
        fitted: keyframes that were fitted on.
        evaluated: those that were held out.
        references: out of the keyframes that were fitted on, for a student that looks some up.
        looked_up: errors with the references and the numbers from before; empty without.
    """

    told: CameraCodeSpec
    before: list[FrameResult]
    after: list[FrameResult]
    fitted: int
    evaluated: list[Keyframe]
    references: References | None = None
    looked_up: list[FrameResult] = field(default_factory=list)

    @property
    def by_references(self) -> bool:
        """Whether references are better than the bundle as it was, and than the numbers."""
        if not self.looked_up:
            return False
        error = self.metric_looked_up.abs_rel
        return error < min(self.metric_before.abs_rel, self.metric_after.abs_rel)

    @property
    def metric_looked_up(self) -> DepthErrors:
        """Mean errors in metres with references."""
        return mean_errors([frame.metric for frame in self.looked_up])

    @property
    def better(self) -> bool:
        """Whether it is to be kept: references of another camera make it worse than none."""
        return self.metric_after.abs_rel < self.metric_before.abs_rel

    @property
    def metric_before(self) -> DepthErrors:
        """Mean errors in metres of the bundle as it was."""
        return mean_errors([frame.metric for frame in self.before])

    @property
    def metric_after(self) -> DepthErrors:
        """Mean errors in metres with the new numbers."""
        return mean_errors([frame.metric for frame in self.after])

    @property
    def text(self) -> str:
        """Both, in words."""
        return (
            f"AbsRel in metres on {len(self.evaluated)} keyframes kept out "
            f"{self.metric_before.abs_rel:.3f} before, {self.metric_after.abs_rel:.3f} after"
            + (f", {self.metric_looked_up.abs_rel:.3f} with references" if self.looked_up else "")
        )


def adapt(
    bundle: Bundle,
    keyframes: Sequence[Keyframe],
    camera: Camera,
    source: str,
    *,
    told: CameraCodeSpec | None = None,
    metres_per_unit: float | None = None,
    progress: Progress = quiet,
    stop: Callable[[], bool] | None = None,
) -> Adapted:
    """Fit on every second stretch of a drive and evaluate on those between.

    Args:
        bundle: whose student is told its camera.
        keyframes: of one camera, in order, depth in metres.
        camera: theirs, at the size of the recorded images.
        source: where they are from, in words.
        told: what the student is told now; None: what the bundle says.
        metres_per_unit: that depth is multiplied with; None: the bundle's.
        progress: told of what takes long.
        stop: asked now and then whether to end.

    Raises:
        AdaptationError: a student that takes no numbers, or too few keyframes.
        StoppedError: `stop` said so.
    """
    from depth_prior_ros.adaptation.camera_code import fit_camera_code, never

    check_student(bundle)
    if len(keyframes) < LEAST:
        raise AdaptationError(
            f"{len(keyframes)} keyframes with depth in metres, and {LEAST} are needed: drive on"
        )
    import torch

    stop = stop or never
    fitted, evaluated = stretches(keyframes)
    student = bundle.student()
    prior = bundle.prior() if bundle.has("prior") else None
    depth = bundle.manifest.depth
    factor = metres_per_unit or depth.metres_per_unit
    trained = bundle.manifest.camera
    numbers = fit_camera_code(
        student,
        [torch.from_numpy(_planes(frame)) for frame in fitted],
        [torch.from_numpy(f.depth / np.float32(factor * _stretch(f, trained))) for f in fitted],
        prior,
        depth_range=(depth.min_units, depth.max_units),
        progress=progress,
        stop=stop,
    )
    present = told or bundle.manifest.camera_code
    evaluation = _Evaluation(bundle, student, prior, factor, evaluated, progress, stop)
    before = evaluation.errors("before", present.numbers if present else (0.0,) * 5)
    after = evaluation.errors("after", numbers)
    references, looked_up = None, []
    if student.episodic is not None:
        references = take_references(student, fitted, factor, trained)
        told_now = present.numbers if present else (0.0,) * 5
        looked_up = evaluation.errors("with references", told_now, references)
    found = Adapted(
        CameraCodeSpec(
            numbers=numbers,  # type: ignore[arg-type]  # five of them
            camera=CameraSpec.of(camera),
            source=source,
        ),
        before,
        after,
        len(fitted),
        evaluated,
        references,
        looked_up,
    )
    described = found.told.model_copy(update={"source": f"{source}: {found.text}"})
    return replace(found, told=described)


def take_references(
    student: Student, keyframes: Sequence[Keyframe], metres_per_unit: float, trained: Camera
) -> References:
    """As many pixels of keyframes as the student's look-up has room for.

    trained: the camera that the student takes every image for.
    """
    import torch

    from depth_prior_ros.adaptation.references import make_references

    assert student.episodic is not None
    depth = [f.depth / np.float32(_stretch(f, trained)) for f in keyframes]
    return make_references(
        student,
        torch.from_numpy(np.stack([_planes(frame) for frame in keyframes])),
        torch.from_numpy(np.stack(depth)[:, None]),
        student.episodic.config.capacity,
        metres_per_unit=metres_per_unit,
    )


def stretches(keyframes: Sequence[Keyframe]) -> tuple[list[Keyframe], list[Keyframe]]:
    """Keyframes to fit on and to evaluate on: alternate stretches, of which some are taken.

    Frames beside each other show the same place; a whole half of the drive may be another kind of
    road than the other half.
    """
    length = len(keyframes) / STRETCHES
    number = [int(n / length) for n in range(len(keyframes))]
    even, odd = (
        [frame for frame, stretch in zip(keyframes, number, strict=True) if stretch % 2 == rest]
        for rest in (0, 1)
    )
    return spaced(even, FITTED), spaced(odd, EVALUATED)


def check_student(bundle: Bundle) -> None:
    """Raise AdaptationError where the bundle's student takes no numbers."""
    if bundle.manifest.network is not None:
        raise AdaptationError(
            f"{bundle.path}: an imported network takes no numbers of its camera, so nothing can be "
            "fitted; scale.mode camera_height or odometry finds its metres while it drives"
        )
    if not bundle.manifest.architecture.student.get("camera_code"):
        raise AdaptationError(
            f"{bundle.path}: this student is not told its camera, so nothing can be fitted; train "
            "one with networks.camera_code: true"
        )


@dataclass(frozen=True)
class _Evaluation:
    bundle: Bundle
    student: Student
    prior: Prior | None
    metres_per_unit: float
    keyframes: list[Keyframe]
    progress: Progress
    stop: Callable[[], bool]

    def errors(
        self, what: str, numbers: Sequence[float], references: References | None = None
    ) -> list[FrameResult]:
        """Of all keyframes, with the depth."""
        from depth_prior_ros.adaptation.camera_code import StoppedError

        depth = self.bundle.manifest.depth
        predictor = NetworkPredictor(
            self.student,
            prior=self.prior,
            metres_per_unit=self.metres_per_unit,
            batch=1,
            code=tuple(numbers),
            trained=self.bundle.manifest.camera,
            depth_range=(depth.min_units, depth.max_units),
            references=references,
        )
        found = []
        for place, frame in enumerate(self.keyframes):
            if self.stop():
                raise StoppedError
            self.progress(f"evaluating, {what}", place, len(self.keyframes))
            shown = _shown(place, frame)
            found += evaluate(predictor, [shown], PROTOCOL, keep_depth=True)
        return found


def _shown(place: int, frame: Keyframe) -> EvaluationFrame:
    height, width = frame.pixels.shape[:2]
    return EvaluationFrame(
        place,
        place,
        frame.stamp_ns,
        None,
        frame.camera,
        (0, 0, width, height),
        frame.pixels,
        PROTOCOL.truth(frame.depth),
    )


def _planes(frame: Keyframe) -> np.ndarray:
    """(3, h, w) float32 in [0, 1]."""
    return np.ascontiguousarray(frame.pixels.transpose(2, 0, 1)).astype(np.float32) / 255


def _stretch(frame: Keyframe, trained: Camera) -> float:
    return focal_ratio(frame.camera.fx, frame.camera.fy, trained.fx, trained.fy)
