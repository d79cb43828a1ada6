"""Cityscapes (Cordts et al., CVPR 2016) for evaluation, without the car's own bonnet.

leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png      2048 x 1024
camera/SPLIT/CITY/CITY_SEQUENCE_FRAME_camera.json               intrinsics, baseline
disparity/SPLIT/CITY/CITY_SEQUENCE_FRAME_disparity.png          16 bit: (value - 1) / 256 pixels

or, in place of disparities, the depth that ManyDepth's authors publish:

gt_depths/000_depth.npy, 001_depth.npy, ...                     (1024, 2048) metres
gt_depths/test_files.txt (or beside it)                         CITY NAME of each, in order

The bottom quarter of image, depth and camera is dropped, as the papers do.

Sequences of 30 frames around each of these, for training (ManyDepth, 4.1); a city is a recording:

leftImg8bit_sequence/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
rightImg8bit_sequence/SPLIT/CITY/CITY_SEQUENCE_FRAME_rightImg8bit.png     the stereo partner
camera/SPLIT/CITY/CITY_SEQUENCE_*_camera.json      one for all frames of a sequence
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.recordings.base import (
    FRAME_PERIOD_NS,
    CorruptFrameError,
    Frame,
    Mount,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
    readable,
)
from depth_prior_ros.recordings.image_files import (
    depth_of_disparity,
    positive,
    probe_image,
    read_bytes,
    read_image,
)
from depth_prior_ros.untrusted import IMAGE_PIXELS, check_regular, parse_json, read_text

FULL_SIZE = (2048, 1024)  # width and height that calibration and disparity belong to
KEPT_ROWS = 0.75
SPLITS = ("test", "val", "train")
_IMAGE, _DISPARITY, _CAMERA = "_leftImg8bit", "_disparity", "_camera"
_DEPTHS, _LISTED = "gt_depths", "test_files.txt"


def is_cityscapes(path: Path) -> bool:
    """Whether a folder holds Cityscapes' left images."""
    return (path / "leftImg8bit").is_dir()


@folder_format("cityscapes", "Cityscapes' leftImg8bit and camera", is_cityscapes)
def open_cityscapes(path: Path, *, split: str | None = None) -> StoredRecording:
    """Open a split ("test" where it is there, then "val", "train"); separate scenes.

    Depth is the published .npy set where it lies in the folder (it belongs to "test"), otherwise
    what the disparity gives. Raises RecordingError without usable images, or where the .npy set
    cannot be told apart because its list is missing.
    """
    path = Path(path)
    chosen = split or next((s for s in SPLITS if (path / "leftImg8bit" / s).is_dir()), SPLITS[0])
    files = sorted((path / "leftImg8bit" / chosen).glob(f"*/*{_IMAGE}.png"))
    skipped: list[Skipped] = []
    arrays = _listed_depths(path) if chosen == "test" else {}
    frames: list[Frame] = []
    for file in files:
        try:
            frames.append(_frame(path, chosen, file, arrays, len(frames)))
        except (CorruptFrameError, InvalidCameraError) as error:
            skipped.append(Skipped(f"image {file.stem.removesuffix(_IMAGE)}", str(error)))
    if not frames:
        first = f" (first: {skipped[0]})" if skipped else ""
        raise RecordingError(f"{path}: no usable image in leftImg8bit/{chosen}{first}")
    lacking = sum(not frame.has_depth for frame in frames)
    notes = [f"{lacking} images have no depth"] if lacking else []
    return StoredRecording(
        f"cityscapes_{chosen}",
        frames,
        skipped,
        depth_source="stereo" if lacking < len(frames) else None,
        consecutive=False,
        notes=notes,
    )


SIDES = ("left", "right")
_SEQUENCES = tuple(f"{side}Img8bit_sequence" for side in SIDES)
_PERIOD_NS = 1_000_000_000 // 17  # 17 frames a second
_LONGEST = 1_000_000  # frame numbers have six digits


def is_city(path: Path) -> bool:
    """Whether a folder holds a city's sequences."""
    return len(path.parents) > 1 and path.parents[1].name in _SEQUENCES


@folder_format(
    "cityscapes_city", "a city of Cityscapes' leftImg8bit_sequence (SPLIT/CITY)", is_city, rank=0
)
def open_city(path: Path, *, camera: str | None = None) -> StoredRecording:
    """Open the sequences of a city; between two of them is a gap.

    Frames of a sequence without a calibration are left out. ``camera``: left or right, by default
    that of the path. Raises RecordingError without usable images.
    """
    path = Path(path)
    side = camera or path.parents[1].name.removesuffix("Img8bit_sequence")
    if side not in SIDES:
        raise RecordingError(f"{path}: camera {side!r} is neither left nor right")
    root, split, city = path.parents[2], path.parent.name, path.name
    folder = root / f"{side}Img8bit_sequence" / split / city
    skipped: list[Skipped] = []
    frames: list[Frame] = []
    cameras: dict[str, tuple[Camera, float] | None] = {}
    for file in sorted(folder.glob(f"*_{side}Img8bit.png")):
        *parts, number = file.stem.removesuffix(f"_{side}Img8bit").split("_")
        name = "_".join(parts)
        try:
            index = _number(parts[-1:], file) * 2 * _LONGEST + _number([number], file)
            if name not in cameras:
                cameras[name] = None
                cameras[name] = _sequence_camera(root / "camera" / split / city, file, name)
        except (CorruptFrameError, InvalidCameraError) as error:
            skipped.append(Skipped(f"image {file.name}", str(error)))
            continue
        found = cameras[name]
        if found is not None:
            frames.append(_sequence_frame(file, index, found[0]))
    if not frames:
        first = f" (first: {skipped[0]})" if skipped else ""
        raise RecordingError(f"{folder}: no usable image of a sequence{first}")
    baselines = [found[1] for found in cameras.values() if found is not None]
    baseline, notes = baselines[0], []
    if max(baselines) > 1.01 * min(baselines):
        notes.append(
            f"baselines from {min(baselines):.4f} to {max(baselines):.4f} m; that of the first "
            "sequence counts for all"
        )
    rig_from_camera = np.eye(4)
    rig_from_camera[0, 3] = baseline if side == "right" else 0.0
    mount = Mount(side, rig_from_camera)
    return StoredRecording(f"cityscapes_{city}", frames, skipped, mount=mount, notes=notes)


def _sequence_frame(file: Path, index: int, camera: Camera) -> Frame:
    rows = round(camera.height * KEPT_ROWS)
    return Frame(
        index=index,
        stamp_ns=index * _PERIOD_NS,
        camera=camera.cropped(0, 0, camera.width, rows),
        load_image=partial(_read_upper, file, rows),
    )


def _number(words: list[str], file: Path) -> int:
    if not words or not words[0].isdecimal() or int(words[0]) >= _LONGEST:
        raise CorruptFrameError(f"{file.name} is not named CITY_SEQUENCE_FRAME_...")
    return int(words[0])


def _sequence_camera(folder: Path, file: Path, name: str) -> tuple[Camera, float]:
    """The camera of all images of a sequence, and its baseline in metres."""
    files = sorted(folder.glob(f"{name}_*{_CAMERA}.json"))
    if not files:
        raise CorruptFrameError(
            f"no {name}_*{_CAMERA}.json in {folder}: Cityscapes has its cameras in an archive of "
            "their own"
        )
    camera, factor = _read_camera(files[0], probe_image(file))
    return camera, factor * camera.width / (camera.fx * FULL_SIZE[0])


def _frame(path: Path, split: str, file: Path, arrays: dict[str, Path], index: int) -> Frame:
    name, city = file.stem.removesuffix(_IMAGE), file.parent.name
    width, height = probe_image(file)
    rows = round(height * KEPT_ROWS)
    calibration = path / "camera" / split / city / f"{name}{_CAMERA}.json"
    camera, factor = _read_camera(calibration, (width, height))
    disparity = path / "disparity" / split / city / f"{name}{_DISPARITY}.png"
    load = None
    if name in arrays:
        load = partial(_read_array, arrays[name])
    elif disparity.is_file():
        load = partial(_read_disparity, disparity, factor)
    return Frame(
        index=index,
        stamp_ns=index * FRAME_PERIOD_NS,
        camera=camera.cropped(0, 0, width, rows),
        load_image=partial(_read_upper, file, rows),
        load_depth=load,
    )


def _listed_depths(path: Path) -> dict[str, Path]:
    """The .npy files by the name of their image; empty where there is no such set."""
    folder = path / _DEPTHS
    if not folder.is_dir():
        return {}
    for listed in (folder / _LISTED, path / _LISTED):
        if listed.is_file():
            with readable(listed):
                lines = read_text(listed).splitlines()
            names = [line.split()[-1] for line in lines if line.strip()]
            files = [folder / f"{number:03d}_depth.npy" for number in range(len(names))]
            found = {n: f for n, f in zip(names, files, strict=True) if f.is_file()}
            if found:
                return found
    raise RecordingError(
        f"{folder}: depth by number needs the list of its images: put {_LISTED} (a line CITY NAME "
        "for each number) into it"
    )


def _read_camera(file: Path, size: tuple[int, int]) -> tuple[Camera, float]:
    """The camera of images of `size`, and depth times disparity: metres x pixels at full size."""
    with readable(file, CorruptFrameError):
        text = read_text(file)
    try:
        content = parse_json(text)
        k, baseline = content["intrinsic"], float(content["extrinsic"]["baseline"])
        fx, fy, cx, cy = (float(k[name]) for name in ("fx", "fy", "u0", "v0"))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFrameError(f"{file}: no intrinsics and baseline in it ({error!r})") from error
    full = Camera(fx, fy, cx, cy, *FULL_SIZE)
    if not full.same_aspect(full.scaled(*size)):
        raise CorruptFrameError(f"{file}: calibrated at {FULL_SIZE}, but the image is {size}")
    return full.scaled(*size), full.fx * baseline


def _read_upper(file: Path, rows: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(read_image(file)[:rows])


def _read_disparity(file: Path, factor: float) -> NDArray[np.float32]:
    """Depth in metres: `factor` (focal length in pixels x baseline) over disparity in pixels."""
    raw = cv2.imdecode(np.frombuffer(read_bytes(file), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise CorruptFrameError(f"{file}: not a 16-bit, one-channel disparity image")
    pixels = (raw[: round(len(raw) * KEPT_ROWS)].astype(np.float32) - 1) / 256
    return depth_of_disparity(pixels, factor)


def _read_array(file: Path) -> NDArray[np.float32]:
    try:
        check_regular(file)
        # Mapped: a header that says more than the file has is an error, and takes no memory.
        depth = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # its header is a piece of Python, with that parser's errors
        raise CorruptFrameError(f"{file}: cannot be read ({error})") from error
    if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise CorruptFrameError(f"{file}: it is no depth image")
    if depth.size > IMAGE_PIXELS:
        raise CorruptFrameError(f"{file}: {depth.size:,} pixels, {IMAGE_PIXELS:,} are the most")
    return positive(depth[: round(len(depth) * KEPT_ROWS)])
