"""What ``sensor_msgs/CameraInfo`` says: the camera of an image, its rectification, its scaled copy.

Calibration is constant while a camera runs, so what is computed of it is kept
(:class:`CameraModels`). Nothing here knows a node.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import (
    NEGLIGIBLE,
    DistortedCamera,
    Rectifier,
    distortion_model,
)

# Camera information of another size than the image is scaled up to this relative difference of
# the aspect ratios; one row more or less, as drivers round, stays inside.
ASPECT_TOLERANCE = 0.01


class CameraModels:
    """Cameras and rectifiers by the content of camera_info and the size of the image.

    Building a map takes tens of milliseconds, looking one up a few microseconds. One thread at a
    time.

    Args:
        kept: models kept, so that a camera that switches between sizes does not pay each time.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept = kept
        self._models: OrderedDict[tuple[Any, ...], tuple[Camera, Rectifier | None]] = OrderedDict()

    def of(
        self, info: CameraInfo, width: int, height: int, rectify: bool = True
    ) -> tuple[Camera, Rectifier | None]:
        """The rectified camera of an image, and what rectifies it (None: nothing to do).

        Args:
            info: as the camera sent it.
            width: of the image in pixels.
            height: of the image in pixels.
            rectify: False for images that are rectified already.

        Raises:
            MessageError: as :func:`camera_from_info` and :func:`rectifier_from_info`.
        """
        key = (_content(info), width, height, rectify)
        model = self._models.get(key)
        if model is None:
            rectifier = rectifier_from_info(info, width, height) if rectify else None
            camera = rectifier.camera if rectifier else camera_from_info(info, width, height)
            model = self._models[key] = (camera, rectifier)
            while len(self._models) > self._kept:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return model


def rectifier_from_info(info: CameraInfo, width: int, height: int) -> Rectifier | None:
    """What rectifies an image of ``width`` x ``height`` pixels; None where D is zero.

    The rectified image has the same size and the camera of P, or of K where P is not filled.

    Raises:
        MessageError: ``bad_intrinsics`` for a distortion model that is not known or coefficients
            that make no sense, and as :func:`camera_from_info`.
    """
    fitted = _fitted(info, width, height)
    camera = _camera(fitted, width, height)
    k = [float(v) for v in fitted.k]
    coefficients = tuple(float(v) for v in info.d)
    if all(abs(c) <= NEGLIGIBLE for c in coefficients):
        return None  # whatever K and the model's name are
    try:
        model = DistortedCamera(
            raw=Camera(k[0], k[4], k[2], k[5], width, height),
            model=distortion_model(info.distortion_model, coefficients),
            coefficients=coefficients,
            rotation=_rotation(info.r),
            camera=camera,
        )
        return Rectifier.for_camera(model)
    except InvalidCameraError as error:
        raise MessageError("bad_intrinsics", f"camera_info: {error}") from error


def _rotation(r: npt.ArrayLike) -> tuple[float, ...]:
    values = tuple(float(v) for v in np.asarray(r, dtype=np.float64).reshape(-1))
    # Not filled, as by drivers of single cameras.
    return values if any(values) else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def _content(info: CameraInfo) -> tuple[Any, ...]:
    """Everything of a camera_info that its cameras depend on, as something to compare."""
    roi = info.roi
    return (
        info.width,
        info.height,
        info.distortion_model,
        # As bytes: a NaN does not equal itself, and would be computed again with every frame.
        *(np.asarray(v, dtype=np.float64).tobytes() for v in (info.d, info.k, info.r, info.p)),
        (info.binning_x, info.binning_y),
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )


def camera_from_info(info: CameraInfo, width: int, height: int) -> Camera:
    """The rectified pinhole camera of an image of ``width`` x ``height`` pixels.

    Taken from the projection matrix P where it is filled, otherwise from K. Binning and a region
    of interest are accounted for. Where the size differs all the same, the camera is scaled if the
    aspect ratios agree within one percent.

    Raises:
        MessageError: ``bad_intrinsics`` for numbers that cannot belong to a camera,
            ``camera_info_size`` for a size that does not fit the image.
    """
    return _camera(_fitted(info, width, height), width, height)


def scaled_camera_info(
    info: CameraInfo,
    image_size: tuple[int, int],
    depth_size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> CameraInfo:
    """The ``camera_info`` of a depth image that shows the camera's image, or a window of it.

    K, P and the region of interest are scaled as ``image_proc`` does; header, distortion and
    rectification are kept.

    Args:
        info: what the camera sent.
        image_size: (width, height) of the camera's image in pixels.
        depth_size: (width, height) of the depth image in pixels.
        window: (x, y, width, height) in pixels of the camera's image; None for all of it.

    Raises:
        MessageError: as :func:`camera_from_info`.
    """
    fitted = _fitted(info, *image_size)
    _camera(fitted, *image_size)
    if window is not None and window != (0, 0, *image_size):
        fitted = _cut(fitted, *window)
    scaled = _scaled(fitted, *depth_size)
    if scaled.p[0] == 0 and scaled.p[5] == 0:
        # Readers of rectified images go by P alone.
        scaled.p = np.insert(np.reshape(scaled.k, (3, 3)), 3, 0.0, axis=1).reshape(-1)
    return scaled


def camera_info_of(camera: Camera, header: Header) -> CameraInfo:
    """A ``camera_info`` without distortion for a rectified camera."""
    info = CameraInfo()
    info.header = header
    info.width, info.height = camera.width, camera.height
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [camera.fx, 0.0, camera.cx, 0.0, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _camera(info: CameraInfo, width: int, height: int) -> Camera:
    p, k = [float(v) for v in info.p], [float(v) for v in info.k]
    if p[0] != 0 or p[5] != 0:
        name, values = "P", (p[0], p[5], p[2], p[6])
    else:
        name, values = "K", (k[0], k[4], k[2], k[5])
    if all(v == 0 for v in values):
        raise MessageError("bad_intrinsics", "K and P are all zeros: the camera is not calibrated")
    try:
        return Camera(*values, width, height)
    except InvalidCameraError as error:
        raise MessageError("bad_intrinsics", f"{name} of camera_info: {error}") from error


def _fitted(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """A copy of ``info`` that describes exactly an image of ``width`` x ``height`` pixels.

    Raises:
        MessageError: ``camera_info_size``.
    """
    if info.width == width and info.height == height:
        return _scaled(info, width, height)
    if info.width < 1 or info.height < 1:
        raise MessageError(
            "camera_info_size",
            f"camera_info says {info.width}x{info.height} pixels, the image has {width}x{height}",
        )
    windowed = _windowed(info, width, height)
    mismatch = abs(windowed.width * height / (windowed.height * width) - 1)
    if not math.isfinite(mismatch) or mismatch > ASPECT_TOLERANCE:
        raise MessageError(
            "camera_info_size",
            f"camera_info is for {info.width}x{info.height} pixels, the image has "
            f"{width}x{height}: another aspect ratio, so it cannot be scaled to fit",
        )
    return _scaled(windowed, width, height)


def _windowed(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """``info`` cut to its region of interest where the image is that region, possibly binned."""
    roi = info.roi
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    if (roi.width // bin_x, roi.height // bin_y) != (width, height):
        return info
    return _cut(info, roi.x_offset, roi.y_offset, roi.width, roi.height)


def _cut(info: CameraInfo, x: int, y: int, width: int, height: int) -> CameraInfo:
    """The ``camera_info`` of a window of the image; it has no region of interest of its own."""
    window = _scaled(info, info.width, info.height)
    window.roi = RegionOfInterest(do_rectify=info.roi.do_rectify)
    for matrix, stride in ((window.k, 3), (window.p, 4)):
        matrix[2] -= x
        matrix[stride + 2] -= y
    window.width, window.height = width, height
    return window


def _scaled(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """A copy of ``info`` scaled to ``width`` x ``height``; binning is part of the scale."""
    sx, sy = width / info.width, height / info.height
    scaled = CameraInfo()
    scaled.header = info.header
    scaled.width, scaled.height = width, height
    scaled.distortion_model = info.distortion_model
    scaled.d = info.d
    scaled.r = info.r
    scaled.k = _scaled_rows(info.k, 3, sx, sy)
    scaled.p = _scaled_rows(info.p, 4, sx, sy)
    scaled.roi = RegionOfInterest(
        x_offset=round(info.roi.x_offset * sx),
        y_offset=round(info.roi.y_offset * sy),
        width=round(info.roi.width * sx),
        height=round(info.roi.height * sy),
        do_rectify=info.roi.do_rectify,
    )
    return scaled


def _scaled_rows(
    matrix: npt.ArrayLike, columns: int, sx: float, sy: float
) -> npt.NDArray[np.float64]:
    """The row-major 3x``columns`` matrix with its first row times ``sx``, its second ``sy``."""
    rows = np.array(matrix, dtype=np.float64).reshape(3, columns)
    rows[0] *= sx
    rows[1] *= sy
    return rows.reshape(-1)
