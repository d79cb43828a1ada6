"""What the place of a camera on its vehicle says about the road below it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.scale.road import Road, RoadSettings

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MountedCamera:
    """A camera over the road.

    height: metres from the road to the camera. pitch, roll: radians by which it looks down and by
    which the road's normal is turned about its optical axis.
    """

    height: float
    pitch: float
    roll: float

    @classmethod
    def of(cls, base_from_optical: _Floats, base_height: float = 0.0) -> MountedCamera:
        """From its place (4, 4) in a frame with z up whose origin is `base_height` above the road.

        Raises ValueError for a camera at or below the road, or one that looks up or down, or is
        turned about its axis, by 45 degrees or more: it does not see the road in front of it.
        """
        height = float(base_from_optical[2, 3]) + base_height
        down = -base_from_optical[2, :3]  # in the optical frame
        pitch, roll = math.asin(np.clip(down[2], -1, 1)), math.atan2(down[0], down[1])
        if not height > 0:
            raise ValueError(f"the camera lies {height:.2f} m above the road")
        if max(abs(pitch), abs(roll)) >= math.pi / 4:
            raise ValueError(
                f"the camera looks down by {math.degrees(pitch):.0f} degrees and is turned by "
                f"{math.degrees(roll):.0f} about its axis: it does not see the road ahead"
            )
        return cls(height, pitch, roll)

    def road(self, settings: RoadSettings) -> RoadSettings:
        """Where such a camera looks for the road."""
        return replace(settings, pitch=self.pitch, roll=self.roll)

    def __str__(self) -> str:
        """Height, pitch and roll in words."""
        pitch, roll = math.degrees(self.pitch), math.degrees(self.roll)
        return f"{self.height:.2f} m above the road, pitch {pitch:.1f}, roll {roll:.1f} degrees"


def plane_in_base(road: Road, base_from_optical: _Floats) -> tuple[float, float, float, float]:
    """The road (metres) as a x + b y + c z + d = 0 in the base frame, its unit normal upwards."""
    down = base_from_optical[:3, :3] @ road.normal
    d = road.height + float(down @ base_from_optical[:3, 3])
    a, b, c = (-float(v) for v in down)
    return a, b, c, d
