"""Frames with their truth, as a network of one input size is shown them under a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.evaluation.metrics import TruthPixels
from depth_prior_ros.evaluation.protocols import Protocol, cut
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import InvalidFrameError, fit_region, frame_image
from depth_prior_ros.recordings import CorruptFrameError, Frame, Recording, StoredRecording
from depth_prior_ros.recordings.base import name_skipped

Window = tuple[int, int, int, int]
"""x, y, width, height."""


@dataclass(frozen=True)
class EvaluationFrame:
    """A frame at a network's input size, and its truth.

    `position` counts in the recording's frames. `image` (h, w, 3) uint8 RGB is empty where only the
    truth was read; `camera` is its own. It shows the `window` of the recorded image.
    `truth`: the pixels of that window that count; None where the frame is only a predecessor.
    `moving`: what of the window moves by itself, at the truth's size; None where nobody knows.
    `pose`: world_from_camera (4, 4); None where unknown. `view`: the camera of the window, in
    pixels of the recorded image.
    """

    position: int
    index: int
    stamp_ns: int
    speed: float | None
    camera: Camera
    window: Window
    image: NDArray[np.uint8] = field(repr=False)
    truth: TruthPixels | None = field(default=None, repr=False)
    moving: NDArray[np.bool_] | None = field(default=None, repr=False)
    pose: NDArray[np.float64] | None = field(default=None, repr=False)
    view: Camera | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Frames with depth and the protocol they are evaluated by.

    `positions` holds the positions in ``recording.frames`` whose depth counts; the frames between
    them are still shown to a multi-frame model, in order. `listed`: the frames are those that
    papers quote, so that a figure over every one of them is wanted.
    """

    name: str
    protocol: Protocol
    recording: StoredRecording
    positions: tuple[int, ...]
    notes: tuple[str, ...] = ()
    listed: bool = False

    def followed(self) -> list[int]:
        """The positions whose frame directly follows the one before."""
        recording = self.recording
        return [i for i in self.positions if i and not recording.gap_before(i)]


def read_evaluation_frames(
    recording: Recording,
    protocol: Protocol,
    size: tuple[int, int],
    positions: Sequence[int],
    memory: float | None = 0,
    *,
    images: bool = True,
) -> Iterator[EvaluationFrame]:
    """Read the frames at the positions `positions`, and those before that a predictor needs.

    Whatever cannot be read, and truth of which nothing counts, is named in `recording.skipped`.

    Args:
        recording: where they are from.
        protocol: how they are shown, and which of their pixels count.
        size: (width, height) of the network's input.
        positions: those whose truth is wanted.
        memory: seconds before each of them whose frames are shown too, and at least the frame
            before; 0: none; None: all.
        images: whether the images are wanted, or the truth alone.
    """
    wanted = set(positions)
    for position in shown_positions(recording.frames, positions, memory):
        frame = recording.frames[position]
        try:
            yield read_evaluation_frame(
                recording, position, protocol, size, truth=position in wanted, images=images
            )
        except (CorruptFrameError, InvalidFrameError) as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))


def count(
    frames: Iterable[EvaluationFrame], told: Callable[[int, int], None], total: int
) -> Iterator[EvaluationFrame]:
    """The frames; before each of them `told` hears how many of the `total` are done."""
    for done, frame in enumerate(frames):
        told(done, total)
        yield frame


def shown_positions(
    frames: Sequence[Frame], positions: Sequence[int], memory: float | None
) -> list[int]:
    """Positions to be shown where those in `positions` count; see `read_evaluation_frames`."""
    if memory == 0:
        return sorted(positions)
    before = range(max(positions, default=-1) + 1)
    if memory is None or not before:
        return list(before)
    stamps = np.array([frames[position].stamp_ns for position in before])
    ends = np.array(sorted(positions))
    following = ends[np.searchsorted(ends, before)]  # the next chosen position of each
    recent = stamps[following] - stamps <= memory * 1e9
    return [p for p in before if recent[p] or following[p] == p + 1]


def read_evaluation_frame(
    recording: Recording,
    position: int,
    protocol: Protocol,
    size: tuple[int, int],
    *,
    truth: bool = True,
    images: bool = True,
) -> EvaluationFrame:
    """Read one frame; see `read_evaluation_frames`. Raises CorruptFrameError, InvalidFrameError."""
    frame = recording.frames[position]
    image, camera = np.zeros((0, 0, 3), np.uint8), frame.camera
    if images:
        image, camera = _shown(frame, protocol, size)
    depth = frame.depth() if truth else None
    window = shown_window(camera=frame.camera, size=size, stretch=protocol.stretch)
    pixels, moving = None, None
    if depth is not None:
        # Truth may be coarser than the image: Make3D's laser is.
        inside = scaled_window(window, frame.camera.size, (depth.shape[1], depth.shape[0]))
        pixels = protocol.truth(depth, inside)
        if pixels.index.size:
            moving = _moving(frame, depth, inside)
        else:
            pixels = None
            what = f"depth of frame {frame.index}"
            name_skipped(recording.skipped, what, "nothing to compare: no pixel of it counts")
    return EvaluationFrame(
        position,
        frame.index,
        frame.stamp_ns,
        frame.speed,
        camera,
        window,
        image,
        pixels,
        moving,
        frame.pose,
        _camera_of_window(frame.camera, window),
    )


def _camera_of_window(camera: Camera, window: Window) -> Camera:
    x, y, width, height = window
    return replace(camera, cx=camera.cx - x, cy=camera.cy - y, width=width, height=height)


def _shown(
    frame: Frame, protocol: Protocol, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], Camera]:
    """The image at the network's input size, and its camera."""
    image, camera = frame.image(), frame.camera
    if protocol.stretch:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        camera = camera.scaled(*size)
    framed = frame_image(image, camera, camera_of_size(size))
    return framed.pixels, framed.camera


def camera_of_size(size: tuple[int, int]) -> Camera:
    """A camera of which nothing is known but (width, height), for `frame_image`."""
    width, height = size
    return Camera(width, width, width / 2, height / 2, width, height)


def shown_window(camera: Camera, size: tuple[int, int], stretch: bool = False) -> Window:
    """The window of a camera's image that a network of input `size` (width, height) is shown."""
    if stretch:
        return (0, 0, *camera.size)
    region = fit_region(*camera.size, size[0] / size[1])
    return region.x, region.y, region.width, region.height


def scaled_window(window: Window, old: tuple[int, int], new: tuple[int, int]) -> Window:
    """A window of a picture of size `old` (width, height) in the same picture of size `new`."""
    if old == new:
        return window
    sx, sy = new[0] / old[0], new[1] / old[1]
    x, y, width, height = window
    left, top = round(x * sx), round(y * sy)
    right, bottom = round((x + width) * sx), round((y + height) * sy)
    return left, top, right - left, bottom - top


def _moving(frame: Frame, truth: NDArray[Any], window: Window) -> NDArray[np.bool_] | None:
    moving = frame.moving()
    if moving is None:
        return None
    if moving.shape != truth.shape:
        size = (truth.shape[1], truth.shape[0])
        moving = cv2.resize(moving.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return cut(moving, window)
