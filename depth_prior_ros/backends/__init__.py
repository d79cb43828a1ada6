"""How a network is run: PyTorch (CUDA, CPU), OpenVINO, ONNX Runtime, behind one small protocol."""

from depth_prior_ros.backends.base import Backend, BackendError, Compiled, Precision
from depth_prior_ros.backends.choice import BACKENDS, choose_backend, make_backend

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendError",
    "Compiled",
    "Precision",
    "choose_backend",
    "make_backend",
]
