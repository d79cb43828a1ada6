"""The files of a bundle: hashes, tensors in half precision, folders that appear whole or not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.atomic_files import staging_folder
from depth_prior_ros.bundle.manifest import MANIFEST_NAME, BundleError
from depth_prior_ros.strict_yaml import problem_of
from depth_prior_ros.untrusted import HEADER_BYTES, WEIGHTS_BYTES, read_file, sha256

if TYPE_CHECKING:
    from torch import Tensor


def sha256_of(path: Path) -> str:
    """The hash of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_verified(
    path: Path, expected: str, inside: Path | None = None, limit: int = WEIGHTS_BYTES
) -> bytes:
    """The bytes of a file whose hash is the expected one: what is checked is what is used.

    inside: a folder that a link must not lead out of. limit: most bytes. Raises BundleError.
    """
    try:
        data = read_file(path, limit, inside=inside)
    except FileNotFoundError:
        raise BundleError(path, "missing: the manifest lists it") from None
    except OSError as error:
        raise BundleError(path, f"cannot be read: {problem_of(error)}") from error
    found = sha256(data)
    if found == expected:
        return data
    problem = _truncation(path, data) or "altered"
    raise BundleError(
        path, f"{problem}: sha256 is {found[:12]}..., the manifest says {expected[:12]}..."
    )


def _truncation(path: Path, data: bytes) -> str | None:
    """In words, by how much a safetensors file is shorter than its header says."""
    if path.suffix != ".safetensors":
        return None
    size = len(data)
    if size < 8:
        return f"truncated ({size} bytes)"
    header = int.from_bytes(data[:8], "little")
    if header > size - 8:
        return f"truncated (its header alone needs {8 + header} bytes, it has {size})"
    try:
        entries = json.loads(data[8 : 8 + header])
        tensors = [e for name, e in entries.items() if name != "__metadata__"]
        needed = 8 + header + max(e["data_offsets"][1] for e in tensors)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return f"truncated ({size} of {needed} bytes)" if size < needed else None


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file in memory.

    Attributes:
        path: where it was read, for messages.
        tensors: by name, as stored.
        metadata: the words of its header.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def of(cls, path: Path, data: bytes) -> TensorFile:
        """Read it from its bytes. Raises BundleError."""
        from safetensors.torch import load

        length = int.from_bytes(data[:8], "little")
        if length > HEADER_BYTES:
            raise BundleError(path, f"not readable as safetensors: a header of {length:,} bytes")
        try:
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
            return cls(path, load(data), {str(k): str(v) for k, v in metadata.items()})
        except Exception as error:  # safetensors' own, and KeyError for a type torch has not
            raise BundleError(path, f"not readable as safetensors: {error}") from error

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Raise BundleError unless names, shapes and kinds are those of a network's state, and
        all numbers are finite.

        Floating-point weights may be half, bfloat16 or single precision.
        """
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        compare_shapes(self.path, shapes, {n: list(t.shape) for n, t in expected.items()})
        for name, tensor in self.tensors.items():
            self._check_kind(name, tensor, expected[name])
            if not tensor.isfinite().all():
                raise BundleError(self.path, f"tensor {name} holds NaN or infinite values")
            if name.endswith("running_var") and (tensor < 0).any():
                raise BundleError(self.path, f"tensor {name} holds variances below zero")

    def _check_kind(self, name: str, tensor: Tensor, expected: Tensor) -> None:
        import torch

        kinds: tuple[torch.dtype, ...] = (expected.dtype,)
        if expected.is_floating_point():
            kinds = (torch.float16, torch.bfloat16, torch.float32)
        if tensor.dtype not in kinds:
            found, wanted = (str(k).removeprefix("torch.") for k in (tensor.dtype, kinds[0]))
            raise BundleError(self.path, f"tensor {name} is stored as {found}, not {wanted}")


def compare_shapes(
    path: Path, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]
) -> None:
    """Raise BundleError unless a file's tensors have these names and shapes."""
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


def write_tensors(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, floating-point ones in half precision.

    Raises BundleError for a value that is not finite or too large for it, and for a full disk.
    """
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
        save_file(tensors, path, dict(metadata) if metadata else None)
        _order_metadata(path)
        path.chmod(0o644)  # safetensors' 0600 would lock other users out of an installed bundle
    except (OSError, SafetensorError) as error:  # a full disk is the latter's
        raise BundleError(path, f"cannot be written: {error}") from error


def _order_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in alphabetical order, in place.

    They are written in another order by every process, and the same content would have another
    hash. Only names and values change places, so the header keeps its length.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if len(header.get("__metadata__", ())) < 2:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte for byte, readable by all. Raises BundleError."""
    try:
        target.parent.mkdir(exist_ok=True)
        target.parent.chmod(0o755)
        shutil.copyfile(source, target)
        target.chmod(0o644)
    except OSError as error:
        raise BundleError(target, f"cannot be written: {error}") from error


def refuse_foreign(path: Path) -> None:
    """Raise BundleError where a bundle at `path` would take the place of something else."""
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST_NAME).is_file():
        raise BundleError(path, "is a folder with other things in it; choose another place")
    if path.exists() and not path.is_dir():
        raise BundleError(path, "is a file; a bundle is a folder")


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A folder beside `path`, gone afterwards unless it was moved.

    What is wrong with a file in it is reported by the name that the file would have had.
    """
    with staging_folder(path) as folder:
        try:
            yield folder
        except BundleError as error:
            if folder != error.path and folder not in error.path.parents:
                raise
            raise BundleError(path / error.path.relative_to(folder), error.cause) from error
