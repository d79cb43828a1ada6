"""The pinhole camera as plain numbers, shared by recordings, bundles, messages and networks.

Kept apart from :mod:`depth_prior_ros.geometry.warping` so that reading a recording does not import
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


class InvalidCameraError(ValueError):
    """Intrinsics that cannot belong to a camera."""


@dataclass(frozen=True)
class Camera:
    """A rectified pinhole camera: intrinsics in pixels of an image of ``width`` x ``height``.

    Pixel centres lie at whole numbers. Scaling follows ``image_proc``'s ResizeNode (and
    ``sensor_msgs/CameraInfo`` consumers): focal lengths and principal point are multiplied by the
    ratio of the sizes.

    Raises:
        InvalidCameraError: for sizes below one pixel, intrinsics that are not finite, focal lengths
            that are not positive, or a principal point further than one image away from the image;
            normalised intrinsics (a focal length below two pixels) are named as such.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InvalidCameraError(f"image size {self.width}x{self.height} is empty")
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(v) for v in values):
            raise InvalidCameraError(f"intrinsics are not finite: fx fy cx cy = {values}")
        if self.fx <= 0 or self.fy <= 0:
            raise InvalidCameraError(
                f"focal lengths must be positive, got fx {self.fx}, fy {self.fy}"
            )
        if self.fx < 2 and self.fy < 4 and self.width > 8:
            raise InvalidCameraError(
                f"fx {self.fx}, fy {self.fy} look normalised by the image size; "
                "give them in pixels (multiply by width and height)"
            )
        if not (-self.width <= self.cx <= 2 * self.width) or not (
            -self.height <= self.cy <= 2 * self.height
        ):
            raise InvalidCameraError(
                f"principal point ({self.cx}, {self.cy}) lies far outside "
                f"the image of {self.width}x{self.height}"
            )

    @classmethod
    def of_view(cls, width: int, height: int, degrees: float) -> Camera:
        """A camera whose picture is `degrees` wide, edge to edge, and looks through its middle."""
        focal = width / 2 / math.tan(math.radians(degrees) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)

    @classmethod
    def from_matrix(cls, K: npt.ArrayLike, width: int, height: int) -> Camera:
        """From a (3, 3) or (3, 4) intrinsic matrix in pixels."""
        m = np.asarray(K, dtype=np.float64)
        return cls(float(m[0, 0]), float(m[1, 1]), float(m[0, 2]), float(m[1, 2]), width, height)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def matrix(self) -> npt.NDArray[np.float64]:
        """The (3, 3) intrinsic matrix in pixels."""
        return np.array(
            [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]], dtype=np.float64
        )

    def scaled(self, width: int, height: int) -> Camera:
        """The camera of the image resized to ``width`` x ``height`` pixels."""
        sx, sy = width / self.width, height / self.height
        return Camera(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of the window of ``width`` x ``height`` whose top left pixel is (x, y)."""
        if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise InvalidCameraError(
                f"window {width}x{height}+{x}+{y} leaves the image of {self.width}x{self.height}"
            )
        return replace(self, cx=self.cx - x, cy=self.cy - y, width=width, height=height)

    def flipped(self) -> Camera:
        """The camera of the horizontally mirrored image; the principal point is mirrored too."""
        return replace(self, cx=self.width - 1 - self.cx)

    def same_aspect(self, other: Camera, tolerance: float = 0.01) -> bool:
        """Whether both images have the same aspect ratio, up to a relative ``tolerance``."""
        mine, theirs = self.width / self.height, other.width / other.height
        return abs(mine / theirs - 1) <= tolerance
