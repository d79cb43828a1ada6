"""A small random DPT and Depth Anything of transformers as bundles, against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import need_packages_of

from depth_prior_ros.adaptation.adapt import adapt
from depth_prior_ros.adaptation.keyframes import AdaptationError, Keyframe
from depth_prior_ros.bundle import BundleError, FactorSpec, load_bundle
from depth_prior_ros.bundle.hugging_face import build_model
from depth_prior_ros.models.imported import GAUGE_SHIFT, gauge
from depth_prior_ros.pipeline import DepthPipeline
from training.errors import TrainingError
from training.runs.network_import import IMAGENET, ImportRequest, import_network

pytest.importorskip("transformers", reason="the extra `foundation` is not installed")
SIZE = 64


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    folder = tmp_path_factory.mktemp("models") / "small_dpt"
    torch.manual_seed(1)
    model = DPTForDepthEstimation(config).half().float()  # what a bundle keeps of it
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "DPTImageProcessor",
        "do_normalize": True,
        "image_mean": IMAGENET[0],
        "image_std": IMAGENET[1],
        "size": {"height": SIZE, "width": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture(scope="module")
def bundle(dpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("bundles") / "dpt"
    return import_network(ImportRequest(f"hf:{dpt}", out))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_depth_is_that_of_transformers(dpt: Path, bundle: Any, backend: str) -> None:
    need_packages_of(backend)
    from transformers import DPTForDepthEstimation

    manifest = bundle.manifest
    assert manifest.licence == "apache-2.0"
    assert manifest.affine
    assert manifest.network.mean == IMAGENET[0]
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = (np.array(v) for v in IMAGENET)
    pixels = ((image / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    with torch.no_grad():
        told = DPTForDepthEstimation.from_pretrained(dpt).eval()(torch.from_numpy(pixels))
    wanted = 5.0 / (gauge(told.predicted_depth[:, None]) + GAUGE_SHIFT)[0, 0].numpy()
    pipeline = DepthPipeline(load_bundle(bundle.path), backend, max_metres=1e9)
    depth = pipeline.infer(image, order="rgb").depth
    near = (wanted > 0) & (wanted < 100)
    assert near.mean() > 0.2
    np.testing.assert_allclose(depth[near], wanted[near], rtol=2e-3)


def test_a_small_model_is_fitted_to_a_camera_unless_it_is_affine_invariant(
    dpt: Path, bundle: Any, tmp_path: Path
) -> None:
    request = ImportRequest(f"hf:{dpt}", tmp_path / "b", "scale_invariant")
    scaled = import_network(request)
    camera = scaled.manifest.camera
    generator = np.random.default_rng(2)
    shape = (SIZE // 8, SIZE // 8)
    keyframes = [
        Keyframe(
            n,
            generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
            camera,
            generator.uniform(4, 6, shape).astype(np.float32),
        )
        for n in range(12)
    ]
    networks = DepthPipeline(scaled, "torch").networks
    found = adapt(scaled, keyframes, camera, "noise", networks=networks)
    assert isinstance(found.told, FactorSpec)
    assert abs(found.metric_after.ratio - 1) < 0.2 < abs(found.metric_before.ratio - 1)
    with pytest.raises(AdaptationError, match="another factor and shift in every picture"):
        adapt(bundle, keyframes, camera, "noise", networks=networks)


def test_what_cannot_be_taken_is_said(dpt: Path, bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is no folder"):
        import_network(ImportRequest("hf:someone/model", tmp_path / "b"))
    with pytest.raises(TrainingError, match="multiples of 16"):
        import_network(ImportRequest(f"hf:{dpt}", tmp_path / "b", size=(70, 64)))
    config = bundle.manifest.network.config
    with pytest.raises(ValueError, match="would have to be fetched"):
        build_model({**config, "backbone": "someone/else"}, {})
    with pytest.raises(ValueError, match="cannot be built"):
        build_model({**config, "hidden_size": 32}, {})
    file = bundle.path / "network.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    kept = file.read_bytes()
    file.write_bytes(bytes(data))
    try:
        with pytest.raises(BundleError, match="altered"):
            load_bundle(bundle.path)
    finally:
        file.write_bytes(kept)
