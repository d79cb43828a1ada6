"""A data set that `depth_bag extract` wrote: a recording as files that any tool reads.

    manifest.json             cameras, source and settings; where the camera stands; written last
    frames.jsonl              a line a frame: stamp, speed, pose, its files and their hashes
    images/NNNNNN.jpg|png     as they were recorded, with the distortion of their lens where
                              `distorted` of the frame says so, else rectified
    depth/NNNNNN.png          16 bits, metres x 256, 0 = none
    moving/NNNNNN.png         8 bits, 255 = moves by itself
    partner/NNNNNN.jpg|png    of the other camera of a stereo pair

What is read here is the recording that it was made of: the same stamps, poses, cameras and, but for
images that had to become JPEGs, the same pixels.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.images.calibration import DistortedCamera
from depth_prior_ros.images.rectification import LensCorrection
from depth_prior_ros.recordings.base import (
    Frame,
    Mount,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
)
from depth_prior_ros.recordings.image_files import read_bytes, read_depth, read_image
from depth_prior_ros.strict_yaml import problem_of
from depth_prior_ros.untrusted import parse_json, read_file

MANIFEST, FRAMES = "manifest.json", "frames.jsonl"
IMAGES, DEPTH, MOVING, PARTNER = "images", "depth", "moving", "partner"
SCHEMA = 1

_MANIFEST_BYTES, _FRAMES_BYTES = 1 << 26, 1 << 31

Suffix = Literal[".jpg", ".png"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class View(_Strict):
    """A camera, and the lens of its images as they were recorded; None: they are rectified."""

    camera: Camera
    lens: DistortedCamera | None = None


class Picture(_Strict):
    """An image of a frame: kind of its file, which of the manifest's views it is of, and whether it
    has the distortion of that view's lens still."""

    suffix: Suffix
    view: int = Field(ge=0)
    distorted: bool


class FrameLine(_Strict):
    """A line of frames.jsonl.

    index: the frame's number here, by which its files are called; source_index: in the recording.
    speed: m/s. pose: world_from_camera, the first three rows. static: whether the vehicle stands;
    None: unknown. sha256: of the files by their folder.
    """

    index: int = Field(ge=0)
    source_index: int
    stamp_ns: int
    image: Picture
    partner: Picture | None = None
    depth: bool = False
    moving: bool = False
    speed: Finite | None = None
    pose: Annotated[list[Finite], Field(min_length=12, max_length=12)] | None = None
    static: bool | None = None
    sha256: dict[str, str] = Field(default_factory=dict)

    def file(self, folder: str) -> str:
        """Name of a file of the frame in one of the folders."""
        pictures = {IMAGES: self.image, PARTNER: self.partner}
        picture = pictures.get(folder)
        return f"{self.index:06d}{picture.suffix if picture else '.png'}"


class Manifest(_Strict):
    """manifest.json of a finished data set.

    source: what it was made of, with hashes. settings: of `depth_bag extract`.
    partner_from_camera: (16) row-major, metres, between the rectified cameras. static_spans:
    first and last frame of each while the vehicle stood.
    """

    schema_version: int
    recording: str
    source: dict[str, Any]
    settings: dict[str, Any]
    done: Literal[True]
    frames: int
    frames_sha256: str
    views: list[View]
    partner_from_camera: Annotated[list[Finite], Field(min_length=16, max_length=16)] | None = None
    depth_source: Literal["lidar", "stereo", "exact"] | None = None
    consecutive: bool = True
    camera: str = ""
    streams: dict[str, str] = Field(default_factory=dict)
    static_spans: list[tuple[int, int]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    skipped: list[tuple[str, str]] = Field(default_factory=list)


def is_extracted(path: Path) -> bool:
    """Whether a folder is a data set of `depth_bag extract`, also an unfinished one."""
    return (path / MANIFEST).is_file() and (path / IMAGES).is_dir()


@folder_format(
    "extracted", "a data set of depth_bag extract (manifest.json, images)", is_extracted, rank=0
)
def open_extracted(path: Path, *, camera: str | None = None) -> StoredRecording:
    """Open a data set; camera: `images` (the default) or `partner`.

    Raises RecordingError for one that is not finished or damaged.
    """
    path = Path(path)
    if camera not in (None, IMAGES, PARTNER):
        raise RecordingError(f"{path}: its cameras are {IMAGES} and {PARTNER}, not {camera}")
    manifest, lines = read_manifest(path), read_lines(path)
    beside = camera == PARTNER
    if beside and manifest.partner_from_camera is None:
        raise RecordingError(f"{path}: no stereo partner in it; extract it with --stereo")
    corrections = [LensCorrection(view.lens) for view in manifest.views]
    skipped = [Skipped(what, why) for what, why in manifest.skipped]
    there = {folder: _names(path / folder) for folder in (IMAGES, DEPTH, MOVING, PARTNER)}
    frames = []
    for line in lines:
        picture = line.partner if beside else line.image
        if picture is None:
            continue
        if picture.view >= len(manifest.views):
            raise RecordingError(f"{path / FRAMES}: frame {line.index} has no camera")
        folder = PARTNER if beside else IMAGES
        if line.file(folder) not in there[folder]:
            skipped.append(Skipped(f"frame {line.index}", f"{line.file(folder)} is missing"))
            continue
        view, correction = manifest.views[picture.view], corrections[picture.view]
        frames.append(_frame(path, line, folder, view, correction, there))
    if not frames:
        raise RecordingError(f"{path}: no frame in it")
    has_depth = any(frame.has_depth for frame in frames)
    place: NDArray[np.float64] | None = None
    if manifest.partner_from_camera is not None:
        motion = np.reshape(manifest.partner_from_camera, (4, 4))
        place = rigid_inverse(motion) if beside else np.eye(4)
    return StoredRecording(
        manifest.recording,
        frames,
        skipped,
        depth_source=manifest.depth_source if has_depth else None,
        consecutive=manifest.consecutive,
        notes=list(manifest.notes),
        mount=Mount(PARTNER if beside else IMAGES, place),
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished data set; raises RecordingError."""
    file = path / MANIFEST
    try:
        content = parse_json(read_file(file, _MANIFEST_BYTES))
        if isinstance(content, dict) and content.get("done") is False:
            raise RecordingError(
                f"{path}: its extraction was not finished; give the same command again"
            )
        manifest = Manifest.model_validate(content)
    except (OSError, ValueError) as error:
        raise RecordingError(f"{file}: cannot be read ({_words(error)})") from error
    if manifest.schema_version != SCHEMA:
        raise RecordingError(
            f"{file}: schema {manifest.schema_version}; this version reads {SCHEMA}"
        )
    return manifest


def read_lines(path: Path) -> list[FrameLine]:
    """The frames of a data set, in order; raises RecordingError."""
    file = path / FRAMES
    try:
        text = read_file(file, _FRAMES_BYTES)
        lines = [FrameLine.model_validate_json(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise RecordingError(f"{file}: cannot be read ({_words(error)})") from error
    if any(a.index >= b.index or a.stamp_ns >= b.stamp_ns for a, b in pairwise(lines)):
        raise RecordingError(f"{file}: numbers and stamps of its frames do not increase")
    return lines


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return problem_of(error) if isinstance(error, OSError) else str(error)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def _frame(
    path: Path,
    line: FrameLine,
    folder: str,
    view: View,
    correction: LensCorrection,
    there: dict[str, set[str]],
) -> Frame:
    picture = line.partner if folder == PARTNER else line.image
    assert picture is not None
    file = path / folder / line.file(folder)
    bent = picture.distorted and view.lens is not None
    own = folder == IMAGES
    depth = path / DEPTH / line.file(DEPTH)
    moving = path / MOVING / line.file(MOVING)
    size = view.camera.size
    if bent:
        assert view.lens is not None
        load = partial(correction.read, partial(read_image, file, view.lens.raw.size))
    else:
        load = partial(read_image, file, size)
    pose = None
    if line.pose is not None:
        pose = np.vstack([np.reshape(line.pose, (3, 4)), [0.0, 0.0, 0.0, 1.0]])
    has_depth = own and line.depth and depth.name in there[DEPTH]
    has_moving = own and line.moving and moving.name in there[MOVING]
    return Frame(
        index=line.index,
        stamp_ns=line.stamp_ns,
        camera=view.camera,
        load_image=load,
        load_depth=partial(read_depth, depth) if has_depth else None,
        pose=pose if own else None,
        speed=line.speed,
        file=None if bent else file,
        load_moving=partial(_load_moving, moving) if has_moving else None,
        processing=correction.words if bent else "",
        load_stored=partial(read_bytes, file),
        lens=view.lens if bent else None,
    )


def _load_moving(file: Path) -> NDArray[np.bool_]:
    return np.asarray(read_image(file)[..., 0] > 0)
