"""Small files in the layouts of KITTI raw and KITTI 2015."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

TEST_DRIVE = "2011_09_26_drive_0052_sync"
TRAINING_DRIVE = "2011_09_26_drive_0039_sync"


def write_frame(folder: Path, number: int, depth: float | None, name: str = "{:010d}") -> None:
    """A random image of 414x125 and, unless None, constant depth in metres."""
    rng = np.random.default_rng(number)
    (folder / "image_02").mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 255, (125, 414, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "image_02" / f"{name.format(number)}.png"), image)
    if depth is not None:
        kitti_2015 = name != "{:010d}"
        depths = folder / ("depth_stereo" if kitti_2015 else "proj_depth/velodyne_raw/image_02")
        depths.mkdir(parents=True, exist_ok=True)
        values = np.full((125, 414), depth * 256, np.uint16)
        cv2.imwrite(str(depths / f"{name.format(number)}.png"), values)


def write_drive(root: Path, name: str, numbers: range, depth: float = 10.0) -> Path:
    folder = root / "kitti_raw" / name[:10] / name
    for number in numbers:
        write_frame(folder, number, depth)
    return folder
