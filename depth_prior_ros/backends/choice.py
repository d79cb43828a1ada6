"""Which backend, and why."""

from __future__ import annotations

from importlib.util import find_spec

from depth_prior_ros.backends.base import Backend, BackendError, Precision

BACKENDS = ("torch", "openvino", "onnxruntime")


def make_backend(
    name: str, device: str = "auto", *, threads: int = 1, precision: Precision = "f32"
) -> Backend:
    """Build the backend of that name.

    Raises BackendError where its package is not installed, or it does not run on `device` or in
    `precision`.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose auto, {', '.join(BACKENDS)}")
    if precision != "f32" and name != "openvino":
        raise BackendError(f"precision {precision!r} is to be had with openvino only")
    if name == "torch":
        from depth_prior_ros.backends.torch_backend import TorchBackend

        return TorchBackend(device, threads)
    if device not in ("auto", "cpu"):
        raise BackendError(f"{name} runs on the CPU here, not on {device!r}; use torch for CUDA")
    try:
        if name == "openvino":
            from depth_prior_ros.backends.openvino_backend import OpenVinoBackend

            return OpenVinoBackend(threads, precision)
        from depth_prior_ros.backends.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(threads)
    except ImportError as error:
        raise BackendError(
            f"{name} cannot be imported ({error}); install it with the extra `cpu`"
        ) from error


def choose_backend(
    name: str = "auto", device: str = "auto", *, threads: int = 1, precision: Precision = "f32"
) -> tuple[Backend, str]:
    """The backend to use, and the reason in words.

    `auto` takes PyTorch where there is CUDA (or `device` asks for it), OpenVINO where it is
    installed, PyTorch on the CPU otherwise; where that one has no `precision`, the reason says so.
    A backend chosen by name is taken or refused (BackendError), never replaced.
    """
    if name != "auto":
        return make_backend(name, device, threads=threads, precision=precision), "chosen by name"
    only_f32 = "" if precision == "f32" else f"; {precision} is to be had with openvino only: f32"
    if device.startswith("cuda"):
        return make_backend("torch", device), f"device {device} asked for{only_f32}"
    if device == "auto" and _cuda_available():
        return make_backend("torch", "cuda"), f"CUDA is available{only_f32}"
    lacking = [package for package in ("openvino", "onnx") if find_spec(package) is None]
    if lacking:
        reason = f"{' and '.join(lacking)} not installed (the extra `cpu` has them)"
    else:
        try:
            backend = make_backend("openvino", device, threads=threads, precision=precision)
            return backend, "on a CPU, openvino is the fastest installed"
        except BackendError as error:
            reason = str(error)
    return make_backend("torch", "cpu", threads=threads), f"{reason}{only_f32}"


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()
