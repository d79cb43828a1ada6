from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exporting_once
from numpy.typing import NDArray
from torch import nn

from depth_prior_ros.backends import (
    BACKENDS,
    Backend,
    BackendError,
    Precision,
    backend_options,
    choose_backend,
    make_backend,
    onnx_backend,
)
from depth_prior_ros.backends import choice as choice_module
from depth_prior_ros.backends.devices import choose_precision
from depth_prior_ros.bundle import Bundle, BundleError, build_network, load_bundle, save_bundle
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.pipeline import runtime
from depth_prior_ros.pipeline.runtime import Networks, compile_networks


@pytest.fixture(scope="module")
def files() -> dict[type, bytes]:
    """The networks of `bundle` as files, for both backends."""
    return {}


@pytest.fixture(scope="module")
def networks_on(bundle: Bundle, files: dict[type, bytes]) -> Callable[[str], Networks]:
    """The tiny bundle compiled by a backend, once per backend."""

    @cache
    def compiled(name: str) -> Networks:
        if name != "torch":
            pytest.importorskip(name, reason=f"{name} is not installed: the extra `cpu` has it")
        with exporting_once(files):
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
    found = networks.multi(
        networks.features(second), networks.features(first), previous_from_current, camera, inverse
    )
    outputs = {
        "inverse": inverse,
        "single_confidence": confidence,
        **found._asdict(),
    }
    return {name: backend.to_numpy(value) for name, value in outputs.items()} | {"pose": pose}


@pytest.mark.slow
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
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_agrees_with_the_cpu(bundle: Bundle, device: str) -> None:
    K = bundle.manifest.camera.matrix()
    expected = run_everything(Networks(bundle, make_backend("torch", "cpu")), K)
    found = run_everything(Networks(bundle, make_backend("torch", device)), K)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-2, atol=1e-3, err_msg=key)


@pytest.mark.gpu
def test_a_cuda_device_too_many() -> None:
    with pytest.raises(BackendError, match="only"):
        make_backend("torch", f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("name", [n for n, b in BACKENDS.items() if b.cpu_rank is not None])
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_bf16_is_close(bundle: Bundle, networks_on: Callable[[str], Networks], name: str) -> None:
    image = images(1)[0]
    exact = networks_on("torch").single(torch.from_numpy(image))[0].numpy()
    try:
        backend = make_backend(name, "cpu", precision="bf16")
    except BackendError as error:
        pytest.skip(str(error))
    runner = StudentRunner(bundle.student(), bundle.prior())
    rough = backend.to_numpy(backend.compile(runner, (image,))(backend.to_native(image))[0])
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, rtol=0.1)
    assert np.abs(rough / exact - 1).max() > 1e-5  # it is another arithmetic


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_half_precision_that_the_cpu_has_not(
    monkeypatch: pytest.MonkeyPatch, kind: Precision
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: the extra `cpu` has it")
    from depth_prior_ros.backends.openvino_backend import OpenVinoBackend

    monkeypatch.setattr(OpenVinoBackend, "_capabilities", lambda _: ["FP32", "INT8"])
    with pytest.raises(BackendError, match=f"no {kind}"):
        make_backend("openvino", precision=kind)
    backend, reason = choose_backend("auto", "cpu", precision=kind)
    assert (backend.name, backend.precision) == ("openvino", "f32")
    assert f"openvino: this CPU computes no {kind}" in reason
    assert make_backend("openvino").precision == "f32"


# -- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "precision", "message"),
    [
        ("tensorflow", "auto", "f32", "unknown backend"),
        ("openvino", "cuda", "f32", "use torch for CUDA"),
        ("torch", "tpu9", "f32", "device"),
        ("torch", "meta", "f32", "choose auto"),
        ("onnxruntime", "cpu", "bf16", "not supported by onnxruntime"),
        ("onnxruntime", "cuda", "f16", "not supported by onnxruntime"),
        ("tensorrt", "cpu", "f32", "on CUDA alone"),
        ("torch", "cpu", "f16", "torch: this CPU computes no f16"),
        ("torch", "cpu", "f8", "unknown precision"),
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
    for name in ("onnxruntime", "tensorrt"):
        with pytest.raises(BackendError, match=r"ONNX Runtime has no \w+Provider|no CUDA device"):
            choose_backend(name, "cuda:0")


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make(name: str, device: str = "auto", **_: object) -> Backend:
        asked.append((name, device))
        return make_backend("torch", "cpu")

    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    monkeypatch.setattr(choice_module, "make_backend", make)
    assert choose_backend()[1] == "CUDA is available"
    assert asked == [("torch", "cuda")]


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """A machine without CUDA on which these packages are not installed, but all others are."""
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    monkeypatch.setattr(
        choice_module, "find_spec", lambda name: None if name in packages else object()
    )


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ((), "openvino"),
        (("openvino",), "onnxruntime"),
        (("openvino", "onnxruntime"), "torch"),
        (("onnx",), "torch"),
    ],
)
def test_auto_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...], expected: str
) -> None:
    without(monkeypatch, *lacking)
    options = backend_options()
    assert options[0].name == expected
    assert [option.name for option in options][-1] == "torch"
    assert {option.device for option in options} == {"cpu"}
    for package in lacking:
        assert f"{package} not installed" in options[0].why or "and" in options[0].why
    if "openvino" in lacking:
        assert "openvino not installed" in options[0].why


def test_a_package_that_is_not_installed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    with pytest.raises(BackendError, match="onnxruntime not installed"):
        choose_backend("onnxruntime")
    backend, reason = choose_backend("onnxruntime", fallback=True)
    assert backend.name == "openvino"
    assert "onnxruntime not installed" in reason


def test_a_precision_that_auto_cannot_keep_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino", "onnxruntime")
    backend, reason = choose_backend(precision="bf16")
    assert (backend.name, backend.precision) == ("torch", "f32")
    assert "bf16" in reason
    assert "bf16" not in choose_backend()[1]


def test_options_of_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)

    def names(*args: str, fallback: bool = False, precision: str = "f32") -> list[str]:
        options = backend_options(*args, precision=precision, fallback=fallback)  # type: ignore[arg-type]
        return [str(option) for option in options]

    cpu = ["openvino (cpu, f32)", "onnxruntime (cpu, f32)", "torch (cpu, f32)"]
    assert names() == names("auto", "cpu") == cpu
    assert names("torch", "cuda:1") == ["torch (cuda:1, f32)"]
    assert names("auto", "cuda:1") == ["torch (cuda:1, f32)"]
    assert names("auto", "cuda:1", fallback=True) == ["torch (cuda:1, f32)", *cpu]
    assert names("onnxruntime", "cpu", fallback=True) == ["onnxruntime (cpu, f32)", *cpu]
    assert names(precision="bf16") == ["openvino (cpu, bf16)", *cpu]
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    assert names() == ["torch (cuda, f32)", *cpu]
    assert names("auto", "cpu") == cpu


def test_options_of_a_file_that_pytorch_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    on_cpu = backend_options("auto", "cpu", onnx=True)
    assert backend_options(onnx=True) == on_cpu == backend_options()
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    options = backend_options(onnx=True, precision="f16")
    found = [str(option) for option in options]
    assert found[:3] == ["tensorrt (cuda, f16)", "onnxruntime (cuda, f32)", "openvino (cpu, f16)"]
    assert "onnxruntime computes no f16: f32" in options[1].why
    assert [option.name for option in options if option.optional] == ["tensorrt"]
    assert [str(o) for o in backend_options("auto", "cuda:1", onnx=True)] == [
        "tensorrt (cuda:1, f32)",
        "onnxruntime (cuda:1, f32)",
    ]
    assert [o.name for o in backend_options("onnxruntime", "cuda", onnx=True)] == ["onnxruntime"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
def test_cuda_that_is_not_there_with_fallback() -> None:
    backend, reason = choose_backend("torch", "cuda:0", fallback=True)
    assert backend.device == "cpu"
    assert "no CUDA device" in reason


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


def test_a_library_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers and plugins of a half-broken installation fail in ways of their own."""
    openvino = pytest.importorskip(
        "openvino", reason="openvino is not installed: the extra `cpu` has it"
    )

    def fail() -> None:
        raise RuntimeError("no plugin")

    monkeypatch.setattr(openvino, "Core", fail)
    with pytest.raises(BackendError, match="openvino does not start: RuntimeError: no plugin"):
        make_backend("openvino")
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    backend, reason = choose_backend()
    assert backend.name != "openvino"
    assert "no plugin" in reason


class Unfit:
    """A backend that is there, and fails at its work."""

    name, device, precision = "openvino", "cpu", "f32"

    def __init__(self, at: str) -> None:
        self._at = at

    def compile(self, module: nn.Module, example_inputs: object) -> Callable[..., object]:
        if self._at == "compile":
            raise BackendError("no such instruction")

        def run(*inputs: object) -> None:
            raise RuntimeError("no such instruction")

        return run

    def to_native(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array

    def to_numpy(self, native: NDArray[np.float32]) -> NDArray[np.float32]:
        return native


@pytest.mark.parametrize("at", ["compile", "run"])
def test_falling_back_where_a_backend_is_unfit(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def make(name: str, device: str = "auto", **options: object) -> object:
        return Unfit(at) if name == "openvino" else make_backend(name, device, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runtime, "make_backend", make)
    without(monkeypatch, "onnxruntime")
    networks, reason = compile_networks(bundle)
    assert networks.backend.name == "torch"
    assert networks.fell_back
    assert "no such instruction" in reason
    with pytest.raises(BackendError, match="no such instruction"):
        compile_networks(bundle, "openvino")
    networks, reason = compile_networks(bundle, "openvino", fallback=True)
    assert networks.backend.name == "torch"
    assert networks.fell_back
    networks, reason = compile_networks(bundle, "torch", "cpu")
    assert not networks.fell_back
    assert reason == "chosen by name"


def test_where_nothing_is_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "make_backend", lambda *_, **__: Unfit("compile"))
    without(monkeypatch)
    with pytest.raises(BackendError, match="no such instruction"):
        compile_networks(bundle)


def test_a_fusion_without_its_prior_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"prior": None})
    save_bundle(tmp_path / "b", manifest, student=build_network(manifest, "student"))
    with pytest.raises(BundleError, match="no prior"):
        compile_networks(load_bundle(tmp_path / "b"), "torch", "cpu")


@pytest.mark.slow
def test_choosing_imports_only_what_is_used() -> None:
    code = (
        "import sys; from depth_prior_ros.backends import make_backend;"
        "assert 'torch' not in sys.modules; make_backend('torch', 'cpu');"
        "assert 'openvino' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
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


def test_openvino_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Importing it writes ~/intel and opens a connection where its telemetry is not kept out."""
    pytest.importorskip("openvino")
    code = (
        "import sys; from depth_prior_ros.backends.openvino_backend import import_openvino\n"
        "import_openvino()\n"
        "loaded = [m for m, x in sys.modules.items() if 'openvino_telemetry' in m and x]\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx512f avx512_bf16", "bf16"), ("fp asimd bf16", "bf16"), ("fpu avx2 avx512f", "f32")],
)
def test_bf16_is_chosen_where_the_cpu_has_instructions_for_it(flags: str, precision: str) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, f"processor : 0\nflags : {flags}\n") == precision
    assert choose_precision("f32", cpu, flags) == "f32"
    assert choose_precision("bf16", cpu, "") == "bf16", "who asks for it gets it"
