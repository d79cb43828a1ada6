"""Depth in metres of what both cameras of a rig see, by semi-global matching.

OpenCV's matcher (Hirschmueller, PAMI 2008) from left to right and from right to left; what the two
do not agree on is left out (occlusions, sky, even walls), so depth is sparse, and what is there is
meant to be right.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import Frame, RecordingError, StoredRecording
from depth_prior_ros.recordings.stereo import StereoPairs

NEAREST = 3.0
"""Metres from which on depth is looked for; the nearer, the longer it takes."""

LEAST_DISPARITY = 3.0
"""Pixels; of less, a quarter of a pixel, which matching may be wrong by, is a twelfth and more."""

_AGREE = 0.5  # pixels between both directions
_BLOCK = 5  # pixels
_WIDEST = 0.25  # of the picture's width: no larger disparity is looked for
_SPECKLE = 100  # pixels: smaller patches of a disparity of their own are left out


def stereo_depth(
    image: NDArray[np.uint8],
    partner_image: NDArray[np.uint8],
    camera: Camera,
    partner_camera: Camera,
    baseline: float,
) -> NDArray[np.float32]:
    """Depth of a picture of a rectified pair, (H, W) float32 metres, 0 = unknown.

    Args:
        image: (H, W, 3) uint8 RGB.
        partner_image: of the same size, taken at the same instant.
        camera: of the image.
        partner_camera: with the same focal lengths and principal row.
        baseline: metres to the partner along x: above 0 where it stands to the right.

    Raises:
        RecordingError: the two are not of one size, or not rectified to one focal length and row.
    """
    _refuse_cameras(camera, partner_camera)
    if image.shape != partner_image.shape:
        raise RecordingError(
            f"a pair of pictures of {image.shape[1]}x{image.shape[0]} and "
            f"{partner_image.shape[1]}x{partner_image.shape[0]}: they have to be of one size"
        )
    first, second = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (image, partner_image))
    # In a mirrored picture the left camera is the right one.
    mirrored = baseline < 0
    if mirrored:
        first, second = np.fliplr(first), np.fliplr(second)
    reach = camera.fx * abs(baseline) / NEAREST
    disparity = _disparity(first, second, min(reach, _WIDEST * camera.width))
    if mirrored:
        disparity = np.fliplr(disparity)
    # Rays that are parallel may end in different columns.
    apart = (camera.cx - partner_camera.cx) * (-1 if mirrored else 1)
    parallax = disparity - np.float32(apart)
    depth = np.zeros(disparity.shape, np.float32)
    seen = (disparity > 0) & (parallax >= LEAST_DISPARITY)
    np.divide(np.float32(camera.fx * abs(baseline)), parallax, out=depth, where=seen)
    return depth


def with_stereo_depth(pairs: StereoPairs) -> StoredRecording:
    """The recording of the first camera, the depth of its pairs matched when it is asked for.

    Depth that the recording has itself is replaced; frames without partner have none.

    Raises:
        RecordingError: the two cameras are not rectified to one focal length and row.
    """
    frames = [
        replace(frame, load_depth=_loader(pairs, position, frame))
        for position, frame in enumerate(pairs.recording.frames)
    ]
    return replace(pairs.recording, frames=frames, depth_source="stereo")


def _loader(pairs: StereoPairs, position: int, frame: Frame) -> partial[NDArray[np.float32]] | None:
    if position not in pairs.positions:
        return None
    partner = pairs.partner.frames[pairs.positions[position]]
    _refuse_cameras(frame.camera, partner.camera)
    return partial(_load, frame, partner, pairs.baseline)


def _load(frame: Frame, partner: Frame, baseline: float) -> NDArray[np.float32]:
    return stereo_depth(frame.image(), partner.image(), frame.camera, partner.camera, baseline)


def _disparity(
    left: NDArray[np.uint8], right: NDArray[np.uint8], reach: float
) -> NDArray[np.float32]:
    """Pixels (H, W) by which the left picture's points lie further left in the right one; 0: none.

    Args:
        left: grey (H, W).
        right: of the same size.
        reach: the largest disparity that is looked for.
    """
    count = max(16, 16 * int(np.ceil(reach / 16)))
    matcher = cv2.StereoSGBM_create(  # type: ignore[attr-defined]
        minDisparity=0,
        numDisparities=count,
        blockSize=_BLOCK,
        P1=8 * _BLOCK**2,
        P2=32 * _BLOCK**2,
        uniquenessRatio=15,
        speckleWindowSize=_SPECKLE,
        speckleRange=2,
    )
    there = _match(matcher, left, right, count)
    back = np.fliplr(_match(matcher, np.fliplr(right), np.fliplr(left), count))
    columns = np.arange(left.shape[1], dtype=np.float32)[None]
    rows = np.arange(left.shape[0])[:, None]
    landed = np.clip(np.rint(columns - there), 0, left.shape[1] - 1).astype(int)
    agree = (there > 0) & (np.abs(back[rows, landed] - there) <= _AGREE)
    return np.where(agree, there, np.float32(0))


def _match(
    matcher: cv2.StereoSGBM,
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    count: int,
) -> NDArray[np.float32]:
    """Disparities of the left picture, negative where there is none."""
    # OpenCV knows none in the first `count` columns: a border gives it room to look.
    wide = (cv2.copyMakeBorder(p, 0, 0, count, 0, cv2.BORDER_REPLICATE) for p in (left, right))
    found = matcher.compute(*wide)[:, count:]
    return found.astype(np.float32) / 16


def _refuse_cameras(camera: Camera, partner: Camera) -> None:
    width = camera.width
    focal = max(abs(camera.fx - partner.fx), abs(camera.fy - partner.fy))
    if focal > 0.01 * camera.fx or abs(camera.cy - partner.cy) > 1e-3 * width:
        raise RecordingError(
            f"stereo depth needs a pair that is rectified to one focal length and row, and these "
            f"have fx {camera.fx:.1f} and {partner.fx:.1f}, cy {camera.cy:.1f} and "
            f"{partner.cy:.1f}: rectify them together"
        )
