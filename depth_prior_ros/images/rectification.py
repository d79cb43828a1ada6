"""From the image that a lens makes to the one a pinhole would have made, by a map made once.

The models are those of ``sensor_msgs/CameraInfo``, in OpenCV's formulas: ``plumb_bob`` (k1 k2 p1 p2
[k3]), ``rational_polynomial`` (k1 k2 p1 p2 k3 k4 k5 k6, or 12 or 14 with the thin prism's and the
tilt's) and ``equidistant`` (k1 k2 k3 k4, a fisheye).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_prior_ros.geometry.camera import InvalidCameraError
from depth_prior_ros.images.calibration import (
    EQUIDISTANT,
    RATIONAL,
    Calibration,
    DistortedCamera,
)
from depth_prior_ros.images.encodings import MessageError

_TRIED_WIDTH = 64  # pixels: enough to see whether a rectified image would be empty


class Rectifier:
    """Rectifies images of one camera with a map that is made once.

    camera: of the rectified images. outside: (H, W) bool, True where a rectified image shows
    nothing because the lens saw nothing there, or None where it is filled to the border.
    """

    def __init__(self, model: DistortedCamera) -> None:
        self.camera = model.camera
        x, y = _map(model)
        width, height = model.raw.size
        # Pixels reach half a pixel from their centres.
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        inside &= _is_imaged(model)
        if not inside.any():
            raise InvalidCameraError("rectified with these numbers, the image would be empty")
        self.outside: npt.NDArray[np.bool_] | None = None if inside.all() else ~inside
        # Whole pixels and 32nds: a third faster than floats, and a 64th of a pixel from them.
        self._whole, self._parts = cv2.convertMaps(x, y, cv2.CV_16SC2)

    @classmethod
    def for_camera(cls, model: DistortedCamera) -> Rectifier | None:
        """A rectifier; None for a camera whose images are rectified already.

        Raises InvalidCameraError where nothing would be left of the image.
        """
        return None if model.is_rectified else cls(model)

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rectified image, of the same size and type; where the lens saw nothing, its border
        goes on, which disturbs a network less than black does.

        image: (H, W) or (H, W, C). Raises ValueError for another size than the camera's.
        """
        height, width = image.shape[:2]
        if (width, height) != self.camera.size:
            expected = f"{self.camera.width}x{self.camera.height}"
            raise ValueError(f"the map is for {expected} pixels, the image has {width}x{height}")
        return cv2.remap(
            image, self._whole, self._parts, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


class LensCorrection:
    """Rectifies the images of a recording; makes its map when it is first needed, also in another
    process that it was sent to.

    lens: of the images; None: they are as they should be.
    """

    def __init__(self, lens: DistortedCamera | None) -> None:
        self.lens = lens
        self._rectifier: Rectifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"lens": self.lens, "_rectifier": None}

    def __bool__(self) -> bool:
        return self.lens is not None

    @property
    def words(self) -> str:
        """What is done to the images, in words; empty where nothing is."""
        return f"rectified: {self.lens}" if self.lens else ""

    def read(self, load: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The image that `load` gives, rectified."""
        return self.apply(load())

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The image, rectified where there is a lens; see `Rectifier.apply`."""
        if self._rectifier is None and self.lens is not None:
            self._rectifier = Rectifier.for_camera(self.lens)
        return image if self._rectifier is None else self._rectifier.apply(image)


def check_calibration(calibration: Calibration, rectify: bool) -> None:
    """Refuse a calibration that no image could be used with; takes well below a millisecond.

    Args:
        calibration: as it arrived.
        rectify: whether its images are rectified with it: otherwise distortion does not matter.

    Raises:
        MessageError: ``bad_intrinsics`` or ``camera_info_size``, for images of the calibration's
            own size.
    """
    width, height = calibration.width, calibration.height
    if width < 1 or height < 1:
        raise MessageError("camera_info_size", f"camera_info says {width}x{height} pixels")
    calibration.camera(width, height)
    lens = calibration.lens(width, height) if rectify else None
    if lens is not None:
        small = min(width, _TRIED_WIDTH)
        try:
            Rectifier(lens.scaled(small, max(1, round(height * small / width))))
        except InvalidCameraError as error:
            raise MessageError("bad_intrinsics", f"camera_info: {error}") from error


def _is_imaged(model: DistortedCamera) -> npt.NDArray[np.bool_]:
    """(H, W) bool: whether the ray of each rectified pixel is one that the model describes.

    Polynomials turn back at some angle, and from there on show the picture a second time.
    """
    camera = model.camera
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    rays = rays @ np.reshape(model.rotation, (3, 3))
    angles = np.arctan2(np.hypot(rays[..., 0], rays[..., 1]), rays[..., 2])
    return angles < _turning_angle(model)


def _turning_angle(model: DistortedCamera) -> float:
    """The angle from the axis, in radians, up to which the image grows with the angle."""
    angles = np.linspace(0.0, np.pi / 2, 4096, endpoint=False)
    with np.errstate(all="ignore"):  # numbers that no lens has overflow
        k = [*model.coefficients, *[0.0] * 8]
        if model.model == EQUIDISTANT:
            powers = angles**2
            radius = angles * (
                1 + powers * (k[0] + powers * (k[1] + powers * (k[2] + powers * k[3])))
            )
        else:
            r = np.tan(angles)
            r2 = r * r
            below = 1 + r2 * (k[5] + r2 * (k[6] + r2 * k[7])) if model.model == RATIONAL else 1.0
            radius = r * (1 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))) / below
        falling = ~(np.diff(radius) > 0)
    return float(angles[int(np.argmax(falling))]) if falling.any() else float(np.pi / 2)


def _map(model: DistortedCamera) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Where in the distorted image each pixel of the rectified one lies: x and y, (H, W)."""
    R = np.reshape(model.rotation, (3, 3))
    arguments = (model.raw.matrix(), np.array(model.coefficients), R)
    fisheye = model.model == EQUIDISTANT
    make: Any = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
    x, y = make(*arguments, model.camera.matrix(), model.camera.size, cv2.CV_32FC1)
    for values in (x, y):
        # A wide rectified view looks past what the model can express.
        np.nan_to_num(values, copy=False, nan=-10.0, posinf=-10.0, neginf=-10.0)
        np.clip(values, -1e4, 1e4, out=values)
    return x, y
