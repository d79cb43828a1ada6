"""ONNX Runtime on the CPU: where OpenVINO does not run, still faster than eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_prior_ros.backends.base import BACKENDS, Compiled, Precision
from depth_prior_ros.backends.onnx_backend import OnnxBackend


@BACKENDS.register("onnxruntime")
class OnnxRuntimeBackend(OnnxBackend):
    """ONNX Runtime's CPU provider, float32."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    packages = ("onnxruntime", "onnx")
    precisions: tuple[Precision, ...] = ("f32",)
    cpu_rank = 1

    def __init__(self, device: str = "cpu", threads: int = 1, precision: Precision = "f32") -> None:
        import onnxruntime

        self.precision = precision
        self._open = onnxruntime.InferenceSession
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3
        # Waiting threads would spin and take cores from the other nodes.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def read(self, path: Path) -> Compiled:
        """Make an ONNX file ready to run."""
        session = self._open(str(path), self._options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: Any) -> tuple[Any, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return run
