"""Hugging Face models as teachers: small random ones, built from configs on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from training.prior.teachers.base import TeacherError, open_teacher

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(
    not HAS_TRANSFORMERS, reason="needs transformers: pip install 'depth-prior-ros[foundation]'"
)
SIZE = (96, 64)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CARD = "---\nlicense: cc-by-nc-4.0\ntags:\n- vision\n---\n\n# A model\n\n---\nlicense: not this\n"


def depth_anything(kind: str = "relative") -> Any:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        mlp_ratio=2,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
        depth_estimation_type=kind,
        max_depth=80 if kind == "metric" else 1,
    )
    return DepthAnythingForDepthEstimation(config)


def dpt() -> Any:
    """Takes square pictures of its own size only."""
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    return DPTForDepthEstimation(config)


def glpn() -> Any:
    from transformers import GLPNConfig, GLPNForDepthEstimation

    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return GLPNForDepthEstimation(config)


def zoe_depth(heads: int = 1) -> Any:
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

    backbone = BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    bins = [
        {"n_bins": 64, "min_depth": 0.001, "max_depth": far, "name": name}
        for name, far in (("nyu", 10.0), ("kitti", 80.0))
    ]
    config = ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=4,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        backbone_hidden_size=16,
        bin_configurations=bins[:heads],
        num_patch_transformer_layers=4,  # transformers expects these, whatever the config says
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
    )
    return ZoeDepthForDepthEstimation(config)


MODELS = {
    "depth_anything": (depth_anything, "DPTImageProcessor", 70),
    "metric": (lambda: depth_anything("metric"), "DPTImageProcessor", 70),
    "dpt": (dpt, "DPTImageProcessor", 64),
    "glpn": (glpn, "GLPNImageProcessor", 64),
    "zoe": (zoe_depth, "ZoeDepthImageProcessor", 64),
    "zoe_two_heads": (lambda: zoe_depth(2), "ZoeDepthImageProcessor", 64),
}


def write_model(folder: Path, name: str, **saving: Any) -> Path:
    """A random model with its image processor and card."""
    build, processor, side = MODELS[name]
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():  # depth that varies, and is not cut off at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, parameter in model.named_parameters():
            if key.startswith("head.") and key.endswith("bias"):
                parameter.fill_(0.5)
    model.save_pretrained(folder, **saving)
    settings = {
        "image_processor_type": processor,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "size": {"height": side, "width": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, name) for name in MODELS}


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(3 * count, 3, size[1] // 8, size[0] // 8, generator=generator)
    images = torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear")
    return images.unflatten(0, (count, 3)), torch.eye(3).repeat(count, 1, 1)


# --- without transformers -------------------------------------------------------------------------


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TeacherError, match=r"pip install 'depth-prior-ros\[foundation\]'"):
        open_teacher("hf:some/model")


# --- what they say --------------------------------------------------------------------------------


@needs_transformers
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stride", [4, 8])
def test_views_have_the_shapes_of_the_stride(
    models: dict[str, Path], name: str, stride: int
) -> None:
    teacher = open_teacher(f"hf:{models[name]}", size=SIZE, stride=stride)
    view = teacher.look(*pictures())
    identity = teacher.identity
    grid = (SIZE[1] // stride, SIZE[0] // stride)
    assert view.features.shape == (2, identity.channels, *grid)
    assert view.inverse_depth.shape == (2, 1, *grid)
    assert view.depth.shape == (2, 1, SIZE[1], SIZE[0])
    assert view.motions is None
    for tensor in (view.features, view.inverse_depth, view.depth):
        assert tensor.isfinite().all() and not tensor.requires_grad
    assert (view.inverse_depth > 0).all() and (view.depth > 0).all()
    assert view.features.std() > 0
    assert (identity.kind, identity.stride, identity.size) == ("foundation", stride, SIZE)
    assert (identity.name, identity.licence) == (models[name].name, "cc-by-nc-4.0")


@needs_transformers
@pytest.mark.parametrize("name", ["depth_anything", "dpt"])
def test_relative_models_are_normalised_by_image(models: dict[str, Path], name: str) -> None:
    teacher = open_teacher(f"hf:{models[name]}", size=SIZE, metres_per_unit=10.0)
    inverse = 1 / teacher.look(*pictures()).depth
    torch.testing.assert_close(inverse.flatten(1).median(1).values, torch.ones(2))
    assert inverse.min() >= 0.0099 and inverse.flatten(1).std() > 0


@needs_transformers
def test_metric_models_stay_metric(models: dict[str, Path]) -> None:
    spec = f"hf:{models['metric']}"
    metres = open_teacher(spec, size=SIZE).look(*pictures())
    units = open_teacher(spec, size=SIZE, metres_per_unit=10.0).look(*pictures())
    assert metres.depth.min() > 1 and metres.depth.max() < 80
    torch.testing.assert_close(units.depth, metres.depth / 10)
    torch.testing.assert_close(units.inverse_depth, metres.inverse_depth * 10)
    torch.testing.assert_close(units.features, metres.features)
    relative = open_teacher(spec, size=SIZE, metric=False).look(*pictures())
    ratio = relative.depth / metres.depth
    for one in ratio.flatten(1):
        torch.testing.assert_close(one, one.mean().expand_as(one))
    torch.testing.assert_close((1 / relative.depth).flatten(1).median(1).values, torch.ones(2))
    with pytest.raises(TeacherError, match="its depth is relative"):
        open_teacher(f"hf:{models['dpt']}", size=SIZE, metric=True)


@needs_transformers
def test_the_model_is_shown_the_middle_picture_as_it_expects_it(models: dict[str, Path]) -> None:
    from transformers import AutoModelForDepthEstimation

    model = AutoModelForDepthEstimation.from_pretrained(models["metric"])
    size = (84, 56)  # fits the patches, and the stride: nothing is resized
    images, K = pictures(size=(88, 56))
    images = images[..., :84].contiguous()
    teacher = open_teacher(f"hf:{models['metric']}", size=size, stride=4)
    view = teacher.look(images, K)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        expected = model((images[:, 1] - mean) / std).predicted_depth
    torch.testing.assert_close(view.depth[:, 0], expected, rtol=1e-4, atol=1e-4)
    # Levels of the neck are 6x4, 12x8, 24x16 and 48x32; 21x14 is made of the third.
    assert view.features.shape[-2:] == (14, 21)


@needs_transformers
@pytest.mark.parametrize("name", ["depth_anything", "zoe_two_heads"])
def test_samples_do_not_know_each_other(models: dict[str, Path], name: str) -> None:
    teacher = open_teacher(f"hf:{models[name]}", size=SIZE)
    images, K = pictures(3)
    images[0] *= 0.1
    whole, last = teacher.look(images, K), teacher.look(images[2:], K[2:])
    torch.testing.assert_close(whole.depth[2:], last.depth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.features[2:], last.features, rtol=1e-4, atol=1e-5)


@needs_transformers
def test_a_picture_without_any_depth_is_finite(models: dict[str, Path]) -> None:
    teacher = open_teacher(f"hf:{models['depth_anything']}", size=SIZE)
    for key, parameter in teacher._model.named_parameters():  # type: ignore[attr-defined]
        if key.startswith("head.conv3"):
            parameter.fill_(-1.0)
    view = teacher.look(*pictures())
    assert (view.depth == 100).all() and view.inverse_depth.isfinite().all()


@needs_transformers
def test_without_a_neck_the_patches_give_the_features(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.prior.teachers import foundation

    monkeypatch.setattr(foundation, "_NECKS", ())
    teacher = open_teacher(f"hf:{models['depth_anything']}", size=(112, 64), stride=16)
    assert teacher.identity.channels == 16
    images, K = pictures(size=(112, 64))
    grid = teacher._grid(  # type: ignore[attr-defined]
        torch.arange(1 + 5 * 8).float()[None, :, None].expand(2, -1, 16)
    )
    assert grid.shape == (2, 16, 5, 8)
    assert grid[0, 0, 0, 0] == 1 and grid[0, 0, 1, 0] == 9
    assert teacher.look(images, K).features.shape == (2, 16, 4, 7)


# --- who they are ---------------------------------------------------------------------------------


@needs_transformers
def test_identity_is_of_all_that_decides(models: dict[str, Path], tmp_path: Path) -> None:
    spec = f"hf:{models['metric']}"
    first = open_teacher(spec, size=SIZE).identity
    assert open_teacher(spec, size=SIZE).identity == first
    assert open_teacher(spec, size=SIZE, metres_per_unit=1.0).identity.sha256 == first.sha256
    changed = write_model(tmp_path / "metric", "metric")
    from safetensors.torch import load_file, save_file

    weights = load_file(changed / "model.safetensors")
    weights["head.conv3.bias"] += 0.1
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    others = [
        open_teacher(spec),
        open_teacher(spec, size=SIZE, stride=8),
        open_teacher(spec, size=SIZE, metric=False),
        open_teacher(spec, size=SIZE, metres_per_unit=10.0),
        open_teacher(f"hf:{changed}", size=SIZE),
    ]
    assert len({first.sha256, *(other.identity.sha256 for other in others)}) == 6


@needs_transformers
@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: research-only\n---\n", "research-only"),
        ("---\nlicense: [mit, bsd]\n---\n", "mit, bsd"),
        ("# No front matter\n---\nlicense: mit\n---\n", "unknown: look at its card"),
        ("---\nlicense: [broken\n---\n", "unknown: look at its card"),
        (None, "unknown: look at its card"),
    ],
)
def test_licence_is_that_of_the_card(tmp_path: Path, card: str | None, licence: str) -> None:
    from types import SimpleNamespace

    from depth_prior_ros.bundle.hugging_face import licence_of

    if card is not None:
        (tmp_path / "README.md").write_text(card)
    (tmp_path / "config.json").write_text("{}")
    assert licence_of(str(tmp_path), SimpleNamespace(), True) == licence


# --- what is refused ------------------------------------------------------------------------------


@needs_transformers
def test_only_safetensors_are_read(models: dict[str, Path], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "pickled", "dpt")
    from safetensors.torch import load_file

    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(TeacherError, match="safetensors"):
        open_teacher(f"hf:{folder}", size=SIZE)


@needs_transformers
def test_weights_that_matter_and_are_missing_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "holes", "dpt")
    weights = load_file(folder / "model.safetensors")
    unused = [n for n in weights if "fusion_stage.layers.0.residual_layer1" in n]
    assert unused
    kept = {n: t for n, t in weights.items() if n not in unused}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    first = open_teacher(f"hf:{folder}", size=SIZE)
    assert open_teacher(f"hf:{folder}", size=SIZE).identity == first.identity
    del kept["head.head.0.weight"]
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match=r"weights lack \d+ tensors"):
        open_teacher(f"hf:{folder}", size=SIZE)


@needs_transformers
def test_a_damaged_file_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cut", "dpt")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(TeacherError, match="cannot be opened"):
        open_teacher(f"hf:{folder}", size=SIZE)


@needs_transformers
def test_what_is_no_depth_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(TeacherError, match=r"cannot be opened.*needed: config.json"):
        open_teacher(f"hf:{tmp_path}")
    from transformers import ViTConfig

    folder = write_model(tmp_path / "vit", "dpt")
    ViTConfig().save_pretrained(folder)
    with pytest.raises(TeacherError, match="cannot be opened as a depth-estimation model"):
        open_teacher(f"hf:{folder}")


@needs_transformers
@pytest.mark.parametrize(("size", "stride"), [((98, 64), 4), (SIZE, 5), (SIZE, 64)])
def test_a_stride_that_does_not_fit_is_refused(
    models: dict[str, Path], size: tuple[int, int], stride: int
) -> None:
    with pytest.raises(
        TeacherError, match=f"no features at stride {stride} of {size[0]}x{size[1]}"
    ):
        open_teacher(f"hf:{models['dpt']}", size=size, stride=stride)


@needs_transformers
def test_nothing_is_fetched_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(
        TeacherError, match=r"nothing is downloaded unless asked.*teacher.fetch: true"
    ):
        open_teacher("hf:nobody/has-this-model")


@needs_transformers
@pytest.mark.slow
def test_a_name_is_looked_up_in_the_cache(models: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / "abc").symlink_to(models["dpt"])
    code = (
        "from training.prior.teachers.base import open_teacher;"
        "i = open_teacher('hf:some/model', size=(96, 64)).identity;"
        "print(i.name, i.licence)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.stdout.strip() == "some/model cc-by-nc-4.0", result.stderr
