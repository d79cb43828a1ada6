"""The manifest of a bundle, bundle.yaml: its fields, and how it is sealed and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from depth_prior_ros import strict_yaml
from depth_prior_ros.geometry.camera import Camera, InvalidCameraError
from depth_prior_ros.untrusted import (
    ARCHITECTURE_NUMBER,
    IMAGE_SIDE,
    INPUT_PIXELS,
    MANIFEST_BYTES,
    PRIOR_ENTRIES,
    Damage,
    printable,
    read_file,
    seal,
    sha256,
    unseal,
)

# 2: a prior may name its teacher, alignment and selection, and a bundle may hold its teacher.
# 3: a student may be told its camera, and a bundle hold what it is told.
# 4: what a fusion and a teacher called `tap` is called `stride`; a student may look up references
# of its camera, and a bundle hold some.
# 5: the single-frame network may be one that was made elsewhere; a factor may be a camera's.
SCHEMA_VERSION = 5
MANIFEST_NAME = "bundle.yaml"
# Optional maps that do not depend on the image; see bundle_baselines.
BASELINES_NAME = "baselines.safetensors"
#: Names of the maps in it.
BASELINES = ("own_mean_inverse_depth", "lidar_row_log_depth", "lidar_pixel_log_depth")
# What a student with an episodic prior looks up; see bundle.prior.
REFERENCES_NAME = "references.safetensors"
Part = Literal["student", "prior", "multi_frame", "pose"]
PARTS: tuple[Part, ...] = ("student", "prior", "multi_frame", "pose")
# What may lie beside a network that was made elsewhere.
BESIDE: tuple[Part, ...] = ("multi_frame", "pose")
# A single-frame network that was made elsewhere, by its format; see bundle.network.
NETWORK_NAMES = {"onnx": "network.onnx", "hugging_face": "network.safetensors"}
# A whole bundle inside a bundle: the teacher that its prior came from.
TEACHER_FOLDER = "teacher"
TEACHER_NAME = f"{TEACHER_FOLDER}/{MANIFEST_NAME}"
FILE_NAMES = (
    *(f"{part}.safetensors" for part in PARTS),
    BASELINES_NAME,
    REFERENCES_NAME,
    *NETWORK_NAMES.values(),
    TEACHER_NAME,
)

_DAMAGE: dict[Damage, str] = {
    "truncated": "truncated: the sha256 on its last line is missing",
    "altered": "altered: its sha256 does not match (to change a manifest, use "
    "depth_prior_ros.bundle.rewrite_manifest)",
}
_HEX = "^[0-9a-f]{64}$"


class BundleError(ValueError):
    """A bundle that cannot be trusted or used; the message names the file and the cause."""

    def __init__(self, path: Path, cause: str) -> None:
        # Both may hold what a stranger wrote: keys, names, the words of a parser.
        super().__init__(printable(f"{path}: {cause}"))
        self.path = path
        self.cause = printable(cause)


class _Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class Architecture(_Strict):
    """The arguments from which each network is built again."""

    student: dict[str, Any]
    multi_frame: dict[str, Any] | None = None
    pose: dict[str, Any] | None = None
    # Motions for the multi-frame network are refined against the single-frame depth.
    align_motion: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Architecture:
        """Networks are built from these numbers: none that asks for gigabytes, or is no number."""
        waiting: list[tuple[str, Any]] = list(self.model_dump().items())
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, dict):
                waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
            elif isinstance(value, list):
                waiting += [(name, inner) for inner in value]
            elif isinstance(value, int | float) and not abs(value) <= _largest(name):
                raise ValueError(f"{name}: {value} does not lie within {_largest(name)}")
        return self


def _largest(name: str) -> int:
    return IMAGE_SIDE if name.endswith(".size") else ARCHITECTURE_NUMBER


class CameraSpec(_Strict):
    """The training camera, in pixels at the input size."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def of(cls, camera: Camera) -> CameraSpec:
        """The spec of `camera`, which must already have the input size."""
        return cls(**asdict(camera))

    def camera(self) -> Camera:
        """As a `Camera`. Raises InvalidCameraError."""
        return Camera(**self.model_dump())


# How `metres_per_unit_source` begins where training on stereo pairs has fixed the unit.
STEREO_BASELINES = "stereo baselines"


class DepthSpec(_Strict):
    """Network units, their range, and the factor to metres with its origin.

    factor_camera: that the factor was fitted to (see `FactorSpec`); None: that of training.
    """

    min_units: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    max_units: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    metres_per_unit: float = Field(gt=0, allow_inf_nan=False)
    metres_per_unit_source: str = Field(min_length=1)
    factor_camera: CameraSpec | None = None
    max_metres: float = Field(default=80.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> DepthSpec:
        if self.min_units >= self.max_units:
            raise ValueError(f"min_units {self.min_units} is not below max_units {self.max_units}")
        return self

    @property
    def unit_by_stereo(self) -> bool:
        """Whether stereo baselines fixed the unit in training (modes S, MS): nothing is fitted."""
        return self.metres_per_unit_source.startswith(STEREO_BASELINES)


# Cameras further apart than this, in image widths or heights, are another camera.
_ALIKE = 0.05


def unlike(fitted: CameraSpec, camera: Camera) -> str | None:
    """In what a camera is not the one that something was fitted to; None where it is alike."""
    mine = (fitted.fx / fitted.width, fitted.fy / fitted.height, fitted.cy / fitted.height)
    seen = (camera.fx / camera.width, camera.fy / camera.height, camera.cy / camera.height)
    names = ("fx over width", "fy over height", "cy over height")
    apart = [
        f"{name} is {new:.3f}, not {old:.3f}"
        for name, old, new in zip(names, mine, seen, strict=True)
        if abs(new - old) > _ALIKE
    ]
    return ", ".join(apart) or None


class FittedSpec(_Strict):
    """What was fitted to a camera.

    Attributes:
        camera: of the recording that it was fitted on, at that recording's image size.
        source: the recording, and the error on frames that were kept out, before and after.
    """

    camera: CameraSpec
    source: str = Field(min_length=1)

    def doubt(self, camera: Camera) -> str | None:
        """Why it may be wrong for a camera, in words; None where that is like its own."""
        apart = unlike(self.camera, camera)
        if apart is None:
            return None
        return (
            f"the bundle was fitted to another camera ({self.source}): {apart}. Depth "
            "may be worse than with a bundle that was fitted to none; fit it anew (depth_train "
            "adapt, or the node's service ~/adapt)"
        )


class CameraCodeSpec(FittedSpec):
    """What a student is told of its camera: numbers, see `models.student`.

    All zero is the training camera.
    """

    numbers: tuple[float, float, float, float, float]

    @model_validator(mode="after")
    def _finite(self) -> CameraCodeSpec:
        if not all(abs(number) <= 10 for number in self.numbers):
            raise ValueError(f"numbers {list(self.numbers)}: each must lie within -10 and 10")
        return self

    def __str__(self) -> str:
        return "numbers: " + ", ".join(f"{number:.2f}" for number in self.numbers)


class FactorSpec(FittedSpec):
    """The factor of a network that is told nothing of its camera."""

    metres_per_unit: float = Field(gt=0, allow_inf_nan=False)

    def __str__(self) -> str:
        return f"factor: {self.metres_per_unit:.4g} m per unit"


Told = CameraCodeSpec | FactorSpec
"""What of a system is fitted to its camera, see `Manifest.takes_code`."""


class ReferencesSpec(_Strict):
    """What references a student looks up, and of which camera they are.

    Attributes:
        count: how many.
        channels: of their features.
        camera: of the recording that they were taken from, at that recording's image size.
        source: the recording, where depth came from, and the error on frames that were left out,
            without and with the references of the others.
        alignment: `EpisodicPrior.alignment_hash` of the weights that read them.
    """

    count: int = Field(gt=0, le=PRIOR_ENTRIES)
    channels: int = Field(gt=0, le=ARCHITECTURE_NUMBER)
    camera: CameraSpec
    source: str = Field(min_length=1)
    alignment: str = Field(pattern=_HEX)

    def doubt(self, camera: Camera) -> str | None:
        """Why they must not be looked up for a camera, in words; None where it is like theirs."""
        apart = unlike(self.camera, camera)
        if apart is None:
            return None
        return (
            f"the bundle's references are of another camera ({self.source}): {apart}. They are "
            "not looked up, as depth would be worse than without any; take some of this camera "
            "(depth_train adapt)"
        )


class NetworkSpec(_Strict):
    """A single-frame network that was made elsewhere: what it is shown and what it returns.

    Attributes:
        format: "onnx", or "hugging_face", weights of a model of transformers.
        source: name of what was imported.
        depth: kind of depth that it returns, see `models.imported.DepthKind`.
        metres: whether `DepthSpec.metres_per_unit` is known.
        size: (W, H) of its own input; pictures of the bundle's input size are resized to it.
        mean, std: of red, green and blue, at values of 0 to `largest`.
        largest: what white is, 1 or 255.
        order: of the channels.
        input: name of the picture among its inputs. output: of depth among its outputs.
        fill: value of every further input, by name.
        config: from which transformers builds the model.
    """

    format: Literal["onnx", "hugging_face"]
    source: str = Field(min_length=1)
    depth: Literal["metric", "scale_invariant", "disparity", "affine_invariant"]
    metres: bool
    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    largest: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    order: Literal["rgb", "bgr"] = "rgb"
    input: str = Field(min_length=1)
    output: str = Field(min_length=1)
    fill: dict[str, float] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of its file in the bundle."""
        return NETWORK_NAMES[self.format]

    @model_validator(mode="after")
    def _sound(self) -> NetworkSpec:
        width, height = self.size
        if not (0 < width <= IMAGE_SIDE and 0 < height <= IMAGE_SIDE):
            raise ValueError(f"network.size {width}x{height}: sides of 1 to {IMAGE_SIDE}")
        if width * height > INPUT_PIXELS:
            raise ValueError(f"network.size {width}x{height}: at most {INPUT_PIXELS:,} pixels")
        numbers = (*self.mean, *self.std, *self.fill.values())
        if not all(abs(number) <= ARCHITECTURE_NUMBER for number in numbers):
            raise ValueError("network: mean, std and fill must be finite and moderate numbers")
        if min(self.std) <= 0:
            raise ValueError(f"network.std {list(self.std)}: must be positive")
        if self.depth == "metric" and not self.metres:
            raise ValueError("network: metric depth has metres")
        if self.depth == "affine_invariant" and self.metres:
            raise ValueError("network: affine-invariant depth has no metres of its own")
        return self


class Provenance(_Strict):
    """Where the weights come from: enough to assess them, and to make them again."""

    data_sources: list[str] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    git: str | None = None
    steps: dict[str, int] = Field(default_factory=dict)
    note: str = ""


class TeacherIdentity(_Strict):
    """The network that reference pixels, and a prior chosen of them, came from.

    Attributes:
        name: the bundle's name, or the model's on Hugging Face.
        kind: "bundle", "foundation" or another kind of teacher.
        sha256: of everything that decides its outputs: weights, architecture, size, lookup.
        stride: of the features, at its input size.
        channels: channels of the features.
        size: (W, H) of its input.
        licence: of its weights.
    """

    name: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    sha256: str = Field(pattern=_HEX)
    stride: int = Field(gt=0)
    channels: int = Field(gt=0)
    size: tuple[int, int]
    licence: str = Field(min_length=1)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TeacherIdentity:
        """From a mapping such as YAML or `to_dict` gives. Raises ValueError."""
        return cls.model_validate_json(json.dumps(_renamed(dict(values))))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `of` takes."""
        return self.model_dump(mode="json")

    @property
    def map_pixels(self) -> int:
        """Pixels of one image's map of features."""
        width, height = self.size
        return (width // self.stride) * (height // self.stride)


class PriorSpec(_Strict):
    """What the reference pixels are.

    Attributes:
        pixels: how many.
        channels: width of their features.
        note: shown by `inspect`.
        teacher: what they came from; None in bundles that do not say.
        alignment: hash of the student's layers that read the prior, and of how they are used
            (`PriorFusion.alignment_hash`); filled in by `save_bundle`.
        selection: how they were chosen: `method`, how many were `kept`, `out_of` how many, by how
            many `images`, `seed`.
    """

    pixels: int = Field(gt=0, le=PRIOR_ENTRIES)
    channels: int = Field(gt=0, le=ARCHITECTURE_NUMBER)
    note: str
    teacher: TeacherIdentity | None = None
    alignment: str | None = Field(default=None, pattern=_HEX)
    selection: dict[str, Any] | None = None


class Manifest(_Strict):
    """bundle.yaml. `files` (file name to sha256) is filled in by `save_bundle`."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema", ge=1)
    name: str = Field(min_length=1)
    architecture: Architecture
    network: NetworkSpec | None = None
    input_size: tuple[int, int]
    training_camera: CameraSpec
    depth: DepthSpec
    licence: str = Field(min_length=1)
    provenance: Provenance = Field(default_factory=Provenance)
    prior: PriorSpec | None = None
    camera_code: CameraCodeSpec | None = None
    references: ReferencesSpec | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        width, height = self.input_size
        own = self.network is None or self.architecture.multi_frame is not None
        multiple = 32 if own else 1
        if width <= 0 or height <= 0 or width % multiple or height % multiple:
            raise ValueError(f"input_size {width}x{height}: both sides must be multiples of 32")
        if max(width, height) > IMAGE_SIDE or width * height > INPUT_PIXELS:
            raise ValueError(
                f"input_size {width}x{height}: at most {IMAGE_SIDE} a side and {INPUT_PIXELS:,} "
                "pixels"
            )
        camera = self.training_camera
        if (camera.width, camera.height) != self.input_size:
            raise ValueError(
                f"training_camera is given at {camera.width}x{camera.height}, not at the input "
                f"size {width}x{height}"
            )
        try:
            camera.camera()
        except InvalidCameraError as error:
            raise ValueError(f"training_camera: {error}") from error
        if self.camera_code is not None and not self.takes_code:
            raise ValueError("camera_code is given, but the student is not told its camera")
        if self.files and (self.references is None) == (REFERENCES_NAME in self.files):
            raise ValueError(f"references and {REFERENCES_NAME} go together: one is missing")
        if self.references is not None and not self.architecture.student.get("episodic"):
            raise ValueError("references are given, but the student looks none up")
        stored = set(self.files) & set(NETWORK_NAMES.values())
        if self.network is None and stored:
            raise ValueError(f"files lists {sorted(stored)}, but there is no `network`")
        if self.network is not None and self.files:
            beside = set(map(file_name, BESIDE)) if self.architecture.multi_frame else set()
            if set(self.files) != {self.network.file, *beside}:
                raise ValueError(
                    f"files must list {', '.join([self.network.file, *sorted(beside)])} alone, as "
                    "there is a `network`"
                )
        unknown = set(self.files) - set(FILE_NAMES)
        if unknown:
            raise ValueError(f"files lists {sorted(unknown)}, which no bundle has")
        return self

    @property
    def takes_code(self) -> bool:
        """Whether the student is told its camera by numbers; the factor is fitted of all others."""
        return self.network is None and bool(self.architecture.student.get("camera_code", False))

    @property
    def told(self) -> Told | None:
        """What was fitted to a camera; None: nothing."""
        depth = self.depth
        if self.takes_code or depth.factor_camera is None:
            return self.camera_code
        return FactorSpec(
            metres_per_unit=depth.metres_per_unit,
            camera=depth.factor_camera,
            source=depth.metres_per_unit_source,
        )

    def with_told(self, told: Told | None) -> Manifest:
        """The same system fitted to a camera; None: as it is. Raises ValueError for what is none
        of its own."""
        if told is None:
            return self
        if isinstance(told, CameraCodeSpec) != self.takes_code:
            own = "numbers of its camera" if self.takes_code else "a factor, no numbers"
            raise ValueError(f"bundle {self.name} is fitted to a camera by {own}")
        if isinstance(told, CameraCodeSpec):
            return self.model_copy(update={"camera_code": told})
        depth = {
            "metres_per_unit": told.metres_per_unit,
            "metres_per_unit_source": told.source,
            "factor_camera": told.camera,
        }
        network = self.network
        if network is not None:
            network = network.model_copy(update={"metres": True})
        return self.model_copy(
            update={"depth": self.depth.model_copy(update=depth), "network": network}
        )

    def data(self) -> dict[str, Any]:
        """As plain data, of today's schema: for `validate_manifest`, after a change."""
        return {**self.model_dump(by_alias=True, mode="json"), "schema": SCHEMA_VERSION}

    @property
    def has_metres(self) -> bool:
        """Whether `depth.metres_per_unit` is known, and no mere beginning of a search."""
        return self.network is None or self.network.metres

    @property
    def affine(self) -> bool:
        """Whether inverse depth is known up to a factor and a shift only."""
        return self.network is not None and self.network.depth == "affine_invariant"

    @property
    def camera(self) -> Camera:
        """The training camera at the input size."""
        return self.training_camera.camera()


def file_name(part: Part) -> str:
    """The file that holds a part."""
    return f"{part}.safetensors"


def read_manifest(path: Path, expected: str | None = None, inside: Path | None = None) -> Manifest:
    """Read and check a manifest: seal, schema, keys and types. Raises BundleError.

    Args:
        path: the file.
        expected: its sha256, where a manifest above it says so.
        inside: a folder that a link must not lead out of.
    """
    try:
        raw = read_file(path, MANIFEST_BYTES, inside=inside)
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise BundleError(path, "missing: this folder is no bundle") from None
    except UnicodeDecodeError as error:
        raise BundleError(path, f"altered: not text ({error})") from error
    except OSError as error:
        raise BundleError(path, f"cannot be read: {strict_yaml.problem_of(error)}") from error
    if expected is not None and sha256(raw) != expected:
        raise BundleError(path, "altered: sha256 is not what the manifest above it says")
    body, data = _unseal(path, text)
    if not isinstance(data, dict):
        raise BundleError(path, "holds no mapping of keys to values")
    version = data.get("schema")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            path,
            f"written by a newer version (schema {version}, this package reads up to "
            f"{SCHEMA_VERSION}): update the package",
        )
    manifest = validate_manifest(path, data)
    if body is not None:
        raise BundleError(path, body)
    return manifest


def _unseal(path: Path, text: str) -> tuple[str | None, Any]:
    """What is wrong with the seal (None for nothing), and the parsed content without it.

    The seal is reported last: a newer schema or an unknown key says more than "altered".
    """
    body, damage = unseal(text)
    problem = _DAMAGE[damage] if damage else None
    try:
        return problem, strict_yaml.parse(body, MANIFEST_BYTES)
    except strict_yaml.YamlError as error:
        raise BundleError(path, f"{problem or 'altered'}; {error}") from error


def validate_manifest(path: Path, data: Mapping[str, Any]) -> Manifest:
    """A manifest from plain data, such as YAML gives. Raises BundleError."""
    try:
        # By way of JSON, where strict validation takes lists for tuples.
        values = json.loads(json.dumps(data))
        for *place, name in (("architecture", "student", "fusion"), ("prior", "teacher")):
            section = values
            for key in place:
                section = section.get(key) if isinstance(section, dict) else None
            if isinstance(section, dict) and name in section:
                section[name] = _renamed(section[name])
        return Manifest.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise BundleError(path, "; ".join(_plain(e) for e in error.errors())) from error
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise BundleError(path, f"holds a value that a manifest cannot have: {error}") from error


def _renamed(section: Any) -> Any:
    """A section of schema 3 or before in the words of today."""
    if isinstance(section, dict) and "tap" in section and "stride" not in section:
        return {"stride" if key == "tap" else key: value for key, value in section.items()}
    return section


def _plain(error: Any) -> str:
    place = ".".join(str(step) for step in error["loc"]) or "manifest"
    if error["type"] == "extra_forbidden":
        return f"unknown key {place}"
    if error["type"] == "missing":
        return f"key {place} is missing"
    return f"{place}: {error['msg']}"


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest with its seal as the last line."""
    data = manifest.model_dump(by_alias=True, mode="json")
    body = strict_yaml.dump(data)
    path.write_bytes(seal(body).encode())
