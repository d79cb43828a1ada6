"""OpenVINO on the CPU: the default where there is no CUDA."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from depth_prior_ros.backends.base import BACKENDS, BackendError, Compiled, Precision
from depth_prior_ros.backends.onnx_backend import OnnxBackend


def import_openvino() -> Any:
    """OpenVINO, imported without its telemetry.

    Where its package ``openvino_telemetry`` is there, which pip installs with it, ``import
    openvino`` alone reports its use over the network and writes to ``~/intel``. Without, it does
    neither.
    """
    # Python takes None for a module that cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@BACKENDS.register("openvino")
class OpenVinoBackend(OnnxBackend):
    """OpenVINO's CPU plugin.

    precision: `f32`, or `bf16` (about twice as fast; `benchmarks/backends.py` shows the accuracy)
    or `f16`. Raises BackendError where the CPU does not compute in it.
    """

    name = "openvino"
    title = "OpenVINO"
    packages = ("openvino", "onnx")
    precisions: tuple[Precision, ...] = ("f32", "bf16", "f16")
    faster_on_cpu: tuple[Precision, ...] = ("bf16", "f16")
    auto_rank: ClassVar = {"cpu": 10}

    def __init__(self, device: str = "cpu", threads: int = 1, precision: Precision = "f32") -> None:
        self.precision: Precision = precision
        self._core = import_openvino().Core()
        needed = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[precision]
        if needed not in self._capabilities():
            raise BackendError(f"openvino: this CPU computes no {precision}")
        self._config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,
        }

    def _capabilities(self) -> list[str]:
        return list(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    def read(self, path: Path) -> Compiled:
        """Make an ONNX file ready to run."""
        compiled = self._core.compile_model(self._core.read_model(path), "CPU", self._config)
        request = compiled.create_infer_request()
        outputs = list(compiled.outputs)

        def run(*inputs: Any) -> tuple[Any, ...]:
            # Outputs are copied: features are kept while the request runs again.
            results = request.infer(list(inputs), share_inputs=True, share_outputs=False)
            return tuple(results[output] for output in outputs)

        return run
