"""A trained system on disk: a manifest and safetensors; load, save, verify, describe.

A bundle is a folder::

    bundle.yaml               the manifest (see `Manifest`), sealed by a checksum on its last line
    student.safetensors       the single-frame network, with its prior fusion where it has one
    prior.safetensors         features (N, C) and inverse_depth (N,) of the reference pixels
    multi_frame.safetensors   the multi-frame network with its PADS map
    pose.safetensors          the pose network

Floating-point tensors are half precision on disk and single precision in memory. All but the
student may be absent: then the manifest does not list them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from depth_prior_ros.bundle_manifest import (
    MANIFEST_NAME,
    PARTS,
    SCHEMA_VERSION,
    Architecture,
    BundleError,
    CameraSpec,
    DepthSpec,
    Manifest,
    Part,
    PriorSpec,
    Provenance,
    file_name,
    read_manifest,
    validate_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depth_prior_ros.models.multi_frame import AnyMultiFrame
    from depth_prior_ros.models.pose import PoseNet
    from depth_prior_ros.models.prior_fusion import Prior
    from depth_prior_ros.models.student import Student

__all__ = [
    "MANIFEST_NAME",
    "PARTS",
    "SCHEMA_VERSION",
    "Architecture",
    "Bundle",
    "BundleError",
    "CameraSpec",
    "DepthSpec",
    "Manifest",
    "PriorSpec",
    "Provenance",
    "build_network",
    "describe",
    "load_bundle",
    "rewrite_manifest",
    "save_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Networks are built and their weights read on each call."""

    path: Path
    manifest: Manifest

    def has(self, part: Part) -> bool:
        """Whether the bundle holds this part."""
        return file_name(part) in self.manifest.files

    @property
    def digest(self) -> str:
        """A hash over the hashes of all files: what to key caches with."""
        joined = json.dumps(sorted(self.manifest.files.items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def student(self) -> Student:
        """The single-frame network in eval mode, on the CPU, in float32."""
        return self._network("student")

    def multi_frame(self) -> AnyMultiFrame:
        """The multi-frame network in eval mode, on the CPU, in float32."""
        return self._network("multi_frame")

    def pose(self) -> PoseNet:
        """The pose network in eval mode, on the CPU, in float32."""
        return self._network("pose")

    def prior(self) -> Prior:
        """The reference pixels, float32."""
        from depth_prior_ros.models.prior_fusion import Prior

        tensors = self._tensors("prior")
        return Prior(features=tensors["features"], inverse_depth=tensors["inverse_depth"])

    def _network(self, part: Part) -> Any:
        net = build_network(self.manifest, part)
        net.load_state_dict({**_stored(net, kept=False), **self._tensors(part)}, strict=True)
        net.requires_grad_(False)
        return net.eval()

    def _tensors(self, part: Part) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        path = self.path / file_name(part)
        if not self.has(part):
            raise BundleError(path, f"this bundle has no {part} network")
        tensors = load_file(path)
        return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Verify a bundle, by path or by the name of a shipped one, and open it.

    Checked are: schema version, the manifest's keys, types and seal, that every file is there and
    has the recorded sha256, that it is readable, and that the names and shapes of its tensors are
    those of the architecture. Raises BundleError naming file and cause.
    """
    from depth_prior_ros.share import bundle_path

    try:
        path = bundle_path(name_or_path)
    except FileNotFoundError as error:
        raise BundleError(Path(name_or_path), f"missing: {error}") from error
    manifest = read_manifest(path / MANIFEST_NAME)
    if file_name("student") not in manifest.files:
        raise BundleError(path / MANIFEST_NAME, "lists no student.safetensors")
    for name, expected in manifest.files.items():
        _verify_hash(path / name, expected)
    bundle = Bundle(path, manifest)
    _verify_architecture(bundle)
    return bundle


def save_bundle(
    path: str | Path,
    manifest: Manifest,
    *,
    student: nn.Module,
    prior: Prior | None = None,
    multi_frame: nn.Module | None = None,
    pose: nn.Module | None = None,
) -> Bundle:
    """Write a bundle; `manifest.files` is replaced by the hashes of what is written.

    Everything is written and verified beside `path` first, then renamed, so that `path` never
    holds half a bundle. An existing bundle is replaced; any other existing folder is refused.
    Raises BundleError, also where a weight is not finite or does not fit half precision, or the
    disk is full.
    """
    path = Path(path)
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    states: dict[Part, Mapping[str, Tensor]] = {"student": student.state_dict()}
    if prior is not None:
        states["prior"] = {"features": prior.features, "inverse_depth": prior.inverse_depth}
    if multi_frame is not None:
        states["multi_frame"] = _stored(multi_frame)
    if pose is not None:
        states["pose"] = pose.state_dict()
    with _staging(path) as folder:
        files = {}
        for part, state in states.items():
            target = folder / file_name(part)
            _write_tensors(target, state)
            files[target.name] = _sha256(target)
        write_manifest(folder / MANIFEST_NAME, manifest.model_copy(update={"files": files}))
        load_bundle(folder)
        _replace(folder, path)
    return Bundle(path, read_manifest(path / MANIFEST_NAME))


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Change fields of a bundle's manifest (metrics, provenance, ...) and leave the weights.

    Raises BundleError where the result is not a valid bundle; then nothing was written.
    """
    data = bundle.manifest.model_dump(by_alias=True, mode="json")
    for name, value in changes.items():
        data[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    target = bundle.path / MANIFEST_NAME
    manifest = validate_manifest(target, data)
    if manifest.files != bundle.manifest.files:
        raise BundleError(target, "the hashes of files are not yours to change")
    _verify_architecture(Bundle(bundle.path, manifest))
    temporary = target.with_suffix(".yaml.tmp")
    write_manifest(temporary, manifest)
    temporary.replace(target)
    return Bundle(bundle.path, manifest)


def build_network(manifest: Manifest, part: Part) -> nn.Module:
    """Build one of the manifest's networks, randomly initialised.

    The global random state is left as it was. Raises BundleError for an architecture that this
    version of the package does not know.
    """
    import torch

    from depth_prior_ros.models.multi_frame import build_multi_frame
    from depth_prior_ros.models.pose import build_pose
    from depth_prior_ros.models.student import build_student

    width, height = manifest.input_size
    architecture = manifest.architecture
    name = Path(MANIFEST_NAME)
    try:
        with torch.random.fork_rng(devices=[]):
            if part == "student":
                return build_student(architecture.student)
            if part == "multi_frame" and architecture.multi_frame is not None:
                values = {"size": [height, width], **architecture.multi_frame}
                if list(values["size"]) != [height, width]:
                    raise ValueError(f"size {values['size']} is not the input size")
                return build_multi_frame(values)
            if part == "pose" and architecture.pose is not None:
                return build_pose(architecture.pose)
    except (TypeError, ValueError, KeyError) as error:
        raise BundleError(name, f"architecture of {part} cannot be built: {error}") from error
    raise BundleError(name, f"architecture has no entry for {part}")


def describe(bundle: Bundle) -> str:
    """The bundle in words and figures, for people."""
    from depth_prior_ros.bundle_text import describe_manifest

    sizes = {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files}
    return describe_manifest(bundle.manifest, bundle.path, sizes)


# -- files -------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verify_hash(path: Path, expected: str) -> None:
    try:
        found = _sha256(path)
    except FileNotFoundError:
        raise BundleError(path, "missing: the manifest lists it") from None
    except OSError as error:
        raise BundleError(path, f"cannot be read: {error}") from error
    if found == expected:
        return
    problem = _truncation(path) or "altered"
    raise BundleError(
        path, f"{problem}: sha256 is {found[:12]}..., the manifest says {expected[:12]}..."
    )


def _truncation(path: Path) -> str | None:
    """In words, by how much a safetensors file is shorter than its header says."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 8:
            return f"truncated ({size} bytes)"
        header = int.from_bytes(file.read(8), "little")
        if header > size - 8:
            return f"truncated (its header alone needs {8 + header} bytes, it has {size})"
        try:
            entries = json.loads(file.read(header))
            needed = 8 + header + max(e["data_offsets"][1] for e in entries.values())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
    return f"truncated ({size} of {needed} bytes)" if size < needed else None


def _verify_tensors(bundle: Bundle, part: Part) -> None:
    from safetensors import SafetensorError, safe_open

    path = bundle.path / file_name(part)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BundleError(path, f"not readable as safetensors: {error}") from error
    _compare_shapes(path, found, _expected_shapes(bundle, part))


def _verify_architecture(bundle: Bundle) -> None:
    for part in PARTS:
        if bundle.has(part):
            _verify_tensors(bundle, part)


def _expected_shapes(bundle: Bundle, part: Part) -> dict[str, list[int]]:
    if part == "prior":
        spec = bundle.manifest.prior
        if spec is None:
            raise BundleError(bundle.path / MANIFEST_NAME, "lists a prior file but has no `prior`")
        return {"features": [spec.pixels, spec.channels], "inverse_depth": [spec.pixels]}
    try:
        net = build_network(bundle.manifest, part)
    except BundleError as error:
        raise BundleError(bundle.path / MANIFEST_NAME, error.cause) from error
    return {name: list(tensor.shape) for name, tensor in _stored(net).items()}


def _stored(net: nn.Module, kept: bool = True) -> dict[str, Tensor]:
    """A network's state without what only a training run needs, or (`kept` false) just that."""
    training: tuple[str, ...] = getattr(net, "training_buffers", ())
    return {n: t for n, t in net.state_dict().items() if (n not in training) == kept}


def _compare_shapes(
    path: Path, found: dict[str, list[int]], expected: dict[str, list[int]]
) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if missing or unknown:
        parts = [f"lacks {len(missing)} ({missing[0]}, ...)"] if missing else []
        parts += [f"has {len(unknown)} unknown ({unknown[0]}, ...)"] if unknown else []
        raise BundleError(path, f"tensors do not fit the architecture: {' and '.join(parts)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise BundleError(
                path, f"tensor {name} has shape {found[name]}, the architecture asks for {shape}"
            )


def _write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu()
        if value.is_floating_point():
            half = value.to(torch.float16)
            if not torch.isfinite(half).all():
                cause = "is not finite" if not torch.isfinite(value).all() else "exceeds 65504"
                raise BundleError(path, f"tensor {name} {cause} and cannot be stored")
            value = half
        tensors[name] = value.contiguous().clone()
    try:
        save_file(tensors, path)
        path.chmod(0o644)  # safetensors' 0600 would lock other users out of an installed bundle
    except (OSError, SafetensorError) as error:  # a full disk is the latter's
        raise BundleError(path, f"cannot be written: {error}") from error


def _refuse_foreign(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST_NAME).is_file():
        raise BundleError(path, "is a folder with other things in it; choose another place")
    if path.exists() and not path.is_dir():
        raise BundleError(path, "is a file; a bundle is a folder")


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    folder.chmod(0o755)  # mkdtemp's 0700 would lock other users out of an installed bundle
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, path: Path) -> None:
    """Move `folder` to `path`. A folder cannot be exchanged in one step: the old one waits."""
    if not path.exists():
        folder.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
