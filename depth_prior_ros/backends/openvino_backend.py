"""OpenVINO on the CPU: the default where there is no CUDA."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.backends.base import BackendError, Compiled, Precision
from depth_prior_ros.backends.onnx_export import export_onnx


class OpenVinoBackend:
    """OpenVINO's CPU plugin.

    precision: `f32`, or `bf16` where the CPU has it (about twice as fast; check the accuracy).
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, threads: int = 1, precision: Precision = "f32") -> None:
        self._core = openvino.Core()
        self._config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,
        }

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Export, read and compile."""
        with tempfile.TemporaryDirectory(prefix="depth_prior_onnx_") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(module, example_inputs, path)
            try:
                compiled = self._core.compile_model(
                    self._core.read_model(path), "CPU", self._config
                )
            except RuntimeError as error:
                raise BackendError(
                    f"OpenVINO cannot compile {type(module).__name__}: {error}"
                ) from error
        request = compiled.create_infer_request()
        outputs = list(compiled.outputs)

        def run(*inputs: Any) -> tuple[Any, ...]:
            # Outputs are copied: features are kept while the request runs again.
            results = request.infer(list(inputs), share_inputs=True, share_outputs=False)
            return tuple(results[output] for output in outputs)

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
