"""Small files in the layouts of Make3D, Cityscapes and nuScenes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, width: int, height: int) -> None:
    """Grey that grows with the row, so that crops can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (np.arange(height) * 255 // height).astype(np.uint8)
    assert cv2.imwrite(str(path), np.repeat(rows[:, None], width, axis=1))


def mat_element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def mat_matrix(name: str, array: np.ndarray) -> bytes:
    """A double array as MATLAB writes it: flags, dimensions, name, values column by column."""
    body = mat_element(6, struct.pack("<II", 6, 0))
    body += mat_element(5, struct.pack(f"<{array.ndim}i", *array.shape))
    body += mat_element(1, name.encode())
    return mat_element(14, body + mat_element(9, array.astype("<f8").tobytes(order="F")))


def write_mat(path: Path, compressed: bool = True, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"MATLAB 5.0 MAT-file, Platform: GLNX86".ljust(116) + b"\0" * 8
    content = header + struct.pack("<H", 0x0100) + b"IM"
    for name, array in arrays.items():
        matrix = mat_matrix(name, array)
        if compressed:
            squeezed = zlib.compress(matrix)
            matrix = struct.pack("<II", 15, len(squeezed)) + squeezed
        content += matrix
    path.write_bytes(content)


def write_make3d(root: Path, names: tuple[str, ...], folder: str = "Gridlaserdata") -> None:
    for name in names:
        write_image(root / "Test134" / f"img-{name}.jpg", 1704, 2272)
        grid = np.zeros((55, 305, 4))
        grid[..., 3] = np.arange(55)[:, None] + 1.0
        grid[20, 7, 3] = np.nan
        write_mat(root / folder / f"depth_sph_corr-{name}.mat", Position3DGrid=grid)


CITY = {"extrinsic": {"baseline": 0.2, "pitch": 0.0}}
CITY["intrinsic"] = {"fx": 2262.5, "fy": 2265.3, "u0": 1096.98, "v0": 513.137}


def write_city(root: Path, name: str, split: str = "test", size: tuple[int, int] = (256, 128)):
    """An image resized from 2048x1024, with disparity 22.625 px = 20 m in the upper half."""
    city = name.split("_")[0]
    write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", *size)
    camera = root / "camera" / split / city / f"{name}_camera.json"
    camera.parent.mkdir(parents=True, exist_ok=True)
    camera.write_text(json.dumps(CITY))
    raw = np.zeros((128, 256), np.uint16)
    raw[:64] = round(22.625 * 256 + 1)
    disparity = root / "disparity" / split / city / f"{name}_disparity.png"
    disparity.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(disparity), raw)


FLAT = [1.0, 0.0, 0.0, 0.0]  # no turn, as a quaternion (w, x, y, z)
# optical frame (x right, y down, z ahead) in a vehicle with x ahead, y left, z up
OPTICAL = [0.5, -0.5, 0.5, -0.5]


def write_nuscenes(root: Path, sweeps_on_disk: bool = True) -> None:
    """Two scenes; a keyframe every third frame; the vehicle drives 1 m along x per frame.

    The LiDAR fires half a metre of driving before the camera. One return stands still at
    x = 30, y = 0, z = 1.5 in the world.
    """
    tables: dict[str, list[dict]] = {n: [] for n in ("scene", "sample", "sample_data", "ego_pose")}
    sensors = [("camera", "CAM_FRONT"), ("lidar", "LIDAR_TOP"), ("back", "CAM_BACK")]
    tables["sensor"] = [{"token": t, "channel": c, "modality": "camera"} for t, c in sensors]
    K = [[60.0, 0.0, 80.0], [0.0, 60.0, 45.0], [0.0, 0.0, 1.0]]
    tables["calibrated_sensor"] = [
        calibrated("camera", [1.0, 0.0, 1.5], OPTICAL, K),
        calibrated("lidar", [0.5, 0.0, 1.8], FLAT, []),
        calibrated("back", [0.0, 0.0, 1.5], OPTICAL, K),
    ]
    for s, name in enumerate(("scene-0002", "scene-0001")):
        tables["scene"].append({"token": f"s{s}", "name": name})
        for i in range(6):
            key, sample = i % 3 == 0, f"s{s}-{i // 3}"
            start = 1_000_000_000_000 + s * 100_000_000
            if key:
                tables["sample"].append({"token": sample, "scene_token": f"s{s}"})
            for channel in ("camera", "back"):
                folder = "CAM_FRONT" if channel == "camera" else "CAM_BACK"
                file = f"{'samples' if key else 'sweeps'}/{folder}/{s}_{i}.jpg"
                row = {"token": f"{channel}{s}{i}", "sample_token": sample, "filename": file}
                row |= {"ego_pose_token": f"{s}{i}", "calibrated_sensor_token": f"c-{channel}"}
                row |= {"timestamp": start + i * 83_333, "is_key_frame": key}
                tables["sample_data"].append(row | {"width": 160, "height": 90})
                if key or sweeps_on_disk:
                    write_image(root / file, 160, 90)
            tables["ego_pose"].append(pose(f"{s}{i}", float(i)))
            if key:
                write_sweep(root, tables, s, i, sample)
    (root / "v1.0-mini").mkdir(parents=True)
    for table, rows in tables.items():
        # nothing may depend on the order of rows
        (root / "v1.0-mini" / f"{table}.json").write_text(json.dumps(rows[::-1]))


def calibrated(sensor: str, place: list[float], turn: list[float], K: list) -> dict:
    row = {"token": f"c-{sensor}", "sensor_token": sensor, "translation": place}
    return row | {"rotation": turn, "camera_intrinsic": K}


def pose(token: str, x: float) -> dict:
    return {"token": token, "translation": [x, 0.0, 0.0], "rotation": FLAT, "timestamp": 0}


def write_sweep(root: Path, tables: dict, s: int, i: int, sample: str) -> None:
    tables["ego_pose"].append(pose(f"l{s}{i}", i - 0.5))
    file = f"samples/LIDAR_TOP/{s}_{i}.pcd.bin"
    row = {"token": f"l{s}{i}", "sample_token": sample, "ego_pose_token": f"l{s}{i}"}
    row |= {"calibrated_sensor_token": "c-lidar", "timestamp": 0, "is_key_frame": True}
    tables["sample_data"].append(row | {"filename": file})
    seen_from = np.array([i - 0.5 + 0.5, 0.0, 1.8])
    points = np.zeros((3, 5), np.float32)
    points[0, :3] = np.array([30.0, 0.0, 1.5]) - seen_from
    points[1, :3] = [-20.0, 0.0, 0.0]  # behind
    points[2, :3] = np.array([60.0, 0.0, 1.5]) - seen_from  # hidden behind the first
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(points.tobytes())
