"""How good the depth of a replay is: as published, model by model, and beside blind maps.

`all` judges what the node published. `single_frame` and `multi_frame` judge each model forced on
the same frames (those with a predecessor), in this process, through the pipeline that the node uses
too. The image-independent predictors say what a fixed map would have reached on the same frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
from depth_prior_ros.metrics import (
    PROTOCOLS,
    DepthErrors,
    NoValidPixelsError,
    Protocol,
    summary,
)
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.recordings import CorruptFrameError, Recording, read_frames

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline

PROTOCOL_OF_SOURCE = {"lidar": "eigen", "stereo": "kitti2015", "exact": "synthetic"}
MODELS = ("single_frame", "multi_frame")
OWN_DRIVE = "own_mean_over_this_set"
# The keys of metrics.json are those of a bundle's maps; this is how people call them.
BASELINE_LABELS = {
    OWN_MEAN: "mean of its own inverse depth, training drives",
    LIDAR_ROW: "KITTI 0039 LiDAR, mean log depth per row",
    LIDAR_PIXEL: "KITTI 0039 LiDAR, mean log depth per pixel",
    OWN_DRIVE: "mean of its own inverse depth, this drive",
}


def protocol_for(recording: Recording) -> Protocol | None:
    """How to judge this recording's depth; None where it has none."""
    source = recording.depth_source
    return PROTOCOLS[PROTOCOL_OF_SOURCE[source]] if source else None


def in_view(picture: NDArray[Any], depth: NDArray[Any]) -> NDArray[Any]:
    """The window of an image or true depth (H, W, ...) that a depth image (h, w) covers.

    The pipeline shows the middle of images with another aspect ratio than its own.
    """
    height, width = picture.shape[:2]
    region = fit_region(width, height, depth.shape[1] / depth.shape[0])
    return picture[region.y : region.y + region.height, region.x : region.x + region.width]


@dataclass
class Judge:
    """Collects the errors of published depth, frame by frame."""

    protocol: Protocol | None
    scaled: list[DepthErrors] = field(default_factory=list)
    absolute: list[DepthErrors] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)  # positions in the recording
    _inverses: NDArray[np.float64] | None = None  # sum and count, (2, h, w)

    def add(
        self, position: int, depth: NDArray[np.float32], truth: NDArray[np.float32] | None
    ) -> DepthErrors | None:
        """Judge one depth image against its truth; None where that cannot be."""
        self._average(depth)
        if self.protocol is None or truth is None:
            return None
        try:
            errors = self.protocol.errors(depth, truth)
            absolute = replace(self.protocol, scaling="none").errors(depth, truth)
        except NoValidPixelsError:
            return None
        self.scaled.append(errors)
        self.absolute.append(absolute)
        self.judged.append(position)
        return errors

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
    recording: Recording,
    judge: Judge,
    bundle: Bundle,
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Entries by name for maps that do not look at the image, on the frames that were judged."""
    protocol = judge.protocol
    maps = baseline_maps(bundle)
    own = judge.own_mean()
    if own is not None:
        maps[OWN_DRIVE] = own
    if protocol is None or not judge.judged:
        return {}
    errors: dict[str, list[DepthErrors]] = {name: [] for name in maps}
    for done, position in enumerate(judge.judged, start=1):
        truth = recording.frames[position].depth()
        assert truth is not None
        for name, depth in maps.items():
            errors[name].append(_errors_of_map(protocol, depth, truth))
        progress(done, len(judge.judged))
    return {name: summary(found) for name, found in errors.items()}


def _errors_of_map(
    protocol: Protocol, depth: NDArray[np.float64], truth: NDArray[np.float32]
) -> DepthErrors:
    return protocol.errors(depth, in_view(truth, depth))


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
    found: dict[int, dict[str, DepthErrors]] = {}
    fell_back = 0
    models = [m for m in MODELS if m != "multi_frame" or pipeline.networks.has_multi_frame]
    total = len(models) * len(recording.frames)
    for number, model in enumerate(models):
        pipeline.reset()
        pipeline.force_model = model  # type: ignore[assignment]
        for position, image in read_frames(recording):
            frame = recording.frames[position]
            result = pipeline.process(image, frame.stamp_ns, None, frame.camera)
            progress(number * len(recording.frames) + position + 1, total)
            if not frame.has_depth or position == 0 or recording.gap_before(position):
                continue
            if result.model != model:
                fell_back += 1
                continue
            errors = _forced_errors(protocol, frame, result.depth)
            if errors is not None:
                found.setdefault(position, {})[model] = errors
    both = [entry for entry in found.values() if len(entry) == len(models)]
    entries: dict[str, Any] = {
        model: summary([entry[model] for entry in both if model in entry]) for model in MODELS
    }
    return entries, fell_back


def _forced_errors(
    protocol: Protocol, frame: Any, depth: NDArray[np.float32]
) -> DepthErrors | None:
    try:
        truth = frame.depth()
        return protocol.errors(depth, in_view(truth, depth))
    except (CorruptFrameError, NoValidPixelsError):
        return None


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
