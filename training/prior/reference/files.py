"""The files of a reference set: reference.yaml and its shards, written whole or not at all.

A folder::

    reference.yaml            who taught, settings, images, shards with sha256; sealed on its last
                              line. `finished: false` until every shard is there
    shards/00000.safetensors  features (n, C) f16, inverse_depth (n,) f16, image (n,) i32 (into the
                              manifest's images), pixel (n,) i32 (row-major in the teacher's map)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from depth_prior_ros import strict_yaml
from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.bundle.files import sha256_of
from depth_prior_ros.untrusted import check_regular, parse_json, read_file, seal, unseal
from training.errors import TrainingError

SCHEMA_VERSION = 1
MANIFEST_NAME = "reference.yaml"
SHARDS = "shards"
#: Smallest inverse depth that is stored: half precision's smallest number of full precision.
SMALLEST_INVERSE_DEPTH = float(np.finfo(np.float16).tiny)

_DTYPES: dict[str, np.dtype[Any]] = {
    "features": np.dtype("<f2"),
    "inverse_depth": np.dtype("<f2"),
    "image": np.dtype("<i4"),
    "pixel": np.dtype("<i4"),
}
_NAMES = {"<f2": "F16", "<i4": "I32"}
_MANIFEST_BYTES = 1 << 27  # a hundred thousand images, with room
_MANIFEST_NODES = 1 << 22
_AGAIN = "remove it, and the command that made the set extracts it again"


class ReferenceSetError(TrainingError):
    """A reference set that cannot be used or written; the message names the file and the cause."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ExtractionSettings(_Strict):
    """What, beside the teacher, decides a reference set's contents.

    Attributes:
        triplets: images that were asked for.
        per_image: reference pixels of an image.
        shard_images: images of a shard.
        seed: decides images and pixels.
        metres_per_unit: unit of the recorded motions that the teacher saw.
        data: hash over the chosen frames.
    """

    triplets: int = Field(ge=1)
    per_image: int = Field(ge=1)
    shard_images: int = Field(ge=1)
    seed: int
    metres_per_unit: float = Field(gt=0)
    data: str = ""


class ShardEntry(_Strict):
    """A shard as the manifest lists it."""

    file: str
    rows: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str


class ReferenceManifest(_Strict):
    """reference.yaml. ``images`` and ``shards`` are empty until the set is finished.

    An image is {"drive", "frame", "index", "stamp_ns", "pixels", "median_inverse_depth"}: position,
    number and stamp of its middle frame; of one that had to be left out, pixels is 0, the median
    None, and "left_out" says why.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    finished: bool
    command: str = Field("", description="what finishes it")
    teacher: dict[str, Any]
    settings: ExtractionSettings
    shard_count: int = Field(ge=1)
    notes: list[str] = Field(default_factory=list)
    shards: list[ShardEntry] = Field(default_factory=list)
    images: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """A hash of teacher and settings; every shard carries it."""
        # The stride by its first name, so that older sets are gone on with.
        teacher = {"tap" if key == "stride" else key: self.teacher[key] for key in self.teacher}
        about = {"teacher": teacher, "settings": self.settings.model_dump()}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def shard_name(number: int) -> str:
    """File name of a shard, relative to the set's folder."""
    return f"{SHARDS}/{number:05d}.safetensors"


@dataclass(frozen=True)
class ShardFile:
    """An opened shard: columns mapped from the file, and what its header says.

    Attributes:
        columns: features (n, C), inverse_depth (n,), image (n,) and pixel (n,), read-only.
        images: records of the images that it holds, by number.
        key: of the set that it belongs to.
    """

    columns: dict[str, NDArray[Any]]
    images: dict[int, dict[str, Any]]
    key: str

    @property
    def rows(self) -> int:
        """Reference pixels in it."""
        return len(self.columns["image"])


# -- manifest ------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> ReferenceManifest:
    """Read and check reference.yaml.

    Raises:
        ReferenceSetError: missing, cut off, altered, or of a newer version.
    """
    path = folder / MANIFEST_NAME
    try:
        text = read_file(path, _MANIFEST_BYTES).decode()
    except FileNotFoundError:
        raise ReferenceSetError(path, "missing: this folder is no reference set") from None
    except OSError as error:
        raise ReferenceSetError(path, f"cannot be read: {strict_yaml.problem_of(error)}") from error
    except UnicodeDecodeError as error:
        raise ReferenceSetError(path, f"cannot be read: {error.reason}") from error
    body, damage = unseal(text)
    try:
        data = strict_yaml.parse(body, _MANIFEST_BYTES, _MANIFEST_NODES)
    except strict_yaml.YamlError:
        data = None
    version = data.get("schema") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ReferenceSetError(
            path,
            f"written by a newer version (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}): update the package",
        )
    if damage:
        raise ReferenceSetError(path, "cut off or altered: its sha256 does not match; extract anew")
    try:
        return ReferenceManifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "manifest"
        raise ReferenceSetError(path, f"{place}: {first['msg']}") from error


def write_manifest(folder: Path, manifest: ReferenceManifest) -> None:
    """Write reference.yaml, sealed. Raises ReferenceSetError."""
    body = strict_yaml.dump(manifest.model_dump(by_alias=True, mode="json"), one_line_each=True)
    _write(folder / MANIFEST_NAME, seal(body).encode())


# -- shards --------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    columns: Mapping[str, NDArray[Any]],
    images: Mapping[int, Mapping[str, Any]],
    key: str,
) -> None:
    """Write a shard, so that the file is there whole or not at all.

    Args:
        path: the file.
        columns: features (n, C), inverse_depth (n,), image (n,), pixel (n,).
        images: records of its images, by number.
        key: of the set.

    Raises:
        ReferenceSetError: a value is not finite or does not fit half precision, an inverse depth
            is not positive, or the file cannot be written.
    """
    from safetensors.numpy import save

    stored = {name: _stored(path, name, columns[name]) for name in _DTYPES}
    records = {str(number): dict(record) for number, record in images.items()}
    # One entry: the order of several would differ from call to call.
    _write(path, save(stored, {"about": json.dumps({"key": key, "images": records})}))


def _stored(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """A column as it is written; inverse depth not below `SMALLEST_INVERSE_DEPTH`."""
    problem = _problem(name, values)
    if problem:
        raise ReferenceSetError(path, f"{problem}; nothing was written")
    if name == "inverse_depth":
        values = np.maximum(values, SMALLEST_INVERSE_DEPTH)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, _DTYPES[name])
    if not np.isfinite(stored).all():
        raise ReferenceSetError(path, f"{name} exceeds 65504 and does not fit half precision")
    return stored


def _problem(name: str, values: NDArray[Any]) -> str | None:
    """What is wrong with a column's values, in words."""
    if name == "features" and not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(1)).sum())
        return f"features of {bad} of {len(values)} reference pixels are not finite (NaN or Inf)"
    if name == "inverse_depth":
        fine = np.isfinite(values) & (values > 0)
        if not fine.all():
            bad = int((~fine).sum())
            return f"inverse depth of {bad} of {len(values)} pixels is not finite and positive"
    return None


def open_shard(path: Path, channels: int, size: int | None = None) -> ShardFile:
    """Map a shard; reads its header only.

    Args:
        path: the file.
        channels: width of the features.
        size: bytes that it has to have; default: whatever its header says.

    Raises:
        ReferenceSetError: missing, cut off, of another width, or no shard at all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        found = path.stat().st_size
        check_regular(path)
        if size is not None and found != size:
            raise ReferenceSetError(path, f"cut off ({found} of {size} bytes); {_AGAIN}")
        with safe_open(path, framework="pt") as file:
            about = parse_json(file.metadata()["about"])
            images = {int(number): record for number, record in about["images"].items()}
            key = str(about["key"])
            slices = {name: file.get_slice(name) for name in _DTYPES}
            shapes = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            columns = {name: file.get_tensor(name).numpy() for name in _DTYPES}  # views of the map
        width, rows = shapes["features"][0][1], shapes["image"][0][0]
    except FileNotFoundError:
        raise ReferenceSetError(
            path, "missing: the command that made the set extracts it again"
        ) from None
    except OSError as error:
        raise ReferenceSetError(path, f"cannot be read: {error}; {_AGAIN}") from error
    except SafetensorError as error:
        cause = f"cut off or no shard of a reference set ({error}); {_AGAIN}"
        raise ReferenceSetError(path, cause) from error
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ReferenceSetError(path, f"is no shard of a reference set ({error})") from error
    if width != channels:
        cause = f"features have {width} channels, the set's teacher has {channels}; {_AGAIN}"
        raise ReferenceSetError(path, cause)
    for name, dtype in _DTYPES.items():
        shape = (rows, channels) if name == "features" else (rows,)
        if shapes[name] != (shape, _NAMES[dtype.str]):
            raise ReferenceSetError(path, f"{name} is not {_NAMES[dtype.str]} of shape {shape}")
        columns[name].flags.writeable = False
    return ShardFile(columns, images, key)


def verify_shard(path: Path, shard: ShardFile, sha256: str | None = None) -> None:
    """Read a shard through: its hash, and that all values are legal.

    Raises:
        ReferenceSetError: names what is wrong.
    """
    if sha256 is not None and sha256_of(path) != sha256:
        raise ReferenceSetError(path, f"altered: its sha256 is not the manifest's; {_AGAIN}")
    for name in ("features", "inverse_depth"):
        problem = _problem(name, shard.columns[name])
        if problem:
            raise ReferenceSetError(path, f"{problem}; {_AGAIN}")


# -- writing -------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    """Write a file beside its place, then move it there."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise ReferenceSetError(
            path,
            f"{error.strerror}; once that is mended (a full disk?) the same command goes on where "
            "it was",
        ) from error
