"""One predicted depth image against its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.metrics import (
    RANGES,
    DepthErrors,
    Protocol,
    TruthPixels,
    crop_mask,
    part_errors,
    summary,
)

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthResult
    from depth_prior_ros.recordings import Frame

# The parts of an image in the order of tables.
PARTS = (*(f"{near}-{far}" for near, far in RANGES), "moving", "static")

Window = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True)
class JudgedFrame:
    """One prediction and its errors: `errors` as the protocol scales, `metric` without scaling.

    `parts` are the errors by range and of what moves (see :func:`metrics.part_errors`). `depth` is
    the prediction (h, w) in metres for the window `region` of the image, empty where it was not
    kept; `position` counts in the recording's frames.
    """

    position: int
    model: str
    reason: str
    errors: DepthErrors
    metric: DepthErrors
    depth: NDArray[np.float32] = field(repr=False)
    region: Window
    parts: dict[str, DepthErrors] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """What a network is shown of a frame under a protocol: the image, and its camera."""

    image: NDArray[np.uint8]
    camera: Camera


def show(frame: Frame, protocol: Protocol, size: tuple[int, int]) -> Shown:
    """Read a frame as the protocol has it shown to a network of input `size` (width, height).

    Raises CorruptFrameError.
    """
    image = frame.image()
    if not protocol.stretch:
        return Shown(image, frame.camera)
    squeezed = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return Shown(np.ascontiguousarray(squeezed), frame.camera.scaled(*size))


def judge_frame(
    position: int,
    result: DepthResult,
    frame: Frame,
    truth: NDArray[np.float32],
    protocol: Protocol,
    *,
    keep: bool = True,
) -> JudgedFrame:
    """The errors of one result; `keep` False drops the depth image itself.

    Raises NoValidPixelsError; CorruptFrameError where the mask of what moves cannot be read.
    """
    camera = frame.camera
    region = (result.region.x, result.region.y, result.region.width, result.region.height)
    if protocol.stretch:
        region = (0, 0, camera.width, camera.height)
    # Truth may be coarser than the image: Make3D's laser is.
    window = scaled_window(region, camera.size, (truth.shape[1], truth.shape[0]))
    moving = moving_in(frame, truth, window)
    pixels = truth_in(truth, protocol, window).compare(result.depth)
    return JudgedFrame(
        position,
        result.model,
        result.reason,
        pixels.errors(protocol.scaling),
        pixels.errors("none"),
        result.depth if keep else np.zeros((0, 0), np.float32),
        region,
        part_errors(pixels, protocol.scaling, moving),
    )


def moving_in(frame: Frame, truth: NDArray[np.float32], window: Window) -> NDArray[np.bool_] | None:
    """What moves by itself in `window` of the truth's image, at the truth's size; None: unknown."""
    moving = frame.moving()
    if moving is None:
        return None
    if moving.shape != truth.shape:
        size = (truth.shape[1], truth.shape[0])
        moving = cv2.resize(moving.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return cut(moving, window)


def scaled_window(window: Window, old: tuple[int, int], new: tuple[int, int]) -> Window:
    """A window of a picture of size `old` (width, height) in the same picture of size `new`."""
    if old == new:
        return window
    sx, sy = new[0] / old[0], new[1] / old[1]
    x, y, width, height = window
    left, top = round(x * sx), round(y * sy)
    right, bottom = round((x + width) * sx), round((y + height) * sy)
    return left, top, right - left, bottom - top


def truth_in(
    truth: NDArray[np.float32], protocol: Protocol, window: Window | None = None
) -> TruthPixels:
    """The pixels of `window` of a true depth image (all of it by default) that count.

    truth: (H, W) metres, 0 = none. The protocol's crop is that of the whole image.
    """
    if window is None or window == (0, 0, truth.shape[1], truth.shape[0]):
        return protocol.truth(truth)
    inside = np.ones((1, 1), bool)
    if protocol.crop is not None:
        inside = cut(crop_mask(protocol.crop, *truth.shape), window)
    return protocol.truth(cut(truth, window), inside)


def compare(
    depth: NDArray[np.floating[Any]],
    truth: NDArray[np.float32],
    protocol: Protocol,
    window: Window | None = None,
) -> tuple[DepthErrors, DepthErrors]:
    """Errors of a prediction (h, w) for `window`, as the protocol scales and without scaling.

    See :func:`truth_in`. Raises NoValidPixelsError.
    """
    pixels = truth_in(truth, protocol, window).compare(depth)
    return pixels.errors(protocol.scaling), pixels.errors("none")


def cut(picture: NDArray[Any], window: Window) -> NDArray[Any]:
    """The window of a picture (H, W, ...)."""
    x, y, width, height = window
    return picture[y : y + height, x : x + width]


def row_entry(frames: Sequence[JudgedFrame], protocol: Protocol | None = None) -> dict[str, Any]:
    """One entry of `depth`: the errors as the protocol scales; `metric`, without scaling; `parts`.

    `parts` has an entry for each range of metres ("0-10" ...) and, where it is known what moves,
    for "moving" and "static": the mean over the images that have enough of it, and how many.
    `rmse_log10` is there where the protocol is quoted by it.
    """
    entry: dict[str, Any] = dict(summary([frame.errors for frame in frames]))
    if protocol is not None and protocol.log10:
        values = [frame.errors.rmse_log10 for frame in frames]
        entry["rmse_log10"] = fmean(values) if values else None
    entry["metric"] = summary([frame.metric for frame in frames])
    entry["parts"] = part_entries([frame.parts for frame in frames])
    return entry


def part_entries(frames: Sequence[dict[str, DepthErrors]]) -> dict[str, dict[str, Any]]:
    """Mean errors by part, over the images that have the part."""
    names = {name for parts in frames for name in parts}
    order = [name for name in PARTS if name in names]
    entries = {}
    for name in order:
        entry: dict[str, Any] = dict(summary([parts[name] for parts in frames if name in parts]))
        for key in ("ratio_median", "ratio_spread"):  # those of whole images, told elsewhere
            del entry[key]
        entries[name] = entry
    return entries
