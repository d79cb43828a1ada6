"""One recording as training reads it: its frames, and which three of them belong together.

Intrinsics that cannot be right are refused before anything is trained on them.

Spans of a recording are left out, to choose by or to evaluate on. Frames beside each other show the
same place, so whole spans are held out, and never one end of the drive alone, which may be another
kind of road. No triplet reaches from one part into another: a part is the recording without the
other frames, whose numbers tell the gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.recordings import StoredRecording, is_bag, open_recording
from depth_prior_ros.recordings.bag_topics import BagTopics
from depth_prior_ros.recordings.base import Frame, Recording, RecordingError, is_video
from depth_prior_ros.recordings.folder import image_size, is_image_folder
from depth_prior_ros.recordings.stereo import StereoPairs, open_pairs
from depth_prior_ros.share import home_path, recording_path
from training.data.frames import FrameStore, FrameStores, Picture, Window
from training.data.static import StaticRule, Travel, Triplet, moving_triplets
from training.recipes.base import RecipeError
from training.recipes.data import Drive, Intrinsics, Mode, Part, Topics

#: Of eight spans, two are held out.
_TURN: tuple[Part, ...] = (
    "training",
    "training",
    "choosing",
    "training",
    "training",
    "evaluation",
    "training",
    "training",
)
_LEAST, _MOST = 40, 64  # frames of a span at least, as far as eight spans allow; and spans


def span_of(position: int, frames: int) -> Part:
    """The part that the frame at a position belongs to, in a recording of so many frames."""
    spans = len(_TURN) * min(max(1, frames // (_LEAST * len(_TURN))), _MOST // len(_TURN))
    return _TURN[position * spans // frames % len(_TURN)]


def part_of(recording: StoredRecording, part: Part) -> StoredRecording:
    """A recording with the frames of one part alone; what was skipped stays named once for all."""
    if part == "all":
        return recording
    frames, count = recording.frames, len(recording.frames)
    return replace(recording, frames=[f for i, f in enumerate(frames) if span_of(i, count) == part])


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


# More unreadable frames than this are a broken copy of the data, not bad luck.
CORRUPT_SHARE = 0.05
CORRUPT_ALLOWED = 3  # in a small set, this many are no reason to stop

Views = tuple[Picture, Picture | None]  # a frame at the network's size, and at the second one


@dataclass
class PartnerFrames:
    """The other camera of a stereo pair, at the network's size.

    K: (3, 3) in pixels. partner_from_camera: (4, 4) in metres. positions: of the partner's
    pictures, by the position of the frame that they belong to.
    """

    images: FrameStore
    K: np.ndarray
    partner_from_camera: np.ndarray
    positions: dict[int, int]

    def picture(self, position: int) -> Picture:
        """The partner (H, W, 3) uint8 RGB of the frame at a position; raises CorruptFrameError."""
        return self.images[self.positions[position]]


@dataclass
class DriveFrames:
    """One drive at the network's size.

    K: (3, 3) in pixels, of the frames that `cameras` gives none of their own. poses:
    world_from_camera in metres, by frame. triplets: frames (previous, current, next). travel:
    metres between frames. size: width and height of the pictures. teacher_images: the same frames
    at a second, larger size, teacher_K their intrinsics; None where there is none. partner: of the
    stereo pairs, where they are trained on.
    """

    weight: float
    images: FrameStore
    K: np.ndarray
    poses: dict[int, np.ndarray]
    triplets: list[Triplet]
    name: str = ""
    travel: Travel = field(default_factory=lambda: Travel(()))
    size: tuple[int, int] = (0, 0)
    teacher_images: FrameStore | None = None
    teacher_K: np.ndarray | None = None  # noqa: N815  as K
    cameras: dict[int, np.ndarray] = field(default_factory=dict)
    partner: PartnerFrames | None = None

    @property
    def slow(self) -> bool:
        """Whether a frame is decoded each time it is asked for."""
        partner = None if self.partner is None else self.partner.images
        stores = (self.images, self.teacher_images, partner)
        return any(store is not None and store.slow for store in stores)

    def matrix(self, position: int) -> np.ndarray:
        """Intrinsics (3, 3) in pixels of the picture at a position."""
        return self.cameras.get(position, self.K)

    def views(self, position: int) -> Views:
        """One image at each size, (H, W, 3) uint8 RGB; raises CorruptFrameError."""
        return self.images[position], None if self.teacher_images is None else self.teacher_images[
            position
        ]

    def why_corrupt(self, position: int) -> str | None:
        """Why a frame cannot be read; None where it can, as far as known."""
        why = self.images.corrupt.get(position)
        if why is None and self.teacher_images is not None:
            why = self.teacher_images.corrupt.get(position)
        if why is None and self.partner is not None:
            other = self.partner.positions.get(position)
            why = None if other is None else self.partner.images.corrupt.get(other)
        return why

    def picture(self, position: int) -> Picture:
        """One image (H, W, 3) uint8 RGB; raises CorruptFrameError."""
        return self.images[position]

    def motions(self, frames: Triplet) -> np.ndarray | None:
        """To previous and next from current, (2, 4, 4) in metres; None where not recorded."""
        if not all(i in self.poses for i in frames):
            return None
        before, current, after = (self.poses[i] for i in frames)
        return np.stack([rigid_inverse(before) @ current, rigid_inverse(after) @ current])

    def travels(self, frames: Triplet) -> tuple[float, float]:
        """Metres from previous to current and from current to next; NaN where not recorded."""
        before, current, after = frames
        return self.travel.metres(before, current), self.travel.metres(current, after)


def drive_path(root: Path, name: str) -> Path:
    """Where a recipe's drive lies: below the data root, else below the working directory.

    An absolute path is what it is, and the name of an embedded drive (`street`) means that. Where
    nothing lies in any of these places, the one below the data root.
    """
    below = root / home_path(name)
    if below.exists():
        return below
    elsewhere = recording_path(name)
    return elsewhere if elsewhere.exists() else below


def open_drive(root: Path, drive: Drive) -> StoredRecording:
    """Open the recording of a recipe's drive, with the camera that the recipe gives it.

    Raises:
        RecipeError: it cannot be opened, or its intrinsics are impossible.
    """
    path = drive_path(root, drive.path)
    options: dict[str, object] = {}
    pictures = is_image_folder(path) or is_video(path)
    if pictures:
        options.update(rate=drive.rate, rectify=drive.rectify)
    bag = is_bag(path)
    if bag:
        options["rectify"] = drive.rectify
        topics = BagTopics(**drive.topics.model_dump())
        options["topics"] = replace(topics, image=topics.image or drive.camera)
    elif drive.topics != Topics():
        raise RecipeError(f"drive {drive.path}: topics are those of a bag, which this is not")
    if drive.camera is not None and pictures:
        raise RecipeError(
            f"drive {drive.path}: camera chooses a folder of KITTI or a topic of a bag, and this "
            "is a folder of images, or a video"
        )
    if drive.intrinsics is not None:
        options["camera"] = _recipe_camera(path, drive)
    elif not bag and drive.camera is not None:
        options["camera"] = drive.camera
    try:
        recording = open_recording(path, **options)
    except RecordingError as error:
        hint = ""
        if "intrinsics" in str(error):
            hint = "; in the recipe: intrinsics: {fx: , fy: , cx: , cy: } of this drive"
        raise RecipeError(f"drive {drive.path}: {error}{hint}") from error
    for camera in {frame.camera for frame in recording.frames}:
        check_camera(camera, f"drive {drive.path}")
    return part_of(recording, drive.part)


def _recipe_camera(path: Path, drive: Drive) -> Camera:
    assert drive.intrinsics is not None
    if not (is_image_folder(path) or is_video(path) or is_bag(path)):
        raise RecipeError(
            f"drive {drive.path}: intrinsics are for folders of images, videos and bags only"
        )
    if drive.intrinsics.size is None and is_bag(path):
        raise RecipeError(f"drive {drive.path}: intrinsics of a bag need their size: [W, H]")
    size = drive.intrinsics.size or image_size(path)
    return camera_of(drive.intrinsics, size, f"drive {drive.path}: intrinsics")


def open_partner(root: Path, drive: Drive, recording: StoredRecording) -> StereoPairs:
    """The stereo partner of a recipe's drive.

    Raises:
        RecipeError: it has none, or the pictures contradict the calibration.
    """
    path = drive_path(root, drive.path)
    try:
        pairs = open_pairs(
            path,
            recording,
            drive.partner,
            tolerance=drive.partner_tolerance,
            rectify=drive.rectify,
        )
    except RecordingError as error:
        raise RecipeError(f"drive {drive.path}: data.mode needs stereo pairs: {error}") from error
    return pairs if pairs.recording is recording else _pairs_of_part(pairs, drive)


def _pairs_of_part(pairs: StereoPairs, drive: Drive) -> StereoPairs:
    """Those of a drive's part, where both cameras were read anew and so as a whole."""
    cut = part_of(pairs.recording, drive.part)
    partners = {pairs.recording.frames[p].index: q for p, q in pairs.positions.items()}
    kept = {i: partners[f.index] for i, f in enumerate(cut.frames) if f.index in partners}
    return replace(pairs, recording=cut, positions=kept)


def find_triplets(recording: Recording, stride: int, usable: Sequence[bool]) -> list[Triplet]:
    """Positions (previous, current, next) ``stride`` frames apart; no gap is bridged."""
    gaps = [recording.gap_before(i) for i in range(len(recording.frames))]
    found = []
    for i in range(stride, len(recording.frames) - stride):
        window = range(i - stride, i + stride + 1)
        if all(usable[j] for j in window) and not any(gaps[j] for j in list(window)[1:]):
            found.append((i - stride, i, i + stride))
    return found


def _kept_out(recording: Recording, rule: str) -> list[bool]:
    """Which frames may be used: with 'depth', none that has ground truth and no neighbour of it."""
    count = len(recording.frames)
    if rule == "none":
        return [True] * count
    has = [frame.has_depth for frame in recording.frames]
    return [not any(has[max(0, i - 1) : i + 2]) for i in range(count)]


def load_sequence(
    recording: Recording,
    drive: Drive,
    size: tuple[int, int],
    *,
    path: Path | None = None,
    stores: FrameStores | None = None,
    rule: StaticRule | None = None,
    targets: frozenset[int] | None = None,
    pairs: StereoPairs | None = None,
    mode: Mode = "M",
) -> tuple[DriveFrames, list[str]]:
    """Read a recording at the network's ``size`` (width, height).

    Args:
        recording: the frames.
        drive: how they are used.
        size: width and height of the pictures.
        path: where the recording lies (for the cache).
        stores: where resized frames are kept; default: all in memory.
        rule: when the camera counts as standing; default: never.
        targets: frame numbers that may be the middle of a triplet; default: all.
        pairs: the stereo partner; without one of its own no frame is the middle of a triplet.
        mode: with S, where nothing is compared over time, a triplet is one frame three times.

    Returns:
        The sequence and the list of what was left out, as text.

    Raises:
        RecipeError: too many frames cannot be read, or the cache cannot be written.
    """
    stores = stores or FrameStores(size)
    usable = _kept_out(recording, drive.keep_out)
    skipped = [f"{recording.name}: {s}" for s in recording.skipped]
    if mode == "S":
        triplets = [(i, i, i) for i, free in enumerate(usable) if free]
    else:
        triplets = find_triplets(recording, drive.stride, usable)
    if pairs is not None:
        skipped += [f"{recording.name}: {s}" for s in pairs.skipped]
        triplets = [t for t in triplets if t[1] in pairs.positions]
    if targets is not None:
        triplets = [t for t in triplets if recording.frames[t[1]].index in targets]
    needed = [i for i, free in enumerate(usable) if free] if triplets else []
    images = stores.open(path or Path(recording.name), recording.frames, needed, drive.crop)
    for position, why in images.corrupt.items():
        if usable[position]:
            skipped.append(f"{recording.name}: {why}")
            usable[position] = False
    refuse_broken(sum(not usable[i] for i in needed), len(needed), skipped)
    triplets = [t for t in triplets if all(usable[t[0] : t[2] + 1])]
    travel = Travel(recording.frames)
    rule = StaticRule() if rule is None or mode == "S" else rule
    moving = moving_triplets(triplets, travel, images.__getitem__, rule)
    if len(moving) < len(triplets):
        still = len(triplets) - len(moving)
        skipped.append(
            f"{recording.name}: the camera stands in {still} of {len(triplets)} triplets"
        )
    poses = {
        i: frame.pose
        for i, frame in enumerate(recording.frames)
        if frame.pose is not None and usable[i]
    }
    window, name = Window(size, drive.crop), recording.name
    K = _matrix(recording.frames, name, window)
    sequence = DriveFrames(drive.weight, images, K, poses, moving, name, travel, size)
    sequence.cameras = _other_cameras(recording, window)
    if pairs is not None and moving:
        skipped += _add_partner(sequence, pairs, drive, stores, path or Path(name))
    return sequence, skipped


def _other_cameras(recording: Recording, window: Window) -> dict[int, np.ndarray]:
    """Intrinsics of the frames whose camera is not the first one's."""
    frames = recording.frames
    matrices = {
        camera: _camera(camera, recording.name, window).matrix()
        for camera in {frame.camera for frame in frames[1:]} - {f.camera for f in frames[:1]}
    }
    return {i: matrices[f.camera] for i, f in enumerate(frames) if f.camera in matrices}


def _add_partner(
    sequence: DriveFrames, pairs: StereoPairs, drive: Drive, stores: FrameStores, path: Path
) -> list[str]:
    """Give a sequence the pictures of its stereo partner; what was left out, as text."""
    other = pairs.partner
    camera = other.mount.camera if other.mount is not None else other.name
    # A cache tells the two cameras of one bag apart by what is done to their frames.
    frames = [replace(f, processing=f"{f.processing} of {camera}".strip()) for f in other.frames]
    needed = sorted({pairs.positions[triplet[1]] for triplet in sequence.triplets})
    images = stores.open(path, frames, needed, drive.crop)
    K = _matrix(frames, other.name, Window(stores.size, drive.crop))
    sequence.partner = PartnerFrames(images, K, pairs.partner_from_camera, pairs.positions)
    corrupt = {p: why for p, why in images.corrupt.items() if p in needed}
    left_out = [f"{sequence.name}: {camera}: {why}" for why in corrupt.values()]
    refuse_broken(len(corrupt), len(needed), left_out)
    sequence.triplets = [t for t in sequence.triplets if pairs.positions[t[1]] not in corrupt]
    return left_out


def add_teacher_images(
    sequence: DriveFrames,
    drive: Drive,
    stores: FrameStores,
    path: Path | None = None,
) -> list[str]:
    """Give a sequence the pictures of a second size: those of its triplets' frames.

    Args:
        sequence: of `load_sequence`; triplets with a frame that cannot be read lose it.
        drive: how it was read.
        stores: where pictures of the second size are kept.
        path: where the recording lies (for the cache).

    Returns:
        What was left out, as text.

    Raises:
        RecipeError: too many frames cannot be read, or the cache cannot be written.
    """
    frames, name = sequence.travel.frames, sequence.name
    sequence.teacher_K = _matrix(frames, name, Window(stores.size, drive.crop))
    if stores.size == sequence.size:
        sequence.teacher_images = sequence.images
        return []
    needed = sorted({position for triplet in sequence.triplets for position in triplet})
    sequence.teacher_images = stores.open(path or Path(name), frames, needed, drive.crop)
    corrupt = {p: why for p, why in sequence.teacher_images.corrupt.items() if p in needed}
    left_out = [f"{name}: {why}" for why in corrupt.values()]
    refuse_broken(len(corrupt), len(needed), left_out)
    sequence.triplets = [t for t in sequence.triplets if not corrupt.keys() & set(t)]
    return left_out


def _matrix(frames: Sequence[Frame], name: str, window: Window) -> np.ndarray:
    """Intrinsics (3, 3) of the cropped and resized pictures."""
    return _camera(frames[0].camera, name, window).matrix() if len(frames) else np.eye(3)


def network_camera(recording: Recording, window: Window) -> Camera:
    """The camera of a recording's cropped and resized pictures, by its first frame.

    Raises:
        RecipeError: nothing sensible is left by the crop.
    """
    return _camera(recording.frames[0].camera, recording.name, window)


def _camera(camera: Camera, name: str, window: Window) -> Camera:
    try:
        return camera.cropped(*window.box(*camera.size)).scaled(*window.size)
    except InvalidCameraError as error:
        raise RecipeError(f"{name}: crop: {error}") from error


def refuse_broken(corrupt: int, frames: int, named: Sequence[str]) -> None:
    """Stop where more than a few per cent of the frames cannot be read.

    Raises:
        RecipeError: names some of them.
    """
    if corrupt > max(CORRUPT_ALLOWED, CORRUPT_SHARE * frames):
        some = "; ".join(list(named)[-3:])
        raise RecipeError(
            f"{corrupt} of {frames} frames cannot be read, more than {CORRUPT_SHARE:.0%}: the data "
            f"seem to be damaged, copy them again ({some})"
        )
