"""What of a pipeline may be changed between two frames, checked.

A value that cannot be raises ValueError, and nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

from depth_prior_ros.pipeline.results import Model

if TYPE_CHECKING:
    from depth_prior_ros.pipeline.pipeline import DepthPipeline

TimeBudget = float | Literal["auto"] | None
"""Milliseconds; `auto`: as the camera's rate allows; None: without end."""

T = TypeVar("T")


class Setting(Generic[T]):
    """An attribute of a pipeline whose values are checked before they are taken.

    check: given the pipeline and the value; raises ValueError. None: its type checks itself.
    place: of the value, below the pipeline, such as `_step.pose_source`; by default beside the
    attribute, with an underscore.
    """

    def __init__(
        self, check: Callable[[DepthPipeline, T], object] | None = None, place: str = ""
    ) -> None:
        self._check, self._place = check, place

    def __set_name__(self, owner: type, name: str) -> None:
        part, _, self._name = (self._place or f"_{name}").rpartition(".")
        self._holder: Callable[[Any], Any] = attrgetter(part) if part else lambda owner: owner

    def __get__(self, pipeline: DepthPipeline, kind: type | None = None) -> T:
        value: T = getattr(self._holder(pipeline), self._name)
        return value

    def __set__(self, pipeline: DepthPipeline, value: T) -> None:
        if self._check is not None:
            self._check(pipeline, value)
        setattr(self._holder(pipeline), self._name, value)


def one_of(name: str, choices: object) -> Callable[[DepthPipeline, Any], None]:
    """A check that the value is one of a `Literal`'s."""
    allowed = get_args(choices)

    def check(_: DepthPipeline, value: object) -> None:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

    return check


def check_model(pipeline: DepthPipeline, model: Model | None) -> None:
    """Of a model to force: there must be a network for it."""
    if model not in (None, *get_args(Model)):
        raise ValueError(f"force_model must be single_frame, multi_frame or None, got {model!r}")
    if model == "multi_frame" and not pipeline.networks.has_multi_frame:
        raise ValueError(f"bundle {pipeline.bundle.manifest.name} has no multi-frame network")


def check_budget(pipeline: DepthPipeline, budget: TimeBudget) -> None:
    """Of a time budget; a change ends a pause for this reason."""
    if isinstance(budget, str):
        if budget != "auto":
            raise ValueError(f"time_budget_ms must be a number, auto or None, got {budget!r}")
    elif budget is not None and not budget > 0:
        raise ValueError(f"time_budget_ms must be positive, got {budget}")
    if budget != pipeline.time_budget_ms:
        pipeline.guard.end_pause("budget")


def check_ratio(_: DepthPipeline, ratio: float) -> None:
    """Of the least pose ratio."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"min_pose_ratio must lie in [0, 1], got {ratio}")


def check_metres(_: DepthPipeline, metres: float) -> None:
    """Of the way back to the frame to match with."""
    if not 0 <= metres < math.inf:
        raise ValueError(f"keyframe_metres must be finite and not negative, got {metres}")
