"""What a scale is told about a frame, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera

ScaleMode = Literal["fixed", "camera_height", "odometry", "none"]
ScaleState = Literal["fixed", "searching", "measured", "held", "none"]

SCALE_MODES: tuple[ScaleMode, ...] = ("fixed", "camera_height", "odometry", "none")


@dataclass(frozen=True)
class ScaleSight:
    """What one frame tells about the factor from network units to metres.

    stamp_ns: of the frame.
    inverse_units: (h, w) float32 inverse depth of the frame in 1/units at the network's input size,
        corrected for the camera's focal length (see `focal_ratio`), without any metric factor; not
        finite or not positive where unknown. None where `Scale.needs_depth` is false.
    camera: of `inverse_units`.
    moving: whether the vehicle moves; while it stands nothing is measured.
    units_travelled: length of the camera's translation since the previous frame as the networks see
        it, in units, focal-corrected as the depth is. None where it was not estimated.
    metres_travelled: the same step as odometry measured it.
    seconds: since the previous frame; None where there is none, or its stamp is not an earlier one.
    radians_turned: how far the vehicle turned in the step, of either sign, where known.
    """

    stamp_ns: int
    inverse_units: NDArray[np.floating] | None
    camera: Camera
    moving: bool
    units_travelled: float | None = None
    metres_travelled: float | None = None
    seconds: float | None = None
    radians_turned: float | None = None


@dataclass(frozen=True)
class ScaleStatus:
    """What is known about the factor.

    mode: how it is found. state: `fixed` (given), `searching` (measurements are too few, or the
    published factor is still on its way to them), `measured` (it follows them), `held` (measured
    before, nothing new to measure: the vehicle stands, or sees no road), `none` (nobody knows it).
    metres_per_unit: the factor in use.
    spread: how far single measurements lie apart, as a relative standard deviation (robust);
    None where nothing was measured.
    samples: measurements that the factor rests on.
    text: the same in words, with the reason while nothing can be measured.
    """

    mode: ScaleMode
    state: ScaleState
    metres_per_unit: float
    spread: float | None
    samples: int
    text: str


class Scale(Protocol):
    """Where the pipeline gets the metric factor from. May be asked from any thread."""

    @property
    def metres_per_unit(self) -> float:
        """Metres per network unit, for the training camera's focal length."""

    @property
    def source(self) -> str:
        """In words, where the factor comes from."""

    @property
    def status(self) -> ScaleStatus:
        """Mode, state, factor and spread of this moment."""

    @property
    def needs_depth(self) -> bool:
        """Whether `observe` reads `ScaleSight.inverse_units`."""

    @property
    def needs_travel(self) -> bool:
        """Whether `observe` reads `ScaleSight.units_travelled` and `metres_travelled`."""

    def observe(self, sight: ScaleSight) -> None:
        """Learn from a frame. Never raises for bad values: those are left out."""

    def reset(self) -> None:
        """Begin anew with the factor that was given at the start."""

    def store(self) -> dict[str, Any]:
        """The factor as plain data, for `restore` and `save_scale`."""

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor.

        Raises ValueError for what `store` cannot have written.
        """
