"""Which device PyTorch computes on, and in which precision it does so well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.backends.base import BackendError, Precision

if TYPE_CHECKING:
    import torch

# What /proc/cpuinfo calls instructions for products of bf16, of x86 and of ARM.
_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


def choose_device(name: str) -> torch.device:
    """The device of a name: cpu, cuda or cuda:N; auto: CUDA where there is one.

    Raises BackendError where there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"unknown device {name!r}: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendError(f"device {name!r}: this PyTorch sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BackendError(f"device {name!r}: only {torch.cuda.device_count()} there")
    return device


def choose_precision(name: str, device: torch.device, cpuinfo: str | None = None) -> Precision:
    """The precision of a name: f32 or bf16; auto: bf16 where the device has instructions for it.

    A CPU without them computes bf16 many times slower than f32.

    Args:
        name: auto, f32 or bf16.
        device: where it is computed.
        cpuinfo: the text of /proc/cpuinfo; default: this machine's.
    """
    if name != "auto":
        return "bf16" if name == "bf16" else "f32"
    if device.type == "cuda":
        import torch

        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "f32"
    if cpuinfo is None:
        file = Path("/proc/cpuinfo")
        cpuinfo = file.read_text() if file.is_file() else ""
    return "bf16" if _BF16_FLAGS & set(cpuinfo.split()) else "f32"
