"""Frame and motion in; depth, confidence, model and reason out. Knows no ROS.

Both networks see every image as one of the training camera. For a camera of another focal length f
that is a world stretched along the viewing direction by f_trained / f, consistently for the
single-frame network, the pose network and the matching of the multi-frame network, which is
therefore given the trained focal length with the actual principal point. The published depth is
stretched back by f / f_trained.

The previous frame's image is kept, and its matching features once they exist: a vehicle that drives
computes them once per frame, a vehicle that stands does not compute them at all.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.backends.base import Precision
from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.camera import Camera
from depth_prior_ros.framing import Framed, InvalidFrameError, Region, frame_image
from depth_prior_ros.guard import MultiFrameGuard, Obstacle, is_out_of_memory
from depth_prior_ros.motion import GateSettings, ImageMotion, Motion, MotionGate, State
from depth_prior_ros.runtime import Features, Native, Stopwatch, compile_networks, inverse_pose
from depth_prior_ros.scale import FixedScale, Scale, focal_ratio

__all__ = ["DepthPipeline", "DepthResult", "InvalidFrameError", "Motion"]

Model = Literal["multi_frame", "single_frame"]
Reason = Literal[
    "moving",
    "first_frame",
    "stationary",
    "gap",
    "time_jump",
    "resolution",
    "pose",
    "forced",
    "budget",
    "memory",
    "model_failed",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthResult:
    """What the pipeline knows about one frame.

    depth: (h, w) float32 metres along the optical axis; NaN unknown, +inf beyond the range.
    confidence: (h, w) float32, 0 to 1, 1 = sure.
    model, reason: which network made it, and why that one.
    timings: milliseconds of what ran: preprocess motion single features pose multi postprocess
    total.
    camera: of the depth image. region: the window of the source image that it covers.
    error: in words, what went wrong with the multi-frame network on this very frame.
    """

    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    model: Model
    reason: Reason
    timings: dict[str, float]
    camera: Camera
    stamp_ns: int
    region: Region
    error: str | None = None

    @property
    def active_model(self) -> str:
        """`multi_frame moving` or `single_frame REASON`."""
        return f"{self.model} {self.reason}"


@dataclass
class _Previous:
    """The frame before: features are filled in when they are first needed."""

    stamp_ns: int
    framed: Framed
    native: Native
    features: Features | None = None


class _PoseError(Exception):
    """The pose network's answer cannot be used; not a failure of the model."""


class DepthPipeline:
    """Depth for a sequence of frames of one camera. Not thread-safe: one thread at a time.

    bundle: a `Bundle`, or the name or path of one.
    backend, device, threads, precision: see `backends.choose_backend`; `backend_reason` tells why.
    force_model: `single_frame` or `multi_frame`, for evaluation; a forced multi-frame still falls
    back where there is no usable predecessor or pose. May be changed at any time.
    max_gap: seconds between frames beyond which the previous one is of no use.
    time_budget_ms: where the median time of multi-frame frames exceeds it, they pause.
    min_pose_ratio: a predicted translation shorter than this fraction of what the odometry's speed
    says is a pose network that has lost the motion.

    Raises BundleError, BackendError, ValueError.
    """

    def __init__(
        self,
        bundle: Bundle | str = "lite",
        backend: str = "auto",
        device: str = "auto",
        *,
        threads: int = 1,
        precision: Precision = "f32",
        force_model: Model | None = None,
        gate: GateSettings | None = None,
        scale: Scale | None = None,
        max_gap: float = 0.5,
        max_metres: float | None = None,
        time_budget_ms: float | None = None,
        min_pose_ratio: float = 0.1,
        guard: MultiFrameGuard | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.networks, self.backend_reason = compile_networks(
            self.bundle, backend, device, threads=threads, precision=precision
        )
        depth = self.bundle.manifest.depth
        self.scale: Scale = scale or FixedScale(depth.metres_per_unit, depth.metres_per_unit_source)
        self.max_metres = depth.max_metres if max_metres is None else max_metres
        self.max_gap = max_gap
        self.time_budget_ms = time_budget_ms
        self.min_pose_ratio = min_pose_ratio
        self.force_model = force_model
        self._trained = self.bundle.manifest.camera
        self._gate = MotionGate(gate)
        self._image_motion = ImageMotion()
        self._guard = guard or MultiFrameGuard()
        self._previous: _Previous | None = None

    @property
    def force_model(self) -> Model | None:
        """The model that evaluation asked for."""
        return self._force_model

    @force_model.setter
    def force_model(self, model: Model | None) -> None:
        if model not in (None, "single_frame", "multi_frame"):
            raise ValueError(
                f"force_model must be single_frame, multi_frame or None, got {model!r}"
            )
        if model == "multi_frame" and not self.networks.has_multi_frame:
            raise ValueError(f"bundle {self.bundle.manifest.name} has no multi-frame network")
        self._force_model = model

    @property
    def backend(self) -> str:
        """Backend and device in words, such as `openvino on cpu`."""
        return f"{self.networks.backend.name} on {self.networks.backend.device}"

    @property
    def motion_state(self) -> State:
        """What the motion gate thinks."""
        return self._gate.state

    @property
    def gate_settings(self) -> GateSettings:
        """Thresholds and hold times of the motion gate; may be replaced between two frames."""
        return self._gate.settings

    @gate_settings.setter
    def gate_settings(self, settings: GateSettings) -> None:
        self._gate.settings = settings

    def reset(self) -> None:
        """Forget the previous frame, the motion and all pauses, as before the first frame."""
        self._previous = None
        self._gate.reset()
        self._guard.reset()

    def warm_up(self) -> float:
        """Run every network twice on noise; the milliseconds of the second round.

        A multi-frame network that fails here is logged and will be left out when its time comes; a
        single-frame network that fails raises.
        """
        generator = np.random.default_rng(0)
        shape = (self._trained.height, self._trained.width, 3)
        backend = self.networks.backend
        elapsed = 0.0
        for _ in range(2):
            start = time.perf_counter()
            framed = frame_image(
                generator.integers(0, 256, shape, dtype=np.uint8), None, self._trained
            )
            native = backend.to_native(framed.tensor())
            inverse, _ = self.networks.single(native)
            backend.to_numpy(inverse)
            if self.networks.has_multi_frame:
                try:
                    self._rehearse(native, framed.camera, inverse)
                except Exception as error:
                    self._report_failure(error)
            elapsed = (time.perf_counter() - start) * 1e3
        return elapsed

    def _rehearse(self, native: Native, camera: Camera, inverse: Native) -> None:
        features = self.networks.features(native)
        K = self._matching_matrix(camera)
        pose = self.networks.pose(native, native)
        self.networks.align(native, native, pose, K, inverse)
        depth, _ = self.networks.multi(features, features, np.eye(4), K, inverse)
        self.networks.backend.to_numpy(depth)

    def process(
        self,
        image: NDArray[Any],
        stamp_ns: int,
        motion: Motion | None = None,
        camera: Camera | None = None,
    ) -> DepthResult:
        """Depth of one frame.

        image: (H, W, 3) uint8 RGB of any size; where its aspect ratio is not that of the network,
        its middle is used (`DepthResult.region`). stamp_ns: when it was taken. motion: the
        vehicle's at that time; without a speed, the pictures tell. camera: of the image; without
        one, the training camera's field of view is assumed.

        Raises InvalidFrameError, after which the pipeline goes on as though the frame had never
        been.
        """
        clock = Stopwatch(self.networks.backend.synchronize)
        with clock("preprocess"):
            framed = frame_image(image, camera, self._trained)
            current = _Previous(stamp_ns, framed, self.networks.backend.to_native(framed.tensor()))
        broken = self._broken_sequence(current)
        speed = motion.known_speed if motion else None
        with clock("motion"):
            self._update_gate(current, speed, broken is not None)
        with clock("single"):
            inverse, confidence = self.networks.single(current.native)
        obstacle = self._guard.obstacle()
        reason = self._single_frame_reason(broken, obstacle)
        multi: tuple[Native, Native] | None = None
        error: str | None = None
        if reason is None:
            multi, reason, error = self._try_multi_frame(current, inverse, speed, clock)
        with clock("postprocess"):
            if multi is not None:
                depth, certainty = self._metres(multi[0], framed.camera), multi[1]
            else:
                depth, certainty = self._metres(inverse, framed.camera, inverse=True), confidence
            sure = self._confidence(certainty, depth)
        self._previous = current
        timings = clock.stop()
        if multi is not None:
            self._guard.took(timings["total"], self.time_budget_ms)
        return DepthResult(
            depth=depth,
            confidence=sure,
            model="single_frame" if multi is None else "multi_frame",
            reason=reason,
            timings=timings,
            camera=framed.camera,
            stamp_ns=stamp_ns,
            region=framed.region,
            error=error,
        )

    # -- which model ---------------------------------------------------------------------------

    def _broken_sequence(self, current: _Previous) -> Reason | None:
        """Why the previous frame is of no use; None where it is."""
        previous = self._previous
        if previous is None:
            return "first_frame"
        if current.stamp_ns <= previous.stamp_ns:
            return "time_jump"
        if current.framed.source_size != previous.framed.source_size:
            return "resolution"
        if current.stamp_ns - previous.stamp_ns > self.max_gap * 1e9:
            return "gap"
        return None

    def _update_gate(self, current: _Previous, speed: float | None, broken: bool) -> None:
        flow = None
        if speed is None and self._previous is not None and not broken:
            flow = self._image_motion.measure(
                self._image_motion.prepare(self._previous.framed.pixels),
                self._image_motion.prepare(current.framed.pixels),
            )
        self._gate.update(current.stamp_ns, speed, flow)

    def _single_frame_reason(self, broken: Reason | None, obstacle: Reason | None) -> Reason | None:
        """Why multi-frame is not even tried; None where it is to be tried."""
        if self._force_model == "single_frame" or not self.networks.has_multi_frame:
            return "forced"
        if broken is not None:
            return broken
        if self._force_model == "multi_frame":
            return None
        # Unknown counts as standing: multi-frame needs motion that somebody has seen.
        if self._gate.state != "moving":
            return "stationary"
        return obstacle

    # -- multi-frame ---------------------------------------------------------------------------

    def _try_multi_frame(
        self, current: _Previous, inverse: Native, speed: float | None, clock: Stopwatch
    ) -> tuple[tuple[Native, Native] | None, Reason, str | None]:
        try:
            output = self._multi_frame(current, inverse, speed, clock)
            return output, "forced" if self._force_model else "moving", None
        except _PoseError as error:
            return None, "pose", str(error)
        except Exception as error:
            # Whatever it was, the vehicle still gets the single-frame depth.
            reason, message = self._report_failure(error)
            return None, reason, message

    def _report_failure(self, error: Exception) -> tuple[Obstacle, str]:
        reason: Obstacle = "memory" if is_out_of_memory(error) else "model_failed"
        self._guard.failed(reason)
        message = f"{type(error).__name__}: {error}"
        _log.warning("multi-frame network left out (%s): %s", reason, message)
        if reason == "memory":
            self.networks.backend.free_memory()
        return reason, message

    def _multi_frame(
        self, current: _Previous, inverse: Native, speed: float | None, clock: Stopwatch
    ) -> tuple[Native, Native]:
        previous = self._previous
        assert previous is not None
        with clock("features"):
            if previous.features is None:
                previous.features = self.networks.features(previous.native)
            current.features = self.networks.features(current.native)
        K = self._matching_matrix(current.framed.camera)
        with clock("pose"):
            pose = self.networks.pose(previous.native, current.native)
            pose = self.networks.align(previous.native, current.native, pose, K, inverse)
        self._check_pose(pose, speed, (current.stamp_ns - previous.stamp_ns) * 1e-9)
        with clock("multi"):
            return self.networks.multi(
                current.features, previous.features, inverse_pose(pose), K, inverse
            )

    def _check_pose(self, pose: NDArray[np.float64], speed: float | None, seconds: float) -> None:
        if not np.isfinite(pose).all():
            raise _PoseError("the pose network's answer is not finite")
        if speed is None or self._force_model is not None:
            return
        travelled = speed * seconds
        if travelled <= 0:
            return
        predicted = float(np.linalg.norm(pose[:3, 3])) * self.scale.metres_per_unit
        if predicted < self.min_pose_ratio * travelled:
            raise _PoseError(
                f"the pose network sees {predicted:.3f} m of motion where odometry says "
                f"{travelled:.3f} m"
            )

    def _matching_matrix(self, camera: Camera) -> NDArray[np.float64]:
        return replace(camera, fx=self._trained.fx, fy=self._trained.fy).matrix()

    # -- results -------------------------------------------------------------------------------

    def _metres(
        self, native: Native, camera: Camera, *, inverse: bool = False
    ) -> NDArray[np.float32]:
        """Network output (1, 1, h, w), depth or inverse depth in units, to metres."""
        units = self.networks.backend.to_numpy(native)[0, 0]
        factor = self.scale.metres_per_unit * focal_ratio(
            camera.fx, camera.fy, self._trained.fx, self._trained.fy
        )
        known = np.isfinite(units) & (units > 0)
        depth = np.full(units.shape, np.nan, dtype=np.float32)
        if inverse:
            np.divide(np.float32(factor), units, out=depth, where=known)
        else:
            np.multiply(np.float32(factor), units, out=depth, where=known)
        depth[depth > self.max_metres] = math.inf
        return depth

    def _confidence(self, native: Native, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """To the depth's size, within 0..1, and 0 where there is no depth."""
        values = self.networks.backend.to_numpy(native)[0, 0]
        if values.shape != depth.shape:
            size = (depth.shape[1], depth.shape[0])
            values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        sure = np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0).astype(np.float32)
        sure[np.isnan(depth)] = 0.0
        return sure
