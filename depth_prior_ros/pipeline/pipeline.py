"""Frame and motion in; depth, confidence, model and reason out. Knows no ROS.

Both networks see every image as one of the training camera. For a camera of another focal length f
that is a world stretched along the viewing direction by f_trained / f, consistently for the
single-frame network, the pose network and the matching of the multi-frame network, which is
therefore given the trained focal length with the actual principal point. The published depth is
stretched back by f / f_trained.

A few frames are kept to match with (`keyframes`), and their matching features once they exist: a
vehicle that drives computes them once a frame, a vehicle that stands does not compute them at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.backends.base import Precision
from depth_prior_ros.bundle import Bundle, FactorSpec, Told, load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.motion.gate import (
    FrameRate,
    GateSettings,
    Motion,
    MotionGate,
    RecentPictures,
    RelativeMotion,
    State,
)
from depth_prior_ros.pipeline.framing import (
    ChannelOrder,
    Fit,
    NetworkInput,
    frame_image,
    read_picture,
)
from depth_prior_ros.pipeline.guard import (
    Fault,
    ModelFailedError,
    MultiFrameGuard,
    is_out_of_memory,
)
from depth_prior_ros.pipeline.keyframes import (
    KEYFRAME_METRES,
    KEYFRAME_UNIT,
    MAX_GAP,
    Candidate,
    Keyframes,
)
from depth_prior_ros.pipeline.multi_frame_step import (
    MIN_POSE_RATIO,
    FramePair,
    MultiFrameResult,
    MultiFrameStep,
    ObservedFrame,
    PoseChoice,
    stretch_of,
    turned,
)
from depth_prior_ros.pipeline.references import SWITCHED_OFF, looked_up, not_looked_up
from depth_prior_ros.pipeline.results import (
    DepthResult,
    MatchedFrame,
    Model,
    OutputSize,
    OutputView,
    Reason,
    check_output_size,
    combine,
    holds_depth,
    known_inverse,
    matching_weight,
    shifted,
    to_confidence,
    to_metres,
    to_rgb,
    view_of,
)
from depth_prior_ros.pipeline.runtime import Native, Stopwatch, compile_networks
from depth_prior_ros.pipeline.settings import (
    Setting,
    TimeBudget,
    check_budget,
    check_metres,
    check_model,
    check_ratio,
    one_of,
)
from depth_prior_ros.pipeline.sharing import NetworkPool
from depth_prior_ros.scale import FixedScale, NoScale, Scale, ScaleSight, ScaleStatus

if TYPE_CHECKING:
    from depth_prior_ros.bundle import ReferencesSpec
    from depth_prior_ros.models.episodic_prior import References

_log = logging.getLogger(__name__)

MEASURE_NS = 500_000_000
"""How often travel is measured where single-frame depth is all that is wanted."""

BUDGET_SHARE = 0.9
"""Of the time between two camera images that an automatic budget gives to a frame."""


def default_scale(bundle: Bundle, told: Told | None = None) -> Scale:
    """The bundle's own factor, or what it is told; none where nobody knows the metres."""
    manifest = bundle.manifest.with_told(told)
    depth = manifest.depth
    if manifest.has_metres:
        return FixedScale(depth.metres_per_unit, depth.metres_per_unit_source)
    return NoScale(depth.metres_per_unit, depth.metres_per_unit_source, first_shift(bundle))


def first_shift(bundle: Bundle) -> float:
    """Shift of inverse depth, 1/units, where none was measured: zero but for affine-invariant."""
    from depth_prior_ros.models.imported import GAUGE_SHIFT

    return GAUGE_SHIFT if bundle.manifest.affine else 0.0


P = ParamSpec("P")
R = TypeVar("R")


def _in_turn(
    method: Callable[Concatenate[DepthPipeline, P], R],
) -> Callable[Concatenate[DepthPipeline, P], R]:
    """While no other camera uses the networks; how long that took to come is remembered."""

    @wraps(method)
    def called(self: DepthPipeline, *args: P.args, **options: P.kwargs) -> R:
        asked = time.perf_counter()
        with self.networks.turns:
            self._waited_ms = (time.perf_counter() - asked) * 1e3
            return method(self, *args, **options)

    return called


class DepthPipeline:
    """Depth for a sequence of frames of one camera. Not thread-safe: one thread at a time.

    bundle: a `Bundle`, or the name or path of one.
    backend, device, threads, precision, fallback: see `runtime.compile_networks`;
    `backend_reason` tells why, `backend_fell_back` whether another one should have run.
    look_up: whether references of the bundle are; false: no look-up is compiled.
    parallax: pixels from which matching is trusted as far as it is confident, the bundle's own by
    default; 0: always and entirely, as in MISM.
    pool: of networks that the pipelines of several cameras share; each has a thread of its own,
    and their frames take turns.

    These may be changed between two frames:

    force_model: `single_frame` or `multi_frame`, for evaluation; a forced multi-frame still falls
    back where there is no usable predecessor or pose.
    gate_settings: when the vehicle counts as moving.
    scale: where the metric factor comes from, `default_scale` if nothing is said; it is told of
    every frame.
    max_gap: seconds between frames beyond which the previous one is of no use.
    max_metres: beyond it depth is +inf; the bundle's range by default.
    time_budget_ms: where the median time of multi-frame frames exceeds it, they pause; `auto`: as
    long as the camera's rate allows (see `frame_rate`).
    pose_source, min_pose_ratio: where the multi-frame network has its motion from, see
    `MultiFrameStep`.
    keyframe_metres: how far back the frame to match with lies, see `Keyframes`; 0: the previous
    one.
    output_size: of the depth image: `model`, `input`, or (width, height).
    fit: of images of another aspect ratio, see `framing`.
    witness: shown every frame that was matched; where there is no multi-frame network, what the
    scale is told of every frame.

    Raises BundleError, BackendError, ValueError.
    """

    force_model = Setting[Model | None](check_model)
    gate_settings = Setting[GateSettings](place="_gate.settings")
    time_budget_ms = Setting[TimeBudget](check_budget)
    pose_source = Setting[PoseChoice](one_of("pose_source", PoseChoice), "_step.pose_source")
    min_pose_ratio = Setting[float](check_ratio, "_step.min_pose_ratio")
    keyframe_metres = Setting[float](check_metres, "_keyframes.metres")
    output_size = Setting[OutputSize](lambda _, size: check_output_size(size))
    fit = Setting[Fit](one_of("fit", Fit))
    _time_budget_ms: TimeBudget = None

    def __init__(
        self,
        bundle: Bundle | str = "lite",
        backend: str = "auto",
        device: str = "auto",
        *,
        threads: int = 1,
        precision: Precision = "f32",
        fallback: bool = False,
        force_model: Model | None = None,
        gate: GateSettings | None = None,
        scale: Scale | None = None,
        max_gap: float = MAX_GAP,
        max_metres: float | None = None,
        time_budget_ms: TimeBudget = None,
        pose_source: PoseChoice = "auto",
        min_pose_ratio: float = MIN_POSE_RATIO,
        parallax: float | None = None,
        look_up: bool = True,
        keyframe_metres: float = KEYFRAME_METRES,
        output_size: OutputSize = "model",
        fit: Fit = "crop",
        guard: MultiFrameGuard | None = None,
        pool: NetworkPool | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.networks, self.backend_reason = compile_networks(
            self.bundle,
            backend,
            device,
            threads=threads,
            precision=precision,
            fallback=fallback,
            parallax=parallax,
            look_up=look_up,
            pool=pool,
        )
        self.scale: Scale = scale or default_scale(self.bundle)
        self.max_metres = (
            self.bundle.manifest.depth.max_metres if max_metres is None else max_metres
        )
        self.max_gap = max_gap
        self.frame_rate = FrameRate()
        self.guard = guard or MultiFrameGuard()
        self.witness: Callable[[MatchedFrame | ScaleSight], None] | None = None
        self._trained = self.bundle.manifest.camera
        self._told = self.bundle.manifest.told
        self._last_camera: Camera | None = None
        self._own_references: tuple[References | None, ReferencesSpec | None] = (None, None)
        if look_up and self.bundle.manifest.references is not None:
            self._own_references = (self.bundle.references(), self.bundle.manifest.references)
        self._references_spec = self._own_references[1]
        self._looked_up_for: Camera | None = None
        #: Why the references are not looked up for the camera that is seen; None where they are.
        self.references_doubt: str | None = None
        self._waited_ms = 0.0
        self._gate = MotionGate(gate)
        self._pictures = RecentPictures()
        self._step = MultiFrameStep(self.networks, self._trained, self.guard)
        self._keyframes = Keyframes()
        self.keyframe_metres = keyframe_metres
        self.time_budget_ms = time_budget_ms
        self.force_model = force_model
        self.pose_source = pose_source
        self.min_pose_ratio = min_pose_ratio
        self.output_size = output_size
        self.fit = fit

    # -- state ---------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """Backend and device in words, such as `openvino on cpu`."""
        return f"{self.networks.backend.name} on {self.networks.backend.device}"

    @property
    def backend_fell_back(self) -> bool:
        """Whether a backend that should have run the networks could not (`backend_reason`)."""
        return self.networks.fell_back

    @property
    def motion_state(self) -> State:
        """What the motion gate thinks."""
        return self._gate.state

    @property
    def previous_stamp_ns(self) -> int | None:
        """Stamp of the frame before, to which `Motion.pose` has to lead back."""
        previous = self._keyframes.previous
        return previous.stamp_ns if previous else None

    @property
    def told(self) -> Told | None:
        """What of the system is fitted to its camera, and where that is from; None: nothing."""
        return self._told

    def tell_camera(self, told: Told | None) -> None:
        """Take what was fitted to the camera from the next frame on.

        A student that is told its camera gets its numbers, without any those of the training
        camera; a measured factor is left as it is, though it was that of other numbers. Else
        `scale` becomes the factor, without one the bundle's. The bundle's references go with what
        the bundle itself says of the camera (`Bundle.references_for`). Raises ValueError for what
        does not fit it.
        """
        scale = default_scale(self.bundle, told)
        if not self.networks.takes_code:
            self.scale = scale
        elif not isinstance(told, FactorSpec):
            self.networks.tell_camera((0.0,) * 5 if told is None else told.numbers)
        self._told, self._last_camera = told, None
        if self.networks.takes_references:
            own = self.bundle.goes_with_references(told)
            self.set_references(*(self._own_references if own else (None, None)))

    def reset(self) -> None:
        """Forget the frames, the motion and all pauses, as before the first frame.

        The scale is left alone: it belongs to the camera and its network, not to the drive.
        """
        self._keyframes.clear()
        self._pictures.clear()
        self._gate.reset()
        self.guard.reset()
        self.frame_rate.reset()

    def state(self) -> dict[str, Any]:
        """All that earlier frames leave to later ones, as plain data and arrays, for `restore`.

        Not among it: a measured scale (see `Scale.store`), and the times behind a time budget.
        """
        return {
            "keyframes": self._keyframes.state(),
            "pictures": self._pictures.snapshot(),
            "gate": self._gate.snapshot(),
            "guard": self.guard.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another pipeline of the same bundle and settings was; see `state`."""
        backend = self.networks.backend

        def show(stamp_ns: int, framed: NetworkInput) -> ObservedFrame:
            return ObservedFrame(stamp_ns, framed, backend.to_native(framed.tensor()))

        self.reset()
        self._keyframes.restore(state["keyframes"], show)
        self._pictures.restore(state["pictures"])
        self._gate.restore(state["gate"])
        self.guard.restore(state["guard"])

    @_in_turn
    def warm_up(self) -> float:
        """Run every network twice on noise; the milliseconds of the second round.

        A multi-frame network that fails here is logged and will be left out when its time comes; a
        single-frame network that fails raises.
        """
        generator = np.random.default_rng(0)
        shape = (self._trained.height, self._trained.width, 3)
        elapsed = 0.0
        for _ in range(2):
            start = time.perf_counter()
            picture = generator.integers(0, 256, shape, dtype=np.uint8)
            shown = self._show(picture, 0, None)
            inverse, _ = self.networks.single(shown.native)
            self._numbers(inverse)
            if self.networks.has_multi_frame:
                try:
                    self._step.rehearse(shown, inverse)
                except Exception as error:
                    self._step.report(error)
            elapsed = (time.perf_counter() - start) * 1e3
        return elapsed

    # -- a picture -----------------------------------------------------------------------------

    @_in_turn
    def infer(
        self,
        image: Any,
        *,
        order: ChannelOrder | None = None,
        camera: Camera | None = None,
        confidence: bool = False,
    ) -> DepthResult:
        """Depth of one picture on its own, by the single-frame network.

        Nothing is remembered of it, and a scale that measures learns nothing: the metric factor is
        the one in use. For the frames of a drive there is `process`.

        image, order: see `read_picture`. camera: of the image; without one, the training camera's
        field of view is assumed, and metres are as right as that is. confidence: whether it is
        wanted. The result's reason is `first_frame`, its stamp 0.

        Raises as `read_picture`; and InvalidFrameError and ModelFailedError as `process`.
        """
        clock = Stopwatch(self.networks.backend.synchronize)
        with clock("preprocess"):
            rgb = read_picture(image, order)
            current = self._show(rgb, 0, camera)
        with clock("single"):
            single = self._single(current)
        with clock("postprocess"):
            view = view_of(current.framed, self.output_size)
            status = self.scale.status
            alone = self._units(current, single, MultiFrameResult())
            units, depth = self._published(alone, status, current, view)
            sure = to_confidence(combine(units), depth, view) if confidence else None
            shown = to_rgb(rgb, current.framed, view)
        return DepthResult(
            depth=depth,
            model="single_frame",
            reason="first_frame",
            timings=clock.stop(),
            camera=view.camera,
            stamp_ns=0,
            region=view.region,
            confidence=sure,
            rgb=shown,
            scale=status,
            references=self.references_text,
        )

    # -- a frame -------------------------------------------------------------------------------

    @_in_turn
    def process(
        self,
        image: NDArray[Any],
        stamp_ns: int,
        motion: Motion | None = None,
        camera: Camera | None = None,
        *,
        confidence: bool = False,
        outside: NDArray[np.bool_] | None = None,
    ) -> DepthResult:
        """Depth of one frame.

        image: (H, W, 3) uint8 RGB of any size. stamp_ns: when it was taken. motion: the vehicle's
        at that time; without a speed, the pictures tell. camera: of the image; without one, the
        training camera's field of view is assumed. confidence: whether it is wanted. outside:
        (H, W), where the image shows nothing (the corners of a rectified one).

        Raises InvalidFrameError and, where the single-frame network's answer holds no number,
        ModelFailedError, after which the pipeline goes on as though the frame had never been; and
        TypeError for arguments in another order.
        """
        _check_order(stamp_ns, motion, camera)
        clock = Stopwatch(self.networks.backend.synchronize)
        with clock("preprocess"):
            current = self._show(image, stamp_ns, camera, outside)
        self.frame_rate.saw(stamp_ns)
        broken, before = self._broken_sequence(current), self.previous_stamp_ns
        with clock("motion"):
            self._update_gate(current, motion.known_speed if motion else None, broken)
        with clock("single"):
            single = self._single(current)
        fault = self.guard.fault()
        way = self._way(current, motion)
        if broken:
            self._keyframes.clear()
        candidates = self._candidates(current, way)
        pairs = [self._pair(candidate, current, single) for candidate in candidates]
        reason = self._single_frame_reason(broken, fault)
        detail = self.guard.detail if reason == fault else None
        travel = self.scale.needs_travel
        found, looked = MultiFrameResult(), reason is None or self._is_measured(current)
        if pairs and reason is None:
            forced = self.force_model is not None
            found, reason = self._step.attempt(pairs, clock, forced=forced, measure=travel)
        elif looked and pairs and travel and way.metres is not None and self._may_measure(fault):
            found = self._step.travel(pairs[0], clock)
        assert reason is not None
        with clock("postprocess"):
            units = self._units(current, single, found)
            self._observe(current, single, units, way, found, before, looked=looked)
            parallax = self._parallax(current, found, candidates)
            self._show_witness(current, units, way, found)
            view = view_of(current.framed, self.output_size)
            scale = self.scale.status  # once: another thread may reset the scale
            units, depth = self._published(units, scale, current, view)
            sure = None
            if confidence:
                sure = to_confidence(self._sure(current, single, units, found), depth, view)
            rgb = to_rgb(image, current.framed, view)
        self._keyframes.add(current)
        timings = clock.stop()
        if found.output is not None:
            # A frame that waited for other cameras is late, too.
            self.guard.record_duration(timings["total"] + self._waited_ms, self._budget_ms())
        return DepthResult(
            depth=depth,
            model="single_frame" if found.output is None else "multi_frame",
            reason=reason,
            timings=timings,
            camera=view.camera,
            stamp_ns=stamp_ns,
            region=view.region,
            confidence=sure,
            rgb=rgb,
            scale=scale,
            error=found.error,
            detail=found.error or detail,
            pose_source=found.step.source if found.step else None,
            parallax_px=parallax,
            references=self.references_text,
        )

    def _show(
        self,
        image: NDArray[Any],
        stamp_ns: int,
        camera: Camera | None,
        outside: NDArray[np.bool_] | None = None,
    ) -> ObservedFrame:
        framed = frame_image(image, camera, self._trained, self.fit, outside)
        if camera is not None and camera != self._last_camera:
            self._last_camera = camera
            told = self._told
            if told is not None and self._rests_on(told) and (doubt := told.doubt(camera)):
                _log.warning("%s", doubt)
        if camera != self._looked_up_for and self._references_spec is not None:
            self._look_up_for(camera)
        return ObservedFrame(stamp_ns, framed, self.networks.backend.to_native(framed.tensor()))

    def _rests_on(self, told: Told) -> bool:
        """Whether depth does: not on a factor in whose place another one is given or measured."""
        if not isinstance(told, FactorSpec):
            return True
        return self.scale.metres_per_unit == told.metres_per_unit

    def set_references(self, references: References | None, spec: ReferencesSpec | None) -> None:
        """What is looked up from the next frame on, instead of the bundle's own references.

        Nothing is compiled. For a camera unlike that of ``spec`` none are looked up; then
        `references_doubt` says why. Raises ValueError for references that do not fit the student.
        """
        self.networks.set_references(references)  # where they do not fit nothing changes
        self._references_spec = spec
        self._look_up_for(self._looked_up_for)

    @property
    def looks_up(self) -> bool:
        """Whether references are looked up for the newest camera."""
        return self._references_spec is not None and self.references_doubt is None

    @property
    def references_text(self) -> str:
        """What is looked up, or why nothing is; empty for a bundle without references."""
        spec = self._references_spec
        if self.references_doubt is not None:
            return not_looked_up(self.references_doubt)
        if spec is not None:
            return looked_up(spec)
        if self.bundle.manifest.references is None:
            return ""
        if self.networks.takes_references:
            return not_looked_up("other numbers are told")
        return SWITCHED_OFF

    def _look_up_for(self, camera: Camera | None) -> None:
        """The references for a camera like theirs; none for another one.

        None: nobody knows it, and it is taken for that of the training.
        """
        spec = self._references_spec
        self._looked_up_for = camera
        self.references_doubt = None
        if spec is not None and camera is not None:
            self.references_doubt = spec.doubt(camera)
        if self.references_doubt is not None:
            _log.warning("%s", self.references_doubt)
        self.networks.use_references(self.references_doubt is None)

    def _single(self, current: ObservedFrame) -> Native:
        """Inverse depth; where memory runs out, again with as much as is left."""
        try:
            return self.networks.single(current.native)[0]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._keyframes.release()
            self._step.report(error)
            return self.networks.single(current.native)[0]

    def _numbers(self, single: Native) -> NDArray[np.float32]:
        """The single-frame network's answer (1, 1, H, W). Raises ModelFailedError where it holds
        no number."""
        values = self.networks.backend.to_numpy(single)
        if not holds_depth(values):
            raise ModelFailedError(
                "the single-frame network's answer holds no number: the bundle is no good on this "
                "backend; try another `backend`, or another bundle"
            )
        return values

    # -- which model ---------------------------------------------------------------------------

    def _broken_sequence(self, current: ObservedFrame) -> Reason | None:
        """Why earlier frames are of no use; None where they are."""
        previous = self._keyframes.previous
        if previous is None:
            return "first_frame"
        if current.stamp_ns <= previous.stamp_ns:
            return "time_jump"
        before, now = previous.framed, current.framed
        if now.source_size != before.source_size or now.region != before.region:
            return "resolution"
        if current.stamp_ns - previous.stamp_ns > self.max_gap * 1e9:
            return "gap"
        return None

    def _update_gate(
        self, current: ObservedFrame, speed: float | None, broken: Reason | None
    ) -> None:
        flow = None
        # What is too far apart for matching may still tell whether the picture moved.
        if broken not in (None, "gap"):
            self._pictures.clear()
        if speed is None:
            framed = current.framed
            flow = self._pictures.motion(
                current.stamp_ns, framed.pixels, self._gate.settings, framed.outside
            )
        self._gate.update(current.stamp_ns, speed, flow)

    def _single_frame_reason(self, broken: Reason | None, fault: Fault | None) -> Reason | None:
        """Why multi-frame is not even tried; None where it is to be tried."""
        if self.force_model == "single_frame" or not self.networks.has_multi_frame:
            return "forced"
        if broken is not None:
            return broken
        if self.force_model == "multi_frame":
            return None
        # Unknown counts as standing: multi-frame needs motion that somebody has seen.
        if self._gate.state != "moving":
            return "stationary"
        return fault

    def _is_measured(self, current: ObservedFrame) -> bool:
        """Whether a frame that single-frame depth answers is one to measure travel with: the first
        of every half second. That is enough for a factor, and leaves the others quick."""
        before = self.previous_stamp_ns
        return before is None or before // MEASURE_NS != current.stamp_ns // MEASURE_NS

    def _may_measure(self, fault: Fault | None) -> bool:
        """Whether the pose network may run for the scale alone."""
        return self._gate.state == "moving" and fault in (None, "budget")

    def _budget_ms(self) -> float | None:
        if self.time_budget_ms != "auto":
            return self.time_budget_ms
        interval = self.frame_rate.interval_ms
        return None if interval is None else BUDGET_SHARE * interval

    # -- two frames ----------------------------------------------------------------------------

    def _way(self, current: ObservedFrame, motion: Motion | None) -> RelativeMotion:
        previous = self.previous_stamp_ns
        if motion is None or previous is None:
            return RelativeMotion()
        return motion.way(previous, current.stamp_ns)

    def _candidates(self, current: ObservedFrame, way: RelativeMotion) -> list[Candidate]:
        """Frames to compare with, the best one first; none where there cannot be any."""
        previous = self._keyframes.previous
        if previous is None or not self.networks.has_multi_frame:
            return []
        seconds = (current.stamp_ns - previous.stamp_ns) * 1e-9
        self._keyframes.advance(way, seconds, standing=self._gate.state == "stationary")
        camera = current.framed.camera
        return self._keyframes.choose(current.stamp_ns, camera.width, camera.fx)

    def _pair(self, candidate: Candidate, current: ObservedFrame, inverse: Native) -> FramePair:
        status = self.scale.status
        factor = None if status.mode == "none" else status.metres_per_unit
        return FramePair(
            candidate.shown,
            current,
            inverse,
            factor,
            candidate.pose,
            candidate.told,
            status.preliminary,
            self._keyframes.guess(candidate, current.stamp_ns),
        )

    # -- results -------------------------------------------------------------------------------

    def _units(
        self, current: ObservedFrame, single: Native, found: MultiFrameResult
    ) -> NDArray[np.float32]:
        """Inverse depth (h, w) in 1/units, of the model that answers; NaN unknown."""
        if found.output is not None:
            return self._known(current, found.output.depth)
        return known_inverse(self._numbers(single)[0, 0], current.framed.outside, inverse=True)

    def _known(self, current: ObservedFrame, depth: Native) -> NDArray[np.float32]:
        """Inverse depth (h, w) in 1/units of a multi-frame network's; NaN unknown."""
        values = self.networks.backend.to_numpy(depth)
        return known_inverse(values[0, 0], current.framed.outside, inverse=False)

    def _stretch(self, current: ObservedFrame) -> float:
        """True depth over the depth that the networks see.

        Of affine-invariant depth that is a part of the factor, which is measured or unknown.
        """
        return 1.0 if self.bundle.manifest.affine else stretch_of(current.framed, self._trained)

    def _published(
        self,
        units: NDArray[np.float32],
        status: ScaleStatus,
        current: ObservedFrame,
        view: OutputView,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Inverse depth (h, w) with the shift that was found, where it is known up to one only, and
        depth in metres."""
        stretch = self._stretch(current)
        units = shifted(units, status.shift * stretch)
        factor = status.metres_per_unit * stretch
        return units, to_metres(units, factor, self.max_metres, view)

    def _observe(
        self,
        current: ObservedFrame,
        single: Native,
        units: NDArray[np.float32],
        way: RelativeMotion,
        found: MultiFrameResult,
        before: int | None,
        *,
        looked: bool,
    ) -> None:
        """Tell the scale what was seen, of depth what does not rest on the factor itself."""
        inverse: NDArray[np.float32] | None = None
        if self.scale.needs_depth:
            alone = (
                units if found.output is None else self._units(current, single, MultiFrameResult())
            )
            inverse = alone / np.float32(self._stretch(current))
        if found.pair is not None:  # both of the same step
            way = RelativeMotion(found.pair.pose, found.pair.metres)
        seconds = 0.0 if before is None else (current.stamp_ns - before) * 1e-9
        sight = ScaleSight(
            current.stamp_ns,
            inverse,
            current.framed.camera,
            moving=self._gate.state == "moving",
            units_travelled=found.units,
            metres_travelled=way.metres,
            seconds=seconds if seconds > 0 else None,
            radians_turned=None if way.pose is None else turned(way.pose),
            picture=current.framed.pixels,
            looked=looked or not self.scale.needs_travel,
        )
        self.scale.observe(sight)
        if self.witness is not None and not self.networks.has_multi_frame:
            self.witness(sight)

    def _parallax(
        self, current: ObservedFrame, found: MultiFrameResult, candidates: list[Candidate]
    ) -> float | None:
        """Median pixels of parallax, of which the choice of keyframes learns, too."""
        if found.output is None or found.pair is None or found.step is None:
            return None
        parallax = float(np.median(self.networks.backend.to_numpy(found.output.parallax)))
        metres = found.pair.metres
        if metres is None and found.units is not None:
            metres = found.units * KEYFRAME_UNIT
        chosen = next(c for c in candidates if c.shown is found.pair.previous)
        self._keyframes.saw(chosen, current.stamp_ns, found.step.matrix, metres, parallax)
        return parallax

    def _show_witness(
        self,
        current: ObservedFrame,
        units: NDArray[np.float32],
        way: RelativeMotion,
        found: MultiFrameResult,
    ) -> None:
        if self.witness is None or found.output is None or not (found.pair and found.step):
            return
        self.witness(
            MatchedFrame(
                current.stamp_ns,
                current.framed,
                units,
                self._known(current, found.output.matched),
                self.networks.backend.to_numpy(found.output.parallax)[0, 0],
                self._stretch(current),
                way.metres,
                found.pair.metres,
                self._step.motions.units_travelled(found.pair, found.step),
            )
        )

    def _sure(
        self,
        current: ObservedFrame,
        single: Native,
        units: NDArray[np.float32],
        found: MultiFrameResult,
    ) -> NDArray[np.float32]:
        """Confidence (h, w) of what is published: of single-frame depth where there is no parallax.

        What matching is unsure of shows in how far the networks disagree.
        """
        if found.output is None:
            return combine(units)
        alone = self._units(current, single, MultiFrameResult())
        matched, threshold = combine(alone, units), self.networks.parallax
        if not threshold:
            return matched
        parallax = self.networks.backend.to_numpy(found.output.parallax)[0, 0]
        weight = matching_weight(parallax, threshold)
        return combine(alone) * (1 - weight) + matched * weight


def _check_order(stamp_ns: object, motion: object, camera: object) -> None:
    kinds = (
        ("stamp_ns", stamp_ns, (int, np.integer), "an integer of nanoseconds"),
        ("motion", motion, (Motion, type(None)), "a Motion or None"),
        ("camera", camera, (Camera, type(None)), "a Camera or None"),
    )
    for name, value, kind, words in kinds:
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} must be {words}, not {type(value).__name__}: "
                "process(image, stamp_ns, motion, camera)"
            )
