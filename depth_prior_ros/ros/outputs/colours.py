"""Depth as a picture: turbo over a fixed range, near is red, far is blue."""

from __future__ import annotations

import array
import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

UNKNOWN = (0, 0, 0)
"""Colour of pixels without depth."""


@dataclass(frozen=True)
class ColourScale:
    """From which depth to which the colours run, in the unit of the depth.

    The scale is logarithmic, so that a colour step is the same relative step everywhere, and fixed:
    a colour means the same depth in every frame.

    Raises:
        ValueError: ends that are not positive, or in the wrong order.
    """

    near: float
    far: float

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far < math.inf:
            raise ValueError(f"a colour scale cannot run from {self.near} to {self.far}")

    def colours(self, depth: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB of depth (h, w).

        Depth at or below `near` is turbo's last colour, at or beyond `far`, +inf too, its first;
        what is no depth is black.
        """
        unknown = ~(depth >= 0)  # NaN, too
        place = np.log(np.float32(self.far) / np.clip(depth, self.near, self.far))
        place *= np.float32(255.0 / math.log(self.far / self.near))
        place[unknown] = 0.0
        index = np.rint(np.clip(place, 0, 255)).astype(np.uint8)
        picture = turbo()[index]
        picture[unknown] = UNKNOWN
        return picture


@lru_cache(maxsize=1)
def turbo() -> NDArray[np.uint8]:
    """The 256 colours of Google's turbo map, (256, 3) uint8 RGB, dark blue first."""
    steps = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return np.ascontiguousarray(cv2.applyColorMap(steps, cv2.COLORMAP_TURBO)[:, 0, ::-1])


def colour_image(depth: NDArray[np.float32], header: Header, scale: ColourScale) -> Image:
    """An `rgb8` message of a depth image; the header is taken over as it is."""
    picture = scale.colours(depth)
    height, width = depth.shape
    data = array.array("B")  # every other type is checked element by element somewhere
    data.frombytes(picture.data.cast("B"))
    message = Image()
    message.header = header
    message.height, message.width = height, width
    message.encoding = "rgb8"
    message.step = 3 * width
    message.data = data
    return message
