"""The node's parameters: declared, read into :class:`Settings`, judged when they change.

:data:`PARAMETERS` is the one place that knows them. The node declares from it, tests compare
``config/depth.yaml`` and the documents with it, and :class:`Settings` is what the rest of the node
reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

from depth_prior_ros.motion.gate import GateSettings
from depth_prior_ros.pipeline.results import parse_output_size
from depth_prior_ros.ros import parameters_depth as depth
from depth_prior_ros.ros import parameters_node as node_
from depth_prior_ros.ros.declaration import Applies, Declaration
from depth_prior_ros.ros.output_settings import OutputSettings

__all__ = ["PARAMETERS", "Applies", "Declaration", "Settings", "changed", "declare", "unknown"]

PARAMETERS: tuple[Declaration, ...] = (
    *depth.MODEL,
    *depth.CAMERA,
    *depth.SCALE,
    *depth.MOTION,
    *depth.MOUNT,
    *node_.INPUT,
    *node_.OUTPUT,
    *node_.OPERATION,
)

_BY_NAME = {declaration.name: declaration for declaration in PARAMETERS}
_OF_EVERY_NODE = ("use_sim_time", "qos_overrides.", "start_type_description_service")


@dataclass(frozen=True)
class Settings:
    """The parameters' values, validated together.

    One attribute per parameter, with ``_`` for ``.``; the thresholds of motion are in ``gate``,
    what concerns single outputs in ``outputs``.
    """

    bundle: str
    backend: str
    device: str
    threads: int
    precision: str
    backend_fallback: bool
    force_model: str
    max_depth_m: float
    time_budget: float
    failure_pause: int
    output_size: str
    rectify: str
    fit: str
    scale_mode: str
    scale_metres_per_unit: float
    scale_camera_height: float
    scale_camera_pitch_deg: float
    scale_ignore_bottom: float
    scale_window: float
    scale_rate: float
    scale_limit: float
    scale_file: str
    motion_source: str
    motion_pose_source: str
    motion_min_pose_ratio: float
    max_gap: float
    gate: GateSettings
    odometry_max_age: float
    mount_x: float
    mount_y: float
    mount_z: float
    mount_roll: float
    mount_pitch: float
    mount_yaw: float
    image_transport: str
    sync_wait: float
    image_reliability: str
    odom_reliability: str
    outputs: OutputSettings
    snapshot_folder: str
    diagnostics_period: float
    autostart: bool

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """Check every value and how they fit together.

        Args:
            values: of every parameter, by its name.

        Raises:
            ValueError: saying which value is wrong and what would be right.
        """
        for declaration in PARAMETERS:
            if problem := declaration.problem(values[declaration.name]):
                raise ValueError(problem)
        _check_device(values["device"])
        _check_time_budget(values["time_budget"])
        _check_scale(values)
        parse_output_size(values["output_size"])
        plain = {
            declaration.attribute: values[declaration.name]
            for declaration in PARAMETERS
            if declaration.attribute in cls.__annotations__
        }
        return cls(gate=_gate(values), outputs=OutputSettings.from_values(values), **plain)


def _gate(values: Mapping[str, Any]) -> GateSettings:
    names = ("start_speed", "stop_speed", "start_flow", "stop_flow", "hold_start", "hold_stop")
    motion = {name: values[f"motion.{name}"] for name in names}
    # The gate must outlive every hold time and every gap that the networks bear.
    longest = values["max_gap"] + max(motion["hold_start"], motion["hold_stop"])
    return GateSettings(max_gap=max(depth.GATE.max_gap, longest), **motion)


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    plain = device in ("auto", "cpu", "cuda")
    if not plain and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}")


def _check_time_budget(seconds: float) -> None:
    if seconds < 0 and seconds != -1.0:
        raise ValueError(f"time_budget must be -1, 0 or a number of seconds, not {seconds}")


def _check_scale(values: Mapping[str, Any]) -> None:
    if values["scale.mode"] == "camera_height" and values["scale.camera_height"] <= 0:
        raise ValueError("scale.mode 'camera_height' needs scale.camera_height in metres")
    if values["scale.mode"] == "odometry" and values["motion.source"] == "image":
        raise ValueError("scale.mode 'odometry' needs another motion.source than 'image'")


def declare(node: LifecycleNode) -> Settings:
    """Declare every parameter on ``node`` and read what files and command line set.

    Raises:
        ValueError: for values that are wrong or do not fit together.
        rclpy.exceptions.ParameterException: for a value of the wrong type or out of range.
    """
    for declaration in PARAMETERS:
        node.declare_parameter(declaration.name, declaration.default, declaration.descriptor())
    return Settings.from_values(current_values(node))


def unknown(names: Iterable[str]) -> list[str]:
    """A warning for each name that the node has no parameter of; ROS would ignore it silently.

    Args:
        names: of what parameter files and command line set for the node.
    """
    remarks = []
    for name in names:
        if name in _BY_NAME or name.startswith(_OF_EVERY_NODE):
            continue
        close = get_close_matches(name, _BY_NAME, n=1)
        meant = f"; is {close[0]} meant?" if close else ""
        remarks.append(f"there is no parameter {name}, it is ignored{meant}")
    return remarks


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
        if declaration.applies == "activate" and state == "active":
            reason = f"{declaration.name} is read when the node is activated: deactivate first"
            return None, SetParametersResult(successful=False, reason=reason)
        merged[parameter.name] = parameter.value
    try:
        return Settings.from_values(merged), SetParametersResult(successful=True)
    except ValueError as error:
        return None, SetParametersResult(successful=False, reason=str(error))
