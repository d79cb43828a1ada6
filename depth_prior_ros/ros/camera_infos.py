"""What is kept of ``sensor_msgs/CameraInfo``; its meaning stands in `images.calibration`.

Calibration is constant while a camera runs, so what is computed of it is kept
(:class:`CameraModels`). Nothing here knows a node.
"""

from __future__ import annotations

from collections import OrderedDict

from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.images.rectification import Rectifier


class CameraModels:
    """Cameras and rectifiers by calibration and size of the image.

    Building a map takes tens of milliseconds, looking one up a few microseconds. One thread at a
    time.

    Args:
        kept: models kept, so that a camera that switches between sizes does not pay each time.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept = kept
        self._models: OrderedDict[
            tuple[Calibration, int, int, bool], tuple[Camera, Rectifier | None]
        ] = OrderedDict()

    def of(
        self, calibration: Calibration, width: int, height: int, rectify: bool = True
    ) -> tuple[Camera, Rectifier | None]:
        """The rectified camera of an image, and what rectifies it (None: nothing to do).

        Args:
            calibration: of the camera.
            width: of the image in pixels.
            height: of the image in pixels.
            rectify: False for images that are rectified already.

        Raises:
            MessageError: as `Calibration.camera` and `Calibration.lens`, and ``bad_intrinsics``
                where nothing would be left of the rectified image.
        """
        key = (calibration, width, height, rectify)
        model = self._models.get(key)
        if model is None:
            lens = calibration.lens(width, height) if rectify else None
            try:
                rectifier = None if lens is None else Rectifier.for_camera(lens)
            except InvalidCameraError as error:
                raise MessageError("bad_intrinsics", f"camera_info: {error}") from error
            camera = rectifier.camera if rectifier else calibration.camera(width, height)
            model = self._models[key] = (camera, rectifier)
            while len(self._models) > self._kept:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return model


def camera_info(calibration: Calibration, header: Header) -> CameraInfo:
    """A calibration as a message."""
    info = CameraInfo(header=header, width=calibration.width, height=calibration.height)
    info.distortion_model = calibration.model
    info.d = list(calibration.D)
    info.k, info.r, info.p = (
        list(values) for values in (calibration.K, calibration.R, calibration.P)
    )
    return info


def camera_info_of(camera: Camera, header: Header) -> CameraInfo:
    """A ``camera_info`` without distortion for a rectified camera."""
    return camera_info(Calibration.from_camera(camera), header)
