"""`depth_train import network`: a depth network that was made elsewhere, as a bundle.

The file is taken as it is. What a person knows of it and the file does not say (how pictures are
normalised, which kind of depth it returns) is asked for, and stands in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
    seal_bundle,
)
from depth_prior_ros.bundle.files import refuse_foreign, staging
from depth_prior_ros.bundle.manifest import NETWORK_NAME, validate_manifest
from depth_prior_ros.bundle.network import Graph, read_graph
from depth_prior_ros.models.imported import GAUGE_METRES, DepthKind
from depth_prior_ros.untrusted import NETWORK_BYTES, read_file, sha256
from training.errors import TrainingError

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
        spec: "onnx:FILE".
        out: the bundle's folder.
        depth: kind of depth that it returns.
        size: (W, H) of its input, where the file leaves that open.
        mean, std: of the channels, in [0, 1] as is usual.
        largest: what white is, 1 or 255.
        bgr: blue comes first.
        output: name of its depth; default: the first output.
        fill: values of further inputs.
        metres_per_unit: of scale-invariant depth and disparity, where known.
        focal: fx and fy, in pixels of the input, of the cameras that it was trained with.
        max_metres: beyond it depth is published as infinite.
        licence: of its weights.
        name: of the bundle; default: the file's.
    """

    spec: str
    out: Path
    depth: DepthKind
    size: tuple[int, int] | None = None
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    largest: float = 1.0
    bgr: bool = False
    output: str | None = None
    fill: Mapping[str, float] = field(default_factory=dict)
    metres_per_unit: float | None = None
    focal: tuple[float, float] | None = None
    max_metres: float = 80.0
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
    if kind != "onnx" or not place:
        raise TrainingError(f"{request.spec}: name a network as onnx:FILE")
    refuse_foreign(request.out)
    path = Path(place).expanduser()
    data = _read(path)
    manifest = _manifest(request, path, data)
    with staging(request.out) as folder:
        write_bytes(folder / NETWORK_NAME, data)
        bundle = seal_bundle(folder, request.out, manifest)
    _try_out(bundle)
    return bundle


def _read(path: Path) -> bytes:
    try:
        return read_file(path, NETWORK_BYTES)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from error


def _manifest(request: ImportRequest, path: Path, data: bytes) -> Manifest:
    graph = read_graph(path, data)
    picture = graph.picture_input()
    if picture is None:
        raise TrainingError(
            f"{path}: of its inputs ({', '.join(graph.inputs)}) not exactly one has the shape "
            "1x3xHxW of a picture"
        )
    size = _size(request, path, graph.inputs[picture])
    output = request.output or next(iter(graph.outputs))
    spec = {
        "format": "onnx",
        "source": path.name,
        "depth": request.depth,
        "metres": request.depth == "metric" or request.metres_per_unit is not None,
        "size": size,
        "mean": request.mean,
        "std": request.std,
        "largest": request.largest,
        "order": "bgr" if request.bgr else "rgb",
        "input": picture,
        "output": output,
        "fill": _fill(request, path, graph, picture),
    }
    units, source = _unit(request)
    manifest = {
        "name": request.name or path.stem,
        "architecture": Architecture(student={}),
        "network": spec,
        "input_size": size,
        "training_camera": _camera(request, size),
        "depth": DepthSpec(
            metres_per_unit=units, metres_per_unit_source=source, max_metres=request.max_metres
        ),
        "licence": request.licence or _SILENT_LICENCE,
        "provenance": Provenance(note=f"imported from {path.name}, sha256 {sha256(data)}"),
    }
    plain = {n: v.model_dump() if isinstance(v, BaseModel) else v for n, v in manifest.items()}
    return validate_manifest(request.out, plain)


def _size(request: ImportRequest, path: Path, shape: tuple[int | None, ...]) -> tuple[int, int]:
    height, width = shape[2], shape[3]
    if request.size is None and (width is None or height is None):
        raise TrainingError(f"{path}: takes pictures of any size: choose one with --size")
    wanted = request.size or (width or 0, height or 0)
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


def _unit(request: ImportRequest) -> tuple[float, str]:
    """Metres per unit, and where that is from."""
    given = request.metres_per_unit
    if request.depth == "metric":
        if given is not None:
            raise TrainingError("metric depth is in metres: leave --metres-per-unit out")
        if request.focal is None:
            raise TrainingError(
                "metric depth belongs to a focal length: give that of the cameras that the network "
                "was trained with (--focal FX FY, pixels of its input)"
            )
        return 1.0, "the network's own metres"
    if request.depth == "affine_invariant":
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
        DepthPipeline(bundle).infer(noise)
    except ModelFailedError as error:
        raise BundleError(
            bundle.path, f"the network's answer to noise holds no positive number ({error})"
        ) from error
