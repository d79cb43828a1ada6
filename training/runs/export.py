"""`depth_train export`: a bundle's networks as ONNX or OpenVINO files, compared with PyTorch.

Every network is a file of its own with static shapes, batch one, float32 in and out; the student
has its prior inside. What was written is read back and run on a random and on a street image, and
nothing is left in place unless it agrees with PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_prior_ros.atomic_files import move_into_place
from depth_prior_ros.backends.base import BackendError
from depth_prior_ros.backends.onnx_backend import export_onnx
from depth_prior_ros.bundle import Bundle, BundleError, load_bundle
from depth_prior_ros.bundle.files import staging
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.models.episodic_prior import ProjectedReferences
from depth_prior_ros.models.export import (
    FeatureRunner,
    MultiFrameRunner,
    PoseRunner,
    StudentRunner,
)
from depth_prior_ros.pipeline.framing import frame_image
from training.errors import TrainingError

Kind = Literal["onnx", "openvino"]
Array = NDArray[np.float32]
Arrays = tuple[Array, ...]
#: A file that was read back: arrays in, arrays out, both positional.
Network = Callable[..., Sequence[Any]]

MANIFEST = "export.json"
README = "README.md"
# Largest difference from PyTorch over the largest value of an output. Another order of sums gives
# up to 1e-4 behind a network of a hundred layers.
TOLERANCE = 1e-3
_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
}
_SUFFIX: dict[Kind, str] = {"onnx": ".onnx", "openvino": ".xml"}
_MOTIONS = ("second_from_first",)
_MEANING = {
    "image": "RGB, 0 to 1",
    "code": "what the student is told of its camera; zeros are the training camera",
    "first": "RGB, 0 to 1; the earlier of two frames",
    "second": "RGB, 0 to 1; the later of two frames",
    "inverse_depth": "1 / network units; metres are metres_per_unit / value",
    "confidence": "0 to 1",
    "matching": "features to compare frames by",
    "context": "features of the frame itself",
    "matching_current": "`matching` of the current frame, from `features`",
    "context_current": "`context` of the current frame, from `features`",
    "matching_previous": "`matching` of the previous frame, from `features`",
    "second_from_first": "rigid transform of points, translation in network units",
    "previous_from_current": "rigid transform of points, translation in network units; the inverse "
    "of `second_from_first` of `pose` with the previous frame first",
    "K": "intrinsics in pixels of the input size",
    "single_depth": "network units; 1 / `inverse_depth` of `student`",
    "depth": "network units; metres are metres_per_unit * value",
    "parallax": "pixels of the input between both ends of the search range; where there are few, "
    "`depth` is `single_depth`, and in part where `confidence` is low",
    "matched": "network units, by matching alone, before `single_depth` is blended in",
}


@dataclass(frozen=True)
class Difference:
    """Largest difference of one output from PyTorch's: absolute, and over its largest value."""

    output: str
    on: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Exported:
    """One network's file.

    Attributes:
        network: student, features, pose or multi_frame.
        file: its name in the folder.
        inputs: name, shape and meaning, in order.
        outputs: likewise.
        differences: from PyTorch, for every output and image.
    """

    network: str
    file: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    differences: list[Difference]


@dataclass(frozen=True)
class _Case:
    """A network with the inputs it is compared on: by name of the image, positional arrays."""

    name: str
    runner: nn.Module
    inputs: dict[str, Arrays]

    @property
    def example(self) -> Arrays:
        return next(iter(self.inputs.values()))


def export_bundle(
    name_or_path: str | Path,
    kind: Kind,
    out: Path | None = None,
    tolerance: float = TOLERANCE,
    report: Callable[[Exported], None] = lambda exported: None,
    look_up: bool = True,
) -> Path:
    """Write a bundle's networks to a folder, and compare them with PyTorch.

    Args:
        name_or_path: name of a shipped bundle, or its folder.
        kind: "onnx", or "openvino" for its IR (.xml and .bin).
        out: the folder; an earlier export there is replaced. Default: NAME_KIND.
        tolerance: largest relative difference, see `Difference`.
        report: called after each network.
        look_up: whether the bundle's references are inside the student; they are of one camera.

    Returns:
        The folder, with the networks, export.json and README.md. It appears when all is there.

    Raises:
        BackendError: a package is missing, or a network cannot be exported.
        BundleError: the bundle cannot be used.
        TrainingError: a file differs from PyTorch, or the folder holds other things.
        OSError: the files cannot be written.
    """
    _require(kind)
    bundle = load_bundle(name_or_path)
    out = Path(f"{bundle.manifest.name}_{kind}") if out is None else out
    _refuse_foreign(out)
    with staging(out) as folder:
        exported = []
        for case in _cases(bundle, look_up):
            exported.append(_export(case, kind, folder, tolerance))
            report(exported[-1])
        _describe(bundle, kind, exported, folder, look_up)
        move_into_place(folder, out)
    return out


def _require(kind: Kind) -> None:
    lacking = [package for package in _PACKAGES[kind] if find_spec(package) is None]
    if lacking:
        raise BackendError(
            f"export to {kind} needs {' and '.join(lacking)}: pip install {' '.join(lacking)} "
            "(or this package with its extra `cpu`)"
        )


# -- the networks and what they are compared on --------------------------------------------------


def _cases(bundle: Bundle, look_up: bool) -> Iterator[_Case]:
    """The student and, where there are all of them, features, pose and multi-frame network."""
    student = _student(bundle, look_up)
    pairs = {"random": _random_pair(bundle), "street": _street_pair(bundle)}
    code: Arrays = ()
    if "code" in student.INPUTS:
        told = bundle.manifest.camera_code
        numbers = told.numbers if told is not None else (0.0,) * 5
        code = (np.array([numbers], np.float32),)
    yield _Case("student", student, {on: (pair[1], *code) for on, pair in pairs.items()})
    if not (bundle.has("multi_frame") and bundle.has("pose")):
        return
    multi_frame = bundle.multi_frame()
    features, pose = FeatureRunner(multi_frame), PoseRunner(bundle.pose())
    yield _Case("features", features, {on: (pair[1],) for on, pair in pairs.items()})
    yield _Case("pose", pose, pairs)
    K = bundle.manifest.camera.matrix().astype(np.float32)[np.newaxis]
    inputs: dict[str, Arrays] = {}
    for on, (before, now) in pairs.items():
        inverse, _ = _run_torch(student, (now, *code))
        (motion,) = _run_torch(pose, (before, now))
        matching, context = _run_torch(features, (now,))
        earlier, _ = _run_torch(features, (before,))
        back = rigid_inverse(motion.astype(np.float64)).astype(np.float32)
        inputs[on] = (matching, context, earlier, back, K, np.reciprocal(inverse))
    yield _Case("multi_frame", MultiFrameRunner(multi_frame), inputs)


def _student(bundle: Bundle, look_up: bool) -> StudentRunner | _WithReferences:
    student, depth = bundle.student(), bundle.manifest.depth
    prior = None
    if student.fusion is not None:
        if not bundle.has("prior"):
            raise BundleError(bundle.path, "the student has a prior fusion, but there is no prior")
        bundle.match_prior(student)
        prior = bundle.prior()
    references = bundle.references() if look_up else None
    runner = StudentRunner(student, prior, depth.min_units, depth.max_units)
    if references is None or student.episodic is None:
        return runner
    with torch.no_grad():
        return _WithReferences(runner, student.episodic.project([references], len(references)))


class _WithReferences(nn.Module):
    """A student with the references that it looks up inside; else as `StudentRunner`."""

    OUTPUTS = StudentRunner.OUTPUTS

    def __init__(self, runner: StudentRunner, references: ProjectedReferences) -> None:
        super().__init__()
        self.runner = runner
        self.INPUTS = runner.INPUTS
        self.register_buffer("keys", references.keys)
        self.register_buffer("values", references.values)

    def forward(self, *told: Tensor) -> tuple[Tensor, Tensor]:
        """Run the student; image, then the code where it is told its camera."""
        found: tuple[Tensor, Tensor] = self.runner(*told, self.keys, self.values)
        return found


def _random_pair(bundle: Bundle) -> Arrays:
    width, height = bundle.manifest.input_size
    images = np.random.default_rng(0).random((2, 1, 3, height, width), dtype=np.float32)
    return images[0], images[1]


def _street_pair(bundle: Bundle) -> Arrays:
    """Two neighbouring frames of the drive that is shipped, as the bundle takes them."""
    from depth_prior_ros.recordings import open_recording
    from depth_prior_ros.share import demo_bag

    frames = open_recording(demo_bag()).frames
    camera = bundle.manifest.camera
    before, now = (
        frame_image(frames[i].image(), frames[i].camera, camera).tensor()
        for i in (len(frames) // 2 - 1, len(frames) // 2)
    )
    return before, now


def _run_torch(runner: nn.Module, inputs: Arrays) -> Arrays:
    with torch.inference_mode():
        outputs = runner(*(torch.from_numpy(array) for array in inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(tensor.numpy() for tensor in outputs)


# -- one file ------------------------------------------------------------------------------------


def _export(case: _Case, kind: Kind, folder: Path, tolerance: float) -> Exported:
    # A student that looks references up can do without, or has them inside.
    names_in = list(case.runner.INPUTS)[: len(case.example)]  # type: ignore[arg-type]
    names_out = list(case.runner.OUTPUTS)  # type: ignore[arg-type]
    path = folder / f"{case.name}.onnx"
    export_onnx(case.runner, case.example, path, names_in, names_out)
    if kind == "openvino":
        path = _to_openvino(path)
    run = _open(path, kind)
    differences = []
    for on, inputs in case.inputs.items():
        expected = _run_torch(case.runner, inputs)
        differences += _compare(names_out, on, run(*inputs), expected)
    worst = max(differences, key=lambda d: d.relative if np.isfinite(d.relative) else np.inf)
    if not worst.relative <= tolerance:
        raise TrainingError(
            f"{path.name}: {worst.output} on a {worst.on} image differs from PyTorch by "
            f"{worst.absolute:.2g}, {worst.relative:.2g} of its largest value; allowed is "
            f"{tolerance:g}. Nothing was written. Another version of "
            f"{' or '.join(_PACKAGES[kind])} may agree; --tolerance allows more"
        )
    return Exported(
        case.name,
        path.name,
        _table(names_in, case.example),
        _table(names_out, expected),
        differences,
    )


def _table(names: Sequence[str], arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(array.shape), "type": "float32", "meaning": _MEANING[name]}
        for name, array in zip(names, arrays, strict=True)
    ]


def _to_openvino(path: Path) -> Path:
    """The IR of an ONNX file, beside it and in its place."""
    from depth_prior_ros.backends.openvino_backend import import_openvino

    openvino = import_openvino()
    target = path.with_suffix(".xml")
    try:
        openvino.save_model(openvino.Core().read_model(path), target, compress_to_fp16=False)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot write {target.name}: {error}") from error
    path.unlink()
    return target


def _open(path: Path, kind: Kind) -> Network:
    """Read a file back, to run on the CPU in float32."""
    try:
        if kind == "onnx":
            from depth_prior_ros.backends.onnxruntime_backend import OnnxRuntimeBackend

            return OnnxRuntimeBackend().read(path)
        from depth_prior_ros.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend().read(path)
    except ImportError as error:
        raise BackendError(f"{kind} cannot be imported: {error}") from error
    except Exception as error:  # each library has errors of its own
        raise BackendError(f"{path.name} cannot be read back: {error}") from error


def _compare(
    names: Sequence[str], on: str, found: Sequence[Any], expected: Arrays
) -> list[Difference]:
    differences = []
    for name, a, b in zip(names, found, expected, strict=True):
        if a.shape != b.shape:
            raise TrainingError(f"{name} has shape {a.shape}, in PyTorch {b.shape}")
        largest = float(np.abs(a.astype(np.float64) - b).max())
        # The ones of a motion's diagonal say nothing of the motion.
        values = b - np.eye(4) if name in _MOTIONS else b
        differences.append(Difference(name, on, largest, _relative(largest, values)))
    return differences


def _relative(difference: float, values: NDArray[Any]) -> float:
    """A difference over the largest value; where all are zero none is allowed."""
    size = float(np.abs(values).max())
    return difference / size if size else float("inf") if difference else 0.0


# -- the folder ----------------------------------------------------------------------------------


def _describe(
    bundle: Bundle, kind: Kind, exported: list[Exported], folder: Path, look_up: bool
) -> None:
    manifest = bundle.manifest
    width, height = manifest.input_size
    camera = manifest.camera
    data = {
        "bundle": manifest.name,
        "bundle_sha256": bundle.digest,
        "format": kind,
        "licence": manifest.licence,
        "input_size": [width, height],
        "camera": {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy},
        "depth": manifest.depth.model_dump(mode="json"),
        "align_motion": manifest.architecture.align_motion,
        "networks": [asdict(network) for network in exported],
    }
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / README).write_text(_readme(bundle, exported, look_up), encoding="utf-8")


def _references(bundle: Bundle) -> str:
    """What is told of references that are inside the student."""
    spec = bundle.manifest.references
    if spec is None:
        return ""
    camera = spec.camera
    return (
        f"So are references of {spec.source}; they are for a camera like theirs, mounted the same: "
        f"fx {camera.fx:.4g}, fy {camera.fy:.4g} pixels at {camera.width}x{camera.height}. For "
        "another one export with --no-look-up. "
    )


def _readme(bundle: Bundle, exported: list[Exported], look_up: bool) -> str:
    manifest = bundle.manifest
    width, height = manifest.input_size
    lines = [
        f"# {manifest.name}",
        "",
        f"Networks of the bundle `{manifest.name}` for images of {width}x{height}, batch one, "
        f"float32. The prior is inside the student. {_references(bundle) if look_up else ''}"
        f"A network unit is {manifest.depth.metres_per_unit:.6g} m. "
        f"The camera that the input must look like: fx {manifest.camera.fx:.4g}, "
        f"fy {manifest.camera.fy:.4g}, cx {manifest.camera.cx:.4g}, cy {manifest.camera.cy:.4g} "
        "pixels; for another focal length multiply the depth by its fx over this one. "
        f"Licence: {manifest.licence}. The same in {MANIFEST}.",
    ]
    if len(exported) > 1 and manifest.architecture.align_motion:
        lines += [
            "",
            "The bundle refines the pose network's motion against the single-frame depth before "
            "matching (`depth_prior_ros.models.alignment`). That is no network, and not in here.",
        ]
    for network in exported:
        worst = max(network.differences, key=lambda d: d.relative)
        lines += ["", f"## {network.network}: `{network.file}`", "", "| | name | shape | meaning |"]
        lines += ["|---|---|---|---|"]
        for way, rows in (("in", network.inputs), ("out", network.outputs)):
            for row in rows:
                shape = " x ".join(str(side) for side in row["shape"])
                lines.append(f"| {way} | `{row['name']}` | {shape} | {row['meaning']} |")
        lines += [
            "",
            f"Largest difference from PyTorch: {worst.relative:.1e} of the largest "
            f"`{worst.output}`.",
        ]
    return "\n".join(lines) + "\n"


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; the export is a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise TrainingError(f"{out} is a folder with other things in it; choose another place")
