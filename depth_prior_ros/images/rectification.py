"""From the image that a lens makes to the one a pinhole would have made, by a map made once.

The models are those of ``sensor_msgs/CameraInfo``, in OpenCV's formulas: ``plumb_bob`` (k1 k2 p1 p2
[k3]), ``rational_polynomial`` (k1 k2 p1 p2 k3 k4 k5 k6, or 12 or 14 with the thin prism's and the
tilt's) and ``equidistant`` (k1 k2 k3 k4, a fisheye).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError

PLUMB_BOB = "plumb_bob"
RATIONAL = "rational_polynomial"
EQUIDISTANT = "equidistant"

_LENGTHS = {PLUMB_BOB: (4, 5), RATIONAL: (8, 12, 14), EQUIDISTANT: (4,)}
_ALIASES = {
    "fisheye": EQUIDISTANT,
    "kannala_brandt": EQUIDISTANT,
    "kannala_brandt4": EQUIDISTANT,
    "radtan": PLUMB_BOB,
    "radial-tangential": PLUMB_BOB,
}

NEGLIGIBLE = 1e-9
"""Coefficients smaller than this move no pixel by a thousandth of one."""

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

RECTIFY_CHOICES = ("auto", "always", "never")
"""What ``rectify`` may be; not `on` and `off`, which YAML takes for truth values."""


def rectification_wanted(rectify: str, topic: str) -> bool:
    """Whether images of ``topic`` are to be rectified where camera_info has distortion.

    A camera's raw and rectified images share one camera_info, distortion included, so the message
    cannot tell. The topic's name can, by a convention as old as image_proc: a rectified one has
    the word ``rect`` or ``rectified`` in it (``image_rect``, ``image_rect_color``, ``rect/image``).

    Args:
        rectify: ``auto`` goes by the name, ``always`` and ``never`` do not.
        topic: fully resolved name of the image topic.

    Raises:
        ValueError: for another choice.
    """
    if rectify not in RECTIFY_CHOICES:
        raise ValueError(f"rectify must be one of {', '.join(RECTIFY_CHOICES)}, got {rectify!r}")
    if rectify != "auto":
        return rectify == "always"
    return not {"rect", "rectified"} & set(re.split("[/_]", topic.lower()))


def distortion_model(name: str, coefficients: tuple[float, ...]) -> str:
    """The model that a camera_info means by ``name``.

    Raises:
        InvalidCameraError: for a name that is not known, unless all coefficients are zero.
    """
    model = _ALIASES.get(name, name)
    if model in _LENGTHS:
        return model
    if all(c == 0 for c in coefficients):
        return PLUMB_BOB
    raise InvalidCameraError(
        f"distortion model {name!r} is not known ({', '.join(_LENGTHS)} are); feed rectified "
        "images, and say so with `rectify: never` where their topic's name does not"
    )


@dataclass(frozen=True)
class DistortedCamera:
    """A calibrated camera with a lens.

    raw: intrinsics of the distorted image (K). model: `plumb_bob`, `rational_polynomial` or
    `equidistant`. coefficients: of the lens (D), none for no distortion. rotation: (9) row-major,
    from the camera's to the rectified frame (R). camera: of the rectified image (P).

    Raises InvalidCameraError.
    """

    raw: Camera
    model: str
    coefficients: tuple[float, ...]
    camera: Camera
    rotation: tuple[float, ...] = _IDENTITY

    def __post_init__(self) -> None:
        if self.model not in _LENGTHS:
            raise InvalidCameraError(f"distortion model {self.model!r} is not known")
        if not all(math.isfinite(c) for c in self.coefficients):
            raise InvalidCameraError(f"distortion is not finite: {list(self.coefficients)}")
        if self.is_rectified:
            return  # the other numbers are not used
        lengths = _LENGTHS[self.model]
        if len(self.coefficients) not in lengths:
            raise InvalidCameraError(
                f"{self.model} has {' or '.join(map(str, lengths))} coefficients, "
                f"got {len(self.coefficients)}"
            )
        R = np.reshape(self.rotation, (3, 3))
        if not np.isfinite(R).all() or np.abs(R @ R.T - np.eye(3)).max() > 1e-3:
            raise InvalidCameraError("the rectification matrix R is not a rotation")

    @property
    def is_rectified(self) -> bool:
        """Whether no coefficient says otherwise.

        As in image_proc, neither R nor a P that differs from K count, nor that a fisheye bends
        rays with all coefficients zero: drivers of rectified cameras send zeros of every model.
        """
        return not any(abs(c) > NEGLIGIBLE for c in self.coefficients)


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
    k = [*model.coefficients, *[0.0] * 8]
    if model.model == EQUIDISTANT:
        powers = angles**2
        radius = angles * (1 + powers * (k[0] + powers * (k[1] + powers * (k[2] + powers * k[3]))))
    else:
        r = np.tan(angles)
        r2 = r * r
        below = 1 + r2 * (k[5] + r2 * (k[6] + r2 * k[7])) if model.model == RATIONAL else 1.0
        radius = r * (1 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))) / below
    with np.errstate(invalid="ignore"):
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
