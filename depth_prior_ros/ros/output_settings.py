"""What can be set of the node's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class OutputSettings:
    """Settings of the topics that are made on demand; a field `a_b` is the parameter `a.b`.

    Attributes:
        points_colour: `depth/points` carries the camera's colours.
        points_organized: it keeps the image's rows and columns, NaN where there is no depth.
        points_stride: every n-th column and row is taken.
        points_max_depth_m: no point beyond it; 0: wherever depth is finite.
        points_min_confidence: no point below it, in [0, 1].
        colour_min_depth_m, colour_max_depth_m: ends of the colour scale.
        compressed_depth_max_depth_m: beyond it `compressedDepth` has no depth.
        compressed_depth_quantization: at depth z its values are z * z / (q * (q + 1)) m apart.
        compressed_depth_png_level: 0 (fast) to 9 (small).

    Raises:
        ValueError: values that make no sense together or are out of range, by parameter name.
    """

    points_colour: bool = True
    points_organized: bool = False
    points_stride: int = 1
    points_max_depth_m: float = 0.0
    points_min_confidence: float = 0.0
    colour_min_depth_m: float = 2.0
    colour_max_depth_m: float = 80.0
    compressed_depth_max_depth_m: float = 100.0
    compressed_depth_quantization: float = 100.0
    compressed_depth_png_level: int = 1

    def __post_init__(self) -> None:
        if self.colour_min_depth_m <= 0 or self.colour_max_depth_m <= self.colour_min_depth_m:
            raise ValueError(
                f"colour.max_depth_m ({self.colour_max_depth_m:g}) must be above "
                f"colour.min_depth_m ({self.colour_min_depth_m:g}), and that above 0"
            )
        if self.points_stride < 1:
            raise ValueError(f"points.stride must be at least 1, not {self.points_stride}")
        if self.compressed_depth_max_depth_m <= 0 or self.compressed_depth_quantization <= 0:
            raise ValueError(
                "compressed_depth.max_depth_m and compressed_depth.quantization must be positive"
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> OutputSettings:
        """From parameter values by name, such as `points.colour`; others are left alone.

        Raises:
            ValueError: as the class.
            KeyError: a parameter is missing.
        """
        return cls(**{field.name: values[parameter_name(field.name)] for field in fields(cls)})

    @property
    def needs_confidence_for_points(self) -> bool:
        """Whether points are left out by confidence."""
        return self.points_min_confidence > 0


def parameter_name(field: str) -> str:
    """The parameter of a field: its group, a point, the rest."""
    for group in ("compressed_depth", "points", "colour"):
        if field.startswith(group + "_"):
            return f"{group}.{field[len(group) + 1 :]}"
    raise ValueError(f"{field} belongs to no group of parameters")
