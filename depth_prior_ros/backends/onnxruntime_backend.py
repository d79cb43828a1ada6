"""ONNX Runtime on the CPU: where OpenVINO does not run, still faster than eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from depth_prior_ros.backends.base import Compiled, Precision
from depth_prior_ros.backends.onnx_backend import OnnxBackend


class OnnxRuntimeBackend(OnnxBackend):
    """ONNX Runtime's CPU provider, float32."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    device = "cpu"
    precision: Precision = "f32"

    def __init__(self, threads: int = 1) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3
        # Waiting threads would spin and take cores from the other nodes.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def _read(self, path: Path) -> Compiled:
        session = onnxruntime.InferenceSession(
            str(path), self._options, providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: Any) -> tuple[Any, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return run
