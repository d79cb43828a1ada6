"""Small files in the layouts of KITTI raw, KITTI 2015 and KITTI depth."""

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


# KITTI's own calibration of 2011-09-28: another camera than that of 2011-09-26.
CALIBRATION = """S_rect_02: 1.224000e+03 3.700000e+02
P_rect_02: 7.070493e+02 0.0 6.040814e+02 4.575831e+01 0.0 7.070493e+02 1.805066e+02 -3.454157e-01 \
0.0 0.0 1.0 4.981016e-03
P_rect_03: 7.070493e+02 0.0 6.040814e+02 -3.341081e+02 0.0 7.070493e+02 1.805066e+02 2.330660e+00 \
0.0 0.0 1.0 3.201153e-03
"""


def write_published_2015(root: Path, scenes: dict[int, tuple[int, int]], pixels: float) -> None:
    """`training` as in KITTI's archives of 2015: both images of a scene, a constant disparity."""
    for scene, (width, height) in scenes.items():
        folder = root / "training"
        for name in ("image_2", "image_3", "disp_occ_0", "calib_cam_to_cam"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for time in (10, 11):
            image = np.full((height, width, 3), scene, np.uint8)
            for side in ("image_2", "image_3"):
                cv2.imwrite(str(folder / side / f"{scene:06d}_{time}.png"), image)
        disparity = np.full((height, width), round(256 * pixels), np.uint16)
        disparity[0] = 0
        cv2.imwrite(str(folder / "disp_occ_0" / f"{scene:06d}_10.png"), disparity)
        (folder / "calib_cam_to_cam" / f"{scene:06d}.txt").write_text(CALIBRATION)


def write_depth_selection(folder: Path, depth: float) -> None:
    """Two images of KITTI depth's `val_selection_cropped`."""
    for name in ("image", "groundtruth_depth", "intrinsics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, fx in ((5, 721.5377), (8, 707.0912)):
        name = f"{TEST_DRIVE}_{{}}_{number:010d}_image_02"
        image = np.full((352, 1216, 3), number, np.uint8)
        cv2.imwrite(str(folder / "image" / f"{name.format('image')}.png"), image)
        values = np.full((352, 1216), round(256 * depth), np.uint16)
        truth = folder / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png"
        cv2.imwrite(str(truth), values)
        numbers = f"{fx} 0.0 596.5593 0.0 {fx} 149.854 0.0 0.0 1.0"
        (folder / "intrinsics" / f"{name.format('image')}.txt").write_text(numbers)
