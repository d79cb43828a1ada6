"""What of a pipeline may be changed between two frames, checked."""

from __future__ import annotations

from typing import Literal

from depth_prior_ros.bundle import Bundle
from depth_prior_ros.motion.gate import GateSettings, MotionGate
from depth_prior_ros.pipeline.framing import Fit
from depth_prior_ros.pipeline.guard import MultiFrameGuard
from depth_prior_ros.pipeline.keyframes import Keyframes
from depth_prior_ros.pipeline.multi_frame_step import POSE_CHOICES, MultiFrameStep, PoseChoice
from depth_prior_ros.pipeline.results import Model, OutputSize, check_output_size
from depth_prior_ros.pipeline.runtime import Networks

TimeBudget = float | Literal["auto"] | None
"""Milliseconds; `auto`: as the camera's rate allows; None: without end."""


class PipelineSettings:
    """The settings of a `DepthPipeline` that are more than a number, as properties.

    A value that cannot be raises ValueError, and nothing changes.
    """

    bundle: Bundle
    networks: Networks
    guard: MultiFrameGuard
    _gate: MotionGate
    _step: MultiFrameStep
    _keyframes: Keyframes
    _force_model: Model | None = None
    _budget: TimeBudget = None
    _output_size: OutputSize = "model"
    _fit: Fit = "crop"

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
    def gate_settings(self) -> GateSettings:
        """Thresholds and hold times of the motion gate."""
        return self._gate.settings

    @gate_settings.setter
    def gate_settings(self, settings: GateSettings) -> None:
        self._gate.settings = settings

    @property
    def time_budget_ms(self) -> TimeBudget:
        """Milliseconds that a frame may take; a change ends a pause for this reason."""
        return self._budget

    @time_budget_ms.setter
    def time_budget_ms(self, budget: TimeBudget) -> None:
        if isinstance(budget, str):
            if budget != "auto":
                raise ValueError(f"time_budget_ms must be a number, auto or None, got {budget!r}")
        elif budget is not None and not budget > 0:
            raise ValueError(f"time_budget_ms must be positive, got {budget}")
        if budget != self._budget:
            self.guard.end_pause("budget")
        self._budget = budget

    @property
    def pose_source(self) -> PoseChoice:
        """Where the multi-frame network has its motion from: `auto`, `network`, `odometry`."""
        return self._step.pose_source

    @pose_source.setter
    def pose_source(self, source: PoseChoice) -> None:
        if source not in POSE_CHOICES:
            raise ValueError(f"pose_source must be one of {POSE_CHOICES}, got {source!r}")
        self._step.pose_source = source

    @property
    def min_pose_ratio(self) -> float:
        """Share of odometry's motion below which the pose network has lost it."""
        return self._step.min_pose_ratio

    @min_pose_ratio.setter
    def min_pose_ratio(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"min_pose_ratio must lie in [0, 1], got {ratio}")
        self._step.min_pose_ratio = ratio

    @property
    def keyframe_metres(self) -> float:
        """How far back the frame to match with lies; 0: the previous one."""
        return self._keyframes.metres

    @keyframe_metres.setter
    def keyframe_metres(self, metres: float) -> None:
        if not 0 <= metres < float("inf"):
            raise ValueError(f"keyframe_metres must be finite and not negative, got {metres}")
        self._keyframes.metres = metres

    @property
    def output_size(self) -> OutputSize:
        """Of the depth image: `model`, `input`, or (width, height)."""
        return self._output_size

    @output_size.setter
    def output_size(self, size: OutputSize) -> None:
        self._output_size = check_output_size(size)

    @property
    def fit(self) -> Fit:
        """What is done about another aspect ratio: `crop` or `pad`."""
        return self._fit

    @fit.setter
    def fit(self, fit: Fit) -> None:
        if fit not in ("crop", "pad"):
            raise ValueError(f"fit must be crop or pad, got {fit!r}")
        self._fit = fit
