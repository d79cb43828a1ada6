"""A drive of KITTI raw (Geiger et al., IJRR 2013), as published or thinned out.

DATE/calib_cam_to_cam.txt
DATE/DATE_drive_NNNN_sync/image_02/data/0000000000.png|jpg   (or image_02/*.png directly)
                          image_02/timestamps.txt
                          oxts/data/0000000000.txt
                          proj_depth/{groundtruth,velodyne_raw}/image_02/0000000000.png

Depth of KITTI depth (Uhrig et al., 3DV 2017) may lie in the drive, or as published beside the
dates or in a folder `kitti_depth` there: {train,val}/DRIVE/proj_depth/...; and its own selection:

val_selection_cropped/{image,groundtruth_depth,intrinsics}/DRIVE_{image,...}_NNNNNNNNNN_image_02.*

Separate scenes of KITTI 2015 (Menze and Geiger, CVPR 2015) with depth from stereo, as published:

training/image_2/000000_10.png       training/disp_occ_0/000000_10.png (16-bit, pixels x 256)
training/calib_cam_to_cam/000000.txt (of an archive of its own)

or with depth instead of disparity:

image_02/000002.jpg, depth_stereo/000002.png (16-bit, metres x 256), calib_cam_to_cam.txt

A sequence of KITTI odometry: images, calib.txt, times.txt, and poses beside the sequences.

sequences/NN/{image_2,image_0}/000000.png|jpg, calib.txt, times.txt
poses/NN.txt      one 3x4 world_from_camera per line, of camera 0

Calibration files are read with what is really in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.recordings.base import (
    FRAME_PERIOD_NS,
    STAMP_ORIGIN_NS,
    CorruptFrameError,
    Frame,
    Mount,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
    readable,
    speeds_from_poses,
)
from depth_prior_ros.recordings.image_files import (
    IMAGE_SUFFIXES,
    frame_of_file,
    images_by_number,
    name_missing,
    probe_all,
    probe_image,
    read_depth_of_disparity,
)
from depth_prior_ros.untrusted import read_text

# The colour camera of 2011-09-26, from KITTI's own calib_cam_to_cam.txt of that day.
CAMERA_2011_09_26 = Camera(721.5377, 721.5377, 609.5593, 172.854, 1242, 375)


@dataclass(frozen=True)
class Projection:
    """A rectified camera of a calibration file: P (3, 4), and its image size where given."""

    matrix: NDArray[np.float64]
    size: tuple[int, int] | None


def read_calibration(path: Path) -> dict[str, NDArray[np.float64]]:
    """The numeric rows of a KITTI calibration file by name; other rows are passed over."""
    rows: dict[str, NDArray[np.float64]] = {}
    with readable(path):
        text = read_text(path)
    for line in text.splitlines():
        name, separator, values = line.partition(":")
        try:
            numbers = np.array([float(v) for v in values.split()])
        except ValueError:
            continue
        if separator and numbers.size:
            rows[name.strip()] = numbers
    return rows


def find_projection(path: Path, names: list[str]) -> tuple[str, Projection]:
    """The first of the named 3x4 projections that the file has, with the name found.

    `P_rect_02` finds its image size in `S_rect_02`. Raises RecordingError without any.
    """
    rows = read_calibration(path)
    for name in names:
        row = rows.get(name)
        if row is None or row.size != 12:
            continue
        size_row = rows.get(name.replace("P_rect", "S_rect")) if "P_rect" in name else None
        size = None
        if size_row is not None and size_row.size == 2:
            size = (int(size_row[0]), int(size_row[1]))
        return name, Projection(row.reshape(3, 4), size)
    raise RecordingError(f"{path}: none of {', '.join(names)} with 12 numbers in it")


def camera_for_images(
    projection: Projection, size: tuple[int, int], where: str, notes: list[str]
) -> Camera:
    """The camera of images of `size`, scaled (and noted) where the calibration is of another.

    Raises RecordingError where the aspect ratios differ by more than 1 %, or the numbers are no
    camera.
    """
    width, height = projection.size or size
    try:
        camera = Camera.from_matrix(projection.matrix, width, height)
    except InvalidCameraError as error:
        raise RecordingError(f"{where}: {error}") from error
    return scaled_to_images(camera, size, where, notes)


def scaled_to_images(camera: Camera, size: tuple[int, int], where: str, notes: list[str]) -> Camera:
    """`camera` for images of `size`; see `camera_for_images`."""
    if camera.size == size:
        return camera
    resized = camera.scaled(*size)
    if not camera.same_aspect(resized):
        raise RecordingError(
            f"{where}: calibrated at {camera.width}x{camera.height}, but the images are "
            f"{size[0]}x{size[1]}, which is no resized version of that"
        )
    notes.append(f"camera scaled from {camera.width}x{camera.height} to {size[0]}x{size[1]}")
    return resized


def _usable_images(
    folder: Path, skipped: list[Skipped], *, sequence: bool = True, reasons: bool = False
) -> tuple[dict[int, Path], tuple[int, int]]:
    """Images by their number, and their size; raises RecordingError without any.

    sequence: numbers that are missing are named. reasons: the error says why.
    """
    listed = images_by_number(folder, skipped)
    if sequence:
        name_missing(list(listed), "frame", skipped)
    images, size = probe_all(listed, skipped)
    if size is None:
        why = f" ({_reasons(skipped)})" if reasons else ""
        raise RecordingError(f"{folder}: no usable image in it{why}")
    return images, size


def _usual_stamp(number: int) -> int:
    """The stamp of a frame where nothing says when it was taken."""
    return STAMP_ORIGIN_NS + number * FRAME_PERIOD_NS


def _stamps(
    files: Sequence[Path],
    what: str,
    read: Callable[[str], Callable[[int], int]],
    images: Iterable[int],
    notes: list[str],
) -> dict[int, int]:
    """Stamps in nanoseconds by frame number, of the first of the files that is there; or 10 Hz.

    what: its entries are called. read: from its text to the stamp of a frame by number.
    """
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        try:
            stamp_of = read(read_text(file))
            stamps = {number: stamp_of(number) for number in images}
            if all(a < b for a, b in itertools.pairwise(stamps.values())):
                return stamps
            notes.append(f"{file}: {what} do not increase; 10 Hz taken")
        except (OSError, ValueError, IndexError, OverflowError):
            notes.append(f"{file}: does not cover every frame; 10 Hz taken")
    return {number: _usual_stamp(number) for number in images}


# Between the cameras 2 and 3 of 2011-09-26, from KITTI's own calib_cam_to_cam.txt of that day.
BASELINE_2011_09_26 = 0.5327190


def is_kitti_2015(path: Path) -> bool:
    """Whether a folder holds KITTI 2015 scenes."""
    simple = (path / "image_02").is_dir() and (path / "depth_stereo").is_dir()
    return simple or _published_2015(path) is not None


def _published_2015(path: Path) -> Path | None:
    """The folder `training` of the published archive: `path` or a folder in it."""
    for folder in (path / "training", path):
        if (folder / "image_2").is_dir() and (folder / "disp_occ_0").is_dir():
            return folder
    return None


# Before KITTI raw and odometry: both have such folders of images.
@folder_format(
    "kitti_2015",
    "KITTI 2015 scenes (training/image_2 and disp_occ_0, or image_02 and depth_stereo)",
    is_kitti_2015,
    rank=0,
)
def open_kitti_2015(path: Path) -> StoredRecording:
    """Open the scenes; no frame follows another (`gap_before` is True for all but the first).

    As published, each scene has an image size and a camera of its own, and depth is that of its
    disparity (occluded pixels included). Raises RecordingError without a usable image.
    """
    path = Path(path)
    published = _published_2015(path)
    if published is not None:
        return _open_published_2015(path.name, published)
    skipped: list[Skipped] = []
    notes: list[str] = []
    images, size = _usable_images(path / "image_02", skipped, sequence=False)
    file = path / "calib_cam_to_cam.txt"
    if file.is_file():
        _, projection = find_projection(file, ["P_rect_02"])
        camera = camera_for_images(projection, size, str(file), notes)
    else:
        notes.append("no calib_cam_to_cam.txt: KITTI's own values of 2011-09-26 taken")
        camera = scaled_to_images(CAMERA_2011_09_26, size, str(path), notes)
    depths = images_by_number(path / "depth_stereo", skipped)
    frames = [
        frame_of_file(number, _usual_stamp(number), camera, image, size, depths.get(number))
        for number, image in images.items()
    ]
    source = "stereo" if depths else None
    return StoredRecording(
        path.name, frames, skipped, depth_source=source, consecutive=False, notes=notes
    )


def _open_published_2015(name: str, folder: Path) -> StoredRecording:
    skipped: list[Skipped] = []
    frames: list[Frame] = []
    notes: list[str] = []
    for image in sorted((folder / "image_2").glob("[0-9]*_10.png")):
        scene = image.stem.removesuffix("_10")
        try:
            size = probe_image(image)
            camera, baseline = _camera_2015(folder / "calib_cam_to_cam" / f"{scene}.txt", size)
        except (CorruptFrameError, RecordingError) as error:
            skipped.append(Skipped(f"scene {scene}", str(error)))
            continue
        disparity = folder / "disp_occ_0" / image.name
        load = None
        if disparity.is_file():
            load = partial(read_depth_of_disparity, disparity, camera.fx * baseline, size)
        stamp = _usual_stamp(int(scene))
        frames.append(frame_of_file(int(scene), stamp, camera, image, size, load_depth=load))
    if not frames:
        raise RecordingError(f"{folder / 'image_2'}: no usable image ({_reasons(skipped)})")
    if not (folder / "calib_cam_to_cam").is_dir():
        notes.append("no calib_cam_to_cam: KITTI's own values of 2011-09-26 taken for every scene")
    return StoredRecording(
        name, frames, skipped, depth_source="stereo", consecutive=False, notes=notes
    )


def _camera_2015(file: Path, size: tuple[int, int]) -> tuple[Camera, float]:
    """Camera and baseline (metres) of a scene; those of 2011-09-26 where there is no such file."""
    if not file.parent.is_dir():
        return scaled_to_images(CAMERA_2011_09_26, size, str(file.parent), []), BASELINE_2011_09_26
    _, left = find_projection(file, ["P_rect_02"])
    _, right = find_projection(file, ["P_rect_03"])
    camera = camera_for_images(left, size, str(file), [])
    return camera, float(left.matrix[0, 3] - right.matrix[0, 3]) / float(left.matrix[0, 0])


def is_kitti_depth_selection(path: Path) -> bool:
    """Whether a folder holds KITTI depth's selection for validation."""
    return all((path / name).is_dir() for name in ("image", "groundtruth_depth", "intrinsics"))


@folder_format(
    "kitti_depth_selection",
    "KITTI depth's selection (image, groundtruth_depth, intrinsics)",
    is_kitti_depth_selection,
    rank=0,
)
def open_kitti_depth_selection(path: Path) -> StoredRecording:
    """Open `val_selection_cropped`: separate images, each with a camera of its own.

    Raises RecordingError without a usable image.
    """
    path = Path(path)
    skipped: list[Skipped] = []
    frames: list[Frame] = []
    for index, image in enumerate(sorted((path / "image").glob("*.png"))):
        matrix = path / "intrinsics" / f"{image.stem}.txt"
        try:
            size = probe_image(image)
            numbers = np.array([float(v) for v in read_text(matrix).split()]).reshape(3, 3)
            camera = Camera.from_matrix(numbers, *size)
        except CorruptFrameError as error:
            skipped.append(Skipped(image.name, str(error)))
            continue
        except (OSError, ValueError) as error:
            skipped.append(Skipped(image.name, f"{matrix}: no nine numbers of a camera ({error})"))
            continue
        depth = path / "groundtruth_depth" / image.name.replace("_image_", "_groundtruth_depth_", 1)
        there = depth if depth.is_file() else None
        frames.append(frame_of_file(index, _usual_stamp(index), camera, image, size, there))
    if not frames:
        raise RecordingError(f"{path / 'image'}: no usable image ({_reasons(skipped)})")
    return StoredRecording(path.name, frames, skipped, depth_source="lidar", consecutive=False)


ODOMETRY_CAMERAS = ("image_2", "image_0", "image_3", "image_1")


def is_kitti_odometry(path: Path) -> bool:
    """Whether a folder looks like a KITTI odometry sequence."""
    return any((path / camera).is_dir() for camera in ODOMETRY_CAMERAS)


@folder_format("kitti_odometry", "a KITTI odometry sequence (image_0)", is_kitti_odometry)
def open_kitti_odometry(
    path: Path, *, camera: str | None = None, poses: Path | None = None
) -> StoredRecording:
    """Open `sequences/NN`; `poses` defaults to `../../poses/NN.txt` where that is there.

    Raises RecordingError without a usable image.
    """
    path = Path(path)
    name = _find_camera_folder(path, camera)
    skipped: list[Skipped] = []
    notes: list[str] = []
    images, size = _usable_images(path / name, skipped)
    calibrated, mount = _odometry_camera(path, name, size, notes)
    stamps = _stamps([path / "times.txt"], "times", _odometry_times, images, notes)
    world = _poses(path, poses, mount.rig_from_camera, notes)
    speeds = _speeds(images, world, stamps)
    frames = [
        frame_of_file(
            *(number, stamps[number], calibrated, file, size),
            pose=world.get(number),
            speed=speeds.get(number),
        )
        for number, file in images.items()
    ]
    return StoredRecording(f"odometry_{path.name}", frames, skipped, notes=notes, mount=mount)


def _find_camera_folder(path: Path, camera: str | None) -> str:
    for name in (camera,) if camera else ODOMETRY_CAMERAS:
        if (path / name).is_dir():
            return name
    raise RecordingError(f"{path}: no {camera or 'image_2 or image_0'} in it")


def _odometry_camera(
    path: Path, name: str, size: tuple[int, int], notes: list[str]
) -> tuple[Camera, Mount]:
    """The camera, and where it stands in the frame of camera 0, which the poses are of."""
    file = path / "calib.txt"
    if not file.is_file():
        notes.append("no calib.txt: KITTI's own values of 2011-09-26 taken")
        return scaled_to_images(CAMERA_2011_09_26, size, str(path), notes), Mount(name)
    _, projection = find_projection(file, [f"P{name[-1]}"])
    camera = camera_for_images(projection, size, str(file), notes)
    return camera, Mount.of_projection(name, projection.matrix)


def _odometry_times(text: str) -> Callable[[int], int]:
    """The stamp of each of the seconds in times.txt."""
    times = [float(value) for value in text.split()]
    return lambda number: STAMP_ORIGIN_NS + round(times[number] * 1e9)


def _poses(
    path: Path,
    file: Path | None,
    camera0_from_camera: NDArray[np.float64] | None,
    notes: list[str],
) -> dict[int, NDArray[np.float64]]:
    """world_from_camera (4, 4) by frame number; the line's number is the frame's."""
    named = file is not None
    file = file or path.parent.parent / "poses" / f"{path.name}.txt"
    if not file.is_file():
        if named:
            raise RecordingError(f"{file}: no such file with poses")
        notes.append("no poses")
        return {}
    if camera0_from_camera is None:
        camera0_from_camera = np.eye(4)
    poses: dict[int, NDArray[np.float64]] = {}
    with readable(file):
        lines = read_text(file).splitlines()
    for number, line in enumerate(lines):
        try:
            matrix = np.array([float(v) for v in line.split()]).reshape(3, 4)
        except ValueError as error:
            raise RecordingError(f"{file}, line {number + 1}: not twelve numbers") from error
        poses[number] = np.vstack([matrix, [0, 0, 0, 1]]) @ camera0_from_camera
    return poses


def _speeds(
    images: dict[int, Path], poses: dict[int, NDArray[np.float64]], stamps: dict[int, int]
) -> dict[int, float | None]:
    numbers = [number for number in images if number in poses]
    if len(numbers) < 2:
        return {}
    speeds = speeds_from_poses([poses[n] for n in numbers], [stamps[n] for n in numbers])
    return dict(zip(numbers, speeds, strict=True))


RAW_CAMERAS = ("image_02", "image_03", "image_00", "image_01")  # colour first
DEPTH_KINDS = ("velodyne_raw", "groundtruth")
DEPTH_SPLITS = ("train", "val")
_FORWARD_SPEED = 8  # "vf" in an oxts packet


def is_kitti_raw(path: Path) -> bool:
    """Whether a folder looks like a KITTI raw drive."""
    return path.is_dir() and any(_image_folder(path, camera) for camera in RAW_CAMERAS)


@folder_format("kitti_raw", "a KITTI raw drive (image_02/data)", is_kitti_raw)
def open_kitti_raw(
    path: Path, *, camera: str | None = None, depth: str | None = None
) -> StoredRecording:
    """Open a drive; `camera` is one of RAW_CAMERAS (the first one there), `depth` of DEPTH_KINDS.

    Raises RecordingError without a usable image or without a calibration.
    """
    path = Path(path)
    name, folder = _find_images(path, camera)
    skipped: list[Skipped] = []
    notes: list[str] = []
    images, size = _usable_images(folder, skipped, reasons=True)
    calibrated, mount = _raw_camera(path, name, size, notes)
    files = [folder / "timestamps.txt", folder.parent / "timestamps.txt"]
    stamps = _stamps(files, "stamps", _raw_stamps, images, notes)
    depths = _depth_files(path, name, depth)
    frames = [
        frame_of_file(
            *(number, stamps[number], calibrated, file, size, depths.get(number)),
            speed=_read_speed(path / "oxts" / "data" / f"{number:010d}.txt", skipped),
        )
        for number, file in images.items()
    ]
    source = "lidar" if any(frame.has_depth for frame in frames) else None
    return StoredRecording(
        path.name, frames, skipped, depth_source=source, notes=notes, mount=mount
    )


def _image_folder(path: Path, camera: str) -> Path | None:
    for folder in (path / camera / "data", path / camera):
        if folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
            return folder
    return None


def _find_images(path: Path, camera: str | None) -> tuple[str, Path]:
    if not path.is_dir():
        raise RecordingError(f"{path}: no such folder")
    for name in (camera,) if camera else RAW_CAMERAS:
        folder = _image_folder(path, name)
        if folder is not None:
            return name, folder
    wanted = camera or "image_02 (nor image_03, image_00, image_01)"
    raise RecordingError(f"{path}: no images in {wanted}; is this a KITTI raw drive?")


def _reasons(skipped: list[Skipped]) -> str:
    return "; ".join(str(entry) for entry in skipped[:3]) or "the folder is empty"


def _raw_camera(
    path: Path, name: str, size: tuple[int, int], notes: list[str]
) -> tuple[Camera, Mount]:
    # A drive copied out of its date folder may carry the calibration with it.
    for folder in (path, path.parent):
        file = folder / "calib_cam_to_cam.txt"
        if not file.is_file():
            continue
        own = f"P_rect_{name[-2:]}"
        # Rectified cameras share their intrinsics, so any other one will do.
        others = [f"P_rect_{i:02d}" for i in (2, 0, 3, 1)]
        found, projection = find_projection(file, [own, *others])
        if found != own:
            notes.append(f"{file.name} has no {own}: {found} taken, whose intrinsics are the same")
        mount = Mount.of_projection(name, projection.matrix) if found == own else Mount(name)
        return camera_for_images(projection, size, str(file), notes), mount
    if path.name.startswith("2011_09_26"):
        notes.append("no calib_cam_to_cam.txt: KITTI's own values of 2011-09-26 taken")
        return scaled_to_images(CAMERA_2011_09_26, size, str(path), notes), Mount(name)
    raise RecordingError(
        f"{path}: no calib_cam_to_cam.txt in it or beside it; copy KITTI's calibration of that day"
    )


def _raw_stamps(text: str) -> Callable[[int], int]:
    """The stamp of each line."""
    lines = text.split("\n")
    return lambda number: _parse_stamp(lines[number])


def _parse_stamp(line: str) -> int:
    """Nanoseconds of "2011-09-26 13:02:25.964389445" (taken as UTC)."""
    whole, _, fraction = line.strip().partition(".")
    moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    return int(moment.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or 0)


def _depth_files(path: Path, camera: str, kind: str | None) -> dict[int, Path]:
    if kind is not None and kind not in DEPTH_KINDS:
        raise RecordingError(f"depth {kind!r} is unknown; one of {', '.join(DEPTH_KINDS)}")
    for drive in (path, *_published_depth(path)):
        for name in (kind,) if kind else DEPTH_KINDS:
            folder = drive / "proj_depth" / name / camera
            if folder.is_dir():
                return images_by_number(folder, [])
    return {}


def _published_depth(drive: Path) -> list[Path]:
    """Where KITTI depth, unpacked beside the dates or the data set, keeps what is a drive's."""
    absolute = drive.absolute()
    roots = [absolute.parents[n] for n in range(1, min(3, len(absolute.parents)))]
    folders = [folder for root in roots for folder in (root, root / "kitti_depth")]
    return [folder / split / drive.name for folder in folders for split in DEPTH_SPLITS]


def _read_speed(file: Path, skipped: list[Skipped]) -> float | None:
    if not file.is_file():
        return None
    try:
        return float(read_text(file).split()[_FORWARD_SPEED])
    except (OSError, ValueError, IndexError):
        skipped.append(Skipped(str(file), "no speed in it"))
        return None
