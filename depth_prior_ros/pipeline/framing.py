"""From a picture to the network's input, and what that does to the camera.

A picture is an image of a camera, or what a library's user has: arrays, files and Pillow's images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.pages.colours import colour_depth

ASPECT_TOLERANCE = 0.05
"""Aspect ratios closer than this are stretched to the input; others are cropped or padded first.

KITTI's 3.31 against 3.33 is stretched, unnoticeably. A 16:9 camera loses rows above and below, or
gets columns left and right, instead of being squeezed to half its height, which no network trained
on street scenes survives.
"""

Fit = Literal["crop", "pad"]
"""What is done about another aspect ratio: show the middle of the image, or all of it with a
border of unknown depth."""

_MIN_SIDE = 16


class InvalidFrameError(ValueError):
    """A frame that cannot be processed; `cause` is one word for counters.

    Causes: `type`, `shape`, `empty`, `size` (image), `camera` (its intrinsics do not belong to it).
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class Region:
    """The window of the source image that the depth covers, in source pixels.

    A padded one is larger than the image: x or y are negative then.
    """

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class NetworkInput:
    """An image as the networks take it.

    pixels: (h, w, 3) uint8 RGB at the input size; camera: of `pixels`; region: what of the source
    it shows; source_size: (width, height) of the source image. outside: (h, w) bool, True where
    `pixels` show nothing that a camera saw (a padded border, the corners of a rectified fisheye)
    and depth is therefore unknown; None where there is no such place.
    """

    pixels: NDArray[np.uint8]
    camera: Camera
    region: Region
    source_size: tuple[int, int]
    outside: NDArray[np.bool_] | None = None

    def tensor(self) -> NDArray[np.float32]:
        """(1, 3, h, w) float32 in [0, 1]."""
        planes = np.ascontiguousarray(self.pixels.transpose(2, 0, 1))[np.newaxis]
        return np.multiply(planes, np.float32(1 / 255), dtype=np.float32)

    def state(self) -> dict[str, Any]:
        """The same as plain data and arrays, for `from_state`."""
        return {
            "pixels": self.pixels,
            "camera": list(astuple(self.camera)),
            "region": list(astuple(self.region)),
            "source_size": list(self.source_size),
            "outside": self.outside,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> NetworkInput:
        """From what `state` gave."""
        width, height = state["source_size"]
        camera, region = Camera(*state["camera"]), Region(*state["region"])
        return cls(state["pixels"], camera, region, (width, height), state["outside"])


def frame_image(
    image: NDArray[Any],
    camera: Camera | None,
    trained: Camera,
    fit: Fit = "crop",
    outside: NDArray[np.bool_] | None = None,
) -> NetworkInput:
    """Check an RGB image (H, W, 3) uint8, fit it to the trained aspect ratio, resize it.

    camera: of `image`, or of the same picture at another size (then it is scaled); None stands for
    the trained camera. fit: for other aspect ratios. outside: (H, W) bool, True where `image` shows
    nothing, as `Rectifier.outside`. Raises InvalidFrameError.
    """
    _check_image(image)
    height, width = image.shape[:2]
    region = fit_region(width, height, trained.width / trained.height, fit)
    size = (trained.width, trained.height)
    window = _window(image, region)
    if (region.width, region.height) != size:
        shrinks = region.width > size[0] or region.height > size[1]
        pixels = cv2.resize(
            window, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    elif window.base is None:
        pixels = window
    else:
        pixels = window.copy()  # kept until the next frame; the caller's buffer may not be
    return NetworkInput(
        pixels,
        _camera_of(region, width, height, camera, trained),
        region,
        (width, height),
        _outside(region, (width, height), size, outside),
    )


def fit_region(width: int, height: int, aspect: float, fit: Fit = "crop") -> Region:
    """The window of a width x height image with `aspect` and the image's centre.

    All of the image where its aspect ratio is close; else the largest window inside the image
    (`crop`) or the smallest around it (`pad`).
    """
    ratio = width / height
    if abs(ratio / aspect - 1) <= ASPECT_TOLERANCE:
        return Region(0, 0, width, height)
    if (ratio > aspect) == (fit == "crop"):
        inner = max(1, round(height * aspect))
        return Region((width - inner) // 2, 0, inner, height)
    inner = max(1, round(width / aspect))
    return Region(0, (height - inner) // 2, width, inner)


def _window(picture: NDArray[Any], region: Region) -> NDArray[Any]:
    """What of (H, W, ...) `picture` lies in the region; where it ends, its last pixels go on."""
    height, width = picture.shape[:2]
    left, top = max(0, -region.x), max(0, -region.y)
    right = max(0, region.x + region.width - width)
    bottom = max(0, region.y + region.height - height)
    x, y = max(0, region.x), max(0, region.y)
    inside = picture[y : region.y + region.height, x : region.x + region.width]
    if not (left or top or right or bottom):
        return inside
    # Not black: an edge as tall as the image is the strongest thing that a network would see.
    return cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE)


def _outside(
    region: Region,
    source: tuple[int, int],
    size: tuple[int, int],
    outside: NDArray[np.bool_] | None,
) -> NDArray[np.bool_] | None:
    """Where the framed image shows nothing: pixels whose centre lies outside of what was seen."""
    x, y = _centres(region.x, region.width, size[0]), _centres(region.y, region.height, size[1])
    beyond_x, beyond_y = (x < 0) | (x >= source[0]), (y < 0) | (y >= source[1])
    if outside is None and not (beyond_x.any() or beyond_y.any()):
        return None
    beyond = beyond_y[:, np.newaxis] | beyond_x
    if outside is None:
        return beyond
    if outside.shape != source[::-1]:
        raise InvalidFrameError(
            "shape", f"the mask is {outside.shape}, the image {source[1]}x{source[0]}"
        )
    x, y = np.clip(x, 0, source[0] - 1), np.clip(y, 0, source[1] - 1)
    return beyond | outside[y][:, x]  # rows, then columns: five times as fast as both at once


def _centres(start: int, length: int, count: int) -> NDArray[np.int_]:
    """The pixels that the centres of `count` resized pixels fall on, in those of the source."""
    return np.floor(start + (np.arange(count) + 0.5) * (length / count)).astype(np.int_)


def _check_image(image: NDArray[Any]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise InvalidFrameError("type", f"the image must be an array of uint8, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise InvalidFrameError("shape", f"the image must be (H, W, 3) RGB, got {image.shape}")
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise InvalidFrameError("empty", f"the image is empty: {width}x{height}")
    if min(height, width) < _MIN_SIDE:
        raise InvalidFrameError(
            "size", f"the image is too small: {width}x{height}, at least {_MIN_SIDE} a side"
        )


def _camera_of(
    region: Region, width: int, height: int, camera: Camera | None, trained: Camera
) -> Camera:
    if camera is None:
        return trained
    try:
        if camera.size != (width, height):
            # Half a pixel of rounding on the shorter side is not another picture.
            tolerance = max(0.01, 1.0 / min(width, height, *camera.size))
            if abs(camera.width / camera.height * height / width - 1) > tolerance:
                raise InvalidFrameError(
                    "camera",
                    f"the camera is for {camera.width}x{camera.height}, the image has "
                    f"{width}x{height}: another aspect ratio, so it cannot be scaled",
                )
            camera = camera.scaled(width, height)
        window = replace(
            camera,
            cx=camera.cx - region.x,
            cy=camera.cy - region.y,
            width=region.width,
            height=region.height,
        )
        return window.scaled(trained.width, trained.height)
    except InvalidCameraError as error:
        raise InvalidFrameError("camera", f"the camera does not fit the image: {error}") from error


ChannelOrder = Literal["rgb", "bgr"]
"""Of an array's channels: `bgr` is what OpenCV reads, `rgb` what everybody else does."""


def read_picture(image: Any, order: ChannelOrder | None = None) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8 RGB.

    image: the name of a file that OpenCV reads; an image of Pillow; or an array of uint8, (H, W, 3)
    with the `order` of its channels, or (H, W) grey. An orientation tag (EXIF) is not followed, as
    intrinsics describe the sensor.

    Raises TypeError for an array whose order is not said, and for an order where none is asked for;
    ValueError for an order that there is not; InvalidFrameError for an array of another kind;
    CorruptFrameError for a file that cannot be read.
    """
    if order not in (None, "rgb", "bgr"):
        raise ValueError(f"order must be 'rgb' or 'bgr', got {order!r}")
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return _ordered(image, order)
    if order is not None:
        raise TypeError("order is for arrays of three channels; a file or an image has its own")
    if isinstance(image, (str, os.PathLike)):
        from depth_prior_ros.recordings.image_files import read_image

        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 2:
            raise InvalidFrameError("shape", f"the image must be (H, W, 3), got {image.shape}")
        return np.repeat(image[..., np.newaxis], 3, axis=2)
    if hasattr(image, "convert") and hasattr(image, "mode"):  # Pillow, which need not be there
        return np.asarray(image.convert("RGB"), np.uint8)
    raise TypeError(
        f"a picture is a file name, an array or an image of Pillow, not {type(image).__name__}"
    )


def _ordered(image: NDArray[Any], order: ChannelOrder | None) -> NDArray[np.uint8]:
    if order is None:
        raise TypeError("say how the channels are ordered: order='rgb', or 'bgr' as OpenCV reads")
    if image.shape[2] != 3:
        raise InvalidFrameError("shape", f"the image must have 3 channels, got {image.shape}")
    return image if order == "rgb" else np.ascontiguousarray(image[..., ::-1])


def colourise(
    depth: NDArray[np.floating[Any]], near: float = 3.0, far: float = 80.0
) -> NDArray[np.uint8]:
    """Depth (h, w) as an RGB picture (h, w, 3) uint8: turbo over log depth, near is red.

    near, far: metres at which the colours end. NaN is grey, +inf nearly black.

    Raises ValueError for ends that are not positive and ascending.
    """
    if not 0 < near < far < float("inf"):
        raise ValueError(f"colours cannot run from {near} to {far} m")
    return colour_depth(depth, near, far)
