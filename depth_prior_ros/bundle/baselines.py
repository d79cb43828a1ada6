"""Depth maps that do not depend on the image, kept beside a bundle's networks.

They say how much of a depth error is already explained by where a camera looks, and are the floor
that the networks must clear. Stored with the bundle, they are there where the data they were made
of are not. The file ``baselines.safetensors`` is optional.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import move_into_place
from depth_prior_ros.bundle.bundle import Bundle, load_bundle
from depth_prior_ros.bundle.files import sha256_of, staging
from depth_prior_ros.bundle.manifest import (
    BASELINES,
    BASELINES_NAME,
    MANIFEST_NAME,
    BundleError,
    validate_manifest,
    write_manifest,
)

OWN_MEAN, LIDAR_ROW, LIDAR_PIXEL = BASELINES


def read_baselines(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """The maps of a bundle at its input size; empty where it has none.

    own_mean_inverse_depth: (H, W) network units; the mean of the student's own output over its
    training drives. lidar_row_log_depth (H,) and lidar_pixel_log_depth (H, W): mean log metres of
    the LiDAR frames of KITTI raw drive 0039. Each may be absent.

    Raises:
        BundleError: the file cannot be read or holds something else.
    """
    if BASELINES_NAME not in bundle.manifest.files:
        return {}
    path = bundle.path / BASELINES_NAME
    tensors = bundle.tensor_file(BASELINES_NAME).tensors
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    _check(path, arrays, bundle.manifest.input_size)
    return arrays


def add_baselines(bundle: Bundle, arrays: Mapping[str, NDArray[np.floating]]) -> Bundle:
    """Write maps (see :func:`read_baselines`) into a bundle, in half precision.

    Everything is written and verified in a copy first. Earlier maps are replaced.

    Raises:
        BundleError: unknown names, wrong shapes, values that are not finite, a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = bundle.path / BASELINES_NAME
    _check(target, arrays, bundle.manifest.input_size)
    halves = {n: np.ascontiguousarray(a, dtype=np.float16) for n, a in arrays.items()}
    place = bundle.path.resolve()  # a link to it stays one
    with staging(place) as folder:
        copy = folder / BASELINES_NAME
        try:
            shutil.copytree(place, folder, dirs_exist_ok=True)
            save_file(halves, copy)
            copy.chmod(0o644)
            data = bundle.manifest.data()
            data["files"] = {**data["files"], BASELINES_NAME: sha256_of(copy)}
            write_manifest(folder / MANIFEST_NAME, validate_manifest(target, data))
        except (OSError, SafetensorError) as error:
            raise BundleError(target, f"cannot be written: {error}") from error
        read_baselines(load_bundle(folder))
        move_into_place(folder, place)  # at once: its manifest belongs to its files
    return load_bundle(bundle.path)


def stored_maps(bundle: Bundle) -> dict[str, NDArray[np.float64]]:
    """The maps of a bundle as depth (H, W) at its input size, see :func:`as_depth`."""
    width = bundle.manifest.input_size[0]
    return {name: as_depth(name, values, width) for name, values in read_baselines(bundle).items()}


def as_depth(name: str, values: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """A map as depth, (H, W) or for rows (H, `width`): own mean in network units, LiDAR in metres.

    Raises:
        KeyError: not one of BASELINES.
    """
    if name not in BASELINES:
        raise KeyError(name)
    if name == OWN_MEAN:
        return 1 / np.maximum(values.astype(np.float64), 1e-9)
    depth: NDArray[np.float64] = np.exp(values.astype(np.float64))
    return np.repeat(depth[:, None], width, axis=1) if depth.ndim == 1 else depth


def _check(path: Path, arrays: Mapping[str, NDArray[np.floating]], size: tuple[int, int]) -> None:
    width, height = size
    for name, array in arrays.items():
        if name not in BASELINES:
            raise BundleError(path, f"unknown map {name}")
        shape = (height,) if name == LIDAR_ROW else (height, width)
        if array.shape != shape:
            raise BundleError(path, f"map {name} has shape {array.shape}, not {shape}")
        if not (np.abs(array) <= np.finfo(np.float16).max).all():  # NaN fails, too
            raise BundleError(path, f"map {name} is not finite in half precision")
