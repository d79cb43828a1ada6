"""`depth_train import network`: a depth network that was made elsewhere, as a bundle.

The file is taken as it is. What a person knows of it and the file does not say (how pictures are
normalised, which kind of depth it returns) is asked for, and stands in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from depth_prior_ros.atomic_files import write_bytes
from depth_prior_ros.bundle import (
    Architecture,
    Bundle,
    BundleError,
    CameraSpec,
    DepthSpec,
    Manifest,
    Provenance,
    load_bundle,
)
from depth_prior_ros.bundle.bundle import seal_bundle
from depth_prior_ros.bundle.files import (
    copy_file,
    refuse_foreign,
    sha256_of,
    staging,
    write_tensors,
)
from depth_prior_ros.bundle.hugging_face import (
    Loaded,
    NetworkError,
    config_of,
    gives_depth,
    load_model,
    settle_missing,
)
from depth_prior_ros.bundle.manifest import BESIDE, NETWORK_NAMES, file_name, validate_manifest
from depth_prior_ros.bundle.network import Graph, read_graph
from depth_prior_ros.models.imported import GAUGE_METRES, DepthKind
from depth_prior_ros.pipeline.framing import ASPECT_TOLERANCE
from depth_prior_ros.share import home_path
from depth_prior_ros.untrusted import NETWORK_BYTES, read_file, sha256
from training.errors import TrainingError

Size = tuple[int, int]
#: Mean and standard deviation of ImageNet's channels, RGB in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Without a focal length: of the world's cameras the middle. Metres by height or odometry do not
# depend on it.
_FIELD_OF_VIEW = math.radians(60)
_SILENT_LICENCE = "unknown: look at where the network came from"


@dataclass(frozen=True)
class ImportRequest:
    """What is imported, and what is known of it.

    Attributes:
        spec: "hf:FOLDER" or "onnx:FILE".
        out: the bundle's folder.
        depth: kind of depth that it returns; default: as is known of a model of Hugging Face.
        size: (W, H) of its input, where the file leaves that open.
        mean, std: of the channels, RGB, for pixels in [0, `largest`]; default: those of a model's
            own files, else none.
        largest: what white is, 1 or 255.
        bgr: blue comes first.
        output: name of its depth; default: the first output.
        fill: values of further inputs.
        metres_per_unit: of scale-invariant depth and disparity, where known.
        focal: fx and fy, in pixels of the input, of the cameras that it was trained with.
        max_metres: beyond it depth is published as infinite.
        multi_frame: name or folder of a bundle whose multi-frame and pose networks come with it.
        licence: of its weights.
        name: of the bundle; default: the file's.
    """

    spec: str
    out: Path
    depth: DepthKind | None = None
    size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    largest: float = 1.0
    bgr: bool = False
    output: str | None = None
    fill: Mapping[str, float] = field(default_factory=dict)
    metres_per_unit: float | None = None
    focal: tuple[float, float] | None = None
    max_metres: float = 80.0
    multi_frame: str | None = None
    licence: str | None = None
    name: str | None = None


def import_network(request: ImportRequest) -> Bundle:
    """Write the bundle, and run its network once on noise.

    Raises:
        TrainingError: what was said of the network is not enough, or does not fit it.
        BundleError: the file cannot be used, or the bundle not be written.
        BackendError: no installed backend runs it.
    """
    kind, _, place = request.spec.partition(":")
    if kind not in ("onnx", "hf") or not place:
        raise TrainingError(f"{request.spec}: name a network as hf:FOLDER or onnx:FILE")
    refuse_foreign(request.out)
    path = home_path(place)
    read = _onnx if kind == "onnx" else _hugging_face
    other = None if request.multi_frame is None else _multi_frame_of(request.multi_frame)
    with staging(request.out) as folder:
        found = read(request, path, folder, None if other is None else other.manifest.input_size)
        manifest = _manifest(request, found)
        if other is not None:
            manifest = _beside(request, manifest, other, folder)
        bundle = seal_bundle(folder, request.out, manifest)
    _try_out(bundle)
    return bundle


def _multi_frame_of(name: str) -> Bundle:
    """A bundle whose multi-frame network can work beside another's depth."""
    other = load_bundle(name)
    if not all(other.has(part) for part in BESIDE):
        raise TrainingError(f"--multi-frame {name}: has no multi-frame network")
    if not other.multi_frame().uses_single_depth:
        raise TrainingError(
            f"--multi-frame {name}: looks for depth in a range of its own, in units that the "
            "imported network does not have; choose one that looks around single-frame depth"
        )
    return other


def _beside(request: ImportRequest, manifest: Manifest, other: Bundle, folder: Path) -> Manifest:
    """Put pose and multi-frame network of a bundle beside an imported network.

    They stay at their own input size, and the imported network is shown that picture resized. The
    pose network is brought to its unit and focal length; matching looks around its depth, in
    whatever unit.
    """
    assert manifest.network is not None
    size, theirs = manifest.network.size, other.manifest
    width, height = theirs.input_size
    if manifest.affine:
        raise TrainingError(
            "--multi-frame: matching needs single-frame depth up to a factor, and affine-invariant "
            "depth has a shift as well, which changes from frame to frame; leave it out"
        )
    if not manifest.network.metres:
        raise TrainingError(
            "--multi-frame: the pose network's motion must be in the unit of the depth: give "
            "--metres-per-unit (unknown? import it without, drive with odometry, read ~/scale)"
        )
    if abs(size[0] * height / (size[1] * width) - 1) > ASPECT_TOLERANCE:
        raise TrainingError(
            f"--multi-frame: {theirs.name} looks at {width}x{height}, the network at "
            f"{size[0]}x{size[1]}, another shape: choose --size {width}x{height}, or one like it"
        )
    trained = theirs.training_camera
    if request.focal is not None:
        focal = {
            "fx": request.focal[0] * width / size[0],
            "fy": request.focal[1] * height / size[1],
        }
        trained = trained.model_copy(update=focal)
    pose = other.pose()
    unit = theirs.depth.metres_per_unit / manifest.depth.metres_per_unit
    pose.rescale(unit, trained.fx / theirs.training_camera.fx)
    write_tensors(folder / file_name("pose"), pose.state_dict())
    copy_file(other.path / file_name("multi_frame"), folder / file_name("multi_frame"))
    networks = theirs.architecture.model_copy(update={"student": {}})
    note = f"{manifest.provenance.note}; pose and multi-frame network of {theirs.name}"
    changes = {
        "architecture": networks,
        "input_size": theirs.input_size,
        "training_camera": trained,
        "licence": f"{manifest.licence}; pose and multi-frame network: {theirs.licence}",
        "provenance": manifest.provenance.model_copy(update={"note": note}),
    }
    return validate_manifest(folder, manifest.model_copy(update=changes).data())


@dataclass(frozen=True)
class _Found:
    """What a network's files say: fields of `NetworkSpec`, and what else is known."""

    spec: dict[str, Any]
    name: str
    sha256: str
    depth: DepthKind | None = None
    licence: str | None = None


def _read(path: Path) -> bytes:
    try:
        return read_file(path, NETWORK_BYTES)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from error


def _onnx(request: ImportRequest, path: Path, folder: Path, usual: Size | None) -> _Found:
    """Copy an ONNX file into the bundle. usual: size where it takes any and none was said."""
    data = _read(path)
    graph = read_graph(path, data)
    picture = graph.picture_input()
    if picture is None:
        raise TrainingError(
            f"{path}: of its inputs ({', '.join(graph.inputs)}) not exactly one has the shape "
            "1x3xHxW of a picture"
        )
    spec = {
        "format": "onnx",
        "source": path.name,
        "size": _size(request, path, graph.inputs[picture], usual),
        "mean": request.mean or (0.0, 0.0, 0.0),
        "std": request.std or (1.0, 1.0, 1.0),
        "input": picture,
        "output": request.output or next(iter(graph.outputs)),
        "fill": _fill(request, path, graph, picture),
    }
    write_bytes(folder / NETWORK_NAMES["onnx"], data)
    return _Found(spec, path.stem, sha256(data))


def _hugging_face(request: ImportRequest, path: Path, folder: Path, usual: Size | None) -> _Found:
    """Write a model's weights into the bundle, in half precision. usual: size, or its own."""
    if not path.is_dir():
        raise TrainingError(
            f"hf:{path}: is no folder; download the model first and name its folder"
        )
    try:
        loaded = load_model(str(path))
        kind: DepthKind = "metric" if gives_depth(loaded) else "affine_invariant"
    except NetworkError as error:
        raise TrainingError(str(error)) from error
    size = request.size or _own_size(path, loaded, usual)
    if any(side % loaded.multiple for side in size):
        raise TrainingError(
            f"hf:{path}: sides of its input are multiples of {loaded.multiple}, not "
            f"{size[0]}x{size[1]}"
        )
    noise = torch.rand(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            settle_missing(loaded, lambda: [loaded.model(pixel_values=noise).predicted_depth])
    except (NetworkError, RuntimeError, ValueError) as error:
        raise TrainingError(f"hf:{path}: {error}") from error
    spec = {
        "format": "hugging_face",
        "source": loaded.name,
        "size": size,
        "mean": request.mean or loaded.normalisation[0],
        "std": request.std or loaded.normalisation[1],
        "input": "pixel_values",
        "output": "predicted_depth",
        "config": config_of(loaded),
    }
    file = folder / NETWORK_NAMES["hugging_face"]
    write_tensors(file, loaded.model.state_dict())
    return _Found(spec, loaded.name, sha256_of(file), kind, loaded.licence)


def _own_size(path: Path, loaded: Loaded, usual: Size | None) -> Size:
    if not loaded.sizes and usual is None:
        raise TrainingError(f"hf:{path}: names no input size of its own: choose one with --size")
    width, height = (max(1, round(s / loaded.multiple)) for s in usual or loaded.sizes[0])
    return width * loaded.multiple, height * loaded.multiple


def _manifest(request: ImportRequest, found: _Found) -> Manifest:
    depth = request.depth or found.depth
    if depth is None:
        raise TrainingError(f"{request.spec}: say what kind of depth it returns (--depth)")
    units, source = _unit(request, depth)
    spec = {
        **found.spec,
        "depth": depth,
        "metres": depth == "metric" or request.metres_per_unit is not None,
        "largest": request.largest,
        "order": "bgr" if request.bgr else "rgb",
    }
    size = found.spec["size"]
    manifest = {
        "name": request.name or found.name,
        "architecture": Architecture(student={}),
        "network": spec,
        "input_size": size,
        "training_camera": _camera(request, size),
        "depth": DepthSpec(
            metres_per_unit=units, metres_per_unit_source=source, max_metres=request.max_metres
        ),
        "licence": request.licence or found.licence or _SILENT_LICENCE,
        "provenance": Provenance(
            note=f"imported from {found.spec['source']}, sha256 {found.sha256}"
        ),
    }
    plain = {n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in manifest.items()}
    return validate_manifest(request.out, plain)


def _size(
    request: ImportRequest, path: Path, shape: tuple[int | None, ...], usual: Size | None
) -> Size:
    height, width = shape[2], shape[3]
    if (request.size or usual) is None and (width is None or height is None):
        raise TrainingError(f"{path}: takes pictures of any size: choose one with --size")
    wanted = request.size or (width or (usual or (0, 0))[0], height or (usual or (0, 0))[1])
    if (width or wanted[0], height or wanted[1]) != wanted:
        raise TrainingError(f"{path}: takes pictures of {width}x{height} only; leave --size out")
    return wanted


def _fill(request: ImportRequest, path: Path, graph: Graph, picture: str) -> dict[str, float]:
    others = [name for name in graph.inputs if name != picture]
    unsaid = [name for name in others if name not in request.fill]
    if unsaid:
        raise TrainingError(
            f"{path}: takes {', '.join(unsaid)} beside the picture: say what to fill it with "
            f"(--fill {unsaid[0]}=0)"
        )
    return dict(request.fill)


def _unit(request: ImportRequest, depth: DepthKind) -> tuple[float, str]:
    """Metres per unit, and where that is from."""
    given = request.metres_per_unit
    if depth == "metric":
        if given is not None:
            raise TrainingError("metric depth is in metres: leave --metres-per-unit out")
        if request.focal is None:
            raise TrainingError(
                "metric depth belongs to a focal length: give that of the cameras that the network "
                "was trained with (--focal FX FY, pixels of its input)"
            )
        return 1.0, "the network's own metres"
    if depth == "affine_invariant":
        if given is not None:
            raise TrainingError(
                "affine-invariant depth has no metres per unit: its shift is unknown, too"
            )
        return GAUGE_METRES, "unknown: where the search for it begins"
    if given is None:
        return 10.0, "unknown: where the search for it begins"
    return given, "given when the network was imported"


def _camera(request: ImportRequest, size: tuple[int, int]) -> CameraSpec:
    width, height = size
    usual = width / 2 / math.tan(_FIELD_OF_VIEW / 2)
    fx, fy = request.focal or (usual, usual)
    return CameraSpec(
        fx=fx, fy=fy, cx=(width - 1) / 2, cy=(height - 1) / 2, width=width, height=height
    )


def _try_out(bundle: Bundle) -> None:
    """Run the network on noise, as a vehicle would."""
    from depth_prior_ros.pipeline import DepthPipeline, ModelFailedError

    width, height = bundle.manifest.input_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        DepthPipeline(bundle).infer(noise, order="rgb")
    except ModelFailedError as error:
        raise BundleError(
            bundle.path, f"the network's answer to noise holds no positive number ({error})"
        ) from error
