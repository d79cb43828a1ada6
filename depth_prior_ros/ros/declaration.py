"""What is known about one parameter of the node: type, default, range, when it takes effect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

Applies = Literal["start", "reload", "activate", "frame"]

APPLIES_TEXT: dict[Applies, str] = {
    "start": "Read only.",
    "reload": "Can be changed at any time; applies when the node is configured or told to reload.",
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
    def attribute(self) -> str:
        """Its name in the settings: ``points.colour`` is ``points_colour``."""
        return self.name.replace(".", "_")

    @property
    def description(self) -> str:
        """What ``ros2 param describe`` shows."""
        choices = f" One of {', '.join(map(repr, self.choices))}." if self.choices else ""
        return f"{self.text}{choices} {APPLIES_TEXT[self.applies]}"

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
