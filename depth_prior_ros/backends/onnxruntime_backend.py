"""ONNX Runtime: on the CPU where OpenVINO does not run; on CUDA for files that PyTorch cannot run.

On CUDA, native tensors are PyTorch's, bound where they lie: nothing goes through the CPU. PyTorch
also brings the libraries of CUDA that ONNX Runtime looks for.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from depth_prior_ros.backends.base import BACKENDS, BackendError, Compiled, DeviceKind, Precision
from depth_prior_ros.backends.onnx_backend import OnnxBackend
from depth_prior_ros.backends.torch_backend import TorchBackend
from depth_prior_ros.share import cache_dir
from depth_prior_ros.untrusted import sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

#: Of a session, the best one first, with options.
Providers = list[tuple[str, dict[str, str]]]

_log = logging.getLogger(__name__)


@BACKENDS.register("onnxruntime")
class OnnxRuntimeBackend(OnnxBackend):
    """ONNX Runtime's CPU or CUDA provider, float32.

    device: `cpu`, `cuda` or `cuda:N`; `auto`: CUDA where ONNX Runtime and PyTorch both have it.
    Raises BackendError where there is no such provider or device. A provider that is there and does
    not start is found out when a network is compiled.
    """

    name = "onnxruntime"
    title = "ONNX Runtime"
    packages = ("onnxruntime", "onnx")
    precisions: tuple[Precision, ...] = ("f32",)
    devices: tuple[DeviceKind, ...] = ("cpu", "cuda")
    auto_rank: ClassVar = {"cpu": 20, "cuda_onnx": 20}
    provider = "CUDAExecutionProvider"

    def __init__(self, device: str = "cpu", threads: int = 1, precision: Precision = "f32") -> None:
        import onnxruntime

        self.precision: Precision = precision
        self._cuda = self._on_cuda(device, onnxruntime.get_available_providers())
        if self._cuda is not None:
            self.device = self._cuda.device
        self._open = onnxruntime.InferenceSession
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3
        # Waiting threads would spin and take cores from the other nodes.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def _on_cuda(self, device: str, listed: list[str]) -> TorchBackend | None:
        """Whose tensors are native on CUDA; None on the CPU."""
        import torch

        there = self.provider in listed
        if device == "auto" and "cpu" in self.devices:
            device = "cuda" if there and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            return None
        if not there:
            raise BackendError(
                f"{self.name}: this ONNX Runtime has no {self.provider}, but {', '.join(listed)}; "
                "on CUDA it is onnxruntime-gpu, in place of onnxruntime"
            )
        return TorchBackend("cuda" if device == "auto" else device)

    def read(self, path: Path) -> Compiled:
        """Make an ONNX file ready to run; raises where ONNX Runtime goes on the CPU unasked."""
        if self._cuda is not None:
            providers = self.providers(path, int(self.device.partition(":")[2] or 0))
            return bound(self.open(path, providers), self.device)
        session = self.open(path, [("CPUExecutionProvider", {})])
        names = [entry.name for entry in session.get_inputs()]

        def run(*inputs: Any) -> tuple[Any, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return run

    def open(self, path: Path, providers: Providers) -> Any:
        """A session of the first provider; where only others start, which ONNX Runtime takes with
        no more than a warning, BackendError."""
        session = self._open(str(path), self._options, providers=providers, enable_fallback=0)
        wanted, started = providers[0][0], session.get_providers()
        if wanted not in started:
            raise BackendError(f"{wanted} does not start, only {', '.join(started)}")
        return session

    def providers(self, path: Path, index: int) -> Providers:
        """What a session on a CUDA device asks for."""
        return [(self.provider, {"device_id": str(index)})]

    def to_native(self, array: NDArray[np.float32]) -> Any:
        """A contiguous array; on CUDA a tensor there."""
        return super().to_native(array) if self._cuda is None else self._cuda.to_native(array)

    def to_numpy(self, native: Any) -> NDArray[np.float32]:
        """An array on the CPU."""
        return super().to_numpy(native) if self._cuda is None else self._cuda.to_numpy(native)

    def synchronize(self) -> None:
        """Wait for CUDA."""
        if self._cuda is not None:
            self._cuda.synchronize()

    def free_memory(self) -> None:
        """Empty PyTorch's cache on CUDA."""
        if self._cuda is not None:
            self._cuda.free_memory()


@BACKENDS.register("tensorrt")
class TensorRtBackend(OnnxRuntimeBackend):
    """ONNX Runtime's TensorRT provider, and its CUDA provider for what TensorRT leaves.

    Engines take minutes to build and are kept in the user's cache, for each file its own folder:
    ONNX Runtime tells engines apart by the graph, and would take those of other weights. Networks
    of the package with coordinates, motions or a prior in them stay in float32 (`exact`).
    """

    name = "tensorrt"
    title = "TensorRT"
    precisions = ("f32", "f16")
    devices = ("cuda",)
    auto_rank: ClassVar = {"cuda_onnx": 10}
    provider = "TensorrtExecutionProvider"
    _exact = False

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Export and read. Raises BackendError."""
        self._exact = getattr(module, "exact", False)
        try:
            return super().compile(module, example_inputs)
        finally:
            self._exact = False

    def providers(self, path: Path, index: int) -> Providers:
        """TensorRT, then CUDA."""
        return tensorrt_providers(path, index, "f32" if self._exact else self.precision)


def tensorrt_providers(path: Path, index: int, precision: Precision) -> Providers:
    """TensorRT with its cache for an ONNX file, and CUDA, on the device of that index."""
    device = {"device_id": str(index)}
    half = str(int(precision == "f16"))
    options = {**device, "trt_fp16_enable": half, "trt_layer_norm_fp32_fallback": half}
    try:
        folder = cache_dir("tensorrt") / sha256(path.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    except OSError as error:
        _log.warning("TensorRT's engines are built anew with every start: %s", error)
    return [(TensorRtBackend.provider, options), (OnnxRuntimeBackend.provider, device)]


def bound(session: Any, device: str) -> Compiled:
    """A session between PyTorch's tensors on its device, bound where they lie.

    Outputs whose shape the file leaves open, and those that are not float32, come by the CPU.
    """
    import numpy as np
    import torch

    place = torch.device(device)
    at = place.type, place.index or 0
    names = [entry.name for entry in session.get_inputs()]
    outputs = session.get_outputs()
    shapes = [
        tuple(entry.shape)
        if entry.type == "tensor(float)" and all(isinstance(side, int) for side in entry.shape)
        else None
        for entry in outputs
    ]

    def run(*inputs: Any) -> tuple[Any, ...]:
        binding = session.io_binding()
        given = [tensor.contiguous() for tensor in inputs]
        found = [None if s is None else torch.empty(s, device=place) for s in shapes]
        for name, tensor in zip(names, given, strict=True):
            binding.bind_input(name, *at, np.float32, tuple(tensor.shape), tensor.data_ptr())
        for entry, shape, tensor in zip(outputs, shapes, found, strict=True):
            if tensor is None:
                binding.bind_output(entry.name)
            else:
                binding.bind_output(entry.name, *at, np.float32, shape, tensor.data_ptr())
        if place.type == "cuda":  # ONNX Runtime computes in a stream of its own
            torch.cuda.current_stream(place).synchronize()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return tuple(
            torch.from_numpy(value.numpy()).float().to(place) if tensor is None else tensor
            for value, tensor in zip(binding.get_outputs(), found, strict=True)
        )

    return run
