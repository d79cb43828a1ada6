"""What the tests of the pipeline share: pictures of a tiny camera that moves, and motions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from helpers import METRES_PER_UNIT, shifted, texture
from numpy.typing import NDArray

from depth_prior_ros.motion.gate import GateSettings, Motion
from depth_prior_ros.pipeline import DepthPipeline, DepthResult
from depth_prior_ros.scale import FixedScale, ScaleSight, ScaleStatus

TENTH = 100_000_000
MOVING = Motion(10.0, "odometry")
STANDING = Motion(0.0, "odometry")
PICTURE = texture(192, 64)


def restart(pipeline: DepthPipeline) -> None:
    """As new."""
    pipeline.reset()
    pipeline.force_model = None
    pipeline.time_budget_ms = None
    pipeline.max_gap = 0.5
    pipeline.max_metres = 80.0
    pipeline.scale = FixedScale(METRES_PER_UNIT)
    pipeline.gate_settings = GateSettings()
    pipeline.pose_source = "auto"
    pipeline.min_pose_ratio = 0.1
    pipeline.keyframe_metres = 1.0
    pipeline.output_size = "model"
    pipeline.fit = "crop"


def view(index: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The camera's picture at a frame; `size` (width, height) for another camera."""
    if size is None:
        return shifted(PICTURE, 2.0 * index)
    return shifted(texture(*size), 2.0 * index)


def drive(
    pipeline: DepthPipeline, motions: list[Motion | None], start: int = 0
) -> list[DepthResult]:
    """Frames at 10 Hz, one for each motion."""
    return [
        pipeline.process(view(i), (start + i) * TENTH, motion) for i, motion in enumerate(motions)
    ]


def models(results: list[DepthResult]) -> list[str]:
    """`multi_frame moving` and so on, by frame."""
    return [result.active_model for result in results]


class WatchedScale:
    """A scale that keeps what it is told. A real one in every other way."""

    def __init__(
        self,
        factor: float = METRES_PER_UNIT,
        mode: Any = "odometry",
        *,
        depth: bool = True,
        travel: bool = True,
    ) -> None:
        self.metres_per_unit = factor
        self.source = "watched"
        self.needs_depth, self.needs_travel = depth, travel
        self.mode = mode
        self.seen: list[ScaleSight] = []
        self.next: float | None = None

    @property
    def status(self) -> ScaleStatus:
        return ScaleStatus(self.mode, "measured", self.metres_per_unit, 0.05, len(self.seen), "")

    def observe(self, sight: ScaleSight) -> None:
        self.seen.append(sight)
        if self.next is not None:
            self.metres_per_unit = self.next

    def reset(self) -> None:
        self.seen.clear()

    def store(self) -> dict[str, Any]:
        return {}

    def restore(self, stored: Mapping[str, Any]) -> None:
        del stored
