"""A network as an ONNX file, and what the backends that read such files share."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.backends.base import BackendError, Compiled, DeviceKind, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_OPSET = 17


class OnnxBackend:
    """Exports a network to a file and lets a library read it; native tensors are numpy arrays."""

    title: str
    """The library's name as it is written."""
    device = "cpu"
    devices: tuple[DeviceKind, ...] = ("cpu",)
    faster_on_cpu: tuple[Precision, ...] = ()

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Export and read. Raises BackendError."""
        with tempfile.TemporaryDirectory(prefix="depth_prior_onnx_") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(module, example_inputs, path)
            return self._compile(path, type(module).__name__)

    def compile_onnx(self, data: bytes) -> Compiled:
        """Read a network that is an ONNX file already. Raises BackendError."""
        with tempfile.TemporaryDirectory(prefix="depth_prior_onnx_") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(data)
            return self._compile(path, "the imported network")

    def _compile(self, path: Path, name: str) -> Compiled:
        try:
            return self.read(path)
        except Exception as error:  # each library has errors of its own
            words = " ".join(str(error).split())
            raise BackendError(f"{self.title} cannot compile {name}: {words}") from error

    def read(self, path: Path) -> Compiled:
        """Make an ONNX file ready to run; the file is not needed afterwards."""
        raise NotImplementedError

    def to_native(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A contiguous array."""
        return array if array.flags.c_contiguous else array.copy(order="C")

    def to_numpy(self, native: NDArray[np.float32]) -> NDArray[np.float32]:
        """The array itself."""
        return native

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def free_memory(self) -> None:
        """Nothing is cached."""


def export_onnx(
    module: nn.Module,
    example_inputs: tuple[NDArray[np.float32], ...],
    path: Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write `module` to `path` with the shapes of `example_inputs`. Raises BackendError.

    Inputs without names are called input0, input1, ...

    Uses the exporter by tracing: it needs the onnx package but not onnxscript, and takes seconds
    where the newer one takes half a minute.
    """
    import torch

    tensors = tuple(torch.from_numpy(array) for array in example_inputs)
    module = module.cpu().eval()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter is deprecated, and tracing warns of every shape taken as constant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tensors,
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=True,
                input_names=list(input_names or (f"input{i}" for i in range(len(tensors)))),
                output_names=None if output_names is None else list(output_names),
            )
    except Exception as error:
        raise BackendError(
            f"{type(module).__name__} cannot be exported to ONNX: {error}"
        ) from error
    finally:
        logger.setLevel(level)
