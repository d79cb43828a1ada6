"""What a calibration says, wherever it was written down: one reading for all ways in.

A ``sensor_msgs/CameraInfo`` of the live node or of a bag (ROS 1 or 2), a file of ROS's
``camera_calibration`` and intrinsics that somebody typed all become a :class:`Calibration`. It
answers which camera an image has that was binned, cut to a region of interest or resized after the
driver, and what bends its rays. What is doubtful but usable is said in words (``doubts``); what
cannot be is a :class:`MessageError`. Messages are duck-typed. Numpy only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.images.encodings import MessageError

PLUMB_BOB = "plumb_bob"
RATIONAL = "rational_polynomial"
EQUIDISTANT = "equidistant"
MODELS = (PLUMB_BOB, RATIONAL, EQUIDISTANT)

ASPECT_TOLERANCE = 0.01
"""Relative difference of the aspect ratios up to which a calibration is scaled to an image; one row
more or less, as drivers round, stays inside."""

NEGLIGIBLE = 1e-9
"""Coefficients smaller than this move no pixel by a thousandth of one."""

_OPENCV_COUNTS = (4, 5, 8, 12, 14)  # coefficients that OpenCV's pinhole model is written with
_FISHEYE_COUNT = 4
_ALIASES = {
    "fisheye": EQUIDISTANT,
    "opencv_fisheye": EQUIDISTANT,
    "kannala_brandt": EQUIDISTANT,
    "kannala_brandt4": EQUIDISTANT,
    "radtan": PLUMB_BOB,
    "radial_tangential": PLUMB_BOB,
    "brown_conrady": PLUMB_BOB,
    "rational": RATIONAL,
}
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_NO_PROJECTION = (0.0,) * 12
# A principal point further than this share of the image from its middle is remarkable.
_OFF_CENTRE = 0.2

RECTIFY_CHOICES = ("auto", "always", "never")
"""What ``rectify`` may be; not `on` and `off`, which YAML takes for truth values."""


def rectification_wanted(rectify: str, topic: str) -> bool:
    """Whether images of ``topic`` are to be rectified where their calibration has distortion.

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


def read_distortion(name: str, coefficients: Iterable[float]) -> tuple[str, tuple[float, ...], str]:
    """(model, coefficients, doubt in words or "") as OpenCV and image_geometry read them.

    The number of coefficients decides between OpenCV's pinhole models, whose shorter ones are the
    longer ones with zeros; trailing zeros therefore change nothing. No coefficients are left of
    zeros, whatever the model's name.

    Raises:
        InvalidCameraError: for a name that is not known, a number of coefficients that no model is
            written with, and coefficients that are not finite.
    """
    given = tuple(float(c) for c in coefficients)
    if not all(math.isfinite(c) for c in given):
        raise InvalidCameraError(f"distortion is not finite: {list(given)}")
    count = max((i + 1 for i, c in enumerate(given) if abs(c) > NEGLIGIBLE), default=0)
    if not count:
        return PLUMB_BOB, (), ""
    plain = re.sub("[- ]", "_", name.strip().lower())
    model = _ALIASES.get(plain, plain)
    if model == EQUIDISTANT:
        if len(given) < _FISHEYE_COUNT or count > _FISHEYE_COUNT:
            raise InvalidCameraError(
                f"{name} has {_FISHEYE_COUNT} distortion coefficients, got {len(given)}, of which "
                f"{count} count; if the lens is not a fisheye, its model is {PLUMB_BOB} or "
                f"{RATIONAL}"
            )
        return EQUIDISTANT, given[:_FISHEYE_COUNT], ""
    if model and model not in MODELS:
        raise InvalidCameraError(
            f"distortion model {name!r} is not known ({', '.join(MODELS)} are); feed rectified "
            "images, and say so with `rectify: never` where their topic's name does not"
        )
    used = next((n for n in _OPENCV_COUNTS if count <= n <= len(given)), None)
    if used is None:
        raise InvalidCameraError(
            f"{name or 'distortion'} with {len(given)} coefficients is no model: OpenCV has them "
            f"with {', '.join(map(str, _OPENCV_COUNTS))}"
        )
    by_number = PLUMB_BOB if used <= 5 else RATIONAL
    doubt = ""
    if not model:
        doubt = f"no distortion model is named; {used} coefficients are read as {by_number}"
    elif model == PLUMB_BOB and by_number == RATIONAL:
        doubt = f"{name} has 4 or 5 coefficients; {used} of them are read as {by_number}"
    return by_number, given[:used], doubt


@dataclass(frozen=True)
class DistortedCamera:
    """A calibrated camera with a lens.

    raw: intrinsics of the distorted image (K). model: one of MODELS. coefficients: of the lens (D),
    as many as `read_distortion` gives, none for no distortion. rotation: (9) row-major, from the
    camera's to the rectified frame (R). camera: of the rectified image (P).

    Raises InvalidCameraError.
    """

    raw: Camera
    model: str
    coefficients: tuple[float, ...]
    camera: Camera
    rotation: tuple[float, ...] = _IDENTITY

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InvalidCameraError(f"distortion model {self.model!r} is not known")
        if self.is_rectified:
            return  # the other numbers are not used
        read_distortion(self.model, self.coefficients)
        if not _is_rotation(self.rotation):
            raise InvalidCameraError("the rectification matrix R is not a rotation")

    @property
    def is_rectified(self) -> bool:
        """Whether no coefficient says otherwise.

        As in image_proc, neither R nor a P that differs from K count, nor that a fisheye bends
        rays with all coefficients zero: drivers of rectified cameras send zeros of every model.
        """
        return all(abs(c) <= NEGLIGIBLE for c in self.coefficients)

    def scaled(self, width: int, height: int) -> DistortedCamera:
        """The camera of the image resized to ``width`` x ``height`` pixels."""
        raw, camera = self.raw.scaled(width, height), self.camera.scaled(width, height)
        return replace(self, raw=raw, camera=camera)


@dataclass(frozen=True)
class Calibration:
    """The numbers of a calibration, those of ``sensor_msgs/CameraInfo``.

    width, height: of the full image in pixels. model, D: the lens. K: (9) row-major intrinsics of
    the distorted image; R: (9) rectification; P: (12) projection of the rectified image; each zeros
    where it was never filled in. binning: pixels of the sensor that are one of the image, (x, y).
    roi: the region of interest (x, y, width, height) in pixels of the full image; 0 wide: all.
    """

    width: int
    height: int
    model: str
    D: tuple[float, ...]
    K: tuple[float, ...]
    R: tuple[float, ...] = _IDENTITY
    P: tuple[float, ...] = _NO_PROJECTION
    binning: tuple[int, int] = (1, 1)
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def from_message(cls, info: Any) -> Calibration:
        """From a CameraInfo of rclpy or of a bag; ROS 1 names the matrices in capitals."""

        def values(name: str) -> tuple[float, ...]:
            found = getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())
            return tuple(np.asarray(found, np.float64).ravel().tolist())

        roi = info.roi
        return cls(
            int(info.width),
            int(info.height),
            str(info.distortion_model),
            values("d"),
            values("k"),
            values("r"),
            values("p"),
            (max(1, int(info.binning_x)), max(1, int(info.binning_y))),
            (int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        )

    @classmethod
    def from_camera(cls, camera: Camera) -> Calibration:
        """Of a rectified camera: no distortion, R is one, P is K."""
        K = camera.matrix()
        P = np.hstack([K, np.zeros((3, 1))])
        flat = tuple(K.ravel().tolist()), tuple(P.ravel().tolist())
        return cls(camera.width, camera.height, PLUMB_BOB, (0.0,) * 5, flat[0], P=flat[1])

    @classmethod
    def from_yaml(cls, content: Mapping[str, Any]) -> Calibration:
        """From the content of a file that ROS's ``camera_calibration`` wrote.

        Raises InvalidCameraError naming the key that is missing or of another form.
        """

        def values(name: str, count: int | None, default: tuple[float, ...] | None = None) -> Any:
            if default is not None and name not in content:
                return default
            try:
                found = tuple(float(v) for v in content[name]["data"])
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidCameraError(f"{name}: {{rows, cols, data: [...]}} expected") from error
            if count is not None and len(found) != count:
                raise InvalidCameraError(f"{name}: {count} numbers expected, got {len(found)}")
            return found

        size = content.get("image_width"), content.get("image_height")
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise InvalidCameraError("image_width and image_height must be whole numbers of pixels")
        return cls(
            int(size[0] or 0),
            int(size[1] or 0),
            str(content.get("distortion_model") or content.get("camera_model") or ""),
            values("distortion_coefficients", None, ()),
            values("camera_matrix", 9),
            values("rectification_matrix", 9, _IDENTITY),
            values("projection_matrix", 12, _NO_PROJECTION),
        )

    def camera(self, width: int, height: int) -> Camera:
        """The rectified pinhole camera of an image of ``width`` x ``height`` pixels.

        Taken from P where it is filled in, otherwise from K. An image of another size than the
        calibration's is its region of interest where there is one, binned or resized, else the
        full image, binned or resized.

        Raises:
            MessageError: ``bad_intrinsics`` for numbers that cannot belong to a camera,
                ``camera_info_size`` for a size that does not fit the image.
        """
        return self.fitted(width, height)._camera()

    def lens(self, width: int, height: int) -> DistortedCamera | None:
        """What bends the rays of an image of that size; None without distortion.

        Raises:
            MessageError: as :meth:`camera`, and ``bad_intrinsics`` for a distortion that
                `read_distortion` refuses, or an R that is not a rotation.
        """
        fitted = self.fitted(width, height)
        camera = fitted._camera()
        try:
            model, coefficients, _ = read_distortion(self.model, self.D)
            if not coefficients:
                return None  # whatever K and the model's name are
            # A driver that fills in P alone has no other intrinsics.
            k = fitted.K if _is_filled(self.K, 3) else _left_of(fitted.P)
            return DistortedCamera(
                raw=Camera(k[0], k[4], k[2], k[5], width, height),
                model=model,
                coefficients=coefficients,
                # Not filled, as by drivers of single cameras.
                rotation=self.R if any(self.R) else _IDENTITY,
                camera=camera,
            )
        except InvalidCameraError as error:
            raise MessageError("bad_intrinsics", f"camera_info: {error}") from error

    def rectified_from_optical(self) -> npt.NDArray[np.float64]:
        """(4, 4) from the frame that images are stamped with to that of the rectified camera.

        The rotation R, and for the second camera of a stereo pair, whose images carry the frame
        of the first, its place in P.
        """
        result = np.eye(4)
        if _is_rotation(self.R):
            result[:3, :3] = np.reshape(self.R, (3, 3))
        if _is_filled(self.P, 4):
            result[:3, 3] = _place_of(self.P)
        return result

    def place_in_pair(self) -> npt.NDArray[np.float64] | None:
        """(4, 4) from the rectified camera to the first one of its stereo pair, metres, by P.

        The identity for the first camera, and for a single one; None where P is not filled in.
        """
        if not _is_filled(self.P, 4):
            return None
        place = np.eye(4)
        place[:3, 3] = -_place_of(self.P)
        return place

    def of_depth(
        self,
        image_size: tuple[int, int],
        depth_size: tuple[int, int],
        window: tuple[int, int, int, int] | None = None,
    ) -> Calibration:
        """The calibration of a depth image that shows the rectified image, or a window of it.

        No distortion, no rotation, no region, K as P: what depth_image_proc, image_geometry and
        depthimage_to_laserscan take. A stereo camera's baseline stays in P.

        Args:
            image_size: (width, height) of the camera's image in pixels.
            depth_size: (width, height) of the depth image in pixels.
            window: (x, y, width, height) in pixels of the camera's image; None for all of it.

        Raises:
            MessageError: as :meth:`camera`.
        """
        fitted = self.fitted(*image_size)
        fitted._camera()
        if window is not None and window != (0, 0, *image_size):
            fitted = fitted._cut(*window)
        scaled = fitted._scaled(*depth_size)
        P = scaled.P
        if not _is_filled(self.P, 4):
            P = tuple(np.insert(np.reshape(scaled.K, (3, 3)), 3, 0.0, axis=1).ravel().tolist())
        return Calibration(*depth_size, PLUMB_BOB, (0.0,) * 5, _left_of(P), P=P)

    def doubts(
        self, width: int, height: int, topic: str = "", rectified: bool = False
    ) -> list[str]:
        """What is remarkable of the calibration of images of that size, in words.

        Args:
            width, height: of the image; it has to fit.
            topic: of the images, "" where there is none.
            rectified: whether they are rectified with it.
        """
        found = []
        camera = self.camera(width, height)
        for name, matrix, stride in (("P", self.P, 4), ("K", self.K, 3)):
            if _is_identity(matrix, stride):
                found.append(f"{name} is the identity, taken as not filled in")
        if any(self.R) and not _is_rotation(self.R):
            found.append("R is not a rotation, taken as not filled in")
        if rectified:
            found += filter(None, [read_distortion(self.model, self.D)[2]])
            if not _is_filled(self.K, 3):
                found.append("K is not filled in, P counts for the distorted image, too")
            words = re.split("[/_]", topic.lower())
            if any(word.startswith(("undist", "unwarp")) for word in words):
                found.append(
                    f"{topic} is called undistorted, but its calibration has distortion: it is "
                    "rectified; if it is undistorted already, set `rectify: never`"
                )
        x, y = camera.cx / width - 0.5, camera.cy / height - 0.5
        if max(abs(x), abs(y)) > _OFF_CENTRE:
            text = (
                f"the principal point ({camera.cx:.0f}, {camera.cy:.0f}) lies far from the middle "
                f"of {width}x{height}"
            )
            if self._camera_as_it_is_is_centred(width, height):
                text += (
                    f"; K and P seem to be those of images of {width}x{height} already, while the "
                    f"calibration says {self.width}x{self.height} with binning "
                    f"{self.binning[0]}x{self.binning[1]}"
                )
            found.append(text)
        return found

    def fitted(self, width: int, height: int) -> Calibration:
        """The calibration of exactly an image of ``width`` x ``height`` pixels; neither binning nor
        a region is left.

        Raises:
            MessageError: ``camera_info_size``.
        """
        if (self.width, self.height) == (width, height):
            return replace(self, binning=(1, 1), roi=(0, 0, 0, 0))
        if self.width < 1 or self.height < 1:
            raise MessageError(
                "camera_info_size",
                f"calibrated for {self.width}x{self.height} pixels, the image has {width}x{height}",
            )
        x, y, wide, high = self.roi
        inside = wide > 0 and high > 0 and x + wide <= self.width and y + high <= self.height
        if inside and self._shows_region(width, height):
            return self._cut(x, y, wide, high)._scaled(width, height)
        if not _same_aspect(self.width, self.height, width, height):
            raise MessageError(
                "camera_info_size",
                f"calibrated for {self.width}x{self.height} pixels, the image has "
                f"{width}x{height}: another aspect ratio, so it cannot be scaled to fit",
            )
        return self._scaled(width, height)

    def _shows_region(self, width: int, height: int) -> bool:
        """Whether an image of that size is the region of interest, possibly binned or resized."""
        _, _, wide, high = self.roi
        binned = (abs(wide / self.binning[0] - width), abs(high / self.binning[1] - height))
        return max(binned) < 1 or _same_aspect(wide, high, width, height)

    def _camera(self) -> Camera:
        matrix, name, stride = self.P, "P", 4
        if not _is_filled(matrix, stride):
            matrix, name, stride = self.K, "K", 3
        if not _is_filled(matrix, stride):
            raise MessageError(
                "bad_intrinsics",
                "K and P are all zeros, or the identity: the camera is not calibrated",
            )
        if not np.isfinite(matrix).all():
            raise MessageError("bad_intrinsics", f"{name} of camera_info is not finite")
        values = matrix[0], matrix[stride + 1], matrix[2], matrix[stride + 2]
        try:
            return Camera(*values, self.width, self.height)
        except InvalidCameraError as error:
            raise MessageError("bad_intrinsics", f"{name} of camera_info: {error}") from error

    def _camera_as_it_is_is_centred(self, width: int, height: int) -> bool:
        if (self.width, self.height) == (width, height):
            return False
        matrix, stride = (self.P, 4) if _is_filled(self.P, 4) else (self.K, 3)
        x, y = matrix[2] / width - 0.5, matrix[stride + 2] / height - 0.5
        return max(abs(x), abs(y)) <= _OFF_CENTRE

    def _cut(self, x: int, y: int, width: int, height: int) -> Calibration:
        """Of a window of the image, without a region of its own."""
        K, P = list(self.K), list(self.P)
        for matrix, stride in ((K, 3), (P, 4)):
            if _is_filled(tuple(matrix), stride):
                matrix[2] -= x
                matrix[stride + 2] -= y
        return replace(self, width=width, height=height, K=tuple(K), P=tuple(P), roi=(0, 0, 0, 0))

    def _scaled(self, width: int, height: int) -> Calibration:
        """Of the image resized to that size; binning is part of the scale."""
        sx, sy = width / self.width, height / self.height
        scale = np.array([[sx], [sy], [1.0]])

        def rows(matrix: tuple[float, ...], columns: int) -> tuple[float, ...]:
            if not _is_filled(matrix, columns):
                return matrix
            return tuple((np.reshape(matrix, (3, columns)) * scale).ravel().tolist())

        return replace(
            self,
            width=width,
            height=height,
            K=rows(self.K, 3),
            P=rows(self.P, 4),
            binning=(1, 1),
            roi=(0, 0, 0, 0),
        )


def _is_filled(matrix: tuple[float, ...], stride: int) -> bool:
    """Whether somebody calibrated it: its focal lengths are neither zero nor the identity's."""
    focal = matrix[0] != 0 or matrix[stride + 1] != 0
    return focal and not _is_identity(matrix, stride)


def _is_identity(matrix: tuple[float, ...], stride: int) -> bool:
    return (matrix[0], matrix[stride + 1], matrix[2], matrix[stride + 2]) == (1.0, 1.0, 0.0, 0.0)


def _is_rotation(matrix: tuple[float, ...]) -> bool:
    R = np.reshape(matrix, (3, 3))
    return bool(np.isfinite(R).all() and np.abs(R @ R.T - np.eye(3)).max() <= 1e-3)


def _place_of(P: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """(3,) metres of the first camera of a pair as this one sees it; a last row of zeros is 0 0 1,
    as nobody reads it."""
    left = np.array(_left_of(P)).reshape(3, 3)
    left[2] = 0, 0, 1
    place: npt.NDArray[np.float64] = np.linalg.solve(left, np.reshape(P, (3, 4))[:, 3])
    return place


def _left_of(P: tuple[float, ...]) -> tuple[float, ...]:
    """The left (3, 3) of a (3, 4) matrix, row-major."""
    return tuple(np.reshape(P, (3, 4))[:, :3].ravel().tolist())


def _same_aspect(width: int, height: int, other_width: int, other_height: int) -> bool:
    return abs(width * other_height / (height * other_width) - 1) <= ASPECT_TOLERANCE


def is_ros_calibration(content: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file is what ROS's ``camera_calibration`` writes."""
    return "camera_matrix" in content
