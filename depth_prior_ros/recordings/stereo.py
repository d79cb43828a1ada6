"""Two cameras of one rig: which frames are pairs, and how the second camera stands to the first.

Both pictures of a pair are of one instant, and the distance between the cameras is known in metres.
Pairs are rectified: the cameras look in the same direction, side by side, so that a point lies in
the same row of both pictures, and further left in the right one. Whether that holds is looked at in
the pictures, because calibrations are mixed up more often than cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.images.calibration import EQUIDISTANT
from depth_prior_ros.motion.transforms import TransformBuffer, TransformError
from depth_prior_ros.recordings import is_bag, open_recording
from depth_prior_ros.recordings.bag import BagCamera, cameras_in_bag, open_bag
from depth_prior_ros.recordings.bag_topics import BagTopics, camera_of
from depth_prior_ros.recordings.base import (
    CorruptFrameError,
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
)
from depth_prior_ros.recordings.stamps import nearest

TOLERANCE = 0.005
"""Seconds by which the two stamps of a pair may differ: at 10 m/s the view moves 5 cm."""

_PARTNERS = {
    "image_00": "image_01",
    "image_01": "image_00",
    "image_02": "image_03",
    "image_03": "image_02",
    "image_0": "image_1",
    "image_1": "image_0",
    "image_2": "image_3",
    "image_3": "image_2",
    "images": "partner",  # of `depth_bag extract`
    "left": "right",
    "right": "left",
}
# Metres between the cameras of a rig on a vehicle.
_SHORTEST, _LONGEST = 0.01, 5.0
# Shares of the baseline by which rectified cameras may stand apart up, down or forwards.
_BESIDE = 0.05
_TRIED = 3  # pairs whose pictures are looked at
_FEWEST_MATCHES = 20
_ROWS_APART = 2.0  # pixels, of pictures about 640 wide
_WIDTH = 640


@dataclass(frozen=True)
class StereoPairs:
    """The second camera of a recording.

    Attributes:
        recording: of the first camera; another reading of it than was given where the two had to
            be rectified together.
        partner: the recording of the second camera.
        partner_from_camera: (4, 4) float64, metres, between the rectified cameras.
        positions: position of a frame's partner in ``partner.frames``, by the frame's position.
        skipped: frames without a partner, and why.
    """

    recording: StoredRecording
    partner: StoredRecording
    partner_from_camera: NDArray[np.float64]
    positions: dict[int, int]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def baseline(self) -> float:
        """Metres to the partner along x: above 0 where it stands to the right."""
        return -float(self.partner_from_camera[0, 3])

    def by_stamp(self) -> dict[int, Frame]:
        """The partners by the stamp of the frame that they belong to."""
        frames, others = self.recording.frames, self.partner.frames
        return {frames[p].stamp_ns: others[q] for p, q in self.positions.items()}

    def __str__(self) -> str:
        side = "right" if self.baseline > 0 else "left"
        camera = self.partner.mount.camera if self.partner.mount else self.partner.name
        return (
            f"{len(self.positions)} pairs with {camera}, {abs(self.baseline):.3f} m to the {side}"
        )


def open_pairs(
    path: Path,
    recording: StoredRecording,
    partner: str | None = None,
    *,
    tolerance: float = TOLERANCE,
    look: bool = True,
    rectify: str = "auto",
) -> StereoPairs:
    """Find the stereo partner of an open recording.

    Args:
        path: of the recording.
        recording: of one camera, as `open_recording` gives it.
        partner: folder or image topic of the other camera; None: KITTI's and Cityscapes' other
            one, or of a bag the one that its calibrations, or tf, say stands beside.
        tolerance: seconds by which two stamps of a pair may differ.
        look: whether the pictures of some pairs are looked at.
        rectify: of a bag, as `open_bag` takes it.

    Raises:
        RecordingError: there is no second camera or no calibration of the pair, the cameras do not
            stand side by side, no frame has a partner, or the pictures contradict the calibration.
    """
    mount = recording.mount
    if mount is None:
        raise RecordingError(f"{path}: stereo pairs need two cameras, and here is one only")
    if partner == mount.camera:
        raise RecordingError(f"{path}: the partner of {partner} has to be another camera")
    if is_bag(path):
        recording, other = _open_in_bag(path, recording, partner, rectify)
    elif partner or mount.camera in _PARTNERS:
        other = _open_other(path, partner or _PARTNERS[mount.camera])
    else:
        raise RecordingError(f"{path}: {mount.camera} has no usual partner: name it")
    _refuse_sizes(path, recording, other)
    motion = _partner_from_camera(path, recording, other)
    positions, skipped = _match(recording.frames, other, tolerance)
    if not positions:
        raise RecordingError(
            f"{path}: no image of {_name(other)} is within {tolerance * 1e3:g} ms of one of "
            f"{mount.camera}{_nearest(recording.frames, other.frames)}; the two cameras have to "
            "take their pictures at the same time"
        )
    pairs = StereoPairs(recording, other, motion, positions, skipped)
    if look:
        check_pictures(path, pairs)
    return pairs


def bag_partners(path: Path, camera: str) -> list[tuple[str, float]]:
    """Image topics of a bag whose cameras stand beside ``camera``'s, with the metres to them along
    x (above 0: to the right), by the P of their calibrations, else by tf."""
    return _beside(camera, *cameras_in_bag(path))


def _beside(
    camera: str, cameras: Sequence[BagCamera], transforms: TransformBuffer
) -> list[tuple[str, float]]:
    mine = next((c for c in cameras if camera_of(c.topic) == camera_of(camera)), None)
    if mine is None:
        return []
    found = []
    for other in cameras:
        if other is mine:
            continue
        motion = _by_projections(mine, other)
        if motion is None:
            motion = _by_tf(mine, other, transforms)
        if motion is not None and _SHORTEST <= abs(motion[0, 3]) <= _LONGEST:
            found.append((other.topic, -float(motion[0, 3])))
    return found


def _open_in_bag(
    path: Path, recording: StoredRecording, partner: str | None, rectify: str
) -> tuple[StoredRecording, StoredRecording]:
    """Both cameras of a bag, by the P of their calibrations, else rectified together by tf."""
    camera = _name(recording)
    cameras, transforms = cameras_in_bag(path)
    if partner is None:
        beside = [topic for topic, _ in _beside(camera, cameras, transforms)]
        if len(beside) > 1:
            raise RecordingError(
                f"{path}: several cameras stand beside {camera}: name one of {', '.join(beside)}"
            )
        if not beside:
            raise RecordingError(
                f"{path}: no other camera is known to stand beside {camera}: neither does P of a "
                "camera_info have a baseline (-fx times metres) as its fourth number, nor is there "
                "tf between two cameras"
            )
        partner = beside[0]
    mine, other = (
        next((c for c in cameras if camera_of(c.topic) in (topic, camera_of(topic))), None)
        for topic in (camera, partner)
    )
    if mine is None or other is None or _by_projections(mine, other) is not None:
        return recording, _open_other(path, BagTopics(image=partner), rectify)
    motion = _by_tf(mine, other, transforms)
    if motion is None:  # the complaint about the missing baseline follows
        return recording, _open_other(path, BagTopics(image=partner), rectify)
    return _rectify_together(path, mine, other, motion, BagTopics(**recording.streams))


def _by_projections(first: BagCamera, second: BagCamera) -> NDArray[np.float64] | None:
    """second_from_first of the rectified cameras by P; None where P has no baseline."""
    places = [camera.calibration.place_in_pair() for camera in (first, second)]
    if places[0] is None or places[1] is None:
        return None
    motion = rigid_inverse(places[1]) @ places[0]
    return motion if abs(motion[0, 3]) >= _SHORTEST else None


def _by_tf(
    first: BagCamera, second: BagCamera, transforms: TransformBuffer
) -> NDArray[np.float64] | None:
    """second_from_first of the cameras as they are mounted; None where tf does not say."""
    if first.frame == second.frame:
        return None
    try:
        return np.asarray(transforms.lookup(second.frame, first.frame, 0, 0), np.float64)
    except TransformError:
        return None


def _rectify_together(
    path: Path,
    first: BagCamera,
    second: BagCamera,
    second_from_first: NDArray[np.float64],
    topics: BagTopics,
) -> tuple[StoredRecording, StoredRecording]:
    """Both recordings, rectified by OpenCV's method of Bouguet from their lenses and tf.

    topics: of the first one.
    """
    lenses = []
    for camera in (first, second):
        c = camera.calibration
        lens = c.lens(c.width, c.height)
        if lens is None:
            raise RecordingError(
                f"{path}: {camera.topic} has no distortion in its camera_info, and no baseline in "
                "its P: it seems to be rectified, but not together with its partner; run ROS's "
                "stereo calibration, which writes R and P of a pair"
            )
        lenses.append(lens)
    a, b = lenses
    if a.model != b.model:
        raise RecordingError(
            f"{path}: the lenses of a pair have one model, not {a.model}, {b.model}"
        )
    fisheye = a.model == EQUIDISTANT
    rectify: Any = cv2.fisheye.stereoRectify if fisheye else cv2.stereoRectify
    K1, D1 = a.raw.matrix(), np.array(a.coefficients, np.float64)
    K2, D2 = b.raw.matrix(), np.array(b.coefficients, np.float64)
    R, t = second_from_first[:3, :3], second_from_first[:3, 3:]
    more = {} if fisheye else {"alpha": 0}
    R1, R2, P1, P2, *_ = rectify(
        K1, D1, K2, D2, a.raw.size, R, t, flags=cv2.CALIB_ZERO_DISPARITY, **more
    )
    opened = []
    for camera, rotation, P in ((first, R1, P1), (second, R2, P2)):
        calibration = replace(
            camera.calibration, R=tuple(rotation.ravel().tolist()), P=tuple(P.ravel().tolist())
        )
        opened.append(
            open_bag(
                path,
                topics=topics if camera is first else BagTopics(image=camera.topic),
                calibration=calibration,
                rectify="always",
            )
        )
        opened[-1].notes.append(f"{camera.topic} is rectified together with its partner, by tf")
    return opened[0], opened[1]


def _open_other(path: Path, name: str | BagTopics, rectify: str = "auto") -> StoredRecording:
    try:
        if isinstance(name, BagTopics):
            return open_bag(path, topics=name, rectify=rectify)
        return open_recording(path, camera=name)
    except RecordingError as error:
        raise RecordingError(f"the partner of a stereo pair cannot be read: {error}") from error


def _refuse_sizes(path: Path, first: StoredRecording, second: StoredRecording) -> None:
    mine, other = first.frames[0].camera, second.frames[0].camera
    if mine.size != other.size:
        raise RecordingError(
            f"{path}: {_name(first)} has images of {mine.width}x{mine.height}, its partner "
            f"{_name(second)} of {other.width}x{other.height}: the pictures of a rectified pair "
            "have one size"
        )


def _partner_from_camera(
    path: Path, first: StoredRecording, second: StoredRecording
) -> NDArray[np.float64]:
    places = []
    for recording in (first, second):
        place = None if recording.mount is None else recording.mount.rig_from_camera
        if place is None:
            raise RecordingError(
                f"{path}: no calibration says where {_name(recording)} stands in its rig "
                "(calib_cam_to_cam.txt or calib.txt of KITTI, P of a camera_info)"
            )
        places.append(place)
    motion = rigid_inverse(places[1]) @ places[0]
    x, y, z = motion[:3, 3]
    both = f"{path}: by their calibrations {_name(first)} and {_name(second)}"
    if not np.isfinite(motion).all():
        raise RecordingError(f"{both} stand nowhere: their P holds numbers that are not finite")
    if abs(x) < _SHORTEST:
        raise RecordingError(
            f"{both} stand in the same place: the P of one of them has to have the baseline, -fx "
            "times metres, as its fourth number"
        )
    if abs(x) > _LONGEST:
        raise RecordingError(
            f"{both} are {abs(x):.3g} m apart, more than {_LONGEST:g} m; is the baseline in metres?"
        )
    if max(abs(y), abs(z)) > _BESIDE * abs(x):
        raise RecordingError(
            f"{both} do not stand side by side: ({x:.3f}, {y:.3f}, {z:.3f}) m to the right, down "
            "and forwards; rectify them together"
        )
    return np.asarray(motion, np.float64)


def _match(
    frames: Sequence[Frame], other: StoredRecording, tolerance: float
) -> tuple[dict[int, int], list[Skipped]]:
    """The partner of each frame by its stamp; every partner belongs to one frame only."""
    stamps = [frame.stamp_ns for frame in other.frames]
    found: dict[int, int] = {}
    skipped = []
    taken: set[int] = set()
    for position, frame in enumerate(frames):
        best = nearest(stamps, frame.stamp_ns)
        if best is None or best in taken or abs(stamps[best] - frame.stamp_ns) > tolerance * 1e9:
            skipped.append(Skipped(f"frame {frame.index}", f"no partner in {_name(other)}"))
            continue
        taken.add(best)
        found[position] = best
    return found, skipped


def _nearest(frames: Sequence[Frame], others: Sequence[Frame]) -> str:
    """How far apart the nearest two stamps are, in words."""
    if not frames or not others:
        return ""
    stamps = np.array([frame.stamp_ns for frame in others])
    apart = min(int(np.abs(stamps - frame.stamp_ns).min()) for frame in frames)
    return f" (the nearest two are {apart * 1e-6:.4g} ms apart)"


def check_pictures(path: Path, pairs: StereoPairs) -> None:
    """Compare the pictures of a few pairs with what the calibration says of them.

    Raises:
        RecordingError: points lie in other rows, or on the wrong side: the cameras are swapped.
    """
    shifts: list[NDArray[np.float64]] = []
    every = max(1, len(pairs.positions) // _TRIED)
    for position, partner in list(pairs.positions.items())[::every][:_TRIED]:
        try:
            pictures = (
                pairs.recording.frames[position].image(),
                pairs.partner.frames[partner].image(),
            )
        except CorruptFrameError:
            continue
        shifts.append(_shifts(*pictures))
    matches = np.concatenate(shifts) if shifts else np.zeros((0, 2))
    if len(matches) < _FEWEST_MATCHES:
        return  # too dark or too even to say
    right, down = np.median(matches, axis=0)
    if abs(down) > _ROWS_APART:
        raise RecordingError(
            f"{path}: points of a pair with {_name(pairs.partner)} lie {down:+.1f} rows apart (of "
            f"pictures {_WIDTH} wide): the pair is not rectified"
        )
    if right * pairs.baseline > 0 and abs(right) > 1:
        raise RecordingError(
            f"{path}: by its calibration {_name(pairs.partner)} stands {abs(pairs.baseline):.3f} m "
            f"to the {'right' if pairs.baseline > 0 else 'left'}, but points lie further to the "
            f"{'right' if right > 0 else 'left'} in its pictures: the two cameras, or their "
            "calibrations, are swapped"
        )


def _shifts(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How far (right, down) points of the first picture lie in the second, (N, 2) pixels.

    ORB features that are each other's best match, in pictures resized to one width.
    """
    size = (_WIDTH, max(1, round(first.shape[0] * _WIDTH / first.shape[1])))
    detector = cv2.ORB_create(800)  # type: ignore[attr-defined]
    found = []
    for picture in (first, second):
        grey = cv2.cvtColor(
            cv2.resize(picture, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
        )
        found.append(detector.detectAndCompute(grey, None))
    (points, words), (others, other_words) = found
    if words is None or other_words is None:
        return np.zeros((0, 2))
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(words, other_words)
    pairs = [(points[m.queryIdx].pt, others[m.trainIdx].pt) for m in matches if m.distance < 40]
    shifts = np.array([np.subtract(b, a) for a, b in pairs]).reshape(-1, 2)
    # Wrong matches lie anywhere.
    return shifts[np.abs(shifts[:, 1]) < _WIDTH / 16]


def _name(recording: StoredRecording) -> str:
    return recording.mount.camera if recording.mount is not None else recording.name
