"""The declaration of one parameter, as the default of a dataclass field."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Applies = Literal["start", "reload", "activate", "frame"]
Value = bool | int | float | str
T = TypeVar("T", bool, int, float, str)

APPLIES_TEXT: dict[Applies, str] = {
    "start": "Read only.",
    "reload": "Can be changed at any time; applies when the node is configured or told to reload.",
    "activate": "Can be changed while the node is not active.",
    "frame": "Can be changed at any time; applies between two frames.",
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Declaration:
    """One parameter.

    Attributes:
        attribute: its name in the settings, such as ``points_colour``.
        name: its name for ROS, such as ``points.colour``.
        default: its type is the parameter's type.
        text: what it does.
        applies: when a change is taken up.
        limits: inclusive limits of a number; None where there are none.
        unit: of a number; empty where it has none.
        choices: the allowed strings; empty where any will do.
        pipeline: attribute of the pipeline that is set to the value as it is, between two frames;
            empty: others read it.
        section: title of the part of docs/parameters.md that it begins; empty: it continues one.
    """

    attribute: str
    name: str
    default: Value
    text: str
    applies: Applies
    limits: tuple[float, float] | None
    unit: str
    choices: tuple[str, ...]
    pipeline: str
    section: str

    @property
    def kind(self) -> type:
        """bool, int, float or str."""
        return type(self.default)

    @property
    def description(self) -> str:
        """What ``ros2 param describe`` shows."""
        unit = f" Unit: {self.unit}." if self.unit else ""
        choices = f" One of {', '.join(map(repr, self.choices))}." if self.choices else ""
        return f"{self.text}{unit}{choices} {APPLIES_TEXT[self.applies]}"

    def check(self, value: Any) -> Value:
        """The value in the declared type: an integer is taken for a float.

        Raises:
            ValueError: for a value of another type, not finite, or out of range.
        """
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind or not isinstance(value, Value):
            raise ValueError(f"{self.name} must be {_KINDS[self.kind]}, not {value!r}")
        if self.choices and value not in self.choices:
            allowed = ", ".join(map(repr, self.choices))
            raise ValueError(f"{self.name} must be one of {allowed}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{self.name} must be a finite number, not {value}")
        if self.limits is None or isinstance(value, str):
            return value
        low, high = self.limits
        if not low <= value <= high:
            raise ValueError(f"{self.name} must lie between {low:g} and {high:g}, not {value}")
        return value

    def parse(self, text: str) -> Value:
        """The value that somebody typed.

        Raises:
            ValueError: as :meth:`check`.
        """
        value: Value = text
        if self.kind is bool:
            value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        elif self.kind is not str:
            with suppress(ValueError):  # the text itself is refused below
                value = self.kind(text)
        return self.check(value)


def parameter(
    default: T,
    text: str,
    applies: Applies = "frame",
    *,
    limits: tuple[float, float] | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    pipeline: str = "",
    section: str = "",
) -> Any:
    """A dataclass field that declares a parameter; see :class:`Declaration`.

    ``choices`` need not be said where the field's type is a ``Literal``.
    """
    known = {
        "text": text,
        "applies": applies,
        "limits": limits,
        "unit": unit,
        "choices": choices,
        "pipeline": pipeline,
        "section": section,
    }
    return field(default=default, metadata=known)


def declarations(settings: type, groups: tuple[str, ...]) -> tuple[Declaration, ...]:
    """The declarations of a dataclass, in its order.

    Args:
        settings: all of whose fields are :func:`parameter`.
        groups: the field ``points_colour`` is the parameter ``points.colour`` where ``points`` is
            one of them.
    """
    found = []
    hints = get_type_hints(settings)
    for item in fields(settings):
        known = dict(item.metadata)
        if get_origin(hints[item.name]) is Literal:
            known["choices"] = get_args(hints[item.name])
        group = next((g for g in groups if item.name.startswith(f"{g}_")), "")
        name = f"{group}.{item.name[len(group) + 1 :]}" if group else item.name
        default: Any = item.default
        found.append(Declaration(attribute=item.name, name=name, default=default, **known))
    return tuple(found)
