"""How good the depth of a replay is: as published, model by model, and beside constant baselines.

`all` evaluates what the node published. `single_frame` and `multi_frame` evaluate each model forced
on the same frames (those with a predecessor), in this process, through the pipeline that the node
uses too. The image-independent predictors say what a fixed map would have reached on the same
frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle.baselines import LIDAR_PIXEL, LIDAR_ROW, OWN_MEAN, stored_maps
from depth_prior_ros.evaluation.evaluate import (
    FrameResult,
    evaluate,
    evaluate_beside,
    evaluate_model,
)
from depth_prior_ros.evaluation.frames import (
    EvaluationFrame,
    EvaluationSet,
    count,
    read_evaluation_frames,
)
from depth_prior_ros.evaluation.metrics import FlickerMeter, mean_flicker, summary
from depth_prior_ros.evaluation.predictors import ImageIndependentMap, Map, MeanDepth, StoredDepth
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.recordings import Recording, StoredRecording

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline, Model

MODELS: tuple[Model, ...] = ("single_frame", "multi_frame")
OWN_DRIVE = "own_mean_over_this_set"
# The keys of metrics.json are those of a bundle's maps; this is how people call them.
BASELINE_LABELS = {
    OWN_MEAN: "mean of its own inverse depth, training drives",
    LIDAR_ROW: "KITTI 0039 LiDAR, mean log depth per row",
    LIDAR_PIXEL: "KITTI 0039 LiDAR, mean log depth per pixel",
    OWN_DRIVE: "mean of its own inverse depth, this drive",
}


def in_view(picture: NDArray[Any], depth: NDArray[Any]) -> NDArray[Any]:
    """The window of an image or true depth (H, W, ...) that a depth image (h, w) covers.

    The pipeline shows the middle of images with another aspect ratio than its own.
    """
    height, width = picture.shape[:2]
    region = fit_region(width, height, depth.shape[1] / depth.shape[0])
    return picture[region.y : region.y + region.height, region.x : region.x + region.width]


@dataclass
class ReplayErrors:
    """Collects the errors of published depth, frame by frame.

    `taken` counts the pixels of evaluated depth images that the node's range made infinite: where
    there are any, errors after scaling by medians depend on the metric factor. `pixels` counts all.
    """

    recording: Recording
    protocol: Protocol | None
    results: list[FrameResult] = field(default_factory=list)
    mean: MeanDepth = field(default_factory=MeanDepth)
    meter: FlickerMeter = field(default_factory=FlickerMeter)
    taken: int = 0
    pixels: int = 0

    def add(self, position: int, depth: NDArray[np.float32]) -> FrameResult | None:
        """Evaluate one depth image against its truth; None where that cannot be."""
        self.mean.add(depth)
        if self.protocol is None:
            return None
        size, skipped = (depth.shape[1], depth.shape[0]), self.recording.skipped
        frames = self.frames([position], size)
        stored = StoredDepth({position: depth})
        found = evaluate(stored, frames, self.protocol, skipped=skipped, meter=self.meter)
        if not found:
            return None
        self.results += found
        self.taken += int(np.isposinf(depth).sum())
        self.pixels += depth.size
        return found[0]

    def state(self) -> dict[str, Any]:
        """All but the results, as plain data and arrays."""
        counts = {"taken": self.taken, "pixels": self.pixels}
        return {"mean": self.mean.state(), "meter": self.meter.state(), **counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; the results are given back one by one."""
        self.mean = MeanDepth.from_state(state["mean"])
        self.meter.restore(state["meter"])
        self.taken, self.pixels = state["taken"], state["pixels"]

    def frames(self, positions: Sequence[int], size: tuple[int, int]) -> Iterator[EvaluationFrame]:
        """Truth without images, for depth images of `size` (width, height)."""
        assert self.protocol is not None
        return read_evaluation_frames(self.recording, self.protocol, size, positions, images=False)

    def entry(self) -> dict[str, Any]:
        """`depth.all` of metrics.json."""
        entry: dict[str, Any] = dict(summary([result.errors for result in self.results]))
        entry |= mean_flicker([result.flicker for result in self.results])
        return entry | {"pixels": self.pixels, "pixels_beyond_range": self.taken}

    def notes(self) -> list[str]:
        """What the reader of the figures has to know."""
        if not self.taken:
            return []
        return [
            f"{self.taken:,} of {self.pixels:,} pixels of evaluated depth lie beyond the node's "
            f"range ({self.taken / self.pixels:.2%}): errors of published depth after scaling "
            "by medians depend on the metric factor; those of each model do not"
        ]

    def baselines(
        self, bundle: Bundle, told: Callable[[int, int], None]
    ) -> dict[str, dict[str, Any]]:
        """Entries by name for maps that do not look at the image, on the evaluated frames."""
        if self.protocol is None or not self.results:
            return {}
        maps: dict[str, Map] = {**stored_maps(bundle), OWN_DRIVE: self.mean.depth()}
        predictors = {name: ImageIndependentMap(depth) for name, depth in maps.items()}
        positions = [result.position for result in self.results]
        frames = count(self.frames(positions, bundle.manifest.input_size), told, len(positions))
        errors = evaluate_beside(predictors, frames, self.protocol)
        return {name: summary(found) for name, found in errors.items()}


def evaluate_forced(
    recording: StoredRecording,
    pipeline: DepthPipeline,
    protocol: Protocol,
    told: Callable[[int, int], None],
) -> tuple[dict[str, Any], int]:
    """Entries for each model forced on the frames with truth and a predecessor.

    Both are evaluated on the same frames: where the forced multi-frame network had to fall back
    (no usable pose), the frame counts for neither; how many these were is the second value.
    """
    positions = tuple(i for i, frame in enumerate(recording.frames) if frame.has_depth)
    chosen = EvaluationSet(recording.name, protocol, recording, positions)
    models = [m for m in MODELS if m != "multi_frame" or pipeline.networks.has_multi_frame]
    found: dict[str, dict[int, FrameResult]] = {}
    fell_back = 0
    for number, model in enumerate(models):

        def shown(done: int, total: int, before: int = number) -> None:
            told(before * total + done + 1, len(models) * total)

        results = evaluate_model(pipeline, chosen, model, chosen.followed(), shown)
        found[model] = {r.position: r for r in results if r.model == model}
        fell_back += len(results) - len(found[model])
    both = set.intersection(*map(set, found.values()))
    entries: dict[str, Any] = {}
    for model in MODELS:
        shared = [r for position, r in found.get(model, {}).items() if position in both]
        entries[model] = summary([r.errors for r in shared])
        entries[model] |= mean_flicker([r.flicker for r in shared])
    return entries, fell_back


def protocol_entry(protocol: Protocol | None, recording: Recording) -> dict[str, Any] | None:
    """The protocol in words and numbers, for metrics.json."""
    if protocol is None:
        return None
    entry = asdict(protocol)
    entry["depth_source"] = recording.depth_source
    entry["single_frame_multi_frame"] = (
        "each model forced in the replay's own process, on the same frames (those with a "
        "predecessor); `all` is what the node published"
    )
    return entry
