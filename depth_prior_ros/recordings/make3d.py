"""The test set of Make3D (Saxena et al., PAMI 2009) as the self-supervised papers crop it.

Test134/img-NAME.jpg                    1704 x 2272 pixels, upright
Gridlaserdata/depth_sph_corr-NAME.mat   Position3DGrid (55, 305, 4); its last layer is the depth

Either folder may lie in another (Test134Depth/Gridlaserdata). Of the images the middle rows 710 to
1562 are kept (2:1), of the laser's grid rows 17 to 38: depth is (21, 305), coarser than the image.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.base import (
    FRAME_PERIOD_NS,
    CorruptFrameError,
    Frame,
    RecordingError,
    Skipped,
    StoredRecording,
    folder_format,
)
from depth_prior_ros.recordings.image_files import positive, probe_image, read_image
from depth_prior_ros.untrusted import IMAGE_PIXELS, check_regular

WIDTH, HEIGHT = 1704, 2272
IMAGE_ROWS = (710, 1562)
GRID = (55, 305)
GRID_ROWS = (17, 38)
ARRAY = "Position3DGrid"
# The camera in the data set's own MATLAB code: about 2400 pixels, its centre near the middle.
CAMERA = Camera(2407.3313, 2400.2092, 833.7210, 1110.7122, WIDTH, HEIGHT)
_IMAGE, _DEPTH = "img-", "depth_sph_corr-"
_DEEPEST = 2  # folders between the path given and the files


def is_make3d(path: Path) -> bool:
    """Whether a folder holds Make3D's laser grids."""
    return path.is_dir() and bool(_find(path, f"{_DEPTH}*.mat"))


@folder_format("make3d", "Make3D's Test134 and Gridlaserdata", is_make3d)
def open_make3d(path: Path) -> StoredRecording:
    """Open the images that have a laser grid; separate scenes, without a sequence.

    Raises RecordingError where there is none.
    """
    path = Path(path)
    grids = {file.stem[len(_DEPTH) :]: file for file in _find(path, f"{_DEPTH}*.mat")}
    skipped: list[Skipped] = []
    frames: list[Frame] = []
    images = {file.stem[len(_IMAGE) :]: file for file in _find(path, f"{_IMAGE}*.jpg")}
    for name in sorted(grids.keys() - images.keys()):
        skipped.append(Skipped(f"{grids[name]}", f"no {_IMAGE}{name}.jpg"))
    for name in sorted(images.keys() & grids.keys()):
        try:
            size = probe_image(images[name])
            if size != (WIDTH, HEIGHT):
                raise CorruptFrameError(
                    f"{images[name]}: {size[0]}x{size[1]} instead of {WIDTH}x{HEIGHT}"
                )
        except CorruptFrameError as error:
            skipped.append(Skipped(f"image {name}", str(error)))
            continue
        index = len(frames)
        frames.append(
            Frame(
                index=index,
                stamp_ns=index * FRAME_PERIOD_NS,
                camera=CAMERA.cropped(0, IMAGE_ROWS[0], WIDTH, IMAGE_ROWS[1] - IMAGE_ROWS[0]),
                load_image=partial(_read_image, images[name]),
                load_depth=partial(_read_grid, grids[name]),
            )
        )
    if not frames:
        raise RecordingError(
            f"{path}: no {_IMAGE}NAME.jpg with a {_DEPTH}NAME.mat; Make3D has them in Test134 and "
            "Gridlaserdata"
        )
    notes = ["no calibration: the camera is the one in the data set's own code"]
    return StoredRecording(
        "make3d", frames, skipped, depth_source="lidar", consecutive=False, notes=notes
    )


def _find(path: Path, pattern: str) -> list[Path]:
    found: list[Path] = []
    for depth in range(_DEEPEST + 1):
        found += path.glob("/".join(["*"] * depth + [pattern]))
    return sorted(found)


def _read_image(file: Path) -> NDArray[np.uint8]:
    image = read_image(file, (WIDTH, HEIGHT))
    return np.ascontiguousarray(image[IMAGE_ROWS[0] : IMAGE_ROWS[1]])


def _read_grid(file: Path) -> NDArray[np.float32]:
    grid = read_matlab(file, ARRAY)
    if grid.shape != (*GRID, 4):
        raise CorruptFrameError(f"{file}: {ARRAY} is {grid.shape}, not {(*GRID, 4)}")
    return positive(grid[GRID_ROWS[0] : GRID_ROWS[1], :, 3])


def read_matlab(file: Path, name: str) -> NDArray[np.float64]:
    """The real numeric array ``name`` of a .mat file of version 4 to 7, with MATLAB's shape.

    Raises:
        CorruptFrameError: not such a file, damaged, without that array, or of another kind.
    """
    from scipy.io import loadmat, whosmat

    try:
        check_regular(file)
        shapes = {found: shape for found, shape, _ in whosmat(file)}
        names = list(shapes)
        if name in names:
            if math.prod(shapes[name]) > IMAGE_PIXELS:
                raise ValueError(f"{name} has more than {IMAGE_PIXELS:,} numbers")
            values = np.asarray(loadmat(file, variable_names=[name])[name])
            if values.dtype.kind not in "iuf":
                raise ValueError(f"{name} is not a real numeric array")
            return values.astype(np.float64)
    except NotImplementedError as error:  # version 7.3 is HDF5
        raise CorruptFrameError(f"{file}: version 7.3; save it as version 7 (save -v7)") from error
    except Exception as error:  # of a damaged file scipy raises whatever its parser met
        raise CorruptFrameError(f"{file}: no MATLAB file, or damaged ({error})") from error
    raise CorruptFrameError(f"{file}: no {name} in it, only {', '.join(names) or 'nothing'}")
