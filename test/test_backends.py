from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros import runtime
from depth_prior_ros.backends import (
    BACKENDS,
    Backend,
    BackendError,
    choose_backend,
    make_backend,
    onnx_backend,
)
from depth_prior_ros.backends import choice as choice_module
from depth_prior_ros.bundle import Bundle, BundleError, build_network, load_bundle, save_bundle
from depth_prior_ros.geometry import disparity_to_depth
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.runtime import Networks, compile_networks


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def networks_on(bundle: Bundle) -> Callable[[str], Networks]:
    """The tiny bundle compiled by a backend, once per backend."""

    @cache
    def compiled(name: str) -> Networks:
        if name != "torch":
            pytest.importorskip(name, reason=f"{name} is not installed: the extra `cpu` has it")
        return Networks(bundle, make_backend(name, "cpu"))

    return compiled


def images(count: int = 2) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    smooth = [random.random((1, 3, 8, 24)).repeat(4, 2).repeat(4, 3) for _ in range(count)]
    return [image.astype(np.float32) for image in smooth]


def run_everything(networks: Networks, camera: NDArray) -> dict[str, NDArray]:
    backend = networks.backend
    first, second = (backend.to_native(image) for image in images())
    inverse, confidence = networks.single(second)
    pose = networks.pose(first, second)
    previous_from_current = np.linalg.inv(pose)
    depth, certainty = networks.multi(
        networks.features(second), networks.features(first), previous_from_current, camera, inverse
    )
    outputs = {
        "inverse": inverse,
        "confidence": confidence,
        "depth": depth,
        "certainty": certainty,
    }
    return {name: backend.to_numpy(value) for name, value in outputs.items()} | {"pose": pose}


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_backends_agree_with_pytorch(
    bundle: Bundle, networks_on: Callable[[str], Networks], name: str
) -> None:
    K = bundle.manifest.camera.matrix()
    expected = run_everything(networks_on("torch"), K)
    found = run_everything(networks_on(name), K)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-5, err_msg=key)
    assert expected["depth"].shape == (1, 1, 32, 96)
    assert np.ptp(expected["inverse"]) > 0


def test_networks_equal_the_modules_called_by_hand(
    bundle: Bundle, networks_on: Callable[[str], Networks]
) -> None:
    K = bundle.manifest.camera.matrix()
    found = run_everything(networks_on("torch"), K)
    student, net, pose = bundle.student(), bundle.multi_frame(), bundle.pose()
    first, second = (torch.from_numpy(image) for image in images())
    with torch.no_grad():
        disparity = student(second, bundle.prior()).disparity[0]
        inverse, depth = disparity_to_depth(disparity)
        current_from_previous = pose(first, second)
        output = net(
            net.features(second),
            net.features(first),
            current_from_previous.inverse(),
            torch.from_numpy(K).float()[None],
            depth,
        )
    np.testing.assert_allclose(found["inverse"], inverse, rtol=1e-5)
    np.testing.assert_allclose(found["pose"], current_from_previous.matrix[0], atol=1e-7)
    np.testing.assert_allclose(found["depth"], output.depth, rtol=1e-4)
    assert np.abs(found["depth"] - depth.numpy()).max() > 1e-2


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(bundle: Bundle) -> None:
    K = bundle.manifest.camera.matrix()
    expected = run_everything(Networks(bundle, make_backend("torch", "cpu")), K)
    found = run_everything(Networks(bundle, make_backend("torch", "cuda")), K)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-2, atol=1e-3, err_msg=key)


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_are_not_overwritten_by_the_next_run(
    networks_on: Callable[[str], Networks], name: str
) -> None:
    """Features of one frame are kept while the next one is computed."""
    networks = networks_on(name)
    first, second = (networks.backend.to_native(image) for image in images())
    kept = networks.features(first)
    copies = [networks.backend.to_numpy(value).copy() for value in kept]
    networks.features(second)
    for value, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(networks.backend.to_numpy(value), copy)


def test_bf16_is_close(bundle: Bundle, networks_on: Callable[[str], Networks]) -> None:
    image = images(1)[0]
    exact = networks_on("openvino").single(image)[0]
    backend = make_backend("openvino", precision="bf16")
    runner = StudentRunner(bundle.student(), bundle.prior())
    rough = backend.compile(runner, (image,))(image)[0]
    np.testing.assert_allclose(rough, exact, rtol=0.1)


# -- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "precision", "message"),
    [
        ("tensorflow", "auto", "f32", "unknown backend"),
        ("openvino", "cuda", "f32", "use torch for CUDA"),
        ("torch", "tpu9", "f32", "device"),
        ("torch", "meta", "f32", "choose auto"),
        ("torch", "cpu", "bf16", "openvino only"),
    ],
)
def test_what_cannot_be_had(name: str, device: str, precision: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        make_backend(name, device, precision=precision)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
def test_cuda_that_is_not_there() -> None:
    for name in ("torch", "auto"):
        with pytest.raises(BackendError, match="no CUDA device"):
            choose_backend(name, "cuda")


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make(name: str, device: str = "auto", **_: object) -> Backend:
        asked.append((name, device))
        return make_backend("torch", "cpu")

    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    monkeypatch.setattr(choice_module, "make_backend", make)
    assert choose_backend()[1] == "CUDA is available"
    assert asked == [("torch", "cuda")]


@pytest.mark.parametrize("lacking", ["openvino", "onnx"])
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    monkeypatch.setattr(
        choice_module, "find_spec", lambda name: None if name == lacking else object()
    )
    backend, reason = choose_backend()
    assert (backend.name, backend.device) == ("torch", "cpu")
    assert lacking in reason


def test_a_precision_that_auto_cannot_keep_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    monkeypatch.setattr(choice_module, "find_spec", lambda _: None)
    assert "bf16" in choose_backend(precision="bf16")[1]
    assert "bf16" not in choose_backend()[1]


def test_auto_takes_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: the extra `cpu` has it")
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    assert choose_backend()[0].name == "openvino"


class Stubborn(nn.Module):
    """A network that no exporter takes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(image[0, 0, :3, :3]).real


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_network_that_cannot_be_compiled(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed: the extra `cpu` has it")
    with pytest.raises(BackendError, match="Stubborn"):
        make_backend(name).compile(Stubborn(), (images(1)[0],))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_file_that_the_library_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed: the extra `cpu` has it")
    monkeypatch.setattr(
        onnx_backend, "export_onnx", lambda _net, _inputs, path: path.write_bytes(b"no network")
    )
    with pytest.raises(BackendError, match="cannot compile Identity"):
        make_backend(name).compile(nn.Identity(), (images(1)[0],))


def test_auto_falls_back_where_compiling_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name, device = "openvino", "cpu"

        def compile(self, module: nn.Module, example_inputs: object) -> None:
            raise BackendError("no such instruction")

    monkeypatch.setattr(runtime, "choose_backend", lambda *_, **__: (Broken(), "it was there"))
    networks, reason = compile_networks(bundle)
    assert networks.backend.name == "torch"
    assert "no such instruction" in reason
    with pytest.raises(BackendError, match="no such instruction"):
        compile_networks(bundle, "openvino")


def test_a_fusion_without_its_prior_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"prior": None})
    save_bundle(tmp_path / "b", manifest, student=build_network(manifest, "student"))
    with pytest.raises(BundleError, match="no prior"):
        compile_networks(load_bundle(tmp_path / "b"), "torch", "cpu")


def test_choosing_imports_only_what_is_used() -> None:
    code = (
        "import sys; from depth_prior_ros.backends import make_backend;"
        "assert 'torch' not in sys.modules; make_backend('torch', 'cpu');"
        "assert 'openvino' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openvino_needs_no_onnxruntime() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: the extra `cpu` has it")
    code = (
        "import sys; sys.modules['onnxruntime'] = None; sys.modules['onnxscript'] = None;"
        "import numpy as np; from torch import nn;"
        "from depth_prior_ros.backends import make_backend;"
        "image = np.ones((1, 3, 8, 8), np.float32);"
        "print(make_backend('openvino').compile(nn.Conv2d(3, 2, 3), (image,))(image)[0].shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert result.stdout.strip() == b"(1, 2, 6, 6)"
