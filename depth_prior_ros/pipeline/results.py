"""What the pipeline says about a frame, and the way there from the networks' numbers.

Confidence is one number in [0, 1] for every pixel: an estimate of the probability that the depth is
right within a factor of 1.25, leaving a common factor of the whole image aside; 1 = sure, 0 =
certainly wrong, or no depth. It is a logistic model of a few cues, fitted to synthetic streets with
exact depth that nothing was trained on (`python benchmarks/confidence.py --fit` prints the
constants below). What it ranks well elsewhere it need not hit as a number: on other roads the share
of right pixels is another one. Left out after measuring, because errors on frames that the fit had
not seen were ranked no better: the probability mass of the matching, texture, the place in the
image.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import NetworkInput, Region

if TYPE_CHECKING:
    from depth_prior_ros.scale import ScaleStatus


Model = Literal["multi_frame", "single_frame"]
Reason = Literal[
    "moving",
    "first_frame",
    "stationary",
    "gap",
    "time_jump",
    "resolution",
    "pose",
    "forced",
    "budget",
    "memory",
    "model_failed",
]
PoseSource = Literal["network", "odometry"]
OutputSize = Literal["model", "input"] | tuple[int, int]
"""Size of the depth image: the networks', the camera image's, or (width, height)."""

MAX_OUTPUT_SIDE = 8192


@dataclass(frozen=True)
class DepthResult:
    """What the pipeline knows about one frame.

    depth: (h, w) float32 metres along the optical axis; NaN unknown, +inf beyond the range.
    model, reason: which network made it, and why that one.
    timings: milliseconds of what ran: preprocess motion single features pose multi scale
    postprocess total.
    camera: of the depth image. region: the window of the source image that the depth image shows;
    it may exceed the source image, and the depth is NaN there.
    confidence: (h, w) float32, 0 to 1, 1 = sure, 0 where there is no depth; None unless asked for.
    rgb: (h, w, 3) uint8, the picture that belongs to the depth image, pixel by pixel. It may be a
    view of the image that was processed.
    scale: where the metres come from.
    error: in words, what went wrong with the multi-frame network on this very frame.
    detail: in words, what stands behind the reason, while it lasts.
    pose_source: who told the multi-frame network how the camera moved; None without multi-frame.
    parallax_px: median over the image of the pixels that the multi-frame network's search range
    spans, at the networks' size: below half of the bundle's threshold (`lite`: 1) its depth is the
    single-frame network's. None without multi-frame.
    references: which were looked up in single-frame depth, or why none were; empty for a bundle
    without any.
    """

    depth: NDArray[np.float32]
    model: Model
    reason: Reason
    timings: dict[str, float]
    camera: Camera
    stamp_ns: int
    region: Region
    confidence: NDArray[np.float32] | None = None
    rgb: NDArray[np.uint8] | None = None
    scale: ScaleStatus | None = None
    error: str | None = None
    detail: str | None = None
    pose_source: PoseSource | None = None
    parallax_px: float | None = None
    references: str = ""

    @property
    def active_model(self) -> str:
        """`multi_frame moving` or `single_frame REASON`."""
        return f"{self.model} {self.reason}"


@dataclass(frozen=True)
class MatchedFrame:
    """What the multi-frame network found of a frame, before anything is made metres.

    framed: as the networks saw it. inverse: (h, w) in 1/units of the networks' world, NaN unknown,
    as it is published; divided by `stretch` that of the real one. matched: the same by matching
    alone. parallax: (h / 4, w / 4) pixels that the search range spans. travelled: metres since the
    frame before by odometry or speed. metres, units: length of the step that was matched with, as
    odometry or the speed says and as it was matched with, in the real world's units. None where
    unknown.
    """

    stamp_ns: int
    framed: NetworkInput
    inverse: NDArray[np.float32]
    matched: NDArray[np.float32]
    parallax: NDArray[np.float32]
    stretch: float
    travelled: float | None
    metres: float | None
    units: float


def parse_output_size(text: str) -> OutputSize:
    """`model`, `input`, or a size such as `640x192`. Raises ValueError."""
    if text == "model":
        return "model"
    if text == "input":
        return "input"
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ValueError(f"output size {text!r}: choose model, input, or WIDTHxHEIGHT (640x192)")
    return check_output_size((int(match[1]), int(match[2])))


def check_output_size(size: OutputSize) -> OutputSize:
    """The size itself. Raises ValueError for one that no depth image can have."""
    if size in ("model", "input"):
        return size
    if not (isinstance(size, tuple) and len(size) == 2):
        raise ValueError(f"output size {size!r}: choose model, input, or (width, height)")
    if not all(isinstance(side, int) and 1 <= side <= MAX_OUTPUT_SIDE for side in size):
        raise ValueError(f"output size {size}: both sides must lie in 1..{MAX_OUTPUT_SIDE}")
    return size


@dataclass(frozen=True)
class OutputView:
    """The depth image's place: its size, its camera, and the window of the source that it shows.

    picture: (x, y, width, height) at which the networks' picture lies in it; it may exceed it.
    """

    size: tuple[int, int]
    camera: Camera
    region: Region
    picture: tuple[int, int, int, int]

    @property
    def filled(self) -> bool:
        """Whether the networks' picture and the depth image are the same window."""
        return self.picture == (0, 0, *self.size)


def view_of(framed: NetworkInput, output: OutputSize) -> OutputView:
    """Where the depth of a framed image goes for an output size."""
    region = framed.region
    if output == "input":
        width, height = framed.source_size
        inner = framed.camera.scaled(region.width, region.height)
        camera = Camera(inner.fx, inner.fy, inner.cx + region.x, inner.cy + region.y, width, height)
        picture = (region.x, region.y, region.width, region.height)
        return OutputView((width, height), camera, Region(0, 0, width, height), picture)
    size = framed.camera.size if output == "model" else output
    camera = framed.camera if size == framed.camera.size else framed.camera.scaled(*size)
    return OutputView(size, camera, region, (0, 0, *size))


def holds_depth(values: NDArray[np.float32]) -> bool:
    """Whether a network's output, depth or inverse depth, has a single usable number in it."""
    return bool((np.isfinite(values) & (values > 0)).any())


def known_inverse(
    values: NDArray[np.float32], outside: NDArray[np.bool_] | None = None, *, inverse: bool
) -> NDArray[np.float32]:
    """A network's output (h, w), depth or inverse depth in units, as inverse depth; NaN unknown.

    outside: (h, w), where nothing was seen. The result is the output itself where it is inverse
    depth and all of it can be used.
    """
    usable = bool(values.min() > 0) and math.isfinite(values.max())  # False with a NaN
    if usable and outside is None:
        return values if inverse else np.reciprocal(values)
    known = np.isfinite(values) & (values > 0)
    if outside is not None:
        known &= ~outside
    result = np.full(values.shape, math.nan, dtype=np.float32)
    if inverse:
        np.copyto(result, values, where=known)
        return result
    return np.divide(np.float32(1), values, out=result, where=known)


_BEYOND = np.float32(1e-6)  # 1/units: farther than anything that is published


def shifted(inverse: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    """Inverse depth (h, w) with a shift; the array itself without one.

    What comes to lie at or beyond infinity is just this side of it.
    """
    return inverse if shift == 0 else np.maximum(inverse + np.float32(shift), _BEYOND)


def to_metres(
    inverse: NDArray[np.float32], factor: float, max_metres: float, view: OutputView
) -> NDArray[np.float32]:
    """Inverse depth in 1/units (h, w) as depth in metres in its view; a new array.

    Between sizes inverse depth is interpolated, in which planes are flat; unknown pixels take no
    part, and their places stay unknown.
    """
    _, _, width, height = view.picture
    if inverse.shape != (height, width):
        inverse = resize_known(inverse, (width, height))
    depth = np.divide(np.float32(factor), inverse)
    np.copyto(depth, np.float32(math.inf), where=depth > max_metres)
    return _placed(depth, view, math.nan)


def to_confidence(
    values: NDArray[np.float32], depth: NDArray[np.float32], view: OutputView
) -> NDArray[np.float32]:
    """Any confidence (h, w) at the depth's size, within 0..1, and 0 where there is no depth."""
    _, _, width, height = view.picture
    values = np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0).astype(np.float32)
    if values.shape != (height, width):
        values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    sure = _placed(values, view, 0.0)
    sure[np.isnan(depth)] = 0.0
    return sure


def to_rgb(image: NDArray[Any], framed: NetworkInput, view: OutputView) -> NDArray[np.uint8]:
    """The picture (h, w, 3) uint8 that belongs to the depth image."""
    width, height = view.size
    if view.size == framed.camera.size and view.filled:
        return framed.pixels
    if image.shape[:2] == (height, width) and view.region == Region(0, 0, width, height):
        return image
    return cv2.resize(framed.pixels, view.size, interpolation=cv2.INTER_LINEAR)


def resize_known(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize (h, w) to (width, height) linearly; NaN stays NaN and does not spread.

    A pixel is unknown where the nearest one is; where it is known, its unknown neighbours take no
    part in the mean.
    """
    unknown = np.isnan(values)
    if not unknown.any():
        return cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    weight = (~unknown).astype(np.float32)
    total = cv2.resize(np.where(unknown, np.float32(0), values), size)
    share = cv2.resize(weight, size)
    nearest = cv2.resize(weight, size, interpolation=cv2.INTER_NEAREST_EXACT)
    result = np.full(total.shape, math.nan, dtype=np.float32)
    return np.divide(total, share, out=result, where=(nearest > 0) & (share > 0))


def _placed(values: NDArray[np.float32], view: OutputView, blank: float) -> NDArray[np.float32]:
    """The picture's values (h, w) in the view, `blank` around them."""
    if view.filled:
        return values
    x, y, picture_width, picture_height = view.picture
    width, height = view.size
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + picture_width, width), min(y + picture_height, height)
    result = np.full((height, width), blank, dtype=np.float32)
    result[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return result


CUE_WIDTH = 320
"""Wider maps are reduced to this width first: cues count in pixels, and are cheap."""

_WINDOW = (9, 9)
# Added before logarithms: below these, differences between cues say nothing.
_FLAT, _SMOOTH, _AGREE = 0.003, 0.005, 0.02


@dataclass(frozen=True)
class Weights:
    """Of the logistic model: the logit is `constant` plus weights times cues (`cues`).

    `disagreement` counts for multi-frame depth only, `entropy` where there is one.
    """

    constant: float
    roughness: float
    distance: float
    slope: float
    disagreement: float = 0.0
    entropy: float = 0.0


# Printed by `python benchmarks/confidence.py --fit`; by what there is: (multi-frame, entropy).
WEIGHTS: dict[tuple[bool, bool], Weights] = {
    (False, False): Weights(-2.45, -0.53, -0.48, -0.26),
    (False, True): Weights(-2.08, -0.55, -0.49, -0.27, entropy=-0.76),
    (True, False): Weights(-3.71, -0.79, -0.48, -0.27, disagreement=-0.13),
    (True, True): Weights(-3.25, -0.81, -0.49, -0.28, disagreement=-0.13, entropy=-0.85),
}


def matching_weight(
    parallax: NDArray[np.float32],
    threshold: float,
    confidence: NDArray[np.float32] | float = 1.0,
) -> NDArray[np.float32]:
    """How much of the published depth (h, w) is matched, as the multi-frame network blends it.

    Args:
        parallax: (h / 4, w / 4) pixels that the search range spans.
        threshold: pixels of parallax from which matching is trusted as far as it is confident.
        confidence: (h / 4, w / 4) of matching; 1: what parallax alone lets be trusted.
    """
    weight = np.clip(parallax / (threshold / 2) - 1, 0, 1) * confidence
    return cv2.resize(weight, (4 * parallax.shape[1], 4 * parallax.shape[0]))


def combine(
    single_inverse: NDArray[np.float32],
    multi_inverse: NDArray[np.float32] | None = None,
    *,
    entropy: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Confidence (h, w) float32 of the published depth, in [0, 1], 1 = sure.

    Args:
        single_inverse: (h, w) inverse depth of the single-frame network, 1/network units.
        multi_inverse: (h, w) inverse depth of the multi-frame network, same unit; None where the
            single-frame depth is published.
        entropy: entropy of the prior's affinity, of any size, divided by log N; None where there
            is none (the node does not compute it: it costs a second pass over the prior).

    A pixel whose published inverse depth is not finite and positive gets 0.
    """
    published = single_inverse if multi_inverse is None else multi_inverse
    known = _known(published)
    if not known.any():
        return np.zeros(published.shape, dtype=np.float32)
    found = cues(single_inverse, multi_inverse, entropy)
    weights = WEIGHTS[multi_inverse is not None, entropy is not None]
    logit = np.full(found["distance"].shape, np.float32(weights.constant))
    for name, cue in found.items():
        logit += np.float32(getattr(weights, name)) * cue
    sure = 1.0 / (1.0 + np.exp(-logit))
    if sure.shape != published.shape:
        size = (published.shape[1], published.shape[0])
        sure = cv2.resize(sure, size, interpolation=cv2.INTER_LINEAR)
    return np.where(known, sure, np.float32(0.0)).astype(np.float32, copy=False)


def cues(
    single_inverse: NDArray[np.float32],
    multi_inverse: NDArray[np.float32] | None = None,
    entropy: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """What confidence is estimated from, at most `CUE_WIDTH` wide, by the names in `Weights`.

    All are free of the depth's unit. With z the published depth:
    roughness: log of the mean of |log z - blurred log z| over 9x9 pixels; noise and edges.
    distance: log of z over its median in the image; what is far is worse known.
    slope: log of the relative change of z per pixel to the side; edges and slanted walls.
    disagreement: log of the mean of |log multi / single| over 9x9 pixels.
    entropy: as given.

    Arguments as of `combine`; some pixel of the published depth must be known.
    """
    multi = multi_inverse is not None
    log = _log_depth(multi_inverse if multi_inverse is not None else single_inverse)
    rough = cv2.blur(np.abs(log - cv2.GaussianBlur(log, (0, 0), 2)), _WINDOW)
    slope = np.abs(cv2.Sobel(log, cv2.CV_32F, 1, 0, ksize=3)) / 8
    found = {
        "roughness": np.log(rough + np.float32(_SMOOTH)),
        "distance": log - np.median(log),
        "slope": np.log(slope + np.float32(_FLAT)),
    }
    if multi:
        apart = cv2.blur(np.abs(log - _log_depth(single_inverse)), _WINDOW)
        found["disagreement"] = np.log(apart + np.float32(_AGREE))
    if entropy is not None:
        size = (log.shape[1], log.shape[0])
        found["entropy"] = cv2.resize(
            np.asarray(entropy, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR
        )
    return found


def _known(inverse: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(inverse) & (inverse > 0))


def _log_depth(inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log depth, at most `CUE_WIDTH` wide; unknown pixels get the median, which says nothing."""
    known = _known(inverse)
    log: NDArray[np.float32] = np.zeros(inverse.shape, dtype=np.float32)
    np.log(inverse, out=log, where=known)
    np.negative(log, out=log)
    if not known.all():
        log[~known] = np.median(log[known]) if known.any() else 0.0
    width = log.shape[1]
    if width > CUE_WIDTH:
        size = (CUE_WIDTH, max(1, round(log.shape[0] * CUE_WIDTH / width)))
        log = cv2.resize(log, size, interpolation=cv2.INTER_AREA)
    return log
