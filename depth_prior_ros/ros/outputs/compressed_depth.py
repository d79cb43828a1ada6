"""Depth as compressed_depth_image_transport writes it: quantised inverse depth in a PNG.

The data of the `CompressedImage` are a header of twelve bytes, in the byte order of the machine
(an int32 that is 0 for inverse depth, float32 A, float32 B), and a 16-bit PNG. Its values v mean
depth A / (v - B); 0 means no depth. With q the quantisation and m the largest depth, A = q (q + 1)
and B = 1 - A / m, so that v = 1 at m. Values are cut off, not rounded.
"""

from __future__ import annotations

import array
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

FORMAT = "32FC1; compressedDepth png"
INVERSE_DEPTH = 0
LARGEST = 65535


@dataclass(frozen=True)
class Quantisation:
    """How depth becomes 16 bits.

    Attributes:
        max_depth: depth at and beyond which there is none.
        a: the constant A; neighbouring values at depth z are z * z / A apart.

    Raises:
        ValueError: numbers that are not positive.
    """

    max_depth: float
    a: float

    def __post_init__(self) -> None:
        if not (self.max_depth > 0 and self.a > 0):
            raise ValueError(f"max_depth {self.max_depth} and A {self.a} must be positive")

    @classmethod
    def of(cls, max_depth: float, quantization: float) -> Quantisation:
        """From the parameters `depth_max` and `depth_quantization` of the transport."""
        return cls(max_depth, quantization * (quantization + 1.0))

    @property
    def b(self) -> float:
        """The constant B."""
        return 1.0 - self.a / self.max_depth

    @property
    def min_depth(self) -> float:
        """The smallest depth that has a value of its own; nearer ones become it."""
        return self.a / (LARGEST - self.b)

    def values(self, depth: NDArray[np.float32]) -> NDArray[np.uint16]:
        """(h, w) uint16; 0 for NaN, +inf and depth from `max_depth` on."""
        values = np.zeros(depth.shape, dtype=np.float32)
        # False for NaN.
        known = (depth > 0) & (depth < np.float32(self.max_depth))
        resolved = np.maximum(depth, np.float32(self.min_depth))
        np.divide(np.float32(self.a), resolved, out=values, where=known)
        np.add(values, np.float32(self.b), out=values, where=known)
        return np.minimum(values, LARGEST).astype(np.uint16)


def compress_depth(
    depth: NDArray[np.float32], header: Header, quantisation: Quantisation, png_level: int = 1
) -> CompressedImage:
    """A message that image_transport's `compressedDepth` subscribers read as `32FC1`.

    Args:
        depth: (h, w) float32; NaN and +inf both become "no depth", which is read as NaN.
        header: taken over as it is.
        quantisation: see the class.
        png_level: 0 (fast) to 9 (small).

    Raises:
        RuntimeError: OpenCV could not write the PNG.
    """
    options = [cv2.IMWRITE_PNG_COMPRESSION, png_level]
    written, png = cv2.imencode(".png", quantisation.values(depth), options)
    if not written:
        raise RuntimeError("the depth image could not be compressed")
    data = array.array("B")  # every other type is checked element by element somewhere
    data.frombytes(struct.pack("=iff", INVERSE_DEPTH, quantisation.a, quantisation.b))
    data.frombytes(png.data)
    message = CompressedImage()
    message.header = header
    message.format = FORMAT
    message.data = data
    return message
