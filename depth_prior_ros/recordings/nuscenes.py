"""nuScenes (Caesar et al., CVPR 2020): a camera's frames with the LiDAR sweep projected into them.

v1.0-{mini,trainval,test}/{scene,sample,sample_data,ego_pose,calibrated_sensor,sensor}.json
samples/CAM_FRONT/*.jpg, sweeps/CAM_FRONT/*.jpg     images at 12 Hz; those in samples have LiDAR
samples/LIDAR_TOP/*.pcd.bin                         float32: x, y, z, intensity, ring

The tables are read directly. LiDAR and camera fire at different moments: points go from the LiDAR
through the vehicle's pose at its moment to the world, and from there through the pose at the
camera's moment into the image. What moves by itself in between is a little off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.geometry.points import project_points
from depth_prior_ros.geometry.poses import rigid_inverse, rotation_of
from depth_prior_ros.recordings.base import (
    CorruptFrameError,
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
    readable,
    speeds_from_poses,
)
from depth_prior_ros.recordings.image_files import frame_of_file, probe_image
from depth_prior_ros.untrusted import IMAGE_FILE_BYTES, TABLE_BYTES, parse_json, read_file

VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")
LIDAR = "LIDAR_TOP"
NEAREST = 1.0  # metres; nearer returns are of the vehicle itself
_POINT = 5  # numbers a point
_TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
# Frame numbers of two scenes are this far apart, so that none follows another scene's last.
_SCENE_STEP = 10_000

Row = Mapping[str, Any]


def is_nuscenes(path: Path) -> bool:
    """Whether a folder holds nuScenes' tables."""
    return _version(path) is not None


@dataclass(frozen=True)
class LidarView:
    """A sweep and the way from it into an image."""

    file: Path
    camera_from_lidar: NDArray[np.float64]
    camera: Camera

    def depth(self) -> NDArray[np.float32]:
        """Project it: (H, W) float32 metres, 0 = none; raises CorruptFrameError."""
        with readable(self.file, CorruptFrameError):
            data = read_file(self.file, IMAGE_FILE_BYTES)
        points = np.frombuffer(data, np.float32, len(data) // 4)
        if not points.size or points.size % _POINT:
            raise CorruptFrameError(f"{self.file}: {points.size} numbers, not {_POINT} a point")
        xyz = points.reshape(-1, _POINT)[:, :3].astype(np.float64)
        return project_points(xyz, self.camera_from_lidar, self.camera, NEAREST)


@folder_format("nuscenes", "nuScenes' v1.0-* tables and samples", is_nuscenes)
def open_nuscenes(
    path: Path,
    *,
    version: str | None = None,
    camera: str = "CAM_FRONT",
    scenes: Sequence[str] | None = None,
) -> StoredRecording:
    """Open a camera's frames of the named scenes (all by default), scene after scene.

    Frames without a file are gaps; between keyframes alone no frame follows another.
    Raises RecordingError: no tables, damaged tables, an unknown scene, no usable image.
    """
    path = Path(path)
    found = version or _version(path)
    if found is None:
        raise RecordingError(f"{path}: no {' or '.join(VERSIONS)} with sample_data.json in it")
    try:
        tables = _Tables({name: _read_table(path / found, name) for name in _TABLES}, path)
        return _open(tables, camera, scenes, f"nuscenes_{found.removeprefix('v1.0-')}")
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path / found}: tables do not fit together ({error!r})") from error


def _version(path: Path) -> str | None:
    return next((v for v in VERSIONS if (path / v / "sample_data.json").is_file()), None)


def _read_table(folder: Path, name: str) -> list[Row]:
    file = folder / f"{name}.json"
    with readable(file):
        data = read_file(file, TABLE_BYTES)
    try:
        content = parse_json(data)
    except ValueError as error:
        raise RecordingError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, list):
        raise RecordingError(f"{file}: a list expected")
    return content


class _Tables:
    """The tables, by token."""

    def __init__(self, rows: dict[str, list[Row]], root: Path) -> None:
        self.root = root
        self.by_token = {n: {r["token"]: r for r in rows[n]} for n in rows if n != "sample_data"}
        self.data = rows["sample_data"]
        sensors = {r["token"]: r["channel"] for r in rows["sensor"]}
        self.channel = {r["token"]: sensors[r["sensor_token"]] for r in rows["calibrated_sensor"]}

    def of_channel(self, channel: str) -> Iterable[Row]:
        return (r for r in self.data if self.channel[r["calibrated_sensor_token"]] == channel)

    def scene_of(self, row: Row) -> str:
        return str(self.by_token["sample"][row["sample_token"]]["scene_token"])

    def vehicle_from_sensor(self, row: Row) -> NDArray[np.float64]:
        return _transform(self.by_token["calibrated_sensor"][row["calibrated_sensor_token"]])

    def world_from_sensor(self, row: Row) -> NDArray[np.float64]:
        vehicle = _transform(self.by_token["ego_pose"][row["ego_pose_token"]])
        return np.asarray(vehicle @ self.vehicle_from_sensor(row))

    def camera(self, row: Row) -> Camera:
        sensor = self.by_token["calibrated_sensor"][row["calibrated_sensor_token"]]
        return Camera.from_matrix(sensor["camera_intrinsic"], int(row["width"]), int(row["height"]))


def _open(
    tables: _Tables, channel: str, scenes: Sequence[str] | None, name: str
) -> StoredRecording:
    chosen = _scenes(tables, scenes)
    images: dict[str, list[Row]] = {token: [] for token in chosen}
    for row in tables.of_channel(channel):
        if tables.scene_of(row) in images:
            images[tables.scene_of(row)].append(row)
    if not any(images.values()):
        raise RecordingError(f"{tables.root}: no frame of {channel} in the tables")
    sweeps = {r["sample_token"]: r for r in tables.of_channel(LIDAR) if r["is_key_frame"]}
    frames: list[Frame] = []
    skipped: list[Skipped] = []
    seen = [rows for rows in images.values() if rows]
    ordered = sorted(seen, key=lambda rows: min(int(row["timestamp"]) for row in rows))
    for number, rows in enumerate(ordered):
        rows.sort(key=lambda row: int(row["timestamp"]))
        scene = tables.by_token["scene"][tables.scene_of(rows[0])]["name"]
        frames += _scene_frames(tables, rows, sweeps, number * _SCENE_STEP, scene, skipped)
    if not frames:
        first = f" (first: {skipped[0]})" if skipped else ""
        raise RecordingError(f"{tables.root}: not one image of {channel} is usable{first}")
    return StoredRecording(name, frames, skipped, depth_source="lidar")


def _scenes(tables: _Tables, names: Sequence[str] | None) -> list[str]:
    known = {row["name"]: token for token, row in tables.by_token["scene"].items()}
    if names is None:
        return list(known.values())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RecordingError(f"{tables.root}: no scene {unknown[0]}; there is {', '.join(known)}")
    return [known[name] for name in names]


def _scene_frames(
    tables: _Tables,
    rows: list[Row],
    sweeps: Mapping[str, Row],
    first: int,
    scene: str,
    skipped: list[Skipped],
) -> list[Frame]:
    frames: list[Frame] = []
    absent = 0
    for offset, row in enumerate(rows):
        file = tables.root / row["filename"]
        if not file.is_file() and not row["is_key_frame"]:
            absent += 1
            continue
        try:
            camera = tables.camera(row)
            size = probe_image(file)
            if size != camera.size:
                raise CorruptFrameError(f"{file}: {size[0]}x{size[1]}, not as in the table")
        except (CorruptFrameError, InvalidCameraError) as error:
            skipped.append(Skipped(f"frame {first + offset}", str(error)))
            continue
        frames.append(_frame(tables, row, camera, sweeps, first + offset))
    if absent:
        skipped.append(Skipped(f"{scene}: {absent} frames between keyframes", "no file"))
    if len(frames) < 2:
        return frames
    poses = [frame.pose for frame in frames if frame.pose is not None]
    speeds = speeds_from_poses(poses, [frame.stamp_ns for frame in frames])
    return [replace(frame, speed=speed) for frame, speed in zip(frames, speeds, strict=True)]


def _frame(
    tables: _Tables, row: Row, camera: Camera, sweeps: Mapping[str, Row], index: int
) -> Frame:
    file = tables.root / row["filename"]
    world_from_camera = tables.world_from_sensor(row)
    sweep = sweeps.get(row["sample_token"]) if row["is_key_frame"] else None
    view = None
    if sweep is not None:
        camera_from_lidar = rigid_inverse(world_from_camera) @ tables.world_from_sensor(sweep)
        view = LidarView(tables.root / sweep["filename"], camera_from_lidar, camera)
    stamp, load = int(row["timestamp"]) * 1000, view.depth if view else None
    return frame_of_file(
        index, stamp, camera, file, camera.size, load_depth=load, pose=world_from_camera
    )


def _transform(row: Row) -> NDArray[np.float64]:
    """(4, 4) from a translation in metres and a quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(row["rotation"], np.float64) / np.linalg.norm(row["rotation"])
    transform = np.eye(4)
    transform[:3, :3] = rotation_of(np.array([x, y, z, w]))
    transform[:3, 3] = row["translation"]
    return transform
