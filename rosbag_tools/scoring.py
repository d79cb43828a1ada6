"""How good the depth of a replay is: as published, model by model, and beside blind maps.

`all` judges what the node published. `single_frame` and `multi_frame` judge each model forced on
the same frames (those with a predecessor), in this process, through the pipeline that the node uses
too. The image-independent predictors say what a fixed map would have reached on the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle.baselines import (
    LIDAR_PIXEL,
    LIDAR_ROW,
    OWN_MEAN,
    as_depth,
    read_baselines,
)
from depth_prior_ros.evaluation.evaluate import FrameResult, evaluate
from depth_prior_ros.evaluation.frames import (
    EvaluationFrame,
    read_evaluation_frames,
    shown_positions,
)
from depth_prior_ros.evaluation.metrics import DepthErrors, summary
from depth_prior_ros.evaluation.predictors import (
    BundlePredictor,
    ImageIndependentMap,
    StoredDepth,
)
from depth_prior_ros.evaluation.protocols import Protocol
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.recordings import Recording

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
class Judge:
    """Collects the errors of published depth, frame by frame.

    `taken` counts the pixels of judged depth images that the node's range made infinite: where
    there are any, errors after scaling by medians depend on the metric factor. `pixels` counts all.
    """

    recording: Recording
    protocol: Protocol | None
    results: list[FrameResult] = field(default_factory=list)
    taken: int = 0
    pixels: int = 0
    _inverses: NDArray[np.float64] | None = None  # sum and count, (2, h, w)

    def add(self, position: int, depth: NDArray[np.float32]) -> FrameResult | None:
        """Judge one depth image against its truth; None where that cannot be."""
        self._average(depth)
        if self.protocol is None:
            return None
        frames = read_evaluation_frames(
            self.recording, self.protocol, depth.shape[::-1], [position], images=False
        )
        skipped = self.recording.skipped
        for result in evaluate(
            StoredDepth({position: depth}), frames, self.protocol, skipped=skipped
        ):
            self.results.append(result)
            self.taken += int(np.isposinf(depth).sum())
            self.pixels += depth.size
            return result
        return None

    def entry(self) -> dict[str, Any]:
        """`depth.all` of metrics.json."""
        entry: dict[str, Any] = dict(summary([result.errors for result in self.results]))
        return entry | {"pixels": self.pixels, "pixels_beyond_range": self.taken}

    def notes(self) -> list[str]:
        """What the reader of the figures has to know."""
        if not self.taken:
            return []
        return [
            f"{self.taken:,} of {self.pixels:,} pixels of judged depth lie beyond the node's range "
            f"({self.taken / self.pixels:.2%}): errors of published depth after scaling by medians "
            "depend on the metric factor; those of each model do not"
        ]

    def own_mean(self) -> NDArray[np.float64] | None:
        """Depth (h, w) whose inverse is the mean inverse of all that was added."""
        if self._inverses is None:
            return None
        total, count = self._inverses
        return np.asarray(1 / np.maximum(total / np.maximum(count, 1), 1e-6))

    def _average(self, depth: NDArray[np.float32]) -> None:
        known = depth > 0
        inverse = np.zeros(depth.shape)
        np.divide(1.0, depth, out=inverse, where=known)  # beyond range counts as 0
        if self._inverses is None or self._inverses[0].shape != depth.shape:
            self._inverses = np.zeros((2, *depth.shape))
        self._inverses += inverse, known


def judge_baselines(
    judge: Judge, bundle: Bundle, progress: Callable[[int, int], None]
) -> dict[str, dict[str, Any]]:
    """Entries by name for maps that do not look at the image, on the frames that were judged."""
    protocol = judge.protocol
    maps = baseline_maps(bundle)
    own = judge.own_mean()
    if own is not None:
        maps[OWN_DRIVE] = own
    if protocol is None or not judge.results:
        return {}
    errors: dict[str, list[DepthErrors]] = {name: [] for name in maps}
    positions = [result.position for result in judge.results]
    size = bundle.manifest.input_size
    frames = read_evaluation_frames(judge.recording, protocol, size, positions, images=False)
    for done, frame in enumerate(frames, start=1):
        for name, depth in maps.items():
            found = evaluate(ImageIndependentMap(depth), [frame], protocol)
            errors[name] += [result.errors for result in found]
        progress(done, len(positions))
    return {name: summary(found) for name, found in errors.items()}


def baseline_maps(bundle: Bundle) -> dict[str, NDArray[np.float64]]:
    """The maps that a bundle carries, as depth (h, w) at its input size; empty without any."""
    width, _ = bundle.manifest.input_size
    return {name: as_depth(name, values, width) for name, values in read_baselines(bundle).items()}


def judge_forced(
    recording: Recording,
    pipeline: DepthPipeline,
    protocol: Protocol,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Any], int]:
    """Entries for each model forced on the frames with truth and a predecessor.

    Both are judged on the same frames: where the forced multi-frame network had to fall back
    (no usable pose), the frame counts for neither; how many these were is the second value.
    """
    judged = [
        position
        for position, frame in enumerate(recording.frames)
        if position and frame.has_depth and not recording.gap_before(position)
    ]
    models = [m for m in MODELS if m != "multi_frame" or pipeline.networks.has_multi_frame]
    predictors = [BundlePredictor(pipeline, model) for model in models]
    total = sum(len(shown_positions(judged, one.memory)) for one in predictors)
    done = 0
    found: dict[str, dict[int, DepthErrors]] = {}
    fell_back = 0

    def told(frames: Iterable[EvaluationFrame]) -> Iterator[EvaluationFrame]:
        nonlocal done
        for frame in frames:
            done += 1
            progress(done, total)
            yield frame

    size = pipeline.bundle.manifest.input_size
    for predictor, model in zip(predictors, models, strict=True):
        frames = read_evaluation_frames(recording, protocol, size, judged, predictor.memory)
        results = evaluate(predictor, told(frames), protocol)
        found[model] = {r.position: r.errors for r in results if r.model == model}
        fell_back += sum(r.model != model for r in results)
    both = set.intersection(*(set(errors) for errors in found.values()))
    entries: dict[str, Any] = {
        model: summary(
            [errors for position, errors in found.get(model, {}).items() if position in both]
        )
        for model in MODELS
    }
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
