"""What the backends that read ONNX files share."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.backends.base import BackendError, Compiled
from depth_prior_ros.backends.onnx_export import export_onnx


class OnnxBackend:
    """Exports a network to a file and lets a library read it; native tensors are numpy arrays."""

    title: str
    """The library's name as it is written."""

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Export and read. Raises BackendError."""
        with tempfile.TemporaryDirectory(prefix="depth_prior_onnx_") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(module, example_inputs, path)
            try:
                return self._read(path)
            except Exception as error:  # each library has errors of its own
                raise BackendError(
                    f"{self.title} cannot compile {type(module).__name__}: {error}"
                ) from error

    def _read(self, path: Path) -> Compiled:
        """Make an ONNX file ready to run; it is gone afterwards."""
        raise NotImplementedError

    def to_native(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A contiguous array."""
        return np.ascontiguousarray(array)

    def to_numpy(self, native: NDArray[np.float32]) -> NDArray[np.float32]:
        """The array itself."""
        return native

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def free_memory(self) -> None:
        """Nothing is cached."""
