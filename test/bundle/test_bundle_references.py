"""References in a bundle: stored, checked, looked up for their own camera only, exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cpu_backends, tiny_manifest

from depth_prior_ros.adaptation.adapt import PROTOCOL, Adapted, adapt, take_references
from depth_prior_ros.adaptation.keyframes import Keyframe
from depth_prior_ros.adaptation.references import make_references
from depth_prior_ros.backends.base import BackendError
from depth_prior_ros.bundle import (
    Bundle,
    BundleError,
    CameraCodeSpec,
    CameraSpec,
    ReferencesSpec,
    load_bundle,
    save_bundle,
)
from depth_prior_ros.bundle.derive import replace_references, tell_camera
from depth_prior_ros.bundle.manifest import Architecture
from depth_prior_ros.evaluation.evaluate import FrameResult
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.models.episodic_prior import EpisodicPrior, ProjectedReferences, References
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.student import build_student
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.pipeline.runtime import compile_networks
from training.runs.export import export_bundle

CAMERA = Camera(240.0, 240.0, 160.0, 50.0, 320, 107)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A student that looks up references, and has none."""
    manifest = tiny_manifest()
    student = {"trunk": "mobilenet_v2", "decoder": "convex", "camera_code": True, "far_bias": -2.0}
    torch.manual_seed(0)
    net = build_student({**student, "episodic": {"capacity": 24}})
    assert net.episodic is not None
    torch.nn.init.normal_(net.episodic.weigh.weight)
    manifest = manifest.model_copy(
        update={"architecture": Architecture(student=net.architecture), "prior": None}
    )
    return save_bundle(tmp_path_factory.mktemp("look_up") / "bundle", manifest, student=net)


def _references(bundle: Bundle, seed: int = 0) -> References:
    torch.manual_seed(seed)
    height, width = bundle.manifest.input_size[::-1]
    depth = torch.rand(2, 1, height // 8, width // 8) * 30
    return make_references(
        bundle.student(), torch.rand(2, 3, height, width), depth, 20, metres_per_unit=20.0
    )


def _spec(camera: Camera = CAMERA) -> ReferencesSpec:
    return ReferencesSpec(
        count=1,
        channels=1,
        camera=CameraSpec.of(camera),
        source="a drive, exact depth",
        alignment="0" * 64,
    )


def test_they_are_stored_in_half_precision(bundle: Bundle, tmp_path: Path) -> None:
    references = _references(bundle)
    written = replace_references(bundle, tmp_path / "with", references, _spec())
    again = load_bundle(tmp_path / "with")
    spec, found = again.manifest.references, again.references()
    assert spec is not None and found is not None
    assert (spec.count, spec.channels) == (20, 128)
    for name in ("features", "position", "inverse_depth"):
        torch.testing.assert_close(
            getattr(found, name), getattr(references, name), rtol=1e-3, atol=1e-3
        )
    kept = {name: digest for name, digest in written.manifest.files.items() if name != "x"}
    assert kept.items() >= bundle.manifest.files.items(), "no weight changed"
    without = replace_references(again, tmp_path / "without", None, None)
    assert without.references() is None and without.manifest.references is None
    assert without.manifest.files == bundle.manifest.files


def test_other_weights_refuse_them(bundle: Bundle, tmp_path: Path) -> None:
    with_some = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    net = bundle.student()
    assert net.episodic is not None
    with torch.no_grad():
        net.episodic.near.add_(0.5)
    other = save_bundle(tmp_path / "other", bundle.manifest, student=net)
    (other.path / "references.safetensors").write_bytes(
        (with_some.path / "references.safetensors").read_bytes()
    )
    from depth_prior_ros.bundle.bundle import seal_bundle

    claimed = other.manifest.model_copy(update={"references": with_some.manifest.references})
    with pytest.raises(BundleError, match="layers that read these references have changed"):
        seal_bundle(other.path, tmp_path / "sealed", claimed)


def test_a_student_without_a_look_up_takes_none(bundle: Bundle, tmp_path: Path) -> None:
    plain = build_student({"trunk": "mobilenet_v2", "decoder": "convex", "far_bias": -2.0})
    manifest = bundle.manifest.model_copy(
        update={"architecture": Architecture(student=plain.architecture)}
    )
    without = save_bundle(tmp_path / "plain", manifest, student=plain)
    with pytest.raises(BundleError, match="looks no references up"):
        replace_references(without, tmp_path / "out", _references(bundle), _spec())
    networks, _ = compile_networks(without, "torch")
    with pytest.raises(ValueError, match="came without references"):
        networks.set_references(_references(bundle))


@pytest.mark.slow
@pytest.mark.parametrize("name", cpu_backends())
def test_every_backend_looks_up_and_exchanges_them(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    """The same compiled network gives with other references what PyTorch computes from them."""
    holding = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    try:
        networks, _ = compile_networks(holding, name, "cpu")
    except BackendError as error:
        pytest.skip(str(error))
    student = bundle.student()
    assert student.episodic is not None
    image = np.random.default_rng(0).random((1, 3, 32, 96), np.float32)
    found = []
    for references in (None, _references(bundle), _references(bundle, 1), None):
        networks.set_references(references)
        inverse = networks.backend.to_numpy(networks.single(networks.backend.to_native(image))[0])
        with torch.inference_mode():
            projected = student.episodic.project([references])
            code = torch.zeros(1, 5)
            expected = StudentRunner(student)(torch.from_numpy(image), code, *projected)[0]
        np.testing.assert_allclose(inverse, expected.numpy(), rtol=2e-3)
        found.append(np.array(inverse))
    np.testing.assert_array_equal(found[0], found[3])
    assert np.abs(found[1] / found[0] - 1).max() > 0.01
    assert np.abs(found[2] / found[1] - 1).max() > 0.01


def test_without_any_no_look_up_is_compiled(bundle: Bundle) -> None:
    networks, _ = compile_networks(bundle, "torch")
    assert not networks.takes_references
    with pytest.raises(ValueError, match="came without references"):
        networks.set_references(_references(bundle))


def test_switched_off_they_change_nothing(bundle: Bundle, tmp_path: Path) -> None:
    written = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    image = np.random.default_rng(3).integers(0, 255, (107, 320, 3), dtype=np.uint8)
    off, plain = DepthPipeline(written, "torch", look_up=False), DepthPipeline(bundle, "torch")
    for number, told in enumerate((None, CAMERA)):
        depth, expected = (p.process(image, number, camera=told).depth for p in (off, plain))
        np.testing.assert_array_equal(depth, expected)
    assert off.references_text == "not looked up: switched off" and plain.references_text == ""
    assert not off.networks.takes_references and off.references_doubt is None
    with pytest.raises(ValueError, match="came without references"):
        off.set_references(_references(bundle), _spec())


@pytest.mark.slow
def test_exported_they_are_inside(bundle: Bundle, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    holding = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    image = np.random.default_rng(2).random((1, 3, 32, 96), np.float32)
    for number, one in enumerate((bundle, holding)):
        out = export_bundle(one.path, "onnx", tmp_path / f"export{number}")
        session = onnxruntime.InferenceSession(out / "student.onnx")
        assert [given.name for given in session.get_inputs()] == ["image", "code"]
        told = {"image": image, "code": np.zeros((1, 5), np.float32)}
        networks, _ = compile_networks(one, "torch")
        expected = networks.single(networks.backend.to_native(image))[0]
        found = session.run(["inverse_depth"], told)[0]
        np.testing.assert_allclose(found, networks.backend.to_numpy(expected), rtol=1e-4)
        assert ("mounted the same" in (out / "README.md").read_text()) == (one is holding)
    out = export_bundle(holding.path, "onnx", tmp_path / "plain", look_up=False)
    assert "mounted the same" not in (out / "README.md").read_text()
    plain = onnxruntime.InferenceSession(tmp_path / "export0" / "student.onnx")
    left_out = onnxruntime.InferenceSession(out / "student.onnx")
    found, expected = (s.run(["inverse_depth"], told)[0] for s in (left_out, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_camera_looks_none_up(bundle: Bundle, tmp_path: Path) -> None:
    with_some = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    image = np.random.default_rng(1).integers(0, 255, (107, 320, 3), dtype=np.uint8)
    pipeline, plain = DepthPipeline(with_some, "torch"), DepthPipeline(bundle, "torch")
    longer = replace(CAMERA, fx=1.6 * CAMERA.fx, fy=1.6 * CAMERA.fy)
    for number, (camera, alike) in enumerate(((CAMERA, True), (longer, False), (CAMERA, True))):
        depth, expected = (p.process(image, number, camera=camera).depth for p in (pipeline, plain))
        assert np.array_equal(depth, expected, equal_nan=True) == (not alike)
        doubt = pipeline.references_doubt
        assert (doubt is None) == alike
        assert pipeline.references_text.startswith("not looked up: the bundle's") == (not alike)
        assert alike or (doubt is not None and "references are of another camera" in doubt)
    # Nobody knows the camera: whatever came before, it is taken for that of the training.
    fresh = DepthPipeline(with_some, "torch").process(image, 0, camera=None).depth
    for number, camera in enumerate((None, longer, None, CAMERA), 4):
        found = pipeline.process(image, number, camera=camera).depth
        assert camera is not None or np.array_equal(found, fresh, equal_nan=True)
    wrong = References(torch.zeros(3, 4), torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="references of 4 channels"):
        pipeline.set_references(wrong, _spec())
    again = pipeline.process(image, 8, camera=CAMERA).depth
    np.testing.assert_array_equal(again, found)
    pipeline.set_references(None, None)
    depth, expected = (p.process(image, 9, camera=CAMERA).depth for p in (pipeline, plain))
    np.testing.assert_array_equal(depth, expected)


def test_references_are_projected_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another camera takes up or leaves out what was projected when it was set."""
    written = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    projected: list[References | None] = []
    project = EpisodicPrior.project

    def counted(
        self: EpisodicPrior, references: Sequence[References | None], slots: int | None = None
    ) -> ProjectedReferences:
        projected.extend(references)
        return project(self, references, slots)

    monkeypatch.setattr(EpisodicPrior, "project", counted)
    pipeline = DepthPipeline(written, "torch")
    assert sum(one is not None for one in projected) == 1
    image = np.random.default_rng(1).integers(0, 255, (107, 320, 3), dtype=np.uint8)
    longer = replace(CAMERA, fx=1.6 * CAMERA.fx, fy=1.6 * CAMERA.fy)
    for given, expected in ((_references(bundle, 1), 1), (_references(bundle, 2), 1), (None, 0)):
        projected.clear()
        pipeline.set_references(given, None if given is None else _spec())
        assert len(projected) == expected
        for number, camera in enumerate((CAMERA, longer, CAMERA)):
            pipeline.process(image, number, camera=camera)
        assert len(projected) == expected
    pipeline.set_references(_references(bundle), _spec())
    pipeline.process(image, 9, camera=longer)
    projected.clear()
    pipeline.set_references(last := _references(bundle, 3), _spec())
    assert projected == [last] and pipeline.references_doubt is not None
    pipeline.process(image, 10, camera=CAMERA)
    assert projected == [last] and pipeline.looks_up


def test_references_are_known_pixels_of_their_frames(bundle: Bundle) -> None:
    student = bundle.student()
    images = torch.rand(3, 3, 32, 96)
    depth = torch.zeros(3, 1, 4, 12)
    depth[1, 0, 2, 5], depth[2, 0, 0, 0] = 10.0, 40.0
    found = make_references(student, images, depth, 100, metres_per_unit=20.0)
    assert len(found) == 2
    expected = torch.tensor([[0.25, -1 / 12], [-0.75, -11 / 12]])
    torch.testing.assert_close(found.position, expected)
    torch.testing.assert_close(found.inverse_depth, torch.tensor([2.0, 0.5]))
    with torch.no_grad():
        keys = student.episodic.key_features(student.trunk(images[1:2]))  # type: ignore[union-attr]
    torch.testing.assert_close(found.features[0], keys[0, :, 2, 5])
    drawn = [
        make_references(student, images, depth + 1, 5, s, metres_per_unit=1.0) for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0].position, drawn[1].position)
    assert not torch.equal(drawn[0].position, drawn[2].position)
    with pytest.raises(ValueError, match="none of these frames has any"):
        make_references(student, images, depth * 0, 5, metres_per_unit=1.0)
    with pytest.raises(ValueError, match="expected \\(3, 1, 4, 12\\)"):
        make_references(student, images, depth[:2], 5, metres_per_unit=1.0)


def test_another_camera_code_leaves_the_references(bundle: Bundle, tmp_path: Path) -> None:
    written = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    code = CameraCodeSpec(numbers=(0.1,) * 5, camera=CameraSpec.of(CAMERA), source="a drive")
    told = tell_camera(written, tmp_path / "told", code)
    found, before = load_bundle(told.path).references(), written.references()
    assert found is not None
    assert before is not None
    assert torch.equal(found.features, before.features)
    alone = tell_camera(written, tmp_path / "alone", code, keep_references=False)
    assert alone.references() is None and load_bundle(alone.path).manifest.references is None


def test_they_go_with_what_the_bundle_says_of_the_camera(bundle: Bundle, tmp_path: Path) -> None:
    """Numbers that were fitted later were fitted without them."""
    written = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    code = CameraCodeSpec(numbers=(0.5,) * 5, camera=CameraSpec.of(CAMERA), source="a drive")
    longer = replace(CAMERA, fx=1.6 * CAMERA.fx, fy=1.6 * CAMERA.fy)
    assert written.references_for(CAMERA, None) is not None
    assert written.references_for(CAMERA, code) is None
    assert written.references_for(longer, None) is None
    assert bundle.references_for(CAMERA, None) is None
    image = np.random.default_rng(1).integers(0, 255, (107, 320, 3), dtype=np.uint8)
    pipeline, plain = DepthPipeline(written, "torch"), DepthPipeline(bundle, "torch")
    looked_up = pipeline.process(image, 0, camera=CAMERA).depth
    assert pipeline.references_text.endswith(f" of {_spec().source}")
    for each in (pipeline, plain):
        each.tell_camera(code)
    told, expected = (p.process(image, 1, camera=CAMERA).depth for p in (pipeline, plain))
    np.testing.assert_array_equal(told, expected)
    assert pipeline.references_text == "not looked up: other numbers are told"
    pipeline.tell_camera(None)
    np.testing.assert_array_equal(pipeline.process(image, 2, camera=CAMERA).depth, looked_up)
    assert not np.array_equal(looked_up, told, equal_nan=True)


def test_keyframes_become_references_in_the_students_units(bundle: Bundle) -> None:
    """Depth of a camera with twice the focal length is twice as far as the student sees it."""
    width, height = bundle.manifest.input_size
    trained = bundle.manifest.camera
    camera = replace(trained, fx=2 * trained.fx, fy=2 * trained.fy)
    depth = np.zeros((height // 8, width // 8), np.float32)
    depth[1, :3] = 8.0, 16.0, 24.0
    pixels = np.zeros((height, width, 3), np.uint8)
    keyframe = Keyframe(0, pixels, camera, depth)
    found = take_references(bundle.student(), [keyframe], 4.0, trained)
    assert len(found) == 3
    assert sorted(found.inverse_depth.tolist()) == pytest.approx([1 / 3, 1 / 2, 1.0])
    assert found.position[:, 0].tolist() == pytest.approx([(1.5 * 2 / depth.shape[0]) - 1] * 3)


@pytest.mark.slow
def test_adapt_compares_with_the_bundle_as_it_is_used(bundle: Bundle, tmp_path: Path) -> None:
    """With its references, where it looks them up; they are not in what is fitted."""
    written = replace_references(bundle, tmp_path / "with", _references(bundle), _spec())
    height, width = bundle.manifest.input_size[::-1]
    trained, rng = bundle.manifest.camera, np.random.default_rng(0)
    keyframes = [
        Keyframe(
            number,
            rng.integers(0, 255, (height, width, 3), dtype=np.uint8),
            trained,
            rng.uniform(5, 50, (height // 8, width // 8)).astype(np.float32),
        )
        for number in range(8)
    ]
    off, _ = compile_networks(written, "torch", look_up=False)
    code = CameraCodeSpec(numbers=(0.5,) * 5, camera=CameraSpec.of(CAMERA), source="a drive")
    longer = replace(CAMERA, fx=1.6 * CAMERA.fx, fy=1.6 * CAMERA.fy)

    def before(one: Bundle, camera: Camera = CAMERA, **more: Any) -> float:
        found = adapt(one, keyframes, camera, "made up", try_references=False, **more)
        assert found.metric_after.abs_rel == pytest.approx(after, rel=1e-6)
        return found.metric_before.abs_rel

    plain = adapt(bundle, keyframes, CAMERA, "made up", try_references=False)
    after, without = plain.metric_after.abs_rel, plain.metric_before.abs_rel
    assert before(written) != pytest.approx(without, rel=1e-3)
    assert before(written, networks=off) == pytest.approx(without, rel=1e-6)
    assert before(written, longer) == pytest.approx(without, rel=1e-6)
    assert before(written, told=code) == pytest.approx(before(bundle, told=code), rel=1e-6)


@pytest.mark.parametrize(
    ("errors", "kept"),
    [
        ((0.3, 0.2, 0.1), "references"),
        ((0.3, 0.1, 0.2), "told"),
        ((0.1, 0.2, 0.3), None),
    ],
)
def test_the_best_on_keyframes_kept_out_is_kept(
    errors: tuple[float, ...], kept: str | None
) -> None:
    before, after, looked_up = (_frames(error) for error in errors)
    code = CameraCodeSpec(numbers=(0.0,) * 5, camera=CameraSpec.of(CAMERA), source="a drive")
    found = Adapted(code, before, after, 1, [], looked_up=looked_up)
    assert found.kept == kept and found.by_references == (kept == "references")
    assert found.best is (looked_up if kept == "references" else after)
    assert found.metric_best.abs_rel == pytest.approx(errors[2 if kept == "references" else 1])


@pytest.mark.parametrize(
    ("before", "after", "looked_up", "wins"),
    [
        (0.3, 0.2, 0.1, True),
        (0.3, 0.2, 0.25, False),
        (0.1, 0.2, 0.15, False),
        (0.3, 0.2, None, False),
    ],
)
def test_references_are_taken_where_they_beat_both(
    before: float, after: float, looked_up: float | None, wins: bool
) -> None:
    code = CameraCodeSpec(numbers=(0.0,) * 5, camera=CameraSpec.of(CAMERA), source="a drive")
    found = Adapted(
        code,
        _frames(before),
        _frames(after),
        1,
        [],
        looked_up=[] if looked_up is None else _frames(looked_up),
    )
    assert found.by_references is wins
    assert ("with references" in found.text) == (looked_up is not None)


def _frames(error: float) -> list[FrameResult]:
    truth = np.full((4, 4), 10.0, np.float32)
    pixels = PROTOCOL.truth(truth).compare(truth * np.float32(1 + error))
    errors = pixels.errors("none")
    return [FrameResult(0, 0, "single_frame", "", errors, errors, (0, 0, 4, 4))]
