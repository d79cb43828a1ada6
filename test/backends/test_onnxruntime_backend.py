"""ONNX Runtime's providers: what a machine without CUDA can say of those for CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import register_alone
from torch import nn

from depth_prior_ros.backends import BackendError, choice
from depth_prior_ros.backends.onnx_backend import export_onnx
from depth_prior_ros.backends.onnxruntime_backend import (
    OnnxRuntimeBackend,
    bound,
    tensorrt_providers,
)
from depth_prior_ros.pipeline.runtime import compile_networks
from training.runs.network_import import ImportRequest, import_network

onnxruntime = pytest.importorskip("onnxruntime", reason="not installed: the extra `cpu` has it")
pytest.importorskip("onnx")


class Two(nn.Module):
    """Two inputs, two outputs: the order counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: torch.Tensor, add: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        depth = torch.sigmoid(self.conv(image))
        return depth, depth.mean((1, 2, 3)) - add


def two(path: Path, image: torch.Tensor, add: torch.Tensor) -> Path:
    """`Two` as an ONNX file."""
    torch.manual_seed(0)
    export_onnx(Two(), (image.numpy(), add.numpy()), path, ["image", "add"], ["depth", "mean"])
    return path


@pytest.mark.parametrize("opened", [False, True])
def test_bound_tensors_give_what_arrays_give(tmp_path: Path, opened: bool) -> None:
    import onnx

    image, add = torch.rand(1, 3, 8, 12), torch.rand(1)
    path = two(tmp_path / "two.onnx", image, add)
    if opened:  # a side without a length, as exporters leave them
        model = onnx.load(path)
        for value in (model.graph.input[0], *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = bound(session, "cpu")
    for _ in range(2):
        across = torch.rand(1, 8, 12, 3).permute(0, 3, 1, 2)  # not side by side in memory
        expected = session.run(None, {"image": across.numpy(), "add": add.numpy()})
        first = run(across, add)
        kept = [tensor.clone() for tensor in first]
        other = run(image, add)
        for found, copy, wanted, another in zip(first, kept, expected, other, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            assert torch.equal(found, copy), "overwritten by the next run"
            assert not torch.equal(found, another)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_goes_on_the_cpu_unasked_is_noticed(tmp_path: Path, provider: str) -> None:
    """ONNX Runtime itself warns and runs; with onnxruntime-gpu TensorRT raises."""
    path = two(tmp_path / "two.onnx", torch.rand(1, 3, 8, 12), torch.rand(1))
    with pytest.raises((BackendError, RuntimeError), match=r"does not start, only|TensorRT"):
        OnnxRuntimeBackend().open(path, [(provider, {"device_id": "0"})])


def imported(folder: Path) -> Any:
    """A network that is an ONNX file, as a bundle."""

    class Brightness(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean(1, keepdim=True) + 0.1

    export_onnx(Brightness(), (np.zeros((1, 3, 32, 64), np.float32),), folder / "net.onnx")
    return import_network(ImportRequest(f"onnx:{folder / 'net.onnx'}", folder / "b", "disparity"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
def test_an_imported_file_goes_on_where_cuda_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = imported(tmp_path)
    register_alone(monkeypatch, "onnxruntime", "tensorrt", "torch")
    monkeypatch.setattr(choice, "_cuda_available", lambda: True)  # and then there is none
    networks, reason = compile_networks(bundle)
    assert (networks.backend.name, networks.backend.device) == ("onnxruntime", "cpu")
    assert networks.fell_back
    assert reason.endswith("on a CPU, onnxruntime is the fastest installed")
    told = ("no TensorrtExecutionProvider", "no CUDAExecutionProvider"), ("sees no CUDA device",)
    assert any(all(words in reason for words in some) for some in told)
    with pytest.raises(BackendError, match=r"onnxruntime: this ONNX Runtime has no|no CUDA device"):
        compile_networks(bundle, device="cuda:0")
    networks, reason = compile_networks(bundle, "tensorrt", fallback=True)
    assert networks.fell_back
    assert networks.backend.device == "cpu"


def test_engines_are_kept_for_a_file_on_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    (name, half), (second, cuda) = tensorrt_providers(tmp_path / "a", 3, "f16")
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert (half["trt_fp16_enable"], half["device_id"], cuda) == ("1", "3", {"device_id": "3"})
    folder = Path(half["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.parent == tmp_path / "cache" / "depth_prior_ros" / "tensorrt"
    full, other = (tensorrt_providers(tmp_path / n, 0, "f32")[0][1] for n in ("a", "b"))
    assert full["trt_fp16_enable"] == "0"
    assert full["trt_engine_cache_path"] == str(folder)
    assert other["trt_engine_cache_path"] != str(folder), "other weights, other engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))  # a file: no folder can be made
    assert "trt_engine_cache_path" not in tensorrt_providers(tmp_path / "a", 0, "f32")[0][1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_an_imported_file_on_cuda(tmp_path: Path, name: str) -> None:
    bundle = imported(tmp_path)
    try:
        networks, _ = compile_networks(bundle, name, "cuda:0")
    except BackendError as error:
        pytest.skip(str(error))
    image = np.random.default_rng(0).random((1, 3, 32, 64), dtype=np.float32)
    found, _ = networks.single(networks.backend.to_native(image))
    assert found.device.type == "cuda"
    wanted = image.mean(1, keepdims=True) + 0.1
    np.testing.assert_allclose(networks.backend.to_numpy(found), wanted, rtol=1e-2)
