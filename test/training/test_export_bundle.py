"""`depth_train export`: files that agree with PyTorch, or a clear error and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_SIZE, make_tiny_bundle
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.backends.base import BackendError
from depth_prior_ros.bundle import Bundle, save_bundle
from depth_prior_ros.models.export import StudentRunner
from training.commands.cli import main
from training.errors import TrainingError
from training.runs import export as module
from training.runs.export import MANIFEST, README, Exported, export_bundle

WIDTH, HEIGHT = TINY_SIZE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a fusion whose last convolution is not zero."""
    folder = tmp_path_factory.mktemp("export")
    plain = make_tiny_bundle(folder / "plain", trunk=TINY_TRUNK)
    student = plain.student()
    torch.manual_seed(0)
    torch.nn.init.normal_(student.fusion.out.weight)
    parts = {"multi_frame": plain.multi_frame(), "pose": plain.pose()}
    return save_bundle(
        folder / "tiny", plain.manifest, student=student, prior=plain.prior(), **parts
    )


@pytest.fixture(scope="module")
def student_alone(bundle: Bundle) -> Bundle:
    architecture = bundle.manifest.architecture.model_copy(
        update={"multi_frame": None, "pose": None}
    )
    manifest = bundle.manifest.model_copy(update={"architecture": architecture})
    path = bundle.path.with_name("alone")
    return save_bundle(path, manifest, student=bundle.student(), prior=bundle.prior())


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra cpu")


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_all_networks_as_onnx(bundle: Bundle, tmp_path: Path) -> None:
    import onnxruntime

    seen: list[Exported] = []
    out = export_bundle(bundle.path, "onnx", tmp_path / "out", report=seen.append)
    names = ["student", "features", "pose", "multi_frame"]
    assert [e.network for e in seen] == names
    assert _left(out) == sorted([MANIFEST, README, *(f"{n}.onnx" for n in names)])
    assert _left(tmp_path) == ["out"]
    data = json.loads((out / MANIFEST).read_text())
    assert data["bundle_sha256"] == bundle.digest
    assert data["input_size"] == [WIDTH, HEIGHT]
    for entry, name in zip(data["networks"], names, strict=True):
        session = onnxruntime.InferenceSession(out / entry["file"])
        for rows, found in (
            (entry["inputs"], session.get_inputs()),
            (entry["outputs"], session.get_outputs()),
        ):
            assert [(r["name"], r["shape"]) for r in rows] == [(f.name, f.shape) for f in found]
            assert all(
                r["meaning"] and f"`{r['name']}`" in (out / README).read_text() for r in rows
            )
        outputs = {row["name"] for row in entry["outputs"]}
        assert {(d["output"], d["on"]) for d in entry["differences"]} == {
            (o, on) for o in outputs for on in ("random", "street")
        }, name
        assert all(d["relative"] < 1e-3 for d in entry["differences"])

    image = np.random.default_rng(5).random((1, 3, HEIGHT, WIDTH), dtype=np.float32)
    session = onnxruntime.InferenceSession(out / "student.onnx")
    found = session.run(["inverse_depth"], {"image": image})[0]
    with torch.no_grad():
        with_prior = StudentRunner(bundle.student(), bundle.prior())(torch.from_numpy(image))[0]
        without = bundle.student()(torch.from_numpy(image)).disparity[0] * 9.99 + 0.01
    assert np.allclose(found, with_prior, rtol=1e-4)
    assert not np.allclose(found, without, rtol=1e-3)


def test_a_student_alone_as_openvino_by_the_command(
    student_alone: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import openvino

    monkeypatch.chdir(tmp_path)
    assert main(["export", str(student_alone.path), "--to", "openvino"]) == 0
    printed = capsys.readouterr().out
    assert "largest difference" in printed
    assert "export: tiny_openvino" in printed
    out = tmp_path / "tiny_openvino"
    assert _left(out) == [README, MANIFEST, "student.bin", "student.xml"]
    model = openvino.Core().read_model(out / "student.xml")
    image = np.random.default_rng(5).random((1, 3, HEIGHT, WIDTH), dtype=np.float32)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(model, "CPU", hint)({"image": image})["inverse_depth"]
    with torch.no_grad():
        runner = StudentRunner(student_alone.student(), student_alone.prior())
        assert np.allclose(found, runner(torch.from_numpy(image))[0], rtol=1e-4)


@pytest.mark.slow
def test_files_that_differ_are_refused_and_an_earlier_export_stays(
    student_alone: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_bundle(student_alone.path, "onnx", tmp_path / "out")
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(TrainingError, match=r"student.onnx: .* differs from PyTorch .* allowed"):
        export_bundle(student_alone.path, "onnx", out, tolerance=0.0)
    assert (out / MANIFEST).read_bytes() == before

    def broken(path: Path, kind: str) -> module.Network:
        values = np.full((1, 1, HEIGHT, WIDTH), np.nan, np.float32)
        return lambda *inputs: (values, values)

    monkeypatch.setattr(module, "_open", broken)
    with pytest.raises(TrainingError, match="differs from PyTorch by nan"):
        export_bundle(student_alone.path, "onnx", out)
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_describe", full)
    with pytest.raises(OSError, match="No space"):
        export_bundle(student_alone.path, "onnx", out)
    monkeypatch.undo()
    assert (out / MANIFEST).read_bytes() == before
    assert _left(tmp_path) == ["out"]
    (out / "stale").touch()
    export_bundle(student_alone.path, "onnx", out)
    assert _left(out) == [README, MANIFEST, "student.onnx"]
    assert _left(tmp_path) == ["out"]


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_named(
    kind: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda n: None if n == package else found(n))
    with pytest.raises(BackendError, match=f"pip install {package} "):
        export_bundle("lite", kind, tmp_path / "out")  # type: ignore[arg-type]
    assert main(["export", "lite", "--to", kind, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"pip install {package}" in error
    assert "Traceback" not in error
    assert _left(tmp_path) == []


def test_foreign_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").touch()
    with pytest.raises(TrainingError, match="other things"):
        export_bundle("lite", "onnx", tmp_path / "folder")
    with pytest.raises(TrainingError, match="is a file"):
        export_bundle("lite", "onnx", tmp_path / "folder" / "mine.txt")
    assert _left(tmp_path / "folder") == ["mine.txt"]


def test_a_small_motion_is_not_hidden_by_its_diagonal() -> None:
    expected = np.eye(4, dtype=np.float32)[None]
    expected[0, 0, 3] = 0.01
    found = expected.copy()
    found[0, 0, 3] = 0.0105
    (difference,) = module._compare(["second_from_first"], "random", (found,), (expected,))
    assert difference.relative == pytest.approx(0.05, rel=1e-3)
    assert difference.absolute == pytest.approx(0.0005, rel=1e-3)


def test_an_output_of_zeros_is_no_error() -> None:
    """As the confidence is where no hypothesis was seen."""
    zeros = np.zeros((1, 1, 2, 3), np.float32)
    (same,) = module._compare(["confidence"], "random", (zeros,), (zeros,))
    assert same.relative == same.absolute == 0
    (other,) = module._compare(["confidence"], "random", (zeros + 0.5,), (zeros,))
    assert other.relative == float("inf")
