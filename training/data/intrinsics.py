"""Intrinsics that cannot be right are refused before anything is trained on them."""

from __future__ import annotations

from depth_prior_ros.camera import Camera, InvalidCameraError
from training.config_base import RecipeError
from training.config_data import Intrinsics

# Focal lengths in image widths: a fisheye's centre has 0.2, a strong telephoto lens 10.
_SHORTEST, _LONGEST = 0.2, 10.0
_SQUARE = 2.0  # pixels are at most twice as high as wide, or as wide as high


def check_camera(camera: Camera, where: str) -> None:
    """Refuse intrinsics that no camera of a vehicle has; ``where`` begins the message.

    Raises:
        RecipeError: a principal point outside the image, a focal length below 0.2 or above 10
            image widths, pixels far from square.
    """
    focal = camera.fx / camera.width
    wrong = None
    if not _SHORTEST <= focal <= _LONGEST:
        wrong = f"the focal length is {focal:.3g} image widths ({_SHORTEST:g} to {_LONGEST:g})"
    elif not 1 / _SQUARE <= camera.fx / camera.fy <= _SQUARE:
        wrong = f"fx {camera.fx:g} and fy {camera.fy:g} differ by more than a factor {_SQUARE:g}"
    elif not (0 <= camera.cx < camera.width and 0 <= camera.cy < camera.height):
        wrong = f"the principal point ({camera.cx:g}, {camera.cy:g}) lies outside the image"
    if wrong:
        raise RecipeError(
            f"{where}: intrinsics are impossible for images of {camera.width}x{camera.height}: "
            f"{wrong}. They have to be in pixels of these images"
        )


def camera_of(intrinsics: Intrinsics, size: tuple[int, int], where: str) -> Camera:
    """The camera that a recipe gives for images of ``size`` (width, height).

    Raises:
        RecipeError: the numbers are no camera of such images.
    """
    width, height = intrinsics.size or size
    x, y = (width, height) if intrinsics.unit == "normalised" else (1, 1)
    try:
        camera = Camera(
            intrinsics.fx * x,
            intrinsics.fy * y,
            intrinsics.cx * x,
            intrinsics.cy * y,
            width,
            height,
        )
    except InvalidCameraError as error:
        raise RecipeError(f"{where}: {error}") from error
    check_camera(camera, where)
    return camera
