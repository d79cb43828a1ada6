"""ONNX Runtime on the CPU: where OpenVINO does not run, still faster than eager PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.backends.base import BackendError, Compiled
from depth_prior_ros.backends.onnx_export import export_onnx


class OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider, float32."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, threads: int = 1) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3
        # Waiting threads would spin and take cores from the other nodes.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Export and open a session."""
        with tempfile.TemporaryDirectory(prefix="depth_prior_onnx_") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(module, example_inputs, path)
            try:
                session = onnxruntime.InferenceSession(
                    str(path), self._options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise BackendError(
                    f"ONNX Runtime cannot load {type(module).__name__}: {error}"
                ) from error
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: Any) -> tuple[Any, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return run

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
