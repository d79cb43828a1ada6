"""The drive in the foreign bags, as plain files that any Python can read: `write_scene.py DIR`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

SIZE, FOCAL, FRAMES = (96, 32), 60.0, 12
DISTANCE, STEP = 8.0, 0.2  # metres
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000


def main(folder: Path) -> None:
    """Frames as JPEG, depth as 16-bit rows, and drive.json."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(3).integers(30, 225, (6, 30, 3)).astype(np.uint8)
    wall = cv2.resize(coarse, (240, SIZE[1]), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    for i in range(FRAMES):
        shift = np.float32([[1, 0, -FOCAL * STEP * i / DISTANCE - 20], [0, 1, 0]])
        image = cv2.warpAffine(wall, shift, SIZE).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:02d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        depth = np.full((SIZE[1], SIZE[0]), DISTANCE * 1000, "<u2")
        depth[:4] = 0  # nothing is known there
        (folder / f"{i:02d}.depth").write_bytes(depth.tobytes())
    drive = {
        "size": SIZE,
        "K": [FOCAL, 0, SIZE[0] / 2, 0, FOCAL, SIZE[1] / 2, 0, 0, 1],
        "stamps_ns": [START_NS + i * PERIOD_NS for i in range(FRAMES)],
        "y": [-STEP * i for i in range(FRAMES)],  # the vehicle's left is +y
        "speed": STEP / (PERIOD_NS * 1e-9),
    }
    (folder / "drive.json").write_text(json.dumps(drive))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
