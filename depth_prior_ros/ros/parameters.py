"""Every parameter of the node: type, default, description, range, when a change takes effect.

:data:`PARAMETERS` is the one place that knows them. The node declares from it, a test compares
``config/depth.yaml`` with it, and :class:`Settings` is what the rest of the node reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

from depth_prior_ros.motion import GateSettings

Applies = Literal["start", "configure", "activate", "frame"]

RELIABILITY = ("best_effort", "reliable")

_GATE = GateSettings()
_APPLIES_TEXT = {
    "start": "Read only.",
    "configure": "Can be changed while the node is unconfigured.",
    "activate": "Can be changed while the node is not active.",
    "frame": "Can be changed at any time; applies between two frames.",
}


@dataclass(frozen=True)
class Declaration:
    """One parameter.

    Attributes:
        name: as in the parameter file.
        default: its type is the parameter's type.
        text: what it does, with its unit.
        applies: when a change is taken up.
        low, high: inclusive limits of a number, None where there is none.
        choices: the allowed strings, empty where any will do.
    """

    name: str
    default: bool | int | float | str
    text: str
    applies: Applies = "frame"
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What ``ros2 param describe`` shows."""
        choices = f" One of {', '.join(map(repr, self.choices))}." if self.choices else ""
        return f"{self.text}{choices} {_APPLIES_TEXT[self.applies]}"

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor with the range filled in."""
        descriptor = ParameterDescriptor()
        descriptor.name = self.name
        descriptor.description = self.description
        descriptor.read_only = self.applies == "start"
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                limits = IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)
                descriptor.integer_range = [limits]
            else:
                span = FloatingPointRange(from_value=self.low, to_value=self.high, step=0.0)
                descriptor.floating_point_range = [span]
        return descriptor

    def problem(self, value: Any) -> str:
        """Why ``value`` is refused; empty when it is fine."""
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(map(repr, self.choices))}, not {value!r}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name} must be a finite number, not {value}"
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            return f"{self.name} must lie between {self.low:g} and {self.high:g}, not {value}"
        return ""


PARAMETERS: tuple[Declaration, ...] = (
    Declaration(
        "bundle", "lite", "Trained system: the name of a shipped bundle or a path.", "configure"
    ),
    Declaration(
        "backend",
        "auto",
        "What runs the networks. 'auto': torch on CUDA, otherwise openvino, otherwise torch.",
        "configure",
        choices=("auto", "torch", "openvino", "onnxruntime"),
    ),
    Declaration(
        "device", "auto", "Where they run: 'auto', 'cpu', 'cuda' or 'cuda:N'.", "configure"
    ),
    Declaration(
        "threads",
        1,
        "Threads for inference on a CPU. One is the safe choice beside other nodes: on cores that "
        "others use too, more threads wait for each other.",
        "configure",
        low=1,
        high=256,
    ),
    Declaration(
        "precision",
        "f32",
        "Arithmetic of the networks; 'bf16' only with openvino.",
        "configure",
        choices=("f32", "bf16"),
    ),
    Declaration(
        "force_model",
        "",
        "Which network to use whatever the motion; empty: by motion.",
        choices=("", "single_frame", "multi_frame"),
    ),
    Declaration(
        "max_depth_m",
        0.0,
        "Depth in metres beyond which pixels become +Inf; 0: as the bundle says.",
        low=0.0,
        high=10_000.0,
    ),
    Declaration(
        "time_budget",
        0.0,
        "Seconds that a frame may take before the multi-frame network is given up; 0: no limit.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "motion.start_speed",
        _GATE.start_speed,
        "Speed in m/s above which a standing vehicle counts as moving.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.stop_speed",
        _GATE.stop_speed,
        "Speed in m/s below which a moving vehicle counts as stationary; at most start_speed.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.start_flow",
        _GATE.start_flow,
        "Without odometry: image motion, in pixels of a 160x48 picture, above which a standing "
        "vehicle counts as moving.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.stop_flow",
        _GATE.stop_flow,
        "Without odometry: image motion below which a moving vehicle counts as stationary; at "
        "most start_flow.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.hold_start",
        _GATE.hold_start,
        "Seconds for which a standing vehicle must be above the start threshold.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "motion.hold_stop",
        _GATE.hold_stop,
        "Seconds for which a moving vehicle must be below the stop threshold.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "max_gap",
        0.5,
        "Seconds between two frames beyond which the earlier one is of no use to the multi-frame "
        "network.",
        low=0.001,
        high=3600.0,
    ),
    Declaration(
        "odometry_max_age",
        0.5,
        "Seconds between an image and its nearest odometry beyond which image motion is used.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "sync_wait",
        0.02,
        "Seconds that an image waits for odometry and camera_info with its stamp. Topics are not "
        "ordered among each other; a lockstep replay sets this to seconds.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "image_reliability",
        "best_effort",
        "QoS of the subscriptions to image and camera_info. 'best_effort' fits every publisher, "
        "'reliable' needs a reliable one and then loses nothing on the way.",
        "activate",
        choices=RELIABILITY,
    ),
    Declaration(
        "odom_reliability",
        "best_effort",
        "QoS of the subscription to odom, as image_reliability.",
        "activate",
        choices=RELIABILITY,
    ),
    Declaration(
        "diagnostics_period",
        1.0,
        "Seconds between two messages on /diagnostics.",
        "start",
        low=0.05,
        high=60.0,
    ),
    Declaration(
        "autostart",
        True,
        "Configure and activate by itself after the start.",
        "start",
    ),
)

_BY_NAME = {declaration.name: declaration for declaration in PARAMETERS}


@dataclass(frozen=True)
class Settings:
    """The parameters' values, validated together; attributes as in :data:`PARAMETERS`."""

    bundle: str
    backend: str
    device: str
    threads: int
    precision: str
    force_model: str
    max_depth_m: float
    time_budget: float
    max_gap: float
    gate: GateSettings
    odometry_max_age: float
    sync_wait: float
    image_reliability: str
    odom_reliability: str
    diagnostics_period: float
    autostart: bool

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """Check every value and how they fit together.

        Raises:
            ValueError: saying which value is wrong and what would be right.
        """
        for declaration in PARAMETERS:
            if problem := declaration.problem(values[declaration.name]):
                raise ValueError(problem)
        _check_device(values["device"])
        plain = {name: value for name, value in values.items() if name in cls.__annotations__}
        return cls(gate=_gate(values), **plain)


def _gate(values: Mapping[str, Any]) -> GateSettings:
    names = ("start_speed", "stop_speed", "start_flow", "stop_flow", "hold_start", "hold_stop")
    motion = {name: values[f"motion.{name}"] for name in names}
    # The gate must outlive every hold time and every gap that the networks bear.
    longest = values["max_gap"] + max(motion["hold_start"], motion["hold_stop"])
    return GateSettings(max_gap=max(_GATE.max_gap, longest), **motion)


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    plain = device in ("auto", "cpu", "cuda")
    if not plain and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}")


def declare(node: LifecycleNode) -> Settings:
    """Declare every parameter on ``node`` and read what files and command line set.

    Raises:
        ValueError: for values that are wrong or do not fit together.
        rclpy.exceptions.ParameterException: for a value of the wrong type or out of range.
    """
    for declaration in PARAMETERS:
        node.declare_parameter(declaration.name, declaration.default, declaration.descriptor())
    return Settings.from_values(current_values(node))


def current_values(node: LifecycleNode) -> dict[str, Any]:
    """Every declared value by name."""
    return {d.name: node.get_parameter(d.name).value for d in PARAMETERS}


def changed(
    values: Mapping[str, Any], changes: Iterable[Parameter], state: str
) -> tuple[Settings | None, SetParametersResult]:
    """Judge a request to change parameters while the node is in lifecycle ``state``.

    Args:
        values: the values as they are.
        changes: what was asked for; names that are not ours (``use_sim_time``) are let through.
        state: ``unconfigured``, ``inactive`` or ``active``.

    Returns:
        The new settings (None when refused), and what to answer.
    """
    merged = dict(values)
    for parameter in changes:
        declaration = _BY_NAME.get(parameter.name)
        if declaration is None:
            continue
        if reason := _too_late(declaration, state):
            return None, SetParametersResult(successful=False, reason=reason)
        merged[parameter.name] = parameter.value
    try:
        return Settings.from_values(merged), SetParametersResult(successful=True)
    except ValueError as error:
        return None, SetParametersResult(successful=False, reason=str(error))


def _too_late(declaration: Declaration, state: str) -> str:
    if declaration.applies == "configure" and state != "unconfigured":
        return (
            f"{declaration.name} is read when the node is configured, and the node is {state}: "
            f"{'deactivate and ' if state == 'active' else ''}clean up first"
        )
    if declaration.applies == "activate" and state == "active":
        return f"{declaration.name} is read when the node is activated: deactivate first"
    return ""
