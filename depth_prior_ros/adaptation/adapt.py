"""Fit a bundle to its camera on keyframes, evaluate it on others, and keep it where it is better.

What is fitted are the five numbers that the student is told of its camera, or, of a network that
takes none, its factor; no weight changes, and nothing is compiled. `depth_train adapt` and the
node's service `~/adapt` are this one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from depth_prior_ros.adaptation.factor import fit_factor, unit_depth
from depth_prior_ros.adaptation.keyframes import (
    FARTHEST,
    NEAREST,
    AdaptationError,
    Keyframe,
    spaced,
)
from depth_prior_ros.bundle import Bundle, CameraCodeSpec, CameraSpec, FactorSpec, Told
from depth_prior_ros.evaluation.evaluate import FrameResult, evaluate
from depth_prior_ros.evaluation.frames import EvaluationFrame
from depth_prior_ros.evaluation.metrics import DepthErrors, mean_errors
from depth_prior_ros.evaluation.predictors import Map, NetworkPredictor, Predictor, StoredDepth
from depth_prior_ros.evaluation.protocols import Protocol as EvaluationProtocol
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.scale import focal_ratio

if TYPE_CHECKING:
    from depth_prior_ros.models.episodic_prior import References
    from depth_prior_ros.models.prior_fusion import Prior
    from depth_prior_ros.models.student import Student
    from depth_prior_ros.pipeline.runtime import Networks

LEAST = 8
"""Keyframes below which nothing is fitted."""

FITTED, EVALUATED = 24, 12
"""Keyframes that are fitted on and evaluated on, at most."""

STRETCHES = 8
"""Of a drive, alternately fitted on and held out."""

Kept = Literal["told", "references"]
"""What `adapt` found better: what was fitted, or references of the keyframes in its place."""

PROTOCOL = EvaluationProtocol("keyframes", min_depth=NEAREST, max_depth=FARTHEST)


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        told: what was fitted, the camera that it belongs to, and where it is from.
        before: errors of the bundle as it was, one a keyframe that was held out.
        after: those with what was fitted.
        fitted: keyframes that were fitted on.
        evaluated: those that were held out.
        references: out of the keyframes that were fitted on, for a student that looks some up.
        looked_up: errors with these references, else as before; empty without.
    """

    told: Told
    before: list[FrameResult]
    after: list[FrameResult]
    fitted: int
    evaluated: list[Keyframe]
    references: References | None = None
    looked_up: list[FrameResult] = field(default_factory=list)

    @property
    def kept(self) -> Kept | None:
        """What is best on the keyframes that were held out; None: the bundle as it was."""
        found: dict[Kept | None, list[FrameResult]] = {
            None: self.before,
            "told": self.after,
            "references": self.looked_up,
        }
        errors = {
            what: mean_errors([frame.metric for frame in frames]).abs_rel
            for what, frames in found.items()
            if frames
        }
        return min(errors, key=lambda what: errors[what])

    @property
    def best(self) -> list[FrameResult]:
        """Frames of what is kept; where nothing is, those of what was fitted."""
        return self.looked_up if self.by_references else self.after

    @property
    def by_references(self) -> bool:
        """Whether references are best."""
        return self.kept == "references"

    @property
    def metric_looked_up(self) -> DepthErrors:
        """Mean errors in metres with references."""
        return mean_errors([frame.metric for frame in self.looked_up])

    @property
    def better(self) -> bool:
        """Whether what was fitted is better than the bundle as it was."""
        return self.metric_after.abs_rel < self.metric_before.abs_rel

    @property
    def metric_before(self) -> DepthErrors:
        """Mean errors in metres of the bundle as it was."""
        return mean_errors([frame.metric for frame in self.before])

    @property
    def metric_after(self) -> DepthErrors:
        """Mean errors in metres with what was fitted."""
        return mean_errors([frame.metric for frame in self.after])

    @property
    def metric_best(self) -> DepthErrors:
        """Mean errors in metres of `best`."""
        return mean_errors([frame.metric for frame in self.best])

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
    networks: Networks | None = None,
    told: Told | None = None,
    metres_per_unit: float | None = None,
    try_references: bool = True,
    count: int = STRETCHES,
    progress: Progress = quiet,
    stop: Callable[[], bool] | None = None,
) -> Adapted:
    """Fit on every second stretch of a drive and evaluate on those between.

    Args:
        bundle: what is fitted.
        keyframes: of one camera, in order, depth in metres.
        camera: theirs, at the size of the recorded images.
        source: where they are from, in words.
        networks: the bundle's, compiled; needed where `Manifest.takes_code` is false. Where
            they look nothing up, the bundle is compared with as it is without its references.
        told: what it is told now; None: what the bundle says.
        metres_per_unit: that depth is multiplied with now; None: the bundle's.
        try_references: whether references of the keyframes are tried, too.
        count: stretches that the keyframes are cut into.
        progress: told of what takes long.
        stop: asked now and then whether to end.

    Raises:
        AdaptationError: a network of which nothing can be fitted, or too few keyframes.
        StoppedError: `stop` said so.
    """
    from depth_prior_ros.adaptation.camera_code import never

    check_bundle(bundle)
    if len(keyframes) < LEAST:
        raise AdaptationError(
            f"{len(keyframes)} keyframes with depth in metres, and {LEAST} are needed: drive on"
        )
    stop = stop or never
    fitted, evaluated = stretches(keyframes, count)
    present = told or bundle.manifest.told
    factor = metres_per_unit or bundle.manifest.depth.metres_per_unit
    fit: _Fit
    if bundle.manifest.takes_code:
        fit = _NumbersFit(bundle, factor, fitted, progress, stop)
    else:
        assert networks is not None, "a factor is fitted with compiled networks"
        fit = _FactorFit(bundle, networks, factor, fitted, evaluated, progress, stop)
    new = fit.told(CameraSpec.of(camera), source)
    errors = _Evaluation(evaluated, progress, stop)
    in_use = networks is None or networks.takes_references
    own = bundle.references_for(camera, present) if in_use else None
    before = errors("before", fit.predictor(present, own))
    after = errors("after", fit.predictor(new))
    found = Adapted(new, before, after, len(fitted), evaluated)
    references = fit.references() if try_references else None
    if references is not None:
        found = replace(
            found,
            references=references,
            looked_up=errors("with references", fit.predictor(present, references)),
        )
    described = new.model_copy(update={"source": f"{source}: {found.text}"})
    return replace(found, told=described)


class _Fit(Protocol):
    """What of a bundle is fitted to its camera."""

    def told(self, camera: CameraSpec, source: str) -> Told:
        """Fit it."""

    def predictor(self, told: Told | None, references: References | None = None) -> Predictor:
        """The bundle's depth of the keyframes that are evaluated, told that."""

    def references(self) -> References | None:
        """Of the keyframes that are fitted on, for a student that looks some up."""


@dataclass(frozen=True)
class _NumbersFit:
    """The numbers that a student is told."""

    bundle: Bundle
    metres_per_unit: float
    fitted: list[Keyframe]
    progress: Progress
    stop: Callable[[], bool]

    @cached_property
    def student(self) -> Student:
        return self.bundle.student()

    @cached_property
    def prior(self) -> Prior | None:
        return self.bundle.prior() if self.bundle.has("prior") else None

    @property
    def depth_range(self) -> tuple[float, float]:
        depth = self.bundle.manifest.depth
        return depth.min_units, depth.max_units

    def told(self, camera: CameraSpec, source: str) -> CameraCodeSpec:
        """See `_Fit`."""
        import torch

        from depth_prior_ros.adaptation.camera_code import fit_camera_code

        factor, trained = self.metres_per_unit, self.bundle.manifest.camera
        numbers = fit_camera_code(
            self.student,
            [torch.from_numpy(frame.planes()) for frame in self.fitted],
            [
                torch.from_numpy(frame.depth / np.float32(factor * _stretch(frame, trained)))
                for frame in self.fitted
            ],
            self.prior,
            depth_range=self.depth_range,
            progress=self.progress,
            stop=self.stop,
        )
        return CameraCodeSpec(
            numbers=numbers,  # type: ignore[arg-type]  # five of them
            camera=camera,
            source=source,
        )

    def predictor(self, told: Told | None, references: References | None = None) -> Predictor:
        """See `_Fit`."""
        return NetworkPredictor(
            self.student,
            prior=self.prior,
            metres_per_unit=self.metres_per_unit,
            batch=1,
            code=told.numbers if isinstance(told, CameraCodeSpec) else (0.0,) * 5,
            trained=self.bundle.manifest.camera,
            depth_range=self.depth_range,
            references=references,
        )

    def references(self) -> References | None:
        """See `_Fit`."""
        if self.student.episodic is None:
            return None
        trained = self.bundle.manifest.camera
        return take_references(self.student, self.fitted, self.metres_per_unit, trained)


@dataclass(frozen=True)
class _FactorFit:
    """The factor of a network that is told nothing."""

    bundle: Bundle
    networks: Networks
    metres_per_unit: float
    fitted: list[Keyframe]
    evaluated: list[Keyframe]
    progress: Progress
    stop: Callable[[], bool]

    def told(self, camera: CameraSpec, source: str) -> FactorSpec:
        """See `_Fit`."""
        seen = StoredDepth(dict(enumerate(self._look(self.fitted))))
        errors = _Evaluation(self.fitted, self.progress, self.stop)("fitting", seen)
        factor = fit_factor([frame.errors.ratio for frame in errors])
        return FactorSpec(metres_per_unit=factor, camera=camera, source=source)

    def predictor(self, told: Told | None, references: References | None = None) -> Predictor:
        """See `_Fit`."""
        del references
        factor = told.metres_per_unit if isinstance(told, FactorSpec) else self.metres_per_unit
        return StoredDepth({i: np.float32(factor) * seen for i, seen in enumerate(self._seen)})

    def references(self) -> None:
        """See `_Fit`."""

    @cached_property
    def _seen(self) -> list[Map]:
        return self._look(self.evaluated)

    def _look(self, keyframes: list[Keyframe]) -> list[Map]:
        """Depth in units of each, looked at once."""
        from depth_prior_ros.adaptation.camera_code import StoppedError

        trained, found = self.bundle.manifest.camera, []
        for done, frame in enumerate(keyframes):
            if self.stop():
                raise StoppedError
            self.progress("looking at keyframes", done, len(keyframes))
            found.append(unit_depth(self.networks, frame, _stretch(frame, trained)))
        return found


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
        torch.from_numpy(np.stack([frame.planes() for frame in keyframes])),
        torch.from_numpy(np.stack(depth)[:, None]),
        student.episodic.config.capacity,
        metres_per_unit=metres_per_unit,
    )


def stretches(
    keyframes: Sequence[Keyframe], count: int = STRETCHES
) -> tuple[list[Keyframe], list[Keyframe]]:
    """Keyframes to fit on and to evaluate on: alternate stretches, of which some are taken.

    Frames beside each other show the same place; a whole half of the drive may be another kind of
    road than the other half.
    """
    length = len(keyframes) / min(count, len(keyframes))
    number = [int(n / length) for n in range(len(keyframes))]
    even, odd = (
        [frame for frame, stretch in zip(keyframes, number, strict=True) if stretch % 2 == rest]
        for rest in (0, 1)
    )
    return spaced(even, FITTED), spaced(odd, EVALUATED)


def check_bundle(bundle: Bundle) -> None:
    """Raise AdaptationError for a bundle of which nothing can be fitted to a camera."""
    if bundle.manifest.affine:
        raise AdaptationError(
            f"{bundle.path}: affine-invariant depth has another factor and shift in every picture, "
            "so none can be fitted to a camera; scale.mode camera_height or odometry measures both "
            "with every frame"
        )


@dataclass(frozen=True)
class _Evaluation:
    keyframes: list[Keyframe]
    progress: Progress
    stop: Callable[[], bool]

    def __call__(self, what: str, predictor: Predictor) -> list[FrameResult]:
        """Of all keyframes, with the depth."""
        from depth_prior_ros.adaptation.camera_code import StoppedError

        found = []
        for place, frame in enumerate(self.keyframes):
            if self.stop():
                raise StoppedError
            self.progress(f"evaluating, {what}", place, len(self.keyframes))
            found += evaluate(predictor, [_shown(place, frame)], PROTOCOL, keep_depth=True)
        if not found:
            raise AdaptationError("the network's depth is no number on any keyframe")
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


def _stretch(frame: Keyframe, trained: Camera) -> float:
    return focal_ratio(frame.camera.fx, frame.camera.fy, trained.fx, trained.fy)
