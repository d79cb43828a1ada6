"""Factors that nobody measures on the way: a given one, and none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from depth_prior_ros.scale.state import ScaleMode, ScaleSight, ScaleStatus


@dataclass(frozen=True)
class FixedScale:
    """A factor that was fitted once, offline.

    Raises ValueError for a factor that is not finite and positive.
    """

    metres_per_unit: float
    source: str = "given"

    mode: ClassVar[ScaleMode] = "fixed"
    needs_depth: ClassVar[bool] = False
    needs_travel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.metres_per_unit) and self.metres_per_unit > 0):
            raise ValueError(
                f"metres_per_unit must be finite and positive, got {self.metres_per_unit}"
            )

    @property
    def status(self) -> ScaleStatus:
        """`fixed`, with the source as text."""
        text = f"{self.metres_per_unit:.4g} m per unit: {self.source}"
        return ScaleStatus("fixed", "fixed", self.metres_per_unit, None, 0, text)

    def observe(self, sight: ScaleSight) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""

    def store(self) -> dict[str, Any]:
        """The factor as plain data."""
        status = self.status
        return {
            "mode": status.mode,
            "state": status.state,
            "metres_per_unit": self.metres_per_unit,
            "spread": None,
            "samples": 0,
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """A given factor stays: nothing is taken up."""


class NoScale(FixedScale):
    """Nobody knows the metres: depth is relative, right up to one factor.

    The bundle's factor is applied all the same, so that range limits keep their meaning; whoever
    publishes the depth must not call it metres.
    """

    mode: ClassVar[ScaleMode] = "none"

    @property
    def status(self) -> ScaleStatus:
        """`none`."""
        text = "relative depth, right up to one unknown factor: not metres"
        return ScaleStatus("none", "none", self.metres_per_unit, None, 0, text)


def focal_ratio(fx: float, fy: float, trained_fx: float, trained_fy: float) -> float:
    """Factor for a camera whose focal length (pixels at the input size) is not the trained one.

    A network takes every image for one of the training camera. An object of a given size at
    depth z covers f/z pixels, so the depth it reads off is z * f_trained / f; the factor undoes
    that. The two axes differ only where the image was stretched: their geometric mean is taken.
    """
    return math.sqrt((fx / trained_fx) * (fy / trained_fy))
