"""PyTorch: the reference backend, and the one for CUDA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from depth_prior_ros.backends.base import BACKENDS, BackendError, Compiled, DeviceKind, Precision
from depth_prior_ros.backends.devices import choose_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


@BACKENDS.register("torch")
class TorchBackend:
    """Eager PyTorch under inference mode.

    device: `auto`, `cpu`, `cuda` or `cuda:N`; threads: on the CPU, for the whole process (one
    thread among other nodes is faster than two that fight for cores).
    precision: `bf16` and, on CUDA, `f16` compute convolutions and products by autocast; cost
    volumes, look-ups in a prior, heads and alignment stay in float32, as results do.
    Raises BackendError where the device does not exist, or has no such precision.
    """

    name = "torch"
    packages = ("torch",)
    precisions: tuple[Precision, ...] = ("f32", "bf16", "f16")
    faster_on_cpu: tuple[Precision, ...] = ()
    devices: tuple[DeviceKind, ...] = ("cpu", "cuda")
    auto_rank: ClassVar = {"cpu": 30, "cuda": 10}

    def __init__(
        self, device: str = "auto", threads: int = 1, precision: Precision = "f32"
    ) -> None:
        import torch

        self._torch = torch
        self.precision: Precision = precision
        self._device = choose_device(device)
        if self._device.type == "cpu":
            if precision == "f16":  # PyTorch emulates it, slower than f32
                raise BackendError("torch: this CPU computes no f16")
            torch.set_num_threads(threads)

    @property
    def device(self) -> str:
        """The device's name."""
        return str(self._device)

    def compile(
        self, module: nn.Module, example_inputs: tuple[NDArray[np.float32], ...]
    ) -> Compiled:
        """Move the module to the device. Raises BackendError where it has no room there."""
        try:
            net = module.to(self._device).eval()
        except RuntimeError as error:
            raise BackendError(
                f"{type(module).__name__} does not get onto {self.device}: {error}"
            ) from error

        def run(*inputs: Any) -> tuple[Any, ...]:
            with self._torch.inference_mode(), self._autocast():
                output = net(*inputs)
            outputs = (output,) if isinstance(output, self._torch.Tensor) else output
            return tuple(tensor.float() for tensor in outputs)

        return run

    def compile_onnx(self, data: bytes) -> Compiled:
        """PyTorch reads no ONNX files. Raises BackendError."""
        raise BackendError(
            "torch runs no ONNX file, as this bundle's network is: choose openvino or onnxruntime"
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "f32":
            return nullcontext()
        kind = self._torch.bfloat16 if self.precision == "bf16" else self._torch.float16
        return self._torch.autocast(self._device.type, dtype=kind)

    def to_native(self, array: NDArray[np.float32]) -> Tensor:
        """A tensor on the device; on the CPU it shares the array's memory."""
        return self._torch.from_numpy(array).to(self._device)

    def to_numpy(self, native: Tensor) -> NDArray[np.float32]:
        """A float32 array on the CPU."""
        return native.float().cpu().numpy()

    def synchronize(self) -> None:
        """Wait for the CUDA stream."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def free_memory(self) -> None:
        """Empty CUDA's cache."""
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()
