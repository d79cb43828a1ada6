"""What a running node was adapted to, on disk, with the bundle and camera that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from depth_prior_ros.adaptation.keyframes import AdaptationError
from depth_prior_ros.atomic_files import remove_leftovers, write_text
from depth_prior_ros.bundle import CameraCodeSpec, FactorSpec, Told
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale import same_view

_FORMAT = 1
_KINDS: dict[str, type[Told]] = {"camera_code": CameraCodeSpec, "factor": FactorSpec}
_SAME_FACTOR = 1e-3


def save_adaptation(path: Path, told: Told, *, bundle: str, metres_per_unit: float) -> None:
    """Write what was fitted; a reader sees the old file or the new one, never a part.

    bundle: `Bundle.digest`. metres_per_unit: that depth was multiplied with. Raises OSError.
    """
    from depth_prior_ros import strict_yaml

    data = {
        "format": _FORMAT,
        "bundle": bundle,
        "metres_per_unit": metres_per_unit,
        **{n: told.model_dump(mode="json") for n, kind in _KINDS.items() if type(told) is kind},
    }
    text = "# What a depth bundle was adapted to, by ~/adapt of depth_node.\n"
    remove_leftovers(path.parent, path.name)
    write_text(path, text + strict_yaml.dump(data))


def load_adaptation(path: Path, *, bundle: str, camera: Camera, metres_per_unit: float) -> Told:
    """What was fitted, of a file of this bundle, camera and factor.

    Raises AdaptationError, which says what is wrong with it or what it belongs to;
    FileNotFoundError where there is no file, as before the first adaptation.
    """
    from pydantic import ValidationError

    from depth_prior_ros import strict_yaml

    data = strict_yaml.read_as(path, AdaptationError)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise AdaptationError(f"{path}: not an adaptation of format {_FORMAT}")
    try:
        name = next((name for name in _KINDS if name in data), "camera_code")
        told = _KINDS[name].model_validate_json(json.dumps(data.get(name)))
        fitted = told.camera.camera()
        factor = float(data["metres_per_unit"])
    except (ValidationError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise AdaptationError(f"{path}: damaged: {_first_line(error)}") from error
    if data.get("bundle") != bundle:
        raise AdaptationError(f"{path}: made with another bundle")
    if abs(factor / metres_per_unit - 1) > _SAME_FACTOR:
        raise AdaptationError(
            f"{path}: made with {factor:.4g} m per unit, and depth is multiplied with "
            f"{metres_per_unit:.4g} now"
        )
    if not same_view(fitted, camera):
        raise AdaptationError(f"{path}: made with a camera of another field of view")
    if (doubt := told.doubt(camera)) is not None:
        raise AdaptationError(f"{path}: {doubt}")
    return told


def _first_line(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'what was fitted'}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
