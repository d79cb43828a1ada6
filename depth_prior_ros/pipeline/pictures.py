"""Pictures of a library's user: arrays, files and Pillow's images in, colours out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.pages.colours import colour_depth
from depth_prior_ros.pipeline.framing import InvalidFrameError

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
