"""Settings of the prior fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

TAPS = (4, 8, 16, 32)
DEPTH_INPUTS = ("log", "inverse", "none")


@dataclass(frozen=True)
class FusionConfig:
    """Settings of the prior fusion; the paper names none of them, so none is fixed.

    Attributes:
        tap: stride of the student's features that are fused: 4, 8, 16 or 32. Default 16: at 25,000
            references and 640x192 an attention costs 1.5 GMAC there, 6.1 at 8 and 24.6 at 4, and
            the whole DIFFNet 11.8.
        reference_channels: channels of the prior's features, which its teacher decides.
        width: channels of queries and keys, and of the depth-hint branch. Default 64: about what
            the taps of a W18 have, and more than the 32 channels of the PADS teacher.
        heads: heads of the depth-hint attention; divides `width`. Default 4: every head takes as
            many exponentials as the whole pixel-wise branch.
        depth_input: what the convolution sees of the reference inverse depth D_c: its logarithm
            ("log", default: near and far weigh alike), itself ("inverse"), or nothing ("none").
        temperature: what the scores of the pixel-wise branch are divided by, besides sqrt(width);
            below one the affinity is sharper. Default 1, the scaling of every attention. If it is
            learned this is where it starts.
        learn_temperature: whether it is learned. Default: yes; how sharply to look up depends on
            how many references there are, and training sees fewer than the whole set.
        pixel_wise, depth_hint: use this branch; off for ablations. One of the two must be on.
        normalise: bring the features of every reference pixel to mean zero and variance one, so
            that none is looked up for the length of its features alone.
        blend: mix the looked-up depth D_c into the student's output, too, by a weight that is
            learned for every pixel and begins with this value; 0: not at all. The paper lets D_c
            in through the features alone; there a student may learn to ignore it, and another
            prior changes nothing. Needs `pixel_wise`.
        activation: behind the first convolution: "relu", which may die and leave the prior
            ignored, or "elu", which cannot.
    """

    tap: int = 16
    reference_channels: int = 32
    width: int = 64
    heads: int = 4
    depth_input: str = "log"
    temperature: float = 1.0
    learn_temperature: bool = True
    pixel_wise: bool = True
    depth_hint: bool = True
    normalise: bool = False
    activation: str = "relu"
    blend: float = 0.0

    def __post_init__(self) -> None:
        if self.tap not in TAPS:
            raise ValueError(f"fusion tap {self.tap}: must be 4, 8, 16 or 32")
        if min(self.reference_channels, self.width, self.heads) < 1:
            raise ValueError("fusion reference_channels, width and heads must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"fusion width {self.width} is no multiple of {self.heads} heads")
        if self.depth_input not in DEPTH_INPUTS:
            raise ValueError(
                f"fusion depth_input {self.depth_input!r}: must be one of {', '.join(DEPTH_INPUTS)}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"fusion temperature {self.temperature}: must be positive")
        if self.activation not in ("relu", "elu"):
            raise ValueError(f"fusion activation {self.activation!r}: must be relu or elu")
        if not (self.pixel_wise or self.depth_hint):
            raise ValueError("fusion with neither pixel_wise nor depth_hint: switch one on")
        if not 0 <= self.blend < 1:
            raise ValueError(f"fusion blend {self.blend}: must be at least 0 and below 1")
        if self.blend and not self.pixel_wise:
            raise ValueError("fusion blend mixes in the depth of the pixel_wise branch: it is off")

    @property
    def feeds_depth(self) -> bool:
        """Whether the convolution sees the reference depth."""
        return self.pixel_wise and self.depth_input != "none"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """Build from a mapping; an unknown key is a ValueError."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown fusion settings: {unknown}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` takes."""
        return asdict(self)
