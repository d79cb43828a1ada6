"""How a network is run: PyTorch (CUDA, CPU), OpenVINO, ONNX Runtime, behind one small protocol."""

from depth_prior_ros.backends.base import (
    BACKENDS,
    PRECISIONS,
    Backend,
    BackendError,
    Compiled,
    Precision,
)
from depth_prior_ros.backends.choice import backend_options, choose_backend, make_backend

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "BackendError",
    "Compiled",
    "Precision",
    "backend_options",
    "choose_backend",
    "make_backend",
]
