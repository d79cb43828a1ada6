"""A frame on disk, for whoever wants to look at it later or report a fault.

One folder per snapshot, which appears complete or not at all:

    image.png        the camera's image, rectified
    depth.npy        float32 metres, NaN unknown, +Inf beyond the range
    depth.png        16 bits, metres x 256, 0 where depth is not finite (KITTI's format)
    points.ply       the cloud in the camera's optical frame, with colours
    parameters.yaml  the node's parameters, as a parameter file
    snapshot.json    stamp, cameras, model and reason, scale, bundle, backend
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.ros.clouds import CloudMaker
from depth_prior_ros.ros.worker import Frame

_PNG_METRES = 256.0


def save_snapshot(
    folder: Path, frame: Frame, parameters: Mapping[str, Any], state: Mapping[str, str]
) -> Path:
    """Write one snapshot into ``folder``, which is made where it is missing.

    Args:
        folder: of all snapshots.
        frame: what is saved.
        parameters: values by name.
        state: what else there is to say about the node, in words.

    Returns:
        The folder of this snapshot, named after the image's stamp.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".snapshot_", dir=folder))
    try:
        partial.chmod(0o755)
        _write(partial, frame, parameters, state)
        return _publish(partial, folder, frame)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _publish(partial: Path, folder: Path, frame: Frame) -> Path:
    stamp = frame.header.stamp
    name = f"{stamp.sec}_{stamp.nanosec:09d}"
    for number in range(1, 10_000):
        target = folder / (name if number == 1 else f"{name}_{number}")
        if target.exists():
            continue
        return partial.rename(target)
    raise OSError(f"{folder} has thousands of snapshots of {name}")


def _write(
    folder: Path, frame: Frame, parameters: Mapping[str, Any], state: Mapping[str, str]
) -> None:
    import yaml

    depth = frame.result.depth
    _write_png(folder / "image.png", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    np.save(folder / "depth.npy", depth)
    _write_png(folder / "depth.png", depth_png(depth))
    _write_ply(folder / "points.ply", frame)
    # The caller waits, and the dumper in Python takes ten times as long.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    values = {"/**": {"ros__parameters": dict(parameters)}}
    (folder / "parameters.yaml").write_text(
        yaml.dump(values, Dumper=dumper, sort_keys=False), encoding="utf-8"
    )
    (folder / "snapshot.json").write_text(
        json.dumps(_facts(frame, state), indent=2) + "\n", encoding="utf-8"
    )


def depth_png(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(h, w) metres as 16 bits, metres x 256, 0 where depth is not finite or beyond 255.99 m."""
    scaled = np.where(np.isfinite(depth), depth, 0.0) * _PNG_METRES
    scaled[scaled > np.iinfo(np.uint16).max] = 0.0
    return np.round(scaled).astype(np.uint16)


def _facts(frame: Frame, state: Mapping[str, str]) -> dict[str, Any]:
    result, header = frame.result, frame.header
    return {
        "stamp": {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec},
        "frame_id": header.frame_id,
        "image_camera": asdict(frame.camera),
        "depth_camera": asdict(result.camera),
        "depth_region": asdict(result.region),
        "model": result.model,
        "reason": result.reason,
        "timings_ms": {name: round(value, 3) for name, value in result.timings.items()},
        "scale": None if result.scale is None else asdict(result.scale),
        "node": dict(state),
    }


def _write_png(path: Path, image: NDArray[Any]) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} cannot be written")


def _write_ply(path: Path, frame: Frame) -> None:
    result = frame.result
    cloud = CloudMaker().message(frame.header, result.depth, result.camera, rgb=result.rgb)
    rows = np.frombuffer(cloud.data, dtype=np.float32).reshape(-1, cloud.point_step // 4)
    columns = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    coloured = rows.shape[1] == 4
    colours = [("red", "u1"), ("green", "u1"), ("blue", "u1")] if coloured else []
    vertices = np.empty(len(rows), dtype=columns + colours)
    for i, (name, _) in enumerate(columns):
        vertices[name] = rows[:, i]
    if coloured:
        packed = np.ascontiguousarray(rows[:, 3]).view(np.uint32)
        for shift, (name, _) in zip((16, 8, 0), colours, strict=False):
            vertices[name] = (packed >> shift) & 0xFF
    kinds = {"<f4": "float", "u1": "uchar"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in columns + colours)
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"comment metres, camera optical frame {frame.header.frame_id}\n"
        f"element vertex {len(rows)}\n{properties}end_header\n"
    )
    path.write_bytes(header.encode("ascii", "replace") + vertices.tobytes())
