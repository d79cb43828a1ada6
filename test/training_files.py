"""Small drives to train on: pictures that move or stand, with or without speed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from helpers import texture

TRAINING_NAMES = ("2011_09_26_drive_0001_sync", "2011_09_26_drive_0005_sync")
TEST_NAME = "2011_09_26_drive_0052_sync"
SMALL = (96, 32)
_MARGIN = 64


def write_moving_drive(
    root: Path,
    name: str = TRAINING_NAMES[0],
    numbers: Iterable[int] = range(6),
    *,
    pixels: float = 2.0,
    speed: float | None = None,
    cameras: tuple[int, ...] = (2,),
    suffix: str = "png",
) -> Path:
    """A KITTI raw drive whose picture (124x38) moves by ``pixels`` a frame to the side."""
    folder = root / "kitti_raw" / name[:10] / name
    wide = texture(400, 38, seed=len(name) + int(name[17:21]))
    for camera in cameras:
        images = folder / f"image_{camera:02d}" / "data"
        images.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            x = round(_MARGIN + number * pixels)
            picture = wide[_MARGIN : _MARGIN + 38, x : x + 124]
            file = images / f"{number:010d}.{suffix}"
            cv2.imwrite(str(file), np.ascontiguousarray(picture[..., ::-1]))
    if speed is not None:
        write_speeds(folder, dict.fromkeys(numbers, speed))
    rows = [f"P_rect_{c:02d}: 72.15 0 61 0 0 72.15 17 0 0 0 1 0" for c in range(4)]
    sizes = [f"S_rect_{c:02d}: 124 38" for c in range(4)]
    (folder.parent / "calib_cam_to_cam.txt").write_text("\n".join(rows + sizes) + "\n")
    return folder


def write_speeds(drive: Path, speeds: dict[int, float]) -> None:
    """OXTS packets that say how fast the car is, in m/s."""
    folder = drive / "oxts" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for number, speed in speeds.items():
        values = ["0"] * 8 + [str(speed)] + ["0"] * 21
        (folder / f"{number:010d}.txt").write_text(" ".join(values))


def damage(file: Path) -> None:
    """Spoil the middle of a PNG: found when it is decoded, not when its ends are looked at."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(255 - b for b in data[middle : middle + 8])
    file.write_bytes(bytes(data))
