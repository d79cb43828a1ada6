"""A measured factor on disk, so that the next run need not search for it.

The file belongs to one bundle and one camera: another network has other units.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depth_prior_ros.atomic_files import remove_leftovers, write_text
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale.measured import stored_factor
from depth_prior_ros.share import home_path

_FORMAT = 1
_SAME_CAMERA = 0.02  # relative difference of focal lengths: calibrations of one camera


class ScaleFileError(Exception):
    """A scale file cannot be used; the message says why."""


def save_scale(
    path: str | Path, stored: Mapping[str, Any], *, bundle: str, camera: Camera | None
) -> None:
    """Write what `Scale.store` gave; a reader sees the old file or the new one, never a part.

    bundle: `Bundle.digest`. camera: of the images, None where it is not known.

    Raises OSError; ValueError for what `Scale.store` cannot have given.
    """
    from depth_prior_ros import strict_yaml

    stored_factor(stored)
    data = {
        "format": _FORMAT,
        **{
            key: stored.get(key)
            for key in ("mode", "state", "metres_per_unit", "spread", "samples")
        },
        **({"shift": stored["shift"]} if "shift" in stored else {}),
        "bundle": bundle,
        "camera": None if camera is None else _view(camera),
    }
    text = "# Metric factor of a depth bundle, measured by depth_node.\n"
    place = home_path(path)
    remove_leftovers(place.parent, place.name)
    write_text(place, text + strict_yaml.dump(data))


def load_scale(path: str | Path, *, bundle: str, camera: Camera | None) -> dict[str, Any]:
    """What `Scale.restore` takes, from a file of this bundle and camera.

    camera: None where it is not known yet: then it is not compared.

    Raises ScaleFileError; FileNotFoundError where there is no file, as before the first run.
    """
    from depth_prior_ros import strict_yaml

    try:
        path = home_path(path)
    except OSError as error:
        raise ScaleFileError(f"{path}: cannot be read: {strict_yaml.problem_of(error)}") from error
    data = strict_yaml.read_as(path, ScaleFileError)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ScaleFileError(f"{path}: not a scale file of format {_FORMAT}")
    try:
        stored_factor(data)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ScaleFileError(f"{path}: {error}") from error
    if data.get("bundle") != bundle:
        raise ScaleFileError(f"{path}: measured with another bundle")
    if camera is not None and not _same_view(data.get("camera"), camera):
        raise ScaleFileError(f"{path}: measured with another camera")
    return data


def same_view(one: Camera, other: Camera) -> bool:
    """Whether a factor measured with one camera holds for the other: as far as calibrations of one
    camera differ, whatever the image's size."""
    return _same_view(_view(one), other)


def _view(camera: Camera) -> dict[str, float]:
    """What of a camera decides the factor: its field of view, whatever the image's size."""
    return {"fx_per_width": camera.fx / camera.width, "fy_per_height": camera.fy / camera.height}


def _same_view(known: Any, camera: Camera) -> bool:
    if known is None:
        return True
    try:
        return all(
            abs(float(known[key]) / value - 1) <= _SAME_CAMERA
            for key, value in _view(camera).items()
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False
