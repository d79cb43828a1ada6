"""From network units to metres.

A network trained on one camera's video knows depth up to a factor. `Scale` is what the pipeline
asks for that factor; so far there is the fixed factor that a bundle carries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Scale(Protocol):
    """Where the pipeline gets the metric factor from."""

    @property
    def metres_per_unit(self) -> float:
        """Metres per network unit, for the training camera's focal length."""

    @property
    def source(self) -> str:
        """In words, where the factor comes from."""


@dataclass(frozen=True)
class FixedScale:
    """A factor that was fitted once, offline.

    Raises ValueError for a factor that is not finite and positive.
    """

    metres_per_unit: float
    source: str = "given"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.metres_per_unit) and self.metres_per_unit > 0):
            raise ValueError(
                f"metres_per_unit must be finite and positive, got {self.metres_per_unit}"
            )


def focal_ratio(fx: float, fy: float, trained_fx: float, trained_fy: float) -> float:
    """Factor for a camera whose focal length (pixels at the input size) is not the trained one.

    A network takes every image for one of the training camera. An object of a given size at
    depth z covers f/z pixels, so the depth it reads off is z * f_trained / f; the factor undoes
    that. The two axes differ only where the image was stretched: their geometric mean is taken.
    """
    return math.sqrt((fx / trained_fx) * (fy / trained_fy))
