"""Parameters of a running node: declared to rclpy, checked when they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter

from depth_prior_ros.ros.parameters.declaration import Declaration
from depth_prior_ros.ros.parameters.settings import PARAMETERS, Settings, nearest

_BY_NAME = {declared.name: declared for declared in PARAMETERS}
_OF_EVERY_NODE = ("use_sim_time", "qos_overrides.", "start_type_description_service")


def descriptor(declared: Declaration) -> ParameterDescriptor:
    """The ROS descriptor with the range filled in."""
    made = ParameterDescriptor()
    made.name = declared.name
    made.description = declared.description
    made.read_only = declared.applies == "start"
    if declared.limits is not None:
        low, high = declared.limits
        if declared.kind is int:
            made.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        else:
            made.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return made


def declare(node: LifecycleNode) -> Settings:
    """Declare every parameter on ``node`` and read what files and command line set.

    Raises:
        ValueError: for values that are wrong or do not fit together.
        rclpy.exceptions.ParameterException: for a value of the wrong type or out of range.
    """
    given: dict[str, Parameter] = getattr(node, "_parameter_overrides", {})
    for declared in PARAMETERS:
        said = given.get(declared.name)
        integer = said is not None and _is_integer_for_float(said)
        value = float(said.value) if said is not None and integer else declared.default
        node.declare_parameter(declared.name, value, descriptor(declared), ignore_override=integer)
    return Settings.from_values(current_values(node))


def as_declared(parameters: Iterable[Parameter]) -> list[Parameter]:
    """The parameters with integers as floats where floats are declared; rclpy would refuse them."""
    return [
        Parameter(p.name, value=float(p.value)) if _is_integer_for_float(p) else p
        for p in parameters
    ]


def unknown(names: Iterable[str]) -> list[str]:
    """A warning for each name that no parameter has; ROS would ignore it silently.

    Args:
        names: of what parameter files and command line set for the node.
    """
    return [
        f"there is no parameter {name}, it is ignored{nearest(name)}"
        for name in names
        if name not in _BY_NAME and not name.startswith(_OF_EVERY_NODE)
    ]


def current_values(node: LifecycleNode) -> dict[str, Any]:
    """Every declared value by name."""
    return {declared.name: node.get_parameter(declared.name).value for declared in PARAMETERS}


def changed(
    values: Mapping[str, Any], changes: Iterable[Parameter], state: str
) -> tuple[Settings | None, SetParametersResult]:
    """Check a request to change parameters while the node is in lifecycle ``state``.

    Args:
        values: the values as they are.
        changes: what was asked for; names that are not ours (``use_sim_time``) are let through.
        state: ``unconfigured``, ``inactive`` or ``active``.

    Returns:
        The new settings (None when refused), and what to answer.
    """
    merged = dict(values)
    for parameter in changes:
        declared = _BY_NAME.get(parameter.name)
        if declared is None:
            continue
        if declared.applies == "activate" and state == "active":
            reason = f"{declared.name} is read when the node is activated: deactivate first"
            return None, SetParametersResult(successful=False, reason=reason)
        merged[parameter.name] = parameter.value
    try:
        return Settings.from_values(merged), SetParametersResult(successful=True)
    except ValueError as error:
        return None, SetParametersResult(successful=False, reason=str(error))


def _is_integer_for_float(parameter: Parameter) -> bool:
    declared = _BY_NAME.get(parameter.name)
    return (
        declared is not None
        and declared.kind is float
        and parameter.type_ == Parameter.Type.INTEGER
    )
