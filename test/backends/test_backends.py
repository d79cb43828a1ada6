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
from helpers import cpu_backends, exporting_once, need_packages_of, register_alone
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
from depth_prior_ros.backends.choice import Option
from depth_prior_ros.backends.devices import choose_precision
from depth_prior_ros.bundle import Bundle, BundleError, build_network, load_bundle, save_bundle
from depth_prior_ros.geometry.warping import disparity_to_depth
from depth_prior_ros.models.export import StudentRunner
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
        need_packages_of(name)
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
@pytest.mark.parametrize("name", [name for name in cpu_backends() if name != "torch"])
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


@pytest.mark.parametrize("name", cpu_backends())
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
@pytest.mark.parametrize("name", [n for n in cpu_backends() if "bf16" in BACKENDS[n].precisions])
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
    need_packages_of("openvino")
    from depth_prior_ros.backends.openvino_backend import OpenVinoBackend

    register_alone(monkeypatch, "openvino", "torch")
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
        ("openvino", "cuda", "f32", "runs on cpu alone, not on 'cuda'; on cuda choose .*torch"),
        ("torch", "tpu9", "f32", "device"),
        ("torch", "meta", "f32", "choose auto"),
        ("onnxruntime", "cpu", "bf16", "not supported by onnxruntime"),
        ("onnxruntime", "cuda", "f16", "not supported by onnxruntime"),
        ("tensorrt", "cpu", "f32", "runs on cuda alone, not on 'cpu'; on cpu choose .*onnxruntime"),
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
    register_alone(monkeypatch, "openvino", "torch")
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


def shipped(options: list[Option]) -> list[str]:
    """Those that come with the package, as others may stand between them."""
    come = ("onnxruntime", "openvino", "tensorrt", "torch")
    return [option.name for option in options if option.name in come]


@pytest.mark.parametrize(
    ("lacking", "expected", "said"),
    [
        ([], ["openvino", "onnxruntime", "torch"], []),
        (["openvino"], ["onnxruntime", "torch"], ["openvino: openvino"]),
        (
            ["openvino", "onnxruntime"],
            ["torch"],
            ["openvino: openvino", "onnxruntime: onnxruntime"],
        ),
        (["onnx"], ["torch"], ["openvino: onnx", "onnxruntime: onnx"]),
        (["onnxruntime"], ["openvino", "torch"], []),
    ],
)
def test_shipped_backends_in_order(
    monkeypatch: pytest.MonkeyPatch, lacking: list[str], expected: list[str], said: list[str]
) -> None:
    """The order of the shipped backends; `five` and its tests have the rule."""
    without(monkeypatch, *lacking)
    options = backend_options()
    assert shipped(options) == expected
    assert {option.device for option in options} == {"cpu"}
    why = next(option.why for option in options if option.name == expected[0])
    pairs = [(n, p) for n in ("openvino", "onnxruntime") for p in BACKENDS[n].packages]
    assert [f"{n}: {p}" for n, p in pairs if f"{n}: {p} not installed" in why] == said
    without(monkeypatch)
    assert shipped(backend_options(device="cuda")) == ["torch"]
    assert shipped(backend_options(device="cuda", onnx=True)) == ["tensorrt", "onnxruntime"]


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_backend_declares_fits_together(name: str) -> None:
    backend = BACKENDS[name]
    assert backend.devices
    assert {purpose.partition("_")[0] for purpose in backend.auto_rank} <= set(backend.devices)
    assert "f32" in backend.precisions
    assert set(backend.faster_on_cpu) <= set(backend.precisions) - {"f32"}


def test_a_package_that_is_not_installed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    register_alone(monkeypatch, "onnxruntime", "torch")
    with pytest.raises(BackendError, match="onnxruntime not installed"):
        choose_backend("onnxruntime")
    backend, reason = choose_backend("onnxruntime", fallback=True)
    assert backend.name == "torch"
    assert "onnxruntime not installed" in reason


def test_a_precision_that_auto_cannot_keep_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino", "onnxruntime")
    register_alone(monkeypatch, "openvino", "onnxruntime", "torch")
    backend, reason = choose_backend(precision="bf16")
    assert (backend.name, backend.precision) == ("torch", "f32")
    assert "bf16 is faster with openvino only: f32" in reason
    assert "bf16" not in choose_backend()[1]


def declared(
    devices: str, precisions: str = "f32", faster: str = "", packages: str = "", **rank: int
) -> type:
    """What choosing reads of a backend."""
    names = ("devices", "precisions", "faster_on_cpu", "packages")
    words = [tuple(value.split()) for value in (devices, precisions, faster, packages)]
    return type("Declared", (), dict(zip(names, words, strict=True), auto_rank=rank))


@pytest.fixture
def five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five backends, whose order is neither that of their names nor of where they are declared."""
    kinds, half = "f32 bf16 f16", "bf16 f16"
    register_alone(
        monkeypatch,
        named=declared("cpu cuda", kinds),
        both=declared("cpu cuda", kinds, cpu=30, cuda=20),
        reader=declared("cpu cuda", packages="reader", cpu=20, cuda_onnx=2),
        quick=declared("cpu", kinds, half, "quick", cpu=10),
        special=declared("cuda", "f32 f16", packages="special reader", cuda=3, cuda_onnx=1),
    )
    without(monkeypatch)


def names(*args: str, **how: object) -> list[str]:
    return [str(option) for option in backend_options(*args, **how)]  # type: ignore[arg-type]


def test_options_of_a_choice(five: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = ["quick (cpu, f32)", "reader (cpu, f32)", "both (cpu, f32)"]
    cuda = ["special (cuda:1, f32)", "both (cuda:1, f32)"]
    assert names() == names("auto", "cpu") == cpu
    assert names("both", "cuda:1") == ["both (cuda:1, f32)"]
    assert names("named", "cuda:1") == ["named (cuda:1, f32)"], "never by auto, but by name"
    assert names("auto", "cuda:1") == cuda
    assert names("auto", "cuda:1", fallback=True) == [*cuda, *cpu]
    assert names("reader", "cpu", fallback=True) == ["reader (cpu, f32)", *cpu]
    assert names(precision="bf16") == ["quick (cpu, bf16)", *cpu], "both gains nothing there"
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    assert names() == ["special (cuda, f32)", "both (cuda, f32)", *cpu]
    assert names("auto", "cpu") == cpu
    assert [option.name for option in backend_options() if option.optional] == ["special"]


def test_options_of_a_file_that_pytorch_does_not_run(
    five: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(onnx=True) == names("auto", "cpu", onnx=True) == names()
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: True)
    options = backend_options(onnx=True, precision="f16")
    found = [str(option) for option in options]
    assert found[:3] == ["special (cuda, f16)", "reader (cuda, f32)", "quick (cpu, f16)"]
    assert "reader computes no f16: f32" in options[1].why
    assert [option.name for option in options if option.optional] == ["special"]
    assert names("auto", "cuda:1", onnx=True) == ["special (cuda:1, f32)", "reader (cuda:1, f32)"]
    assert names("reader", "cuda", onnx=True) == ["reader (cuda, f32)"]


def test_what_is_not_installed_is_left_out(five: None, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "special", "quick")
    (option,) = backend_options(device="cuda")
    assert option.why.startswith("special: special not installed")
    assert (option.name, option.optional) == ("both", False)
    first, second = backend_options(precision="bf16")
    assert [str(first), str(second)] == ["reader (cpu, f32)", "both (cpu, f32)"]
    assert first.why.startswith("quick: quick not installed")
    assert "bf16 is faster with quick only: f32" in second.why
    without(monkeypatch, "special", "reader")
    none = ["special (cuda, f32)", "reader (cuda, f32)"]
    assert names(device="cuda", onnx=True) == none, "where none is, each says so"


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
    need_packages_of(name)
    with pytest.raises(BackendError, match="Stubborn"):
        make_backend(name).compile(Stubborn(), (images(1)[0],))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_file_that_the_library_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages_of(name)
    monkeypatch.setattr(
        onnx_backend, "export_onnx", lambda _net, _inputs, path: path.write_bytes(b"no network")
    )
    with pytest.raises(BackendError, match="cannot compile Identity"):
        make_backend(name).compile(nn.Identity(), (images(1)[0],))


def test_a_library_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers and plugins of a half-broken installation fail in ways of their own."""
    need_packages_of("openvino")
    import openvino

    register_alone(monkeypatch, "openvino", "torch")

    def fail() -> None:
        raise RuntimeError("no plugin")

    monkeypatch.setattr(openvino, "Core", fail)
    with pytest.raises(BackendError, match="openvino does not start: RuntimeError: no plugin"):
        make_backend("openvino")
    monkeypatch.setattr(choice_module, "_cuda_available", lambda: False)
    backend, reason = choose_backend()
    assert backend.name != "openvino"
    assert "no plugin" in reason


class Unfit(declared("cpu", cpu=0)):  # type: ignore[misc]
    """A backend that is there, the first one, and fails at its work."""

    name, device, precision = "unfit", "cpu", "f32"
    at = "compile"

    def __init__(self, device: str, threads: int, precision: Precision) -> None:
        pass

    def compile(self, module: nn.Module, example_inputs: object) -> Callable[..., object]:
        if self.at == "compile":
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
    monkeypatch.setattr(Unfit, "at", at)
    register_alone(monkeypatch, "torch", unfit=Unfit)
    without(monkeypatch)
    networks, reason = compile_networks(bundle)
    assert networks.backend.name == "torch"
    assert networks.fell_back
    assert "no such instruction" in reason
    with pytest.raises(BackendError, match="no such instruction"):
        compile_networks(bundle, "unfit")
    networks, reason = compile_networks(bundle, "unfit", fallback=True)
    assert networks.backend.name == "torch"
    assert networks.fell_back
    networks, reason = compile_networks(bundle, "torch", "cpu")
    assert not networks.fell_back
    assert reason == "chosen by name"


def test_where_nothing_is_fit(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    register_alone(monkeypatch, unfit=Unfit)
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
        "import sys; from depth_prior_ros.backends import BACKENDS, make_backend;"
        "needed = {name: set(backend.packages) for name, backend in BACKENDS.items()};"
        "assert 'torch' not in sys.modules; make_backend('torch', 'cpu');"
        "others = set().union(*needed.values()) - needed['torch'];"
        "assert {'openvino', 'onnxruntime', 'onnx'} <= others;"
        "assert not others & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_openvino_needs_no_onnxruntime() -> None:
    need_packages_of("openvino")
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
