"""From a camera's image to the network's input, and what that does to the camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.camera import Camera, InvalidCameraError

ASPECT_TOLERANCE = 0.05
"""Aspect ratios closer than this are stretched to the input; others are cropped first.

KITTI's 3.31 against 3.33 is stretched, unnoticeably. A 16:9 camera loses rows above and below
instead of being squeezed to half its height, which no network trained on street scenes survives.
"""

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
    """The window of the source image that the depth covers, in source pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Framed:
    """An image as the networks take it.

    pixels: (h, w, 3) uint8 RGB at the input size; camera: of `pixels`; region: what of the source
    it shows; source_size: (width, height) of the source image.
    """

    pixels: NDArray[np.uint8]
    camera: Camera
    region: Region
    source_size: tuple[int, int]

    def tensor(self) -> NDArray[np.float32]:
        """(1, 3, h, w) float32 in [0, 1]."""
        planes = np.ascontiguousarray(self.pixels.transpose(2, 0, 1))[np.newaxis]
        return np.multiply(planes, np.float32(1 / 255), dtype=np.float32)


def frame_image(image: NDArray[Any], camera: Camera | None, trained: Camera) -> Framed:
    """Check an RGB image (H, W, 3) uint8, crop it to the trained aspect ratio, resize it.

    camera: of `image`, or of the same picture at another size (then it is scaled); None stands for
    the trained camera. Raises InvalidFrameError.
    """
    _check_image(image)
    height, width = image.shape[:2]
    region = fit_region(width, height, trained.width / trained.height)
    pixels = image[region.y : region.y + region.height, region.x : region.x + region.width]
    size = (trained.width, trained.height)
    if (region.width, region.height) != size:
        shrinks = region.width > size[0] or region.height > size[1]
        pixels = cv2.resize(
            pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    else:
        pixels = pixels.copy()  # kept until the next frame; the caller's buffer may not be
    return Framed(
        pixels, _camera_of(region, width, height, camera, trained), region, (width, height)
    )


def fit_region(width: int, height: int, aspect: float) -> Region:
    """The central window of a width x height image with `aspect`; all of it where that is close."""
    ratio = width / height
    if abs(ratio / aspect - 1) <= ASPECT_TOLERANCE:
        return Region(0, 0, width, height)
    if ratio > aspect:
        inner = max(1, round(height * aspect))
        return Region((width - inner) // 2, 0, inner, height)
    inner = max(1, round(width / aspect))
    return Region(0, (height - inner) // 2, width, inner)


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
        cropped = camera.cropped(region.x, region.y, region.width, region.height)
        return cropped.scaled(trained.width, trained.height)
    except InvalidCameraError as error:
        raise InvalidFrameError("camera", f"the camera does not fit the image: {error}") from error
